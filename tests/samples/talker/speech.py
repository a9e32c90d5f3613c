"""Synthetic speech with the times of its phonemes, and the mouth that would say it.

espeak-ng is called through ctypes (Debian and Ubuntu: `libespeak-ng1`, `espeak-ng-data`). It states when each phoneme
begins. Each phoneme has a mouth opening and a width; smoothed over 140 ms they are two curves over time.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

SAMPLES_PER_SECOND = 16000
CURVE_RATE = 200  # samples per second of the mouth curves
_SMOOTHING_SECONDS = 0.14
_VOICES = (
    "en-us", "en-gb", "en-us+f2", "en-us+f3", "en-gb+f4", "en-gb+m3", "en-us+m7", "en-us+f5", "de", "fr", "es", "it",
)  # fmt: skip
# Opening 0..1 and width 0..1 (0 rounded, 1 spread) by the first sign of espeak's name of a phoneme.
_SHAPES = {
    "a": (1.0, 0.55), "A": (1.0, 0.5), "0": (0.85, 0.35), "V": (0.8, 0.5), "O": (0.8, 0.25), "o": (0.6, 0.15),
    "E": (0.65, 0.75), "e": (0.55, 0.8), "@": (0.45, 0.5), "3": (0.45, 0.45), "I": (0.35, 0.8), "i": (0.3, 1.0),
    "U": (0.3, 0.15), "u": (0.22, 0.0), "Y": (0.3, 0.1), "y": (0.3, 0.1), "W": (0.45, 0.1),
    "m": (0.0, 0.5), "b": (0.0, 0.5), "p": (0.0, 0.5), "f": (0.08, 0.5), "v": (0.08, 0.5), "w": (0.15, 0.0),
    "l": (0.3, 0.5), "r": (0.25, 0.3), "n": (0.2, 0.55), "t": (0.15, 0.6), "d": (0.15, 0.6), "s": (0.12, 0.75),
    "z": (0.12, 0.75), "S": (0.2, 0.25), "Z": (0.2, 0.25), "T": (0.2, 0.55), "D": (0.2, 0.55), "k": (0.25, 0.5),
    "g": (0.25, 0.5), "h": (0.35, 0.5), "j": (0.2, 0.7), "N": (0.25, 0.5), "x": (0.25, 0.5),
}  # fmt: skip
_VOWELS = "aA0VOoEe@3IiUuYyW"
_AT_REST = (0.0, 0.5)
_TEXT = (
    "the people morning water over under little great house father mother before after every money table open "
    "door listen speak always number follow picture window paper summer winter garden island moment simple answer "
    "across around about another because between country different example family government history important "
    "journey kitchen language machine nothing orange purple question river school thousand umbrella village "
    "wonderful yellow apple bottle candle dinner elephant finger guitar hammer ice jacket king lemon market "
    "needle ocean pencil queen rabbit silver tiger uncle valley wagon boat coffee dream earth forest hello I am a "
    "you we they she he was will film clip made frame voice mouth say said tell talk ask please remember today "
    "tomorrow never again very last new good long small big old man woman day year time way thing life hand part "
    "place work week point made by with from that this what when how who why show watch move play turn start stop "
    "begin end begins learned planned checked"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Utterance:
    """Speech at 16 kHz and the mouth that says it."""

    waveform: NDArray[np.float32]
    curves: NDArray[np.float32]  # [n, 2] at CURVE_RATE: opening and width, 0..1

    @property
    def num_seconds(self) -> float:
        """Return the length of the speech."""
        return len(self.waveform) / SAMPLES_PER_SECOND

    def mouth(self, seconds: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return opening and width `[n, 2]` at times; the mouth is at rest outside the speech."""
        grid = np.arange(len(self.curves)) / CURVE_RATE
        opening = np.interp(seconds, grid, self.curves[:, 0], left=0, right=0)
        width = np.interp(seconds, grid, self.curves[:, 1], left=_AT_REST[1], right=_AT_REST[1])
        return np.stack([opening, width], axis=1).astype(np.float32)


