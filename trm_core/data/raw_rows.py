"""Raw samples from lines: plain texts, label<TAB>text, csv or JSON lines, told apart by the first line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from trm_core.data.build.arc import PARTS, RawTask, concept_of, looks_like_arc
from trm_core.data.build.arrays import class_name
from trm_core.data.build.delimited import announced, csv_header, csv_rows
from trm_core.data.build.records import called, class_text, silent
from trm_core.data.build.tables import LABEL_COLUMNS, is_missing
from trm_core.data.build.text import TEXT_NAMES
from trm_core.data.unique_keys import parsed
from trm_core.errors import DataError


@dataclass(frozen=True, slots=True)
class Raw:
    """One raw sample. `value`: as `RecordedEncoder.encode` takes it; `where`: its place, for messages; `id`: what it is
    called in answers; `label`: the name of its class, if known.
    """

    value: Any
    where: str
    id: str
    label: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What is read as a sample, for a model that was trained on samples of a `kind`.

    `column`: the one that holds the sample, `label`: the one that holds its class (None: by their usual names).
    `is_class`: whether the model knows a class of that name.
    """

    kind: str
    is_class: Callable[[str], bool]
    column: str | None = None
    label: str | None = None


def of_lines(
    name: str, lines: Iterable[tuple[int, str]], wanted: Wanted, log: Callable[[str], None] = silent
) -> Iterator[Raw]:
    """The samples in numbered lines. Their form is told by the first line that is not blank (nor Excel's line sep=;):

    JSON lines  where it is a JSON object (for kinds other than text: anything of JSON)
    csv         a table; of texts, where `wanted.column` names their column or the line is a header with a usual name
    labelled    texts behind a class of the model and a tab
    plain       a text, or the path of a picture, on each line

    Blank lines are left out. Raises `DataError` with name and line.
    """
    rest = iter(lines)
    seen: list[tuple[int, str]] = []
    for seen_line in rest:
        seen.append(seen_line)
        if seen_line[1].strip() and announced(seen_line[1]) is None:
            break
    first = [line for _, line in seen if line.strip()]
    if not first:
        return
    number = seen[-1][0]
    form, read = _form_of(first, wanted)
    if read is None:
        raise DataError(f"{name}:{number}: is not JSON", hint=f"for {wanted.kind}, give a sample as JSON on each line")
    log(f"{name}: {form}")
    yield from read(name, chain(seen, rest), wanted)


_Lines = Iterable[tuple[int, str]]


def _form_of(first: list[str], wanted: Wanted) -> tuple[str, Callable[[str, _Lines, Wanted], Iterator[Raw]] | None]:
    """The form of lines that begin with these, of which the last one tells it, and the function that reads them (None
    where no form fits).
    """
    line = first[-1]
    if _is_json(line, wanted.kind):
        return "a sample as JSON on each line", json_lines
    if wanted.kind == "table" or (wanted.kind == "text" and (wanted.column is not None or _is_header(line))):
        return "csv with a header", partial(_csv, first)
    if wanted.kind == "text":
        label, tab, _ = line.partition("\t")
        if tab and wanted.is_class(label.strip()):
            return "a label, a tab and a text on each line", _labelled_texts
        return "a text on each line", _plain
    if wanted.kind == "images":
        return "the path of a picture on each line", _plain
    return "", None


def json_lines(name: str, lines: Iterable[tuple[int, str]], wanted: Wanted) -> Iterator[Raw]:
    """A sample on each line; of ARC also whole tasks."""
    for number, line in _filled(lines):
        where = f"{name}:{number}"
        try:
            value = parsed(line, where)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: no JSON: {str(error)[:100]}") from None
        yield from arc_samples(value, where, wanted) if wanted.kind == "arc" else [of_value(value, where, wanted)]


def of_value(value: Any, where: str, wanted: Wanted) -> Raw:
    """A sample from a JSON value or from a row of a table."""
    if not isinstance(value, dict):
        if wanted.column is not None:
            raise DataError(f"{where}: has no column {wanted.column!r}", hint=f"it is a {type(value).__name__}")
        return Raw(value, where, where)
    label = _label_of(value, where, wanted)
    own = value.get("id")
    known_as = str(own) if isinstance(own, str | int) and str(own).strip() else where
    return Raw(_sample_of(value, where, wanted), where, known_as, label)


def arc_samples(value: Any, where: str, wanted: Wanted) -> Iterator[Raw]:
    """A pair of grids, a list of pairs, a task (all its pairs, as the builder reads them), or tasks by name."""
    if isinstance(value, list):
        for number, pair in enumerate(value):
            place = f"{where}, pair {number}"
            yield of_value(pair, place, wanted)
    elif looks_like_arc(value):
        tasks = {"": value} if "train" in value else value
        for name, document in tasks.items():
            if not looks_like_arc(document):
                raise DataError(f"{where}: {name[:40]!r} is not a task: it has no list of train pairs")
            yield from task_samples(RawTask(Path(where), name, document, []), wanted)
    else:
        yield of_value(value, where, wanted)


