"""Check the notifiers that Airflow calls when a run fails."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from airflow.callbacks.callback_requests import DagCallbackRequest
from airflow.dag_processing.dagbag import DagBag
from airflow.dag_processing.processor import _execute_dag_callbacks
from airflow.sdk import DAG

from s2v_tasks.errors import ConfigurationError
from s2v_tasks.log import get_logger
from s2v_tasks.orchestration.notifiers import failure_notifiers
from s2v_tasks.settings import load_settings

DAGS = Path(__file__).parents[2] / "dags"
NOTIFIER = """
from airflow.sdk import BaseNotifier

class FileNotifier(BaseNotifier):
    template_fields = ("text",)

    def __init__(self, path, text):
        super().__init__()
        self.path, self.text = path, text

    def notify(self, context):
        with open(self.path, "a") as file:
            file.write(self.text)
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder, and a module with a notifier that writes a file."""
    for path in (DAGS.parent / "config").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "file_notifier.py").write_text(NOTIFIER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("S2V_CONFIG_DIR", str(tmp_path))
    load_settings.cache_clear()
    return tmp_path


def configure(config: Path, *entries: object) -> None:
    (config / "notifiers.yaml").write_text(yaml.safe_dump({"dag_failure": list(entries)}))


def test_no_notifier_is_configured_by_default(config: Path) -> None:
    """Without an entry in the configuration, no DAG has a callback, and nothing is imported."""
    assert failure_notifiers() is None
    (config / "notifiers.yaml").unlink()
    assert failure_notifiers() is None


def test_airflow_calls_the_notifier_of_the_configuration(config: Path, tmp_path: Path) -> None:
    """Airflow's own callback code calls the configured notifier, with rendered templates in its arguments."""
    written = tmp_path / "written"
    arguments = {"path": str(written), "text": "{{ dag.dag_id }} failed"}
    configure(config, {"notifier": "file_notifier.FileNotifier", "arguments": arguments})
    with DAG("some_dag", schedule=None, on_failure_callback=failure_notifiers()) as dag:
        pass
    request = DagCallbackRequest(
        filepath="x.py", dag_id="some_dag", run_id="r1", bundle_name="b", bundle_version=None,
        is_failure_callback=True, msg="failed",
    )  # fmt: skip
    _execute_dag_callbacks(SimpleNamespace(dags={"some_dag": dag}), request, get_logger())
    assert written.read_text() == "some_dag failed"


def test_every_dag_has_the_notifiers(config: Path, tmp_path: Path) -> None:
    """Every DAG of the package has the configured notifiers."""
    configure(config, {"notifier": "file_notifier.FileNotifier", "arguments": {"path": str(tmp_path), "text": "x"}})
    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    for dag in bag.dags.values():
        assert [type(callback).__name__ for callback in dag.on_failure_callback or []] == ["FileNotifier"], dag.dag_id


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"notifier": "no_such_module.Notifier"}, "no_such_module"),
        ({"notifier": "pathlib.Path"}, "not a notifier"),
        ({"notifier": "file_notifier.FileNotifier", "arguments": {"bad": 1}}, "bad"),
        ({"notifier": "FileNotifier"}, "FileNotifier"),
        ("file_notifier.FileNotifier", "expected an entry"),
    ],
)
def test_a_wrong_entry_is_named(config: Path, entry: object, said: str) -> None:
    """A wrong entry is an import error of the DAG that names the entry and the reason."""
    configure(config, entry)
    with pytest.raises(ConfigurationError, match=said):
        failure_notifiers()
    sys.modules.pop("file_notifier", None)


@pytest.mark.parametrize("text", [b"dag_failure: [\n", b"- a list\n", b"# gr\xf6\xdfer\n"])
def test_a_file_that_is_not_valid_is_named(config: Path, text: bytes) -> None:
    """A broken file, one of another form and one in another encoding are refused with their path."""
    (config / "notifiers.yaml").write_bytes(text)
    with pytest.raises(ConfigurationError, match=r"notifiers\.yaml is not a valid file of notifiers"):
        failure_notifiers()


@pytest.mark.parametrize(("secret", "schedule"), [("", None), ("shared", "*/5 * * * *")])
def test_the_sweep_of_webhooks_runs_where_they_are_configured(
    monkeypatch: pytest.MonkeyPatch, secret: str, schedule: str | None
) -> None:
    """The sweep of webhooks has a schedule only if the shared secret is set."""
    if secret:
        monkeypatch.setenv("S2V_WEBHOOK_SECRET", secret)
        load_settings.cache_clear()
    dag = DagBag(DAGS / "s2v_notifications.py").dags["s2v_notifications"]
    assert getattr(dag.timetable, "expression", None) == schedule
    assert dag.task_dict["deliver"].arguments == ["deliver-notifications"]
