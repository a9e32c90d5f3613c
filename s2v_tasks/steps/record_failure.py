"""record_failure: write down why a step died that could not do it itself; `close_job` makes it the job's reason."""

from s2v_tasks.steps.context import StepContext


def run(ctx: StepContext, *, step: str, clip_index: int | None, reason: str) -> None:
    """`step` as on the command line (render-clip); `clip_index` when it rendered one."""
    name = step.replace("-", "_")
    detail = {"error": reason, "exit_code": 1}
    ctx.ledger.event(ctx.job_id, step=name, event="step_failed", clip_index=clip_index, detail=detail)
    if clip_index is not None:
        ctx.ledger.clip_failed(ctx.job_id, clip_index, reason)