def task_samples(task: RawTask, wanted: Wanted) -> Iterator[Raw]:
    """All pairs of a task; the label is its concept where that is a class of the model."""
    concept = concept_of(task.name)
    label = concept if concept is not None and wanted.is_class(concept) else None
    for part in PARTS:
        for number, pair in enumerate(task.pairs(part)):
            pair_name = f"{task.name} {part} {number}".strip()
            yield Raw({"input": pair.input, "output": pair.output}, f"{task.file}: {pair_name}", pair_name, label)


def _is_json(line: str, kind: str) -> bool:
    begins = "{" if kind == "text" else '{["'
    if line.lstrip()[:1] not in tuple(begins):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return kind in ("arc", "arrays", "legacy", "digits")  # must be meant as JSON: the reader reports the fault
    return True


def _is_header(line: str) -> bool:
    """Whether a line of text is a header: several delimited single words, one of them a usual name for a text
    column.
    """
    cells = [cell.strip().strip('"') for cell in re.split(r"[,;\t|]", line)]
    words = len(cells) > 1 and all(len(cell.split()) == 1 for cell in cells)
    return words and any(name in cells for name in TEXT_NAMES)


def _csv(first: list[str], name: str, lines: _Lines, wanted: Wanted) -> Iterator[Raw]:
    delimiter, columns = csv_header(name, first)
    for number, values in csv_rows(name, columns, delimiter, lines):
        yield of_value(dict(zip(columns, values, strict=True)), f"{name}:{number}", wanted)


def _plain(name: str, lines: _Lines, wanted: Wanted) -> Iterator[Raw]:
    for number, line in _filled(lines):
        where = f"{name}:{number}"
        path = wanted.kind == "images"
        yield Raw(line.strip() if path else line, where, line.strip() if path else where)


def _labelled_texts(name: str, lines: _Lines, wanted: Wanted) -> Iterator[Raw]:
    for number, line in _filled(lines):
        where = f"{name}:{number}"
        label, tab, text = line.partition("\t")
        if not tab:
            raise DataError(f"{where}: has no tab between label and text, as the lines before it have")
        yield Raw(text, where, where, known_class(label.strip(), where, wanted))


def _filled(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return (one for one in lines if one[1].strip())


def _sample_of(row: Mapping[str, Any], where: str, wanted: Wanted) -> Any:
    """The cell that holds the sample; or else the whole row, which the encoder then refuses as not being a text."""
    if wanted.column is not None:
        if wanted.column not in row:
            raise DataError(
                f"{where}: has no column {wanted.column!r}", hint=f"it has: {', '.join(map(str, row))[:200]}"
            )
        return row[wanted.column]
    if wanted.kind != "text":
        return row
    named = called(row, TEXT_NAMES)
    if len(named) == 1:
        return row[named[0]]
    others = [name for name in row if name.casefold() not in (*LABEL_COLUMNS, "id") and name != wanted.label]
    return row[others[0]] if len(row) <= 2 and len(others) == 1 else row


def known_class(label: str | None, where: str, wanted: Wanted) -> str | None:
    """The label, checked. Raises `DataError` where it is no class of the model."""
    if label is None or wanted.is_class(label):
        return label
    raise DataError(
        f"{where}: the label {label[:60]!r} is not a class of the model",
        hint="--label NAME says which column holds the classes"
        if wanted.label is None
        else "empty the label of rows that have none of its classes, or leave --label out",
    )


def _label_of(row: Mapping[str, Any], where: str, wanted: Wanted) -> str | None:
    """The class that a row declares. If its column was not named, a value that the model does not know is no label."""
    if wanted.label is None:
        name = next(iter(called([name for name in row if name != wanted.column], LABEL_COLUMNS)), None)
        label = None if name is None else _class_of(row[name], wanted)
        return label if label is not None and wanted.is_class(label) else None
    if wanted.label not in row:
        raise DataError(f"{where}: has no column {wanted.label!r}", hint=f"it has: {', '.join(map(str, row))[:200]}")
    return known_class(_class_of(row[wanted.label], wanted), where, wanted)


def _class_of(value: Any, wanted: Wanted) -> str | None:
    """A cell as the name of a class; None where it says that there is none."""
    if isinstance(value, bool):
        return "true" if value else "false"  # as the builder reads them in JSON
    if isinstance(value, int | float):
        return class_name(value)
    if not isinstance(value, str):
        return None
    name = value.strip()
    if not wanted.is_class(name):
        name = class_text(name)
    return None if is_missing(name) and not wanted.is_class(name) else name
