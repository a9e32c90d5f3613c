"""Integration with Airflow: runs steps by command, and imports only `schemas` and `settings` of this package."""
