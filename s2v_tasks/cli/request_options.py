"""Generate options of commands from the fields of a request in `schemas.request`."""

import functools
import inspect
import math
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import NOT_PLANNING, is_plain_number
from s2v_tasks.schemas.rerun import SAMPLING_FIELDS

Command = Callable[..., None]
SAMPLING = ("base_seed", *SAMPLING_FIELDS)
QUALITY = ("quality", "max_retakes", "after_retakes")
BOOKKEEPING = ("priority", "labels", "webhook_url", "approval")
PLANNING = tuple(name for name in Request.model_fields if name not in NOT_PLANNING)


def request_options(*names: str) -> Callable[[Command], Command]:
    """Add an option for each named field to a command, which gets the given values as one dict `fields`."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters: list[inspect.Parameter] = []
        for parameter in own:
            if parameter.name == "fields":
                parameters += [_option(name) for name in names]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def with_fields(**arguments: Any) -> None:
            given = {name: arguments.pop(name, None) for name in names}
            fields = {name: value for name, value in given.items() if value not in (None, [])}
            if "labels" in fields:
                fields["labels"] = parse_labels(fields["labels"])
            if "adapters" in fields:
                fields["adapters"] = parse_adapters(fields["adapters"])
            if "guide_steps" in fields:
                fields["guide_steps"] = parse_step_range(fields["guide_steps"])
            command(**arguments, fields=fields)

        with_fields.__dict__["__signature__"] = inspect.Signature(parameters)
        with_fields.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_fields

    return decorate


def parse_labels(pairs: list[str]) -> dict[str, str]:
    """Return `name=value` texts as a dict; PermanentError if a text has another form."""
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise PermanentError(f"--label {pair!r}: expected NAME=VALUE, for example team=news.")
        labels[name] = value
    return labels


def parse_adapters(texts: list[str]) -> list[dict[str, Any]]:
    """Convert `name` and `name=strength` texts to the field of a request; a single `none` is an empty list."""
    if texts == ["none"]:
        return []
    adapters: list[dict[str, Any]] = []
    for text in texts:
        name, equals, strength = text.partition("=")
        adapters.append({"name": name} | ({"strength": strength} if equals else {}))
    return adapters


def parse_step_range(text: str) -> list[int]:
    """Return `from:to` as two numbers; PermanentError for another text."""
    numbers = text.split(":")
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise PermanentError(f"--guide-steps {text!r}: expected FROM:TO, for example 0:10 for the first ten steps.")
    return [int(number) for number in numbers]


def parse_number(flag: str, text: str, kind: type[int] | type[float]) -> int | float:
    """Return the number of an option; PermanentError for a text that no request may have."""
    with suppress(ValueError, OverflowError):
        if is_plain_number(text) and math.isfinite(number := kind(text)):
            return number
    expected = "a whole number, such as 4" if kind is int else "a number, such as 4.5"
    raise PermanentError(f"{flag} {text!r}: expected {expected}.")


def _number_parser(flag: str, kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        return parse_number(flag, text, kind)

    return parse


def flag_of(name: str) -> str:
    """Return the option of a field; a repeated option has its name in the singular."""
    return {"labels": "--label", "adapters": "--adapter"}.get(name, f"--{name.replace('_', '-')}")


def _option(name: str) -> inspect.Parameter:
    """Return the option of a field. Its bounds are checked later, with the whole request."""
    field = Request.model_fields[name]
    flag, kind, metavar = flag_of(name), _value_type(field.annotation), None
    if name == "labels":
        kind, metavar = list[str], "NAME=VALUE"
    elif name == "adapters":
        kind, metavar = list[str], "NAME[=STRENGTH]"
    elif name == "guide_steps":
        kind, metavar = str, "FROM:TO"
    elif kind in (int, float):
        metavar = "NUMBER"
    elif get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    help_text = (field.description or "").replace("Empty:", "Omitted:")
    # Messages of typer's own numbers do not repeat the text.
    parser = _number_parser(flag, kind) if metavar == "NUMBER" else None
    option = typer.Option(flag, help=help_text, metavar=metavar, parser=parser)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _value_type(annotation: Any) -> Any:
    """Return the type of a field's value, without None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation
