"""Rows of csv, tsv and jsonl files, one at a time, each with its line number; shared by the text and table readers."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from trm_core.data.unique_keys import parsed
from trm_core.errors import DataError

csv.field_size_limit(1 << 26)
_PEEK = 200
_ONE_A_LINE = "expected one object per line; to convert a list: jq -c .[] FILE"
_ANNOUNCED = re.compile(r'"?sep=([^\w"])\1* *"?', re.IGNORECASE)  # spreadsheets pad it to the width of the table
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Delimited:
    """How a file is laid out. `headerless`: two columns, label<TAB>text, without quoting."""

    path: Path
    form: str  # "csv", "jsonl" or "labelled-lines"
    delimiter: str
    columns: tuple[str, ...]

    def rows(self, read: Collection[int] = ()) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(line number, values in the order of `columns`). Raises `DataError` with file and line, for JSON also where a
        column that is `read` holds an object or a list.
        """
        if self.form == "jsonl":
            yield from self._json_rows([self.columns[index] for index in read])
        elif self.form == "labelled-lines":
            for number, line in text_lines(self.path):
                if line.strip():
                    label, separator, text = line.partition("\t")
                    if not separator:
                        raise DataError(f"{self.path}:{number}: has no tab between label and text")
                    yield number, (label.strip(), text)
        else:
            yield from csv_rows(str(self.path), self.columns, self.delimiter, text_lines(self.path))

    def of_all_lines(self) -> Delimited:
        """The same with the fields of all lines of a jsonl file as columns; `open_delimited` saw the first lines
        only.
        """
        if self.form != "jsonl":
            return self
        filled = ((number, line) for number, line in text_lines(self.path) if line.strip())
        names = dict.fromkeys(name for number, line in filled for name in parse_object(self.path, number, line))
        return replace(self, columns=tuple(names))

    def column(self, name: str) -> int:
        """Index of a column. Raises `DataError` with the columns there are and the nearest name."""
        if name in self.columns:
            return self.columns.index(name)
        near = difflib.get_close_matches(name, self.columns, 1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise DataError(f"{self.path}: has no column {name!r}; there are: {', '.join(self.columns)}", hint=hint)

    def _json_rows(self, read: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        for number, line in text_lines(self.path):
            if not line.strip():
                continue
            record = parse_object(self.path, number, line)
            for name in read:
                if isinstance(record.get(name), dict | list):
                    what = "an object" if isinstance(record[name], dict) else "a list"
                    raise DataError(
                        f"{self.path}:{number}: field {name!r} holds {what}, expected a text or a number",
                        hint="nested fields are not read: give it a field of its own, or leave it out",
                    )
            yield number, tuple("" if record.get(name) is None else _as_text(record[name]) for name in self.columns)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file. Raises `DataError` with the line that is not
    UTF-8.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, decoded(raw, str(path), number)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def decoded(raw: bytes, name: str, number: int) -> str:
    """A line without its end. Raises `DataError` if it is not UTF-8, or if the first one shows that its file has no
    line feeds.
    """
    if number == 1 and (raw[:2] in _UTF16 or raw.count(0) > len(raw) // 3):
        raise DataError(f"{name}: is UTF-16 text, not UTF-8", hint="convert it first: iconv -f utf-16 -t utf-8")
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}:{number}: is not UTF-8 text (byte {error.start + 1} of the line)",
            hint="convert it first, for example: iconv -f windows-1252 -t utf-8",
        ) from None
    if number == 1 and "\r" in line and not raw.endswith(b"\n"):
        raise DataError(
            f"{name}: its lines end in a carriage return alone, as on old Macintoshes",
            hint=r"convert it first: tr '\r' '\n'",
        )
    return line


def csv_rows(
    name: str, columns: Sequence[str], delimiter: str, lines: Iterable[tuple[int, str]]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line number, values) of the rows below the header. Empty rows, which spreadsheets write below a table, are left
    out, and so are empty fields beyond the last column. Raises `DataError` with file and line.
    """
    reader = csv.reader((line + "\n" for line in _unannounced(lines)), delimiter=delimiter, strict=True)
    try:
        next(row for row in reader if any(cell.strip() for cell in row))  # the header
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(columns) and not any(cell.strip() for cell in row[len(columns) :]):
                del row[len(columns) :]
            if len(row) != len(columns):
                raise DataError(
                    f"{name}:{reader.line_num}: has {len(row)} fields, the header has {len(columns)}",
                    hint="quote fields that hold the delimiter or a line break; the header is the first line",
                )
            yield reader.line_num, tuple(row)
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: {error}", hint="check the quotes in this line") from None


def announced(line: str) -> str | None:
    """The delimiter that a first line such as sep=;, written for Excel, names; None for any other line."""
    found = _ANNOUNCED.fullmatch(line)
    return None if found is None else found[1]


def _unannounced(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The lines, of which the first that is not blank becomes so where it names the delimiter: those below keep their
    numbers.
    """
    begun = False
    for _, line in lines:
        yield line if begun or announced(line) is None else ""
        begun = begun or bool(line.strip())


def open_delimited(path: Path) -> Delimited:
    """Look at the first lines of a csv, tsv or jsonl file. Raises `DataError` if it is empty or has no header."""
    lines = [line for _, line in islice(text_lines(path), _PEEK)]
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise DataError(f"{path}: is empty")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        seen_first = (parse_object(path, number, line) for number, line in enumerate(lines, start=1) if line.strip())
        return Delimited(path, "jsonl", "", tuple(dict.fromkeys(name for record in seen_first for name in record)))
    if looks_labelled(filled):
        return Delimited(path, "labelled-lines", "\t", ("label", "text"))
    tabs = path.suffix.lower() == ".tsv"
    return Delimited(path, "csv", *csv_header(str(path), filled, tabs))


def csv_header(name: str, filled: list[str], tabs: bool = False) -> tuple[str, tuple[str, ...]]:
    """(delimiter, names of the columns) from the first lines that are not blank, without nameless columns at the end.
    The first of them may be Excel's, which names the delimiter. Raises `DataError` if there is no header.
    """
    named = announced(filled[0])
    filled = filled if named is None else filled[1:]
    if not filled:
        raise DataError(f"{name}: has no line below the one that names the delimiter", hint="add a header line")
    delimiter = named or ("\t" if tabs else max(",;\t|", key=_unquoted_header(filled).count))
    try:
        header, *below = csv.reader((line + "\n" for line in filled), delimiter=delimiter)
    except csv.Error as error:
        raise DataError(f"{name}: the first lines are not csv: {error}", hint="check the quotes") from None
    columns = tuple(" ".join(map(str.strip, name.splitlines())).strip() for name in header)  # Excel wraps long names
    while columns and not columns[-1]:
        columns = columns[:-1]
    if not columns:
        raise DataError(f"{name}: the first line holds no names of columns", hint="add a header line")
    if all(is_number(column) for column in columns):
        raise DataError(
            f"{name}: the first line holds only numbers, not the names of columns", hint="add a header line"
        )
    seen = {row[0] for row in below if row}
    if len(columns) == 2 and columns[0] in seen:
        raise DataError(
            f"{name}: the first line looks like data: {columns[0]!r} comes again below it", hint="add a header line"
        )
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{name}: two columns are called {twice!r}", hint="rename one of them in the header")
    return delimiter, columns


def _unquoted_header(filled: list[str]) -> str:
    """The first record, which may span several lines, without the parts in quotes."""
    record = ""
    for line in filled:
        record += line
        if record.count('"') % 2 == 0:
            break
    return re.sub('"[^"]*"', "", record)


def looks_labelled(lines: list[str]) -> bool:
    """True for label<TAB>text without a header: one tab per line, labels of at most 40 characters of which the first
    comes again, and texts of several words.
    """
    parts = [line.split("\t") for line in lines]
    if any(len(part) < 2 for part in parts) or len(parts) < 2:
        return False
    labels = [part[0].strip() for part in parts]
    one_tab = all(len(part) == 2 for part in parts)
    prose = any(" " in part[1].strip() for part in parts)
    # A header's first cell is a name that no later line has as its label.
    return one_tab and prose and labels[0] in labels[1:] and max(map(len, labels)) <= 40


def parse_object(path: Path, number: int, line: str) -> dict[str, object]:
    """One line of a jsonl file as an object. Raises `DataError` with file and line."""
    try:
        record = parsed(line, f"{path}:{number}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: is not JSON ({error})", hint=_ONE_A_LINE) from None
    if not isinstance(record, dict):
        raise DataError(
            f"{path}:{number}: is {type(record).__name__}, expected an object with named fields", hint=_ONE_A_LINE
        )
    return record


def is_number(text: str) -> bool:
    """True if the text reads as a number (also nan and inf)."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can spell half of a surrogate pair, which cannot be written as text again.
    return text.encode("utf-8", "replace").decode()
