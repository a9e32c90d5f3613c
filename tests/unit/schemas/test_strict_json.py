"""Check that JSON from outside has one meaning or is refused."""

import pytest

from s2v_tasks.schemas.request_parsing import decode_text, parse_json


def test_plain_json_is_read() -> None:
    """Equal keys in different objects are different keys."""
    assert parse_json('{"a": 1, "b": [{"a": null}, {"a": 2.5}]}') == {"a": 1, "b": [{"a": None}, {"a": 2.5}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "size": 1, "prompt": "a"}', "the key 'prompt' is given more than once"),
        ('{"labels": {"x": 1, "x": 2}}', "the key 'x' is given more than once"),
        ('{"a": Infinity}', "Infinity is not a number of JSON"),
        ('{"a": 1e400}', "1e400 is too large for a number"),
        (f"[{'1' * 50}.5e999]", f"^{'1' * 40} is too large for a number"),
        (f'{{"{"k" * 201}": 1, "{"k" * 201}": 2}}', f"^the key '{'k' * 200}' is given"),
        ('{"a": -1e999}', "-1e999 is too large for a number"),
        (f'{{"a": {"9" * 309}}}', "a number of 309 digits is too large: expected at most 308"),
        (f"[{'1' * 5000}]", "a number of 5000 digits is too large"),
        ("[" * 100_000, "nested too deeply"),
        (f"{'[' * 33}{']' * 33}", "nested too deeply: expected at most 32 levels"),
        (f"{'[0,' * 33}0{']' * 33}", "nested too deeply: expected at most 32 levels"),
        (f"""{'{"a":' * 33}0{"}" * 33}""", "nested too deeply: expected at most 32 levels"),
        ("{'a': 1}", "Expecting property name"),
        ("", "Expecting value"),
    ],
)
def test_anything_else_is_refused(text: str, words: str) -> None:
    """Duplicate keys, NaN and other extensions of Python's parser are refused with the same kind of error."""
    with pytest.raises(ValueError, match=words):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_may_come_in_any_encoding_of_unicode(encoding: str) -> None:
    """Text with a byte order mark and in UTF-16 is read."""
    assert parse_json('{"prompt": "Grüße 東京 🎬"}'.encode(encoding)) == {"prompt": "Grüße 東京 🎬"}


def test_a_text_may_begin_with_a_byte_order_mark() -> None:
    """A string may begin with a byte order mark, too."""
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("data", ["Grüße".encode("latin-1"), "Hallo".encode("utf-16")[:-1], b"\xed\xa0\x80"])
def test_a_text_in_another_encoding_is_refused(data: bytes) -> None:
    """Latin-1, half a character and an encoded surrogate are refused with the expectation."""
    with pytest.raises(ValueError, match="not UTF-8 text"):
        decode_text(data)


def test_large_and_deep_values_within_bounds_are_read() -> None:
    """Values at the limits of size and depth are read."""
    whole = int("9" * 308)
    assert parse_json(f'{{"a": {whole}, "b": 1e308}}') == {"a": whole, "b": 1e308}
    value = parse_json("[" * 32 + "]" * 32)
    for _ in range(31):
        (value,) = value
    assert value == []
