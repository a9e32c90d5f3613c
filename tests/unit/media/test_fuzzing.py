"""Check files with altered headers: each is read, or refused in one sentence that names it.

More of them: `python -m tests.unit.media.fuzzing --count 1000`.
"""

import json
import subprocess
import sys
from pathlib import Path

_KINDS = ("exif", "wav", "webm", "ogg", "m4a", "mp3")
_NUM_FILES = 16  # of each kind
_LIMIT_BYTES = 500 * 1024**2


def test_altered_headers_reach_no_traceback() -> None:
    """No file causes another error, more than 10 s or much memory; altered EXIF changes no pixel."""
    command = [sys.executable, "-m", "tests.unit.media.fuzzing", "--kinds", *_KINDS, "--count", str(_NUM_FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["faults"], "\n".join(found["faults"])
    assert found["peak_bytes"] < _LIMIT_BYTES
    # Changes that are all refused, or all harmless, would show little.
    expected = {f"{kind} accepted" for kind in _KINDS} | {f"{kind} refused" for kind in _KINDS} - {"exif refused"}
    assert set(found["outcomes"]) == expected
    assert sum(found["outcomes"].values()) == _NUM_FILES * len(_KINDS)
