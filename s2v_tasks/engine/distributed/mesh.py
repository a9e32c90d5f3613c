"""The layout of the ranks of a job, and its implementation: the device mesh, CFG parallelism and FSDP."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from s2v_tasks.engine.distributed.ulysses import SequenceParallel
from s2v_tasks.engine.models.attention import CrossAttention
from s2v_tasks.engine.models.audio import AdaptiveNorm
from s2v_tasks.engine.models.blocks import Block
from s2v_tasks.engine.models.transformer import S2VTransformer
from s2v_tasks.errors import ConfigurationError

T = TypeVar("T")
_BRANCHES = 2
_PREPARATIONS = ("prepare_clip_tokens", "prepare_text", "prepare_audio")
# Weights above this share of a rank's memory leave too little for activations and are sharded.
_WEIGHTS_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """The axes of a mesh: `cfg` groups compute a guidance branch each; `ulysses` ranks of a group share the tokens.

    `fsdp` shards the weights over all ranks. `str(layout)` and `Layout.parse` are inverse: "cfg2,ulysses4,fsdp".
    """

    cfg: int = 1
    ulysses: int = 1
    fsdp: bool = False

    @property
    def world_size(self) -> int:
        """Return the number of ranks of the layout."""
        return self.cfg * self.ulysses

    def __str__(self) -> str:
        return f"cfg{self.cfg},ulysses{self.ulysses}" + (",fsdp" if self.fsdp else "")

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read parts like "cfg2,ulysses4,fsdp", in any order; a missing part is 1 or off.

        Raises ConfigurationError for anything else.
        """
        values: dict[str, int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"(cfg|ulysses)([1-9]\d*)|(fsdp)", part.strip())
            name = match and (match[1] or match[3])
            if match is None or name in values:
                raise ConfigurationError(
                    f"parallel layout {text!r} has the part {part!r}; expected parts cfg<n>, ulysses<n> and fsdp, each "
                    "at most once, like cfg2,ulysses4,fsdp"
                )
            values[str(name)] = int(match[2] or 1)
        return cls(values.get("cfg", 1), values.get("ulysses", 1), "fsdp" in values)

    def check(self, world_size: int, num_heads: int, *, guided: bool) -> None:
        """Raise ConfigurationError, with the arithmetic, if `world_size` ranks cannot use this layout."""
        problem = None
        if self.world_size != world_size:
            problem = f"takes {self.cfg} x {self.ulysses} = {self.world_size} ranks, but {world_size} were started"
        elif self.cfg not in (1, _BRANCHES):
            problem = f"has cfg {self.cfg}, but guidance has {_BRANCHES} branches; expected cfg 1 or {_BRANCHES}"
        elif self.cfg == _BRANCHES and not guided:
            problem = (
                f"has cfg {self.cfg}, but without guidance (sample_guide_scale <= 1) there is one branch; use cfg1"
            )
        elif num_heads % self.ulysses:
            rest = num_heads % self.ulysses
            problem = (
                f"divides {num_heads} attention heads among {self.ulysses} ranks (ulysses), remainder {rest} "
                f"({num_heads} = {num_heads // self.ulysses} x {self.ulysses} + {rest}); "
                f"expected a divisor of {num_heads}"
            )
        if problem:
            raise ConfigurationError(f"parallel layout {self} {problem}.")


def choose_layout(
    world_size: int,
    num_heads: int,
    *,
    guided: bool,
    weight_bytes: int = 0,
    memory_bytes: int | None = None,
) -> Layout:
    """Return the layout for `world_size` ranks.

    With guidance and an even number of ranks, two groups compute one branch each: this costs one exchange per step,
    while sharing tokens costs two per block. The ranks of a group share the tokens. Weights are sharded if
    `weight_bytes` exceed half of the `memory_bytes` of a rank (None: no limit).

    Raises ConfigurationError if the ranks of a group do not divide the attention heads.
    """
    cfg = _BRANCHES if guided and world_size % _BRANCHES == 0 else 1
    crowded = memory_bytes is not None and weight_bytes > _WEIGHTS_SHARE * memory_bytes
    layout = Layout(cfg, world_size // cfg, fsdp=crowded and world_size > 1)
    layout.check(world_size, num_heads, guided=guided)
    return layout


def open_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """Return the mesh `[cfg, ulysses]` over all ranks; the process group must have been initialised."""
    return init_device_mesh(device_type, (layout.cfg, layout.ulysses), mesh_dim_names=("cfg", "ulysses"))


class BranchSplit:
    """Assigns one branch to each rank of `group` and exchanges the velocities."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def mine(self, branches: Sequence[T]) -> Sequence[T]:
        """Return the branch of this rank."""
        rank = self.group.rank()
        return branches[rank : rank + 1]

    def exchange(self, velocity: Tensor) -> tuple[Tensor, ...]:
        """Return the velocities of all branches, in their order."""
        velocities = [torch.empty_like(velocity) for _ in range(self.group.size())]
        dist.all_gather(velocities, velocity.contiguous(), group=self.group)
        return tuple(velocities)


def parallelize(
    transformer: S2VTransformer, layout: Layout, device_type: str, *, guided: bool = True
) -> BranchSplit | None:
    """Attach the parallelism of `layout` to `transformer`; return the split of the guidance branches (None: no split).

    The transformer may be on the meta device: with `layout.fsdp` its parameters become empty shards, to be filled
    afterwards. Choose the attention kernel first. Every rank must call this, and later the transformer, in the same
    way.

    Raises ConfigurationError if the layout does not fit the ranks or the transformer.
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


def shard_weights(transformer: S2VTransformer, mesh: DeviceMesh) -> None:
    """Shard all weights over the ranks of a one-dimensional mesh.

    A unit is a group of modules that run together: each block, each injection, and the modules that prepare keys and
    values or modulations once per clip, which are not gathered in the steps. The rest is the root unit.
    """
    # No casts: the layers define their precision, and inputs of other dtypes must not change.
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
        # Methods of a cross attention are called separately, so its forward covers only queries and output.
        shard(module)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)
    for method in _PREPARATIONS:
        register_fsdp_forward_method(transformer, method)
