#!/bin/sh
# Install a C compiler for torch.compile (S2V_COMPILE), which builds its launchers at the first step. On Debian, as root.
# Package lists and packages are not part of an image, because temporary file systems are mounted at their folders.
set -eu
apt-get -o Acquire::Retries=3 update
apt-get -o Acquire::Retries=3 install --yes --no-install-recommends gcc libc6-dev
