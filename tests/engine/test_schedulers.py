"""Check the schedulers of the sampling."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from s2v_tasks.engine.schedulers import make_scheduler
from s2v_tasks.errors import PermanentError


@pytest.mark.parametrize(
    ("solver", "timesteps"),
    [
        ("unipc", [999, 963, 922, 874, 817, 749, 666, 562, 428, 249]),
        ("dpm++", [1000, 964, 923, 874, 818, 750, 666, 562, 428, 249]),
    ],
)
def test_timesteps_are_the_models_own(solver: str, timesteps: list[int]) -> None:
    """The timesteps equal those of the released model and not the library's defaults."""
    scheduler = make_scheduler(solver, num_steps=10, shift=3.0, device="cpu")
    assert scheduler.timesteps.tolist() == timesteps
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.sigmas.shape == (11,)
    assert scheduler.sigmas[-1] == 0


def test_euler_has_the_schedule_of_the_library() -> None:
    """The sigmas equal the library's for the shift, and the timesteps are the sigmas times a thousand."""
    library = FlowMatchEulerDiscreteScheduler(shift=8.0)
    library.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    scheduler = make_scheduler("euler", num_steps=4, shift=8.0, device="cpu")
    assert torch.equal(scheduler.sigmas, library.sigmas)
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
    assert scheduler.sigmas[1] == pytest.approx(0.96)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize("num_steps", [1, 4, 40])
def test_the_exact_velocity_leads_to_the_target(solver: str, num_steps: int) -> None:
    """The velocity from noise to a target leads to the target in any number of steps."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 16, 2, 4, 4, generator=generator)
    noise = torch.randn(target.shape, generator=generator)
    scheduler = make_scheduler(solver, num_steps=num_steps, shift=3.0, device="cpu")
    first_sigma = scheduler.sigmas[0]
    sample = (1 - first_sigma) * target + first_sigma * noise
    for timestep in scheduler.timesteps:
        sample = scheduler.step(noise - target, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "num_steps", "shift", "named"),
    [("heun", 4, 3.0, "'heun'"), ("unipc", 0, 3.0, "sample_steps=0"), ("dpm++", 4, 0.0, "sample_shift=0.0")],
)
def test_impossible_sampling_is_refused(solver: str, num_steps: int, shift: float, named: str) -> None:
    """An unknown solver and impossible numbers are permanent errors that name the value."""
    with pytest.raises(PermanentError, match=named.replace("+", r"\+")):
        make_scheduler(solver, num_steps=num_steps, shift=shift, device="cpu")
