#!/bin/sh
# A C compiler for torch.compile (S2V_COMPILE), which builds its launchers at the first step. On Debian, as root. The
# lists of packages stay out of an image because their folder is mounted there.
set -eu
apt-get -o Acquire::Retries=3 update
apt-get -o Acquire::Retries=3 install --yes --no-install-recommends gcc libc6-dev
