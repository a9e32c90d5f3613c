"""Check the step mux_audio: its video, its inputs, and its reuse."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from s2v_tasks.errors import TransientError
from s2v_tasks.media.frames import measure, read_frames
from s2v_tasks.runtime.context import StepContext
from s2v_tasks.schemas.steps import MUX_AUDIO, STITCH
from s2v_tasks.steps import mux_audio, stitch
from tests.integration.steps.assembly import NUM_FRAMES, moving_frames, put_plan, render, speech, stage


def test_the_muxed_video_has_the_clip_and_the_speech_at_its_length(job: StepContext, tmp_path: Path) -> None:
    """The picture is copied, the audio is cut to its length, and the manifest names both inputs."""
    stitch.run(job)
    assert mux_audio.run(job) == {"reused": False}
    manifest = job.manifest(job.layout.mux_manifest, MUX_AUDIO)
    assert set(manifest.inputs) == {"silent", "audio"}
    video = job.artifacts.fetch(manifest.outputs["muxed"], tmp_path / "muxed.mp4")
    silent = job.manifest(job.layout.silent_manifest, STITCH).outputs["silent"]
    stored = job.artifacts.fetch(silent, tmp_path / "silent.mp4")
    assert np.array_equal(
        read_frames(video, start_frame=0, end_frame=99), read_frames(stored, start_frame=0, end_frame=99)
    )
    facts = measure(video)
    assert (facts.streams, facts.num_frames) == (("video", "audio"), NUM_FRAMES)
    assert facts.audio_duration_seconds == Fraction(NUM_FRAMES, 16)


def test_mux_runs_again_only_for_other_inputs(job: StepContext) -> None:
    """The same clip and speech are reused; another speech, clip or length is muxed again."""
    stitch.run(job)
    mux_audio.run(job)
    assert mux_audio.run(job) == {"reused": True}
    stage(job, speech(seed=4))
    assert mux_audio.run(job) == {"reused": False}
    render(job, 255 - moving_frames())
    assert stitch.run(job) == {"reused": False}
    assert mux_audio.run(job) == {"reused": False}
    put_plan(job, num_frames=NUM_FRAMES - 1)
    with pytest.raises(TransientError, match=r"24\), expected .* 23\): run the step again"):
        mux_audio.run(job)


def test_mux_needs_the_stitched_video(job: StepContext) -> None:
    """The error names the step that comes first."""
    with pytest.raises(TransientError, match=r"silent_manifest\.json is missing: run `s2v stitch`"):
        mux_audio.run(job)
