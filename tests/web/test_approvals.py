"""Check answers to approvals on the page of a job: they resume the deferred task with the user's name."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from s2v_tasks.metadata.store import MetadataStore
from s2v_tasks.schemas.approval import ApprovalStatus
from s2v_tasks.storage.s3 import ObjectStore
from s2v_tasks.web import approvals
from tests.web.conftest import Login
from tests.web.sample_job import REQUEST, add_job

VIDEO = {"clip_index": None}


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "PARKING_SECONDS", 0.0)
    monkeypatch.setattr(approvals, "EARLIEST_ANSWER_SECONDS", 0.0)


@pytest.fixture
def ask(login: Login, metadata: MetadataStore, store: ObjectStore) -> Callable[..., None]:
    """Lets the job `talk` wait for an approval, in the metadata store and as a deferred task of Airflow."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    def ask(clip_index: int | None = None) -> None:
        login("edith").post("/s2v/new/start", json=REQUEST | {"job_id": "talk", "approval": "each_clip"})
        add_job(metadata, store, "talk", approval="each_clip")
        metadata.approvals.request("talk", clip_index, "f" * 64, run_id="talk", seconds=600)
        task = "publish" if clip_index is None else "clip.wait"
        with create_session() as session:
            found = sa.select(TaskInstance).where(TaskInstance.run_id == "talk", TaskInstance.task_id == task)
            parked = session.scalars(found).one()
            parked.state, parked.next_method = "awaiting_input", "decided"
            session.add(HITLDetail(ti_id=parked.id, options=["Approve", "Reject"], subject="?", params={}))

    return ask


def answer(task_id: str) -> tuple[str, list[str], dict[str, Any], str | None]:
    """Return the answer in Airflow: state of the task, chosen options, fields and user."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = sa.select(TaskInstance).where(TaskInstance.run_id == "talk", TaskInstance.task_id == task_id)
        task = session.scalars(found).one()
        detail = session.get_one(HITLDetail, task.id)
        return str(task.state), detail.chosen_options, detail.params_input, detail.responded_by_user_name


def test_an_approval_resumes_the_task(login: Login, metadata: MetadataStore, ask: Callable[..., None]) -> None:
    """Airflow and the history of the job store the user's name, and a second answer is refused."""
    ask()
    editor = login("edith")
    assert editor.post("/s2v/job/talk/approve", json=VIDEO).status_code == 202
    assert answer("publish") == ("scheduled", ["Approve"], {}, "edith")
    assert "edith: approved the video" in editor.get("/s2v/job/talk").text
    assert login("adam").post("/s2v/job/talk/approve", json=VIDEO).status_code == 409
    assert answer("publish")[3] == "edith"


