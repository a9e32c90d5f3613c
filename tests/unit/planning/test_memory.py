"""Check the formula of peak memory, and plans that do not fit."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from s2v_tasks.errors import PermanentError
from s2v_tasks.planning.estimate import ClipShape
from s2v_tasks.planning.memory import GIB, ONE_GPU, RenderSetup, check_memory, peak_memory_gib
from s2v_tasks.planning.warnings import offload_warnings
from s2v_tasks.schemas.model_card import GpuCard, ModelCard, load_gpu_card, load_model_card
from s2v_tasks.schemas.preset import load_presets
from tests.unit.planning.conftest import CONFIG, PlanOf

GPUS = list(yaml.safe_load((CONFIG / "gpus.yaml").read_text()))
PRESETS = list(load_presets(CONFIG))
TEN_SECONDS, THIRTY_SECONDS = 10 * 16000, 30 * 16000
# A picture that fills the size of each preset, of a shape that leaves the most tokens.
PICTURE = (1920, 1280)


def shape(width: int, height: int, infer_frames: int = 80, **changes: bool) -> ClipShape:
    fields = {"with_motion": True, "starts_chain": False, "ends_chain": True} | changes
    return ClipShape(width=width, height=height, infer_frames=infer_frames, **fields)


def gib(model: ModelCard, clip: ClipShape, setup: RenderSetup = ONE_GPU, *, guided: bool = True) -> float:
    return peak_memory_gib(clip, model, load_gpu_card(CONFIG, "l40s"), guided=guided, setup=setup)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", GPUS)
def test_a_plan_fits_to_the_last_byte(plan_of: PlanOf, model_14b: ModelCard, name: str, preset: str) -> None:
    """Each preset passes on a GPU with exactly the memory that it needs, and is refused with 1 MiB less."""
    gpu = load_gpu_card(CONFIG, name)
    plan = plan_of(TEN_SECONDS, preset=preset, image_size=PICTURE, gpu=gpu)
    needed = plan.estimate.peak_gpu_memory_gib
    check_memory(plan, model_14b, gpu.model_copy(update={"memory_gib": needed}), ONE_GPU)
    with pytest.raises(PermanentError, match=rf"needs {needed:.1f} GiB of GPU memory; expected at most .*{name}"):
        check_memory(plan, model_14b, gpu.model_copy(update={"memory_gib": needed - 1 / 1024}), ONE_GPU)


def test_a_plan_with_clips_of_one_shape_is_checked(plan_of: PlanOf, model_14b: ModelCard) -> None:
    """Clips in the middle of a chain, all of one shape, are checked, too."""
    gpu = load_gpu_card(CONFIG, "h100-sxm")
    plan = plan_of(THIRTY_SECONDS, image_size=PICTURE, gpu=gpu)
    check_memory(plan, model_14b, gpu, ONE_GPU)
    with pytest.raises(PermanentError, match="A clip of 80 frames"):
        check_memory(plan, model_14b, gpu.model_copy(update={"memory_gib": 20.0}), ONE_GPU)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", GPUS)
def test_every_preset_fits_every_gpu_with_tensor_cores(
    plan_of: PlanOf, model_14b: ModelCard, name: str, preset: str
) -> None:
    """Each preset of the released model fits 48, 80 and 141 GB, and 24 GB with offloaded blocks.

    The CPU's 8 GB hold the tiny model.
    """
    gpu = load_gpu_card(CONFIG, name)
    plan = plan_of(TEN_SECONDS, preset=preset, image_size=PICTURE, gpu=gpu)
    if name == "rtx4090":
        with pytest.raises(PermanentError, match="S2V_OFFLOAD=blocks with 26 GiB of host memory for each process"):
            check_memory(plan, model_14b, gpu, ONE_GPU)
        check_memory(plan, model_14b, gpu, RenderSetup(offloaded_blocks=True))
        return
    if name != "cpu":
        check_memory(plan, model_14b, gpu, ONE_GPU)
        return
    with pytest.raises(PermanentError, match="Choose a smaller size and shorter clips; or use a larger GPU"):
        check_memory(plan, model_14b, gpu, ONE_GPU)
    tiny = load_model_card(CONFIG, "tiny")
    check_memory(plan_of(TEN_SECONDS, preset=preset, image_size=PICTURE, gpu=gpu, model=tiny), tiny, gpu, ONE_GPU)


def test_1024x704_fits_48_gb(model_14b: ModelCard) -> None:
    """1024x704x80 fits 47.7 GB, with and without a successor; 1280x704x80, with a larger decode, does not."""
    usable = 47.7e9 / GIB
    assert gib(model_14b, shape(1024, 704)) < usable
    assert gib(model_14b, shape(1024, 704, ends_chain=False)) < usable
    assert gib(model_14b, shape(1280, 704)) > usable


def test_float8_weights_fit_24_gb_without_guidance(model_14b: ModelCard) -> None:
    """832x448x80 with a bf16 VAE fits an RTX 4090 with one branch, and not with two."""
    usable, setup = load_gpu_card(CONFIG, "rtx4090").memory_gib, RenderSetup(float8_weights=True, bfloat16_vae=True)
    alone, guided = (gib(model_14b, shape(832, 448), setup, guided=guided) for guided in (False, True))
    assert alone < usable < guided < usable + 1


def test_a_vae_in_bfloat16_needs_half_where_decoding_is_the_peak(model_14b: ModelCard) -> None:
    """A transformer without width leaves the VAE alone: its buffers have two bytes per number instead of four."""
    small = {"dim": 1, "ffn_dim": 1, "text_dim": 1, "transformer_parameters": 0, "vae_parameters": 0}
    vae = model_14b.model_copy(update=small)
    full, half = (gib(vae, shape(832, 448), RenderSetup(bfloat16_vae=bfloat16)) for bfloat16 in (False, True))
    assert full / half == pytest.approx(2, rel=0.001)


def test_the_smallest_changes_that_fit_are_named(plan_of: PlanOf, model_14b: ModelCard) -> None:
    """Each proposed change makes the plan fit, and a smaller change does not."""
    l40s = load_gpu_card(CONFIG, "l40s")
    plan = plan_of(TEN_SECONDS, size="1280*704", image_size=(2560, 1408), gpu=l40s)
    with pytest.raises(PermanentError) as caught:
        check_memory(plan, model_14b, l40s, ONE_GPU)
    message = str(caught.value)
    assert "A clip of 80 frames at 1280 x 704 needs 46" in message
    assert "expected at most 44.3, what l40s (S2V_GPU) has" in message
    assert (
        "Each of these alone fits: size 1152*640; S2V_VAE_PRECISION=bfloat16; S2V_WEIGHTS_DTYPE=fp8; "
        "S2V_OFFLOAD=blocks with 26 GiB of host memory for each process; S2V_NPROC_PER_NODE=2 with as many GPUs"
    ) in message


def test_only_more_gpus_than_now_are_named(plan_of: PlanOf, model_14b: ModelCard) -> None:
    """Two GPUs would fit if they shared the weights, but the plan has two already: four are named."""
    card = load_gpu_card(CONFIG, "rtx4090")
    plan = plan_of(TEN_SECONDS, size="480*832", image_size=PICTURE, gpu=card)
    two = RenderSetup(num_ranks=2, parallel_layout="cfg2")
    with pytest.raises(PermanentError) as caught:
        check_memory(plan, model_14b, card, two)
    assert "S2V_NPROC_PER_NODE=4 with as many GPUs" in str(caught.value)


def test_shorter_clips_are_named_where_denoising_is_the_peak(plan_of: PlanOf, model_14b: ModelCard) -> None:
    """If denoising is the peak, the longest clip that fits is proposed."""
    setup = RenderSetup(bfloat16_vae=True, first_block_cache=True)
    gpu = load_gpu_card(CONFIG, "l40s")
    plan = plan_of(TEN_SECONDS, preset="high", image_size=PICTURE, gpu=gpu, infer_frames=80)
    with pytest.raises(PermanentError, match=r"alone fits: infer_frames \d+; size") as caught:
        check_memory(plan, model_14b, gpu, setup)
    longest = int(str(caught.value).partition("infer_frames ")[2].partition(";")[0])
    assert gib(model_14b, shape(plan.width, plan.height, longest), setup) <= gpu.memory_gib
    assert gib(model_14b, shape(plan.width, plan.height, longest + 4), setup) > gpu.memory_gib


@pytest.mark.parametrize(
    "changes",
    [
        {"num_ranks": 2},
        {"num_ranks": 4},
        {"float8_weights": True},
        {"num_ranks": 2, "parallel_layout": "ulysses2,fsdp"},
        {"num_ranks": 2, "parallel_layout": "cfg2,fsdp"},
    ],
)
def test_ranks_and_float8_need_less(model_14b: ModelCard, changes: dict[str, Any]) -> None:
    """More GPUs, sharded weights and float8 weights lower the peak of a GPU."""
    clip = shape(1024, 704)
    assert gib(model_14b, clip, replace(ONE_GPU, **changes)) < gib(model_14b, clip) - 1


def test_float8_weights_are_not_sharded(model_14b: ModelCard) -> None:
    """Float8 weights are whole on each of two GPUs of 24 GB, as the engine keeps them."""
    gpu, clip = load_gpu_card(CONFIG, "rtx4090"), shape(832, 448)
    auto, whole = (RenderSetup(2, layout, float8_weights=True) for layout in ("auto", "cfg2"))
    needs = [peak_memory_gib(clip, model_14b, gpu, guided=True, setup=setup) for setup in (auto, whole)]
    assert needs[0] == needs[1]


def test_offloaded_blocks_leave_two_on_the_gpu(model_14b: ModelCard) -> None:
    """38 of 40 blocks stay on the host: 832x448x80 fits 24 GB in bf16."""
    clip, block = shape(832, 448), 2 * (8 * 5120**2 + 2 * 5120 * 13824)
    offloaded = gib(model_14b, clip, RenderSetup(offloaded_blocks=True))
    assert gib(model_14b, clip) - offloaded == pytest.approx(38 * block / GIB)
    assert offloaded < 14


def test_compiled_blocks_pass_all_tokens_at_once(plan_of: PlanOf, model_14b: ModelCard) -> None:
    """The feed-forward then keeps the hidden layer of all tokens. A refused plan names the setting."""
    eager, compiled = RenderSetup(bfloat16_vae=True), RenderSetup(bfloat16_vae=True, compiled=True)
    small, large = shape(832, 448), shape(1024, 704)
    assert gib(model_14b, small) == gib(model_14b, small, RenderSetup(compiled=True))
    hidden, attention = 2 * 5120 + 4 * 13824, (16 - 8) * 5120
    more = gib(model_14b, large, compiled) - gib(model_14b, large, eager)
    assert more * GIB == pytest.approx(63_360 * (hidden - attention))
    gpu = load_gpu_card(CONFIG, "l40s").model_copy(update={"memory_gib": gib(model_14b, large, eager)})
    plan = plan_of(TEN_SECONDS, size="1024*704", image_size=(1024, 704), gpu=gpu)
    check_memory(plan, model_14b, gpu, eager)
    with pytest.raises(PermanentError, match="S2V_COMPILE=false"):
        check_memory(plan, model_14b, gpu, compiled)


@pytest.mark.parametrize(("speed", "waits"), [(25.0, False), (0.1, True)])
def test_a_plan_states_the_copies_of_offloaded_blocks(
    plan_of: PlanOf, model_14b: ModelCard, speed: float, waits: bool
) -> None:
    """The warning has the host memory and the seconds of copying and computing per step."""
    gpu = load_gpu_card(CONFIG, "rtx4090").model_copy(update={"host_gb_per_second": speed})
    assert not [text for text in plan_of(TEN_SECONDS, gpu=gpu).warnings if "offloaded" in text]
    plan = plan_of(TEN_SECONDS, gpu=gpu, setup=RenderSetup(offloaded_blocks=True))
    (warning,) = [text for text in plan.warnings if "offloaded" in text]
    assert "each process needs 26.2 GiB of host memory" in warning
    assert f"copies them in about {28.1 / speed:.2g} s" in warning
    assert ("steps wait for them" in warning) is waits


def test_a_layout_of_the_settings_counts(model_14b: ModelCard) -> None:
    """With cfg2 on two ranks, a rank needs as much memory as one rank without guidance."""
    clip = shape(1024, 704, 112)
    cached = RenderSetup(first_block_cache=True)
    split = RenderSetup(num_ranks=2, parallel_layout="cfg2", first_block_cache=True)
    assert gib(model_14b, clip, split) == pytest.approx(gib(model_14b, clip, cached, guided=False))
    assert gib(model_14b, clip, split) < gib(model_14b, clip, cached)


def test_the_formula_follows_the_measured_peaks(model_14b: ModelCard) -> None:
    """Weights and VAE decode equal the measured 33.1 GB of the released model, and 0.84 GB of text."""
    decoding = gib(model_14b, shape(1024, 704)) * GIB / 1e9
    assert decoding == pytest.approx(33.1 + 0.84 + 12.0, abs=0.1)


def test_cards_of_gpus_have_speeds_in_order() -> None:
    """In dense figures bf16 is at least as fast as TF32, and TF32 as float32."""
    cards: list[GpuCard] = [load_gpu_card(CONFIG, name) for name in GPUS]
    assert all(card.bf16_tflops >= card.tf32_tflops >= card.fp32_tflops for card in cards)


def test_the_copies_of_offloaded_blocks_are_compared_with_the_shortest_clip(model_14b: ModelCard) -> None:
    """Copies are compared with the steps of the shortest clip, which wait first, and without guidance with half."""
    gpu = load_gpu_card(CONFIG, "rtx4090")
    short, long = shape(832, 448, 40), shape(832, 448, 80)

    def seconds(*shapes: ClipShape, guided: bool = True) -> float:
        (sentence,) = offload_warnings(shapes, model_14b, gpu, RenderSetup(offloaded_blocks=True), guided=guided)
        return float(sentence.partition("computes for ")[2].split()[0])

    assert seconds(long, short) == seconds(short, long) == seconds(short) < 0.6 * seconds(long)
    assert seconds(short, guided=False) == pytest.approx(seconds(short) / 2, rel=0.1)
