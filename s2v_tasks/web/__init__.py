"""The Videos page inside Airflow's UI. It answers in the API server and reads storage there; no other process does."""
