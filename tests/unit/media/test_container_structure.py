"""Check the detection of lost parts of containers."""

import struct
from pathlib import Path

import numpy as np
import pytest

from s2v_tasks.media import container_structure
from s2v_tasks.media.container_structure import lost_part


def _box(name: bytes, size: int, announced: int | None = None, *, long: bool = False) -> bytes:
    announced = size if announced is None else announced
    if long:
        return struct.pack(">I4sQ", 1, name, announced) + bytes(size - 16)
    return struct.pack(">I4s", announced, name) + bytes(size - 8)


def _element(name: int, content: bytes, size: bytes | None = None) -> bytes:
    """Return an EBML element; `size` replaces the bytes that state its size."""
    announced = struct.pack(">Q", 1 << 56 | len(content)) if size is None else size
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + announced + content


def _page(number: int, serial: bytes = b"abcd", *, begins: bool = False, size: int = 30) -> bytes:
    header = b"OggS\0" + bytes([2 if begins else 0]) + bytes(8) + serial + struct.pack("<I", number) + bytes(4)
    return header + bytes([1, size]) + bytes(size)


def _problem(tmp_path: Path, data: bytes, format_name: str) -> str | None:
    (tmp_path / "a").write_bytes(data)
    return lost_part(tmp_path / "a", format_name)


@pytest.mark.parametrize("name", [b"mdat", b"moov", b"moof"])
@pytest.mark.parametrize("long", [False, True])
def test_box_that_is_larger_than_the_file(name: bytes, long: bool, tmp_path: Path) -> None:
    """Audio or an index that lacks one byte is detected, after boxes with 32-bit and 64-bit sizes."""
    head = _box(b"ftyp", 24) + _box(b"free", 40, long=True)
    assert _problem(tmp_path, head + _box(name, 100, long=long), "mov") is None
    found = _problem(tmp_path, head + _box(name, 100, 101, long=long), "mov,mp4,m4a,3gp,3g2,mj2")
    assert found == f"its {name.decode()} box states 101 bytes, but 100 exist"


def test_boxes_without_a_loss(tmp_path: Path) -> None:
    """A box to the end of the file, padding after the last one, and boxes without audio are no loss."""
    assert _problem(tmp_path, _box(b"moov", 50) + _box(b"mdat", 90, 0), "mov") is None
    assert _problem(tmp_path, _box(b"moov", 50) + _box(b"mdat", 90) + bytes(13), "mov") is None
    assert _problem(tmp_path, _box(b"mdat", 50) + _box(b"free", 90, 5000), "mov") is None
    assert _problem(tmp_path, _box(b"mdat", 8) + _box(b"moov", 50, 51), "mov") is not None
    assert _problem(tmp_path, _box(b"mdat", 50, 7) + _box(b"moov", 50, 99), "mov") is None  # nobody knows what follows


HEAD = _element(0x1A45DFA3, b"\x42\x82\x84webm", b"\x87")
BLOCKS = _element(0xE7, b"\0") + _element(0xA3, bytes(300)) + _element(0xA0, bytes(5), b"\x85")
CLUSTER = _element(0x1F43B675, BLOCKS)
OPEN = b"\x01" + b"\xff" * 7


def test_segment_that_is_larger_than_the_file(tmp_path: Path) -> None:
    """A recording whose last byte is missing is detected."""
    whole = HEAD + _element(0x18538067, _element(0xEC, bytes(9)) + CLUSTER * 2)
    assert _problem(tmp_path, whole, "matroska") is None
    found = _problem(tmp_path, whole[:-1], "matroska,webm")
    assert found == f"its segment states {len(CLUSTER) * 2 + 18} bytes, but {len(CLUSTER) * 2 + 17} exist"


@pytest.mark.parametrize("size", [OPEN, b"\xff"])
def test_sizes_that_a_recorder_leaves_open(size: bytes, tmp_path: Path) -> None:
    """Unknown sizes of segment and clusters, and an unfinished last block, are no loss."""
    live = HEAD + _element(0x18538067, _element(0x1F43B675, BLOCKS, size) * 3, size)
    assert _problem(tmp_path, live, "matroska") is None
    assert _problem(tmp_path, live[:-1], "matroska") is None


