"""Documents from csv, tsv and jsonl rows, `label<TAB>text` lines, paragraphs of plain text, and folders of texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trm_core.data.build.delimited import Delimited, looks_labelled, open_delimited, text_lines
from trm_core.data.build.folders import files_by_class
from trm_core.data.build.records import Log, Record, called, class_text, digest_bytes, label_among
from trm_core.data.build.words import count_words
from trm_core.errors import DataError

LABEL_NAMES = ("label", "target", "class", "category")
TEXT_SUFFIXES = frozenset({".txt"})
TEXT_NAMES = ("text", "sentence", "message", "document", "review", "content")
_WRAPPED_LINE = 200
_MIN_PARAGRAPH_WORDS = 4
_HEADING = re.compile(r"^\s*(=+\s.*\s=+|#+\s.*)\s*$")


class RowTextReader:
    """One document per row of a csv, tsv, jsonl or `label<TAB>text` file. The content is the text."""

    def __init__(self, path: str, label: str | None, text: str | None, log: Log) -> None:
        self.path = path
        first = labelled_lines(Path(path)) or open_delimited(Path(path))
        self._table: Delimited = first.of_all_lines()
        # A usual name that only later lines have counts if the first lines have none.
        seen = (first.columns, self._table.columns)
        if text is None:
            text = next((name for columns in seen for name in called(columns, TEXT_NAMES)), None)
            if text is None:
                raise DataError(
                    f"{path}: which column is the text? There are: {', '.join(self._table.columns)}",
                    hint="name it with --text (data.build.text)",
                )
            log(f"{path}: text column {text!r}")
        self._text = self._table.column(text)
        usual = [name for name in LABEL_NAMES if name != text]
        found = next(filter(None, (label_among(columns, label, usual) for columns in seen)), None)
        if found is None or label is None:
            log(f"{path}: " + (f"label column {found!r}" if found else "no label column: concepts are the targets"))
        self._label = None if found is None else self._table.column(found)
        self.has_labels = self._label is not None

    def records(self, *, digests: bool) -> Iterator[Record]:
        read = [self._text] if self._label is None else [self._text, self._label]
        for _, values in self._table.rows(read):
            text = values[self._text]
            label = class_text(values[self._label]) if self._label is not None else ""
            yield Record(text, text_digest(text) if digests else 0, label or None)


class ParagraphReader:
    """One document per paragraph of a plain text file; headings and scraps of under four words are left out."""

    has_labels = False

    def __init__(self, path: str, log: Log) -> None:
        self.path = path
        self._log: Log | None = log

    def records(self, *, digests: bool) -> Iterator[Record]:
        skipped = 0
        for block in self._blocks():
            for paragraph in _paragraphs(block):
                if _HEADING.match(paragraph) or count_words(paragraph) < _MIN_PARAGRAPH_WORDS:
                    skipped += 1
                else:
                    yield Record(paragraph, text_digest(paragraph) if digests else 0)
        if skipped and self._log is not None:
            self._log(f"{self.path}: {skipped} headings and paragraphs of under {_MIN_PARAGRAPH_WORDS} words left out")
            self._log = None

    def _blocks(self) -> Iterator[list[str]]:
        block: list[str] = []
        for _, line in text_lines(Path(self.path)):
            if line.strip():
                block.append(line)
            elif block:
                yield block
                block = []
        if block:
            yield block


class TextFolderReader:
    """A folder whose sub-folders are the classes, with a document in each file; without sub-folders, documents without
    labels.
    """

    def __init__(self, path: str, log: Log, labelled: bool = True) -> None:
        """labelled: false where the sub-folders are no classes."""
        self.path = path
        self._files = [(file, label if labelled else None) for file, label in text_files(Path(path), log)]
        self.has_labels = any(label is not None for _, label in self._files)

    def records(self, *, digests: bool) -> Iterator[Record]:
        for file, label in self._files:
            text = whole_text(file)
            yield Record(text, text_digest(text) if digests else 0, label)


def text_files(path: Path, log: Log) -> list[tuple[Path, str | None]]:
    """(file, its class) of all texts of a folder: those of the class folders alone, where there are some, as lists and
    readmes lie beside these. Raises `DataError` for a folder without texts.
    """
    files = files_by_class(path, TEXT_SUFFIXES, "texts", log)
    labelled = [one for one in files if one[1] is not None]
    if labelled and len(labelled) < len(files):
        log(f"{path}: texts beside the class folders are left out ({len(files) - len(labelled)})")
    return labelled or files


def whole_text(path: Path) -> str:
    """A file that is one document. Raises `DataError` with the line that is not UTF-8."""
    return "\n".join(line for _, line in text_lines(path)).strip()


def labelled_lines(path: Path) -> Delimited | None:
    """The file as `label<TAB>text` lines if it is a .txt file that looks like that."""
    if path.suffix.lower() != ".txt":
        return None
    lines = [line for _, line in islice(text_lines(path), 200) if line.strip()]
    return Delimited(path, "labelled-lines", "\t", ("label", "text")) if looks_labelled(lines) else None


def text_digest(text: str) -> int:
    """Digest under which texts that differ only in case or white space are duplicates."""
    return digest_bytes(" ".join(text.casefold().split()).encode())


def _paragraphs(block: list[str]) -> list[str]:
    """A run of lines without a blank one: wrapped lines form one paragraph, long lines are one each."""
    if len(block) > 1 and max(map(len, block)) < _WRAPPED_LINE and not any(_HEADING.match(line) for line in block):
        return [" ".join(line.strip() for line in block)]
    return [line.strip() for line in block]