def test_an_anonymous_user_answers_nothing(
    login: Login, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public user of an installation has no id, which Airflow needs to store an answer."""
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    ask()
    monkeypatch.setattr(SimpleAuthManagerUser, "get_id", lambda self: None)
    refused = login("edith").post("/s2v/job/talk/approve", json=VIDEO)
    assert (refused.status_code, refused.json()["detail"]) == (403, "An answer needs a person: log in to Airflow.")
    assert answer("publish")[1] is None


def test_the_second_of_two_people_learns_the_answer_of_the_first(
    login: Login, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other answer is refused at once with the earlier one, which the page shows instead of the question."""
    ask()
    editor, admin = login("edith"), login("adam")
    assert editor.post("/s2v/job/talk/reject", json=VIDEO).status_code == 202
    monkeypatch.setattr(approvals, "PARKING_SECONDS", 60.0)
    monkeypatch.setattr(approvals.time, "sleep", lambda _seconds: pytest.fail("waits for a task that is answered"))
    refused = admin.post("/s2v/job/talk/approve", json=VIDEO)
    assert (refused.status_code, refused.json()["detail"]) == (409, "edith has already rejected the video.")
    page = admin.get("/s2v/job/talk").text
    assert "The video was rejected by edith</h2>" in page
    assert 'data-action="approve"' not in page


def test_an_answer_that_another_one_overtakes_is_refused(
    login: Login, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow takes one of two answers that arrive together; the other person learns which."""
    ask()
    found = approvals._parked_task

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(approvals, "_parked_task", found)
        parked = found(*arguments)
        assert login("adam").post("/s2v/job/talk/approve", json=VIDEO).status_code == 202
        return parked

    monkeypatch.setattr(approvals, "_parked_task", overtaken)
    refused = login("edith").post("/s2v/job/talk/reject", json=VIDEO)
    assert (refused.status_code, refused.json()["detail"]) == (409, "adam has already approved the video.")
    assert answer("publish")[1] == ["Approve"]


def test_a_rejected_job_leads_to_its_rerun(login: Login, metadata: MetadataStore, ask: Callable[..., None]) -> None:
    """The page of a rejected job links to the job that renders it again."""
    ask()
    job = metadata.jobs.get("talk")
    assert job is not None
    assert job.waiting_approval is not None
    metadata.approvals.decide(job.waiting_approval, ApprovalStatus.REJECTED, user="edith", next_job_id="talk-r1")
    metadata.jobs.cancel("talk", "The video was rejected.")
    assert (
        '<a href="../videos/of-run?dag_id=speech_to_video&amp;run_id=talk-r1">Open talk-r1</a>'
        in login("vera").get("/s2v/job/talk").text
    )


def test_a_job_that_is_being_cancelled_asks_nothing(
    login: Login, metadata: MetadataStore, ask: Callable[..., None]
) -> None:
    """Between the request to cancel and the end of the job there is nothing to approve."""
    ask()
    metadata.jobs.request_cancel("talk")
    page = login("edith").get("/s2v/job/talk").text
    assert "The video needs no approval any more" in page
    assert 'data-action="approve"' not in page


def test_an_answer_waits_until_the_task_is_deferred(
    login: Login, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An early answer is given once Airflow has deferred the task, and refused if that does not happen."""
    ask()
    set_state("running")
    assert login("edith").post("/s2v/job/talk/approve", json=VIDEO).status_code == 409
    monkeypatch.setattr(approvals, "PARKING_SECONDS", 60.0)
    monkeypatch.setattr(approvals.time, "sleep", lambda _seconds: set_state("awaiting_input"))
    assert login("edith").post("/s2v/job/talk/approve", json=VIDEO).status_code == 202
    assert answer("publish")[1] == ["Approve"]


def test_an_answer_waits_until_the_task_has_settled(
    login: Login, ask: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer to a newly deferred task waits until its earliest time."""
    ask()
    monkeypatch.setattr(approvals, "EARLIEST_ANSWER_SECONDS", 3600.0)
    assert login("edith").post("/s2v/job/talk/approve", json=VIDEO).status_code == 409
    monkeypatch.setattr(approvals, "PARKING_SECONDS", 60.0)
    an_hour_ago = datetime.now(UTC) - timedelta(seconds=3601)
    monkeypatch.setattr(approvals.time, "sleep", lambda _: set_state("awaiting_input", updated_at=an_hour_ago))
    assert login("edith").post("/s2v/job/talk/approve", json=VIDEO).status_code == 202


def set_state(state: str, **values: Any) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        here = (TaskInstance.run_id == "talk", TaskInstance.task_id == "publish")
        session.execute(sa.update(TaskInstance).where(*here).values(state=state, **values))


def test_a_rejection_takes_note_and_changes_along(login: Login, ask: Callable[..., None]) -> None:
    """The resumed task gets note and changed fields; a wrong value is refused before the answer."""
    ask(1)
    editor = login("edith")
    for wrong, said in (
        ({"sample_steps": 0}, "Solver steps: Input should be greater than or equal to 1"),
        ({"from_clip": 2}, "From clip 3: expected 1 to 2."),
        ({"size": "9*9"}, "size: Extra inputs are not permitted"),
        ({"note": "x" * 1001}, "note: String should have at most 1000 characters"),
    ):
        refused = editor.post("/s2v/job/talk/reject", json={"clip_index": 1} | wrong)
        assert refused.status_code in {400, 422}, wrong
        assert refused.json()["detail"] == said
    assert answer("clip.wait")[1] is None
    changes = {"note": "<b>No</b>", "base_seed": 5, "from_clip": 0}
    assert editor.post("/s2v/job/talk/reject", json={"clip_index": 1} | changes).status_code == 202
    assert answer("clip.wait") == ("scheduled", ["Reject"], changes, "edith")


def test_a_rejected_video_has_no_later_clip(login: Login, ask: Callable[..., None]) -> None:
    """A first clip beyond the video is refused before the answer, counted from 1 as in the form."""
    ask()
    refused = login("edith").post("/s2v/job/talk/reject", json=VIDEO | {"from_clip": 8, "prompt": "She laughs."})
    assert (refused.status_code, refused.json()["detail"]) == (400, "From clip 9: expected 1 to 2.")
    assert answer("publish")[1] is None


def test_only_the_shown_part_is_answered(login: Login, metadata: MetadataStore, ask: Callable[..., None]) -> None:
    """An answer about clip 1 while clip 2 waits, or a late one, approves nothing."""
    ask(1)
    editor = login("edith")
    for shown in (VIDEO, {"clip_index": 0}):
        assert editor.post("/s2v/job/talk/approve", json=shown).status_code == 409
    metadata.jobs.cancel("talk")
    assert editor.post("/s2v/job/talk/approve", json={"clip_index": 1}).status_code == 409
    assert answer("clip.wait")[:2] == ("awaiting_input", None)


def test_a_viewer_sees_the_question_without_buttons(login: Login, ask: Callable[..., None]) -> None:
    """Page, gallery and poll show the question and its deadline to a viewer, without buttons."""
    ask(0)
    page = login("vera").get("/s2v/job/talk").text
    assert "Clip 1 waits for approval" in page
    assert "data-action" not in page
    assert 'data-action="approve"' in login("edith").get("/s2v/job/talk").text
    assert login("vera").get("/s2v/job/talk/state.json").json()["waits"] == "clip 1"
    assert "waits for approval of clip 1" in login("vera").get("/s2v/videos").text
    assert login("vera").post("/s2v/job/talk/approve", json={"clip_index": 0}).status_code == 403


def test_an_answered_question_is_gone(login: Login, metadata: MetadataStore, ask: Callable[..., None]) -> None:
    """After the answer the page shows the decision in its events, and no question."""
    ask()
    job = metadata.jobs.get("talk")
    assert job is not None
    waiting = job.waiting_approval
    assert waiting is not None
    metadata.approvals.decide(waiting, ApprovalStatus.APPROVED, user="edith")
    page = login("edith").get("/s2v/job/talk").text
    assert "waits for approval</h2>" not in page
    assert "The video was approved by edith" in page
    assert "waits" not in login("vera").get("/s2v/job/talk/state.json").json()
