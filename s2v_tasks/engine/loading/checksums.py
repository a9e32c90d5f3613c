"""Checks a snapshot against the list of sha256 digests that lies beside its files."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.errors import ConfigurationError

CHECKSUM_FILE = "SHA256SUMS"
_DIGEST_LENGTH = 64
# Hashing runs outside Python's lock; more threads than disks can feed bring nothing.
_NUM_THREADS = 4


def verify_checksums(path: Path) -> int:
    """Compare every weight file of the snapshot at `path` with `SHA256SUMS` and return how many there are.

    The list is what `sha256sum` writes, paths relative to the snapshot. Raises ConfigurationError that names all files
    that differ or are not listed.
    """
    listed = _read_list(path / CHECKSUM_FILE)
    files = {file.relative_to(path).as_posix(): file for file in Snapshot.open(path).weight_files()}
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        digests = dict(zip(files, threads.map(_sha256, files.values()), strict=True))
    unlisted = sorted(files.keys() - listed.keys())
    damaged = sorted(name for name, digest in digests.items() if listed.get(name, digest) != digest)
    if unlisted or damaged:
        raise ConfigurationError(
            f"snapshot {path} is not what its {CHECKSUM_FILE} states: damaged {damaged}, not listed {unlisted}; "
            "download these files again"
        )
    return len(files)


def _read_list(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing; write it where the snapshot is known to be good, with sha256sum")
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [line for line in lines if len(line) != 2 or len(line[0]) != _DIGEST_LENGTH]
    if wrong:
        raise ConfigurationError(
            f"{path} has lines like {wrong[0]}; expected '<64 hex digits>  <path>', as sha256sum does"
        )
    # sha256sum marks binary mode with a star before the path.
    return {name.removeprefix("*").removeprefix("./"): digest.lower() for digest, name in lines}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
