"""Check the clip loop: numbers of frames, the chain of motion states, and reuse of constant values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor

from s2v_tasks.engine.clip import Callbacks, ClipInputs, ClipOutput, MotionState, Sampling, motion_frames_needed
from s2v_tasks.engine.encoders.vae import Vae, key_pairs
from s2v_tasks.engine.images import fit_pose
from s2v_tasks.engine.options import EngineOptions, NoiseDevice
from s2v_tasks.engine.pipeline import S2VPipeline, _NewestFrames
from s2v_tasks.errors import PermanentError
from tests.engine.small_pipeline import SIDE, CountingCodec, inputs, make_pipeline

SAMPLING = Sampling(sample_steps=2, sample_guide_scale=4.0, sample_shift=3.0, sample_solver="unipc")
FAST = replace(SAMPLING, sample_steps=1, sample_guide_scale=1.0)


@pytest.fixture(scope="module")
def pipeline() -> S2VPipeline:
    return make_pipeline()


def render(pipeline: S2VPipeline, clip: ClipInputs, sampling: Sampling = SAMPLING) -> ClipOutput:
    return pipeline.render_clip(clip, sampling)


def reloaded(motion: MotionState, folder: Path) -> MotionState:
    save_file({"latents": motion.latents, "frames": motion.frames}, folder / "motion.safetensors")
    return MotionState(**load_file(folder / "motion.safetensors"))


def render_chain(
    pipeline: S2VPipeline, lengths: list[int], folder: Path | None = None, keep: int | None = None
) -> list[np.ndarray]:
    """Return the frames of each clip of a chain; with `folder`, each motion state is written to disk and read."""
    motion = None
    frames = []
    for index, length in enumerate(lengths):
        needed = motion_frames_needed(lengths[index + 1 :])
        kept = needed if keep is None or needed is None else keep
        output = render(pipeline, inputs(length, seed=index, motion=motion, keep_motion_frames=kept), FAST)
        motion = output.motion
        frames.append(output.frames_u8)
        if folder is not None and motion is not None:
            motion = reloaded(motion, folder)
    return frames


def test_first_clip_holds_the_fourth_frame_over_the_three_that_are_lost(pipeline: S2VPipeline) -> None:
    """The first clip repeats its fourth frame in place of the three frames that the reference drops."""
    corrected = render(pipeline, inputs(keep_motion_frames=0))
    reference = render(make_pipeline(compat="reference"), inputs(keep_motion_frames=0))
    assert corrected.frames_u8.shape == (16, SIDE, SIDE, 3)
    assert corrected.frames_u8.dtype == np.uint8
    assert np.array_equal(corrected.frames_u8[3:], reference.frames_u8)
    assert all(np.array_equal(corrected.frames_u8[k], reference.frames_u8[0]) for k in range(3))
    assert not np.array_equal(corrected.frames_u8[3], corrected.frames_u8[4])
    assert corrected.motion is not None
    assert reference.motion is not None
    assert torch.equal(corrected.motion.latents, reference.motion.latents)


def test_later_clips_have_all_their_frames(pipeline: S2VPipeline) -> None:
    """A clip with a motion state has all its frames, and repeats none."""
    _, later = render_chain(pipeline, [16, 16])
    assert later.shape[0] == 16
    assert not np.array_equal(later[0], later[3])


@pytest.mark.parametrize("lengths", [[16, 44, 80, 20, 16], [16, 16, 16, 16, 16, 16, 16], [80, 80, 76]])
def test_a_chain_continued_from_disk_equals_one_that_never_stopped(
    pipeline: S2VPipeline, tmp_path: Path, lengths: list[int]
) -> None:
    """A state from memory or from disk, with the fewest frames or all 73, gives the same bytes."""
    expected = render_chain(pipeline, lengths, keep=73)
    resumed = render_chain(pipeline, lengths, tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(expected, resumed, strict=True))


def test_a_chain_with_the_real_vae_continues_bit_for_bit(tmp_path: Path) -> None:
    """With the convolutional VAE, a reloaded state gives the same bytes, too."""
    torch.manual_seed(1)
    weights = AutoencoderKLWan(base_dim=8).state_dict()
    vae = Vae.from_state_dict({official: weights[library] for official, library in key_pairs()}, "cpu")
    pipeline = make_pipeline(vae)
    motion = render(pipeline, inputs(keep_motion_frames=0), FAST).motion
    assert motion is not None
    one, other = (render(pipeline, inputs(motion=m), FAST).frames_u8 for m in (motion, reloaded(motion, tmp_path)))
    assert np.array_equal(one, other)


def test_frames_are_passed_on_as_they_are_decoded(tmp_path: Path) -> None:
    """Frames are passed on in pieces of at most four, each before the next latent is decoded."""
    torch.manual_seed(1)
    vae = Vae(AutoencoderKLWan(base_dim=8).eval(), "cpu")
    pipeline = make_pipeline(vae)
    first = render(pipeline, inputs(keep_motion_frames=57), FAST)
    for clip, expected in ((inputs(keep_motion_frames=57), [3, 1, 4, 4, 4]), (inputs(motion=first.motion), [4] * 4)):
        decoded: list[int] = []
        counted = vae.model.decoder.conv_out.register_forward_hook(lambda *_args, seen=decoded: seen.append(1))
        pieces: list[tuple[int, Tensor]] = []
        pipeline.stream_clip(
            clip, FAST, Callbacks(lambda piece, to=pieces, seen=decoded: to.append((len(seen), piece)))
        )
        counted.remove()
        assert [len(piece) for _, piece in pieces] == expected
        before = [count for count, _ in pieces]
        assert before == sorted(before)
        assert before[-2] == before[-1] - 2  # a latent passes the last level in two calls
        whole = render(pipeline, clip, FAST).frames_u8
        assert np.array_equal(torch.cat([piece for _, piece in pieces]).numpy(), whole)


@pytest.mark.parametrize(
    ("later", "needed"), [([], None), ([80], 0), ([80, 80], 0), ([16], 0), ([16, 80], 57), ([44, 16, 16], 29)]
)
def test_a_state_carries_no_more_frames_than_needed(later: list[int], needed: int | None) -> None:
    """A state keeps old pixel frames only if a later clip is too short to fill the history itself."""
    assert motion_frames_needed(later) == needed


def test_the_history_of_a_short_first_clip_starts_grey(pipeline: S2VPipeline) -> None:
    """The history before the first 13 valid frames of a clip of 16 frames is mid grey."""
    motion = render(pipeline, inputs(keep_motion_frames=73)).motion
    assert motion is not None
    assert motion.frames.shape[2] == 73
    assert motion.frames[:, :, :60].abs().max() == 0
    assert motion.frames[:, :, 60:].abs().amin(dim=(0, 1, 3, 4)).numel() == 13
    assert torch.equal(pipeline.vae.encode(motion.frames), motion.latents)


def test_only_the_newest_frames_stay_in_memory() -> None:
    """Older pieces are released while a clip is decoded; the oldest piece that is needed is kept whole."""
    newest = _NewestFrames(10)
    for number in range(60):
        newest.add(torch.full((1, 3, 4, SIDE, SIDE), number))
    assert newest.frames[0, 0, :, 0, 0].tolist() == [57, 57, *[58] * 4, *[59] * 4]
    assert sum(piece.shape[2] for piece in newest._pieces) == 12


def test_start_from_ref_precedes_the_clip_with_the_picture(pipeline: S2VPipeline) -> None:
    """Six frames of the picture precede the first clip, which then loses no frames."""
    output = render(pipeline, inputs(start_from_ref=True, keep_motion_frames=73))
    assert output.motion is not None
    picture = torch.from_numpy(np.asarray(inputs().reference_u8)).permute(2, 0, 1) / 255 * 2 - 1
    assert output.frames_u8.shape[0] == 16
    assert not np.array_equal(output.frames_u8[0], output.frames_u8[3])
    assert torch.allclose(output.motion.frames[0, :, 51:57], picture[:, None].expand(-1, 6, -1, -1))
    assert output.motion.frames[:, :, :51].abs().max() == 0


def test_the_last_clip_leaves_no_state_and_encodes_none() -> None:
    """Without a successor only the picture is encoded, neither the grey history nor a new one."""
    codec = CountingCodec()
    assert render(make_pipeline(vae=codec), inputs()).motion is None
    assert codec.encoded_frames == [1]


@pytest.mark.parametrize(("scale", "calls"), [(4.0, 4), (1.5, 4), (1.0, 2), (0.5, 2)])
def test_guidance_costs_a_second_branch_and_steps_are_reported(scale: float, calls: int) -> None:
    """Each step has one forward, or two with guidance above 1, and is reported once."""
    pipeline = make_pipeline()
    velocities: list[int] = []
    pipeline.transformer.head.register_forward_hook(lambda *_: velocities.append(1))
    steps: list[tuple[int, int]] = []
    sampling = replace(SAMPLING, sample_guide_scale=scale)
    pipeline.render_clip(inputs(), sampling, Callbacks(on_step=lambda done, total: steps.append((done, total))))
    assert len(velocities) == calls
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_each_clip_has_its_own_prompt(scale: float) -> None:
    """Cached values of a prompt are used only for clips with that prompt, in any order."""
    base = inputs()
    longer = torch.cat([base.context, base.context[:1]])
    variants = [
        base,
        replace(base, context=base.context * 2),
        replace(base, context_null=base.context_null * 2),
        replace(base, context=longer),
        replace(base, context=base.context.clone()),
    ]
    kept = make_pipeline()
    for clip in [*variants, *reversed(variants)]:
        sampling = replace(SAMPLING, sample_guide_scale=scale)
        assert np.array_equal(render(kept, clip, sampling).frames_u8, render(make_pipeline(), clip, sampling).frames_u8)
    guided, unguided = replace(SAMPLING, sample_guide_scale=4.0), replace(SAMPLING, sample_guide_scale=1.0)
    for sampling in (guided, unguided, guided):
        assert np.array_equal(render(kept, base, sampling).frames_u8, render(make_pipeline(), base, sampling).frames_u8)


def test_a_prompt_is_prepared_once_for_the_clips_that_share_it(
    pipeline: S2VPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consecutive clips with the same prompt prepare it once."""
    prepared = []
    real = pipeline.transformer.prepare_text
    monkeypatch.setattr(pipeline.transformer, "prepare_text", lambda text: prepared.append(text) or real(text))
    for context in (torch.ones(5, 12), torch.ones(5, 12), torch.zeros(5, 12)):
        render(pipeline, inputs(context=context))
    assert len(prepared) == 4


