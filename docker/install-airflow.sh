#!/bin/sh
# Adds the package, with its ffmpeg, to an Airflow that is there already. ENGINE=cpu adds the engine on torch's CPU
# build, for one machine where Airflow itself renders; ENGINE=none is for clusters, where pods render, logs go to S3,
# drops may come by SQS and people log in: with the providers for that at the versions that fit together, whatever the
# image brings.
# usage, in the root of the sources: install-airflow.sh [PYTHON]
set -eu
python=${1:-python}
pip_install() {
    "$python" -m pip install --no-cache-dir --disable-pip-version-check -c config/constraints-py311.txt "$@"
}
case "${ENGINE:-none}" in
none) pip_install '.[airflow,queue]' apache-airflow-providers-fab ;;
cpu)
    pip_install --index-url "${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}" torch
    pip_install '.[airflow,engine]'
    ;;
*)
    echo "ENGINE=$ENGINE: expected none or cpu" >&2
    exit 2
    ;;
esac
"$python" -m s2v_tasks.cli --version
"$python" -c 'import s2v_tasks.orchestration.execution'