@pytest.mark.parametrize("hole", [slice(0, 9), slice(9, 20), slice(320, 340)])
@pytest.mark.parametrize("segment_size", [None, OPEN])
def test_hole_between_elements(hole: slice, segment_size: bytes | None, tmp_path: Path) -> None:
    """Zeros in place of a cluster, or of an element in it, are found with their position."""
    before = HEAD + _element(0x18538067, CLUSTER, OPEN)
    blocks = bytearray(CLUSTER * 2)
    start = (0, len(CLUSTER) - len(BLOCKS), len(CLUSTER))[[0, 9, 320].index(hole.start)]
    blocks[start : start + hole.stop - hole.start] = bytes(hole.stop - hole.start)
    found = _problem(tmp_path, HEAD + _element(0x18538067, CLUSTER + bytes(blocks), segment_size), "matroska")
    assert found == f"at byte {len(before) + start} there is no element"


def test_element_that_is_larger_than_its_segment(tmp_path: Path) -> None:
    """A block that ends after its segment is damage."""
    wrong = _element(0x1F43B675, _element(0xA3, bytes(300), struct.pack(">Q", 1 << 56 | 301)))
    found = _problem(tmp_path, HEAD + _element(0x18538067, wrong), "matroska")
    assert found == "its last element states 301 bytes, but 300 exist"


def test_pages_that_are_missing(tmp_path: Path) -> None:
    """A gap in the page numbers of a stream is found; other streams, a new start and junk are no gap."""
    pages = [_page(0, begins=True), _page(1), _page(7, b"efgh"), _page(2), _page(8, b"efgh"), _page(3)]
    assert _problem(tmp_path, b"".join(pages), "ogg") is None
    assert _problem(tmp_path, b"junk".join(pages) + b"TAG", "ogg") is None
    assert _problem(tmp_path, b"".join(pages) + _page(0, begins=True) + _page(1), "ogg") is None
    for lost in (1, 3):
        kept = b"".join(page for k, page in enumerate(pages) if k != lost)
        assert "do not follow one another" in str(_problem(tmp_path, kept, "ogg"))
    assert "before byte 116" in str(_problem(tmp_path, b"".join(pages[:2]) + _page(2)[:0] + _page(3), "ogg"))
    assert _problem(tmp_path, b"".join(pages) + _page(4, size=20)[:20], "ogg") is None  # left to another check
    assert "follow" in str(_problem(tmp_path, pages[0] + _page(1) + _page(1), "ogg"))


def test_page_marks_inside_sound_are_no_pages(tmp_path: Path) -> None:
    """The mark of a page inside another page is content."""
    inner = _page(0, begins=True) + _page(1, size=60)[:28] + _page(9, size=20)[:49].ljust(60, b"\0") + _page(2)
    assert _problem(tmp_path, inner, "ogg") is None


@pytest.mark.parametrize(
    ("format_name", "limit", "data", "parts"),
    [
        ("mov", "_MAX_BOXES", _box(b"free", 8) * 12 + _box(b"mdat", 40, 41), "boxes"),
        ("matroska", "_MAX_PARTS", HEAD + _element(0x18538067, b"\xec\x80" * 13), "elements"),
        ("ogg", "_MAX_PARTS", b"".join(_page(k) for k in [*range(12), 13]), "pages"),
    ],
)
def test_number_of_parts_is_bounded(
    format_name: str, limit: str, data: bytes, parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with more parts than the limit is refused."""
    monkeypatch.setattr(container_structure, limit, 12)
    assert _problem(tmp_path, data, format_name) == f"it has more than 12 {parts}"
    monkeypatch.setattr(container_structure, limit, 14)
    assert "more than" not in str(_problem(tmp_path, data, format_name))


@pytest.mark.parametrize("format_name", ["wav", "mp3", "flac", "aac"])
def test_other_containers_are_not_looked_at(format_name: str, tmp_path: Path) -> None:
    """Other containers have no finding here."""
    assert _problem(tmp_path, _box(b"mdat", 50, 99), format_name) is None


def test_any_bytes_are_looked_at(tmp_path: Path) -> None:
    """Damaged headers of all three containers give a result without an exception or an endless loop."""
    random = np.random.default_rng(11)
    mp4, ogg = _box(b"ftyp", 24) + _box(b"mdat", 100, long=True), _page(0, begins=True) + _page(1) + _page(2)
    whole = {"mov": mp4, "matroska": HEAD + _element(0x18538067, CLUSTER), "ogg": ogg}
    for format_name, good in whole.items():
        for _ in range(150):
            data = bytearray(good[: random.integers(1, len(good) + 1)])
            data[random.integers(len(data))] = random.integers(256)
            found = _problem(tmp_path, bytes(data), format_name)
            assert found is None or "\n" not in found
