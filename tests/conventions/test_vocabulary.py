"""Check that each word of the vocabulary is written once, in `schemas/`."""

import ast
from collections.abc import Iterator
from pathlib import Path

from s2v_tasks.schemas import steps
from s2v_tasks.schemas.events import JobEvent
from s2v_tasks.schemas.job import JobStatus

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "s2v_tasks"
WORDS = {
    *JobEvent,
    JobStatus.SUCCEEDED,
    JobStatus.CANCELLED,
    "rendering",
    "interrupted",
    *(name for step in (*steps.PIPELINE, steps.RECORD_FAILURE) for name in (step.name, step.command)),
    *(steps.JOB_DAG, steps.BATCH_DAG, steps.DROP_FOLDER_DAG, steps.HOUSEKEEPING_DAG, steps.NOTIFICATIONS_DAG),
    *(steps.CLIP_WAIT_TASK, steps.CLIP_RENDER_TASK),
}
# The same spelling with another meaning: a name of a function, a line of the log, a public name.
ALLOWED = {
    ("s2v_tasks/runtime/cancellation.py", "job_cancelled"),
    ("s2v_tasks/rendering/renderer.py", "interrupted"),
}


def test_no_word_of_the_vocabulary_is_written_again() -> None:
    """Steps, events, DAGs, tasks and statuses are imported from `schemas/`, so that renaming one is one edit."""
    again = {
        (str(path.relative_to(ROOT)), text)
        for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "dags").glob("*.py")])
        if "schemas" not in path.parts and "migrations" not in path.parts
        for text in _literals(path)
        if text in WORDS
    }
    assert again - ALLOWED == set()
    assert again >= ALLOWED, "an exception that is not needed any more"


def _literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
