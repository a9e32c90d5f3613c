#!/bin/sh
# Migrate the databases of Airflow and of the project, and create the pool `gpu` and the connections if Airflow lacks
# them. Existing ones are not changed. The script is idempotent.
# usage: setup-databases.sh FOLDER   (with pools.json and connections.json)
set -eu
folder=$1
airflow db migrate
airflow pools get gpu > /dev/null 2>&1 || airflow pools import "$folder/pools.json"
airflow connections import "$folder/connections.json"
s2v db upgrade
