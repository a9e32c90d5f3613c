"""Check the layout of the repository: imports, names of modules, steps, generated references."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s2v_tasks.cli import COMMAND_MODULES
from s2v_tasks.schemas.steps import ASK_APPROVAL, PIPELINE, RECORD_APPROVAL, RECORD_FAILURE
from s2v_tasks.settings import Settings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "s2v_tasks"
HEAVY = {"torch", "transformers", "diffusers", "accelerate", "librosa", "boto3", "sqlalchemy", "airflow"}


def test_import_contracts_hold() -> None:
    """The import contracts of pyproject.toml hold."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_module_has_a_general_name() -> None:
    """No module is called utils, helpers, common or misc."""
    names = {path.stem for path in PACKAGE.rglob("*.py")} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not names & {"utils", "util", "helpers", "common", "misc", "part2"}


def test_every_setting_is_read() -> None:
    """Each setting is read outside `settings.py`, in the package or in a script of the images."""
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "dags").glob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.name != "settings.py"]
    attributes = {node.attr for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    own = re.findall(r"settings\.(\w+)", (PACKAGE / "settings.py").read_text(encoding="utf-8"))
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docker").glob("*.sh"))
    in_scripts = {name.lower() for name in re.findall(r"\$\{S2V_(\w+)", scripts)}
    assert set(Settings.model_fields) - attributes - set(own) - in_scripts == set()


def test_unit_tests_need_no_services() -> None:
    """Tests that use PostgreSQL or S3 are in `integration` or `contracts`."""
    services = re.compile(r"\b(postgres_server|postgres_url|moto_endpoint|s3_settings|object_store|seaweedfs)\b")
    unit = (ROOT / "tests" / "unit").rglob("*.py")
    assert [str(path) for path in unit if services.search(path.read_text(encoding="utf-8"))] == []


def test_steps_and_commands_have_the_same_names() -> None:
    """Each step has one CLI command and one file in steps/, and steps/ holds nothing else."""
    from s2v_tasks.cli import app, steps  # noqa: F401

    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    files = {path.stem for path in (PACKAGE / "steps").glob("*.py")} - {"__init__"}
    assert files == {step.name for step in (*PIPELINE, ASK_APPROVAL, RECORD_APPROVAL, RECORD_FAILURE)}
    assert files <= commands


@pytest.mark.parametrize("module", COMMAND_MODULES)
def test_the_command_line_starts_without_heavy_libraries(module: str) -> None:
    """`s2v --help` loads neither torch nor boto3."""
    code = f"import sys, s2v_tasks.cli.{module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_generated_references_are_fresh() -> None:
    """docs/configuration.md, cli.md and dags.md equal what `make docs` generates."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.references().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run `make docs`"
