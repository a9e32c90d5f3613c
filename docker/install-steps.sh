#!/bin/sh
# Install the package, with its ffmpeg, and the Hugging Face client into a new virtual environment, without torch: for
# CPU steps, database migrations and the snapshot job.
# usage, in the root of the sources: install-steps.sh VENV
set -eu
venv=$1
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check -c config/constraints-py311.txt \
    . huggingface_hub
"$venv/bin/s2v" --version
"$venv/bin/hf" version
