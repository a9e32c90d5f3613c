"""The part that knows Airflow: it runs steps by command and imports of the system only the words."""
