"""Followers: ranks other than 0. They render with the leader, without storage or metadata of their own."""

from s2v_tasks import log
from s2v_tasks.engine.resume import Interrupted
from s2v_tasks.rendering.order import Order, Renderer, open_rank
from s2v_tasks.runtime.cancellation import cancellable
from s2v_tasks.settings import load_settings


def follow(job_id: str) -> None:
    """Render the clips that the leader orders, until it sends no more orders."""
    settings = load_settings()
    with cancellable(job_id, settings), open_rank(settings) as worker:
        log.bind(job_id=job_id, rank=worker.rank)
        renderer = Renderer(worker)
        order: Order | None = worker.share()
        while order is not None:
            log.bind(clip_index=order.clip.clip_index)
            try:
                state = renderer.saved_state(order)
                renderer.render(order, state, take=lambda _frames: None, on_step=lambda _step, _num_steps: None)
                renderer.clip_facts()
            except Interrupted as stop:
                log.get_logger().info("interrupted", step=stop.state.step)
            order = worker.share()
