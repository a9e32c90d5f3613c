"""Check the values that a request accepts, and its error messages."""

from typing import Any

import pytest

from s2v_tasks.errors import PermanentError
from s2v_tasks.schemas.request import Request
from s2v_tasks.schemas.request_fields import MAX_PROMPT_CHARACTERS, parse_size
from s2v_tasks.schemas.request_parsing import parse_request

FIELDS = {"image_uri": "s3://bucket/in/a.png", "audio_uri": "s3://bucket/in/a.wav", "prompt": "A woman speaks."}


def test_minimal_request_leaves_the_rest_to_the_preset() -> None:
    """Picture, speech and prompt suffice, and fields that a preset decides stay empty."""
    request = parse_request(dict(FIELDS))
    assert (request.preset, request.base_seed, request.start_from_ref) == ("balanced", -1, False)
    assert (request.num_clip, request.infer_frames, request.size, request.sample_steps) == (None, None, None, None)


def test_request_survives_json() -> None:
    """A request written as JSON and read again is the same request."""
    request = parse_request(FIELDS | {"size": "480*832", "num_clip": 2, "sample_solver": "dpm++"})
    assert Request.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize(
    "name", ["my photo (1).png", "Größe 東京 👩‍🚀.png", "50% + #1?.png", "'x' & \"y\".png", " .png"]
)
def test_files_have_the_names_that_people_give_them(name: str) -> None:
    """Blanks, letters of any alphabet, emoji and punctuation are valid in file names."""
    uri = f"s3://bucket/Fotos für Anna/{name}"
    assert parse_request(FIELDS | {"image_uri": uri}).image_uri == uri


