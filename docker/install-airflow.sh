#!/bin/sh
# Add the package, with its ffmpeg, to an installed Airflow. ENGINE=cpu adds the engine with the CPU build of torch, for
# one machine on which Airflow itself renders. ENGINE=none is for clusters: pods render, logs go to S3, SQS may announce
# drops, and users log in, also with OpenID Connect (authlib). It installs the providers for that in matching versions, in
# place of those of the image.
# usage, in the root of the sources: install-airflow.sh [PYTHON]
set -eu
python=${1:-python}
pip_install() {
    "$python" -m pip install --no-cache-dir --disable-pip-version-check -c config/constraints-py311.txt "$@"
}
case "${ENGINE:-none}" in
none) pip_install '.[airflow,queue]' apache-airflow-providers-fab authlib ;;
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
"$python" -c 'import s2v_tasks.orchestration.step_operators'
