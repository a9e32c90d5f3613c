"""Turn the files of a dropped folder into a request, or into one sentence that says why it has none."""

from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import normalize

from s2v_tasks.errors import PermanentError
from s2v_tasks.ingestion.drop_folder import MARKER, PROMPT, SUFFIXES, DropFolder, is_ignored, plain_name, short_digest
from s2v_tasks.schemas.job import JOB_ID_RULE, is_job_id, job_slug
from s2v_tasks.schemas.request import Request, parse_request
from s2v_tasks.schemas.strict_json import decode_text, parse_json

MAX_TEXT_BYTES = 64 * 1024  # of request.json and of prompt.txt
_KIND_OF_FIELD: dict[str, Literal["image", "audio", "pose"]] = {
    "image_uri": "image",
    "audio_uri": "audio",
    "pose_video_uri": "pose",
}


@dataclass(frozen=True)
class DropTexts:
    """The contents of `request.json` and `prompt.txt`; None for a missing file."""

    marker: bytes | None
    prompt: bytes | None


@dataclass(frozen=True)
class DropRequest:
    """The request of a folder. The folder may choose the `job_id`, so that its sender knows it beforehand."""

    job_id: str
    request: Request


def request_of_drop(folder: DropFolder, texts: DropTexts, target_uri: str, max_input_bytes: int) -> DropRequest:
    """Return the request of a folder whose files will be at `target_uri`; PermanentError when it has none.

    A URI field of request.json names a file of the folder, or any S3 object by its full URI. An omitted field means the
    only file of its kind, an omitted prompt the content of prompt.txt.
    """
    if folder.unfinished:
        raise PermanentError(
            f"{', '.join(map(repr, folder.unfinished[:5]))}: an upload that was not finished; upload the file again, "
            "or remove what is left of it."
        )
    fields = {} if texts.marker is None else _object(texts.marker)
    job_id = fields.pop("job_id", None)
    if job_id is None:
        job_id = default_job_id(folder)
    elif not is_job_id(job_id):
        raise PermanentError(f"{MARKER}: job_id {str(job_id)[:80]!r}: expected {JOB_ID_RULE}.")
    for field, kind in _KIND_OF_FIELD.items():
        name = _file_name(folder, field, kind, fields.get(field))
        if name is None:
            continue
        _check_size(folder, name, max_input_bytes)
        fields[field] = f"{target_uri}/{plain_name(name)}"
    if fields.get("prompt") is None:
        fields["prompt"] = _prompt(texts.prompt)
    return DropRequest(job_id, parse_request({name: value for name, value in fields.items() if value is not None}))


def default_job_id(folder: DropFolder) -> str:
    """Return a readable job id, the same for the same files in the same folder."""
    return f"{job_slug(folder.name) or 'drop'}-{short_digest(f'{folder.uri}@{folder.etag}')}"


def _object(data: bytes) -> dict[str, Any]:
    try:
        parsed = parse_json(data)
    except ValueError as error:
        raise PermanentError(
            f'{MARKER} is not JSON ({error}): expected an object of request fields such as {{"prompt": "..."}}.'
        ) from error
    if not isinstance(parsed, dict):
        raise PermanentError(f"{MARKER} is a JSON {type(parsed).__name__}: expected an object of request fields.")
    return parsed


def _file_name(folder: DropFolder, field: str, kind: Literal["image", "audio", "pose"], given: Any) -> str | None:
    """Return the file of the folder that a field means; None when it means no file, or an object elsewhere."""
    if isinstance(given, str) and not given.startswith("s3://"):
        return _named_file(folder, field, given)
    if given is not None:
        return None
    found = folder.named(kind)
    if len(found) > 1:
        raise PermanentError(
            f"The folder has {len(found)} files that may be its {kind} ({', '.join(map(repr, found[:5]))}): leave one, "
            f"or name the right one as {field} in {MARKER}."
        )
    if not found and kind != "pose":
        raise PermanentError(
            f"The folder has no {kind} file; there are: {_names(folder)}. Expected a name that ends with "
            f"{', '.join(sorted(SUFFIXES[kind]))}{', or a video with sound' if kind == 'audio' else ''}."
        )
    return found[0] if found else None


def _named_file(folder: DropFolder, field: str, given: str) -> str:
    """Return the file of the folder with the given name, in the Unicode normal form of the store."""
    if given in folder.files:
        return given
    found = [name for name in folder.files if normalize("NFC", name) == normalize("NFC", given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise PermanentError(
            f"{MARKER}: {field} {given[:200]!r} means {len(found)} files whose names differ only in their Unicode "
            "normal form: leave or rename one."
        )
    if any(name.startswith(f"{given.rstrip('/')}/") for name in folder.files):
        problem = "is a folder, not a file: add the name of the file to it"
    elif is_ignored(given):
        problem = "is ignored, as a hidden, temporary or back-up file: rename it"
    else:
        problem = "is no file of the folder"
    raise PermanentError(f"{MARKER}: {field} {given[:200]!r} {problem}; there are: {_names(folder)}.")


def _check_size(folder: DropFolder, name: str, max_input_bytes: int) -> None:
    size_bytes = folder.files[name].size_bytes
    if not 0 < size_bytes <= max_input_bytes:
        raise PermanentError(f"{name!r} has {size_bytes} bytes: expected 1 to {max_input_bytes} (S2V_MAX_INPUT_BYTES).")


def _prompt(text: bytes | None) -> str:
    if text is None:
        raise PermanentError(f"There is no prompt: expected the file {PROMPT}, or the field prompt in {MARKER}.")
    try:
        return decode_text(text).strip()
    except ValueError as error:
        raise PermanentError(f"{PROMPT} is {error}; save it as UTF-8.") from error


def _names(folder: DropFolder) -> str:
    names = sorted(folder.files)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
