"""Golden cases of all parts except the transformer: encoders, speech timing, solvers, output sizes, fitted pictures."""

import hashlib
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from s2v_tasks.engine.audio_features import (
    feature_indices,
    frame_features,
    num_features_at_30,
    num_states_at_50,
    reference_num_repeat,
    resample_50_to_30,
)
from s2v_tasks.engine.encoders.audio_encoder import AudioEncoder, normalise
from s2v_tasks.engine.encoders.text_encoder import build_umt5, encode_ids
from s2v_tasks.engine.encoders.vae import Vae
from s2v_tasks.engine.images import fit_image, to_pixels
from s2v_tasks.engine.schedulers import make_scheduler
from s2v_tasks.verification.parity.golden import (
    EXACT,
    FORWARD_GATE,
    SCHEDULER_GATE,
    CaseResult,
    Golden,
    Goldens,
    OutputSize,
    compare,
    compare_all,
    load_golden,
    per_file,
)

_ENCODERS = ("wav2vec", "t5", "vae")
_RULES = ("audio_bucket", "scheduler", "size", "image")
PREFIXES = (*_ENCODERS, *_RULES)


def cases(goldens: Goldens) -> Iterator[CaseResult]:
    """Run every golden case except those of the transformer; weights and dimensions come from the files."""
    networks = (path for path in goldens.files(_ENCODERS) if path.suffix == ".safetensors")
    yield from per_file(networks, partial(_encoder_case, goldens.target.device), FORWARD_GATE)
    yield from per_file(goldens.files(_RULES), partial(_rule_case, goldens.output_size), EXACT)


def _encoder_case(device: torch.device, path: Path) -> Iterator[CaseResult]:
    golden = load_golden(path, device)
    if golden.name.startswith("wav2vec"):
        return _wav2vec(golden, device)
    return _t5(golden, device) if golden.name.startswith("t5") else _vae(golden, device)


def _wav2vec(golden: Golden, device: torch.device) -> Iterator[CaseResult]:
    encoder = AudioEncoder.from_state_dict(golden.with_prefix("w."), golden.metadata["config"], device)
    for clip in golden.stems(".input_values"):
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
    for clip in golden.stems(".x"):
        name = f"{golden.name} {clip}"
        yield compare(f"{name} encode", vae.encode(golden[f"{clip}.x"][None])[0], golden[f"{clip}.z"], FORWARD_GATE)
        for latents in ("z", "zrand"):
            if f"{clip}.dec_{latents}" in golden:
                actual = vae.decode(golden[f"{clip}.{latents}"][None])[0]
                yield compare(f"{name} decode {latents}", actual, golden[f"{clip}.dec_{latents}"], FORWARD_GATE)


def _rule_case(output_size: OutputSize, path: Path) -> Iterator[CaseResult]:
    if path.suffix == ".json":
        return _audio_indices(path) if path.stem.startswith("audio") else _sizes(path, output_size)
    golden = load_golden(path)
    if golden.name.startswith("audio"):
        return _audio_buckets(golden)
    return _schedulers(golden) if golden.name.startswith("scheduler") else _images(golden, output_size)


def _audio_buckets(golden: Golden) -> Iterator[CaseResult]:
    resampled: dict[int, Tensor] = {}
    buckets: list[tuple[str, Tensor, Tensor]] = []
    counts: list[tuple[str, int, int]] = []
    for case in golden.metadata["cases"]:
        length, infer_frames = case["T50"], case["batch_frames"]
        features = resampled.setdefault(length, resample_50_to_30(golden[f"T{length}.feat50"]))
        num_repeat = reference_num_repeat(features.shape[1], infer_frames)
        bucket = frame_features(features, num_repeat * infer_frames)
        key = f"T{length}.bf{infer_frames}"
        counts.append((key, num_repeat, case["num_repeat"]))
        buckets.append((key, bucket, golden[f"{key}.bucket"]))
        if f"{key}.encode_audio" in golden:
            expected = rearrange(golden[f"{key}.encode_audio"], "1 s c k -> k s c")
            buckets.append((f"{key}.encode_audio", bucket, expected))
    feat30 = [(f"T{length}", actual, golden[f"T{length}.feat30"]) for length, actual in resampled.items()]
    yield compare_all(f"{golden.name} feat30", feat30, FORWARD_GATE)
    yield compare_all(f"{golden.name} buckets", buckets, FORWARD_GATE)
    yield _exact(f"{golden.name} num_repeat", counts)


