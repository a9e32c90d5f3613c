"""Check the detection of gaps in time stamps."""

from fractions import Fraction

import numpy as np
import pytest

from s2v_tasks.media.probe import Frame, Gap, Timeline, lay_out, silence

RATE = 1000  # one sample is a millisecond


def _frames(*stamps: float | None) -> list[Frame]:
    return [(None if stamp is None else Fraction(stamp), 20) for stamp in stamps]


def _laid_out(*stamps: float | None) -> Timeline:
    return lay_out(_frames(*stamps), RATE, max_seconds=100)


@pytest.mark.parametrize(
    ("stamps", "gaps"),
    [
        ((0, 20, 40, 60), ()),
        ((0, 20, 51, 71), (Gap(40, 11),)),
        ((0, 20, 50, 70), ()),  # as late as stamps may jitter
        ((0, 20, 100, 120, 300, 320), (Gap(40, 60), Gap(80, 160))),
        ((0, 20, 47, 61, 88, 100), ()),  # jitter does not add up
        ((0, 26, 52, 78, 104), (Gap(40, 12), Gap(80, 12))),  # what is missing adds up
        ((0, 20, 80, 60, 80), ()),  # Vorbis: one frame is stamped late
        ((0, 20, 80), (Gap(40, 40),)),
        ((0, None, 40, 140, None, 180), (Gap(60, 80),)),
        ((None, 20, 40), ()),
    ],
)
def test_stamps_that_are_late_for_two_frames_are_a_gap(stamps: tuple[float | None, ...], gaps: tuple[Gap, ...]) -> None:
    """Stamps may be up to 10 ms late; a larger lateness of two frames is a gap of that length."""
    assert _laid_out(*stamps) == Timeline(stamped=True, gaps=gaps)


def test_silence_grows_only_to_the_stamps() -> None:
    """Consecutive gaps have the lengths that the stamps state."""
    found = _laid_out(0, 50, 120, 190, 210)
    assert found.gaps == (Gap(20, 30), Gap(40, 50), Gap(60, 50))
    assert found.num_silent == 130


@pytest.mark.parametrize(
    ("back_by", "gap"), [(101, Gap(240, 50)), (500, Gap(240, 50)), (100, None), (30, Gap(240, 20))]
)
def test_stamps_that_go_back_lose_nothing(back_by: int, gap: Gap | None) -> None:
    """Overlapping packets follow each other; after a jump back by more than 100 ms stamps count from there."""
    before, first = range(0, 200, 20), 200 - back_by
    found = _laid_out(*before, first, first + 20, first + 90, first + 110)
    assert found == Timeline(stamped=True, gaps=(gap,) if gap else ())


def test_gap_before_a_restart_is_kept() -> None:
    """A gap counts also if the next stamp restarts."""
    assert _laid_out(*range(0, 200, 20), 500, 0, 20).gaps == (Gap(200, 300),)


@pytest.mark.parametrize(
    ("first", "num_skipped", "start"),
    [
        (0, 0, Fraction(0)),
        (700, 0, Fraction(7, 10)),
        (-21, 21, Fraction(0)),
        (-100, 100, Fraction(0)),
        (-101, 0, Fraction(0)),
    ],
)
def test_start(first: int, num_skipped: int, start: Fraction) -> None:
    """A late start is reported and left out; up to 100 ms before 0 are the delay of the encoder."""
    found = _laid_out(*(first + 20 * k for k in range(9)))
    assert (found.num_skipped, found.start, found.gaps) == (num_skipped, start, ())


def test_start_is_known_from_a_later_stamp() -> None:
    """A first frame without a stamp begins where the second frame implies."""
    assert _laid_out(None, 520, 540).start == Fraction(1, 2)


def test_reading_ends_at_the_limit() -> None:
    """Only the allowed length of a file with endless stamps is read."""
    seen = []

    def endless() -> object:
        for k in range(10**6):
            seen.append(k)
            yield Fraction(1000 * k), 20

    lay_out(endless(), RATE, max_seconds=5)  # type: ignore[arg-type]
    assert len(seen) < 10


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_gaps_are_filled_wherever_blocks_end(block: int) -> None:
    """Samples are at their positions, with zeros in gaps and without the delay, for any size of blocks."""
    samples = np.arange(1, 25, dtype=np.float32)[:, None].repeat(2, axis=1)
    timeline = Timeline(True, 4, Fraction(0), (Gap(0, 2), Gap(6, 3), Gap(14, 5), Gap(19, 70_000)))
    blocks = [samples[at : at + block] for at in range(0, 24, block)]
    found = list(timeline.fill(blocks))
    expected = [0] * 2 + [*range(5, 11)] + [0] * 3 + [*range(11, 19)] + [0] * 5 + [*range(19, 24)] + [0] * 70_000 + [24]
    np.testing.assert_array_equal(np.concatenate(found), np.array(expected)[:, None].repeat(2, axis=1))
    assert max(map(len, found)) <= 1 << 16
    assert all(map(len, found))


def test_silence_is_made_in_pieces() -> None:
    """At most one piece of the silence is in memory."""
    assert [len(piece) for piece in silence(140_000, 3)] == [65_536, 65_536, 8_928]
