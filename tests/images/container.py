"""Run a command in a built image as its pods do: as the image's user, with a read-only root and its own environment.

`buildah run` has no read-only root. This needs the rights of root and no container runtime: a mount namespace, a
read-only bind mount of the image's files, and chroot. The network is that of the machine.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.builder import Built

# $1: root, $2: uid:gid, $3: folder to start in, $4: ro or rw; then pairs of source and target of mounts up to `--`,
# then the command.
_SCRIPT = """
set -eu
root=$1 user=$2 folder=$3 mode=$4
shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mount --rbind "$1" "$root$2"
    shift 2
done
shift
mount -o "remount,bind,$mode" "$root"
exec chroot --userspec="$user" --groups= "$root" /usr/bin/env --chdir="$folder" "$@"
"""


@dataclass(frozen=True)
class Container:
    """The files of an image, mounted at `root`, and the settings with which a runtime would start it."""

    built: Built
    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[Path, str] = field(default_factory=dict)
    is_read_only: bool = True

    @property
    def user(self) -> str:
        """The account of the image, with a group; an account without one has group 0, as images do."""
        user = str(self.built.config["User"])
        return user if ":" in user else f"{user}:0"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs `arguments` in the image; its entry point is not added."""
        own = dict(entry.split("=", 1) for entry in self.built.config["Env"])
        values = {"HOME": "/tmp", "LANG": "C.UTF-8"} | own | dict(self.environment)  # noqa: S108 - of the container
        variables = [f"{name}={value}" for name, value in values.items()]
        targets = [word for source, target in self.mounts.items() for word in (str(source), target)]
        folder = self.built.config.get("WorkingDir") or "/"
        mode = "ro" if self.is_read_only else "rw"
        script = ["sh", "-c", _SCRIPT, "sh", str(self.root), self.user, folder, mode, *targets, "--"]
        return ["unshare", "--mount", "--propagation", "private", *script, "-i", *variables, *arguments]

    def run(self, *arguments: str, timeout: float = 300) -> str:
        """Return the output of a command; AssertionError with its log unless it succeeds."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False, env={}
        )
        said = (done.stderr + done.stdout)[-2000:]
        assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}: {said}"
        return done.stdout
