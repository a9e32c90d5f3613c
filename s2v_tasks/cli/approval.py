"""`s2v approve` and `s2v reject`: answer the approval that a job waits for."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2v_tasks.cli import app
from s2v_tasks.cli.terminal import PEOPLE, AsJson, JobId, console, print_json
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.approval import APPROVE, EARLIEST_ANSWER_SECONDS, REJECT, rejection_of
from s2v_tasks.settings import load_settings

if TYPE_CHECKING:
    from s2v_tasks.cli.airflow_api import AirflowApi


@app.command(rich_help_panel=PEOPLE)
def approve(job_id: JobId, as_json: AsJson = False) -> None:
    """Approve the clip or the video for which a job waits; the job continues within seconds.

    Airflow records the account of S2V_AIRFLOW_USER as the approver.
    """
    _answer(job_id, APPROVE, {}, as_json=as_json)


@app.command(rich_help_panel=PEOPLE)
def reject(
    job_id: JobId,
    note: Annotated[str | None, typer.Option(help="Why it is rejected.")] = None,
    from_clip: Annotated[
        int | None,
        typer.Option(min=0, help="First clip to render again, from 0. Omitted: the rejected clip, or all clips."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt.")] = None,
    base_seed: Annotated[int | None, typer.Option(help="Another seed.")] = None,
    sample_steps: Annotated[int | None, typer.Option(help="Another number of solver steps.")] = None,
    as_json: AsJson = False,
) -> None:
    """Reject the clip or the video for which a job waits. The job ends as cancelled.

    With another prompt, seed or number of steps, a new job keeps the clips before --from-clip and renders the others
    again. It is the job that `s2v rerun` would make, and it has the same approval.
    """
    given = {"note": note, "from_clip": from_clip, "prompt": prompt}
    given |= {"base_seed": base_seed, "sample_steps": sample_steps}
    rejection = rejection_of({name: value for name, value in given.items() if value is not None})
    _answer(job_id, REJECT, rejection.model_dump(exclude_none=True), as_json=as_json)


def _answer(job_id: str, option: str, fields: dict[str, Any], *, as_json: bool) -> None:
    """Send the answer to Airflow, not before it is accepted; PermanentError if the job waits for no answer."""
    from s2v_tasks.cli.airflow_api import AirflowApi

    api = AirflowApi.from_settings(load_settings())
    question = _question(api, job_id)
    if question is not None:
        _check_from_clip(question, fields)
        age = datetime.now(UTC) - datetime.fromisoformat(question["created_at"])
        time.sleep(max(0.0, EARLIEST_ANSWER_SECONDS - age.total_seconds()))
    if question is None or not api.answer(question, option, fields):
        raise PermanentError(
            f"Job {job_id} does not wait for an approval of a clip or of its video. See `s2v job {job_id}`."
        )
    if as_json:
        print_json({"job_id": job_id, "answer": option.lower(), "subject": question["subject"]})
    else:
        console.print(f"{question['subject']} {option}", markup=False)


def _check_from_clip(question: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raise PermanentError if a rejection begins after the last clip that the form of the question permits."""
    last = question["params"]["from_clip"]["schema"].get("maximum")
    first = fields.get("from_clip", 0)
    if last is not None and first > last:
        raise PermanentError(f"--from-clip {first}: expected 0 to {last}, the rendered clips.")


def _question(api: "AirflowApi", job_id: str) -> dict[str, Any] | None:
    """Return the open question of a job."""
    from s2v_tasks.cli.awaited_runs import job_of_run

    runs = (run["dag_run_id"] for run in api.active_runs() if job_of_run(run) == job_id)
    return next((question for run_id in runs for question in api.open_questions(run_id)), None)
