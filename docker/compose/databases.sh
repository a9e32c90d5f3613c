#!/bin/sh
# PostgreSQL runs this once, on an empty volume: one database for Airflow, one for the project.
set -eu
createdb --username "$POSTGRES_USER" airflow
createdb --username "$POSTGRES_USER" s2v
