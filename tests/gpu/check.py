"""Check the engine on one GPU: its correctness, its speed, and the memory that it needs.

`make gpu-check` runs it. Without an installation it runs from the sources on PYTHONPATH; see README.md beside this
file. Sections run in their order until the budget is used up. Each measurement is printed and written to the JSON
report at once, so that a run that is stopped keeps it. The exit code is 1 if a check of correctness failed.
"""

import argparse
import faulthandler
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

from s2v_tasks.engine.worker import choose_device
from tests.gpu import correctness, networks, speed
from tests.gpu.machine import Clock, Machine, Rows

DEFAULT_BUDGET_SECONDS = 440.0
# A run that is this late may hang: it then prints where each of its threads is.
_LATE_SECONDS = 30.0


@dataclass(frozen=True)
class Section:
    """A part of the check: the seconds that earlier sections leave for it, and the function that yields its rows.

    A row with `ok` false fails the check.
    """

    name: str
    least_seconds: float
    run: Callable[[Machine, Clock], Rows]


# The first five took 1, 3, 3, 45 and 4 seconds on an H200; the seconds of the others are estimates.
SECTIONS = (
    Section("versions", 0, correctness.versions),
    Section("goldens", 10, correctness.goldens),
    Section("attention", 10, speed.attention),
    Section("step", 60, speed.full_step),
    Section("profile", 10, speed.profile_of_step),
    Section("repeatable", 60, correctness.repeatable),
    Section("loading", 50, networks.loading),
    Section("vae", 60, networks.vae),
    Section("variants", 90, speed.variants),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; return the exit code."""
    options = _parser().parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("No GPU is visible: run on a machine with one, or at toy size on a CPU by --tiny.", file=sys.stderr)
        return 2
    # As a render: deterministic algorithms are another choice of kernels, for example of convolutions.
    device = choose_device("cpu" if options.tiny else "cuda")
    options.work_dir.mkdir(parents=True, exist_ok=True)
    faulthandler.dump_traceback_later(options.budget + _LATE_SECONDS, file=sys.__stderr__)
    machine, clock = Machine(device, options.tiny, options.work_dir), Clock(options.budget)
    chosen = [section for section in SECTIONS if not options.only or section.name in options.only]
    report: dict[str, Any] = {"budget_seconds": options.budget, "tiny": options.tiny, "sections": {}}

    def write() -> None:
        options.report.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")

    for index, section in enumerate(chosen):
        later_seconds = sum(later.least_seconds for later in chosen[index + 1 :])
        found = report["sections"][section.name] = {"rows": []}
        if clock.left_seconds < section.least_seconds:
            found["left_out"] = True
            print(f"\n{section.name}: skipped, {clock.left_seconds:.0f} s of the budget are left", flush=True)
        else:
            _run(section, machine, clock.keeping(later_seconds), found, write)
        write()
    faulthandler.cancel_dump_traceback_later()
    failed = failures(report)
    left_out = [name for name, found in report["sections"].items() if _is_incomplete(found)]
    if left_out:
        print(f"\nNot measured, or in part, for lack of time: {', '.join(left_out)}.")
    passed = "The checks that ran passed." if left_out else "All checks passed."
    print("\n" + (f"{len(failed)} checks FAILED: {'; '.join(failed)}" if failed else passed))
    return 1 if failed else 0


def failures(report: dict[str, Any]) -> list[str]:
    """Return the names of the checks that failed, and of the sections that ended with an error."""
    failed = []
    for name, section in report["sections"].items():
        if "error" in section:
            failed.append(f"{name}: {section['error']}")
        failed += [f"{name}: {row.get('name')}" for row in section["rows"] if row.get("ok") is False]
    return failed


def _is_incomplete(section: dict[str, Any]) -> bool:
    return "left_out" in section or any("left_out" in row for row in section["rows"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET_SECONDS, help="seconds for all sections")
    parser.add_argument("--tiny", action="store_true", help="every section at toy size, on a CPU")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS], help="these sections")
    parser.add_argument("--report", type=Path, default=Path("gpu-check.json"), help="the JSON report")
    parser.add_argument("--work-dir", type=Path, default=Path("gpu-check"), help="folder for checkpoints and frames")
    return parser


def _run(section: Section, machine: Machine, clock: Clock, found: dict[str, Any], write: Callable[[], None]) -> None:
    """Put the rows of a section, its error and its seconds into `found`; the sections after a failed one still run."""
    print(f"\n{section.name}", flush=True)
    started = time.monotonic()
    try:
        # Here, because it fails as well once the GPU has reported an error that no later call survives.
        machine.release()
        for row in section.run(machine, clock):
            found["rows"].append(row)
            write()
            print("  " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items()), flush=True)
    except Exception as error:  # noqa: BLE001 - it is the result of this section
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.monotonic() - started, 1)
    print(f"  {found['seconds']} s {found.get('error', '')}", flush=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
