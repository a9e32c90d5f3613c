"""JSON of strangers: one meaning or none."""

import pytest

from s2v_tasks.schemas.strict_json import parse_json


def test_plain_json_is_what_it_says() -> None:
    """Keys of one name in different objects are different keys."""
    assert parse_json('{"a": 1, "b": [{"a": null}, {"a": 2.5}]}') == {"a": 1, "b": [{"a": None}, {"a": 2.5}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "size": 1, "prompt": "a"}', "the key 'prompt' is given more than once"),
        ('{"labels": {"x": 1, "x": 2}}', "the key 'x' is given more than once"),
        ('{"a": Infinity}', "Infinity is not a number of JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("{'a': 1}", "Expecting property name"),
        ("", "Expecting value"),
    ],
)
def test_anything_else_is_refused(text: str, words: str) -> None:
    """Whatever Python's reader makes of it: the last of two values, NaN, or another kind of error."""
    with pytest.raises(ValueError, match=words):
        parse_json(text)
