"""FSDP: each rank keeps a shard of the weights; a unit is gathered only while it computes."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from s2v_tasks.engine.models.attention import CrossAttention
from s2v_tasks.engine.models.audio import AdaptiveNorm
from s2v_tasks.engine.models.blocks import Block
from s2v_tasks.engine.models.transformer import S2VTransformer

_PREPARATIONS = ("prepare_clip_tokens", "prepare_text", "prepare_audio")


def shard_weights(transformer: S2VTransformer, mesh: DeviceMesh) -> None:
    """Shard all weights over the ranks of a one-dimensional mesh.

    A unit is a group of modules that run together: each block, each injection, and the modules that prepare keys and
    values or modulations once per clip, which are not gathered in the steps. The rest is the root unit.
    """
    # No casts: the layers state their own precision, and inputs of other dtypes are meant to stay as they are.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)

    def shard(*modules: nn.Module) -> None:
        fully_shard(modules[0] if len(modules) == 1 else list(modules), mesh=mesh, mp_policy=policy)

    units = list(transformer.modules())
    for module in units:
        if isinstance(module, CrossAttention):
            shard(module.k, module.norm_k, module.v)
        elif isinstance(module, AdaptiveNorm):
            shard(module.linear)
    for module in (*transformer.audio_injector.injector, *(unit for unit in units if isinstance(unit, Block))):
        # A cross attention is used in parts, so that its own forward brackets only queries and output.
        shard(module)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)
    for method in _PREPARATIONS:
        register_fsdp_forward_method(transformer, method)
