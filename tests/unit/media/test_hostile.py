"""Check files that only look like media, or need much memory or time."""

import json
import re
import socket
import struct
import subprocess
import sys
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

_LIMIT_BYTES = 500 * 1024**2
_SPARSE_BYTES = 512 * 1024**2

# Reads every file in a process of its own: the largest memory of it and of the ffmpeg processes that it started.
_READER = """
import json, resource, sys, tempfile
from pathlib import Path
from s2v_tasks.errors import PermanentError
from s2v_tasks.media.speech import normalise_speech
from s2v_tasks.media.image import normalise_image
from s2v_tasks.media.uploaded_video import normalise_pose

outcomes = {}
with tempfile.TemporaryDirectory() as folder:
    for argument in sys.argv[1:]:
        kind, path = argument.split(":", 1)
        path, out = Path(path), Path(folder) / "out.mp4"
        try:
            if kind == "image":
                normalise_image(path, out)
            elif kind == "pose":
                normalise_pose(path, out, max_duration_seconds=1200)
            else:
                normalise_speech(path, out, max_duration_seconds=1200)
            outcomes[path.name] = "accepted"
        except PermanentError as error:
            outcomes[path.name] = str(error)
own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])  # getrusage has that of the parent
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"outcomes": outcomes, "peak_bytes": max(own, children) * 1024}))
"""


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, colour: int = 2, extra: bytes = b"", pixels: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def zeros_deflated(size_bytes: int) -> bytes:
    """Return at least this many zeros, compressed to a hundredth."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range((size_bytes >> 20) + 1)) + packer.flush()


def wav(*, channels: int = 1, sample_rate: int = 16_000, junk: bytes = b"", samples: bytes = bytes(64_000)) -> bytes:
    layout = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * channels & 0xFFFFFFFF, channels, 8)
    body = b"WAVEfmt " + struct.pack("<I", 16) + layout + junk + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mp3(num_frames: int, gap: bytes = b"") -> bytes:
    """Return the shortest possible frames: 8 kbit/s, 24 kHz, 24 bytes for 24 ms."""
    frame = bytes.fromhex("fff314c4") + bytes(20)
    return (frame * 2 + gap) * (num_frames // 2)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A server that must not be called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, listener: socket.socket) -> dict[str, str]:
    """Files by `kind:path`, with the expected part of their refusal."""
    folder = tmp_path_factory.mktemp("hostile")
    secret, port = folder / "secret.wav", listener.getsockname()[1]
    secret.write_bytes(wav())
    url = f"http://127.0.0.1:{port}/secret.wav"
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:{secret}\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n".encode()
    )
    svg = (
        f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file://{secret}">]><svg xmlns="http://www.w3.org/2000/svg" width="64" '
        f'height="64"><image href="{url}"/><text>&x;</text></svg>'
    ).encode()
    mpd = f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{url}</BaseURL></Period></MPD>'.encode()
    bomb, text, raw_exif = zeros_deflated(256 * 1024**2), b"k\0\0", b"Raw profile type exif\0\0"
    good, wide_gamut = zlib.compress(bytes(64 * 193)), png_chunk(b"cICP", b"\x0c\x0d\0\1")
    contents = {
        "speech:playlist.mp3": (playlist, "first bytes are those of no audio format"),
        "speech:tagged-playlist.mp3": (b"ID3\4" + bytes(6) + playlist, "not a readable audio file"),
        "speech:concat.wav": (
            f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
            "first bytes are those of no audio format",
        ),
        "speech:manifest.m4a": (mpd, "first bytes are those of no audio format"),
        "speech:vector.flac": (svg, "first bytes are those of no audio format"),
        "speech:64-channels.wav": (wav(channels=64), "has 64 channels"),
        "speech:2-gigahertz.wav": (wav(sample_rate=2**31 - 1), "2147483647 Hz"),
        "speech:empty-chunks.wav": (wav(junk=bytes(1 << 20)), "no audio data in its first 1000 chunks"),
        "speech:frames.mp3": (mp3(3_000_000), "holds more than 1200 s"),
        "speech:gaps.mp3": (mp3(200_000, b"JUNKJUNK"), "holds more than 1200 s"),
        "speech:tag.mp3": (b"ID3\4\0\0\x10\0\0\0" + bytes(1 << 25) + mp3(100), "bytes of tags"),
        "pose:playlist.mp4": (playlist, "not a readable video"),
        "pose:concat.mkv": (f"ffconcat version 1.0\nfile '{secret}'\n".encode(), "not a readable video"),
        "image:playlist.jpg": (playlist, "not a readable picture"),
        "image:vector.png": (svg, "is SVG: expected PNG, JPEG or WebP"),
        "image:bomb.png": (png(50_000, 50_000, pixels=bomb), "more than 40000000 pixels"),
        "image:text.png": (png(64, 64, extra=png_chunk(b"zTXt", text + bomb) * 4, pixels=good), "accepted"),
        "image:exif.png": (png(64, 64, extra=png_chunk(b"zTXt", raw_exif + bomb), pixels=good), "accepted"),
        "image:profile.png": (png(64, 64, extra=png_chunk(b"iCCP", text + bomb), pixels=good), "accepted"),
        "image:texts.png": (
            png(64, 64, extra=png_chunk(b"tEXt", b"k\0" + bytes(999_999)) * 99, pixels=good),
            "accepted",
        ),
        "image:chunks.png": (
            png(64, 64, extra=png_chunk(b"oneC", b"") * 200_000, pixels=good),
            "more than 200000 pieces",
        ),
        "image:segments.jpg": (b"\xff\xd8\xff" + bytes(1 << 20), "more than 200000 pieces"),
        "image:webp.webp": (webp(8_000, 8_000), "more than 20000000 pixels"),
        "image:largest.png": (
            png(6_000, 6_600, colour=6, extra=wide_gamut, pixels=zeros_deflated(6_600 * 24_001)),
            "accepted",
        ),
    }
    for zero in ("speech:zero.mp3", "speech:zero.wav", "pose:zero.mp4", "image:zero.png"):
        contents[zero] = (b"", "not a readable")
    expected = {}
    for name, (content, sentence) in contents.items():
        kind, _, file_name = name.partition(":")
        path = folder / file_name
        path.write_bytes(content)
        if not content:
            with path.open("wb") as file:
                file.truncate(_SPARSE_BYTES)
        expected[f"{kind}:{path}"] = sentence
    return expected


def webp(width: int, height: int) -> bytes:
    """Return a lossless picture of one colour."""
    header = (0x2F | (width - 1) << 8 | (height - 1) << 22 | 1 << 36).to_bytes(
        5, "little"
    ) + b"\x07\x10\x11\x11\x88\x88\xfe\x07"
    body = b"WEBPVP8L" + struct.pack("<I", len(header)) + header + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_hostile_files_are_refused_in_little_memory(hostile: dict[str, str], listener: socket.socket) -> None:
    """Each file is refused for its own reason, the largest picture is read, and no secret or server is accessed."""
    done = subprocess.run([sys.executable, "-c", _READER, *hostile], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for argument, sentence in hostile.items():
        outcome = found["outcomes"][Path(argument.partition(":")[2]).name]
        assert re.search(sentence, outcome), outcome
        assert "\n" not in outcome
    assert 200 * 1024**2 < found["peak_bytes"] < _LIMIT_BYTES
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_the_secret_would_be_readable(tmp_path: Path) -> None:
    """The target of the playlists is valid speech, which would be accepted if a playlist were followed."""
    (tmp_path / "secret.wav").write_bytes(wav())
    with wave.open(str(tmp_path / "secret.wav")) as sound:
        assert sound.getnframes() == 64_000
    command = [sys.executable, "-c", _READER, f"speech:{tmp_path / 'secret.wav'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["outcomes"] == {"secret.wav": "accepted"}
