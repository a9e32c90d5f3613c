"""Check that matrix products by oneDNN and other kernels for the CPU equal those of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2v_tasks.engine.models import layers

WEIGHT, BIAS = torch.randn(48, 33), torch.randn(48)
TOKENS = torch.randn(1, 12, 33)


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    "x",
    [TOKENS[0], TOKENS, TOKENS[:, 3:7], TOKENS[:, :0], torch.randn(2, 3, 5, 33), torch.randn(33, 5).t()],
    ids=["matrix", "tokens", "part", "none", "frames", "transposed"],
)
def test_a_product_in_fp32_is_that_of_torch(x: Tensor, bias: Tensor | None) -> None:
    """The product is equal for tokens of any shape, for no tokens (a rank may have none), and for views."""
    with torch.inference_mode():
        torch.testing.assert_close(layers.linear(x, WEIGHT, bias), F.linear(x, WEIGHT, bias), rtol=0, atol=1e-5)


def test_gelu_behind_a_product_is_that_of_torch() -> None:
    """GELU with tanh is equal in fp32, where it is part of the product, and in bf16, where it is not."""
    for dtype, gate in ((torch.float32, 1e-5), (torch.bfloat16, 0.0)):
        x, weight, bias = (4 * TOKENS).to(dtype), WEIGHT.to(dtype), BIAS.to(dtype)
        expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")
        torch.testing.assert_close(layers.linear(x, weight, bias, gelu=True), expected, rtol=0, atol=gate)


@pytest.mark.parametrize(("dtype", "gate"), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
def test_the_norm_is_that_of_torch(dtype: torch.dtype, gate: float) -> None:
    """The norm is equal, also for rows of zeros, which `eps` keeps finite."""
    x = (0.01 * TOKENS).to(dtype)
    x[:, 2] = 0
    expected = F.rms_norm(x, x.shape[-1:], eps=1e-6)
    torch.testing.assert_close(layers.rms_norm(x.clone(), 1e-6), expected, rtol=0, atol=gate)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_only_plain_fp32_weights_on_a_cpu_take_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in bf16, on other devices, or of a subclass of tensors use the product of torch."""

    class Quantised(Tensor):
        pass

    taken: list[Tensor] = []
    monkeypatch.setattr(layers.F, "linear", lambda x, weight, _: taken.append(weight) or x)
    own = nn.Parameter(WEIGHT.as_subclass(Quantised), requires_grad=False)
    others = [WEIGHT.bfloat16(), WEIGHT.to("meta"), own]
    for weight in [WEIGHT, nn.Parameter(WEIGHT, requires_grad=False), *others]:
        layers.linear(TOKENS.to(weight.dtype), weight, None)
    assert [id(weight) for weight in taken] == [id(weight) for weight in others]
