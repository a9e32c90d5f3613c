"""Choose the channels of the speech. Their mean is the input of the model and must contain the speech.

The default is all channels unchanged, or the usual downmix to stereo. Their mean can lack the speech: opposite
polarities cancel, and a loud noise on one channel covers the speech on another. Then a single channel is used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from s2v_tasks.media.probe import Samples

WINDOWS_PER_SECOND = 10
_SILENT_DBFS = -60.0
# Windows that are quieter by more than the loudest do not count.
_RANGE_DB = 40.0
# The mean loses a window when it is quieter by more than the loudest channel.
_LOSS_DB = 10.0
_TOLERATED_LOSS = 0.01
# Level changes between neighbouring windows: about 4 to 10 dB in speech, 1 to 3 in most music, under 1 in noise.
_LEAST_MOVEMENT_DB = 3.0
_COVERED_BELOW = 1 / 3

_CENTRE = 0.5**0.5
# The usual share (ITU-R BS.775) of a channel in left and right; low-frequency effects have none.
_SHARES = {
    "FL": (1.0, 0.0), "FR": (0.0, 1.0), "FC": (_CENTRE, _CENTRE), "LFE": (0.0, 0.0), "BC": (0.5, 0.5),
    "BL": (_CENTRE, 0.0), "BR": (0.0, _CENTRE), "SL": (_CENTRE, 0.0), "SR": (0.0, _CENTRE),
}  # fmt: skip
_LAYOUTS = {
    "2.1": "FL FR LFE",
    "3.0": "FL FR FC",
    "3.0(back)": "FL FR BC",
    "3.1": "FL FR FC LFE",
    "4.0": "FL FR FC BC",
    "4.1": "FL FR FC LFE BC",
    "quad": "FL FR BL BR",
    "quad(side)": "FL FR SL SR",
    "5.0": "FL FR FC BL BR",
    "5.0(side)": "FL FR FC SL SR",
    "5.1": "FL FR FC LFE BL BR",
    "5.1(side)": "FL FR FC LFE SL SR",
    "6.0": "FL FR FC BC SL SR",
    "6.1": "FL FR FC LFE BC SL SR",
    "6.1(back)": "FL FR FC LFE BL BR BC",
    "7.0": "FL FR FC BL BR SL SR",
    "7.1": "FL FR FC LFE BL BR SL SR",
}
# The usual layout of a WAV with this number of channels and no stated layout.
_GUESSED = {6: "5.1", 8: "7.1"}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mix:
    """A mix of the decoded channels for the video; its mean is the input of the model.

    `matrix` `[mixed, channels]`; None keeps the channels as they are. `lost` is the share of the windows with audio in
    which the mean lacks the content of the loudest channel; `reason` says why this is not the plain mix.
    """

    name: str
    matrix: Samples | None = None
    lost: float = 0.0
    movement: float = 0.0
    reason: str | None = None

    def num_mixed(self, channels: int) -> int:
        """Return the number of channels after mixing `channels`."""
        return channels if self.matrix is None else len(self.matrix)

    def apply(self, decoded: Samples) -> Samples:
        """Mix `[n, channels]` to `[n, mixed]`."""
        return decoded if self.matrix is None else decoded @ self.matrix.T


@dataclass(frozen=True)
class Survey:
    """Statistics of the channels, from which the level of any mix follows.

    `covariances` `[W, channels, channels]` of each tenth of a second, `peaks` `[channels]`.
    """

    covariances: Floats
    peaks: Floats

    @property
    def loudest(self) -> Floats:
        """Return the power `[W]` of the loudest channel in each window."""
        return np.asarray(np.diagonal(self.covariances, axis1=1, axis2=2).max(axis=1))


_ALL = Mix("all channels")


def survey(blocks: Iterable[Samples], sample_rate: int, channels: int) -> Survey:
    """Measure decoded `blocks` `[n, channels]` of whole windows, of which the last may be shorter."""
    window = sample_rate // WINDOWS_PER_SECOND
    found, peaks = [np.zeros((0, channels, channels))], np.zeros(channels)
    for block in blocks:
        peaks = np.maximum(peaks, np.abs(block).max(axis=0))
        whole = len(block) // window * window
        for part, length in ((block[:whole], window), (block[whole:], len(block) - whole)):
            if length:
                windows = part.astype(np.float64).reshape(-1, length, channels)
                windows -= windows.mean(axis=1, keepdims=True)
                found.append(np.matmul(windows.transpose(0, 2, 1), windows) / length)
    return Survey(np.concatenate(found), peaks)


def choose_mix(survey: Survey, layout: str) -> Mix:
    """Return the plain mix, or a single channel with the speech if the mean of the plain mix lacks it."""
    covariances, num_channels = survey.covariances, len(survey.peaks)
    total = np.diagonal(covariances.sum(axis=0))
    if num_channels == 1 or not total.any():
        return _ALL
    loudest = survey.loudest
    sounding = loudest > 10 ** (-_RANGE_DB / 10) * loudest.max()

    def rated(mix: Mix) -> Mix:
        weights = mix.apply(np.eye(num_channels, dtype=np.float32)).mean(axis=1)
        power = np.einsum("i,wij,j->w", weights, covariances, weights)
        lost = np.mean(power[sounding] < 10 ** (-_LOSS_DB / 10) * loudest[sounding])
        return replace(mix, lost=float(lost), movement=movement_db(power))

    plain = rated(_plain(survey, layout))
    alone = [rated(_channel(k, num_channels)) for k in np.argsort(-total, kind="stable")]
    fullest = min(alone, key=lambda mix: mix.lost)
    if plain.lost > fullest.lost + _TOLERATED_LOSS:
        return replace(fullest, reason=f"a mix of all channels loses {plain.lost:.0%} of the sound")
    liveliest = max(alone, key=lambda mix: mix.movement)
    if liveliest.movement > _LEAST_MOVEMENT_DB and plain.movement < _COVERED_BELOW * liveliest.movement:
        # The windows that it lacks are those of the noise.
        return replace(liveliest, lost=0.0, reason="other channels cover the speech")
    return plain


def movement_db(power: Floats) -> float:
    """Return the mean change of the level between windows in dB: large in speech, 0 in silence. `power` is `[W]`."""
    levels = 10 * np.log10(np.maximum(power, 10 ** (_SILENT_DBFS / 10)))
    return float(np.abs(np.diff(levels)).mean()) if len(levels) > 1 else 0.0


def _channel(index: int, num_channels: int) -> Mix:
    return Mix(f"channel {index + 1} of {num_channels}", np.eye(num_channels, dtype=np.float32)[[index]])


def _plain(survey: Survey, layout: str) -> Mix:
    num_channels = len(survey.peaks)
    if num_channels == 2:
        return _ALL
    layout = _GUESSED.get(num_channels, layout) if layout == "unknown" else layout
    names = _LAYOUTS.get(layout, "").split()
    if len(names) == num_channels:
        name, shares = f"stereo of {layout}", np.array([_SHARES[channel] for channel in names]).T
    else:  # The layout is unknown: use the sum of the channels, as loud as the loudest of them.
        total = survey.covariances.sum(axis=0)
        gain = np.sqrt(np.diagonal(total).max() / max(total.sum(), np.finfo(float).tiny))
        name, shares = f"sum of {num_channels} channels", np.full((1, num_channels), min(1.0, float(gain)))
    highest = float((shares @ survey.peaks).max())
    return Mix(name, (shares / max(1.0, highest)).astype(np.float32))
