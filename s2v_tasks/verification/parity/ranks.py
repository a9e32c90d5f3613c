"""Golden cases on several ranks: the same goldens must come out of every layout."""

import torch.distributed as dist

from s2v_tasks.engine.distributed.cfg import BranchSplit
from s2v_tasks.engine.distributed.mesh import Layout, choose_layout
from s2v_tasks.engine.models.transformer import S2VTransformer


def num_ranks() -> int:
    """Ranks of the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_among_ranks(model: S2VTransformer, layout: Layout | None, *, guided: bool) -> BranchSplit | None:
    """Let all ranks compute the case together, in `layout` or in the one that a render job would choose.

    A case without guidance, asked to run in two branch groups, runs in each of them alike.
    """
    world_size = num_ranks()
    if world_size == 1 and layout is None:
        return None
    from s2v_tasks.engine.distributed.mesh import parallelize

    if layout is None:
        heads = model.config.num_heads
        layout = choose_layout(world_size, heads, guided=guided or heads % world_size != 0)
    return parallelize(model, layout, "cpu", guided=True)
