"""render_clip: render clips of the plan one after the other, in one process or on the processes of one torchrun.

Writes clips/<k>/{clip.mp4, motion.safetensors, manifest.json}; the last clip of a chain has no motion state, and the
first clip of a job has a poster.jpg. A clip is durable before the next one begins. A clip with the same fingerprint is
reused. A clip that was interrupted (SIGTERM) resumes at its last solver step. A clip that cannot be stored or recorded
waits for S3 and PostgreSQL, with its GPU held and counted (see `runtime.outages`).

Rank 0 is the leader (`rendering.leader`), which alone uses storage and database. The other ranks are followers
(`rendering.renderer`).
"""

from typing import Any

from s2v_tasks.rendering.leader import Leader
from s2v_tasks.rendering.renderer import open_rank
from s2v_tasks.runtime.context import StepContext


def run(ctx: StepContext, *, clip_index: int, count: int = 1) -> dict[str, Any]:
    """Render `count` clips from `clip_index` on; `reused` is true if all of them existed."""
    with open_rank(ctx.settings) as worker:
        ctx.retry_policy.asked_to_end = lambda: worker.asked_to_end
        leader = Leader(ctx, worker)
        reused = [leader.render(clip) for clip in leader.clips(clip_index, count)]
    return {"clip_index": clip_index, "count": count, "reused": all(reused)}
