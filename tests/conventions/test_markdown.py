"""Check the Markdown files: width of lines, banned words, links and paths."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTH = 120
# Words that the project does not use, each with its replacement in DESIGN: "metadata store", "drop folder" ...
BANNED = re.compile(
    r"ledger|\bon record\b|\bdoors?\b|\b(the|whole|of) road\b|\bwish(es)?\b|\b(un)?told\b|\bheard\b"
    r"|\b(KV|step) memory\b",
    re.IGNORECASE,
)
# A path in backticks: of a folder of the repository, or a file with a folder before its name.
TOP = r"(?:s2v_tasks|config|tests|docs|docker|dags)/"
PATH = re.compile(rf"`({TOP}[^`\s]*|[\w.-]+/[\w./-]+\.(?:py|ya?ml|md|toml|sh|txt))`")


def pages() -> list[str]:
    """Return the Markdown files of the repository, relative to its root."""
    folders = ("docs", "docker", "tests", "config")
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*.md"))]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages())
def test_lines_are_at_most_120_characters_wide(page: str) -> None:
    """No line of a Markdown file is longer than 120 characters."""
    lines = enumerate(text_of(page).splitlines(), start=1)
    assert [f"{page}:{number} has {len(line)} characters" for number, line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", pages())
def test_words_of_the_field_are_used(page: str) -> None:
    """A Markdown file has no word that the vocabulary of the project replaces."""
    lines = enumerate(text_of(page).splitlines(), start=1)
    assert [f"{page}:{number}: {found[0]}" for number, line in lines if (found := BANNED.search(line))] == []


@pytest.mark.parametrize("page", pages())
def test_links_name_existing_files(page: str) -> None:
    """A relative link leads to a file of the repository, and its fragment to a heading of that file."""
    broken = []
    for target, fragment in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
        file = (ROOT / page).parent / target if target else ROOT / page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(f"{target}#{fragment}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the fragments that name the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_paths_in_backticks_exist(page: str) -> None:
    """A path in backticks names a file or a folder of the repository; `*` and `<name>` stand for any name."""
    missing = []
    for path in PATH.findall(text_of(page)):
        pattern = re.sub(r"<[^>]*>", "*", path.partition("#")[0].rstrip("/"))
        if not any(True for _ in ROOT.glob(pattern)):
            missing.append(path)
    assert missing == []
