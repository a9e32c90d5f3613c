"""Check the choice of the channels of speech."""

import re
import subprocess

import numpy as np
import numpy.typing as npt
import pytest

from s2v_tasks.media.channel_mix import Mix, Survey, choose_mix, movement_db, survey
from s2v_tasks.media.ffmpeg import tool_path

RATE = 8000
# The shares of the channels in left and right by ITU-R BS.775.
SHARES = {"FL": (1, 0), "FR": (0, 1), "FC": (0.70711, 0.70711), "LFE": (0, 0), "BC": (0.5, 0.5)} | dict.fromkeys(
    ("BL", "SL"), (0.70711, 0)
)
SHARES |= dict.fromkeys(("BR", "SR"), (0, 0.70711))
Signal = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def voice() -> Signal:
    """Return 6 s whose level changes as that of speech: syllables of 0.1 to 0.3 s with pauses between them."""
    random = np.random.default_rng(3)
    parts: list[npt.NDArray[np.float64]] = []
    while sum(map(len, parts)) < 6 * RATE:
        sound = random.standard_normal(random.integers(800, 2400)) * random.uniform(0.02, 0.2)
        parts += [sound, np.zeros(random.integers(200, 2400))]
    return np.concatenate(parts)[: 6 * RATE].astype(np.float32)


@pytest.fixture(scope="module")
def noise() -> Signal:
    return np.random.default_rng(4).standard_normal(6 * RATE).astype(np.float32) * np.float32(0.1)


def _mix(*channels: Signal, layout: str = "unknown", block: int = RATE) -> Mix:
    samples = np.stack(channels, axis=1)
    return choose_mix(
        survey((samples[at : at + block] for at in range(0, len(samples), block)), RATE, len(channels)), layout
    )


def _mean(mix: Mix, *channels: Signal) -> Signal:
    return np.asarray(mix.apply(np.stack(channels, axis=1)).mean(axis=1))


def _level(signal: Signal) -> float:
    return float(10 * np.log10(np.mean(np.square(signal, dtype=np.float64))))


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0, -0.1, -0.3])
def test_stereo_that_does_not_cancel_is_kept(right: float, voice: Signal) -> None:
    """Speech in both channels, in one, or with a weak inverted part is not changed; the mean keeps a third or more."""
    mix = _mix(voice, voice * np.float32(right))
    assert (mix.name, mix.matrix, mix.reason) == ("all channels", None, None)
    assert _level(_mean(mix, voice, voice * np.float32(right))) > _level(voice) - 10


@pytest.mark.parametrize(("left", "right", "chosen"), [(1, -1, 1), (1, -0.5, 1), (0.5, -1, 2), (1, -0.9, 1)])
def test_channels_that_cancel_are_not_mixed(left: float, right: float, chosen: int, voice: Signal) -> None:
    """Of inverted channels, the louder one is used alone, and the reason states the loss of a mix."""
    mix = _mix(voice * np.float32(left), voice * np.float32(right))
    assert mix.name == f"channel {chosen} of 2"
    assert "loses 100%" in str(mix.reason)
    assert mix.lost == 0
    played = mix.apply(np.stack([voice * np.float32(left), voice * np.float32(right)], axis=1))
    assert played.shape == (len(voice), 1)
    assert _level(played) == pytest.approx(_level(voice), abs=0.01)


@pytest.mark.parametrize("inverted", [slice(0, 3 * RATE), slice(2 * RATE, 2 * RATE + 4000), slice(5 * RATE, None)])
def test_channels_that_cancel_for_a_while_are_not_mixed(inverted: slice, voice: Signal) -> None:
    """Half a second of inverted channels is enough to use one of them."""
    other = voice.copy()
    other[inverted] *= -1
    assert _mix(voice, other).name in {"channel 1 of 2", "channel 2 of 2"}


@pytest.mark.parametrize(("right", "is_mixed"), [(-0.36, True), (-0.38, False)])
def test_a_mix_may_lose_ten_decibels(right: float, is_mixed: bool, voice: Signal) -> None:
    """A mean that is quieter than the loudest channel by 10 dB is not used; a louder one is."""
    assert (_mix(voice, voice * np.float32(right)).matrix is None) == is_mixed


@pytest.mark.parametrize(("decibels", "is_mixed"), [(-41, True), (-39, False)])
def test_noise_forty_decibels_lower_does_not_count(decibels: float, is_mixed: bool, noise: Signal) -> None:
    """Noise in pauses, 40 dB below the speech, may cancel."""
    loud = np.tile(noise[:800], 20)
    quiet = loud * np.float32(10 ** (decibels / 20))
    mix = _mix(np.concatenate([loud, quiet]), np.concatenate([loud, -quiet]))
    assert (mix.matrix is None) == is_mixed


