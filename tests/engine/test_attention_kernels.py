"""Check the kernels of self attention: their choice, their availability and their results."""

from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from s2v_tasks.engine.models import attention
from s2v_tasks.engine.models.attention import ATTENTION_KERNELS, SelfAttention, attention_kernel, kernel_name, sdpa
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import AttentionKernel

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
# A package whose function takes tokens before heads, like the real ones, and keeps the shapes that it was given.
PACKAGE = """
import torch.nn.functional as F
shapes = []
def flash_attn_func(q, k, v):
    shapes.append((tuple(q.shape), tuple(k.shape)))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2), None
"""


def test_the_setting_offers_every_kernel() -> None:
    """S2V_ATTENTION takes the names of the kernels, in their order, and auto."""
    assert get_args(AttentionKernel) == ("auto", *ATTENTION_KERNELS)


def qkv(queries: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, count, 2, 16, generator=generator) for count in (queries, keys, keys))
    return q, k, v


@pytest.mark.parametrize(
    ("capability", "cudnn", "name"),
    [
        ((8, 0), 91500, "flash"),
        ((8, 9), 91500, "flash"),
        ((9, 0), 90900, "flash"),
        ((9, 0), 91000, "cudnn"),
        ((10, 0), 91500, "cudnn"),
        ((12, 0), 91500, "cudnn"),
        ((9, 0), None, "flash"),
    ],
)
def test_the_default_follows_the_generation_of_the_gpu(
    capability: tuple[int, int], cudnn: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is cuDNN's kernel from Hopper and cuDNN 9.10 on; a kernel that is configured by name is not replaced."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == GPU else None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert kernel_name("auto", GPU) == name
    assert kernel_name("flash3", GPU) == "flash3"
    assert kernel_name("auto", CPU) == "sdpa"


def test_an_unavailable_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the kernel and its requirement, or the available kernels."""
    with pytest.raises(ConfigurationError, match="'flash3' needs the Python module flash_attn_interface"):
        attention_kernel("flash3", GPU)
    with pytest.raises(ConfigurationError, match="expected one of sdpa, cudnn, flash, flash2, flash3, sage"):
        attention_kernel("fast", GPU)
    with pytest.raises(ConfigurationError, match="'cudnn' needs a GPU, this device is cpu"):
        attention_kernel("cudnn", CPU)
    monkeypatch.setattr(attention, "find_spec", lambda _name: object())
    for version in ("1.0.6", "2.1.9"):
        monkeypatch.setattr(metadata, "version", lambda _name, version=version: version)
        with pytest.raises(ConfigurationError, match=rf"needs sageattention 2\.2 or newer, {version} is installed"):
            attention_kernel("sage", GPU)
    assert attention_kernel("sdpa", CPU) is sdpa


@pytest.mark.parametrize("name", ["cudnn", "flash"])
def test_a_kernel_of_torch_is_the_only_one_that_torch_may_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a kernel of torch is chosen, all other kernels of torch are switched off."""
    seen: list[list[bool]] = []

    def look(*_: Tensor) -> Tensor:
        backends = torch.backends.cuda
        seen.append([
            backends.cudnn_sdp_enabled(),
            backends.flash_sdp_enabled(),
            backends.mem_efficient_sdp_enabled(),
            backends.math_sdp_enabled(),
        ])
        return torch.zeros(1)

    monkeypatch.setattr(attention, "sdpa", look)
    attention_kernel(name, GPU)(*qkv())
    assert seen == [[name == "cudnn", name == "flash", False, False]]
    assert set(ATTENTION_KERNELS) >= {"cudnn", "flash"}
    assert SDPBackend.MATH not in attention._TORCH_BACKENDS.values()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Installs a stand-in for FlashAttention 3; gives the shapes of the queries and keys of its calls."""
    monkeypatch.delitem(__import__("sys").modules, "flash_attn_interface", raising=False)
    (tmp_path / "flash_attn_interface.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    import flash_attn_interface  # type: ignore[import-not-found]

    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = flash_attn_interface.shapes
    return shapes


def test_a_kernel_of_a_package_computes_attention(package: list[object]) -> None:
    """The kernel is called with tokens before heads, and a second return value is dropped."""
    torch.testing.assert_close(attention_kernel("flash3", GPU)(*qkv()), sdpa(*qkv()), rtol=0, atol=1e-6)
    assert package == [((1, 5, 2, 16), (1, 7, 2, 16))]


@pytest.mark.parametrize("name", ["sdpa", "flash", "flash3"])
def test_a_kernel_is_part_of_one_compiled_graph(name: str, package: list[object]) -> None:
    """Self attention compiles to one graph with the kernels of torch and of packages, with equal results."""
    torch.manual_seed(0)
    module = SelfAttention(32, 2, 1e-6).requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, rope = torch.randn(1, 6, 32), torch.randn(6, 8, 2)
    with torch.inference_mode():
        expected = module(x, nn.Identity(), rope, 6)
        module.attend = attention_kernel(name, CPU)
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(x, nn.Identity(), rope, 6), expected, rtol=0, atol=1e-5)
