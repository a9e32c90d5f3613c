"""Check that the places of "Where to add" in CONTRIBUTING.md exist and do what the page says."""

import json
import re
from pathlib import Path

from s2v_tasks.cli.request_options import BOOKKEEPING, PLANNING
from s2v_tasks.schemas.events import NOTIFIED_EVENTS, WebhookMessage
from s2v_tasks.schemas.request import Request

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where to add")[1].split("\n## ")[0]


def test_every_addition_names_its_file() -> None:
    """Each entry of the list names an existing file, which contains the constants and classes that the entry names."""
    entries = re.split(r"^\* ", SECTION.partition("Run `make docs`")[0], flags=re.MULTILINE)[1:]
    assert len(entries) >= 14
    for entry in entries:
        named = re.findall(r"`((?:s2v_tasks|config|dags|docs|tests)/[^`]+)`", entry)
        files = [path for name in named for path in ROOT.glob(re.sub(r"<[^>]*>", "*", name))]
        assert files, entry
        texts = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
        for symbol in re.findall(r"`([A-Z]\w+)`", entry):
            assert re.search(rf"^(class )?{symbol}\b", texts, re.MULTILINE), symbol


def test_the_form_and_the_options_follow_the_request() -> None:
    """Every field has a section of the form; the command line has an option for each, or takes it as an argument."""
    properties = Request.model_json_schema()["properties"]
    assert [name for name, schema in properties.items() if "section" not in schema] == []
    arguments = {"image_uri", "audio_uri", "pose_video_uri", "prompt", "parent_job_id", "from_clip"}
    assert {*PLANNING, *BOOKKEEPING} == set(Request.model_fields) - arguments


def test_the_page_about_webhooks_shows_every_field_and_event() -> None:
    """The message in docs/how-to/webhooks.md has the fields of `WebhookMessage`, its table the events that are sent."""
    page = (ROOT / "docs/how-to/webhooks.md").read_text(encoding="utf-8")
    message = json.loads(page.split("```json\n")[1].split("```")[0])
    assert list(message) == list(WebhookMessage.model_fields)
    assert WebhookMessage.model_validate(message).model_dump(mode="json") == message
    assert set(re.findall(r"^\| `(\w+)` \|", page.split("## Message")[1].split("\n## ")[0], re.MULTILINE)) == {
        *map(str, NOTIFIED_EVENTS)
    }
