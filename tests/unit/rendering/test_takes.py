"""Check the decision about takes, a pure function of their measures."""

import pytest

from s2v_tasks.rendering.takes import as_take, best, decide, take_seed, with_takes
from s2v_tasks.schemas.quality import ClipQuality, FaceQuality, Finding, LookQuality, Take
from tests.unit.rendering.test_leader import clip, plan, prints

MEASURED = ClipQuality(
    start_frame=0,
    end_frame=16,
    face=FaceQuality(
        share_of_frames=1.0,
        longest_gap_frames=0,
        most_faces=1,
        height_ratio=None,
        shape_difference=None,
        blinks_per_minute=None,
        head_motion=None,
    ),
    lip_sync=None,
    look=LookQuality(skin_difference=None, background_difference=None, contrast_ratio=None, sharpness_ratio=None),
    seam=None,
)


def take(number: int, *penalties: float, measured: bool = True) -> Take:
    """Return a take; a penalty of 10 and more is a failing finding."""
    findings = tuple(
        Finding(level="fail" if penalty >= 10 else "warn", measure="m", message="", penalty=penalty)
        for penalty in penalties
    )
    return Take(
        take=number,
        seed=number,
        fingerprint=f"f{number}",
        measured=MEASURED if measured else None,
        findings=findings,
        measure_seconds=0.0,
    )


@pytest.mark.parametrize(
    ("takes", "max_retakes", "kept"),
    [
        ([], 2, None),
        ([take(0)], 2, 0),
        ([take(0, 1.5, 1.0)], 2, 0),
        ([take(0, 11)], 2, None),
        ([take(0, 11)], 0, 0),
        ([take(0, 11), take(1)], 2, 1),
        ([take(0, 11), take(1)], 0, 0),
        ([take(0, 11), take(1, 12), take(2, 19)], 2, 0),
        ([take(0, 19), take(1, 12), take(2, 19)], 2, 1),
        ([take(0, 12), take(1, 12)], 1, 0),
        ([take(0, 11), take(1, 12), take(2, 10.5)], 5, None),
        ([take(0, measured=False)], 2, 0),
        ([take(0, 11), take(1, measured=False)], 2, 0),
    ],
)
def test_the_first_take_that_does_not_fail_is_kept_else_the_best(
    takes: list[Take], max_retakes: int, kept: int | None
) -> None:
    """Warnings keep a take, surplus takes do not count, and a take without measures ends the retakes."""
    assert decide(takes, max_retakes) == kept


def test_of_equal_takes_the_earlier_one_is_the_best() -> None:
    """Among equal takes the first is kept, and a take with a higher score is preferred."""
    assert best([take(0, 11, 1), take(1, 11, 1)]) == 0
    assert best([take(0, 11, 1), take(1, 11)]) == 1


def test_a_take_is_a_seed_that_a_request_can_repeat() -> None:
    """Take 0 has the planned seed; seeds of other takes differ and are valid for `base_seed`."""
    seeds = [take_seed(seed, number) for seed in (7, 8, 2**63 - 1001) for number in range(6)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == 7
    assert all(0 <= take_seed(2**63 - 1001, number) < 2**56 for number in range(1, 6))
    assert as_take(clip(1), 0) == clip(1)
    assert as_take(clip(1), 2).seed == take_seed(8, 2)


def test_takes_change_the_fingerprints_of_their_clip_and_of_those_behind_it() -> None:
    """Earlier clips and other chains do not change; a plan with the seed of the take has the same fingerprints."""
    before, retaken = prints(plan()), prints(with_takes(plan(), {1: 1}))
    assert [index for index in range(4) if before[index] == retaken[index]] == [0, 3]
    assert retaken == prints(plan(clip(1, seed=take_seed(8, 1))))
    assert prints(with_takes(plan(), {})) == before
