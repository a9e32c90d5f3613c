"""Golden cases of the encoders around the transformer: wav2vec2, umT5, VAE."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from s2v_tasks.engine.audio_features import resample_50_to_30
from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder, normalise
from s2v_tasks.engine.encoders.text_encoder import build_umt5, encode_ids
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.verification.parity.results import (
    CPU_FLOAT32,
    FORWARD_GATE,
    CaseResult,
    Golden,
    Target,
    compare,
    load_golden,
    per_file,
)

PREFIXES = ("wav2vec", "t5", "vae")


def cases(folder: Path, target: Target = CPU_FLOAT32) -> Iterator[CaseResult]:
    """Run every encoder golden of `folder`; weights, dimensions and head counts come from the files."""
    paths = sorted(path for path in folder.glob("*.safetensors") if path.stem.startswith(PREFIXES))
    return per_file(paths, partial(_run_file, target.device), FORWARD_GATE)


def _run_file(device: torch.device, path: Path) -> Iterator[CaseResult]:
    golden = load_golden(path, device)
    if golden.name.startswith("wav2vec"):
        return _wav2vec(golden, device)
    return _t5(golden, device) if golden.name.startswith("t5") else _vae(golden, device)


def _wav2vec(golden: Golden, device: torch.device) -> Iterator[CaseResult]:
    encoder = AudioEncoder.from_state_dict(golden.with_prefix("w."), golden.metadata["config"], device)
    for clip in _stems(golden, ".input_values"):
        waveform = golden[f"{clip}.loaded"].cpu().numpy()
        values = golden[f"{clip}.input_values"]
        states = encoder.encode(waveform)
        name = f"{golden.name} {clip}"
        yield compare(f"{name} input_values", values.new_tensor(normalise(waveform))[None], values, FORWARD_GATE)
        yield compare(f"{name} hidden50", states, golden[f"{clip}.hidden50"], FORWARD_GATE)
        yield compare(f"{name} feat30", resample_50_to_30(states), golden[f"{clip}.feat30"], FORWARD_GATE)


def _t5(golden: Golden, device: torch.device) -> Iterator[CaseResult]:
    model = build_umt5(golden.with_prefix("w."), device)
    for index, rows in enumerate(encode_ids(model, golden["ids"], golden["mask"])):
        yield compare(f"{golden.name} out{index}", rows, golden[f"out{index}"], FORWARD_GATE)


def _vae(golden: Golden, device: torch.device) -> Iterator[CaseResult]:
    vae = Vae.from_state_dict(golden.with_prefix("w."), device)
    for clip in _stems(golden, ".x"):
        name = f"{golden.name} {clip}"
        yield compare(f"{name} encode", vae.encode(golden[f"{clip}.x"][None])[0], golden[f"{clip}.z"], FORWARD_GATE)
        for latents in ("z", "zrand"):
            if f"{clip}.dec_{latents}" in golden:
                actual = vae.decode(golden[f"{clip}.{latents}"][None])[0]
                yield compare(f"{name} decode {latents}", actual, golden[f"{clip}.dec_{latents}"], FORWARD_GATE)


def _stems(golden: Golden, suffix: str) -> list[str]:
    """Return the names of the golden's tensors that end with `suffix`, without it."""
    return sorted(key.removesuffix(suffix) for key in golden.tensors if key.endswith(suffix))
