#!/bin/sh
# Prepare an installation with the talking model, so that the DAG can be triggered. The script is idempotent.
# usage: init.sh SOURCES SAMPLES SNAPSHOT
set -eu
sources=$1 samples=$2 snapshot=$3
"$sources/docker/setup-databases.sh" "$sources/config/airflow"
if [ ! -d "$snapshot" ]; then
    s2v snapshot init-talker "$snapshot"
fi
python - "$samples" <<'EOF'
import sys
from pathlib import Path

from s2v_tasks.settings import load_settings
from s2v_tasks.storage.s3 import ObjectStore

store = ObjectStore.from_settings(load_settings())
store.ensure_bucket()
for name, media_type in {"portrait.jpg": "image/jpeg", "speech.mp3": "audio/mpeg"}.items():
    store.upload(Path(sys.argv[1]) / name, f"s3://s2v/samples/{name}", media_type)
EOF
