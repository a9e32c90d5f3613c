"""Train one stage of the small checkpoint: `python tests/samples/talker/train.py STAGE --out DIR`; see README.md."""

import argparse
from pathlib import Path

import torch
from training import Stage, train


def _stage(name: str, out: Path) -> Stage:
    if name == "audio":
        from audio_stage import AudioStage

        return AudioStage()
    if name == "vae":
        from vae_stage import VaeStage

        return VaeStage()
    if name == "decoder":
        from vae_stage import VaeStage

        return VaeStage(out / "vae.pt")
    from transformer_stage import TransformerStage

    return TransformerStage(out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("audio", "vae", "films", "decoder", "transformer"))
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and measures")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--every-minutes", type=float, default=3, help="time between checkpoints")
    parser.add_argument("--count", type=int, default=400, help="number of films")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "films":
        from films import make_films

        make_films(arguments.out, arguments.count)
        return
    stage = _stage(arguments.stage, arguments.out)
    reached = train(stage, arguments.out, minutes=arguments.minutes, every_minutes=arguments.every_minutes)
    print(f"{stage.name}: stop rule {'met' if reached else 'not met'}")


if __name__ == "__main__":
    main()
