"""Check the transformer: keys, precision, refused inputs, and parts that the goldens do not cover."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from s2v_tasks.engine.models import blocks, rope
from s2v_tasks.engine.models.attention import CrossAttention
from s2v_tasks.engine.models.config import S2VConfig, unknown_fields
from s2v_tasks.engine.models.forward_inputs import ClipTokens, Conditioning
from s2v_tasks.engine.models.rope import motion_grids, spread, video_grid
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError, PermanentError
from s2v_tasks.verification.parity.forward import Recorder

KEY_LIST = Path(__file__).with_name("s2v_14b_state_dict.tsv")
SMALL = {
    "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 3, "freq_dim": 16, "text_dim": 12, "text_len": 8,
    "audio_dim": 6, "audio_inject_layers": [0, 2],
}  # fmt: skip
T, SIDE = 2, 8


@pytest.fixture(scope="module")
def model() -> S2VTransformer:
    torch.manual_seed(0)
    return randomised(S2VTransformer(S2VConfig.from_json(SMALL))).requires_grad_(requires_grad=False)


def randomised(model: S2VTransformer) -> S2VTransformer:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def prepare(model: S2VTransformer, cond: Tensor | None = None) -> tuple[ClipTokens, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    reference, motion = (torch.randn(1, 16, n, SIDE, SIDE, generator=generator) for n in (1, 19))
    clip_tokens = model.prepare_clip_tokens(T, reference, motion, cond)
    context, audio = torch.randn(5, 12, generator=generator), torch.randn(4 * T, 25, 6, generator=generator)
    return clip_tokens, model.prepare_conditioning(context, audio)


def latents() -> Tensor:
    return torch.randn(1, 16, T, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def velocity(model: S2VTransformer, clip_tokens: ClipTokens, *conditionings: Conditioning) -> Tensor:
    """Return the velocity for the last of `conditionings`."""
    return model(latents(), torch.tensor([500]), clip_tokens, conditionings)[-1]  # type: ignore[no-any-return]


def test_keys_and_shapes_are_those_of_the_official_checkpoint() -> None:
    """The transformer has exactly the 1260 keys and shapes of Wan2.2-S2V-14B."""
    with torch.device("meta"):
        state = S2VTransformer(S2VConfig()).state_dict()
    rows = [line.split("\t") for line in KEY_LIST.read_text().splitlines()[1:]]
    expected = {key: tuple(int(side) for side in shape.split("x")) for key, shape, _ in rows}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert sum(value.numel() for value in state.values()) == 16_295_755_609


def test_released_config_gives_the_defaults() -> None:
    """The config.json of the released checkpoint, with all its fields, is accepted and is the default."""
    released = {
        "_class_name": "WanModel_S2V", "_diffusers_version": "0.33.0", "model_type": "s2v", "dim": 5120,
        "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16, "freq_dim": 256,
        "text_len": 512, "eps": 1e-6, "add_last_motion": True, "motion_token_num": 1024, "enable_adain": True,
        "adain_mode": "attn_norm", "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
        "audio_dim": 1024, "num_audio_token": 4, "cond_dim": 16, "zero_init": True, "zero_timestep": True,
        "enable_motioner": False, "enable_framepack": True, "framepack_drop_mode": "padd", "enable_tsm": False,
        "trainable_token_pos_emb": False,
    }  # fmt: skip
    assert S2VConfig.from_json(released) == S2VConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 1}, "unknown fields"),
        ({"model_type": "t2v"}, "only 's2v' is supported"),
        ({"enable_motioner": True}, "only False is supported"),
        ({"audio_inject_layers": [0, 3]}, "are not layers 0..2"),
        ({"num_heads": 5}, "not divisible by num_heads"),
        ({"framepack_drop_mode": "pad"}, "'padd' or 'drop'"),
    ],
)
def test_a_config_of_another_model_is_refused(change: dict[str, object], message: str) -> None:
    """Unknown fields, other architectures and impossible dimensions are named."""
    with pytest.raises(ConfigurationError, match=message):
        S2VConfig.from_json(SMALL | change)


def test_unknown_fields_of_this_model_are_ignored() -> None:
    """A field that only training reads does not keep a config.json that states the model from being used."""
    assert S2VConfig.from_json(SMALL | {"model_type": "s2v", "dropout": 0.1}) == S2VConfig.from_json(SMALL)
    assert unknown_fields(SMALL | {"_class_name": "WanModel_S2V", "dropout": 0.1}) == ["dropout"]


def test_no_pose_equals_a_pose_of_zeros(model: S2VTransformer) -> None:
    """Leaving the pose out is the same as embedding zeros, to the bit."""
    with_zeros, without = (velocity(model, *prepare(model, cond)) for cond in (torch.zeros(1, 16, T, SIDE, SIDE), None))
    assert torch.equal(with_zeros, without)


def test_branches_that_share_equal_separate_branches(model: S2VTransformer) -> None:
    """Branches that share computations give, bit for bit, the results of separate ones; inputs do not change."""
    clip_tokens, one = prepare(model)
    other = model.prepare_conditioning(torch.randn(8, 12), torch.randn(4 * T, 25, 6))
    assert torch.equal(velocity(model, clip_tokens, one, other), velocity(model, clip_tokens, other))
    assert torch.equal(velocity(model, clip_tokens, other, one), velocity(model, clip_tokens, one))


@pytest.mark.parametrize(("num_rows", "keys"), [(0, 1), (5, 6), (6, 7), (7, 8), (8, 8)])
def test_the_padding_of_a_prompt_counts_as_often_as_it_is_long(model: S2VTransformer, num_rows: int, keys: int) -> None:
    """In fp32 one weighted key replaces the equal rows of padding; in bf16 each row has its own key."""
    context = torch.randn(num_rows, 12)
    text = model.prepare_text(context)[1]
    assert text.keys.shape[1] == keys
    padded = model.blocks[1].cross_attn.keys_values(  # type: ignore[operator,union-attr]
        model.text_embedding(torch.cat([context, torch.zeros(8 - num_rows, 12)])[None])
    )
    tokens = torch.randn(1, 3, 48)
    expected = model.blocks[1].cross_attn(tokens, padded)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(model.blocks[1].cross_attn(tokens, text), expected, rtol=0, atol=1e-5)  # type: ignore[operator,union-attr]
    half = S2VTransformer(model.config).to(torch.bfloat16)
    assert half.prepare_text(context.bfloat16())[1].keys.shape[1] == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_work_in_chunks_of_tokens_changes_only_rounding(
    model: S2VTransformer, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Clips of real size are rotated and fed forward in several chunks, of which one crosses the end of the video."""
    one = S2VTransformer(model.config).to(dtype).requires_grad_(requires_grad=False)
    one.load_state_dict(model.state_dict())
    clip_tokens, cond = prepare(one)
    whole = velocity(one, clip_tokens, cond)
    monkeypatch.setattr(blocks, "CHUNK_TOKENS", 7)
    monkeypatch.setattr(rope, "_CHUNK_TOKENS", 5)
    error = (velocity(one, clip_tokens, cond) - whole).norm() / whole.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-3)


