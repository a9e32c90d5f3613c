"""Check the command options that are made from the fields of a request."""

import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from s2v_tasks.cli.request_options import (
    BOOKKEEPING,
    PLANNING,
    parse_labels,
    parse_number,
    parse_step_range,
    request_options,
)
from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.request import Request


def fields_of(*arguments: str) -> dict[str, Any]:
    """Return the fields of a command that has an option for every field."""
    seen: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @request_options("prompt", *PLANNING, *BOOKKEEPING)
    def command(fields: dict[str, Any], loud: bool = False) -> None:
        seen.append(fields | {"loud": loud})

    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return seen[0]


def test_only_what_was_given_reaches_the_command() -> None:
    """Omitted fields are not in the request, so that presets and defaults decide about them."""
    assert fields_of() == {"loud": False}
    assert fields_of("--loud", "--base-seed", "0", "--start-from-ref") == {
        "loud": True,
        "base_seed": 0,
        "start_from_ref": True,
    }


def test_values_have_the_type_of_their_field() -> None:
    """Numbers, choices and labels have the types of a request."""
    given = fields_of("--num-clip", "2", "--sample-shift", "3", "--priority", "high", "--label", "a=1", "--label", "b=")
    assert given | {"labels": {"a": "1", "b": ""}} == given
    assert (given["num_clip"], given["sample_shift"], given["priority"]) == (2, 3.0, "high")


def test_a_range_of_steps_is_two_numbers() -> None:
    """FROM:TO arrives as the list that a request takes; another text is refused."""
    assert fields_of("--guide-steps", "2:10")["guide_steps"] == [2, 10]
    for text in ("10", "a:b", "1:2:3", ":"):
        with pytest.raises(PermanentError, match="expected FROM:TO"):
            parse_step_range(text)


@pytest.mark.parametrize("text", ["abc", "1_0", "2.5", "８", "", "nan", "9" * 400, "9" * 5000])
def test_a_whole_number_that_is_none_is_repeated(text: str) -> None:
    """The message has the option, the text and the expectation; a request would refuse the same texts."""
    with pytest.raises(PermanentError, match=f"^--num-clip '{re.escape(text)}': expected a whole number"):
        parse_number("--num-clip", text, int)


@pytest.mark.parametrize("text", ["1e400", "-1e400", "inf", "NaN", "４", "4,5"])
def test_a_number_that_is_none_is_repeated(text: str) -> None:
    """A number beyond the range of a double is shown as it was typed, not as infinity."""
    with pytest.raises(PermanentError, match=f"^--max-cost '{re.escape(text)}': expected a number, such as 4.5"):
        parse_number("--max-cost", text, float)
    assert parse_number("--max-cost", " 1e3 ", float) == 1000


def test_adapters_are_names_with_strengths() -> None:
    """Each option is one adapter, with a strength of 1 if it states none; `none` turns those of a preset off."""
    given = fields_of("--adapter", "four-steps=0.5", "--adapter", "voice")
    assert given["adapters"] == [{"name": "four-steps", "strength": "0.5"}, {"name": "voice"}]
    assert fields_of("--adapter", "none")["adapters"] == []


def test_every_field_of_a_request_has_an_option() -> None:
    """Each field has an option, except files, which are arguments, and fields of a rerun."""
    own = {"image_uri", "audio_uri", "pose_video_uri", "prompt", "parent_job_id", "from_clip"}
    assert {*PLANNING, *BOOKKEEPING} | own == set(Request.model_fields)


@pytest.mark.parametrize("text", ["team", "=news", ""])
def test_a_label_without_name_or_value_is_refused(text: str) -> None:
    """The message repeats the value and shows the expected form."""
    with pytest.raises(PermanentError, match="expected NAME=VALUE"):
        parse_labels([text])
