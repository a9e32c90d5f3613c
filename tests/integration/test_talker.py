"""Check the talking snapshot in the whole pipeline: the mouth of the published video follows its speech."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from s2v_tasks.cli.measure import measure
from s2v_tasks.schemas.quality import VideoQuality
from s2v_tasks.settings import Settings, load_settings
from s2v_tasks.storage.layout import output_video_uri
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.verification.talker_snapshot import write_talker_snapshot
from tests.integration.conftest import JOB, SAMPLES

DEMO = yaml.safe_load((Path(__file__).parents[2] / "config" / "demo.yaml").read_text(encoding="utf-8"))
CLIP_FRAMES = 48
FIELDS = {name: DEMO[name] for name in ("size", "sample_steps", "sample_guide_scale")} | {"infer_frames": CLIP_FRAMES}
FRAME_MS = 1000 / 16

Published = Callable[[], VideoQuality]


@pytest.fixture
def published(
    settings: Settings,
    store: ObjectStore,
    render: Callable[..., list[bool]],
    assemble: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Published:
    """Renders two clips of the samples with the talking snapshot; gives the measures of the published MP4."""
    write_talker_snapshot(tmp_path / "talker")
    monkeypatch.setenv("S2V_SNAPSHOT_PATH", str(tmp_path / "talker"))
    monkeypatch.setenv("S2V_MODEL", "talker")
    load_settings.cache_clear()

    def published() -> VideoQuality:
        render(**FIELDS)
        assemble()
        video = tmp_path / "video.mp4"
        store.download(output_video_uri(load_settings(), JOB), video)
        command = typer.Typer()
        command.command()(measure)
        options = ["--image", str(SAMPLES / "portrait.jpg"), "--clip-frames", str(CLIP_FRAMES), "--json"]
        done = CliRunner().invoke(command, [str(video), *options])
        assert done.exit_code == 0, done.output
        return VideoQuality.model_validate(json.loads(done.stdout))

    return published


def test_the_mouth_follows_the_sound(published: Published) -> None:
    """The lag is at most one frame, other speech fits worse, the face stays, and the seam is not visible."""
    found = published()
    sync = found.lip_sync
    assert sync is not None
    assert abs(sync.lag_ms) <= FRAME_MS
    assert sync.correlation > 0.45
    assert sync.correlation > sync.other_correlation + 0.15
    assert [clip.face.share_of_frames for clip in found.clips] == [1, 1]
    seam = found.clips[1].seam
    assert seam is not None
    assert seam.jump < 2
