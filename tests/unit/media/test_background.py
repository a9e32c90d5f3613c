"""Check the bounded queue between a producer and a consumer in another thread."""

import threading
from collections.abc import Iterator

import pytest

from s2v_tasks.media.background import MAX_WAITING, background_consumer


def test_items_arrive_in_order_and_the_block_waits() -> None:
    """All items arrive in order, and the block waits for the consumer."""
    seen: list[int] = []
    with background_consumer(seen.extend) as take:
        for item in range(20):
            take(item)
    assert seen == list(range(20))


def test_the_queue_is_bounded() -> None:
    """The producer blocks while the consumer has one item and the permitted number wait."""
    given: list[int] = []
    held, first_in_hand = threading.Event(), threading.Event()

    def consume(items: Iterator[int]) -> None:
        for _ in items:
            first_in_hand.set()
            assert held.wait(30)

    def produce() -> None:
        with background_consumer(consume) as take:
            for item in range(10):
                take(item)
                given.append(item)

    producer = threading.Thread(target=produce)
    producer.start()
    assert first_in_hand.wait(30)
    producer.join(1)
    assert len(given) <= 1 + MAX_WAITING
    held.set()
    producer.join(30)
    assert len(given) == 10


def test_an_error_of_the_consumer_reaches_the_producer() -> None:
    """The error is raised at the next item, or at the end of the block."""

    def consume(items: Iterator[int]) -> None:
        for item in items:
            if item == 3:
                raise ValueError("item 3 is bad")

    def produce(first: int, stop: int) -> None:
        with background_consumer(consume) as take:
            for item in range(first, stop):
                take(item)

    for bounds in ((0, 100), (3, 4)):
        with pytest.raises(ValueError, match="item 3 is bad"):
            produce(*bounds)


def test_a_failed_producer_stops_the_consumer() -> None:
    """The consumer gets an error instead of the next item, so that it does not treat its items as complete."""
    ended: list[str] = []

    def consume(items: Iterator[int]) -> None:
        try:
            list(items)
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    def produce() -> None:
        with background_consumer(consume) as take:
            take(1)
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        produce()
    assert ended == ["_AbandonedError"]


def test_a_consumer_that_has_enough_does_not_block() -> None:
    """Items after the return of the consumer are dropped."""
    seen: list[int] = []
    with background_consumer(lambda items: seen.append(next(items))) as take:
        for item in range(50):
            take(item)
    assert seen == [0]
