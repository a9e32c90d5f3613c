"""Load the networks of a pipeline on all ranks, in their layout and with the options of the installation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s2v_tasks.engine.acceleration.fp8 import Float8Weights
from s2v_tasks.engine.acceleration.offload import BlockOffload, keep_blocks_on_host
from s2v_tasks.engine.distributed.halo_exchange import ParallelVae
from s2v_tasks.engine.distributed.mesh import Layout, choose_layout, parallelize
from s2v_tasks.engine.loading.adapters import Adapter
from s2v_tasks.engine.loading.snapshot import Snapshot
from s2v_tasks.engine.models.attention import attention_kernel, kernel_name
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.options import EngineOptions, VaePrecision
from s2v_tasks.engine.pipeline import S2VPipeline
from s2v_tasks.engine.worker import Worker
from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger


def load_pipeline(
    worker: Worker,
    snapshot: Snapshot,
    parallel_layout: str,
    options: EngineOptions,
    *,
    guided: bool,
    adapters: Sequence[Adapter] = (),
) -> tuple[S2VPipeline, Layout]:
    """Return the pipeline of a clip, shared by all ranks in a layout ("auto", or like "cfg2,ulysses2").

    All ranks call it.

    bf16 on a GPU; fp32 on a CPU, where bf16 is emulated and slow. Raises ConfigurationError for an impossible layout
    and for unsupported options.
    """
    device = worker.device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    transformer = snapshot.build_transformer()
    attend = attention_kernel(kernel_name(options.attention, device), device)
    transformer.choose_kernels(attend, compiled=options.compiled)
    layout = _layout(worker, transformer, parallel_layout, options, guided=guided)
    _check_options(options, layout)
    convert: Callable[[str, Tensor], Tensor] | None = None
    float8: Float8Weights | None = None
    if options.offload == "blocks":
        convert = keep_blocks_on_host(device)
    if options.weights_dtype != "auto":
        convert = float8 = Float8Weights(transformer, options.weights_dtype, device, dtype)
    branches = parallelize(transformer, layout, device.type, guided=guided)
    reports = snapshot.fill_transformer(transformer, device, dtype, convert=convert, float8=float8, adapters=adapters)
    for report in reports:
        get_logger().info(
            "adapter_merged",
            adapter=report.name,
            matched=len(report.matched),
            unmatched=len(report.unmatched),
            mismatched=len(report.mismatched),
            examples=[*report.unmatched, *report.mismatched][:3],
        )
    if options.offload == "blocks":
        transformer.lend_block = BlockOffload(list(transformer.blocks), device).lend
    vae = snapshot.load_vae(device, options.vae_precision)
    codec = ParallelVae(vae) if worker.world_size > 1 else vae
    pipeline = S2VPipeline(transformer, codec, device, dtype, options=options, branches=branches, total=worker.total)
    return pipeline, layout


def _layout(
    worker: Worker, transformer: S2VTransformer, parallel_layout: str, options: EngineOptions, *, guided: bool
) -> Layout:
    """Return the layout of the name; "auto" chooses it for the number of ranks and the memory of a GPU."""
    if parallel_layout != "auto":
        return Layout.parse(parallel_layout)
    return choose_layout(
        worker.world_size,
        transformer.config.num_heads,
        guided=guided,
        weight_bytes=_shardable_bytes(transformer, options),
        memory_bytes=None if worker.device.type == "cpu" else torch.cuda.mem_get_info(worker.device)[1],
    )


def _check_options(options: EngineOptions, layout: Layout) -> None:
    """Raise ConfigurationError for options that exclude each other or the layout."""
    if options.offload == "blocks" and options.weights_dtype != "auto":
        raise ConfigurationError(
            f"S2V_OFFLOAD is blocks with S2V_WEIGHTS_DTYPE {options.weights_dtype}: expected auto. Offloaded blocks do "
            "not stay on the GPU, so smaller weights spare no memory there."
        )
    if options.offload == "blocks" and layout.fsdp:
        raise ConfigurationError(
            f"S2V_OFFLOAD is blocks with the layout {layout}, which shards the blocks: expected a layout without fsdp. "
            "Use one of the two."
        )
    if options.weights_dtype == "fp8-dynamic" and not options.compiled:
        raise ConfigurationError(
            "S2V_WEIGHTS_DTYPE is fp8-dynamic without S2V_COMPILE: expected both. Uncompiled, the activations are "
            "quantised in five passes over memory, which makes a step slower than in bf16."
        )
    if options.weights_dtype != "auto" and layout.fsdp:
        raise ConfigurationError(
            f"parallel layout {layout} shards the weights, which is not possible in {options.weights_dtype}: "
            "choose a layout without fsdp, or S2V_WEIGHTS_DTYPE=auto."
        )


def _shardable_bytes(transformer: S2VTransformer, options: EngineOptions) -> int:
    """Return the bytes of the weights on a GPU; 0 if they cannot be sharded, in float8 or with offloaded blocks."""
    if options.offload == "blocks" or options.weights_dtype != "auto":
        return 0
    return 2 * sum(parameter.numel() for parameter in transformer.parameters())


def made_with(device: torch.device) -> dict[str, str]:
    """Return the properties that affect rounding: the kind of the device and the versions of its kernels."""
    if device.type == "cuda":
        return {
            "device_model": torch.cuda.get_device_name(device),
            "torch_version": str(torch.__version__),
            "cudnn_version": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        }
    return {"device_model": torch.backends.cpu.get_cpu_capability(), "torch_version": str(torch.__version__)}


def vae_precision(device: torch.device, precision: VaePrecision) -> str:
    """Return the precision of the convolutions of the VAE: a GPU rounds float32 to TF32 by default."""
    if precision == "float32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return "tf32"
    return precision
