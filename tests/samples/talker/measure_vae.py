"""Measure the VAE by the face mesh: `python measure_vae.py OUT --models DIR`; see measure.py.

Prints JSON: over unseen clips, the share of decoded frames with a face, and the correlation of the mouth opening that
the mesh sees in decoded frames with the drawn one.
"""

import argparse
import json
from pathlib import Path

import clips
import fast_vae
import numpy as np
import speech
import torch
from measure import watch
from training import averaged_weights, correlation

_SEED = 5


@torch.no_grad()
def main() -> None:
    """Parse the command line and print the measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the checkpoints")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=8)
    arguments = parser.parse_args()
    vae = fast_vae.new_vae(torch.Generator().manual_seed(0))
    newest = next(name for name in ("decoder.pt", "vae.pt") if (arguments.out / name).is_file())
    vae.load_state_dict(averaged_weights(arguments.out / newest), strict=False)
    rng = np.random.default_rng(_SEED)
    faces, drawn, seen = [], [], []
    for _ in range(arguments.clips):
        person = clips.draw_person(rng, 0.0)
        clip = clips.draw_clip(rng, person, speech.draw_utterance(rng, 3), 0.0, 33)
        pixels = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        decoded = fast_vae.decode(vae, fast_vae.encode(vae, pixels))[0].clamp(-1, 1).permute(1, 2, 3, 0)
        watched = watch([((decoded + 1) * 127.5).round().to(torch.uint8).numpy()], arguments.models)
        found = np.isfinite(watched.openings)
        faces.append(watched.face_share)
        drawn.append(clip.openings[found] - clip.openings[found].mean())
        seen.append(watched.openings[found] - watched.openings[found].mean())
    both = correlation(np.concatenate(drawn), np.concatenate(seen))
    print(json.dumps({"face_share": round(float(np.mean(faces)), 4), "opening_correlation": round(both, 4)}))


if __name__ == "__main__":
    main()
