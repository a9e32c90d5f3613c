#!/bin/sh
# Create one database for Airflow and one for the project. PostgreSQL runs this script once, on an empty volume.
set -eu
createdb --username "$POSTGRES_USER" airflow
createdb --username "$POSTGRES_USER" s2v
