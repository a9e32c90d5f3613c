#!/bin/sh
# Migrate the databases of Airflow and of the project, and create the pool `gpu` and the connections if Airflow lacks
# them. Existing connections are not changed, and the pool only if S2V_GPU_POOL_SLOTS is set. The script is idempotent.
# usage: setup-databases.sh FOLDER   (with connections.json)
set -eu
folder=${1:?expected the folder with connections.json, such as config/airflow}
# First, because the pods of the Helm chart start once the database of Airflow is migrated. It refuses wrong settings.
s2v db upgrade
airflow db migrate
# The pool counts deferred tasks: those whose pods run.
if [ -n "${S2V_GPU_POOL_SLOTS:-}" ] || ! airflow pools get gpu > /dev/null 2>&1; then
    airflow pools set gpu "${S2V_GPU_POOL_SLOTS:-1}" "Clips that render at the same time, each in its own pod" --include-deferred
fi
airflow connections import "$folder/connections.json"
