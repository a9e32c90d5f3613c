import pytest
import torch

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
    """The timesteps are those of the released model, not the library's defaults."""
    scheduler = make_scheduler(solver, num_steps=10, shift=3.0, device="cpu")
    assert scheduler.timesteps.tolist() == timesteps
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.sigmas.shape == (11,)
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("num_steps", [1, 4, 40])
def test_the_exact_velocity_leads_to_the_target(solver: str, num_steps: int) -> None:
    """Following the velocity that points from noise to a target ends at the target, in any number of steps."""
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
    [("euler", 4, 3.0, "'euler'"), ("unipc", 0, 3.0, "sample_steps=0"), ("dpm++", 4, 0.0, "sample_shift=0.0")],
)
def test_impossible_sampling_is_refused(solver: str, num_steps: int, shift: float, named: str) -> None:
    """An unknown solver and impossible numbers are permanent errors that name the value."""
    with pytest.raises(PermanentError, match=named.replace("+", r"\+")):
        make_scheduler(solver, num_steps=num_steps, shift=shift, device="cpu")
