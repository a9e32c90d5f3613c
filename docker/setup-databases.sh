#!/bin/sh
# Brings Airflow's database and the project's to their schemas and makes what Airflow needs and does not have yet: the
# pool `gpu` and the connections. What a person has changed since stays. Harmless when repeated.
# usage: setup-databases.sh FOLDER   (with pools.json and connections.json)
set -eu
folder=$1
airflow db migrate
airflow pools get gpu > /dev/null 2>&1 || airflow pools import "$folder/pools.json"
airflow connections import "$folder/connections.json"
s2v db upgrade
