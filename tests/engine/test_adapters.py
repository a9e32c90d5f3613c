"""Check that adapters are merged into the weights while the weights are loaded."""

import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.distributed.mesh import shard_weights
from s2v_tasks.engine.loading import Snapshot, adapters
from s2v_tasks.engine.loading.adapters import Adapter, AdapterMerge
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

RANK, ALPHA, STRENGTH = 4, 2.0, 0.8
MODULES = ("blocks.0.self_attn.q", "blocks.3.ffn.2", "audio_injector.injector.1.o")
LAYOUTS = {
    "editor": ("diffusion_model.{}", "lora_down.weight", "lora_up.weight"),
    "peft": ("{}", "lora_A.weight", "lora_B.weight"),
    "peft-prefixed": ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
    "kohya": ("lora_unet_{}", "lora_down.weight", "lora_up.weight"),
    "diffusers": ("transformer.{}", "lora_A.weight", "lora_B.weight"),
}
DIFFUSERS = dict(
    zip(MODULES, ("blocks.0.attn1.to_q", "blocks.3.ffn.net.2", "audio_injector.injector.1.to_out.0"), strict=True)
)


def weights(snapshot: Snapshot, *applied: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", dtype, adapters=applied)
    return transformer.state_dict()


@pytest.fixture(scope="module")
def snapshot(tiny_snapshot_path: Path) -> Snapshot:
    return Snapshot.open(tiny_snapshot_path)


@pytest.fixture(scope="module")
def plain(snapshot: Snapshot) -> dict[str, Tensor]:
    return weights(snapshot)


def factors(plain: dict[str, Tensor], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the matrices down and up of each module."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module in MODULES:
        rows, columns = plain[f"{module}.weight"].shape
        down = torch.randn(RANK, columns, generator=generator)
        found[module] = down, torch.randn(rows, RANK, generator=generator)
    return found


def written(path: Path, tensors: dict[str, Tensor], **fields: Any) -> Adapter:
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Adapter(**{"name": "test", "path": path, "strength": STRENGTH, "sha256": digest} | fields)


def in_layout(layout: str, pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    prefix, down_name, up_name = LAYOUTS[layout]
    tensors = {}
    for module, (down, up) in pairs.items():
        names = {"kohya": module.replace(".", "_"), "diffusers": DIFFUSERS[module]}
        name = prefix.format(names.get(layout, module))
        tensors |= {f"{name}.{down_name}": down, f"{name}.{up_name}": up, f"{name}.alpha": torch.tensor(ALPHA)}
    return tensors


def expected(plain: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]], strength: float) -> dict[str, Tensor]:
    changed = {f"{name}.weight": strength * ALPHA / RANK * (up @ down) for name, (down, up) in pairs.items()}
    return {key: weight + changed[key] if key in changed else weight for key, weight in plain.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_change_by_the_scaled_product(
    snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    """In every layout W becomes W + strength * alpha / rank * up @ down, rounded once; other weights stay."""
    pairs = factors(plain)
    adapter = written(tmp_path / "a.safetensors", in_layout(layout, pairs))
    merged, wanted = weights(snapshot, adapter, dtype=dtype), expected(plain, pairs, STRENGTH)
    for key, weight in merged.items():
        assert weight.dtype == dtype
        if key.removesuffix(".weight") in MODULES:
            torch.testing.assert_close(weight, wanted[key].to(dtype))
            assert not torch.equal(weight, plain[key].to(dtype))
        else:
            assert torch.equal(weight, plain[key].to(dtype))


def test_an_adapter_without_alpha_has_that_of_its_card(
    snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    """The catalogue states alpha if the file has none; without both, the scale is 1."""
    pairs = factors(plain)
    tensors = {key: value for key, value in in_layout("peft", pairs).items() if not key.endswith("alpha")}
    stated = weights(snapshot, written(tmp_path / "a.safetensors", tensors, alpha=ALPHA))
    unstated = weights(snapshot, written(tmp_path / "b.safetensors", tensors, strength=ALPHA / RANK * STRENGTH))
    key = f"{MODULES[0]}.weight"
    torch.testing.assert_close(stated[key], expected(plain, pairs, STRENGTH)[key])
    torch.testing.assert_close(unstated[key], stated[key])


def test_whole_differences_and_biases_are_added(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """`.diff` changes a weight or a parameter of its own, `.diff_b` a bias."""
    tensors = {
        "diffusion_model.blocks.0.norm3.diff": torch.ones(64),
        "diffusion_model.blocks.0.norm3.diff_b": torch.full((64,), 2.0),
        "diffusion_model.blocks.1.modulation.diff": torch.full((1, 6, 64), 3.0),
    }
    merged = weights(snapshot, written(tmp_path / "a.safetensors", tensors, strength=1.0))
    for key, value in (("blocks.0.norm3.weight", 1), ("blocks.0.norm3.bias", 2), ("blocks.1.modulation", 3)):
        torch.testing.assert_close(merged[key], plain[key] + value)


def test_adapters_add_up_and_strength_0_changes_nothing(
    snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    """The changes of both are added; an adapter of strength 0 changes no bit."""
    one, two = factors(plain, 1), factors(plain, 2)
    first = written(tmp_path / "1.safetensors", in_layout("editor", one))
    second = written(tmp_path / "2.safetensors", in_layout("kohya", two), strength=-0.5)
    none = written(tmp_path / "3.safetensors", in_layout("peft", two), strength=0.0)
    merged, wanted = weights(snapshot, first, second), expected(expected(plain, one, STRENGTH), two, -0.5)
    torch.testing.assert_close(merged, wanted)
    assert all(torch.equal(weight, plain[key]) for key, weight in weights(snapshot, none).items())


def merge_on_rank(rank: int, num_ranks: int, folder: Path, snapshot_path: Path) -> None:
    """Merge into shards and compare them with the merge into whole weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    snapshot = Snapshot.open(snapshot_path)
    plain = weights(snapshot)
    path = folder / "a.safetensors"
    if rank == 0:
        save_file(in_layout("editor", factors(plain)) | {"blocks.0.norm3.diff_b": torch.ones(64)}, path)
    dist.barrier()
    adapter = Adapter("test", path, STRENGTH, "")
    sharded = snapshot.build_transformer()
    shard_weights(sharded, init_device_mesh("cpu", (num_ranks,)))
    snapshot.fill_transformer(sharded, "cpu", torch.float32, adapters=[adapter])
    whole = weights(snapshot, adapter)
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter, DTensor)
        torch.testing.assert_close(parameter.full_tensor(), whole[name])
    dist.destroy_process_group()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_merge_their_own_rows(tiny_snapshot_path: Path, tmp_path: Path, num_ranks: int) -> None:
    """Under FSDP each rank changes the rows that it keeps; together they are the merged weights."""
    multiprocessing.set_forkserver_preload([shard_weights.__module__])
    start_processes(  # type: ignore[no-untyped-call]
        merge_on_rank, (num_ranks, tmp_path, tiny_snapshot_path), num_ranks, start_method="forkserver"
    )


def test_a_conversion_gets_merged_weights(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Quantization sees the merged weight, in the dtype of the run."""
    pairs = factors(plain)
    adapter = written(tmp_path / "a.safetensors", in_layout("editor", pairs))
    seen: dict[str, Tensor] = {}

    def convert(key: str, weight: Tensor) -> Tensor:
        seen[key] = weight
        return weight.to(torch.float8_e4m3fn).to(weight.dtype)

    transformer = snapshot.build_transformer()
    snapshot.fill_transformer(transformer, "cpu", torch.bfloat16, convert=convert, adapters=[adapter])
    key = f"{MODULES[0]}.weight"
    torch.testing.assert_close(seen[key], expected(plain, pairs, STRENGTH)[key].bfloat16())
    error = (transformer.state_dict()[key].float() - expected(plain, pairs, STRENGTH)[key]).norm()
    assert error / seen[key].float().norm() < 0.05


def shapes(snapshot: Snapshot) -> dict[str, torch.Size]:
    transformer: S2VTransformer = snapshot.build_transformer()
    return {key: value.shape for key, value in transformer.state_dict().items()}


def refusal(snapshot: Snapshot, adapter: Adapter) -> str:
    with pytest.raises(ConfigurationError) as caught:
        weights(snapshot, adapter)
    return str(caught.value)


def test_the_report_names_what_does_not_fit(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Matched, unknown and misshapen modules are listed; with a low `least_matched` they are only reported."""
    tensors = in_layout("editor", factors(plain))
    tensors |= {"diffusion_model.blocks.0.camera.lora_up.weight": torch.ones(8, 2)}
    tensors |= {"diffusion_model.blocks.0.camera.lora_down.weight": torch.ones(2, 8)}
    tensors |= {f"diffusion_model.blocks.1.ffn.0.{part}.weight": torch.ones(8, 8) for part in ("lora_up", "lora_down")}
    adapter = written(tmp_path / "a.safetensors", tensors, least_matched=0.5)
    (report,) = AdapterMerge([adapter], shapes(snapshot)).reports
    assert set(report.matched) == set(MODULES)
    assert (report.unmatched, report.num_modules) == (("blocks.0.camera",), 5)
    assert report.mismatched == ("blocks.1.ffn.0.weight ([8, 8] instead of [128, 64])",)


def test_an_adapter_of_another_model_is_refused(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """If half of its modules are unknown, the message has the numbers, examples and the remedy."""
    tensors = in_layout("editor", factors(plain))
    for index in range(3):
        tensors |= {f"other.{index}.{part}.weight": torch.ones(8, 8) for part in ("lora_up", "lora_down")}
    text = refusal(snapshot, written(tmp_path / "a.safetensors", tensors))
    assert "adapter test: 3 of its 6 modules fit the transformer, expected 90%; 3 are unknown such as other.0" in text
    assert "lower least_matched" in text


def test_an_adapter_with_two_ranks_is_refused(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Factors that do not fit each other are named with their ranks."""
    tensors = in_layout("editor", factors(plain))
    for module in MODULES:
        tensors[f"diffusion_model.{module}.lora_down.weight"] = torch.ones(6, plain[f"{module}.weight"].shape[1])
    text = refusal(snapshot, written(tmp_path / "a.safetensors", tensors))
    assert "3 have another shape such as" in text
    assert "blocks.0.self_attn.q.weight (up of rank 4, down of rank 6)" in text


def test_an_adapter_that_is_not_finite_is_refused(snapshot: Snapshot, plain: dict[str, Tensor], tmp_path: Path) -> None:
    """An adapter with a NaN is refused by the key of the tensor."""
    tensors = in_layout("peft", factors(plain))
    tensors["blocks.3.ffn.2.lora_B.weight"][0, 0] = torch.nan
    text = refusal(snapshot, written(tmp_path / "a.safetensors", tensors))
    assert "adapter test: blocks.3.ffn.2.lora_B.weight has values that are not finite" in text


def test_files_that_are_no_adapters_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle, a missing file, another digest and a file above the limit have one sentence each."""
    pickled, path = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.save({"a": torch.ones(1)}, pickled)
    with pytest.raises(ConfigurationError, match=r"is a pickle file, which can run code; expected safetensors"):
        Adapter("test", pickled, 1.0, "0" * 64).check_file()
    with pytest.raises(ConfigurationError, match=r"b\.safetensors is not a file; correct its path"):
        Adapter("test", path, 1.0, "0" * 64).check_file()
    adapter = written(path, {"a": torch.ones(1)})
    adapter.check_file()
    with pytest.raises(ConfigurationError, match=r"has sha256 .*expected 000000000000"):
        Adapter("test", path, 1.0, "0" * 64).check_file()
    monkeypatch.setattr(adapters, "MAX_ADAPTER_BYTES", 50)
    with pytest.raises(ConfigurationError, match=r"bytes; expected at most 50\. Use an adapter"):
        adapter.check_file()


def test_a_damaged_adapter_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    """A truncated safetensors file is named."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "cannot be read as safetensors" in refusal(snapshot, Adapter("test", path, 1.0, ""))