@pytest.mark.parametrize(("num_lost", "is_mixed"), [(1, True), (2, False)])
def test_a_hundredth_may_be_lost(num_lost: int, is_mixed: bool, noise: Signal) -> None:
    """A tenth of a second in ten seconds may cancel; two tenths may not."""
    left = np.tile(noise[:800], 100)
    right = left.copy()
    right[: 800 * num_lost] *= -1
    assert (_mix(left, right, block=800).matrix is None) == is_mixed


def test_two_speakers_are_both_kept(voice: Signal) -> None:
    """An interview with one microphone per channel is mixed, because each channel lacks one speaker."""
    first, second = voice.copy(), voice[::-1].copy()
    first[3 * RATE :], second[: 3 * RATE] = 0, 0
    assert _mix(first, second).name == "all channels"


def test_loss_in_every_mix_is_reported(voice: Signal) -> None:
    """If each mix loses some speech, the smallest loss is reported."""
    first, second = voice.copy(), -voice
    first[4 * RATE :] = 0
    assert _mix(first, second).name == "channel 2 of 2"
    second[:RATE] = 0
    mix = _mix(first, second)
    assert 0.1 < mix.lost < 0.3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_noise_that_covers_speech_is_left_out(order: tuple[int, int], voice: Signal, noise: Signal) -> None:
    """A channel of steady noise as loud as the speech in the other channel is left out."""
    channels = [voice, noise]
    mix = _mix(*(channels[k] for k in order))
    assert mix.name == f"channel {order.index(0) + 1} of 2"
    assert (mix.reason, mix.lost) == ("other channels cover the speech", 0)
    assert _mix(voice, noise * np.float32(0.01)).name == "all channels"
    assert _mix(noise, noise[::-1]).name == "all channels"


@pytest.mark.parametrize(
    ("swing_db", "steady", "is_mixed"),
    [(12, 0.00487, True), (12, 0.00663, False), (2.9, 0.1, True), (3.1, 0.1, False)],
)
def test_how_much_speech_may_be_covered(swing_db: float, steady: float, is_mixed: bool) -> None:
    """A mix is kept if its level varies a third as much as that of a channel which varies by 3 dB or more."""
    swinging = np.where(np.arange(40) % 2, 0.01, 0.01 / 10 ** (swing_db / 10))
    covariances = np.zeros((40, 2, 2))
    covariances[:, 0, 0], covariances[:, 1, 1] = swinging, steady
    assert (choose_mix(Survey(covariances, np.ones(2)), "stereo").matrix is None) == is_mixed


def test_an_offset_hides_no_cancellation(voice: Signal) -> None:
    """A constant offset in both channels does not count as audio."""
    assert (
        _mix(voice * np.float32(0.3) + np.float32(0.5), voice * np.float32(-0.3) + np.float32(0.5)).matrix is not None
    )


@pytest.mark.parametrize(
    ("layout", "channel", "left_right"),
    [
        ("5.1", 0, (1, 0)),
        ("5.1", 1, (0, 1)),
        ("5.1", 2, (0.7071, 0.7071)),
        ("5.1(side)", 4, (0.7071, 0)),
        ("5.1(side)", 5, (0, 0.7071)),
        ("unknown", 2, (0.7071, 0.7071)),  # six channels of a WAV
        ("6.1", 4, (0.5, 0.5)),
    ],
)
def test_known_layouts_are_mixed_to_stereo(
    layout: str, channel: int, left_right: tuple[float, float], voice: Signal
) -> None:
    """Speech in one channel of surround audio keeps its direction, by the usual shares."""
    channels = [np.zeros_like(voice)] * (7 if layout == "6.1" else 6)
    channels[channel] = voice
    mix = _mix(*channels, layout=layout)
    played = mix.apply(np.stack(channels, axis=1))
    assert mix.name == f"stereo of {'5.1' if layout == 'unknown' else layout}"
    np.testing.assert_allclose(played, voice[:, None] * np.array(left_right), atol=1e-4)


def test_surround_of_every_layout_is_mixed_by_the_usual_shares(voice: Signal) -> None:
    """Each layout of ffmpeg with the channels of ITU-R BS.775 is mixed to stereo, in the order that ffmpeg lists."""
    listed = subprocess.run(
        [tool_path("ffmpeg"), "-v", "quiet", "-layouts"], capture_output=True, text=True, check=True
    )
    layouts = {
        name: order.split("+") for name, order in re.findall(r"^(\S+) +(F[LC]\S*)$", listed.stdout, re.MULTILINE)
    }
    summed = ("hexagonal", "octagonal")
    usual = [name for name, order in layouts.items() if len(order) > 2 and SHARES.keys() >= set(order)]
    assert len(usual) == 19
    for layout in usual:
        if layout not in summed:
            order = layouts[layout]
            mix = _mix(*[voice * np.float32(0.1)] * len(order), layout=layout)
            assert mix.name == f"stereo of {layout}"
            assert mix.matrix is not None
            np.testing.assert_allclose(mix.matrix, np.transpose([SHARES[name] for name in order]), atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "num_channels"), [("unknown", 3), ("quad(wide)", 4), ("unknown", 7), ("hexagonal", 6)]
)
def test_unknown_layouts_are_summed_without_loss(layout: str, num_channels: int, voice: Signal, noise: Signal) -> None:
    """For an unknown layout, speech in one channel is as loud in the mix, and equal channels do not clip."""
    for channel in range(num_channels):
        channels = [noise * np.float32(0.001)] * num_channels
        channels[channel] = voice
        mix = _mix(*channels, layout=layout)
        assert mix.name == f"sum of {num_channels} channels"
        assert _level(_mean(mix, *channels)) == pytest.approx(_level(voice), abs=0.1)
    equal = [voice] * num_channels
    np.testing.assert_allclose(_mean(_mix(*equal, layout=layout), *equal), voice, atol=1e-5)


