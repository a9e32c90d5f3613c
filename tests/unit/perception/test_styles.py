"""Check that a clean video in another style of drawing has no finding and the right lag."""

import pytest

from s2v_tasks.perception.video import measure_video
from s2v_tasks.validation.quality import judge_clip
from tests.unit.perception.drawn import FPS, SAMPLE_RATE, openings, speech
from tests.unit.perception.drawn_styles import Cartoon, cartoon_frames
from tests.unit.perception.test_faults import LIMITS


@pytest.mark.parametrize(("seed", "name"), [(1, "baker"), (5, "delay")])
def test_a_clean_cartoon_has_no_finding(seed: int, name: str) -> None:
    """A cartoon with outlines, glasses and a busy background has no finding."""
    frames = cartoon_frames(seed, openings(name)[:64])
    video = measure_video(
        frames,
        [(0, 64)],
        fps=FPS,
        speech=speech(name)[: 64 * SAMPLE_RATE // FPS],
        sample_rate=SAMPLE_RATE,
        reference=Cartoon(seed).draw(0, 0),
    )
    assert judge_clip(video.clips[0], video.reference, LIMITS) == []
    assert video.lip_sync is not None
    assert video.lip_sync.lag_ms == pytest.approx(0, abs=20)
    assert (video.lip_sync.correlation or 0) > (video.lip_sync.other_correlation or 1) + 0.2
