"""Files of puzzles as people have them -> `Question`s, in order; errors name the place.

Sudokus  a puzzle on each line, optionally followed by its solution; or csv with a column question (and answer)
mazes    drawn over as many lines as the maze is high, with a blank line between; or one per line; or csv
ARC      JSON: {"input": grid}, a list of those, a task, or tasks by name (their test pairs); or one of them per line;
         a task alone in a file is called like the file
others   a puzzle on each line, numbers with spaces or commas between them; or characters, like Sudokus, where the
         folder's trm.json names one for each token
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trm_core.data.puzzles.build.rows import detect, read_rows
from trm_core.data.puzzles.meaning import Meaning
from trm_core.data.puzzles.questions import Question, expected, in_characters, question_of, text_tokens
from trm_core.data.unique_keys import parsed
from trm_core.errors import DataError


def questions_of_file(path: Path, meaning: Meaning) -> Iterator[Question]:
    """Raises DataError that names file and line."""
    if path.suffix.lower() == ".csv" and meaning.kind != "arc":
        for row in read_rows(path, detect(path, lines=False)):
            where = f"{path}, line {row.line}"
            labels = text_tokens(row.answer, meaning, f"{where}, answer") if row.answer else None
            yield Question(text_tokens(row.question, meaning, where), labels)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8") from None
    yield from questions_of_text(text, meaning, str(path), path.stem)


def questions_of_text(text: str, meaning: Meaning, name: str, task: str | None = None) -> Iterator[Question]:
    """The questions in the text of a file called `name`; task: what an ARC task without a name is called. Raises
    DataError that names the line.
    """
    if meaning.kind == "arc" or text.lstrip()[:1] in ("{", "["):
        yield from _of_json(text, meaning, name, task)
    elif meaning.kind == "maze":
        yield from _mazes(text, meaning, name)
    else:
        yield from _lines(text, meaning, name)


def _lines(text: str, meaning: Meaning, name: str) -> Iterator[Question]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        where = f"{name}, line {number}"
        if meaning.kind == "tokens" and not in_characters(words, meaning):
            yield Question(text_tokens(line, meaning, where))
            continue
        if len(words) > 2:
            raise DataError(f"{where}: {len(words)} words", hint=f"{expected(meaning)}; its solution may follow")
        labels = text_tokens(words[1], meaning, f"{where}, solution") if len(words) == 2 else None
        yield Question(text_tokens(words[0], meaning, where), labels)


def _mazes(text: str, meaning: Meaning, name: str) -> Iterator[Question]:
    """Editors strip spaces at the ends of lines: they are restored here. Blank lines are skipped between mazes only;
    within a maze an empty line is an error.
    """
    drawn: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{name}, line {number}"
        if not drawn and not line.strip():
            continue
        if not drawn and len(line) == meaning.cells:
            yield Question(text_tokens(line, meaning, where))
            continue
        if not line or len(line) > meaning.width:
            what = f"{len(line)} characters" if line else f"a maze of {len(drawn)} lines"
            raise DataError(f"{where}: {what}", hint=expected(meaning))
        drawn.append(line.ljust(meaning.width))
        if len(drawn) == meaning.height:
            yield Question(text_tokens("".join(drawn), meaning, where))
            drawn = []
    if drawn:
        raise DataError(f"{name}: the last maze has {len(drawn)} lines", hint=expected(meaning))


def _of_json(text: str, meaning: Meaning, name: str, task: str | None) -> Iterator[Question]:
    try:
        yield from _of_value(parsed(text, name), meaning, name, task)
        return
    except (ValueError, RecursionError) as error:
        lines = [line for line in enumerate(text.splitlines(), start=1) if line[1].strip()]
        if len(lines) < 2:
            raise DataError(f"{name}: is not JSON ({str(error)[:100]})", hint=expected(meaning)) from None
    for number, line in lines:
        try:
            value = parsed(line, f"{name}, line {number}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: is not JSON ({str(error)[:100]})") from None
        yield from _of_value(value, meaning, f"{name}, line {number}", None)


def _of_value(value: Any, meaning: Meaning, where: str, own_name: str | None) -> Iterator[Question]:
    """A puzzle, a list of puzzles that are objects, a task (called `own_name`), or tasks by name."""
    if isinstance(value, dict) and "input" not in value and value:
        tasks = {own_name: value} if "test" in value else value
        for name, task in tasks.items():
            called = (name or "the task")[:40]
            pairs = task.get("test") if isinstance(task, dict) else None
            if not isinstance(pairs, list):
                raise DataError(f"{where}: {called!r} has no list of test pairs", hint=expected(meaning))
            for number, pair in enumerate(pairs):
                yield question_of(pair, meaning, f"{where}, {called}, test pair {number}", name)
    elif isinstance(value, list) and value and isinstance(value[0], (dict, str)):
        for number, one in enumerate(value):
            yield question_of(one, meaning, f"{where}, puzzle {number}")
    else:
        yield question_of(value, meaning, where)
