"""Check the metadata of pictures: the orientation is used, and other metadata is harmless."""

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError
from s2v_tasks.media import image_metadata
from s2v_tasks.media.image import normalise_image
from tests.unit.media.pictures import PNG_MAGIC, chunk, encoded, exif, jpeg, oriented, photo, png, segment

XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
XMP_TEXT = b"XML:com.adobe.xmp\0"
SIDEWAYS = oriented(6)
HEXADECIMAL = (b"Exif\0\0" + SIDEWAYS).hex().encode()


def size_of(content: bytes, tmp_path: Path) -> tuple[int, int]:
    """Return the size of the read picture; a picture of 60x40 is 40x60 if it was turned."""
    (tmp_path / "photo").write_bytes(content)
    info = normalise_image(tmp_path / "photo", tmp_path / "image.png")
    assert info.warning is None
    with Image.open(tmp_path / "image.png") as image:
        image.load()
        assert image.size == (info.width, info.height)
    return info.width, info.height


@pytest.mark.parametrize("value", range(10))
def test_each_orientation_is_applied(value: int, tmp_path: Path) -> None:
    """All eight orientations of EXIF are applied as Pillow would; 0 and 9 change nothing."""
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    size_of(png(chunk(b"eXIf", oriented(value))), tmp_path)
    expected = photo().transpose(turned[value]) if value in turned else photo()
    assert np.array_equal(Image.open(tmp_path / "image.png"), expected)


@pytest.mark.parametrize(
    "content",
    [
        jpeg(segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xE1, b"Exif\0\0Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xE1, b"Exif\0\0" + oriented(6, ">"))),
        jpeg(segment(0xE1, b"Exif\0\0"), segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(b"\xff\xff\xff", segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xFE, b"comment"), b"\0\xff\0", segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xFE, b"comment"), b"\xff\xd0\xff\xd9", segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe"), segment(0xE1, b"Exif\0\0" + SIDEWAYS)),
        jpeg(segment(0xE1, XMP_SEGMENT + b'<rdf:Description tiff:Orientation="6"/>')),
        jpeg(segment(0xE1, XMP_SEGMENT + b"<a tiff:Orientation = '6'/>")),
        jpeg(segment(0xE1, XMP_SEGMENT + b"<tiff:Orientation>6</tiff:Orientation>")),
        png(chunk(b"eXIf", SIDEWAYS)),
        png(chunk(b"eXIf", SIDEWAYS), at_end=True),
        png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  26\n" + SIDEWAYS.hex().encode() + b"\n")),
        png(chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(b"\ngeneric\n 32\n" + HEXADECIMAL))),
        png(chunk(b"iTXt", XMP_TEXT + b"\0\0\0\0" + b"<tiff:Orientation>6</tiff:Orientation>")),
        png(chunk(b"iTXt", XMP_TEXT + b"\1\0\0\0" + zlib.compress(b"<tiff:Orientation>6</tiff:Orientation>"))),
        png(chunk(b"tEXt", XMP_TEXT + b"<tiff:Orientation>6</tiff:Orientation>")),
        encoded(photo(), "WEBP", exif=b"Exif\0\0" + SIDEWAYS),
        encoded(photo(), "WEBP", xmp=b"<tiff:Orientation>6</tiff:Orientation>"),
    ],
)  # fmt: skip
def test_the_orientation_is_found_wherever_it_is_written(content: bytes, tmp_path: Path) -> None:
    """EXIF is read in both byte orders and each of its places, and XMP if EXIF has none."""
    assert size_of(content, tmp_path) == (40, 60)


def test_exif_counts_before_xmp(tmp_path: Path) -> None:
    """EXIF has precedence over XMP."""
    xmp = segment(0xE1, XMP_SEGMENT + b'<a tiff:Orientation="6"/>')
    assert size_of(jpeg(xmp, segment(0xE1, b"Exif\0\0" + oriented(1))), tmp_path) == (60, 40)


@pytest.mark.parametrize(
    "block",
    [
        exif((0x011A, 5, 1, b"\xff\xff\xff\xff"), (0x0112, 3, 1, b"\6\0\0\0")),
        exif((0x011A, 10, 1, bytes(4)), (0x0128, 7, 2**32 - 1, b"\1\2\3\4"), (0x0112, 3, 1, b"\6\0\0\0")),
        exif((0x0112, 5, 1, b"\6\0\0\0"), (0x0112, 3, 1, b"\6\0\0\0")),
        exif((0x0112, 3, 1, b"\xff\0\0\0"), (0x0112, 4, 1, b"\6\0\0\0")),
        exif((0x0112, 1, 1, b"\6\7\7\7")),
        exif((0x0112, 6, 4, b"\6\7\7\7")),
        exif((0x0112, 9, 1, b"\6\0\0\0")),
        exif((0x0112, 8, 2, b"\6\0\7\0")),
        exif((0x8769, 4, 1, b"\xff\xff\xff\xff"), (0x0112, 3, 1, b"\6\0\0\0"))[:-4],
    ],
)
def test_other_values_do_not_hide_the_orientation(block: bytes, tmp_path: Path) -> None:
    """Wrong rationals, sizes, offsets and types around the orientation are skipped."""
    for content in (jpeg(segment(0xE1, b"Exif\0\0" + block)), png(chunk(b"eXIf", block))):
        assert size_of(content, tmp_path) == (40, 60)


