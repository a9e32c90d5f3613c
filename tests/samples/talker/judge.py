"""Judge stage 3: render unseen faces with unseen speech and several seeds, and measure them as `s2v measure` does.

    python judge.py SNAPSHOT [--faces 5] [--seeds 4] [--clips 2]

`s2v snapshot init-talker SNAPSHOT` writes the snapshot. Each face says one of the sentences of ../speeches, repeated to
the length of the clips, at 128x192 pixels in 4 steps without guidance, as `make demo` does. Prints a JSON line for each
video: correlation of the mouth with its speech and with the next of the sentences, lag, seams, share of frames with a
face, sharpness and colours against the reference picture, and the drift of long videos. Then the worst of each.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faces
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from s2v_tasks.engine.clip import ClipInputs, MotionState, Sampling, motion_frames_needed
from s2v_tasks.engine.conditions import encode_conditions
from s2v_tasks.engine.loading import Snapshot
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.worker import Worker
from s2v_tasks.media.encode import encode_clip
from s2v_tasks.media.frames import iter_rgb
from s2v_tasks.perception.faces import FaceFinder
from s2v_tasks.perception.landmarks import mouth_darkness, mouth_opening
from s2v_tasks.perception.lip_sync import Mouth, measure_lip_sync
from s2v_tasks.perception.video import measure_video

SPEECHES = sorted((Path(__file__).parents[1] / "speeches").glob("*.flac"))
WIDTH, HEIGHT, FRAMES, FPS, RATE = 128, 192, 80, 16, 16000
SAMPLING = Sampling(4, 1.0, 3.0, "unipc")
FIRST_FACE = 901  # the training draws its people from other seeds

Pictures = list[NDArray[np.uint8]]


def render(
    pipeline: S2VPipeline, conditions: dict[str, torch.Tensor], seed: int, num_clips: int, folder: Path
) -> Iterator[Pictures]:
    """Yield the frames of each clip of one chain, after H.264."""
    motion: MotionState | None = None
    for index in range(num_clips):
        own = conditions | {"audio": conditions["audio"][index * FRAMES : (index + 1) * FRAMES]}
        keep = motion_frames_needed([FRAMES] * (num_clips - 1 - index))
        place = {"motion": motion, "start_from_ref": False, "keep_motion_frames": keep, "pose": None}
        output = pipeline.render_clip(ClipInputs(**own, **place, seed=seed + index), SAMPLING)
        motion = output.motion
        encode_clip(output.frames_u8, folder / "clip.mp4", FPS)
        yield list(iter_rgb(folder / "clip.mp4", end_frame=FRAMES))


def judge(clips: list[Pictures], reference: NDArray[np.uint8], speech: Any, other: Any) -> dict[str, float | None]:
    """Return the measures of a video."""
    frames = [picture for clip in clips for picture in clip]
    ranges = [(start, start + FRAMES) for start in range(0, len(frames), FRAMES)]
    video = measure_video(frames, ranges, fps=FPS, speech=speech, sample_rate=RATE, reference=reference)
    finder, openings, darkness = FaceFinder(), [], []
    for picture in frames:
        face = finder.find(picture)
        openings.append(mouth_opening(face.landmarks) if face else np.nan)
        darkness.append(mouth_darkness(picture, face.landmarks) if face else np.nan)
    said = video.lip_sync
    unsaid = measure_lip_sync(Mouth(np.array(openings), np.array(darkness)), other, RATE, FPS)
    looks = [clip.look for clip in video.clips]
    assert said is not None
    return {
        "correlation": said.correlation,
        "other_correlation": unsaid.correlation,
        "lag_ms": said.lag_ms,
        "face_share": float(np.isfinite(openings).mean()),
        "seam": max((clip.seam.jump for clip in video.clips if clip.seam and clip.seam.jump), default=None),
        "sharpness": min(look.sharpness_ratio or 0 for look in looks),
        "background": max(look.background_difference or 0 for look in looks),
        "last_background": looks[-1].background_difference,
        "skin_per_clip": video.drift.skin_per_clip if video.drift else None,
        "background_per_clip": video.drift.background_per_clip if video.drift else None,
    }


def main() -> None:
    """Parse the command line, render and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot", type=Path)
    for name, default in (("faces", 5), ("seeds", 4), ("clips", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    snapshot = Snapshot.open(arguments.snapshot)
    pipeline, _ = load_pipeline(Worker(0, 1, torch.device("cpu")), snapshot, "auto", EngineOptions(), guided=False)
    num_frames = arguments.clips * FRAMES
    sounds = [np.resize(soundfile.read(path, dtype="float32")[0], num_frames * RATE // FPS) for path in SPEECHES]
    results = []
    for face in range(arguments.faces):
        speech, other = sounds[face % len(sounds)], sounds[(face + 1) % len(sounds)]
        picture = np.asarray(faces.Person(np.random.default_rng(FIRST_FACE + face), 480, 640).frame(faces.Pose()))
        shape = {"num_frames": num_frames, "width": WIDTH, "height": HEIGHT}
        conditions = encode_conditions(
            snapshot, prompt="A person speaks.", negative_prompt="", waveform=speech, image_u8=picture, **shape
        )
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                clips = list(render(pipeline, conditions, 1000 * seed, arguments.clips, Path(folder)))
            measures = judge(clips, conditions["reference_u8"].numpy(), speech, other)
            results.append(measures)
            line = {"face": FIRST_FACE + face, "speech": SPEECHES[face % len(sounds)].stem, "seed": seed} | measures
            print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in line.items()}), flush=True)
    known = {key: [r[key] for r in results if r[key] is not None] for key in results[0]}
    print(json.dumps({key: [round(min(v), 3), round(max(v), 3)] for key, v in known.items() if v}))


if __name__ == "__main__":
    main()
