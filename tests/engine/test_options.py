"""Check the options of an installation: kernels, compilation, dtypes and the step cache."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from s2v_tasks.engine.acceleration.first_block_cache import FirstBlockCache
from s2v_tasks.engine.distributed.mesh import Layout, parallelize
from s2v_tasks.engine.loading import Snapshot, networks
from s2v_tasks.engine.loading.networks import load_pipeline
from s2v_tasks.engine.models.attention import sdpa
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import EngineOptions
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.settings import Settings
from tests.engine.small_transformer import random_transformer, velocities

CPU = torch.device("cpu")
GATE = 2e-5


def test_a_step_with_an_unchanged_first_block_is_skipped() -> None:
    """A repeated step runs only its first block, with the same result; a very different step is computed."""
    transformer = random_transformer()
    runs: list[int] = []
    transformer.blocks[2].register_forward_hook(lambda *_: runs.append(1))
    plain = velocities(transformer, None, [900, 900, 100])
    runs.clear()
    memory = FirstBlockCache(0.01)
    cached = velocities(transformer, memory, [900, 900, 100])
    assert (len(runs), memory.num_skipped) == (2, 1)
    for actual, expected in zip(cached, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=GATE)


def test_the_threshold_decides() -> None:
    """A neighbouring step is computed with a small threshold and skipped with a large one, which costs accuracy."""
    transformer = random_transformer()
    plain = velocities(transformer, None, [500, 480])[1]
    small, large = FirstBlockCache(1e-6), FirstBlockCache(0.5)
    torch.testing.assert_close(velocities(transformer, small, [500, 480])[1], plain, rtol=0, atol=GATE)
    error = (velocities(transformer, large, [500, 480])[1] - plain).abs().max()
    assert (small.num_skipped, large.num_skipped) == (0, 1)
    assert error > GATE


def _total(sums: Tensor) -> Tensor:
    dist.all_reduce(sums)
    return sums


def decide_on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    steps = [900, 890, 500, 490, 100]
    alone = FirstBlockCache(0.16)
    expected = velocities(random_transformer(), alone, steps)
    for layout in ("ulysses2", "ulysses2,fsdp"):
        transformer, memory = random_transformer(), FirstBlockCache(0.16, _total)
        parallelize(transformer, Layout.parse(layout), "cpu")
        together = velocities(transformer, memory, steps)
        assert 0 < memory.num_skipped == alone.num_skipped < len(steps) - 1
        for one, other in zip(together, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=GATE)
    dist.destroy_process_group()


def test_ranks_skip_the_same_steps(tmp_path: Path) -> None:
    """Each rank sees its own tokens, and all ranks skip the steps that one rank with all tokens skips."""
    multiprocessing.set_forkserver_preload([parallelize.__module__])
    start_processes(decide_on_rank, (tmp_path,), 2, start_method="forkserver")  # type: ignore[no-untyped-call]


def test_options_reach_the_networks(tiny_snapshot_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel, compilation and dtype are those of the options, and an impossible combination is refused."""
    snapshot, worker = Snapshot.open(tiny_snapshot_path), Worker(0, 1, CPU)
    chosen: list[tuple[object, bool]] = []
    monkeypatch.setattr(S2VTransformer, "choose_kernels", lambda _, attend, compiled: chosen.append((attend, compiled)))
    load_pipeline(worker, snapshot, "auto", EngineOptions(compiled=True), guided=True)
    assert chosen == [(sdpa, True)]
    with pytest.raises(ConfigurationError, match="'cudnn' needs a GPU"):
        load_pipeline(worker, snapshot, "auto", EngineOptions(attention="cudnn"), guided=True)
    with pytest.raises(ConfigurationError, match="fp8-dynamic without S2V_COMPILE: expected both"):
        load_pipeline(worker, snapshot, "auto", EngineOptions(weights_dtype="fp8-dynamic"), guided=True)
    dynamic = EngineOptions(weights_dtype="fp8-dynamic", compiled=True)
    with pytest.raises(ConfigurationError, match="fp8-dynamic need a GPU"):
        load_pipeline(worker, snapshot, "auto", dynamic, guided=True)
    with pytest.raises(ConfigurationError, match="shards the weights, which is not possible in fp8"):
        load_pipeline(worker, snapshot, "fsdp", EngineOptions(weights_dtype="fp8"), guided=True)


@pytest.mark.parametrize(
    ("options", "fsdp"), [({}, True), ({"weights_dtype": "fp8"}, False), ({"offload": "blocks"}, False)]
)
def test_weights_that_cannot_be_sharded_are_not(
    tiny_snapshot_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], fsdp: bool
) -> None:
    """On two small GPUs the layout "auto" shards the weights, except in float8 or with offloaded blocks."""
    layouts: list[Layout] = []

    def parallelize(_transformer: S2VTransformer, layout: Layout, *_: Any, **__: Any) -> None:
        layouts.append(layout)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 1 << 20))
    monkeypatch.setattr(networks, "attention_kernel", lambda *_: sdpa)
    monkeypatch.setattr(networks, "kernel_name", lambda *_: "sdpa")
    monkeypatch.setattr(networks, "Float8Weights", lambda *_: None)
    monkeypatch.setattr(networks, "parallelize", parallelize)
    worker = Worker(0, 2, torch.device("cuda"))
    with pytest.raises(InterruptedError):
        load_pipeline(worker, Snapshot.open(tiny_snapshot_path), "auto", EngineOptions(**options), guided=True)
    assert layouts == [Layout(cfg=2, fsdp=fsdp)]


def test_fingerprints_of_earlier_options_stay() -> None:
    """An option that was added later changes a fingerprint only if it is not at its default."""
    earlier = {
        "noise_device": "run",
        "attention": "auto",
        "compiled": False,
        "weights_dtype": "auto",
        "step_cache": 0.0,
    }
    assert EngineOptions().for_fingerprint() == earlier
    assert EngineOptions(offload="blocks").for_fingerprint() == earlier  # it changes no byte
    assert EngineOptions(vae_precision="bfloat16").for_fingerprint() == earlier | {"vae_precision": "bfloat16"}


def test_options_are_the_settings_of_the_same_names() -> None:
    """Each option is read from the setting of its name."""
    settings = Settings(compile=True, step_cache=0.1, vae_precision="bfloat16", noise_device="cpu")
    expected = EngineOptions("cpu", compiled=True, step_cache=0.1, vae_precision="bfloat16")
    assert EngineOptions.of(settings) == expected
