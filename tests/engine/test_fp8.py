"""Check float8 weights of the blocks, by torchao, from files in bf16 and in float8."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._inductor import config as inductor_config

from s2v_tasks.engine.acceleration import fp8
from s2v_tasks.engine.acceleration.fp8 import Float8Weights, is_quantized
from s2v_tasks.engine.loading.shards import Conversion, load_shards
from s2v_tasks.engine.models.config import S2VConfig
from s2v_tasks.engine.models.layers import Linear
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError
from tests.engine.float8_file import in_float8
from tests.engine.small_transformer import SMALL, random_transformer, velocities

CPU = torch.device("cpu")


def test_only_large_matrices_of_the_blocks_are_float8() -> None:
    """Ten matrices of each block are float8; norms, modulation and weights outside the blocks are not."""
    modules = dict(random_transformer().named_modules())
    chosen = {name for name, module in modules.items() if is_quantized(module, name)}
    assert len(chosen) == 3 * 10
    assert {name.split(".", 2)[2] for name in chosen} == {
        *(f"{attention}.{name}" for attention in ("self_attn", "cross_attn") for name in "qkvo"), "ffn.0", "ffn.2",
    }  # fmt: skip
    assert {name for name, module in modules.items() if isinstance(module, Linear)} - chosen > {"text_embedding.0"}


def test_float8_is_refused_where_it_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the missing package, or a GPU that supports float8."""
    with pytest.raises(ConfigurationError, match=r"capability 8\.9 or more, this device is cpu"):
        Float8Weights(random_transformer(), "fp8-dynamic", CPU, torch.float32)
    monkeypatch.setattr(fp8, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match="torchao, which is not installed"):
        Float8Weights(random_transformer(), "fp8", CPU, torch.float32)


def test_float8_weights_give_about_the_same_velocity() -> None:
    """With torchao, the velocity differs from that of the whole weights by a few percent."""
    pytest.importorskip("torchao", reason="s2v-tasks[fp8] is not installed")
    transformer = random_transformer()
    expected = velocities(transformer, None, [500])[0]
    float8 = Float8Weights(transformer, "fp8", CPU, torch.float32)
    state = {key: float8(key, weight) for key, weight in transformer.state_dict().items()}
    turned = {key for key, weight in state.items() if type(weight) is not type(transformer.state_dict()[key])}
    assert len(turned) == 3 * 10
    transformer.load_state_dict(state, assign=True)
    actual = velocities(transformer, None, [500])[0]
    assert 1e-4 < (actual - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("kind", ["fp8", "fp8-dynamic"])
def test_float8_weights_leave_the_compiler_as_it_is(
    kind: Literal["fp8", "fp8-dynamic"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight in float8 does not change how the compiler chooses kernels in this process."""
    pytest.importorskip("torchao", reason="s2v-tasks[fp8] is not installed")
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _granularity: None)
    monkeypatch.setattr(fp8, "_check", lambda *_: None)
    weight = torch.zeros(32, 16, dtype=torch.bfloat16)
    with inductor_config.patch(coordinate_descent_tuning=False):
        before = inductor_config.save_config_portable()
        float8 = Float8Weights(random_transformer(), kind, CPU, torch.bfloat16)
        assert type(float8("blocks.0.ffn.0.weight", weight)).__name__ == "Float8Tensor"
        assert inductor_config.save_config_portable() == before


@pytest.fixture(params=[False, True], ids=["a scale for each weight", "a scale for each row"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "scaled.safetensors"
    save_file(in_float8(random_transformer().state_dict(), ".scale_weight", per_row=request.param), path)
    return path


def filled(file: Path, float8: Callable[[S2VTransformer], Float8Weights] | None) -> S2VTransformer:
    with torch.device("meta"):
        transformer = S2VTransformer(S2VConfig.from_json(SMALL))
    kept = float8(transformer) if float8 else None
    load_shards(
        transformer, [file], Conversion(torch.float32, convert=kept, float8=kept), device=CPU, source="a file in float8"
    )
    return transformer


def test_a_file_in_float8_is_used_as_it_is(file: Path) -> None:
    """Values and scales of the file are used without another rounding."""
    pytest.importorskip("torchao", reason="s2v-tasks[fp8] is not installed")
    transformer = filled(file, lambda network: Float8Weights(network, "fp8", CPU, torch.float32))
    stored = load_file(file)
    scaled = [key for key in stored if stored[key].dtype == torch.float8_e4m3fn and key != "scaled_fp8"]
    assert len(scaled) == 3 * 10
    for key in scaled:
        weight, scale = transformer.get_parameter(key), stored[key.removesuffix(".weight") + ".scale_weight"]
        assert torch.equal(weight.qdata.view(torch.uint8), stored[key].view(torch.uint8))
        assert torch.equal(weight.scale, scale.reshape(-1, 1).expand(weight.shape[0], 1))
    whole = filled(file, None)
    assert not any(parameter.dtype == torch.float8_e4m3fn for parameter in whole.parameters())
    expected, actual = (velocities(network, None, [500])[0] for network in (whole, transformer))
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_weights_outside_of_the_blocks_are_never_float8(file: Path, tmp_path: Path) -> None:
    """A text embedding that is float8 in the file is loaded in the dtype of the run."""
    pytest.importorskip("torchao", reason="s2v-tasks[fp8] is not installed")
    stored = load_file(file)
    embedding: Tensor = stored["text_embedding.0.weight"]
    stored["text_embedding.0.weight"] = embedding.to(torch.float8_e4m3fn)
    stored["text_embedding.0.scale_weight"] = torch.tensor(2.0)
    save_file(stored, tmp_path / "more.safetensors")
    transformer = filled(
        tmp_path / "more.safetensors", lambda network: Float8Weights(network, "fp8", CPU, torch.float32)
    )
    assert torch.equal(
        transformer.get_parameter("text_embedding.0.weight"), embedding.to(torch.float8_e4m3fn).float() * 2
    )