def test_bf16_weights_follow_the_precision_policy(model: S2VTransformer) -> None:
    """Tokens are embedded in bf16, the residual stream and the modulation are fp32, and products are bf16."""
    half = S2VTransformer(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    with torch.inference_mode(), Recorder(half) as recorder:
        clip_tokens, conditioning = prepare(half)
        (out,) = half(latents().bfloat16(), torch.tensor([500]), clip_tokens, [conditioning])
    seen = {key: value.dtype for key, value in recorder.seen.items()}
    wide, narrow = torch.float32, torch.bfloat16
    assert out.dtype is wide
    assert {seen[key] for key in ("block00.self_attn.out", "block00.ffn.out")} == {narrow}
    assert {seen[key] for key in ("block00.in", "block01.in", "block02.in", "inject0.attn_in", "head.in", "e0")} == {
        wide
    }
    assert (seen["inject0.residual"], seen["audio_enc.local"]) == (narrow, wide)
    injector = half.audio_injector.injector[0]
    assert isinstance(injector, CrossAttention)
    assert injector.queries(torch.zeros(1, 4, 48)).dtype is narrow
    assert (clip_tokens.extra_BMD.dtype, conditioning.text[0].keys.dtype) == (narrow, narrow)


def test_bf16_weights_stay_close_to_fp32(model: S2VTransformer) -> None:
    """The precision policy changes the output by less than 3 % of its norm."""
    half = S2VTransformer(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    exact, rounded = (velocity(one, *prepare(one)) for one in (model, half))
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("frame", [0, 1, 2, 3, 7, 8, 11])
def test_audio_reaches_the_latent_frames_in_its_receptive_field(model: S2VTransformer, frame: int) -> None:
    """Audio of frames 4j-5 to 4j+3 reaches latent frame j, and audio of the first frame also the history."""
    audio = torch.randn(12, 25, 6, generator=torch.Generator().manual_seed(3))
    changed = audio.clone()
    changed[frame] += 1
    one, other = (model.prepare_audio(x)[0].tokens.keys for x in (audio, changed))
    reached = [j for j in range(3) if not torch.equal(one[j], other[j])]
    assert reached == [j for j in range(3) if 4 * j - 5 <= frame <= 4 * j + 3]


def test_coarse_positions_cover_the_patch_grid() -> None:
    """Coarse grids of the history go from the first to the last patch, rounded down; a single sample is at 0."""
    assert spread(7, 28) == (0, 4, 9, 13, 18, 22, 27)
    assert spread(1, 4) == (0,)
    newest, middle, oldest = motion_grids(8, 16)
    assert (newest.times, middle.times, oldest.times) == ((-1,), (-3,), (-19, -14, -9, -4))
    assert (newest.num_tokens, middle.num_tokens, oldest.num_tokens) == (32, 8, 8)
    assert video_grid(3, 4, 8).num_tokens == 96


def test_inputs_that_do_not_fit_are_refused(model: S2VTransformer) -> None:
    """Latent sides, prompt length, speech width and clip length are checked with the value in the message."""
    with pytest.raises(PermanentError, match="12x8 cannot be packed"):
        model.prepare_clip_tokens(T, torch.zeros(1, 16, 1, 8, 12), None, None)
    with pytest.raises(PermanentError, match="prompt has 9 tokens; at most 8"):
        model.prepare_conditioning(torch.zeros(9, 12), torch.zeros(4, 25, 6))
    with pytest.raises(PermanentError, match="expected \\[25, 6\\]"):
        model.prepare_conditioning(torch.zeros(1, 12), torch.zeros(4, 25, 7))
    clip_tokens, conditioning = prepare(model)
    with pytest.raises(PermanentError, match="do not fit the clip"):
        model(torch.zeros(1, 16, T + 1, SIDE, SIDE), torch.tensor([1]), clip_tokens, [conditioning])
