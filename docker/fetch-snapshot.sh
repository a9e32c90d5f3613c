#!/bin/sh
# Download the weights at a pinned commit into a folder and verify every file; files that exist are not downloaded
# again. Digests come from SHA256SUMS in the folder, else once from the Hub; then they are stored beside the files.
# usage: SNAPSHOT_REPO_ID=Wan-AI/Wan2.2-S2V-14B SNAPSHOT_REVISION=<commit> fetch-snapshot.sh FOLDER
set -eu
folder=${1:?expected the folder of the weights}
repo_id=${SNAPSHOT_REPO_ID:?expected the repository of the weights, for example Wan-AI/Wan2.2-S2V-14B}
revision=${SNAPSHOT_REVISION:?expected the commit of the weights: git ls-remote https://huggingface.co/$SNAPSHOT_REPO_ID HEAD}
if ! expr "$revision" : '[0-9a-f]\{40\}$' > /dev/null; then
    echo "SNAPSHOT_REVISION=$revision: expected a commit of 40 hex digits, because a branch can change" >&2
    exit 78
fi
hf download "$repo_id" --revision "$revision" --local-dir "$folder"
if [ ! -f "$folder/SHA256SUMS" ]; then
    hf cache verify "$repo_id" --revision "$revision" --local-dir "$folder" --fail-on-missing-files
    (cd "$folder" && find . \( -name .cache -o -name lost+found \) -prune -o -type f ! -name 'SHA256SUMS*' -printf '%P\0' | sort -z |
        xargs -0 sha256sum > SHA256SUMS.part && mv SHA256SUMS.part SHA256SUMS)
fi
s2v snapshot verify "$folder"