@pytest.mark.parametrize(
    "block",
    [
        b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM*\0" + SIDEWAYS[4:], SIDEWAYS[:18], SIDEWAYS[:9],
        exif((0x0112, 3, 3, b"\6\0\0\0")), exif((0x0112, 3, 0, b"\6\0\0\0")), exif((0x0112, 2, 1, b"\6\0\0\0")),
        exif((0x0113, 3, 1, b"\6\0\0\0")), exif((0x0112, 4, 2, b"\6\0\0\0")),
        b"II*\0\x08\0\0\0\xff\xff" + b"\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c" * 4096 + SIDEWAYS[10:],
    ],
)  # fmt: skip
def test_a_wrong_orientation_changes_nothing(block: bytes, tmp_path: Path) -> None:
    """EXIF that is cut, lacks the tag, or has it after too many entries changes nothing."""
    for content in (jpeg(segment(0xE1, b"Exif\0\0" + block)), png(chunk(b"eXIf", block))):
        assert size_of(content, tmp_path) == (60, 40)


def test_the_last_entry_that_is_read(tmp_path: Path) -> None:
    """The first 4096 entries of a directory are read."""
    block = b"II*\0\x08\0\0\0\xff\xff" + b"\1\2\3\4\5\6\7\x08\x09\x0a\x0b\x0c" * 4095 + SIDEWAYS[10:]
    assert size_of(jpeg(segment(0xE1, b"Exif\0\0" + block)), tmp_path) == (40, 60)


