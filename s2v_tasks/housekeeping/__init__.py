"""Delete expired objects, compare S3 with PostgreSQL, and close jobs whose DAG run is gone."""
