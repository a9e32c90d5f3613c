"""Draw tests/samples/portrait.jpg, the same each time: `python tests/samples/talker/draw_portrait.py OUT.jpg`."""

import sys
from pathlib import Path

from clips import sample_person
from faces import Pose
from PIL import Image


def draw(path: Path) -> None:
    """Write the sample's person with the mouth closed, 480x640."""
    Image.fromarray(sample_person(480, 640).frame(Pose())).save(path, quality=92, subsampling=0)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
