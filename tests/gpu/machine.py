"""The machine of a check, its time budget, and the work as the plan counts it."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.planning.estimate import ClipShape, clip_tokens, forward_flops
from s2v_tasks.schemas.model_card import ModelCard

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "config"

Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Machine:
    """The device of the check, and its size: full or toy."""

    device: torch.device
    tiny: bool
    work_dir: Path

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer: bf16 on a GPU, fp32 on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def peak_flops(self, precision: Literal["bf16", "tf32"] = "bf16") -> float | None:
        """Return the dense peak of the GPU by config/gpus.yaml; None for a GPU that the file lacks."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device).lower().replace(" ", "")
        if any(form in name for form in ("pcie", "nvl", "mig")):  # slower than the cards of the file, or a part of one
            return None
        cards = yaml.safe_load((CONFIG / "gpus.yaml").read_text(encoding="utf-8"))
        tflops = [card[f"{precision}_tflops"] for key, card in cards.items() if key.partition("-")[0] in name]
        return tflops[0] * 1e12 if tflops else None

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Free the memory of networks that are no longer used, so that a peak counts only what is measured."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def timed(self, compute: Callable[[], object], *, repeats: int = 1) -> tuple[float, float]:
        """Return seconds and peak GiB of `compute`, which ran before to warm up.

        The peak is of memory that torch allocates on the GPU, with what was there before; 0 on a CPU.
        """
        self.synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            compute()
        self.synchronize()
        seconds = (time.perf_counter() - started) / repeats
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return seconds, peak / 2**30


@dataclass
class Clock:
    """The time budget of a run."""

    budget_seconds: float
    started: float = field(default_factory=time.monotonic)

    def keeping(self, seconds: float) -> "Clock":
        """Return the clock of a section that leaves `seconds` to the sections after it."""
        return Clock(self.budget_seconds - seconds, self.started)

    @property
    def left_seconds(self) -> float:
        """Return the seconds until the budget is used up."""
        return self.budget_seconds - (time.monotonic() - self.started)


def tried(measure: Callable[[], Row]) -> Row:
    """Return the row of `measure`, or the reason why it gives none."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - the reason why this is not measured; others may be
        return not_here(error)


def not_here(error: Exception) -> Row:
    """Return the row of a measurement that ended with `error`."""
    return {"not_here": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def model_card() -> ModelCard:
    """Return the dimensions of the 14B model as the planner has them."""
    cards = yaml.safe_load((CONFIG / "models.yaml").read_text(encoding="utf-8"))
    return ModelCard.model_validate({"name": "wan2.2-s2v-14b", **cards["wan2.2-s2v-14b"]})


def step_flops(config: S2VConfig, size: tuple[int, int, int], *, branches: int) -> tuple[float, int]:
    """Return operations and tokens of a step of a later clip, as the planner counts them.

    `size` is width, height and frames; a guided step has two branches.
    """
    width, height, num_frames = size
    names = ("dim", "ffn_dim", "num_layers", "text_dim", "text_len", "audio_inject_layers")
    model = model_card().model_copy(update={name: getattr(config, name) for name in names})
    shape = ClipShape(width, height, num_frames, with_motion=True, starts_chain=False, ends_chain=False)
    return forward_flops(shape, model).per_step(branches), clip_tokens(shape)
