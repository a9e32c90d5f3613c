"""The embedded services of a laptop or a fresh machine: PostgreSQL, S3 and Airflow from pip, on loopback."""
