"""Check the progress of a clip in the log and in its row, and the facts of its rendering."""

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from s2v_tasks.rendering import progress
from s2v_tasks.rendering.progress import Progress, clip_facts, peak_flops_per_second
from s2v_tasks.schemas.model_card import GpuCard, load_gpu_card
from s2v_tasks.settings import Settings, config_dir
from tests.unit.rendering.test_leader import clip, plan

Step = tuple[float, int]  # seconds on the clock, solver step


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Renders with a clock of the test; gives the rows and the lines of the log."""

    def run(*steps: Step, num_steps: int) -> tuple[list[dict[str, Any]], list[str]]:
        clock, rows = [0.0], []
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
        clips = SimpleNamespace(record_progress=lambda *place, **row: rows.append({"place": place} | row))
        ctx: Any = SimpleNamespace(job_id="job-1", metadata=SimpleNamespace(clips=clips))
        report = Progress(ctx, plan(), clip(1), lambda: {"peak_gpu_memory_bytes": 7, "peak_host_memory_bytes": 9})
        with capture_logs() as lines:
            for seconds, step in steps:
                clock.append(seconds)
                report(step, num_steps)
        return rows, [line["event"] for line in lines]

    return run


def test_progress_is_reported_at_once_then_every_two_seconds_and_at_the_end(reported: Any) -> None:
    """Steps in between are left out, because each report writes to the database."""
    steps = [(0.5 * number, number) for number in range(1, 11)]
    rows, lines = reported(*steps, num_steps=10)
    assert [row["step"] for row in rows] == [1, 5, 9, 10]
    assert lines == [
        "clip 2/4 step 1/10 eta 00:04", "clip 2/4 step 5/10 eta 00:02",
        "clip 2/4 step 9/10 eta 00:00", "clip 2/4 step 10/10 eta 00:00",
    ]  # fmt: skip
    assert rows[1] == {
        "place": ("job-1", 1), "step": 5, "num_steps": 10, "eta_seconds": 2.5, "gpu_memory_bytes": 7
    }  # fmt: skip


def test_a_resumed_clip_counts_the_steps_of_its_own_process(reported: Any) -> None:
    """Steps 1 to 30 of another process do not count: two steps in 130 s leave eight steps of 65 s."""
    rows, lines = reported((65.0, 31), (130.0, 32), num_steps=40)
    assert [row["eta_seconds"] for row in rows] == [65.0 * 9, 65.0 * 8]
    assert lines[-1] == "clip 2/4 step 32/40 eta 08:40"


@pytest.fixture
def h100() -> GpuCard:
    return load_gpu_card(config_dir(Settings()), "h100-sxm")


def facts(gpu: str = "h100-sxm", **engine: Any) -> Any:
    made = {"device": "cuda", "precision": "bfloat16", "world_size": 2} | engine
    return clip_facts(Settings(gpu=gpu), clip(1, pflops=4.0), made, 10.0)


def test_utilization_is_the_share_of_the_peak_of_all_gpus(h100: GpuCard) -> None:
    """4 PFLOPs in 10 s on two GPUs are divided by the peak for the dtype of the weights."""
    assert facts().gpu == "h100-sxm"
    assert facts().mfu == pytest.approx(400 / (2 * h100.bf16_tflops), abs=1e-4)
    assert facts(precision="float32").mfu == pytest.approx(400 / (2 * h100.fp32_tflops), abs=1e-4)
    assert facts(skipped_share=0.0).mfu == facts().mfu
    assert facts().render_seconds == 10.0


@pytest.mark.parametrize(
    ("gpu", "engine"), [("h100-sxm", {"device": "cpu"}), ("cpu", {}), ("h100-sxm", {"skipped_share": 0.25})]
)
def test_utilization_is_omitted_if_it_is_not_comparable(gpu: str, engine: dict[str, Any]) -> None:
    """There is no utilisation if the peak is unknown or the step cache has skipped planned operations."""
    found = facts(gpu, **engine)
    assert (found.gpu, found.mfu) == (None, None)
    assert found.tokens == 100


def test_the_peak_is_that_of_all_ranks(h100: GpuCard) -> None:
    """The peak is in operations per second, for weights of either dtype."""
    assert peak_flops_per_second(h100, "cuda", "bfloat16", 8) == 8 * h100.bf16_tflops * 1e12
    assert peak_flops_per_second(h100, "cuda", "float32", 1) == h100.fp32_tflops * 1e12