@pytest.mark.parametrize("character", ["\n", "\t", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
def test_control_characters_are_no_part_of_a_name(character: str) -> None:
    """Characters that could control a log or a terminal are refused at every position."""
    for name in (f"a{character}b.png", f"a.png{character}", f"{character}a.png"):
        with pytest.raises(PermanentError, match=r"image_uri .*without control characters"):
            parse_request(FIELDS | {"image_uri": f"s3://bucket/{name}"})


@pytest.mark.parametrize("size", ["128*128", "480*832", "1280*704", "704*1280", "1024*704"])
def test_legal_sizes(size: str) -> None:
    """Sides are multiples of 32 from 128 to 1280, with at most 1280*720 pixels."""
    assert "*".join(str(side) for side in parse_size(size)) == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"infer_frames": 50}, "infer_frames 50: expected a multiple of 4 from 16 to 120"),
        ({"infer_frames": 124}, "infer_frames 124: expected a multiple of 4 from 16 to 120"),
        ({"infer_frames": 12}, "infer_frames 12: expected a multiple of 4 from 16 to 120"),
        ({"size": "100*100"}, "size '100*100': expected sides that are multiples of 32 from 128 to 1280"),
        ({"size": "1280*1280"}, "size '1280*1280': has 1638400 pixels: expected at most 1280*720"),
        ({"preset": "QUICK"}, "preset 'QUICK': expected the name of a preset in lower-case letters, such as balanced"),
        ({"adapters": [{"name": ""}]}, "adapters.0.name '': expected the name of an adapter of adapters.yaml"),
        (
            {"parent_job_id": "A b", "from_clip": 0},
            "parent_job_id 'A b': expected a job id of 3 to 63 lower-case letters, digits and dashes",
        ),
        ({"size": "480x832"}, "size '480x832': expected W*H such as 480*832"),
        ({"image_uri": "/etc/passwd"}, "image_uri '/etc/passwd': expected an S3 URI"),
        ({"audio_uri": "https://example.org/a.wav"}, "audio_uri 'https://example.org/a.wav': expected an S3 URI"),
        ({"prompt": "  "}, "prompt '  ': is blank"),
        ({"prompt": "x" * 10_000}, "(10000 characters)"),
        ({"sample_steps": 0}, "sample_steps 0: input should be greater than or equal to 1"),
        ({"guide_steps": [5, 5]}, "guide_steps [5, 5]: expected [from, to], two step numbers"),
        ({"guide_steps": [5]}, "guide_steps [5]: list should have at least 2 items"),
        ({"sample_solver": "heun"}, "sample_solver 'heun': input should be 'unipc', 'dpm++' or 'euler'"),
        ({"num_clip": 0}, "num_clip 0: "),
        ({"base_seed": -2}, "base_seed -2: "),
        ({"continuity": "loose"}, "continuity 'loose': input should be 'chained' or 'cut'"),
        ({"min_chain_seconds": 20}, "need continuity cut: set continuity to cut or leave them out"),
        ({"transition": "crossfade"}, "need continuity cut"),
        (
            {"continuity": "cut", "max_chain_seconds": 19},
            "max_chain_seconds 19 is less than twice min_chain_seconds 10",
        ),
        ({"parent_job_id": "talk-1"}, "a rerun needs both parent_job_id and from_clip: give both or neither"),
        ({"from_clip": 2}, "give both or neither"),
        ({"parent_job_id": "Talk 1", "from_clip": 2}, "parent_job_id 'Talk 1': "),
        ({"approval": "all"}, "approval 'all': input should be 'none', 'result' or 'each_clip'"),
        ({"approval": "each_clip", "continuity": "cut"}, "approval each_clip needs continuity chained"),
        ({"approval": "each_clip", "clips_per_pod": 2}, "and clips_per_pod 1"),
        ({"labels": {"team": "the news"}}, "'the news' cannot be a label: expected 1 to 63 letters"),
        ({"labels": {"-team": "news"}}, "'-team' cannot be a label"),
        ({"labels": {f"l{k}": "x" for k in range(17)}}, "at most 16 items"),
        ({"webhook_url": "ftp://example.org/x"}, "webhook_url (not shown: it may hold a secret): expected an http or"),
        ({"webhook_url": "https://me:secret@example.org/"}, "expected an http or https URL without user and password"),
        ({"max_cost": 0}, "max_cost 0: input should be greater than 0"),
        ({"max_cost": float("inf")}, "max_cost inf: input should be a finite number"),
        ({"clips_per_pod": 17}, "clips_per_pod 17: "),
        ({"num_clip": True}, "num_clip True: expected a number, not true or false"),
        ({"base_seed": False}, "base_seed False: expected a number, not true or false"),
        ({"sample_guide_scale": True}, "sample_guide_scale True: expected a number, not true or false"),
        ({"max_cost": True}, "max_cost True: expected a number, not true or false"),
        ({"num_clip": "２"}, "num_clip '２': expected a number in the digits 0 to 9"),
        ({"num_clip": "1_0"}, "num_clip '1_0': expected a number in the digits 0 to 9"),
        ({"sample_shift": "٤"}, "sample_shift '٤': expected a number in the digits 0 to 9"),
        ({"max_gpu_seconds": "nan"}, "max_gpu_seconds 'nan': expected a number in the digits 0 to 9"),
        ({"num_clip": "2.5"}, "num_clip '2.5': "),
        ({"num_clip": 10**300}, "(301 characters): input should be less than or equal to 1000"),
        ({"size": "４８０*８３２"}, "size '４８０*８３２': expected W*H such as 480*832"),
        ({"size": "480*832\n"}, "in the digits 0 to 9"),
        ({"image_uri": "s3://bucket/in/"}, "image_uri 's3://bucket/in/': is a folder, not a file"),
        ({"pose_video_uri": "s3://bucket/in/"}, "pose_video_uri 's3://bucket/in/': is a folder, not a file"),
        ({"two\nlines": 4}, "'two\\nlines' is not a field of a request"),
        ({"labels": {"a b": "x", "c": "d e"}}, "'a b' and 'd e' cannot be a label"),
        ({"labels": {"n": 5}}, "labels.n 5: input should be a valid string"),
        ({"steps": 4}, "steps is not a field of a request (known: image_uri, "),
    ],
)
def test_bad_fields_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    """The error names the field, a short form of its value and what was expected."""
    with pytest.raises(PermanentError) as caught:
        parse_request(FIELDS | changes)
    sentence = str(caught.value)
    assert message in sentence
    assert sentence.startswith("Bad request: ")
    assert len(sentence) < 700
    assert "\n" not in sentence


