"""Train the small checkpoint: `python tests/samples/talker/train.py STAGE --out DIR`; see README.md.

STAGE `begin` writes the checkpoints of the packed weights, from which the stages then go on.
STAGE `all` runs every stage after the other, at most two processes at a time, and goes on where it was stopped.
"""

import argparse
import atexit
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from training import Limits, Stage, is_complete, train

_STAGES = ("begin", "audio", "vae", "films", "decoder", "transformer", "all")
# Of `all`, where a stop rule is not met.
_MOST_STEPS = {"audio": 3000, "vae": 20000, "transformer": 40000, "decoder": 20000}
_LEAST_FILMS = 24


def _stage(name: str, out: Path) -> Stage:
    if name == "audio":
        from audio_stage import AudioStage

        return AudioStage()
    if name == "vae":
        from packed import VAE_BEFORE, load_vae
        from vae_stage import VaeStage

        before = out / VAE_BEFORE
        return VaeStage(anchor=load_vae(before) if before.is_file() else None, compiled=True)
    if name == "decoder":
        from vae_stage import VaeStage

        return VaeStage(out / "vae.pt", compiled=True)
    from transformer_stage import TransformerStage

    return TransformerStage(out)


def _run_all(out: Path, num_films: int, every_minutes: float) -> None:
    """Run the stages as processes of their own; those that are complete end at once."""

    def start(name: str, *options: str) -> subprocess.Popen[bytes]:
        print(f"{time.strftime('%H:%M:%S')} {name} begins", flush=True)
        process = subprocess.Popen([sys.executable, __file__, name, "--out", str(out), *options])
        atexit.register(process.terminate)
        return process

    def stages(*names: str) -> list[subprocess.Popen[bytes]]:
        left = [name for name in names if not is_complete(out / f"{name}.pt", _MOST_STEPS[name])]
        every = ("--every-minutes", str(every_minutes))
        return [start(name, "--max-steps", str(_MOST_STEPS[name]), *every) for name in left]

    # A stopped run stops its stages, which then write their checkpoints.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"stopped by signal {number}"))
    _wait(*stages("audio", "vae"))
    films = start("films", "--count", str(num_films))
    while films.poll() is None and len(list((out / "films").glob("film-*.pt"))) < _LEAST_FILMS:
        time.sleep(5)
    transformer = stages("transformer")
    _wait(films)
    _wait(*stages("decoder"), *transformer)


def _wait(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        if process.wait():
            raise SystemExit(f"{process.args} ended with {process.returncode}; see its output")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=_STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and measures")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--max-steps", type=int, help="stop at this step")
    parser.add_argument("--cooling", type=int, default=0, help="last steps, in which the learning rate falls to 0")
    parser.add_argument("--every-minutes", type=float, default=5, help="time between checkpoints")
    parser.add_argument("--count", type=int, default=400, help="number of films")
    parser.add_argument("--first", type=int, default=0, help="number of the first film; each number is another film")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.stage == "all":
        _run_all(arguments.out, arguments.count, arguments.every_minutes)
        return
    if arguments.stage == "begin":
        from packed import begin

        begin(arguments.out)
        return
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "films":
        from films import make_films

        make_films(arguments.out, arguments.count, arguments.first)
        return
    stage = _stage(arguments.stage, arguments.out)
    limits = Limits(arguments.minutes, arguments.max_steps, arguments.every_minutes, arguments.cooling)
    reached = train(stage, arguments.out, limits)
    print(f"{stage.name}: stop rule {'met' if reached else 'not met'}")


if __name__ == "__main__":
    main()
