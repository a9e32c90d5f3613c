"""Assign weights to modules strictly: all keys and shapes must match."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from s2v_tasks.engine.loading.files import check_file
from s2v_tasks.errors import ConfigurationError

_MAX_NAMES = 5


def assign_weights(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Make `state` the weights of `module`, which may be on the meta device; tensors are used without a copy.

    `source` names the weights in the error. Raises ConfigurationError with all missing keys, unexpected keys and wrong
    shapes.
    """
    check_fit(module, {key: value.shape for key, value in state.items()}, source=source)
    module.load_state_dict(dict(state), strict=True, assign=True)
    finish(module)


def check_fit(module: nn.Module, shapes: Mapping[str, Sequence[int]], *, source: str) -> None:
    """Compare keys and shapes of the weights of `module` with `shapes`, and refuse any difference."""
    expected = {key: list(value.shape) for key, value in module.state_dict().items()}
    problems = [
        *_named("missing", expected.keys() - shapes.keys()),
        *_named("unexpected", shapes.keys() - expected.keys()),
        *_named(
            "of another shape",
            (
                f"{key} {list(shapes[key])} instead of {shape}"
                for key, shape in expected.items()
                if key in shapes and list(shapes[key]) != shape
            ),
        ),
    ]
    if problems:
        raise ConfigurationError(
            f"the weights of {source} do not fit {type(module).__name__}: {'; '.join(problems)}; "
            "download the snapshot again and check that config.json belongs to it"
        )


def finish(module: nn.Module) -> None:
    """Make a filled module ready for inference; raises ConfigurationError for a tensor that no file filled."""
    module.eval().requires_grad_(False)
    left_over = [name for name, value in chain(module.named_parameters(), module.named_buffers()) if value.is_meta]
    if left_over:
        raise ConfigurationError(f"{type(module).__name__} has tensors that no file fills: {left_over[:_MAX_NAMES]}")


def read_pth(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """Return the plain state dict of a .pth file; on the CPU its tensors stay mapped to the file.

    Raises ConfigurationError if the file is damaged or contains other objects than tensors.
    """
    check_file(path)
    try:
        # Only the zip format of PyTorch 1.6 and later can be mapped.
        state = torch.load(path, map_location=device, weights_only=True, mmap=is_zipfile(path))
    except (RuntimeError, OSError, ValueError, EOFError, UnpicklingError) as error:
        # Not the text of torch, which advises to execute the file.
        raise ConfigurationError(
            f"{path} cannot be read as weights ({type(error).__name__}): it is damaged, or has objects that are not "
            "tensors; delete it and download it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigurationError(f"{path} is not a plain dictionary of tensors; download it again")
    return state


def _named(problem: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    more = f" and {len(ordered) - _MAX_NAMES} more" if len(ordered) > _MAX_NAMES else ""
    return [f"{problem}: {', '.join(ordered[:_MAX_NAMES])}{more}"]
