"""Draw the contact sheet of a video (first, middle and last frame of each clip) and its poster."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from s2v_tasks.errors import PermanentError
from s2v_tasks.media.encode import Frames
from s2v_tasks.media.frames import iter_rgb

_THUMBNAIL_HEIGHT = 160  # of the pictures of up to _MOST_LARGE clips; then they become smaller
_MOST_LARGE = 240
_POSTER_SIZE = (320, 640)
_LABEL_HEIGHT = 20
_NOTE_HEIGHT = 18
_MARGIN = 8
_CLIP_COLUMN_WIDTH = 76
_MOST_IN_ONE_COLUMN = 24
_MIN_CELL_WIDTH = 128  # room for the label of a narrow picture
_BACKGROUND, _INK = "#16181d", "#e6e6e6"


def contact_sheet(
    video: Path, clip_ranges: Sequence[tuple[int, int]], jpg: Path, *, fps: int = 16, notes: Sequence[str] = ()
) -> None:
    """Draw the sheet of `video`; `clip_ranges` are the [start_frame, end_frame) of its clips.

    `notes`: a line below each clip; empty for a sheet without such lines.

    Raises PermanentError if the video ends before a frame of the sheet.
    """
    clips = [(start, (start + end - 1) // 2, end - 1) for start, end in clip_ranges]
    picture_height = round(_THUMBNAIL_HEIGHT * min(1.0, sqrt(_MOST_LARGE / len(clips))))
    pictures = _pictures(video, {frame for clip in clips for frame in clip}, picture_height)
    thumbnail_width = next(iter(pictures.values())).shape[1]
    cell_width = max(thumbnail_width, _MIN_CELL_WIDTH) + _MARGIN
    width = _CLIP_COLUMN_WIDTH + 3 * cell_width
    height = _LABEL_HEIGHT + picture_height + _MARGIN + (_NOTE_HEIGHT if notes else 0)
    num_columns = _num_columns(len(clips), width, height)
    size = (num_columns * width + _MARGIN, ceil(len(clips) / num_columns) * height + _MARGIN)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for clip_index, clip in enumerate(clips):
        row, column = divmod(clip_index, num_columns)
        left, top = column * width, _MARGIN + row * height
        draw.text((left + _MARGIN, top + _LABEL_HEIGHT), f"clip {clip_index + 1}/{len(clips)}", fill=_INK, font=font)
        left += _CLIP_COLUMN_WIDTH
        if notes:
            draw.text((left, top + height - _NOTE_HEIGHT - 6), notes[clip_index], fill=_INK, font=font)
        for number, frame in enumerate(clip):
            x = left + _MARGIN + number * cell_width
            draw.text((x, top), f"frame {frame}  {frame / fps:.2f} s", fill=_INK, font=font)
            sheet.paste(Image.fromarray(pictures[frame]), (x, top + _LABEL_HEIGHT))
    sheet.save(jpg, format="JPEG", quality=88)


def _num_columns(num_clips: int, width: int, height: int) -> int:
    """Return how many clips of this size are side by side: one, or in a long video so many that the sheet is square.

    Pillow writes a JPEG of at most 65,500 rows, which are 317 clips with notes.
    """
    return 1 if num_clips <= _MOST_IN_ONE_COLUMN else max(1, round(sqrt(num_clips * height / width)))


def poster(frame: Frames, jpg: Path) -> None:
    """Save a frame as a JPEG that is at most 320 pixels wide and 640 high."""
    picture = Image.fromarray(frame)
    picture.thumbnail(_POSTER_SIZE)
    picture.save(jpg, format="JPEG", quality=82)


def _pictures(video: Path, wanted: set[int], height: int) -> dict[int, Frames]:
    frames = enumerate(iter_rgb(video, end_frame=max(wanted) + 1, height=height))
    pictures = {index: frame for index, frame in frames if index in wanted}
    missing = sorted(wanted - set(pictures))
    if missing:
        raise PermanentError(
            f"{video.name} ends before frame {missing[0]}, which the contact sheet shows: stitch again."
        )
    return pictures
