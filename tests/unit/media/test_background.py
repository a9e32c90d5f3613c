"""Pieces are handed from the thread that makes them to one that works on them."""

import threading
from collections.abc import Iterator

import pytest

from s2v_tasks.media.background import MAX_WAITING, background_consumer


def test_pieces_arrive_in_order_and_the_work_is_done_at_the_end() -> None:
    """All pieces, in the order in which they were given, and the block waits for the work on them."""
    seen: list[int] = []
    with background_consumer(seen.extend) as take:
        for piece in range(20):
            take(piece)
    assert seen == list(range(20))


def test_few_pieces_wait() -> None:
    """The maker is held back while the user has one piece in hand and the permitted number wait."""
    given: list[int] = []
    held, first_in_hand = threading.Event(), threading.Event()

    def use(pieces: Iterator[int]) -> None:
        for _ in pieces:
            first_in_hand.set()
            assert held.wait(30)

    def make() -> None:
        with background_consumer(use) as take:
            for piece in range(10):
                take(piece)
                given.append(piece)

    maker = threading.Thread(target=make)
    maker.start()
    assert first_in_hand.wait(30)
    maker.join(1)
    assert len(given) <= 1 + MAX_WAITING
    held.set()
    maker.join(30)
    assert len(given) == 10


def test_an_error_of_the_user_reaches_the_maker() -> None:
    """It is raised where the next piece is given, and at the end where no piece follows."""

    def use(pieces: Iterator[int]) -> None:
        for piece in pieces:
            if piece == 3:
                raise ValueError("piece 3 is bad")

    def make(first: int, stop: int) -> None:
        with background_consumer(use) as take:
            for piece in range(first, stop):
                take(piece)

    for bounds in ((0, 100), (3, 4)):
        with pytest.raises(ValueError, match="piece 3 is bad"):
            make(*bounds)


def test_a_maker_that_fails_is_heard_and_the_work_is_given_up() -> None:
    """The user finds an error in place of the next piece and cannot take what it has for the whole."""
    ended: list[str] = []

    def use(pieces: Iterator[int]) -> None:
        try:
            list(pieces)
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    def make() -> None:
        with background_consumer(use) as take:
            take(1)
            raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        make()
    assert ended == ["_AbandonedError"]


def test_a_user_that_has_enough_holds_nobody_back() -> None:
    """Pieces that the user leaves are dropped."""
    seen: list[int] = []
    with background_consumer(lambda pieces: seen.append(next(pieces))) as take:
        for piece in range(50):
            take(piece)
    assert seen == [0]
