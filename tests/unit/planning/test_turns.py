"""Check the groups of clips that one process renders."""

import pytest

from s2v_tasks.planning.clips import turns


@pytest.mark.parametrize(
    ("chains", "clips_per_pod", "expected"),
    [
        ([0, 0, 0], 1, [[0], [1], [2]]),
        ([0, 0, 0], 2, [[0, 1], [2]]),
        ([0, 0, 1, 1, 1, 2], 2, [[0, 1], [2, 3], [4], [5]]),
        ([0, 1, 2], 16, [[0], [1], [2]]),
    ],
)
def test_a_process_renders_clips_of_one_chain_only(chains: list[int], clips_per_pod: int, expected: object) -> None:
    """Every clip has its turn once, in order; a turn ends with its chain."""
    assert [list(turn) for turn in turns(chains, clips_per_pod)] == expected
