"""Solvers of the flow-matching equation, as the model was released with them (spec g).

All are diffusers schedulers with our sigmas and timesteps, because the default lists of the library differ from those
of the model by up to 4e-3 in sigma and 4 in the timestep. No step waits for the device.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor

from s2v_tasks.errors import PermanentError

# 0.999 rounded to float32: the smallest alpha the model was trained with, as the released schedule starts from it.
_UNIPC_FIRST_SIGMA = 0.9990000128746033
_NUM_TRAIN_TIMESTEPS = 1000
_COUNTERS = "solver.counters"


class Scheduler(Protocol):
    """The interface of a solver that the denoising loop uses."""

    timesteps: Tensor
    sigmas: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """Advance `sample` by one step along the velocity `model_output`."""
        ...


def make_scheduler(solver: str, *, num_steps: int, shift: float, device: torch.device | str) -> Scheduler:
    """Return a solver ready for its first step: `timesteps` [num_steps] on `device`, `sigmas` [num_steps + 1].

    `solver` is "unipc", "dpm++" or "euler"; `shift` > 0 moves the steps towards high noise. A solver serves one
    clip: it keeps the previous model outputs. Raises PermanentError for an unknown solver or impossible numbers.
    """
    if num_steps < 1 or not shift > 0:
        raise PermanentError(
            f"sample_steps={num_steps}, sample_shift={shift}: at least 1 step and a shift above 0 are needed"
        )
    if solver == "unipc":
        return _unipc(num_steps, shift, device)
    if solver == "dpm++":
        return _dpm_plus_plus(num_steps, shift, device)
    if solver == "euler":
        return _euler(num_steps, shift, device)
    raise PermanentError(f"sample_solver={solver!r} is unknown; use 'unipc', 'dpm++' or 'euler'")


def solver_state(scheduler: Scheduler) -> dict[str, Tensor]:
    """Return the history of a solver as tensors; empty before the first step, and for a solver without history.

    Sigmas and timesteps are not part of it: `make_scheduler` computes them again.
    """
    solver: Any = scheduler
    if solver.step_index is None or isinstance(solver, FlowMatchEulerDiscreteScheduler):
        return {}  # Euler steps depend on nothing earlier
    state = {_COUNTERS: torch.tensor([solver.lower_order_nums, getattr(solver, "this_order", 0)])}
    for index, output in enumerate(solver.model_outputs):
        if output is not None:
            state[f"solver.model_outputs.{index}"] = output
    if getattr(solver, "last_sample", None) is not None:
        state["solver.last_sample"] = solver.last_sample
    return state


def restore_solver(scheduler: Scheduler, state: Mapping[str, Tensor], step: int) -> None:
    """Set a new solver to the state after `step` steps with the history `state`."""
    if step == 0:
        return
    solver: Any = scheduler
    solver._step_index = step
    if isinstance(solver, FlowMatchEulerDiscreteScheduler):
        return
    solver.lower_order_nums, this_order = state[_COUNTERS].tolist()
    solver.model_outputs = [state.get(f"solver.model_outputs.{i}") for i in range(len(solver.model_outputs))]
    if "solver.last_sample" in state:
        solver.last_sample, solver.this_order = state["solver.last_sample"], this_order
        order = len(solver.timestep_list)
        solver.timestep_list = [scheduler.timesteps[i] if i >= 0 else None for i in range(step - order, step)]


def _unipc(num_steps: int, shift: float, device: torch.device | str) -> Scheduler:
    scheduler: Any = _UniPC(
        num_train_timesteps=_NUM_TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=2,
        solver_type="bh2",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(
        sigmas=np.linspace(_UNIPC_FIRST_SIGMA, 0.0, num_steps + 1)[:-1],
        device=device,
    )
    scheduler.set_begin_index(0)  # otherwise the first step searches for its timestep, a device synchronisation
    return cast(Scheduler, scheduler)


class _UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """UniPC without synchronisation between host and device.

    The library computes and solves for its coefficients on the device of the samples, so each step copies numbers to
    the device and back. An update is a weighted sum of samples and model outputs. Applied to unit vectors on the host,
    the formulas of the library give these weights.
    """

    def multistep_uni_p_bh_update(self, model_output: Tensor, *, sample: Tensor, order: int) -> Tensor:
        update = super().multistep_uni_p_bh_update
        return self._weighted(lambda unit: update(unit, sample=unit, order=order), sample)

    def multistep_uni_c_bh_update(
        self, this_model_output: Tensor, *, last_sample: Tensor, this_sample: Tensor, order: int
    ) -> Tensor:
        update = super().multistep_uni_c_bh_update
        return self._weighted(
            lambda last, output: update(output, last_sample=last, this_sample=last, order=order),
            last_sample,
            this_model_output,
        )

    def _weighted(self, update: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Apply `update` to `inputs` and the stored model outputs, in the dtype of the first input."""
        remembered: Any = self.model_outputs  # type: ignore[has-type]
        units = torch.eye(len(inputs) + len(remembered), dtype=torch.float64)[:, None].unbind()
        self.model_outputs = list(units[len(inputs) :])
        weights = update(*units[: len(inputs)])[0].tolist()
        self.model_outputs = remembered
        terms = (
            weight * tensor.float()
            for weight, tensor in zip(weights, (*inputs, *remembered), strict=True)
            if tensor is not None
        )
        return sum(terms, start=torch.zeros((), device=inputs[0].device)).to(inputs[0].dtype)


def _dpm_plus_plus(num_steps: int, shift: float, device: torch.device | str) -> Scheduler:
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=_NUM_TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(num_steps, device=device)
    sigmas = _shifted_sigmas(num_steps, shift)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
    scheduler.timesteps = torch.from_numpy((sigmas * _NUM_TRAIN_TIMESTEPS).astype(np.int64)).to(device)
    scheduler.set_begin_index(0)
    return cast(Scheduler, scheduler)


def _euler(num_steps: int, shift: float, device: torch.device | str) -> Scheduler:
    """Return Euler steps over the sigmas of `_dpm_plus_plus`; timesteps are not rounded, as in the library."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=_NUM_TRAIN_TIMESTEPS, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1], device=device)
    scheduler.set_begin_index(0)
    return cast(Scheduler, scheduler)


def _shifted_sigmas(num_steps: int, shift: float) -> NDArray[np.float64]:
    sigmas = np.linspace(1.0, 0.0, num_steps + 1)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)
