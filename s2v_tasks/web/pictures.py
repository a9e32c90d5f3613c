"""Small pictures of a job for pages, the reference picture and the waveform, made once and kept in bounded memory."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from s2v_tasks.storage.s3 import SMALL_OBJECT_BYTES, ObjectStore

REFERENCE_SIDE = 480
NUM_PEAKS = 800
_KEPT = 512  # of about 30 kB
_MAX_IMAGE_BYTES = 3 * SMALL_OBJECT_BYTES
_SAMPLE_BYTES = 4  # stage_inputs writes mono float32
Value = TypeVar("Value")


class _Kept:
    """Cache of the latest results. One is computed at a time, because decoding a picture needs hundreds of MB."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: OrderedDict[str, object] = OrderedDict()

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """Return the cached value of `key`, or compute and cache it."""
        if (found := self._values.get(key)) is not None:
            return found  # type: ignore[return-value]
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > _KEPT:
                    self._values.popitem(last=False)
            return self._values[key]  # type: ignore[return-value]


_kept = _Kept()


def reference(store: ObjectStore, image_key: str) -> bytes:
    """Return a JPEG of the staged picture, at most REFERENCE_SIDE pixels on its longer side."""
    return _kept.get(f"reference {store.uri(image_key)}", lambda: _shrunk(store, image_key))


def waveform(store: ObjectStore, wav_key: str) -> list[int]:
    """Return at most NUM_PEAKS peaks of the staged speech, from 0 to 100, with equal distances in time."""
    return _kept.get(f"waveform {store.uri(wav_key)}", lambda: _peaks(store, wav_key))


def _shrunk(store: ObjectStore, image_key: str) -> bytes:
    data = store.get_bytes(image_key, max_bytes=_MAX_IMAGE_BYTES)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
        jpeg = io.BytesIO()
        image.convert("RGB").save(jpeg, format="JPEG", quality=82)
    return jpeg.getvalue()


def _peaks(store: ObjectStore, wav_key: str) -> list[int]:
    part = store.open(wav_key)
    window = max(-(-part.size_bytes // _SAMPLE_BYTES // NUM_PEAKS), 1)
    peaks: list[float] = []
    pending, is_behind_header = b"", False
    for chunk in part.chunks():
        pending += chunk
        if not is_behind_header:
            pending, is_behind_header = pending[pending.index(b"data") + 8 :], True
        whole = len(pending) // (_SAMPLE_BYTES * window) * window
        samples = np.frombuffer(pending, dtype="<f4", count=whole).reshape(-1, window)
        peaks += np.abs(samples).max(axis=1).tolist() if whole else []
        pending = pending[whole * _SAMPLE_BYTES :]
    if rest := len(pending) // _SAMPLE_BYTES:
        peaks.append(float(np.abs(np.frombuffer(pending, dtype="<f4", count=rest)).max()))
    loudest = max(peaks, default=0) or 1
    return [round(100 * peak / loudest) for peak in peaks]
