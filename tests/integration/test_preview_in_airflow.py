"""Check a preview with an adapter, and its rerun in full quality, through the DAG."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from s2v_tasks.cli import job_control as rerun_command
from s2v_tasks.embedded.demo import DemoInputs, run_demo
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.schemas.plan import Plan
from s2v_tasks.schemas.request import Request
from s2v_tasks.settings import Settings, config_dir, load_settings
from s2v_tasks.storage.layout import JobLayout
from s2v_tasks.storage.s3 import ObjectStore

PREVIEW, VIDEO = "seen-first", "seen-whole"
# The sampling is that of the preset.
FIELDS: dict[str, Any] = {
    "preset": "preview", "num_clip": 2, "infer_frames": 16, "size": "128*128", "base_seed": 7,
    "sample_steps": None, "sample_guide_scale": None, "adapters": [{"name": "few-steps", "strength": 0.5}],
}  # fmt: skip


@pytest.fixture
def adapter(stack: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Add an adapter for the queries of all blocks to the catalogue; return its digest."""
    assert stack.snapshot_path is not None
    tensors = {}
    for key, weight in Snapshot.open(stack.snapshot_path).build_transformer().state_dict().items():
        if key.endswith("self_attn.q.weight"):
            rows, columns = weight.shape
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            tensors |= {f"{name}.lora_down.weight": torch.full((2, columns), 0.02)}
            tensors |= {f"{name}.lora_up.weight": torch.full((rows, 2), 0.02)}
    file = tmp_path / "few-steps.safetensors"
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    config = Path(shutil.copytree(config_dir(stack), tmp_path / "config"))
    card = {"path": str(file), "sha256": digest, "purpose": "Previews.", "sample_steps": 3, "sample_solver": "euler"}
    (config / "adapters.yaml").write_text(yaml.safe_dump({"few-steps": card}))
    monkeypatch.setenv("S2V_CONFIG_DIR", str(config))
    load_settings.cache_clear()
    return digest


def request_of_rerun(monkeypatch: pytest.MonkeyPatch, *options: str) -> Request:
    """Return the request that `s2v rerun` submits to Airflow."""
    handed: list[Request] = []

    def submit_request(_job_id: str, request: Request, _options: object) -> int:
        handed.append(request)
        return 0

    monkeypatch.setattr(rerun_command, "submit_request", submit_request)
    command = typer.Typer()
    command.command()(rerun_command.rerun)
    done = CliRunner().invoke(command, [PREVIEW, *options])
    assert done.exit_code == 0, done.output
    return handed[0]


def test_a_preview_with_an_adapter_becomes_the_whole_video(
    stack_home: Path, stack: Settings, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preview has the adapter's steps; the rerun has the same clips and seeds, all steps, and no adapter."""
    assert run_demo(stack_home, DemoInputs(), FIELDS, out_dir=tmp_path, job_id=PREVIEW) == 0
    again = request_of_rerun(monkeypatch, "--preset", "high").model_dump(mode="json")
    assert run_demo(stack_home, DemoInputs(), again, out_dir=tmp_path, job_id=VIDEO) == 0

    store = ObjectStore.from_settings(stack)
    preview, video = (Plan.model_validate_json(store.get_bytes(JobLayout(job).plan)) for job in (PREVIEW, VIDEO))
    assert (preview.preview, preview.sampling.sample_steps, preview.sampling.sample_solver) == (True, 3, "euler")
    assert [(item.name, item.strength, item.sha256) for item in preview.adapters] == [("few-steps", 0.5, adapter)]
    assert (video.preview, video.sampling.sample_steps, video.adapters) == (False, 40, ())
    assert [(clip.num_frames, clip.seed) for clip in video.clips] == [
        (clip.num_frames, clip.seed) for clip in preview.clips
    ]
    assert video.estimate.gpu_seconds > 2 * preview.estimate.gpu_seconds  # of which the VAE is a great part
    facts = [json.loads(store.get_bytes(JobLayout(job).clip_manifest(1)))["facts"] for job in (PREVIEW, VIDEO)]
    assert facts[0]["adapters"] == {"few-steps": 0.5}
    assert "adapters" not in facts[1]
    first, second = ((tmp_path / f"{job}.mp4").read_bytes() for job in (PREVIEW, VIDEO))
    assert first != second
