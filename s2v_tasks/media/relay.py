"""Work on pieces in a thread of its own while the next ones are still made, with few of them waiting in between."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
MAX_WAITING = 2
_POLL_SECONDS = 0.1


class _AbandonedError(Exception):
    """No more pieces come, and what was made of the earlier ones is not wanted."""


@contextmanager
def handed_over(use: Callable[[Iterator[T]], object]) -> Iterator[Callable[[T], None]]:
    """Run `use` on the pieces that the block gives to the function which it is given.

    That function waits while `MAX_WAITING` pieces are not taken up yet; an error of `use` is raised there, or at the
    end of the block, which waits for `use`. Pieces that `use` leaves are dropped. When the block fails, `use` finds an
    error in place of the next piece.
    """
    waiting: queue.Queue[T | BaseException | None] = queue.Queue(MAX_WAITING)
    with ThreadPoolExecutor(1, thread_name_prefix="handed-over") as threads:
        user = threads.submit(use, _pieces(waiting))
        try:
            yield lambda piece: _put(waiting, piece, user)
        except BaseException:
            _put(waiting, _AbandonedError(), user, heard=False)
            raise
        _put(waiting, None, user)
        user.result()


def _pieces(waiting: "queue.Queue[T | BaseException | None]") -> Iterator[T]:
    while (piece := waiting.get()) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def _put(
    waiting: "queue.Queue[T | BaseException | None]",
    piece: T | BaseException | None,
    user: "Future[object]",
    *,
    heard: bool = True,
) -> None:
    while not user.done():
        try:
            waiting.put(piece, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return
    if heard:
        user.result()
