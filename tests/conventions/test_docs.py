"""Check that the documents name existing settings, commands, messages and options of Airflow."""

import ast
import collections
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from s2v_tasks.orchestration.step_operators import GPU_POOL
from s2v_tasks.schemas.steps import JOB_DAG
from s2v_tasks.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_name_existing_files_of_the_repository(page: Path) -> None:
    """Each relative link names a file of the repository."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_in_documents_exist(page: Path) -> None:
    """Each setting that a document mentions exists."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    names = set(re.findall(r"\bS2V_[A-Z0-9_]*[A-Z0-9]\b", page.read_text(encoding="utf-8")))
    assert names <= known


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_in_documents_exist(page: Path) -> None:
    """Each command that a document shows can be called."""
    from s2v_tasks.cli import app, load_commands

    load_commands()
    known = set(getattr(typer.main.get_command(app), "commands", {}))
    shown = re.findall(
        r"(?:`|^|/bin/|(?<!-n)\s)s2v ([a-z][a-z-]+)", _code(page.read_text(encoding="utf-8")), re.MULTILINE
    )
    assert known
    assert set(shown) <= known


def test_messages_of_the_runbook_are_those_of_the_code() -> None:
    """Each message in a heading of the runbook exists in the code; `...` and `N` stand for values."""
    code = "\n".join(map(_strings, [*ROOT.glob("s2v_tasks/**/*.py"), *ROOT.glob("docker/*.sh")]))
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    shown = [
        part.strip()
        for message in re.findall(r"^### .*", runbook, re.MULTILINE)
        for quoted in re.findall(r"`([^`]+)`", message)
        for part in re.split(r"\.\.\.|\(403\)|\(422\)|\bN\b", quoted)
        if " " in part.strip()
    ]
    assert shown
    assert [part for part in shown if part not in code and part not in OTHERS_MESSAGES] == []


def test_the_command_of_own_servers_uses_the_files_of_its_services() -> None:
    """The services use code and configuration of the checkout, in which they start; so does the command."""
    guide = (ROOT / "docs" / "how-to" / "own-servers.md").read_text(encoding="utf-8")
    assert "WorkingDirectory=/srv/s2v/src\n" in guide
    assert re.findall(r"^ExecStart=(.+)", guide, re.MULTILINE) == [
        "/srv/s2v/src/.venv/bin/python -m airflow %i",
        "/srv/s2v/src/.venv/bin/python -m airflow api-server --proxy-headers",
    ]
    assert re.findall(r"(-e )?'\.\[airflow,engine\]'", guide) == ["-e "]


# Commands.
OTHERS_MESSAGES = {"kill -9"}


def _strings(path: Path) -> str:
    """Return the strings of a module without formatted values, or a script as it is."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return source
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return "\n".join(texts)


def _code(text: str) -> str:
    """Return the text in code fences and backticks."""
    return "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`[^`\n]+`", text))


def test_the_plan_of_the_readme_is_what_the_command_shows() -> None:
    """The plan in the README equals the output of its command."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```\n$ ")[1].split("```")[0]
    command, _, shown = block.replace("\\\n", "").partition("\n")
    variables, _, arguments = command.partition(".venv/bin/s2v ")
    environment = os.environ | dict(word.split("=", 1) for word in variables.split()) | {"COLUMNS": "100"}
    plan = [sys.executable, "-m", "s2v_tasks.cli", *arguments.split()]
    done = subprocess.run(plan, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert [line.rstrip() for line in done.stdout.strip().splitlines()] == shown.strip().splitlines()


def block_of_observe(heading: str) -> Any:
    """Return the YAML below a heading of the how-to about monitoring."""
    text = (ROOT / "docs" / "how-to" / "observe.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split(f"{heading}\n")[1].split("```yaml\n")[1].split("```")[0])


def test_alerts_name_metrics_of_airflow() -> None:
    """Each metric of the alerts is one of Airflow, with the name that StatsD and the exporter of the chart give it."""
    from airflow._shared.observability.metrics.metrics_registry import YAML_REGISTRY_PATH, read_metrics_yaml

    variables = collections.defaultdict(str, pool_name=GPU_POOL, dag_id=JOB_DAG)
    known = set()
    for metric in read_metrics_yaml(str(YAML_REGISTRY_PATH)):
        for name in (metric["name"], metric["legacy_name"].format_map(variables)):
            known.add("airflow_" + re.sub(r"\W", "_", name))
    mapped = f"airflow_dagrun_duration_failed_{JOB_DAG}"  # by the mapping of the chart, to a summary
    assert mapped in known
    known.add("airflow_dagrun_failed_count")
    rules = block_of_observe("## Alerts of Prometheus")["groups"][0]["rules"]
    used = {name for rule in rules for name in re.findall(r"airflow_\w+", rule["expr"])}
    assert len(used) == 6
    assert used <= known
    assert f'dag_id="{JOB_DAG}"' in rules[0]["expr"]


def test_opentelemetry_reaches_its_collector_as_the_howto_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the how-to send traces and metrics to the collector, without deprecated options."""
    from airflow._shared.observability.common import get_otel_data_exporter
    from airflow._shared.observability.otel_env_config import load_metrics_env_config
    from airflow._shared.observability.traces import _load_exporter_from_env
    from airflow.configuration import conf

    values = block_of_observe("## OpenTelemetry")
    for section, options in values["config"].items():
        known = conf.configuration_description[section]["options"]
        assert all(known[option].get("version_deprecated") is None for option in options), section
    for variable in values["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    exporters = [_load_exporter_from_env(), get_otel_data_exporter(otel_env_config=load_metrics_env_config())]
    collector = "http://otel-collector.observability:4318/v1"
    assert [exporter._endpoint for exporter in exporters] == [f"{collector}/traces", f"{collector}/metrics"]
