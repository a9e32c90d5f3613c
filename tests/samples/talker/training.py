"""The loop that all stages share: checkpoints, averaged weights, measures as JSON lines, stop rule."""

import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Measures = dict[str, float]
_AVERAGING = 0.998


class Stage(Protocol):
    """One network, its data and its stop rule."""

    name: str
    module: nn.Module  # everything that is trained
    optimizers: list[torch.optim.Optimizer]
    least_steps: int  # the stop rule ends the training from here on

    def loss(self, step: int) -> Tensor:
        """Return the loss of step `step`; its data depend on the seed and on `step` only."""
        ...

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate."""
        ...

    def evaluate(self) -> Measures:
        """Return the measures of the weights that `module` has."""
        ...

    def reached(self, measures: Measures) -> bool:
        """Return true if the stop rule is met."""
        ...


class Averaged:
    """The running mean of a module's parameters: it is what is evaluated and kept."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the mean towards the current values; quickly at first."""
        share = 1 - min(_AVERAGING, (1 + step) / (10 + step))
        for name, value in self._module.named_parameters():
            self.values[name].lerp_(value, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the mean and the current values."""
        for name, value in self._module.named_parameters():
            current = value.detach().clone()
            value.copy_(self.values[name])
            self.values[name] = current


@dataclass(frozen=True)
class Limits:
    """Limits of a training, and the intervals at which it is saved and judged."""

    minutes: float = math.inf
    max_steps: int | None = None
    every_minutes: float = 5.0  # a checkpoint by the clock, measures by CPU time
    cooling_steps: int = 0  # before `max_steps`, in which the learning rate falls to 0

    def cooling(self, step: int) -> float:
        """Return the factor of the learning rate near the end."""
        is_near = self.max_steps is not None and self.max_steps - step < self.cooling_steps
        return (self.max_steps - step) / self.cooling_steps if is_near else 1.0


def train(stage: Stage, out: Path, limits: Limits) -> bool:
    """Train until the stop rule is met, a limit is reached or SIGTERM or SIGINT comes; return true if the rule is met.

    Continues from `out/STAGE.pt`. Measures go to `out/STAGE.jsonl`, a line each. The time counts from this call.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"{stage.name}.pt"
    averaged = Averaged(stage.module)
    step, cpu_before = _load(checkpoint, stage, averaged)
    groups = [group for optimizer in stage.optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    start = saved = time.monotonic()
    judged, losses = time.process_time(), []
    with _Stop() as stop:
        while True:
            over = time.monotonic() - start > 60 * limits.minutes or step == limits.max_steps
            reached = False
            if stop.asked or over or time.monotonic() - saved > 60 * limits.every_minutes:
                cpu_seconds = cpu_before + time.process_time()
                if over or time.process_time() - judged > 60 * limits.every_minutes:
                    loss = sum(losses) / max(1, len(losses))
                    measures = _evaluate(stage, averaged)
                    reached = stage.reached(measures) and step >= stage.least_steps
                    line = {"step": step, "cpu_seconds": round(cpu_seconds), "loss": loss, "reached": reached}
                    _log(out / f"{stage.name}.jsonl", {**line, **measures})
                    judged, losses = time.process_time(), []
                _save(checkpoint, stage, averaged, {"step": step, "cpu_seconds": cpu_seconds, "reached": reached})
                saved = time.monotonic()
                if stop.asked or over or reached:
                    return reached
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * stage.rate(step) * limits.cooling(step)
            losses.append(_step(stage, step))
            averaged.update(step)
            step += 1


def _step(stage: Stage, step: int) -> float:
    loss = stage.loss(step)
    for optimizer in stage.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
    for optimizer in stage.optimizers:
        optimizer.step()
    return loss.item()


def _evaluate(stage: Stage, averaged: Averaged) -> Measures:
    averaged.swap()
    try:
        return stage.evaluate()
    finally:
        averaged.swap()


class _Stop:
    """Is set by SIGTERM or SIGINT while entered, so that the loop ends with a checkpoint."""

    def __enter__(self) -> "_Stop":
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _save(path: Path, stage: Stage, averaged: Averaged, progress: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            **progress,
            "module": stage.module.state_dict(),
            "averaged": averaged.values,
            "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers],
        },
        partial,
    )
    partial.replace(path)


def _load(path: Path, stage: Stage, averaged: Averaged) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    stage.module.load_state_dict(state["module"])
    averaged.values = state["averaged"]
    if "optimizers" not in state:  # packed weights
        return state["step"], state["cpu_seconds"]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in stage.optimizers]
    for optimizer, content, kept in zip(stage.optimizers, state["optimizers"], rates, strict=True):
        optimizer.load_state_dict(content)
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate
    return state["step"], state["cpu_seconds"]


def is_complete(path: Path, max_steps: int) -> bool:
    """Return true if the checkpoint's stop rule is met or its steps are done."""
    if not path.is_file():
        return False
    state = torch.load(path, weights_only=True, mmap=True)
    return bool(state.get("reached")) or state["step"] >= max_steps


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a stage's checkpoint."""
    values: dict[str, Tensor] = torch.load(path, weights_only=True)["averaged"]
    return values


def correlation(a: Any, b: Any) -> float:
    """Return the correlation of two series; 0 where one of them is constant."""
    a, b = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    constant = min(a.std(), b.std()) < 1e-9
    return 0.0 if constant else float(np.corrcoef(a, b)[0, 1])


def _log(path: Path, values: dict[str, Any]) -> None:
    line = json.dumps({name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)
