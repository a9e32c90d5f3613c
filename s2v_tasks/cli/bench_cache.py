"""`s2v bench cache`: time and error of the first-block cache, with random weights or those of a snapshot."""

import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from s2v_tasks.cli.bench import Frames, PresetName, VideoSize, bench, dimensions, latent_frames, sides
from s2v_tasks.cli.terminal import AsJson, console, path_option, print_json
from s2v_tasks.errors import PermanentError
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.verification.bench.cache import BenchedClip

_SHIFT = 3.0


@bench.command()
def cache(
    preset: PresetName = "50m",
    size: VideoSize = "256*256",
    frames: Frames = 16,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps of the clip.")] = 20,
    thresholds: Annotated[str, typer.Option(help="Values of S2V_STEP_CACHE to compare.")] = "0.02,0.05,0.1",
    snapshot: Annotated[
        Path | None, path_option("Snapshot with the weights; needs --image and --audio. Default: random weights.")
    ] = None,
    image: Annotated[Path | None, path_option("Reference picture of the clip.")] = None,
    audio: Annotated[Path | None, path_option("Speech of the clip.")] = None,
    prompt: Annotated[str, typer.Option(help="Prompt of the clip.")] = "A person speaks.",
    guide_scale: Annotated[float, typer.Option(min=1, help="Guidance scale of the clip; 1 turns it off.")] = 4.5,
    as_json: AsJson = False,
) -> None:
    """Denoise a clip with the first-block cache at several thresholds; compare time and error with no cache.

    Without a snapshot the weights are random: released weights give other errors and other shares of skipped forwards.
    """
    from s2v_tasks.engine.loading import Snapshot
    from s2v_tasks.engine.models.config import S2VConfig
    from s2v_tasks.engine.worker import choose_device
    from s2v_tasks.verification.bench.cache import bench_cache, bench_cache_of_clip
    from s2v_tasks.verification.bench.step import StepBench

    width, height = sides(size)
    device = choose_device(load_settings().device)
    if snapshot is None:
        config = S2VConfig.from_json(dimensions(preset, {"num_layers": None}))
        shape = StepBench(config, (latent_frames(frames), height // 8, width // 8))
        results = bench_cache(shape, steps, _shares(thresholds), device)
    elif image is None or audio is None:
        raise PermanentError("--snapshot is given without --image or --audio: expected all three.")
    else:
        clip = _benched_clip(image, audio, prompt, (width, height, frames), (steps, guide_scale))
        results = bench_cache_of_clip(Snapshot.open(snapshot), clip, _shares(thresholds), device)
    if as_json:
        print_json({"thresholds": [asdict(result) for result in results]})
        return
    table = Table("threshold", "skipped forwards", "seconds", "ratio", "relative error", "PSNR of the frames, dB")
    for result in results:
        table.add_row(
            f"{result.threshold:g}" if result.threshold else "off",
            f"{result.skipped_share:.0%}",
            f"{result.seconds:.2f}",
            f"{results[0].seconds / result.seconds:.2f}",
            f"{result.relative_error:.1e}",
            f"{result.psnr_db:.1f}" if result.psnr_db is not None else "",
        )
    console.print(table)


def _benched_clip(
    image: Path, audio: Path, prompt: str, shape: tuple[int, int, int], sampling: tuple[int, float]
) -> "BenchedClip":
    """Read picture and speech; `shape` is (width, height, frames), `sampling` (steps, guidance scale)."""
    import numpy as np
    from PIL import Image

    from s2v_tasks.engine.clip import Sampling
    from s2v_tasks.media.image import normalise_image
    from s2v_tasks.media.speech import load_waveform, normalise_speech
    from s2v_tasks.verification.bench.cache import BenchedClip

    latent_frames(shape[2])  # refuses other numbers before anything is read
    with tempfile.TemporaryDirectory() as scratch:
        png, wav = Path(scratch) / "image.png", Path(scratch) / "speech.wav"
        normalise_image(image, png)
        normalise_speech(audio, wav, max_duration_seconds=load_settings().max_audio_seconds)
        with Image.open(png) as picture:
            image_u8 = np.asarray(picture.convert("RGB"))
        speech = load_waveform(wav)
    return BenchedClip(prompt, image_u8, speech, *shape, Sampling(*sampling, _SHIFT, "unipc"))


def _shares(text: str) -> list[float]:
    if not re.fullmatch(r"0?\.\d+(,0?\.\d+)*", text):
        raise PermanentError(f"--thresholds {text!r}: expected shares between 0 and 1 like 0.02,0.05.")
    return [float(share) for share in text.split(",")]
