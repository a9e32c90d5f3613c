"""Wait for a person who approves or rejects a clip or the video, in Airflow's state `awaiting_input`.

The task that needs the approval asks for it: `clip.wait` for the previous clip, `publish` for the video. Airflow lists
the question under Required Actions. A task in this state holds no worker, no pool slot and no trigger. It resumes when
it is answered or when the time is over. Jobs without approval do not use this module.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Context, Param
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput
from airflow.sdk.execution_time.hitl import upsert_hitl_detail

from s2v_tasks.orchestration.command_operators import run_command, start_run
from s2v_tasks.orchestration.dag_params import field_param
from s2v_tasks.orchestration.step_commands import in_dag_test, job_id_of, record_failure, request_of
from s2v_tasks.schemas.approval import APPROVE, REJECT, ApprovalStatus, Rejection
from s2v_tasks.schemas.request_fields import Approval
from s2v_tasks.schemas.steps import ASK_APPROVAL, PUBLISH, RECORD_APPROVAL, RENDER_CLIP

RESUME_METHOD = "decided"  # method of the operator that gets the answer
_BODY = (
    "Look at it on the page Videos (tab *Video* of this run). *Reject* with another prompt, seed or number of steps "
    "starts a new job that renders again from the clip on; empty fields are unchanged. Otherwise the job only ends."
)

_NOBODY = (
    "This run has approval set, but nobody can answer in dag.test(): submit the job to an Airflow with a scheduler, "
    "or leave approval out."
)


def wanted_approval(context: Mapping[str, Any]) -> Approval:
    """Return the field `approval` of the request of a run."""
    found: Approval = context["params"].get("approval") or "none"
    return found


def ask(task: Any, context: Context, clip_index: int | None) -> None:
    """Return if the clip (None: the video) is approved; otherwise let the task wait. Its `decided` gets the answer.

    AirflowFailException if it was rejected, or if no answer is possible.
    """
    if in_dag_test():
        step, clip = (PUBLISH, None) if clip_index is None else (RENDER_CLIP, task.clip)
        record_failure(step, context, clip, _NOBODY, task.log.info)
        raise AirflowFailException(_NOBODY)
    result = _go_on(task, context, run_command(task, ASK_APPROVAL.command, *_place(context, clip_index)))
    if result["status"] != ApprovalStatus.WAITING:
        return
    form = _form(result["last_clip"])
    upsert_hitl_detail(
        ti_id=context["ti"].id, options=[APPROVE, REJECT], subject=result["subject"], body=_BODY, params=form
    )
    task.log.info("%s Waits for at most %.0f s.", result["subject"], result["wait_seconds"])
    raise TaskAwaitingInput(method_name=RESUME_METHOD, timeout=timedelta(seconds=max(result["wait_seconds"], 1)))


def settle(task: Any, context: Context, clip_index: int | None, event: Mapping[str, Any]) -> None:
    """Record the answer; AirflowFailException unless it approves. A rejection may start a rerun."""
    place = _place(context, clip_index)
    _go_on(task, context, run_command(task, RECORD_APPROVAL.command, *place, *_answer(event)))


def _place(context: Context, clip_index: int | None) -> list[str]:
    place = ["--job-id", job_id_of(context), "--run-id", context["run_id"]]
    return place if clip_index is None else [*place, "--clip-index", str(clip_index)]


def _answer(event: Mapping[str, Any]) -> list[str]:
    """Return the options of `s2v record-approval` for an answer from Airflow."""
    if event.get("error_type") == "timeout":
        return ["--status", ApprovalStatus.EXPIRED]
    user = event.get("responded_by_user") or {}
    options = ["--user", str(user["name"])] if user else []
    if event["chosen_options"] == [APPROVE]:
        return ["--status", ApprovalStatus.APPROVED, *options]
    given = {name: value for name, value in event["params_input"].items() if value is not None}
    return ["--status", ApprovalStatus.REJECTED, *options, "--rejection", json.dumps(given)]


def _go_on(task: Any, context: Context, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of an approval; AirflowFailException for a rejection or an expired question."""
    if result["status"] in {ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED}:
        if following := result.get("next_job"):
            given = {name: value for name, value in request_of(context).items() if value is not None}
            job_id = following["job_id"]
            # The run exists already if an earlier try of this task was killed here.
            start_run({"job_id": job_id, "run_id": job_id, "request": given | following["changes"]})
            task.log.info("Started job %s.", following["job_id"])
        raise AirflowFailException(result["reason"])
    return result


def _form(last_clip: int) -> dict[str, Any]:
    """Return the fields that Airflow shows next to its two buttons, for a rejection; `from_clip` ends at a clip.

    `s2v reject` reads this limit.
    """
    fields = Rejection.model_json_schema()["properties"]
    fields["from_clip"]["maximum"] = last_clip
    params: dict[str, Param] = {name: field_param(name, schema) for name, schema in fields.items()}
    return {name: param.serialize() for name, param in params.items()}
