"""Compute the identity of a snapshot (fast, for every start), and verify its files against SHA-256 digests."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.errors import ConfigurationError

CHECKSUM_FILE = "SHA256SUMS"
_DIGEST_LENGTH = 64
# Hashing releases Python's global lock; with more threads the disk is the limit.
_NUM_THREADS = 4

_WINDOW_BYTES = 1 << 20
_NUM_WINDOWS = 8


def snapshot_id(snapshot: Snapshot) -> str:
    """Return a sha256 (64 hex digits) over names, sizes and content of the weight files of `snapshot`.

    Of files above 8 MiB only eight windows of 1 MiB are read, from the start to the end of the file: other weights of
    the same size differ there. Copies of a snapshot have the same identity; documentation is ignored.
    """
    path = snapshot.path
    digest = hashlib.sha256()
    for file in snapshot.weight_files():
        size_bytes = file.stat().st_size
        name = file.relative_to(path).as_posix() if file.is_relative_to(path) else file.name
        digest.update(f"{name}\0{size_bytes}\0".encode())
        digest.update(_content_digest(file, size_bytes))
    return digest.hexdigest()


def _content_digest(file: Path, size_bytes: int) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size_bytes <= _NUM_WINDOWS * _WINDOW_BYTES:
            digest.update(stream.read())
        else:
            last = size_bytes - _WINDOW_BYTES
            for window in range(_NUM_WINDOWS):
                stream.seek(last * window // (_NUM_WINDOWS - 1))
                digest.update(stream.read(_WINDOW_BYTES))
    return digest.digest()


def verify_checksums(path: Path) -> int:
    """Compare every weight file of the snapshot at `path` with `SHA256SUMS` and return their number.

    The list has the format of `sha256sum`, with paths relative to the snapshot. Raises ConfigurationError with all
    files that differ or are not listed.
    """
    listed = _read_list(path / CHECKSUM_FILE)
    files = {file.relative_to(path).as_posix(): file for file in Snapshot.open(path).weight_files()}
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        digests = dict(zip(files, threads.map(_sha256, files.values()), strict=True))
    unlisted = sorted(files.keys() - listed.keys())
    damaged = sorted(name for name, digest in digests.items() if listed.get(name, digest) != digest)
    if unlisted or damaged:
        raise ConfigurationError(
            f"snapshot {path} differs from its {CHECKSUM_FILE}: damaged {damaged}, not listed {unlisted}; "
            "download these files again"
        )
    return len(files)


def _read_list(path: Path) -> dict[str, str]:
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path.parent} is not a folder; expected the folder of a snapshot")
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing; create it with sha256sum from a verified copy of the snapshot")
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