def draw_utterance(rng: np.random.Generator, least_seconds: float) -> Utterance:
    """Return random words in a random voice with pauses, and a little noise; at least `least_seconds` long."""
    voice, rate, pitch = str(rng.choice(_VOICES)), int(rng.integers(125, 205)), int(rng.integers(30, 70))
    waveforms, curves, seconds = [], [], 0.0
    while seconds < least_seconds:
        phrase = say(" ".join(rng.choice(_WORDS, int(rng.integers(3, 9)))) + rng.choice([".", ",", "?", "!"]),
                     voice, rate, pitch)  # fmt: skip
        pause = round(rng.choice([0.0, 0.15, 0.3, 0.7]) * rng.uniform(0.5, 1.5), 2)
        for part in (phrase, _silence(pause)):
            waveforms.append(part.waveform)
            curves.append(part.curves)
        seconds = sum(map(len, waveforms)) / SAMPLES_PER_SECOND
    waveform = np.concatenate(waveforms)
    noise = rng.normal(size=len(waveform)) * 10 ** rng.uniform(-5, -2.5)
    return Utterance((waveform + noise).astype(np.float32), np.concatenate(curves))


def _silence(seconds: float) -> Utterance:
    curves = np.tile(np.array(_AT_REST, np.float32), (round(seconds * CURVE_RATE), 1))
    return Utterance(np.zeros(len(curves) * SAMPLES_PER_SECOND // CURVE_RATE, np.float32), curves)


def say(text: str, voice: str = "en-us", rate: int = 160, pitch: int = 50) -> Utterance:
    """Return `text` spoken; its length is a whole number of curve samples."""
    samples, source_rate, phonemes = _espeak().speak(text, voice, rate, pitch)
    common = gcd(SAMPLES_PER_SECOND, source_rate)
    waveform = resample_poly(samples, SAMPLES_PER_SECOND // common, source_rate // common).astype(np.float32)
    step = SAMPLES_PER_SECOND // CURVE_RATE
    waveform = waveform[: len(waveform) // step * step]
    return Utterance(waveform, _curves(phonemes, len(waveform) // step))


def _curves(phonemes: list[tuple[float, str]], length: int) -> NDArray[np.float32]:
    shapes = np.tile(np.array(_AT_REST), (length, 1))
    ends = [start for start, _ in phonemes[1:]] + [length / CURVE_RATE]
    for (start, name), end in zip(phonemes, ends, strict=True):
        known = [sign for sign in name if sign in _SHAPES]
        # A diphthong moves from its first vowel to its last; of anything else the first sign counts.
        moves = len(known) > 1 and known[0] in _VOWELS and known[-1] in _VOWELS
        parts = [known[0], known[-1]] if moves else known[:1]
        borders = np.linspace(start, end, len(parts) + 1) * CURVE_RATE
        for part, first, last in zip(parts, borders[:-1], borders[1:], strict=True):
            shapes[round(first) : round(last)] = _SHAPES[part]
    kernel = np.hanning(round(_SMOOTHING_SECONDS * CURVE_RATE))
    half = len(kernel) // 2
    padded = np.pad(shapes, ((half, len(kernel) - 1 - half), (0, 0)), mode="edge")
    smooth = [np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T]
    curves = np.stack(smooth, axis=1)
    # The smoothing lowers the peaks.
    curves[:, 0] = np.minimum(1, 1.35 * curves[:, 0])
    return curves.astype(np.float32)


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _PHONEME_EVENTS, _PHONEME, _RATE, _PITCH, _UTF8 = 2, 1, 7, 1, 3, 1


class _Espeak:
    """The library; it keeps its state per process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        if self._rate <= 0:
            raise RuntimeError("espeak-ng does not start; install libespeak-ng1 and espeak-ng-data")
        self._pieces: list[NDArray[np.int16]] = []
        self._phonemes: list[tuple[float, str]] = []
        self._callback = _CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type:
            if events[index].type == _PHONEME:
                name = events[index].name.decode(errors="replace")
                self._phonemes.append((events[index].audio_position / 1000, name))
            index += 1
        return 0

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> tuple[NDArray[np.float32], int, list[Any]]:
        self._pieces, self._phonemes = [], []
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._pieces).astype(np.float32) / 32768, self._rate, self._phonemes


@cache
def _espeak() -> _Espeak:
    return _Espeak()
