"""Consume items in a background thread through a bounded queue: a slow consumer slows the producer down."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
MAX_WAITING = 2
_POLL_SECONDS = 0.1


class _AbandonedError(Exception):
    """The producer failed: no more items come, and the result of the earlier ones is not needed."""


@contextmanager
def background_consumer(consume: Callable[[Iterator[T]], object]) -> Iterator[Callable[[T], None]]:
    """Run `consume` in a thread and yield a function that passes one item to it.

    That function blocks while `MAX_WAITING` items are in the queue (backpressure). It raises errors of `consume`. The
    end of the block waits for `consume` and raises its errors too. Items that `consume` does not read are dropped. If
    the block fails, `consume` gets an error in place of the next item.
    """
    items: queue.Queue[T | BaseException | None] = queue.Queue(MAX_WAITING)
    with ThreadPoolExecutor(1, thread_name_prefix="background-consumer") as threads:
        consumer = threads.submit(consume, _items(items))
        try:
            yield lambda item: _put(items, item, consumer)
        except BaseException:
            _put(items, _AbandonedError(), consumer, raises=False)
            raise
        _put(items, None, consumer)
        consumer.result()


def _items(items: "queue.Queue[T | BaseException | None]") -> Iterator[T]:
    while (item := items.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _put(
    items: "queue.Queue[T | BaseException | None]",
    item: T | BaseException | None,
    consumer: "Future[object]",
    *,
    raises: bool = True,
) -> None:
    """Put the item into the queue unless the consumer has ended; its error is raised if `raises`."""
    while not consumer.done():
        try:
            items.put(item, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return
    if raises:
        consumer.result()