@pytest.mark.parametrize(("num_channels", "layout"), [(6, "5.1"), (8, "7.1")])
def test_surround_without_a_stated_layout_has_the_usual_one(num_channels: int, layout: str, voice: Signal) -> None:
    """Six and eight channels of a WAV that states no layout are those of 5.1 and 7.1: its centre is the third."""
    channels = [voice * 0] * num_channels
    channels[2] = voice
    mix = _mix(*channels, layout="unknown")
    assert mix.name == f"stereo of {layout}"
    assert _level(_mean(mix, *channels)) == pytest.approx(_level(voice) - 3, abs=0.1)


def test_low_frequency_effects_are_used_if_they_are_all() -> None:
    """Speech in the low-frequency channel alone, which a downmix omits, is used."""
    silent, voice = np.zeros(RATE, np.float32), np.random.default_rng(5).standard_normal(RATE).astype(np.float32)
    assert _mix(silent, silent, silent, voice, silent, silent, layout="5.1").name == "channel 4 of 6"


@pytest.mark.parametrize("right", [1.0, 0.5])
def test_downmix_does_not_clip(right: float) -> None:
    """The downmix of full-scale channels is at full scale and not above, also if the right ones are quieter."""
    full = np.random.default_rng(6).uniform(-1, 1, RATE).astype(np.float32)
    channels = [full, full * np.float32(right)] * 4
    mix = _mix(*channels, layout="7.1")
    assert mix.name == "stereo of 7.1"
    assert 0.9 < np.abs(mix.apply(np.stack(channels, axis=1))).max() <= 1.001


def test_silence_and_mono_are_plain(voice: Signal) -> None:
    """Silence and mono are used without a mix, and nothing counts as lost."""
    silent = np.zeros_like(voice)
    for mix in (_mix(silent, silent), _mix(voice), choose_mix(survey([], RATE, 2), "stereo")):
        assert (mix.matrix, mix.lost, mix.reason) == (None, 0, None)


@pytest.mark.parametrize("block", [800, 8000, 12_000])
def test_survey_measures_the_power_of_each_window(block: int, voice: Signal) -> None:
    """A second has ten windows, the last may be shorter, and the size of blocks does not change the result."""
    samples = np.stack([voice, -voice], axis=1)[: 2 * RATE + 100]
    found = survey((samples[at : at + block] for at in range(0, len(samples), block)), RATE, 2)
    assert found.covariances.shape == (21, 2, 2)
    for k in (0, 7, 20):
        np.testing.assert_allclose(found.covariances[k], np.cov(samples[800 * k : 800 * (k + 1)].T, ddof=0), rtol=1e-5)
    assert found.peaks == pytest.approx(np.abs(samples).max(axis=0))
    assert found.loudest == pytest.approx(found.covariances[:, 0, 0])


def test_movement_distinguishes_speech_from_steady_noise(voice: Signal, noise: Signal) -> None:
    """The level of speech varies by some decibels between windows, that of noise and silence hardly."""
    moving = [movement_db(survey([signal[:, None]], RATE, 1).loudest) for signal in (voice, noise, voice * 0)]
    assert moving[0] > 4
    assert 0 < moving[1] < 0.5
    assert moving[2] == 0
    assert movement_db(np.array([1.0])) == 0


def test_movement_is_the_mean_step_of_the_level() -> None:
    """Ten times the power are 10 dB. Power below -60 dB counts as -60 dB."""
    assert movement_db(np.array([1e-3, 1e-2, 1e-2, 1e-4])) == pytest.approx((10 + 0 + 20) / 3)
    assert movement_db(np.array([1e-5, 0.0, 1e-9])) == pytest.approx((10 + 0) / 2)


def test_a_mix_has_as_many_channels_as_its_matrix_has_rows() -> None:
    """Without a matrix all channels stay; a mix of five channels to two has two."""
    decoded = np.ones((3, 5), np.float32)
    for mix, expected in ((Mix("as it is"), 5), (Mix("two", np.ones((2, 5), np.float32)), 2)):
        assert mix.num_mixed(5) == mix.apply(decoded).shape[1] == expected
