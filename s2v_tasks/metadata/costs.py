"""Costs of jobs: the GPU-seconds of their attempts, and money at the price at the time of planning.

Used: attempts that produced a clip or conditions, and interrupted ones whose state the next attempt resumed. Wasted:
attempts that failed, were cancelled, were lost, or made a take that is not kept. A running attempt counts as used until
its last heartbeat. Clips and conditions that were reused or inherited have no attempt and cost nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from s2v_tasks.metadata.attempts import CONDITIONS, gpu_seconds
from s2v_tasks.metadata.sql import NOW, Repository
from s2v_tasks.metadata.tables import Attempt, Job
from s2v_tasks.schemas.job import AttemptOutcome

Grouping = Literal["all", "label", "preset", "day", "job"]
_WASTED = (AttemptOutcome.FAILED, AttemptOutcome.LOST, AttemptOutcome.SUPERSEDED)


@dataclass(frozen=True)
class Spending:
    """Cost of one group of jobs. `used_gpu_seconds` include those of conditions, `cost` includes `wasted_cost`.

    Both costs are None if a job has no price yet.
    """

    name: str
    currency: str | None
    jobs: int
    used_gpu_seconds: float
    conditions_gpu_seconds: float
    wasted_gpu_seconds: float
    cost: float | None
    wasted_cost: float | None


class CostRepository(Repository):
    """Cost reports; each is one query."""

    def spending(
        self, by: Grouping = "all", *, since: datetime | None = None, job_id: str | None = None
    ) -> list[Spending]:
        """Return the cost of each group and currency, the most expensive first, days in order.

        by: "day" is the UTC day of the attempt; under "label" a job counts once for each of its labels.
        since: only attempts that started then or later.
        """
        name, source = _grouping(by)
        seconds = sa.func.coalesce(Attempt.gpu_seconds, gpu_seconds(NOW))
        wasted = Attempt.outcome.in_(_WASTED)
        cost = seconds * Job.cost_per_gpu_hour / 3600
        total = sa.func.sum(cost).label("cost")
        statement = (
            sa
            .select(
                name.label("name"),
                Job.currency,
                sa.func.count(Job.job_id.distinct()).label("jobs"),
                _sum(seconds, ~wasted).label("used_gpu_seconds"),
                _sum(seconds, ~wasted & (Attempt.step == CONDITIONS.step)).label("conditions_gpu_seconds"),
                _sum(seconds, wasted).label("wasted_gpu_seconds"),
                total,
                sa.func.sum(sa.case((wasted, cost), else_=0 * cost)).label("wasted_cost"),
            )
            .select_from(source)
            .group_by(sa.text("1"), Job.currency)
            .order_by(*([] if by == "day" else [total.desc().nulls_last()]), sa.text("1"))
        )
        if since is not None:
            statement = statement.where(Attempt.started_at >= since)
        if job_id is not None:
            statement = statement.where(Job.job_id == job_id)
        return [Spending(**row) for row in self._execute(statement).mappings()]


def _sum(value: Any, condition: sa.ColumnElement[bool]) -> sa.ColumnElement[float]:
    return sa.func.coalesce(sa.func.sum(value).filter(condition), 0.0)


def _grouping(by: Grouping) -> tuple[sa.ColumnElement[str], sa.FromClause]:
    """Return the expression that names a group, and the joined rows: attempts with their job (and each label)."""
    attempts: sa.FromClause = sa.join(Attempt, Job, Attempt.job_id == Job.job_id)
    none = "(none)"
    match by:
        case "job":
            return sa.func.coalesce(Job.job_id, none), attempts
        case "preset":
            return sa.func.coalesce(Job.preset, none), attempts
        case "day":
            return sa.func.to_char(sa.func.timezone("UTC", Attempt.started_at), "YYYY-MM-DD"), attempts
        case "label":
            key, value = sa.column("key", sa.String), sa.column("value", sa.String)
            label = sa.func.jsonb_each_text(Job.labels).table_valued(key, value).lateral("label")
            name = sa.func.coalesce(label.c.key + "=" + label.c.value, none)
            return name, sa.outerjoin(attempts, label, sa.true())
        case _:
            return sa.literal("all"), attempts
