"""Warnings of a plan: valid choices and inputs that may have surprising results."""

from collections.abc import Iterator, Sequence

from s2v_tasks.planning.chains import SENTENCE_PAUSE_SECONDS
from s2v_tasks.planning.estimate import GIB, ClipShape, forward_flops
from s2v_tasks.planning.memory import RenderSetup, block_bytes
from s2v_tasks.planning.resolution import cropped_share
from s2v_tasks.schemas.manifest import StagedFaces, StagedSound
from s2v_tasks.schemas.model_card import GpuCard, ModelCard
from s2v_tasks.schemas.plan import FPS, Cut, InputFacts, Sampling, SpeechFacts
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import parse_size

PREVIEW_MARK = "Preview quality"
PROMPT_MARK = "The prompt may be too long"
NOTABLE_CROP = 0.10
NOTABLE_POSE_SHORTFALL = 0.10
SILENT_BELOW_DBFS = -60.0
SMALL_FACE_SHARE = 0.05
PROFILE_TURN = 0.6
COVERED_BELOW = 0.5  # confidence of the landmarks
NOTABLE_LEAD_IN_SECONDS = 2.0
MOSTLY_SILENT = 0.5
STEADY_BELOW_DB = 2.0
NOTABLE_CLIPPING = 0.005
BYTES_PER_TOKEN = 4  # of UTF-8, an assumption: the tokenizer is in the snapshot, which this process may not have
NOTABLE_SHORTFALL = 0.75  # sides are multiples of 64: a normal video of size 480*832 keeps 80 % of its pixels or more


def clip_count_warnings(num_clip: int | None, needed: int, num_frames: int, speech: SpeechFacts) -> Iterator[str]:
    """Warn of a number of clips that is smaller or larger than the speech needs."""
    seconds = float(speech.duration_seconds)
    if num_clip is not None and num_clip < needed:
        left_out = seconds - num_frames / FPS
        yield (
            f"This is a preview: num_clip {num_clip} covers {num_frames / FPS:.2f} s and leaves out the last "
            f"{left_out:.2f} s of {seconds:.2f} s of speech, which needs {needed} clips."
        )
    if num_clip is not None and num_clip > needed:
        yield f"num_clip {num_clip} is reduced to {needed}: {seconds:.2f} s of speech need only {needed}."


def preview_warning(job_id: str, sampling: Sampling) -> str:
    """Return the sentence that marks a video as a preview, with the command for the final video."""
    guidance = "without guidance" if sampling.guided_steps == 0 else "with guidance"
    return (
        f"{PREVIEW_MARK}: {sampling.sample_steps} steps {guidance}, less detail and motion. "
        f"`s2v rerun {job_id} --preset high` renders the same clips and seeds at full quality."
    )


def prompt_warnings(prompt: str, model: ModelCard) -> Iterator[str]:
    """Warn of a prompt that probably has more tokens than the text encoder reads, which refuses it."""
    tokens = len(prompt.encode()) / BYTES_PER_TOKEN
    if tokens > model.text_len:
        yield (
            f"{PROMPT_MARK}: it has {len(prompt)} characters, about {tokens:.0f} tokens. The model reads at most "
            f"{model.text_len}, and more end the job before its first clip. Shorten it."
        )


def offload_warnings(
    shapes: Sequence[ClipShape], model: ModelCard, gpu: GpuCard, setup: RenderSetup, *, guided: bool
) -> Iterator[str]:
    """Yield a warning with the copy time, computing time and host memory of offloaded blocks, for the shortest clip."""
    if not setup.offloaded_blocks or not shapes:
        return
    copied = model.num_layers * block_bytes(model)
    copying = copied / (gpu.host_gb_per_second * 1e9)
    flops = min(forward_flops(shape, model).per_step(2 if guided else 1) for shape in shapes)
    computing = flops / (gpu.bf16_tflops * 1e12 * gpu.utilization)
    slower = "" if copying < computing else " The copies take longer, so steps wait for them."
    yield (
        f"The blocks are offloaded (S2V_OFFLOAD): each process needs {copied / GIB:.1f} GiB of host memory. "
        f"A step copies them in about {copying:.2g} s, and computes for {computing:.2g} s.{slower}"
    )


