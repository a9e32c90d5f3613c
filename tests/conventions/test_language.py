"""Check the language of the code: the first words of docstrings, and words that the project does not use."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RIDDLES = re.compile(r"\W*(what|how|whether|where|who|whom|whose|which)\b", re.IGNORECASE)
NO_VERB = re.compile(r"(an?|the|each|all|of|no|only|true|none|in|with)\b|[^a-z]", re.IGNORECASE)
# Words that the project does not use: say metadata store, stored, drop folder, pipeline, reported.
BANNED = re.compile(
    r"ledger|(?<![a-z])(on[ _]record|doors?|road|wish(es)?|(un)?told|heard)(?![a-z])",
    re.IGNORECASE,
)

WORD_LISTS = {ROOT / "tests/samples/talker/speech.py"}  # words of the synthetic speech


def sources(*folders: str) -> list[Path]:
    """Return the Python files in these folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_docstrings_say_what_is_done() -> None:
    """No docstring begins with What, How, Whether, Where, Who, Whom, Whose or Which."""
    riddles = []
    for path in sources("s2v_tasks", "dags", "tests"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first_line = (ast.get_docstring(node) or "").partition("\n")[0]
                if RIDDLES.match(first_line):
                    riddles.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {first_line}")
    assert riddles == []


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    """No docstring of a function or property of the package begins with an article, code, a number or the like."""
    found = []
    for path in sources("s2v_tasks"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first_line = (ast.get_docstring(node) or "").partition("\n")[0]
                if NO_VERB.match(first_line):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {first_line}")
    assert found == []


def test_code_uses_the_words_of_the_field() -> None:
    """No name, comment, docstring or message has a word that the vocabulary of the project replaces."""
    found = []
    for path in sources("s2v_tasks", "dags", "tests"):
        if path.parent == Path(__file__).parent or path in WORD_LISTS:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if word := BANNED.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {word[0]}")
    assert found == []
