#!/bin/sh
# A C compiler for torch.compile (S2V_COMPILE), which builds its launchers at the first step. On Debian, as root.
set -eu
apt-get update
apt-get install --yes --no-install-recommends gcc libc6-dev
rm -rf /var/lib/apt/lists/*