def input_warnings(inputs: InputFacts, num_frames: int) -> Iterator[str]:
    """Yield warnings of an unusual or silent track, of uncertain colours, and of a pose video that is too short."""
    yield from inputs.speech_notes
    if inputs.image_warning is not None:
        yield f"The colours of the picture may be wrong. {inputs.image_warning}"
    if inputs.speech_rms_dbfs is not None and inputs.speech_rms_dbfs < SILENT_BELOW_DBFS:
        yield (
            f"The speech is silent ({inputs.speech_rms_dbfs:.0f} dB of full scale): the mouth will not move with it. "
            "Upload a louder recording."
        )
    if inputs.sound is not None:
        yield from sound_warnings(inputs.sound)
    if inputs.pose_frames is not None and inputs.pose_frames < (1 - NOTABLE_POSE_SHORTFALL) * num_frames:
        yield (
            f"The pose video lasts {inputs.pose_frames / FPS:.2f} s, the video {num_frames / FPS:.2f} s: the rest has "
            "no pose. Upload a pose video that is as long as the speech."
        )


def face_warnings(faces: StagedFaces | None, crop: float) -> Iterator[str]:
    """Yield reasons why the person in the picture may not talk well. `crop`: share of the picture that is cut away."""
    if faces is None:
        return
    if faces.num_faces == 0:
        yield "No face was found in the picture. Use a picture of one person from the front, eyes and mouth visible."
        return
    if faces.num_faces > 1:
        yield f"The picture shows {faces.num_faces} faces, and each of them may talk. Crop it to one person."
    share = (faces.area_share or 0.0) / (1 - crop)
    if share < SMALL_FACE_SHARE:
        yield f"The face fills {share:.1%} of the frame, expected {SMALL_FACE_SHARE:.0%} or more. Crop it closer."
    if faces.turn is not None and abs(faces.turn) > PROFILE_TURN:
        yield "The face is seen from the side. Use a picture from the front, so that the mouth is visible."
    if faces.confidence is not None and faces.confidence < COVERED_BELOW:
        yield "Parts of the face seem to be covered. Use a picture in which eyes and mouth are visible."


def sound_warnings(sound: StagedSound) -> Iterator[str]:
    """Yield reasons why the speech may not drive a mouth well. A speech without any sound has a separate warning."""
    if sound.movement_db is None:
        return
    if sound.lead_in_seconds >= NOTABLE_LEAD_IN_SECONDS:
        yield f"The speech begins after {sound.lead_in_seconds:.1f} s of silence, which are rendered too. Cut them off."
    if sound.silent_share > MOSTLY_SILENT:
        yield f"{sound.silent_share:.0%} of the speech is silence. Shorten the pauses: each second is rendered."
    if sound.movement_db < STEADY_BELOW_DB:
        yield (
            f"The level changes by only {sound.movement_db:.1f} dB from moment to moment, as in music or noise; speech "
            "changes by 4 or more. Use a recording of the voice alone."
        )
    if sound.clipped_share > NOTABLE_CLIPPING:
        yield f"The recording is clipped ({sound.clipped_share:.1%} of its samples). Record again at a lower level."


def cut_warnings(request: Request, cuts: list[Cut], speech: SpeechFacts) -> Iterator[str]:
    """Warn of a cut video without a cut, or with a cut inside speech."""
    if request.continuity == "cut" and not cuts:
        yield (
            f"The video has no cut. Its speech of {float(speech.duration_seconds):.2f} s has no pause of "
            f"{SENTENCE_PAUSE_SECONDS:g} s that is {request.shortest_chain_seconds:g} s (min_chain_seconds) or more "
            "from both its beginning and its end. A cut without a pause is made only in speech of more than "
            f"{request.longest_chain_seconds:g} s (max_chain_seconds)."
        )
    for cut in cuts:
        if cut.pause_seconds is None:
            yield (
                f"The cut at {cut.frame / FPS:.2f} s is within speech, at its quietest place, because no pause "
                f"there makes chains of {request.shortest_chain_seconds:g} to {request.longest_chain_seconds:g} s. "
                "Lower min_chain_seconds or raise max_chain_seconds."
            )


def picture_warnings(
    image_size: tuple[int, int], video_size: tuple[int, int], size: str, model: ModelCard
) -> Iterator[str]:
    """Warn of a small picture, a video below the trained sizes, or a picture of which much is cut away."""
    (image_width, image_height), (width, height) = image_size, video_size
    size_width, size_height = parse_size(size)
    if image_width * image_height < NOTABLE_SHORTFALL * size_width * size_height:
        yield (
            f"The picture has only {image_width} x {image_height} pixels, so the video has {width} x {height}: "
            f"use a larger picture for size {size}."
        )
    if width * height < NOTABLE_SHORTFALL * model.smallest_trained_area:
        yield (
            f"A video of {width} x {height} pixels is smaller than the training sizes of {model.name} (from "
            f"{model.smallest_trained_area} pixels): expect a poor picture."
        )
    cut = cropped_share(image_width, image_height, width, height)
    if cut > NOTABLE_CROP:
        yield (
            f"Filling {width} x {height} cuts {cut:.0%} of the picture away at its edges: "
            "crop it to that aspect ratio yourself to choose the visible part."
        )
