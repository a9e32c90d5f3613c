"""Self attention over all tokens, cross attention (spec c.7), and the kernels of self attention by name.

Each kernel computes what its name says or fails: none is replaced by another.

| name | kernel | needs |
|---|---|---|
| sdpa | what torch chooses | |
| cudnn | cuDNN's fused attention, by torch | a GPU |
| flash | FlashAttention 2 as torch has it | |
| flash2, flash3 | FlashAttention 2 or 3 of its own package | flash_attn, flash_attn_interface |
| sage | SageAttention, which rounds queries and keys to 8 bits | sageattention 2.2 or newer |

Legend: B batch, L queries, S keys, D model width, H heads, d head width, c = d/2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2v_tasks.engine.models.layers import Linear, RMSNorm
from s2v_tasks.engine.models.rope import rotate
from s2v_tasks.errors import ConfigurationError

# Softmax attention without mask, scaled by 1/sqrt(d): q_BLHd, k_BSHd, v_BSHd of one dtype to [B, L, H, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_HOPPER = (9, 0)
_RECENT_CUDNN = 91000  # 9.10; earlier releases have slower or missing kernels for Blackwell and long sequences
_TORCH_BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True)
class _Package:
    """A kernel outside of torch: module, function, and the arguments that make it take tokens before heads."""

    module: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    least_version: tuple[int, int] | None = None


_PACKAGES = {
    "flash2": _Package("flash_attn", "flash_attn_func"),
    "flash3": _Package("flash_attn_interface", "flash_attn_func"),
    # 1.0.6, which the package index has, is a Triton kernel with another accuracy.
    "sage": _Package("sageattention", "sageattn", {"tensor_layout": "NHD"}, (2, 2)),
}
ATTENTION_KERNELS = ("sdpa", *_TORCH_BACKENDS, *_PACKAGES)


def sdpa(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, bias_S: Tensor | None = None) -> Tensor:
    """Return torch's scaled dot product attention; `bias_S` is added to the score of each key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    mask_BHLS = None if bias_S is None else bias_S[None, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BHLS).transpose(1, 2)


def kernel_name(chosen: str, device: torch.device) -> str:
    """Return `chosen`, and for "auto" the name of the kernel that suits `device`.

    cuDNN's on Hopper and later GPUs with cuDNN 9.10 or newer, FlashAttention 2 on other GPUs, torch's choice on a CPU.
    """
    if chosen != "auto":
        return chosen
    if device.type != "cuda":
        return "sdpa"
    version: int = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    return "cudnn" if version >= _RECENT_CUDNN and torch.cuda.get_device_capability(device) >= _HOPPER else "flash"


def attention_kernel(name: str, device: torch.device) -> Attend:
    """Return the kernel of that name for tensors on `device`.

    Raises ConfigurationError for an unknown name, for a kernel whose package is missing or too old, and for one that
    the device does not have.
    """
    if name == "sdpa":
        return sdpa
    if name in _TORCH_BACKENDS:
        if name == "cudnn" and device.type != "cuda":
            raise ConfigurationError(
                f"attention kernel 'cudnn' needs a GPU, this device is {device.type}; set S2V_ATTENTION=auto"
            )
        return _of_torch(_TORCH_BACKENDS[name])
    if name in _PACKAGES:
        return _of_package(name, _PACKAGES[name])
    raise ConfigurationError(f"attention kernel {name!r} is unknown; expected one of {', '.join(ATTENTION_KERNELS)}")


def _of_torch(backend: SDPBackend) -> Attend:
    def attend(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor) -> Tensor:
        # With one backend torch fails where that cannot compute the call, instead of taking another.
        with sdpa_kernel(backend):
            return sdpa(q_BLHd, k_BSHd, v_BSHd)

    return attend


def _of_package(name: str, package: _Package) -> Attend:
    if find_spec(package.module) is None:
        raise ConfigurationError(
            f"attention kernel {name!r} needs the Python module {package.module}, which is not installed; "
            "install it or set S2V_ATTENTION=auto"
        )
    if package.least_version is not None and _version(package.module) < package.least_version:
        least = ".".join(map(str, package.least_version))
        raise ConfigurationError(
            f"attention kernel {name!r} needs {package.module} {least} or newer, "
            f"{metadata.version(package.module)} is installed; install a newer one or set S2V_ATTENTION=auto"
        )
    kernel = getattr(import_module(package.module), package.function)

    # An operator of its own: torch.compile keeps it as one call and does not look inside.
    @torch.library.custom_op(f"s2v::{name}", mutates_args=())
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = kernel(q, k, v, **package.arguments)
        # Some releases return the log-sum-exp as well.
        attended: Tensor = result[0] if isinstance(result, tuple) else result
        return attended.contiguous()

    @attend.register_fake
    def _shape(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q.new_empty(q.shape)

    return attend


def _version(module: str) -> tuple[int, ...]:
    """Return the first two numbers of the installed version."""
    return tuple(int(part) for part in metadata.version(module).split(".")[:2])


class KeysValues(NamedTuple):
    """Keys and values of a context `[B, S, H, d]` and, if keys count unequally, a bias."""

    keys: Tensor
    values: Tensor
    bias_S: Tensor | None = None


class Attention(nn.Module):
    """The projections that self and cross attention share; q and k are normalised over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def queries(self, x_BLD: Tensor) -> Tensor:
        """Return the queries `[B, L, H, d]`."""
        return self._heads(self.norm_q(self.q(x_BLD)))

    def keys_values(self, x_BSD: Tensor) -> KeysValues:
        """Return the keys and values of a context."""
        return KeysValues(self._heads(self.norm_k(self.k(x_BSD))), self._heads(self.v(x_BSD)))

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = rearrange(x, "b l (h d) -> b l h d", h=self.num_heads)
        return heads


class SelfAttention(Attention):
    """Attention to all tokens, with rotary positions.

    `attend` computes the softmax attention itself and may be replaced from outside.
    """

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__(dim, num_heads, eps)
        self.attend: Attend = sdpa

    def forward(self, x_BLD: Tensor, norm: Callable[[Tensor], Tensor], rope_Lc2: Tensor, num_kept: int) -> Tensor:
        """Return the attention `[1, num_kept, D]` of the first `num_kept` tokens to all tokens, after `norm`."""
        # No name holds what `norm`, the projections and the kernel return: each is as large as all tokens.
        attended = self.attend(*self._queries_keys_values(norm(x_BLD), rope_Lc2, num_kept))
        return self.o(attended.flatten(2))  # type: ignore[no-any-return]

    def _queries_keys_values(self, x_BLD: Tensor, rope_Lc2: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
        x_BLD = x_BLD.to(self.q.weight.dtype)  # once for the three products
        q = rotate(self.queries(x_BLD[:, :num_kept]), rope_Lc2[:num_kept])
        k, v, _ = self.keys_values(x_BLD)  # the values last: they need no norm, which takes memory
        return q, rotate(k, rope_Lc2), v


class CrossAttention(Attention):
    """Attention of tokens to a context (text or sound), without positions."""

    def forward(self, x_BLD: Tensor, context: KeysValues) -> Tensor:
        return self.o(sdpa(self.queries(x_BLD), *context).flatten(2))  # type: ignore[no-any-return]
