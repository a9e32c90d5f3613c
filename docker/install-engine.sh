#!/bin/sh
# Add the engine to the virtual environment of install-steps.sh. The wheels of torch contain CUDA, cuDNN and NCCL.
# TORCH_INDEX_URL names another index, for example https://download.pytorch.org/whl/cpu. EXTRAS names extras of
# pyproject.toml to add, separated by commas: fp8, identity.
# usage, in the root of the sources: install-engine.sh VENV
set -eu
venv=$1
"$venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check -c config/constraints-py311.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
"$venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check -c config/constraints-py311.txt \
    ".[engine${EXTRAS:+,$EXTRAS}]"
"$venv/bin/torchrun" --help > /dev/null
