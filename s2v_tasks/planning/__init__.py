"""Planning: pure functions from a request and the facts of its inputs to the plan of the job."""

from s2v_tasks.planning.planner import make_plan

__all__ = ["make_plan"]