def test_many_wrong_fields_make_a_short_error() -> None:
    """The list of known fields is given once, and more errors than a request can have are counted only."""
    with pytest.raises(PermanentError, match="one, two are not fields of a request") as few:
        parse_request(FIELDS | {"one": 1, "two": 2, "size": "1*1"})
    assert str(few.value).count("known: ") == 1
    for fields in ({f"x{number}": 0 for number in range(9000)}, {"labels": {f"x{n}": 0 for n in range(9000)}}):
        with pytest.raises(PermanentError, match=r"it has 9\d\d\d errors; expected only the fields image_uri") as many:
            parse_request(FIELDS | fields)
        assert len(str(many.value)) < 1000


def test_all_bad_fields_are_named_at_once() -> None:
    """A missing field and a bad one are reported together."""
    with pytest.raises(PermanentError, match=r"prompt is missing; infer_frames 50: "):
        parse_request({name: FIELDS[name] for name in ("image_uri", "audio_uri")} | {"infer_frames": 50})


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"infer_frames": 50, "from_clip": 2}, ["infer_frames 50", "give both or neither"]),
        ({"prompt": None, "transition": "crossfade"}, ["prompt None", "need continuity cut"]),
        ({"speed": 1, "min_chain_seconds": 20, "from_clip": 1}, ["speed", "continuity cut", "both or neither"]),
        ({"continuity": "loose", "min_chain_seconds": 20}, ["continuity 'loose'"]),
        ({"from_clip": -1}, ["from_clip -1"]),
        ({"min_chain_seconds": 20, "from_clip": 2}, ["need continuity cut", "give both or neither"]),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named_beside_bad_ones(
    changes: dict[str, Any], problems: list[str]
) -> None:
    """Conflicts are reported with bad fields, unless they only follow from a bad field."""
    with pytest.raises(PermanentError) as caught:
        parse_request(FIELDS | changes)
    found = str(caught.value).removeprefix("Bad request: ").split("; ")
    assert [problem in text for problem, text in zip(problems, found, strict=True)] == [True] * len(problems)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("num_clip", "2", 2), ("num_clip", " 5.0 ", 5), ("base_seed", "-1", -1), ("sample_guide_scale", "4.5", 4.5),
     ("max_cost", "1.5e2", 150.0), ("max_cost", ".5", 0.5), ("max_cost", "+5.", 5.0)],
)  # fmt: skip
def test_numbers_may_be_given_as_text(name: str, text: str, value: float) -> None:
    """Numbers as text, as in a CSV or a form, are accepted."""
    assert getattr(parse_request(FIELDS | {name: text}), name) == value


@pytest.mark.parametrize("value", [True, "true", "TRUE", "yes", 1])
def test_booleans_may_be_given_as_text(value: Any) -> None:
    """Several words for true and false are accepted, as in a CSV."""
    assert parse_request(FIELDS | {"start_from_ref": value}).start_from_ref is True


def test_longest_prompt_is_accepted() -> None:
    """A prompt of exactly the longest length is accepted."""
    assert len(parse_request(FIELDS | {"prompt": "x" * MAX_PROMPT_CHARACTERS}).prompt) == MAX_PROMPT_CHARACTERS


def test_largest_seed_leaves_room_for_the_last_clip() -> None:
    """The largest seed plus the largest clip index is a signed 64-bit number."""
    assert parse_request(FIELDS | {"base_seed": 2**63 - 1001}).base_seed + 1000 < 2**63
    with pytest.raises(PermanentError, match="base_seed"):
        parse_request(FIELDS | {"base_seed": 2**63 - 1000})


def test_a_request_may_ask_for_cuts_and_say_how_long_chains_are() -> None:
    """Chains have default bounds, which a request with cuts may replace."""
    assert parse_request(FIELDS | {"continuity": "cut"}).shortest_chain_seconds == 10
    request = parse_request(FIELDS | {"continuity": "cut", "min_chain_seconds": 3, "max_chain_seconds": 6})
    assert (request.shortest_chain_seconds, request.longest_chain_seconds) == (3, 6)


def test_a_request_without_approval_keeps_its_bytes() -> None:
    """The field is not written at its default, so that job ids and stored requests do not change."""
    assert "approval" not in parse_request(FIELDS | {"approval": "none"}).model_dump()
    assert parse_request(FIELDS | {"approval": "result"}).model_dump()["approval"] == "result"
