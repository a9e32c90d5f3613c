"""Recognise files that cannot be loaded from a few of their bytes: placeholders, other kinds, incomplete downloads.

Only lengths, headers and ends are read, so the check of a whole snapshot takes no noticeable time.
"""

import json
import re
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from s2v_tasks.errors import ConfigurationError, TransientError

_LENGTH_BYTES = 8  # of the header's length, the first bytes of a safetensors file
_MAX_HEADER_BYTES = 100 << 20
_BEGINNING_BYTES = 512
_GGUF_MAGIC = b"GGUF"
_LFS_MAGIC = b"version https://git-lfs"
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"  # of any protocol
_AGAIN = "delete it and download it again"


def check_file(path: Path) -> None:
    """Raise ConfigurationError, with the remedy, for a file that cannot be loaded; see `fault_of`."""
    if fault := fault_of(path):
        raise ConfigurationError(f"{path} {fault}")


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a file of a snapshot and the remedy, as the rest of a sentence; None for no fault.

    Files of other kinds than safetensors, .pth, .bin and .json have no fault except that they are placeholders. Raises
    TransientError if the volume of the file fails; PermissionError for a file that this account may not read.
    """
    if path.is_symlink() and not path.exists():
        return (
            f"is a link to {path.readlink()}, which does not exist: a cache of the Hub needs its folder `blobs`, too. "
            "Mount or copy both, or use `hf download` with --local-dir"
        )
    try:
        return _content_fault(path)
    except PermissionError:
        raise
    except OSError as error:
        raise TransientError(
            f"{path} cannot be read ({error.strerror}). Try again; look at the volume if that repeats."
        ) from error


def _content_fault(path: Path) -> str | None:
    with path.open("rb") as stream:
        beginning = stream.read(_BEGINNING_BYTES)
    if not beginning:
        return f"is empty; {_AGAIN}"
    if placeholder := _placeholder(beginning):
        return placeholder
    if path.suffix == ".safetensors":
        return _safetensors_fault(path)
    if path.suffix in (".pth", ".bin"):
        return _pth_fault(path, beginning)
    return _json_fault(path) if path.suffix == ".json" else None


def safetensors_header(path: Path) -> dict[str, Any] | None:
    """Return dtype, shape and offsets of each tensor of a safetensors file; None if it has no such header."""
    with path.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        try:
            header = json.loads(stream.read(num_bytes)) if num_bytes <= _MAX_HEADER_BYTES else None
        except ValueError:
            return None
    if not isinstance(header, dict):
        return None
    header.pop("__metadata__", None)
    fields = {"dtype", "shape", "data_offsets"}
    return header if all(isinstance(entry, dict) and fields <= entry.keys() for entry in header.values()) else None


def _placeholder(beginning: bytes) -> str | None:
    """Return the fault of a file that stands for another one, or is of a kind that this engine never reads."""
    if beginning.startswith(_LFS_MAGIC):
        size = re.search(rb"^size (\d+)$", beginning, re.MULTILINE)
        num_bytes = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"is a pointer of Git LFS to a file{num_bytes} that was not downloaded; run `git lfs pull` in its folder, "
            "or delete it and use `hf download`"
        )
    if beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "is a web page; delete it and use `hf download`, or the link `resolve` of the Hub in place of `blob`"
    if beginning.startswith(_GGUF_MAGIC):
        return (
            "is a GGUF file: its weights are quantized in blocks, which this engine does not compute. Use the bf16 or "
            "fp8_scaled safetensors file of the same model"
        )
    return None


def _safetensors_fault(path: Path) -> str | None:
    header = safetensors_header(path)
    if not header:
        return f"is not a safetensors file; {_AGAIN}"
    with path.open("rb") as stream:
        begin = _LENGTH_BYTES + int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    expected, found = begin + max(entry["data_offsets"][1] for entry in header.values()), path.stat().st_size
    return None if found == expected else f"has {found:,} bytes; expected {expected:,}, by its header; {_AGAIN}"


def _pth_fault(path: Path, beginning: bytes) -> str | None:
    if beginning.startswith(_ZIP_MAGIC):
        return None if is_zipfile(path) else f"ends early, after {path.stat().st_size:,} bytes; {_AGAIN}"
    # PyTorch before 1.6 wrote plain pickles, whose length is not stated.
    return None if beginning.startswith(_PICKLE_MAGIC) else f"is not a file of PyTorch; {_AGAIN}"


def _json_fault(path: Path) -> str | None:
    content = path.read_bytes().strip()
    if content.startswith((b"{", b"[")) and content.endswith((b"}", b"]")):
        return None
    return f"is not JSON; its {path.stat().st_size:,} bytes do not begin and end with braces; {_AGAIN}"
