"""Conditions of the clips of a job, computed once per job: text, audio, reference image (spec b, d.2, d.5).

Each encoder is loaded, used and freed before the next one, so that the peak memory is that of the text encoder.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2v_tasks.engine.audio_features import frame_features, resample_50_to_30
from s2v_tasks.engine.images import ImageU8, fit_image
from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.errors import PermanentError
from s2v_tasks.log import get_logger

# The negative prompt of the released configuration; the model was tuned with it.
NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)


def encode_conditions(
    snapshot: Snapshot,
    *,
    prompt: str,
    negative_prompt: str,
    waveform: NDArray[np.float32],
    num_frames: int,
    image_u8: ImageU8,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Encode everything that the clips of a job share; all tensors are on the CPU.

    `waveform` is mono float32 [P] at 16 kHz, `num_frames` the length of the video at 16 fps, `image_u8` RGB
    [Hi, Wi, 3], `width` and `height` the video's. Returns

    - `context`, `context_null`: float32 [num_tokens, text_dim], the prompt and the negative prompt
    - `audio`: float32 [num_frames, 25, audio_dim], the sound of each frame, zeros beyond the speech
    - `reference_u8`: uint8 [height, width, 3]

    Raises PermanentError for an empty or too long prompt, unusable speech or an unusable picture.
    """
    if not prompt.strip():
        raise PermanentError("the prompt is empty; describe what the video shows")
    reference_u8 = torch.tensor(fit_image(image_u8, width, height, compat="corrected"))
    with _logged("text_encoded"):
        text_encoder = snapshot.load_text_encoder(device)
        context, context_null = (text_encoder.encode(text).cpu() for text in (prompt, negative_prompt))
        del text_encoder
        _free()
    with _logged("audio_encoded"):
        audio_encoder = snapshot.load_audio_encoder(device)
        states = audio_encoder.encode(waveform)
        del audio_encoder
        _free()
        audio = frame_features(resample_50_to_30(states), num_frames)
    return {"context": context, "context_null": context_null, "audio": audio, "reference_u8": reference_u8}


@contextmanager
def _logged(event: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    get_logger().info(event, duration_seconds=round(time.perf_counter() - start, 2))


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
