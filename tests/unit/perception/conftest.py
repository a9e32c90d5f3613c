"""Networks and drawn frames that several tests measure."""

import pytest

from s2v_tasks.perception.faces import FaceFinder
from tests.unit.perception.drawn import Person, Picture, openings


@pytest.fixture(scope="session")
def finder() -> FaceFinder:
    """The two networks, loaded once."""
    return FaceFinder()


@pytest.fixture(scope="session")
def talking() -> list[Picture]:
    """Frames of a person who says the speech `baker`."""
    return Person(1).frames(openings("baker"))
