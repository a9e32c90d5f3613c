"""Puts a layout to work: one device mesh, and on it the parallelism of a transformer."""

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.engine.parallel.fsdp import shard_weights
from s2v_tasks.engine.parallel.guidance import BranchSplit
from s2v_tasks.engine.parallel.layout import Layout
from s2v_tasks.engine.parallel.ulysses import SequenceParallel


def open_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh `[cfg, ulysses]` over all ranks; the process group must have been initialised."""
    return init_device_mesh(device_type, (layout.cfg, layout.ulysses), mesh_dim_names=("cfg", "ulysses"))


def parallelize(
    transformer: S2VTransformer, layout: Layout, device_type: str, *, guided: bool = True
) -> BranchSplit | None:
    """Let the ranks share the work on `transformer` and return how the guidance branches are split (None: not at all).

    The transformer may be on the meta device: with `layout.fsdp` its parameters become shards, which are then to be
    filled. Choose an attention kernel before. Every rank must call this, and later call the transformer, alike.

    Raises ConfigurationError where the layout does not fit the ranks or the transformer.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    layout.check(world_size, transformer.config.num_heads, guided=guided)
    if world_size == 1:
        return None
    mesh = open_mesh(layout, device_type)
    if layout.fsdp:
        shard_weights(transformer, init_device_mesh(device_type, (world_size,)))
    if layout.ulysses > 1:
        SequenceParallel(mesh.get_group("ulysses")).attach(transformer)
    return BranchSplit(mesh.get_group("cfg")) if layout.cfg > 1 else None
