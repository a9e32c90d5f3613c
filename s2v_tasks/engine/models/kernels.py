"""The kernels that can compute self attention: torch's own by default, others by name where they are installed.

Legend: B batch, L queries, S keys, H heads, d head width.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from s2v_tasks.errors import ConfigurationError

# Softmax attention without mask, scaled by 1/sqrt(d): q_BLHd, k_BSHd, v_BSHd of one dtype to [B, L, H, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# name: (module, function, arguments that make it take tokens before heads)
_OPTIONAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "flash2": ("flash_attn", "flash_attn_func", {}),
    "flash3": ("flash_attn_interface", "flash_attn_func", {}),
    "sage": ("sageattention", "sageattn", {"tensor_layout": "NHD"}),
}
ATTENTION_KERNELS = ("sdpa", *_OPTIONAL)


def sdpa(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
    """Torch's scaled dot product attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attention_kernel(name: str) -> Attend:
    """The kernel of that name.

    Raises ConfigurationError for an unknown name and for a kernel whose package is not installed.
    """
    if name == "sdpa":
        return sdpa
    if name not in _OPTIONAL:
        raise ConfigurationError(
            f"attention kernel {name!r} is unknown; expected one of {', '.join(ATTENTION_KERNELS)}"
        )
    module, function, arguments = _OPTIONAL[name]
    if find_spec(module) is None:
        raise ConfigurationError(
            f"attention kernel {name!r} needs the Python module {module}, which is not installed; "
            "install it or choose sdpa"
        )
    kernel = getattr(import_module(module), function)

    def attend(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
        result = kernel(q_BLHd, k_BSHd, v_BSHd, **arguments)
        # Some releases return the log-sum-exp as well.
        attended: Tensor = result[0] if isinstance(result, tuple) else result
        return attended

    return attend
