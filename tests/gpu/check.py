"""Check the engine on one GPU: its correctness, its speed, and the memory that it needs.

`make gpu-check` runs it. Without an installation it runs from the sources on PYTHONPATH; see README.md beside this
file. Sections run in their order until the budget is used up. The JSON report is written after each section, so that a
run that is stopped keeps its measurements. The exit code is 1 if a check of correctness failed.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s2v_tasks.engine  # noqa: F401  (sets the environment that torch reads)

# isort: split
import torch

from tests.gpu import correctness, networks, speed
from tests.gpu.machine import Clock, Machine, Rows

DEFAULT_BUDGET_SECONDS = 440.0


@dataclass(frozen=True)
class Section:
    """A part of the check: its least seconds, and the function that returns its rows.

    A row with `ok` false fails the check.
    """

    name: str
    least_seconds: float
    run: Callable[[Machine, Clock], Rows]


# In order of importance: the budget cuts off the last ones.
SECTIONS = (
    Section("versions", 0, correctness.versions),
    Section("goldens", 10, correctness.goldens),
    Section("attention", 10, speed.attention),
    Section("step", 60, speed.full_step),
    Section("profile", 30, speed.profile_of_step),
    Section("variants", 40, speed.variants),
    Section("vae", 30, networks.vae),
    Section("loading", 30, networks.loading),
    Section("repeatable", 30, correctness.repeatable),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return the exit code."""
    options = _parser().parse_args(arguments)
    device = torch.device("cpu" if options.tiny else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No GPU is visible: run on a machine with one, or at toy size on a CPU by --tiny.", file=sys.stderr)
        return 2
    options.work_dir.mkdir(parents=True, exist_ok=True)
    machine, clock = Machine(device, options.tiny, options.work_dir), Clock(options.budget)
    chosen = [section for section in SECTIONS if not options.only or section.name in options.only]
    report: dict[str, Any] = {"budget_seconds": options.budget, "tiny": options.tiny, "sections": {}}
    for section in chosen:
        report["sections"][section.name] = _run(section, machine, clock)
        options.report.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")
    _print(report)
    return 1 if failures(report) else 0


def failures(report: dict[str, Any]) -> list[str]:
    """Return the names of the checks that failed, and of the sections that ended with an error."""
    failed = []
    for name, section in report["sections"].items():
        if "error" in section:
            failed.append(f"{name}: {section['error']}")
        failed += [f"{name}: {row.get('name')}" for row in section["rows"] if row.get("ok") is False]
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET_SECONDS, help="seconds for all sections")
    parser.add_argument("--tiny", action="store_true", help="every section at toy size, on a CPU")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS], help="these sections")
    parser.add_argument("--report", type=Path, default=Path("gpu-check.json"), help="the JSON report")
    parser.add_argument("--work-dir", type=Path, default=Path("gpu-check"), help="folder for checkpoints and frames")
    return parser


def _run(section: Section, machine: Machine, clock: Clock) -> dict[str, Any]:
    """Return the rows of a section, or its error; the sections after a failed one still run."""
    if clock.left_seconds < section.least_seconds:
        print(f"{section.name}: skipped, {clock.left_seconds:.0f} s of the budget are left", flush=True)
        return {"rows": [], "left_out": True}
    print(f"{section.name} ...", flush=True)
    started = time.monotonic()
    try:
        rows = section.run(machine, clock)
        found: dict[str, Any] = {"rows": rows}
    except Exception as error:  # noqa: BLE001 - it is the result of this section
        traceback.print_exc()
        found = {"rows": [], "error": f"{type(error).__name__}: {error}"}
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return found | {"seconds": round(time.monotonic() - started, 1)}


def _print(report: dict[str, Any]) -> None:
    """Print a line for each row, then the verdict."""
    for name, section in report["sections"].items():
        if section.get("left_out"):
            print(f"\n{name}: skipped, the budget was used up")
            continue
        print(f"\n{name} ({section['seconds']} s) {section.get('error', '')}")
        for row in section["rows"]:
            print("  " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items()))
    failed = failures(report)
    print("\n" + (f"{len(failed)} checks FAILED: {'; '.join(failed)}" if failed else "All checks passed."))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