def test_the_seed_decides_the_clip(pipeline: S2VPipeline) -> None:
    """The same seed gives the same bytes, another seed gives others."""
    one, same, other = (render(pipeline, inputs(seed=seed)).frames_u8 for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("noise_device", ["run", "cpu"])
def test_a_clip_begins_with_the_noise_of_its_seed(noise_device: NoiseDevice) -> None:
    """Draw it in the dtype of the weights, or in fp32 where it must be the same on every device."""
    pipeline = make_pipeline(dtype=torch.bfloat16)
    pipeline.options = EngineOptions(noise_device=noise_device)
    seen: list[Tensor] = []
    pipeline.transformer.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    render(pipeline, inputs(seed=11), FAST)
    (latents,) = seen
    drawn_as = torch.bfloat16 if noise_device == "run" else torch.float32
    expected = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(11), dtype=drawn_as)
    assert torch.equal(latents[0], expected.to(torch.bfloat16))
    assert not torch.equal(latents[0].float(), expected.float()) or noise_device == "run"


def test_a_pose_that_ends_early_goes_on_in_black(pipeline: S2VPipeline) -> None:
    """A short pose equals the same pose followed by black frames, and differs from no pose."""
    pose = torch.rand(1, 3, 5, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    padded = torch.cat([pose, torch.full((1, 3, 11, SIDE, SIDE), -1.0)], dim=2)
    short, full, none = (render(pipeline, inputs(pose=p)).frames_u8 for p in (pose, padded, None))
    assert np.array_equal(short, full)
    assert not np.array_equal(short, none)


def test_a_pose_that_has_ended_is_black(pipeline: S2VPipeline) -> None:
    """A clip after the end of the pose video is rendered with a black pose."""
    ended = fit_pose(np.empty((0, 90, 120, 3), dtype=np.uint8), SIDE, SIDE, compat="corrected")
    black = torch.full((1, 3, 16, SIDE, SIDE), -1.0)
    one, other = (render(pipeline, inputs(pose=pose)).frames_u8 for pose in (ended, black))
    assert np.array_equal(one, other)


def test_bf16_weights_render_a_clip() -> None:
    """With bf16 weights, noise and latents are bf16, and the clip has all its frames."""
    pipeline = make_pipeline(dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    pipeline.transformer.register_forward_hook(lambda _m, args, _o: seen.append(args[0].dtype))
    assert render(pipeline, inputs()).frames_u8.shape[0] == 16
    assert set(seen) == {torch.bfloat16}


def test_inputs_that_do_not_fit_are_refused(pipeline: S2VPipeline) -> None:
    """The message names a wrong number of frames, a pose of another size, or a state with too few frames."""
    for num_frames in (0, 2, 50, 51, 53):
        with pytest.raises(PermanentError, match=f"a clip of {num_frames} frames"):
            render(pipeline, inputs(num_frames))
    assert render(pipeline, inputs(4)).frames_u8.shape[0] == 4
    for num_frames in (17, 20):
        with pytest.raises(PermanentError, match=rf"has {num_frames} frames of \[64, 64\]; expected at most 16 frames"):
            render(pipeline, inputs(pose=torch.zeros(1, 3, num_frames, SIDE, SIDE)))
    with pytest.raises(PermanentError, match=r"frames of \[128, 64\]; expected at most 16 frames of \[64, 64\]"):
        render(pipeline, inputs(pose=torch.zeros(1, 3, 16, SIDE * 2, SIDE)))
    with pytest.raises(PermanentError, match="the pose has 5 frames of"):
        render(pipeline, inputs(pose=torch.zeros(1, 3, 5, SIDE, SIDE * 2)))
    state = MotionState(torch.zeros(1, 16, 19, 8, 8), torch.zeros(1, 3, 5, SIDE, SIDE))
    with pytest.raises(PermanentError, match="carries 5 pixel frames, the next clip needs 57"):
        render(pipeline, inputs(motion=state, keep_motion_frames=0))


def test_latents_that_are_not_finite_end_the_render_before_they_are_decoded() -> None:
    """One NaN weight is an error of the clip, and no frame is passed on."""
    pipeline = make_pipeline()
    next(iter(pipeline.transformer.blocks[0].parameters())).view(-1)[0] = torch.nan
    frames: list[Tensor] = []
    with pytest.raises(PermanentError, match="the latents of the clip have NaN or infinite values"):
        pipeline.stream_clip(inputs(), FAST, Callbacks(frames.append))
    assert frames == []
