"""What identifies a snapshot: its content, read cheaply enough to be computed at every start."""

import hashlib
from pathlib import Path

from s2v_tasks.engine.loading.snapshot import Snapshot

_WINDOW_BYTES = 1 << 20
_NUM_WINDOWS = 8


def snapshot_id(path: Path) -> str:
    """A sha256 (64 hex digits) over names, sizes and content of the weight files of the snapshot at `path`.

    Of files above 8 MiB only eight windows of 1 MiB are read, the first at the head, the last at the tail: other
    weights of the same size differ there. Copies of a snapshot have the same identity; documentation does not count.
    """
    snapshot = Snapshot.open(path)
    digest = hashlib.sha256()
    for file in snapshot.weight_files():
        size_bytes = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size_bytes}\0".encode())
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
