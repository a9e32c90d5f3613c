"""Pages inside Airflow's UI. They answer in the API server and read storage there; no other process imports storage."""
