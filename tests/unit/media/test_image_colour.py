"""Check that colours of pictures are converted to sRGB."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from structlog.testing import capture_logs

from s2v_tasks.media.image import ImageInfo, normalise_image
from s2v_tasks.media.image_colour import _built
from tests.unit.media.colour_spaces import (
    D65,
    SKIN,
    SPACES,
    SRGB_CURVE,
    fields,
    icc_chunk,
    light_of,
    linear,
    picture_in,
    profile_of,
    srgb,
)
from tests.unit.media.pictures import chunk, encoded, jpeg, photo, png, segment


@pytest.mark.parametrize("space", SPACES)
def test_a_photo_in_another_space_shows_the_same_colours(space: str, tmp_path: Path) -> None:
    """Skin colours are right within 2 levels, from PNG, JPEG and WebP, with alpha and in 16 bits."""
    image, profile = picture_in(space), profile_of(space)
    deep = np.repeat(np.asarray(image).astype(">u2") * 257, 1, axis=0)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    sixteen = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + icc_chunk(profile)
    sixteen += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    layered = image.copy()
    layered.putalpha(255)
    for content in (
        png(icc_chunk(profile), image=image),
        png(icc_chunk(profile), image=layered),
        sixteen,
        encoded(image, "WEBP", lossless=True, icc_profile=profile),
    ):
        assert np.abs(fields(content, tmp_path) - SKIN).max() <= 2
    wide = encoded(image, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    assert np.abs(fields(wide, tmp_path) - SKIN).max() <= 4  # JPEG rounds colours of the wide space
    assert np.abs(fields(png(image=image), tmp_path) - SKIN).max() > 8


def test_a_long_profile_is_put_together(tmp_path: Path) -> None:
    """A profile in numbered segments of a JPEG is joined, in any order of the segments."""
    profile, image = profile_of("ProPhoto"), picture_in("ProPhoto")
    parts = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 3]) + profile[start : start + 200])
        for number, start in ((1, 0), (2, 200), (3, 400))
    ]
    content = jpeg(parts[2], parts[0], parts[1], image=image)
    assert np.abs(fields(content, tmp_path)[:3] - SKIN[:3]).max() <= 4


def test_srgb_changes_nothing(tmp_path: Path) -> None:
    """Pixels do not change for any description of sRGB, also for different sRGB profiles."""
    image = photo(96, 64)
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8))
    of_pillow = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    points = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    ours = _built(SRGB_CURVE, points, "RGB")
    chromaticities = struct.pack(">8I", *(round(value * 100_000) for value in points))
    for picture in (image, noise):
        for chunks in (
            [icc_chunk(of_pillow)],
            [icc_chunk(ours)],
            [icc_chunk(_built(SRGB_CURVE, (0.3128, 0.3292, *points[2:]), "RGB"))],  # differs by a level here and there
            [chunk(b"sRGB", b"\0")],
            [chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))],
            [chunk(b"gAMA", struct.pack(">I", 45_455)), chunk(b"cHRM", chromaticities)],
            [chunk(b"gAMA", struct.pack(">I", 45_455) + b"\0")],
            [chunk(b"gAMA", struct.pack(">I", 44_455))],
            [chunk(b"gAMA", struct.pack(">I", 46_455))],
            [chunk(b"cICP", bytes([1, 13, 0, 1])), icc_chunk(profile_of("ProPhoto"))],
            [chunk(b"cICP", bytes([1, 1, 0, 1]))],
        ):
            (tmp_path / "a.png").write_bytes(png(*chunks, image=picture))
            assert normalise_image(tmp_path / "a.png", tmp_path / "image.png") == ImageInfo(96, 64)
            assert np.array_equal(Image.open(tmp_path / "image.png"), picture)


@pytest.mark.parametrize(("primaries", "space"), [(12, "Display P3"), (9, "BT.2020")])
def test_a_colour_code_is_followed(primaries: int, space: str, tmp_path: Path) -> None:
    """The chunk cICP of PNG has precedence over a profile and over gamma."""
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    content = png(
        icc_chunk(profile_of("ProPhoto")), gamma, chunk(b"cICP", bytes([primaries, 13, 0, 1])), image=picture_in(space)
    )
    assert np.abs(fields(content, tmp_path) - SKIN).max() <= 2


@pytest.mark.parametrize("primaries", [5, 6])
@pytest.mark.parametrize("curve", [6, 14, 15])
def test_frames_of_old_videos_keep_their_tones(primaries: int, curve: int, tmp_path: Path) -> None:
    """Greys do not change, and colours change slightly, because the primaries are close to sRGB's."""
    grey = Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 64).reshape(64, 64)).convert("RGB")
    (tmp_path / "a.png").write_bytes(png(chunk(b"cICP", bytes([primaries, curve, 0, 1])), image=grey))
    normalise_image(tmp_path / "a.png", tmp_path / "image.png")
    assert np.abs(np.asarray(Image.open(tmp_path / "image.png")).astype(int) - np.asarray(grey)).max() <= 1
    points = {5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060), 6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)}[primaries]
    to_space = np.linalg.solve(light_of(points), light_of((0.640, 0.330, 0.300, 0.600, 0.150, 0.060)))
    wanted = [(150, 60, 40), (70, 140, 60), (50, 70, 150)]
    levels = np.rint(srgb(linear(wanted) @ to_space.T)).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(levels[None], 16, axis=1), 64, axis=0))
    found = fields(png(chunk(b"cICP", bytes([primaries, curve, 0, 1])), image=image), tmp_path)
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize(
    ("description", "exponent"),
    [
        (chunk(b"gAMA", struct.pack(">I", 100_000)), 1.0),
        (chunk(b"gAMA", struct.pack(">I", 55_556)), 1.8),
        (chunk(b"gAMA", struct.pack(">I", 44_454)), 2.24952),
        (chunk(b"gAMA", struct.pack(">I", 46_456)), 2.15257),
        (chunk(b"gAMA", struct.pack(">I", 20_000)), 5.0),
        (chunk(b"gAMA", struct.pack(">I", 500_000)), 0.2),
        (chunk(b"cICP", bytes([1, 8, 0, 1])), 1.0),
        (chunk(b"cICP", bytes([1, 4, 0, 1])), 2.2),
        (chunk(b"cICP", bytes([1, 5, 0, 1])), 2.8),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P"])
def test_gamma_is_followed(description: bytes, exponent: float, mode: str, tmp_path: Path) -> None:
    """Another gamma is applied to grey and coloured pictures, with and without alpha."""
    levels = np.array([0, 40, 90, 150, 200, 255], dtype=np.uint8)
    ramp = Image.fromarray(np.repeat(np.repeat(levels[None], 16, axis=1), 64, axis=0))
    image = ramp.convert("RGB").quantize(16) if mode == "P" else ramp.convert(mode)
    found = fields(png(description, image=image), tmp_path)
    expected = srgb((levels / 255.0) ** exponent)
    assert np.abs(found - expected[:, None]).max() <= 2


def test_grey_profile_of_sixteen_bits(tmp_path: Path) -> None:
    """A scan in 16-bit grey is brought to 8 bits, then to the tones of sRGB."""
    levels = np.array([0, 60, 128, 200, 255])
    deep = Image.fromarray(np.repeat(np.repeat((levels * 257).astype(np.uint16)[None], 16, axis=1), 64, axis=0))
    found = fields(png(icc_chunk(_built((1.8,), (), "L")), image=deep), tmp_path)
    assert np.abs(found - srgb((levels / 255) ** 1.8)[:, None]).max() <= 1


def test_transparency_is_laid_over_white_after_the_conversion(tmp_path: Path) -> None:
    """White is white in every colour space, and half transparent pixels are half white."""
    image = picture_in("ProPhoto")
    image.putalpha(0)
    assert (fields(png(icc_chunk(profile_of("ProPhoto")), image=image), tmp_path) == 255).all()
    image.putalpha(128)
    half = (np.array(SKIN) * 128 + 255 * 127) / 255
    assert np.abs(fields(png(icc_chunk(profile_of("ProPhoto")), image=image), tmp_path) - half).max() <= 2
    grey = Image.new("LA", (112, 64), (128, 128))
    half = (srgb((128 / 255) ** 1.8) * 128 + 255 * 127) / 255
    assert np.abs(fields(png(icc_chunk(_built((1.8,), (), "L")), image=grey), tmp_path) - half).max() <= 1


def print_profile() -> bytes:
    """A printer profile with little magenta, whose black ink darkens in even steps of lightness."""
    head = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, 2, *(65_536 if at % 4 == 0 else 0 for at in range(9)))
    even = bytes(range(256))
    grid = [
        (255 if not key and not magenta else 0 if key else 153, 128 if key or not magenta else 168, 128)
        for cyan in (0, 1) for magenta in (0, 1) for yellow in (0, 1) for key in (0, 1)
    ]  # fmt: skip
    table = head + even * 4 + b"".join(map(bytes, grid)) + even * 3
    size = 128 + 4 + 12 + len(table)
    start = struct.pack(">I4xI", size, 0x02000000) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    start += struct.pack(">3I", 63_190, 65_536, 54_061)
    return start.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_a_print_profile_is_applied(tmp_path: Path) -> None:
    """With its profile, half of the black ink is the grey of half lightness; without it nothing changes."""
    inks = [(0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255), (0, 255, 0, 0)]
    image = Image.fromarray(np.repeat(np.repeat(np.array([inks], np.uint8), 16, axis=1), 64, axis=0), "CMYK")
    found = fields(encoded(image, "JPEG", quality=100, icc_profile=print_profile()), tmp_path)
    assert np.abs(found[:3] - [[255] * 3, [118] * 3, [0] * 3]).max() <= 3
    assert np.abs(found[3] - (205, 118, 145)).max() <= 12
    plain = fields(encoded(image, "JPEG", quality=100), tmp_path)
    assert np.abs(plain[1] - 127).max() <= 2
    assert np.abs(plain[3] - (255, 0, 255)).max() <= 3


@pytest.mark.parametrize(
    ("chunks", "warning"),
    [
        ([icc_chunk(b"not a profile")], "The colour profile is ignored: it is damaged."),
        ([icc_chunk(b"")], "The colour profile is ignored: it is damaged."),
        ([icc_chunk(profile_of("Display P3")[:200])], "The colour profile is ignored: it is damaged."),
        ([chunk(b"iCCP", b"name\0\0no zlib")], "The colour profile is ignored: it is damaged."),
        ([chunk(b"iCCP", b"name\1" + profile_of("Display P3"))], "The colour profile is ignored: it is damaged."),
        ([icc_chunk(print_profile())], "The colour profile is ignored: it is for CMYK, the picture is RGB."),
        ([icc_chunk(_built((1.8,), (), "L"))], "The colour profile is ignored: it is for GRAY, the picture is RGB."),
        ([chunk(b"cICP", bytes([9, 16, 0, 1]))], "The colour code (cICP) is ignored: 9-16-0-1 cannot be converted"),
        ([chunk(b"cICP", bytes([12, 13, 1, 1]))], "12-13-1-1 cannot be converted"),
        ([chunk(b"cICP", bytes([12, 13, 0, 0]))], "12-13-0-0 cannot be converted"),
        ([chunk(b"cICP", bytes([2, 13, 0, 1]))], "2-13-0-1 cannot be converted"),
        ([chunk(b"cICP", bytes([12]))], "cICP"),
        ([chunk(b"cICP", bytes([12, 13, 0, 1, 0]))], "cICP"),
        ([chunk(b"gAMA", bytes(4))], "The gamma (gAMA, cHRM) is ignored: 0 is not a gamma, expected about 0.45."),
        ([chunk(b"gAMA", struct.pack(">I", 19_999))], "0.19999 is not a gamma"),
        ([chunk(b"gAMA", struct.pack(">I", 500_001))], "5.00001 is not a gamma"),
        ([chunk(b"gAMA", b"\xff" * 500)], "is not a gamma"),
        ([chunk(b"cHRM", bytes(32))], "its chromaticities do not give a colour space."),
        ([chunk(b"cHRM", struct.pack(">8I", *[33_333] * 8))], "its chromaticities do not give a colour space."),
        ([chunk(b"cHRM", struct.pack(">8I", *[31_270, 32_900, *[2**32 - 1, 5] * 3]))], "not give a colour space."),
        ([chunk(b"cHRM", bytes(28))], "its chromaticities do not give a colour space."),
        ([chunk(b"cHRM", b"")], "its chromaticities do not give a colour space."),
        ([chunk(b"cHRM", bytes(31)), chunk(b"gAMA", struct.pack(">I", 45_455))], "not give a colour space."),
    ],
)  # fmt: skip
def test_a_wrong_description_is_ignored_with_a_warning(chunks: list[bytes], warning: str, tmp_path: Path) -> None:
    """The picture is read as sRGB, and a warning states the reason."""
    image = photo(112, 64)
    (tmp_path / "a.png").write_bytes(png(*chunks, image=image))
    with capture_logs() as logs:
        info = normalise_image(tmp_path / "a.png", tmp_path / "image.png")
    assert info.warning is not None
    assert warning in info.warning
    assert [(line["log_level"], line["reason"]) for line in logs] == [("warning", info.warning)]
    assert np.array_equal(Image.open(tmp_path / "image.png"), image)


def test_the_next_description_counts_after_a_wrong_one(tmp_path: Path) -> None:
    """If a colour code is HDR, the profile after it is used."""
    chunks = [chunk(b"cICP", bytes([9, 16, 0, 1])), icc_chunk(profile_of("Adobe RGB"))]
    found = fields(png(*chunks, image=picture_in("Adobe RGB")), tmp_path, warning="9-16-0-1")
    assert np.abs(found - SKIN).max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_for_colours_does_not_fit_grey_nor_print(mode: str, tmp_path: Path) -> None:
    """An RGB profile in a grey or CMYK picture is ignored."""
    image = photo(112, 64).convert(mode)
    before = fields(encoded(image, "JPEG", quality=95), tmp_path)
    content = encoded(image, "JPEG", quality=95, icc_profile=profile_of("ProPhoto"))
    assert np.array_equal(fields(content, tmp_path, warning=f"it is for RGB, the picture is {mode}"), before)


def test_a_profile_that_turns_white_black_is_ignored(tmp_path: Path) -> None:
    """A damaged profile that maps white to black is ignored."""
    inverted = _built(SRGB_CURVE, SPACES["Display P3"][0], "RGB")
    flat = inverted.replace(inverted[inverted.index(b"para") + 12 : inverted.index(b"para") + 32], bytes(20))
    found = fields(png(icc_chunk(flat), image=picture_in("Display P3")), tmp_path, warning="is ignored: it ")
    assert np.abs(found - fields(png(image=picture_in("Display P3")), tmp_path)).max() == 0
