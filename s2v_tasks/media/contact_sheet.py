"""Draw the contact sheet of a video (first, middle and last frame of each clip) and its poster."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import Frames
from s2v_tasks.media.frames import iter_rgb

_THUMBNAIL_HEIGHT = 160
_POSTER_SIZE = (320, 640)
_LABEL_HEIGHT = 20
_NOTE_HEIGHT = 18
_MARGIN = 8
_CLIP_COLUMN_WIDTH = 76
_MIN_CELL_WIDTH = 128  # room for the label of a narrow picture
_BACKGROUND, _INK = "#16181d", "#e6e6e6"


def contact_sheet(
    video: Path, clip_ranges: Sequence[tuple[int, int]], jpg: Path, *, fps: int = 16, notes: Sequence[str] = ()
) -> None:
    """Draw the sheet of `video`; `clip_ranges` are the [start_frame, end_frame) of its clips.

    `notes`: a line below each clip; empty for a sheet without such lines.

    Raises PermanentError if the video ends before a frame of the sheet.
    """
    rows = [(start, (start + end - 1) // 2, end - 1) for start, end in clip_ranges]
    pictures = _pictures(video, {frame for row in rows for frame in row})
    thumbnail_width = next(iter(pictures.values())).shape[1]
    cell_width = max(thumbnail_width, _MIN_CELL_WIDTH) + _MARGIN
    cell_height = _LABEL_HEIGHT + _THUMBNAIL_HEIGHT + _MARGIN + (_NOTE_HEIGHT if notes else 0)
    size = (_CLIP_COLUMN_WIDTH + 3 * cell_width + _MARGIN, len(rows) * cell_height + _MARGIN)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for clip_index, row in enumerate(rows):
        top = _MARGIN + clip_index * cell_height
        draw.text((_MARGIN, top + _LABEL_HEIGHT), f"clip {clip_index + 1}/{len(rows)}", fill=_INK, font=font)
        for column, frame in enumerate(row):
            left = _CLIP_COLUMN_WIDTH + _MARGIN + column * cell_width
            draw.text((left, top), f"frame {frame}  {frame / fps:.2f} s", fill=_INK, font=font)
            sheet.paste(Image.fromarray(pictures[frame]), (left, top + _LABEL_HEIGHT))
        if notes:
            below = top + _LABEL_HEIGHT + _THUMBNAIL_HEIGHT + 2
            draw.text((_CLIP_COLUMN_WIDTH, below), notes[clip_index], fill=_INK, font=font)
    sheet.save(jpg, format="JPEG", quality=88)


def poster(frame: Frames, jpg: Path) -> None:
    """Save a frame as a JPEG that is at most 320 pixels wide and 640 high."""
    picture = Image.fromarray(frame)
    picture.thumbnail(_POSTER_SIZE)
    picture.save(jpg, format="JPEG", quality=82)


def _pictures(video: Path, wanted: set[int]) -> dict[int, Frames]:
    frames = enumerate(iter_rgb(video, end_frame=max(wanted) + 1, height=_THUMBNAIL_HEIGHT))
    pictures = {index: frame for index, frame in frames if index in wanted}
    missing = sorted(wanted - set(pictures))
    if missing:
        raise PermanentError(
            f"{video.name} ends before frame {missing[0]}, which the contact sheet shows: stitch again."
        )
    return pictures
