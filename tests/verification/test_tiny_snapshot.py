"""Check the tiny snapshot and the videos that it renders."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from s2v_tasks.engine.clip import Sampling
from s2v_tasks.engine.conditions import NEGATIVE_PROMPT, encode_conditions
from s2v_tasks.engine.images import to_pixels
from s2v_tasks.engine.loading import Snapshot, snapshot_id
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.verification.tiny_snapshot import write_tiny_snapshot
from tests.engine.clip_inputs import clip_of

WIDTH, HEIGHT, NUM_FRAMES = 192, 128, 20


def _files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _portrait() -> np.ndarray:
    """Return a blue ground with an orange disc in the middle."""
    rows, columns = np.mgrid[0:160, 0:240]
    disc = (rows - 80) ** 2 + (columns - 120) ** 2 < 50**2
    return np.where(disc[..., None], [230, 150, 60], [30, 60, 160]).astype(np.uint8)


def _conditions(path: Path, prompt: str = "a man speaks", num_samples: int = 16000) -> dict[str, torch.Tensor]:
    return encode_conditions(
        Snapshot.open(path),
        prompt=prompt,
        negative_prompt=NEGATIVE_PROMPT,
        waveform=np.random.default_rng(0).standard_normal(num_samples, dtype=np.float32),
        num_frames=NUM_FRAMES,
        image_u8=_portrait(),
        width=WIDTH,
        height=HEIGHT,
    )


@pytest.fixture(scope="module")
def conditions(tiny_snapshot_path: Path) -> dict[str, torch.Tensor]:
    """The conditions of a video of 20 frames with one second of speech."""
    return _conditions(tiny_snapshot_path)


def _render(path: Path, conditions: dict[str, torch.Tensor]) -> np.ndarray:
    inputs = clip_of(conditions, 7)
    sampling = Sampling(sample_steps=4, sample_guide_scale=4.5, sample_shift=3.0, sample_solver="unipc")
    pipeline, _ = load_pipeline(
        Worker(0, 1, torch.device("cpu")), Snapshot.open(path), "auto", EngineOptions(), guided=True
    )
    return pipeline.render_clip(inputs, sampling).frames_u8.astype(np.float32)


@pytest.fixture(scope="module")
def frames(tiny_snapshot_path: Path, conditions: dict[str, torch.Tensor]) -> np.ndarray:
    """A rendered clip."""
    return _render(tiny_snapshot_path, conditions)


def test_bytes_depend_on_the_seed_alone(tiny_snapshot_path: Path, tmp_path: Path) -> None:
    """The same seed gives the same bytes, another seed another snapshot, each below 10 MB."""
    write_tiny_snapshot(tmp_path / "again", seed=0)
    write_tiny_snapshot(tmp_path / "other", seed=1)
    assert _files(tmp_path / "again") == _files(tiny_snapshot_path)
    assert snapshot_id(Snapshot.open(tmp_path / "other")) != snapshot_id(Snapshot.open(tiny_snapshot_path))
    assert sum(map(len, _files(tiny_snapshot_path).values())) < 10_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    """A folder with the same snapshot does not change; one with other content is refused and kept."""
    folder = tmp_path / "deep" / "tiny"
    write_tiny_snapshot(folder, seed=3)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    write_tiny_snapshot(folder, seed=3)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    with pytest.raises(ConfigurationError, match="not empty"):
        write_tiny_snapshot(folder, seed=4)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """A folder with anything else in it is never overwritten."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        write_tiny_snapshot(tmp_path, seed=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_impossible_seed_is_refused(tmp_path: Path) -> None:
    """A negative seed is a permanent error."""
    with pytest.raises(PermanentError, match="seed=-1"):
        write_tiny_snapshot(tmp_path / "tiny", seed=-1)


def test_vae_keeps_the_picture(tiny_snapshot_path: Path) -> None:
    """The tiny VAE decodes an image that resembles the encoded one, at an eighth of the resolution."""
    vae = Snapshot.open(tiny_snapshot_path).load_vae("cpu")
    pixels = to_pixels(_portrait()).expand(-1, -1, 9, -1, -1)
    decoded = vae.decode(vae.encode(pixels))
    assert (decoded - pixels).abs().mean() < 0.12
    assert decoded[:, :, 4:].diff(dim=2).abs().max() < 0.1


def test_video_shows_the_reference_and_moves(frames: np.ndarray, conditions: dict[str, torch.Tensor]) -> None:
    """The video resembles the reference picture, has contrast, and no two frames are alike."""
    assert frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    reference = conditions["reference_u8"].numpy().astype(np.float32)
    correlation = np.corrcoef(frames.mean(axis=0).ravel(), reference.ravel())[0, 1]
    assert correlation > 0.8
    assert 30 < frames.mean() < 225
    assert frames.std() > 20
    # The first three frames of a chain are copies of the fourth.
    assert np.abs(np.diff(frames[3:], axis=0)).mean(axis=(1, 2, 3)).min() > 0.5


def test_sound_and_prompt_change_the_video(
    tiny_snapshot_path: Path, conditions: dict[str, torch.Tensor], frames: np.ndarray
) -> None:
    """Another speech and another prompt each give another video."""
    silent = {**conditions, "audio": torch.zeros_like(conditions["audio"])}
    assert np.abs(_render(tiny_snapshot_path, silent) - frames).mean() > 1
    prompted = {**conditions, "context": conditions["context_null"]}
    assert np.abs(_render(tiny_snapshot_path, prompted) - frames).mean() > 0.5


def test_conditions_fit_the_video(conditions: dict[str, torch.Tensor]) -> None:
    """Conditions have the agreed names, shapes and types; frames beyond the speech are silent."""
    assert conditions.keys() == {"context", "context_null", "audio", "reference_u8"}
    assert conditions["audio"].shape == (NUM_FRAMES, 25, 32)
    spoken = conditions["audio"].abs().amax(dim=(1, 2)) > 0
    assert spoken.tolist() == [True] * 16 + [False] * 4
    assert conditions["reference_u8"].dtype == torch.uint8
    assert conditions["reference_u8"].shape == (HEIGHT, WIDTH, 3)
    assert conditions["context"].shape[0] < conditions["context_null"].shape[0] <= 512


def test_empty_prompt_is_refused(tiny_snapshot_path: Path) -> None:
    """A prompt of white space is a permanent error."""
    with pytest.raises(PermanentError, match="prompt is empty"):
        _conditions(tiny_snapshot_path, prompt=" \n")


@pytest.mark.parametrize(("umask", "of_files", "of_folders"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_files_have_the_modes_of_any_new_ones(tmp_path: Path, umask: int, of_files: int, of_folders: int) -> None:
    """Modes of files and folders follow the umask."""
    before = os.umask(umask)
    try:
        write_tiny_snapshot(tmp_path / "snapshot", seed=0)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    paths = [tmp_path / "snapshot", *(tmp_path / "snapshot").rglob("*")]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {(False, of_files), (True, of_folders)}
