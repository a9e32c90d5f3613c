"""`s2v measure`: faces, lip sync, seams and drift of any talking video, including videos of other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, console, path_argument, path_option
from s2v_tasks.scratch import scratch_folder

if TYPE_CHECKING:
    from s2v_tasks.media.speech import Waveform
    from s2v_tasks.media.uploaded_video import UploadedVideo
    from s2v_tasks.schemas.quality import VideoQuality

# If the clips of a video are unknown, drift is shown per part of this many frames (5 s).
_PART_FRAMES = 80


@app.command(rich_help_panel=PEOPLE)
def measure(
    video: Annotated[Path, path_argument("Video file.")],
    audio: Annotated[Path | None, path_option("Speech of the video. Default: its sound track.")] = None,
    image: Annotated[Path | None, path_option("Reference picture of the person.")] = None,
    clip_frames: Annotated[
        int | None,
        typer.Option(min=16, help="Frames per clip, for a video made clip by clip: its seams are measured too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all measures as JSON.")] = False,
) -> None:
    """Measure faces, lip sync, seams, colours and sharpness of a video."""
    from s2v_tasks.settings import config_dir, load_settings
    from s2v_tasks.validation.quality import in_words
    from s2v_tasks.validation.quality_limits import load_quality_limits

    settings = load_settings()
    limits = load_quality_limits(config_dir(settings))
    quality = _measured(video, audio, image, clip_frames, settings.max_audio_seconds)
    if as_json:
        typer.echo(quality.model_dump_json(indent=2))
        return
    for sentence in in_words(quality, limits):
        console.print(escape(sentence))


def _measured(
    path: Path, audio: Path | None, image: Path | None, clip_frames: int | None, max_seconds: float
) -> "VideoQuality":
    import numpy as np
    from PIL import Image, ImageOps

    from s2v_tasks.media.image import normalise_image
    from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE
    from s2v_tasks.media.uploaded_video import open_uploaded_video
    from s2v_tasks.perception.video import measure_video
    from s2v_tasks.schemas.plan import FPS

    video = open_uploaded_video(path, f"The video {path.name}")
    length = clip_frames or _PART_FRAMES
    num_frames = int(max_seconds * FPS)
    clips = [(start, start + length) for start in range(0, num_frames, length)]
    with scratch_folder(None, "measure") as scratch:
        reference = None
        if image is not None:
            png = scratch / "image.png"
            normalise_image(image, png)
            with Image.open(png) as picture:
                reference = np.asarray(ImageOps.fit(picture, video.size, Image.Resampling.BICUBIC))
        return measure_video(
            video.frames(max_seconds),
            clips,
            fps=FPS,
            speech=_speech(video, audio, scratch, max_seconds),
            sample_rate=SPEECH_SAMPLE_RATE,
            reference=reference,
            # Without known clips there are no seams.
            chain_starts=frozenset() if clip_frames else frozenset(range(len(clips))),
        )


def _speech(video: "UploadedVideo", audio: Path | None, scratch: Path, max_seconds: float) -> "Waveform | None":
    """Return the speech from the first frame on, at 16 kHz; None if the video has no sound."""
    import numpy as np

    from s2v_tasks.media.speech import SPEECH_SAMPLE_RATE, load_waveform, normalise_speech

    if audio is None and not video.has_audio:
        return None
    wav = scratch / "speech.wav"
    info = normalise_speech(audio or video.source, wav, max_duration_seconds=max_seconds)
    speech = load_waveform(wav)
    if audio is not None:
        return speech
    # Sound and picture are read from their own first time stamps; one of them may start later.
    picture_start = float(video.stream.start_time or 0)
    late = round((info.late_seconds - picture_start) * SPEECH_SAMPLE_RATE)
    return speech[-late:] if late < 0 else np.concatenate([np.zeros(late, np.float32), speech])
