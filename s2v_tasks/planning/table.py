"""Show a plan in a terminal: size, frames and cost, clip by clip."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from s2v_tasks.schemas.plan import ClipPlan, Cut, Plan, Sampling

MOST_ROWS = 20
SHOWN_AT_EACH_END = 8
COLUMNS = ("Clip", "Chain", "Frames", "Range", "Seconds", "Latent frames", "Tokens", "PFLOPs")
COLUMNS_IF_NARROW = ("Clip", "Frames", "Range", "Seconds")
WIDTH_OF_ALL_COLUMNS = 80


def plan_table(plan: Plan, width: int = WIDTH_OF_ALL_COLUMNS) -> RenderableType:
    """Return the summary, one row per clip (of more than 20, the middle is one row), and the warnings.

    `width`: characters of a line of the terminal. In a narrow terminal the rows have fewer columns.
    """
    warnings = [Text(f"Warning: {warning}", style="yellow") for warning in plan.warnings]
    return Group(
        _summary(plan), _clips(plan, COLUMNS if width >= WIDTH_OF_ALL_COLUMNS else COLUMNS_IF_NARROW), *warnings
    )


def _summary(plan: Plan) -> Table:
    sampling, estimate = plan.sampling, plan.estimate
    speech, video = float(plan.speech.duration_seconds), float(plan.duration_seconds)
    latent_height, latent_width = plan.clips[0].latent_shape[2:]
    table = Table(title=f"Plan of {plan.job_id}", title_justify="left", box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("Preset", f"{plan.preset} on {plan.model}" + (" (preview)" if plan.preview else ""))
    table.add_row("Speech", f"{speech:.3f} s, {plan.covered_seconds:.3f} s covered")
    table.add_row("Video", f"{plan.num_frames} frames = {video:g} s at {plan.fps} fps")
    table.add_row("Clips", f"{plan.num_clip}, {_rendered(plan)} frames rendered")
    if plan.cuts:
        table.add_row("Chains", f"{plan.num_chains}, cut at {', '.join(_cut(cut, plan) for cut in plan.cuts)}")
    table.add_row("Size", f"{plan.width} x {plan.height} pixels, latents {latent_width} x {latent_height}")
    table.add_row(
        "Sampling",
        f"{sampling.sample_steps} steps {sampling.sample_solver}, {_guidance(sampling)}, "
        f"shift {sampling.sample_shift:g}, seed {plan.base_seed}"
        + (", starts from the reference picture" if sampling.start_from_ref else ""),
    )
    vae = "" if estimate.vae_share is None else f", {estimate.vae_share:.0%} of the time in the VAE"
    if plan.adapters:
        adapters = ", ".join(f"{adapter.name} ({adapter.strength:g})" for adapter in plan.adapters)
        table.add_row("Adapters", adapters)
    table.add_row("Work", f"{_number(estimate.pflops)} PFLOPs{vae}")
    table.add_row(
        "Expected",
        f"{_duration(estimate.gpu_seconds)} ({estimate.gpu_seconds:,.0f} GPU-seconds) on {estimate.gpu}, "
        f"{estimate.cost:,.2f} {estimate.currency}",
    )
    if estimate.worst_case_gpu_seconds is not None:
        worst, cost = estimate.worst_case_gpu_seconds, estimate.worst_case_cost or 0.0
        table.add_row("Worst case", f"{_duration(worst)}, {cost:,.2f} {estimate.currency} with all retakes")
    if plan.cuts:
        longest = estimate.longest_chain_seconds
        table.add_row("Side by side", f"{_duration(longest)} with a GPU for each chain ({longest:,.0f} s)")
    table.add_row("Peak memory", f"about {estimate.peak_gpu_memory_gib:.1f} GiB on the GPU")
    return table


def _guidance(sampling: Sampling) -> str:
    if sampling.guided_steps == 0:
        return "without guidance"
    steps = "" if sampling.guide_steps is None else f" in steps {sampling.guide_steps[0]}..{sampling.guide_steps[1]}"
    return f"guidance {sampling.sample_guide_scale:g}{steps}"


def _cut(cut: Cut, plan: Plan) -> str:
    why = "in speech" if cut.pause_seconds is None else f"pause {cut.pause_seconds:.2f} s"
    return f"{cut.frame / plan.fps:.2f} s ({why})"


def _rendered(plan: Plan) -> int:
    return sum(clip.infer_frames for clip in plan.clips)


def _clips(plan: Plan, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for header in columns:
        table.add_column(header, justify="right", overflow="fold")
    at_end = SHOWN_AT_EACH_END if plan.num_clip > MOST_ROWS else plan.num_clip
    rows = [_row(clip, plan) for clip in plan.clips[:at_end]]
    if plan.num_clip > MOST_ROWS:
        rows.append(_folded_row(plan.clips[at_end:-at_end], plan))
        rows += [_row(clip, plan) for clip in plan.clips[-at_end:]]
    for row in rows:
        table.add_row(*(cell for name, cell in zip(COLUMNS, row, strict=True) if name in columns))
    return table


def _row(clip: ClipPlan, plan: Plan) -> tuple[str, ...]:
    return (
        f"{clip.clip_index + 1}/{plan.num_clip}",
        str(clip.chain_index + 1),
        str(clip.infer_frames),
        f"{clip.start_frame}..{clip.end_frame}",
        f"{clip.num_frames / plan.fps:g}",
        str(clip.latent_shape[1]),
        f"{clip.tokens:,}",
        _number(clip.pflops),
    )


def _folded_row(clips: tuple[ClipPlan, ...], plan: Plan) -> tuple[str, ...]:
    first, last = clips[0], clips[-1]
    return (
        f"{first.clip_index + 1}-{last.clip_index + 1}/{plan.num_clip}",
        f"{first.chain_index + 1}-{last.chain_index + 1}" if plan.cuts else "1",
        str(sum(clip.infer_frames for clip in clips)),
        f"{first.start_frame}..{last.end_frame}",
        f"{(last.end_frame - first.start_frame) / plan.fps:g}",
        "",
        "",
        _number(sum(clip.pflops for clip in clips)),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
