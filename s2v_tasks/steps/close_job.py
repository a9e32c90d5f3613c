"""close_job: give a job that failed without a word (killed, lost worker) its final state and a reason."""

from typing import Any

from s2v_tasks.steps.context import StepContext


def run(ctx: StepContext) -> dict[str, Any]:
    job = ctx.ledger.job(ctx.job_id)
    if job is None or job.status in {"failed", "succeeded"}:
        return {"status": job.status if job else "unknown"}
    failures = [event for event in job.events if event.event == "step_failed"]
    reason = (
        f"{failures[-1].step}: {failures[-1].detail['error']}"
        if failures
        else "A step was killed before it could say why: see the Airflow log of the failed task."
    )
    ctx.ledger.job_failed(ctx.job_id, reason)
    return {"status": "failed", "reason": reason}
