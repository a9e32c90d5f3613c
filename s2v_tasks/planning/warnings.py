"""Sentences of a plan that tell its reader what may surprise: legal, but perhaps not what was meant."""

from collections.abc import Iterator

from s2v_tasks.planning.chains import SENTENCE_PAUSE_SECONDS
from s2v_tasks.planning.resolution import cropped_share
from s2v_tasks.schemas.model_card import ModelCard
from s2v_tasks.schemas.plan import FPS, Cut, InputFacts, SpeechFacts
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import parse_size

NOTABLE_CROP = 0.10
NOTABLE_POSE_SHORTFALL = 0.10
SILENT_BELOW_DBFS = -60.0
NOTABLE_SHORTFALL = 0.75  # sides are multiples of 64: a normal video of size 480*832 keeps 80 % of its pixels or more


def clip_count_warnings(num_clip: int | None, needed: int, num_frames: int, speech: SpeechFacts) -> Iterator[str]:
    """The wanted number of clips is not the needed one: a preview, or clips that are not made."""
    seconds = float(speech.duration_seconds)
    if num_clip is not None and num_clip < needed:
        left_out = seconds - num_frames / FPS
        yield (
            f"This is a preview: num_clip {num_clip} covers {num_frames / FPS:.2f} s and leaves out the last "
            f"{left_out:.2f} s of {seconds:.2f} s of speech, which needs {needed} clips."
        )
    if num_clip is not None and num_clip > needed:
        yield f"num_clip {num_clip} is reduced to {needed}: {seconds:.2f} s of speech need no more."


def input_warnings(inputs: InputFacts, num_frames: int) -> Iterator[str]:
    """What is heard is not obvious or nothing, colours may be wrong, or the pose video ends before `num_frames`."""
    yield from inputs.speech_notes
    if inputs.image_warning is not None:
        yield f"The colours of the picture may be wrong. {inputs.image_warning}"
    if inputs.speech_rms_dbfs is not None and inputs.speech_rms_dbfs < SILENT_BELOW_DBFS:
        yield (
            f"The speech is silent ({inputs.speech_rms_dbfs:.0f} dB of full scale): the model hears nothing to move "
            "the mouth to. Upload a louder recording."
        )
    if inputs.pose_frames is not None and inputs.pose_frames < (1 - NOTABLE_POSE_SHORTFALL) * num_frames:
        yield (
            f"The pose video lasts {inputs.pose_frames / FPS:.2f} s, the video {num_frames / FPS:.2f} s: without a "
            "pose from there on. Upload a pose video that is as long as the speech."
        )


def cut_warnings(request: Request, cuts: list[Cut], speech: SpeechFacts) -> Iterator[str]:
    """Cuts were asked for and there are none, or one falls where nobody pauses."""
    if request.continuity == "cut" and not cuts:
        yield (
            f"Nothing is cut: {float(speech.duration_seconds):.2f} s of speech have no pause of "
            f"{SENTENCE_PAUSE_SECONDS:g} s at least {request.shortest_chain_seconds:g} s (min_chain_seconds) from both "
            f"ends, and are not longer than {request.longest_chain_seconds:g} s (max_chain_seconds)."
        )
    for cut in cuts:
        if cut.pause_seconds is None:
            yield (
                f"The cut at {cut.frame / FPS:.2f} s falls into speech, at its quietest place: no pause there makes "
                f"chains of {request.shortest_chain_seconds:g} to {request.longest_chain_seconds:g} s. "
                "Widen min_chain_seconds and max_chain_seconds."
            )


def picture_warnings(
    image_size: tuple[int, int], video_size: tuple[int, int], size: str, model: ModelCard
) -> Iterator[str]:
    """The picture is small, the video is smaller than the model knows, or much of the picture is cut away."""
    (image_width, image_height), (width, height) = image_size, video_size
    size_width, size_height = parse_size(size)
    if image_width * image_height < NOTABLE_SHORTFALL * size_width * size_height:
        yield (
            f"The picture has only {image_width} x {image_height} pixels, so the video has {width} x {height}: "
            f"use a larger picture for size {size}."
        )
    if width * height < NOTABLE_SHORTFALL * model.smallest_trained_area:
        yield (
            f"A video of {width} x {height} pixels is smaller than what {model.name} was trained for "
            f"({model.smallest_trained_area} pixels): expect a poor picture."
        )
    cut = cropped_share(image_width, image_height, width, height)
    if cut > NOTABLE_CROP:
        yield (
            f"Filling {width} x {height} cuts {cut:.0%} of the picture away at its edges: "
            "crop it to that shape to choose what stays."
        )