def _audio_indices(path: Path) -> Iterator[CaseResult]:
    rows: list[tuple[str, object, object]] = []
    for case in json.loads(path.read_text()):
        name = f"{case['seconds']}s bf{case['batch_frames']}"
        num_states = num_states_at_50(case["samples"])
        num_features = num_features_at_30(num_states)
        num_repeat = reference_num_repeat(num_features, case["batch_frames"])
        indices = feature_indices(num_repeat * case["batch_frames"])
        shown = torch.where(indices < num_features, indices, -1).tolist()
        digest = hashlib.sha1(json.dumps(shown).encode(), usedforsecurity=False).hexdigest()
        actual = (num_states, num_features, num_repeat, len(shown), digest)
        rows.append((name, actual, tuple(case[key] for key in ("T50", "T30", "num_repeat", "n_indices", "sha1"))))
    yield _exact(path.stem, rows)


def _schedulers(golden: Golden) -> Iterator[CaseResult]:
    for key in golden.stems(".traj"):
        match = re.fullmatch(r"(.+)\.s(\d+)\.sh([\d.]+)", key)
        if match is None:
            raise ValueError(f"{key!r} does not name solver, steps and shift")
        solver, num_steps, shift = match[1], int(match[2]), float(match[3])
        scheduler = make_scheduler(solver, num_steps=num_steps, shift=shift, device="cpu")
        sample, trajectory = golden[f"{key}.x0"], []
        for timestep, velocity in zip(scheduler.timesteps, golden[f"{key}.v"], strict=True):
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
            trajectory.append(sample)
        yield compare(f"{golden.name} {key} timesteps", scheduler.timesteps, golden[f"{key}.timesteps"], EXACT)
        yield compare_all(
            f"{golden.name} {key}",
            [
                ("sigmas", scheduler.sigmas, golden[f"{key}.sigmas"]),
                ("traj", torch.stack(trajectory), golden[f"{key}.traj"]),
            ],
            SCHEDULER_GATE,
        )


def _sizes(path: Path, output_size: OutputSize) -> Iterator[CaseResult]:
    rows: list[tuple[str, object, object]] = []
    for height, width, area, expected in json.loads(path.read_text())["rows"]:
        try:
            actual: object = list(output_size(height, width, area))
        except Exception as error:  # noqa: BLE001 - the golden names the exception where the reference fails
            actual = type(error).__name__
        rows.append((f"{height}x{width} in {area}", actual, expected))
    yield _exact(path.stem, rows)


def _images(golden: Golden, output_size: OutputSize) -> Iterator[CaseResult]:
    sizes: list[tuple[str, object, object]] = []
    pictures: list[tuple[str, Tensor, Tensor]] = []
    pixels: list[tuple[str, Tensor, Tensor]] = []
    for key in golden.stems(".image_u8"):
        image = golden[f"{key}.image_u8"]
        height, width = golden[f"{key}.size_hw"].tolist()
        area = int(golden[f"{key}.area"])
        sizes.append((key, output_size(image.shape[0], image.shape[1], area), (height, width)))
        fitted = fit_image(image.numpy(), width, height, compat="reference")
        pictures.append((key, torch.tensor(fitted), golden[f"{key}.out_u8"]))
        pixels.append((key, to_pixels(fitted), golden[f"{key}.ref_pixel_values"]))
    yield _exact(f"{golden.name} sizes", sizes)
    yield compare_all(f"{golden.name} uint8", pictures, EXACT)
    yield compare_all(f"{golden.name} pixels", pixels, FORWARD_GATE)


def _exact(name: str, rows: list[tuple[str, object, object]] | list[tuple[str, int, int]]) -> CaseResult:
    """Return one row for a table of values that must be equal; its difference is the number of unequal ones."""
    wrong = [f"{key}: {actual} instead of {expected}" for key, actual, expected in rows if actual != expected]
    note = f"{len(rows)} rows" + (f", {len(wrong)} differ, first {wrong[0]}" if wrong else "")
    return CaseResult(name, float(len(wrong)), EXACT, bool(rows) and not wrong, note)