@pytest.mark.parametrize(
    "content",
    [
        png(chunk(b"zTXt", b"Raw profile type exif\0\0" + b"no zlib")),
        png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  26\nno hex")),
        png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  26\n" + SIDEWAYS.hex().encode()[:35])),
        png(chunk(b"tEXt", b"no end")),
        png(chunk(b"iTXt", XMP_TEXT + b"\1\0\0\0no zlib"), chunk(b"zTXt", b""), chunk(b"iTXt", b"")),
        png(chunk(b"pHYs", b"1"), chunk(b"tIME", b""), chunk(b"fcTL", b"wrong")),
        png(chunk(b"acTL", struct.pack(">II", 1, 0))),
        png(chunk(b"oneC", XMP_TEXT + b"<tiff:Orientation>6</tiff:Orientation>")),
        png(chunk(b"tEXt", b"other\0<tiff:Orientation>6</tiff:Orientation>")),
        png(chunk(b"iTXt", b"other\0\0\0\0\0<tiff:Orientation>6</tiff:Orientation>")),
        png()[:-12] + b"junk behind the pixels",
        png() + b"junk behind the end",
        jpeg(segment(0xE2, b"MPF\0" + SIDEWAYS), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\x04")),
        jpeg(segment(0xE1, XMP_SEGMENT + b"<a tiff:Orientation=9/>")),
        jpeg() + b"junk behind the end",
    ],
)
def test_damaged_metadata_does_not_harm_the_picture(content: bytes, tmp_path: Path) -> None:
    """A picture with readable pixels is read, whatever its metadata is."""
    assert size_of(content, tmp_path) == (60, 40)


def test_only_metadata_is_left_out(tmp_path: Path) -> None:
    """Pixels, palette, transparency and colour coding of a JPEG are passed to the decoder."""
    for image in (photo(), photo().convert("CMYK")):  # Pillow writes JFIF for the one, Adobe for the other
        (tmp_path / "a").write_bytes(encoded(image, "JPEG", quality=95))
        with (tmp_path / "pixels").open("w+b") as pixels:
            image_metadata.split(tmp_path / "a", pixels)
            assert pixels.read() == (tmp_path / "a").read_bytes()
    others = [
        segment(0xE0, b"JFIF\0" + bytes(8)), segment(0xE0, b"JFXX\0" + bytes(20)), segment(0xEE, b"Adobe" + bytes(6)),
        segment(0xEE, b"other" + bytes(20)), segment(0xEF, b"Adobe" + bytes(20)), segment(0xE1, b"JFIF\0" + bytes(20)),
        segment(0xFE, b"comment"), segment(0xE1, b"Exif\0\0" + SIDEWAYS), segment(0xF0, b""),
    ]  # fmt: skip
    (tmp_path / "a").write_bytes(jpeg(*others))
    with (tmp_path / "pixels").open("w+b") as pixels:
        image_metadata.split(tmp_path / "a", pixels)
        assert pixels.read() == jpeg()
    palette = photo().quantize(16)
    (tmp_path / "b").write_bytes(encoded(palette, "PNG", transparency=3, dpi=(72, 72)))
    with (tmp_path / "pixels").open("w+b") as pixels:
        image_metadata.split(tmp_path / "b", pixels)
        assert pixels.read() == encoded(palette, "PNG", transparency=3)


@pytest.mark.parametrize("content", [
    PNG_MAGIC + chunk(b"oneC", b"") * 60 + png()[8:],
    b"\xff\xd8" + segment(0xE1, b"") * 60 + jpeg()[2:],
    b"\xff\xd8\xff" + bytes(200) + jpeg()[2:],
])  # fmt: skip
def test_a_file_in_too_many_pieces_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with more segments or chunks than the limit is refused."""
    monkeypatch.setattr(image_metadata, "_MAX_PARTS", 50)
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(PermanentError, match=r"The image photo\.png has more than 50 pieces: .* save it again\."):
        normalise_image(tmp_path / "photo.png", tmp_path / "image.png")
    monkeypatch.setattr(image_metadata, "_MAX_PARTS", 400)
    assert normalise_image(tmp_path / "photo.png", tmp_path / "image.png").width == 60


def with_scans(num_repeated: int, between: bytes = b"") -> bytes:
    """Return a progressive JPEG of 10 scans, with its last scan repeated and a second picture after it."""
    plain = encoded(photo(), "JPEG", progressive=True)
    last_scan = plain[plain.rindex(b"\xff\xda") : -2]
    return plain[:-2] + (between + last_scan) * num_repeated + plain[-2:] + plain


@pytest.mark.parametrize("between", [b"", segment(0xFE, b"\xff\xd9"), segment(0xE1, b"\xff\xda" * 9)])
def test_number_of_scans_is_bounded(between: bytes, tmp_path: Path) -> None:
    """A JPEG with too many scans is refused; marks in segments between them do not count."""
    (tmp_path / "photo.jpg").write_bytes(with_scans(90, between))
    assert normalise_image(tmp_path / "photo.jpg", tmp_path / "image.png").width == 60
    (tmp_path / "photo.jpg").write_bytes(with_scans(91, between))
    with pytest.raises(PermanentError, match=r"The image photo\.jpg has more than 100 scans: .* save it again\."):
        normalise_image(tmp_path / "photo.jpg", tmp_path / "image.png")


def test_size_of_a_webp_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebP files have a size limit, because Pillow reads them into memory as a whole."""
    (tmp_path / "photo").write_bytes(encoded(photo(), "WEBP"))
    limit = (tmp_path / "photo").stat().st_size
    monkeypatch.setattr(image_metadata, "_MAX_WEBP_BYTES", limit)
    assert normalise_image(tmp_path / "photo", tmp_path / "image.png").width == 60
    monkeypatch.setattr(image_metadata, "_MAX_WEBP_BYTES", limit - 1)
    with pytest.raises(PermanentError, match=rf"The image photo has {limit} bytes: expected at most {limit - 1} of a"):
        normalise_image(tmp_path / "photo", tmp_path / "image.png")
    for content in (png(chunk(b"oneC", bytes(limit))), jpeg(segment(0xFE, bytes(limit)))):
        assert len(content) > limit
        assert size_of(content, tmp_path) == (60, 40)


def test_a_file_that_ends_before_its_pixels_is_damaged(tmp_path: Path) -> None:
    """A file that ends before its pixels is refused as damaged."""
    for content in (jpeg(segment(0xE1, b"Exif\0\0" + SIDEWAYS))[:90], png(chunk(b"eXIf", SIDEWAYS))[:60]):
        (tmp_path / "photo.jpg").write_bytes(content)
        with pytest.raises(PermanentError, match=r"The image photo\.jpg is not a readable picture"):
            normalise_image(tmp_path / "photo.jpg", tmp_path / "image.png")


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (png(chunk(b"eXIf", SIDEWAYS)), len(SIDEWAYS)),
        (png(chunk(b"tEXt", XMP_TEXT + b"<tiff:Orientation>6")), 37),
    ],
)
def test_long_metadata_is_not_read(content: bytes, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata longer than its bound is skipped."""
    monkeypatch.setattr(image_metadata, "_MAX_METADATA_BYTES", size)
    assert size_of(content, tmp_path) == (40, 60)
    monkeypatch.setattr(image_metadata, "_MAX_METADATA_BYTES", size - 1)
    assert size_of(content, tmp_path) == (60, 40)


def test_fuzzed_exif_reaches_no_traceback(tmp_path: Path) -> None:
    """Pictures with random entries, sizes, offsets and cuts in their EXIF are read."""
    rng = random.Random(20)
    for _ in range(60):
        order = rng.choice("<>")
        entries = [
            (rng.choice([0x0112, 0x011A, 0x0128, 0x8769, 0x8825, rng.randrange(2**16)]), rng.randrange(16),
             rng.choice([1, 2, rng.randrange(2**32)]), rng.randbytes(4))
            for _ in range(rng.randrange(1, 9))
        ]  # fmt: skip
        block = bytearray(exif(*entries, order=order))
        for _ in range(rng.choice([0, 0, 3])):
            block[rng.randrange(len(block))] = rng.randrange(256)
        cut = bytes(block[: rng.randrange(len(block)) if rng.random() < 0.2 else None])
        for content in (jpeg(segment(0xE1, b"Exif\0\0" + cut)), png(chunk(b"eXIf", cut))):
            assert size_of(content, tmp_path) in {(60, 40), (40, 60)}
