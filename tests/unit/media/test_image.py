"""Check the intake of pictures."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.image import ImageInfo, normalise_image
from tests.unit.media.pictures import photo


def _normalised(source: Path, tmp_path: Path) -> Image.Image:
    info = normalise_image(source, tmp_path / "image.png")
    image = Image.open(tmp_path / "image.png")
    image.load()
    assert (image.mode, image.format, image.size) == ("RGB", "PNG", (info.width, info.height))
    return image


def test_plain_picture_keeps_its_pixels(tmp_path: Path) -> None:
    """A PNG in RGB keeps its pixels, loses its metadata, and gives the same bytes each time."""
    source = photo()
    source.save(tmp_path / "a.png", dpi=(300, 300), icc_profile=b"profile")
    assert np.array_equal(_normalised(tmp_path / "a.png", tmp_path), source)
    first = (tmp_path / "image.png").read_bytes()
    _normalised(tmp_path / "a.png", tmp_path)
    assert (tmp_path / "image.png").read_bytes() == first
    assert b"iCCP" not in first
    assert b"pHYs" not in first


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))])
def test_rotation_of_the_camera_is_applied(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    """A photo taken sideways is turned upright once."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = _normalised(tmp_path / "a.jpg", tmp_path)
    assert image.size == size
    assert not image.getexif()
    quarter_turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    expected = np.rot90(np.asarray(photo()), quarter_turns).astype(int)
    assert np.abs(np.asarray(image) - expected)[5:-5, 5:-5].mean() < 12


def test_transparency_becomes_white(tmp_path: Path) -> None:
    """Transparent pixels become white, and half transparent ones half white."""
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    image.paste((0, 0, 0, 128), (20, 20, 40, 40))
    image.save(tmp_path / "a.png")
    result = _normalised(tmp_path / "a.png", tmp_path)
    assert [result.getpixel(at) for at in ((5, 5), (30, 5), (30, 30))] == [
        (255, 255, 255),
        (200, 0, 0),
        (127, 127, 127),
    ]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGB"])
def test_every_colour_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    """Grey, palette, bilevel and CMYK pictures become the RGB picture that they show."""
    source = photo().convert("L") if mode in {"LA", "1"} else photo()
    source = source.convert(mode)
    source.save(tmp_path / "a.jpg", quality=95) if mode == "CMYK" else source.save(tmp_path / "a.png")
    result = np.asarray(_normalised(tmp_path / "a.jpg" if mode == "CMYK" else tmp_path / "a.png", tmp_path)).astype(int)
    assert np.abs(result - np.asarray(source.convert("RGB"))).mean() < 8


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    """A 16-bit scan keeps its tones instead of being clipped to white."""
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (40, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(_normalised(tmp_path / "a.png", tmp_path))[:, :, 1], ramp >> 8)


def test_large_and_small_pictures_are_taken(tmp_path: Path) -> None:
    """A photo of 4000 px and one of 200 px are accepted."""
    for size in ((4000, 1000), (200, 150)):
        Image.new("RGB", size, "teal").save(tmp_path / "a.webp")
        assert normalise_image(tmp_path / "a.webp", tmp_path / "image.png") == ImageInfo(*size)


def _refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises(PermanentError) as caught:
        normalise_image(source, tmp_path / "image.png")
    message = str(caught.value)
    assert message.startswith(f"The image {source.name} ")
    assert str(tmp_path) not in message
    assert "\n" not in message
    return message


def test_empty_file_is_refused(tmp_path: Path) -> None:
    """A file of 0 bytes is named as such."""
    (tmp_path / "a.png").touch()
    assert "empty" in _refusal(tmp_path / "a.png", tmp_path)


def test_video_is_refused(tmp_path: Path, moving: Callable[..., Any]) -> None:
    """A video is refused as a reference picture, whatever its name."""
    encode_clip(moving(4), tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "a.png")
    assert "is a video: expected PNG, JPEG or WebP" in _refusal(tmp_path / "a.png", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_picture_is_refused(suffix: str, tmp_path: Path) -> None:
    """Half a file is refused and not completed with grey."""
    noise = np.random.default_rng(1).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
    assert "not a readable picture" in _refusal(tmp_path / f"a.{suffix}", tmp_path)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animation_is_refused(suffix: str, tmp_path: Path) -> None:
    """An animation is refused, because it has several pictures."""
    photo().save(tmp_path / f"a.{suffix}", save_all=True, append_images=[photo().rotate(90)])
    assert "animated" in _refusal(tmp_path / f"a.{suffix}", tmp_path)


@pytest.mark.parametrize("size", [(31, 200), (200, 31)])
def test_tiny_picture_is_refused(size: tuple[int, int], tmp_path: Path) -> None:
    """A picture that is too small for a face is refused."""
    photo(*size).save(tmp_path / "a.png")
    assert "at least 32" in _refusal(tmp_path / "a.png", tmp_path)


def test_banner_is_refused(tmp_path: Path) -> None:
    """A picture more than four times longer than wide is refused, because no video can be planned for it."""
    photo(161, 40).save(tmp_path / "a.png")
    assert "at most 4 times the shorter one; crop the picture" in _refusal(tmp_path / "a.png", tmp_path)


def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decompression bomb is refused by the number of pixels in its header."""
    photo(100, 100).save(tmp_path / "a.png")
    with monkeypatch.context() as lower:
        lower.setattr("s2v_tasks.media.image._MAX_PIXELS", 9999)
        assert "more than 9999 pixels" in _refusal(tmp_path / "a.png", tmp_path)
    header = bytearray((tmp_path / "a.png").read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(header)
    assert "more than 40000000 pixels" in _refusal(tmp_path / "a.png", tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    """Formats outside the list are not opened even if Pillow knows them."""
    photo().save(tmp_path / "a.gif")
    assert "PNG, JPEG or WebP" in _refusal(tmp_path / "a.gif", tmp_path)
