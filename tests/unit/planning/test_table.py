"""Check the plan in a terminal."""

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from s2v_tasks.planning.table import plan_table
from s2v_tasks.schemas.model_card import AdapterCard


def text_of(plan: Any) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(plan_table(plan))
    return console.file.getvalue()


def test_table_states_every_clip_and_the_cost(plan_of: Any) -> None:
    """The table has the frames, range, tokens and work of each clip, and the sums, price and warnings of the plan."""
    plan = plan_of(80_320, num_clip=9, base_seed=7)
    text = text_of(plan)
    assert "81 frames = 5.0625 s at 16 fps" in text
    assert "2, 84 frames rendered" in text
    assert "832 x 448 pixels, latents 104 x 56" in text
    assert "30 steps unipc, guidance 4.5, shift 3, seed 7" in text
    assert f"({plan.estimate.gpu_seconds:,.0f} GPU-seconds) on h100-sxm, {plan.estimate.cost:.2f} USD" in text
    assert ["2/2", "1", "40", "44..81", "2.3125", "10", "18,200", f"{plan.clips[1].pflops:.4g}"] in [
        line.split() for line in text.splitlines()
    ]
    assert "Warning: num_clip 9 is reduced to 2" in text


def test_table_shows_where_a_video_is_cut(plan_of: Any, sentences: Any, speech: Any) -> None:
    """The table has chains, each cut with its pause, and the time with a GPU for each chain."""
    text = text_of(plan_of(16000 * 20, samples=sentences, continuity="cut", min_chain_seconds=4))
    assert "3, cut at 6.50 s (pause 0.75 s), 13.25 s (pause 0.75 s)" in text
    assert "with a GPU for each chain" in text
    assert ["6/6", "3", "52", "268..320"] in [line.split()[:4] for line in text.splitlines()]
    fields = {"continuity": "cut", "min_chain_seconds": 4, "max_chain_seconds": 8}
    assert " s (in speech)" in text_of(plan_of(16000 * 10, samples=speech((10, -20)), **fields))


def test_long_tables_are_folded(plan_of: Any) -> None:
    """Up to 20 clips have a row each; of more clips, the middle ones share a row with their sums."""
    assert [f"{k}/20" in text_of(plan_of(16000 * 100)) for k in range(1, 21)] == [True] * 20
    folded = text_of(plan_of(16000 * 600)).splitlines()
    (row,) = [line.split() for line in folded if "9-112/120" in line]
    assert row[1:5] == ["1", "8320", "640..8960", "520"]
    assert sum("/120 " in line for line in folded) == 17


def test_table_states_the_choices(plan_of: Any) -> None:
    """The table has adapters with strengths, the start from the picture, hours of work, and the worst case of retakes.

    A choice that was not made has no row.
    """
    card = AdapterCard(name="voice", path=Path("b.safetensors"), sha256="b" * 64, purpose="Style.")
    chosen = {"adapters": [{"name": "voice", "strength": 0.5}], "start_from_ref": True, "quality": "gate"}
    plan = plan_of(16000 * 240, catalogue={"voice": card}, **chosen)
    lines = [" ".join(line.split()) for line in text_of(plan).splitlines()]
    estimate = plan.estimate
    expected, worst = (
        timedelta(seconds=round(seconds)) for seconds in (estimate.gpu_seconds, estimate.worst_case_gpu_seconds)
    )
    assert timedelta(hours=2) < expected < worst < timedelta(days=1)
    assert "Adapters voice (0.5)" in lines
    assert f"Work {estimate.pflops:,.0f} PFLOPs, {estimate.vae_share:.0%} of the time in the VAE" in lines
    assert (
        f"Expected {expected} ({estimate.gpu_seconds:,.0f} GPU-seconds) on h100-sxm, {estimate.cost:,.2f} USD" in lines
    )
    assert f"Worst case {worst}, {estimate.worst_case_cost:,.2f} USD with all retakes" in lines
    assert any(line.endswith(", starts from the reference picture") for line in lines)
    plain = text_of(plan_of(16000 * 5))
    for words in ("Adapters", "Worst case", "Side by side", "Chains", "reference picture", "(preview)"):
        assert words not in plain
    assert "balanced on wan2.2-s2v-14b" in plain
    assert "preview on wan2.2-s2v-14b (preview)" in text_of(plan_of(16000 * 5, preset="preview"))


def test_a_narrow_terminal_has_fewer_columns(plan_of: Any) -> None:
    """Below 80 characters the rows have no tokens and no work, so that no number is cut."""
    console = Console(width=40, file=io.StringIO())
    console.print(plan_table(plan_of(16000 * 10), console.width))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["Clip", "Frames", "Range", "Seconds"] in rows
    assert ["2/2", "80", "80..160", "5"] in rows
