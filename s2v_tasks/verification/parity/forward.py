"""Golden cases of the transformer: whole forwards with their traces, and its parts alone.

Weights come from the `dit_*` file whose metadata has a `config`; every dimension is read from it or from the tensors.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from s2v_tasks.engine.distributed.mesh import Layout
from s2v_tasks.engine.models.forward_inputs import ClipTokens
from s2v_tasks.engine.models.layers import MOTION_LATENTS, FramePacker, timestep_sinusoid
from s2v_tasks.engine.models.rope import Grid, motion_grids, reference_grid, rope_table, video_grid
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.verification.parity.golden import (
    EXACT,
    FORWARD_GATE,
    ROPE_GATE,
    CaseResult,
    Golden,
    Goldens,
    compare,
    compare_all,
    compare_bfloat16,
    is_weights,
    load_golden,
    load_transformer,
    num_ranks,
    per_file,
    share_among_ranks,
)

PREFIXES = ("dit_", "framepack", "rope", "time_embedding", "audio_encoder")
_ROPE_TABLE_FRAMES = 3
_ROPE_ROW_STRIDE = 997
# A sum over 14,000 float64 entries depends on the order of addition by about this much.
_SUM_GATE = 1e-9
# The forward gate was measured on outputs of this size. Inner activations are judged relative to it, and with more
# room: right behind a norm of tiny values float noise is amplified, which the whole forward evens out again.
_GATED_ABSMAX = 6.0
_TRACE_GATE = 5e-5

Pair = tuple[str, Tensor, Tensor]


def cases(goldens: Goldens) -> Iterator[CaseResult]:
    """Run every golden file of the transformer, in bfloat16 only the whole forwards."""
    paths = goldens.files(PREFIXES)
    if goldens.target.dtype == torch.bfloat16:
        paths = [path for path in paths if path.name.startswith("dit_") and not is_weights(path)]
    yield from per_file(paths, partial(_run_file, goldens), FORWARD_GATE)


def _run_file(goldens: Goldens, path: Path) -> Iterable[CaseResult]:
    if path.name.startswith("rope"):
        return _rope_positions(path) if path.suffix == ".json" else _rope_tables(load_golden(path))
    model = load_transformer(goldens.folder, goldens.target)
    golden = load_golden(path, goldens.target.device)
    if path.name.startswith("dit_"):
        return _weights(model, path) if is_weights(path) else _forward(model, golden, goldens.layout)
    run = {"framepack": _framepack, "time_embedding": _time_embedding, "audio_encoder": _audio_encoder}
    return next(run_part for prefix, run_part in run.items() if path.name.startswith(prefix))(model, golden)


def _weights(model: S2VTransformer, path: Path) -> Iterator[CaseResult]:
    """Compare the weights of the model with those of the file, exactly and by key."""
    golden = load_golden(path)
    state = model.state_dict()
    yield compare_all(
        path.stem, [(key, state.get(key, torch.empty(0)), value) for key, value in golden.tensors.items()], EXACT
    )


def _forward(model: S2VTransformer, golden: Golden, layout: Layout | None) -> Iterator[CaseResult]:
    if "scaled_keys" in golden.metadata:
        state = model.state_dict()
        for key in golden.metadata["scaled_keys"]:
            state[key].mul_(golden.metadata["scale"])
    share_among_ranks(model, layout, guided=False)
    dropped = golden.metadata["drop_motion_frames"]
    motion = None if dropped else golden["in.motion_latents"]
    features = rearrange(golden["in.audio_input"], "1 k c f -> f k c").to(model.patch_embedding.weight.dtype)
    with Recorder(model) as recorder:
        num_frames = golden["in.latents"].shape[1]
        clip_tokens = model.prepare_clip_tokens(num_frames, golden["in.ref_latents"], motion, golden["in.cond_states"])
        conditioning = model.prepare_conditioning(golden["in.context"], features)
        (velocity,) = model(golden["in.latents"][None], golden["in.timestep"], clip_tokens, [conditioning])
    if model.patch_embedding.weight.dtype == torch.bfloat16:
        yield compare_bfloat16(*_scaled(golden.name, velocity[0], golden["out"]))
        return
    yield compare(golden.name, velocity[0], golden["out"], FORWARD_GATE)
    if num_ranks() > 1:  # inside, each rank sees its own tokens
        return

    traced = golden.with_prefix("trace.")
    seen = recorder.seen | _history(model, golden["in.motion_latents"])
    seen["seq_len_total"] = torch.tensor([clip_tokens.end])
    exact = {"audio_enc.in_shape", "seg_idx", "seq_len_total"}
    rope = {key for key in traced if key.endswith("rope_cos_sin")}
    last = f"block{len(model.blocks) - 1:02}.out_before_injection"
    if last in traced:  # the engine leaves out what nothing reads: there, all but the video
        traced[last] = traced[last][:, : seen[last].shape[1]]
    if close := [_scaled(key, seen[key], traced[key]) for key in sorted(traced.keys() - exact - rope)]:
        yield compare_all(f"{golden.name} trace", close, _TRACE_GATE)
    if counted := [(key, seen[key], traced[key]) for key in sorted(traced.keys() & exact)]:
        yield compare_all(f"{golden.name} counts", counted, EXACT)
    if rope:
        grids = _token_grids(clip_tokens, dropped=dropped)
        seen["rope_cos_sin"] = torch.view_as_real(rope_table(grids, model.config.head_dim))
        pairs = [(key, seen[key], traced[key]) for key in sorted(rope)]
        yield compare_all(f"{golden.name} rope", pairs, ROPE_GATE)


def _scaled(key: str, actual: Tensor, expected: Tensor) -> Pair:
    """Scale a pair of tensors to the size at which the gate was measured: rounding grows with the residual stream."""
    scale = max(1.0, expected.abs().max().item() / _GATED_ABSMAX)
    return key, actual / scale, expected / scale


class Recorder:
    """Hooks that record inputs and outputs of the modules of a transformer, under the names of the goldens.

    Results are copied as they appear, because the transformer goes on to work in their memory.
    """

    def __init__(self, model: S2VTransformer) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        first = model.blocks[0]
        self._watch(model.casual_audio_encoder, self._audio)
        self._watch(model.text_embedding, lambda _, output: self.seen.update(context_emb=output))
        self._watch(model.time_projection, self._modulation)
        self._watch(model.head, self._head)
        self._watch(first.get_submodule("self_attn"), self._self_attention)
        for name in ("cross_attn", "ffn"):
            self._watch(getattr(first, name), partial(self._in_out, f"block00.{name}"))
        for index, block in enumerate(model.blocks):
            self._watch_block(block, f"block{index:02}")
        for index, injector in enumerate(model.audio_injector.injector):
            self._watch(injector, partial(self._injection, f"inject{index}"))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: nn.Module, note: Any) -> None:
        self._handles.append(module.register_forward_hook(lambda _, args, output: note(args, output)))

    def _watch_block(self, block: nn.Module, name: str) -> None:
        """Note the input before the block runs, because it works in the memory of its input."""

        def note_input(_: nn.Module, args: Any) -> None:
            self.seen[f"{name}.in"] = args[0].clone()

        def note_output(_: Any, output: list[Tensor]) -> None:
            (result,) = output
            self.seen[f"{name}.out_before_injection"] = result.clone()

        self._handles.append(block.register_forward_pre_hook(note_input))
        self._watch(block, note_output)

    def _in_out(self, name: str, args: Any, output: Tensor) -> None:
        self.seen |= {f"{name}.in": args[0].clone(), f"{name}.out": output.clone()}

    def _self_attention(self, args: Any, output: Tensor) -> None:
        self._in_out("block00.self_attn", [args[1](args[0])], output)  # the tokens after their norm

    def _injection(self, name: str, args: Any, output: Tensor) -> None:
        self.seen |= {f"{name}.attn_in": args[0], f"{name}.residual": output}

    def _audio(self, args: Any, output: Any) -> None:
        (features, *_), (local, global_) = args, output
        self.seen |= {"audio_enc.in_shape": torch.tensor(features.shape)}
        self.seen |= {"audio_enc.local": local, "audio_enc.global": global_}
        self.seen |= {"merged_audio_emb": local[:, MOTION_LATENTS:], "audio_emb_global": global_[:, MOTION_LATENTS:]}

    def _modulation(self, _: Any, output: Tensor) -> None:
        """Join the modulation of the forward with that of timestep 0, which the clip tokens prepare before it."""
        e_16D = rearrange(output, "1 (six d) -> 1 six 1 d", six=6)
        self.seen["e0"] = torch.cat([e_16D, self.seen["e0"][:, :, -1:]], dim=2) if "e0" in self.seen else e_16D

    def _head(self, args: Any, output: Tensor) -> None:
        x_BND, e_1D = args
        self.seen |= {"head.in": x_BND, "head.e": e_1D, "head.out": output, "seg_idx": torch.tensor([x_BND.shape[1]])}


def _history(model: S2VTransformer, motion_latents: Tensor) -> dict[str, Tensor]:
    """Return the packed history, which the reference computes even where it is dropped."""
    tokens, grids = model.frame_packer(motion_latents, 2)
    table = rope_table(grids, model.config.head_dim)
    return {"framepack.tokens": tokens, "framepack.rope_cos_sin": torch.view_as_real(table)}


def _token_grids(clip_tokens: ClipTokens, *, dropped: bool) -> list[Grid]:
    num_frames, height, width = clip_tokens.latent_shape
    rows, columns = height // 2, width // 2
    history = () if dropped else motion_grids(height, width)
    return [video_grid(num_frames, rows, columns), reference_grid(rows, columns), *history]


def _framepack(model: S2VTransformer, golden: Golden) -> Iterator[CaseResult]:
    tokens_pairs: list[Pair] = []
    rope_pairs: list[Pair] = []
    for key in sorted(key for key in golden.tensors if key.endswith(".tokens")):
        mode, last_motion, length, _ = key.split(".")
        packer = FramePacker(model.config.in_dim, model.config.dim, mode)
        packer.load_state_dict(model.frame_packer.state_dict())
        tokens, grids = packer(golden[f"in.{length}"][None], int(last_motion.removeprefix("alm")))
        tokens_pairs.append(_scaled(key, tokens, golden[key]))
        rope_key = key.replace(".tokens", ".rope_cos_sin")
        rope_pairs.append((rope_key, torch.view_as_real(rope_table(grids, model.config.head_dim)), golden[rope_key]))
    yield compare_all(f"{golden.name} tokens", tokens_pairs, FORWARD_GATE)
    yield compare_all(f"{golden.name} rope", rope_pairs, ROPE_GATE)


def _time_embedding(model: S2VTransformer, golden: Golden) -> Iterator[CaseResult]:
    t = golden["t"]
    sinusoids = [key for key in golden.tensors if key.startswith("sinusoid")]
    pairs = [(key, timestep_sinusoid(t, golden[key].shape[1]), golden[key]) for key in sinusoids]
    yield compare_all(f"{golden.name} sinusoid", pairs, ROPE_GATE)
    embedding = model.time_embedding(timestep_sinusoid(t, model.config.freq_dim).float())
    projection = model.time_projection(embedding).unflatten(1, (6, -1))
    outputs = [("time_embedding_out", embedding), ("time_projection_out", projection)]
    yield compare_all(golden.name, [(key, actual, golden[key]) for key, actual in outputs], FORWARD_GATE)


def _audio_encoder(model: S2VTransformer, golden: Golden) -> Iterator[CaseResult]:
    pairs: list[Pair] = []
    for name in golden.stems(".in"):
        local, global_ = model.encode_audio(golden[f"{name}.in"])
        pairs += [(f"{name}.local_all", local, golden[f"{name}.local_all"])]
        pairs += [(f"{name}.global_all", global_, golden[f"{name}.global_all"])]
        pairs += [(f"{name}.local", local[:, MOTION_LATENTS:], golden[f"{name}.local"])]
        pairs += [(f"{name}.global", global_[:, MOTION_LATENTS:], golden[f"{name}.global"])]
    yield compare_all(golden.name, pairs, FORWARD_GATE)


def _rope_tables(golden: Golden) -> Iterator[CaseResult]:
    exact: list[Pair] = []
    sums: list[Pair] = []
    for key, expected in golden.tensors.items():
        if match := re.fullmatch(r"rope_params_table_\d+_head(\d+)_first(\d+)pos", key):
            head_dim, count = int(match[1]), int(match[2])
            # Every axis at the same position: one grid of a single token per position.
            table = torch.cat([rope_table([Grid((p,), (p,), (p,))], head_dim) for p in range(count)])
            exact.append((key, torch.view_as_real(table), expected))
            continue
        head_dim, height, width, what = _rope_key(key)
        rows, columns = height // 2, width // 2
        main = [video_grid(_ROPE_TABLE_FRAMES, rows, columns), reference_grid(rows, columns)]
        grids = main if what.startswith("main_ref") else list(motion_grids(height, width))
        table = torch.view_as_real(rope_table(grids, head_dim))
        if what.endswith("sum_per_channel"):
            sums.append((key, table.sum(dim=0), expected))
        else:
            exact.append((key, table[::_ROPE_ROW_STRIDE] if "rows_every" in what else table, expected))
    yield compare_all(f"{golden.name} tables", exact, ROPE_GATE)
    yield compare_all(f"{golden.name} sums", sums, _SUM_GATE)


def _rope_positions(path: Path) -> Iterator[CaseResult]:
    pairs: list[Pair] = []
    for key, expected in json.loads(path.read_text()).items():
        _, height, width, _ = _rope_key(key)
        grids = motion_grids(height, width)
        for grid, golden in zip(grids, expected["framepack_positions"], strict=True):
            for axis, positions in (("f", grid.times), ("h", grid.rows), ("w", grid.columns)):
                name = f"{key}{golden['name']}.{axis}"
                pairs.append((name, torch.tensor(positions), torch.tensor(golden[axis])))
        rows, columns = height // 2, width // 2
        main = video_grid(_ROPE_TABLE_FRAMES, rows, columns).num_tokens + reference_grid(rows, columns).num_tokens
        counts = [sum(grid.num_tokens for grid in grids), main]
        golden_counts = [expected["framepack_tokens"], expected[f"main_ref_tokens_T{_ROPE_TABLE_FRAMES}"]]
        pairs.append((f"{key}tokens", torch.tensor(counts), torch.tensor(golden_counts)))
    yield compare_all(path.stem, pairs, EXACT)


def _rope_key(key: str) -> tuple[int, int, int, str]:
    match = re.fullmatch(r"hd(\d+)\.lat(\d+)x(\d+)\.(\w*)", key)
    if match is None:
        raise ConfigurationError(f"rope case {key!r} is not of the form hd<d>.lat<h>x<w>.<what>")
    return int(match[1]), int(match[2]), int(match[3]), match[4]
