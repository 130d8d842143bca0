"""Reads YAML text into plain values and remembers the line of every key.

Stricter than PyYAML, because a config that is read differently from how it looks wastes a training run: scalars follow
`trm_core.config.scalars`; a key given twice is an error, and so are anchors and aliases (they can expand without bound;
`extends:` is the way to share), foreign tags, several documents, and anything but a mapping at the top. The values go
to `trm_core.config.load`.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from trm_core.config.problems import InvalidConfig, Problem
from trm_core.config.scalars import LIST_TAG, MAPPING_TAG, PATTERNS, STR_TAG, PlainResolver, scalar_value

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20

KeyPath = tuple[str | int, ...]


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that a config may not hold."""


class _Loader(Reader, Scanner, Parser, Composer, PlainResolver):
    """Text to a tree of nodes with positions."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        PlainResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused(
                problem="anchors (&name) and aliases (*name) are not supported; "
                "share settings with `extends: other.yaml`, and quote a text that starts with & or *",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass
class Document:
    """One YAML file: its values, where each stands, and what was wrong with it."""

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: KeyPath) -> str:
        """ "file:line" of a key, or of its nearest parent that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines[path]}" if path else self.name


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises InvalidConfig when it is missing, too large, not UTF-8, not YAML or not a mapping."""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        what = "config file not found" + (f"; did you mean {like}?" if (like := _like(path)) else "")
        raise InvalidConfig([Problem(name, "", what)]) from None
    except IsADirectoryError:
        raise InvalidConfig([Problem(name, "", "is a folder; expected a YAML file")]) from None
    except OSError as error:
        raise InvalidConfig([Problem(name, "", f"cannot be read: {error.strerror}")]) from None
    if len(raw) > MAX_BYTES:
        what = f"is larger than {MAX_BYTES // 1024} KiB; a config is not that long"
        raise InvalidConfig([Problem(name, "", what)], hint="is this a data file? then give it as data.path")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 text (byte 0x{raw[error.start]:02x})"
        raise InvalidConfig([Problem(f"{name}:{line}", "", what)], hint="save it as UTF-8") from None
    return parse_document(text, name)


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text; `name` stands in messages. Duplicate keys go to `problems`, anything worse is raised."""
    node = _compose(text, name)
    if node is None:
        raise InvalidConfig([Problem(name, "", "is empty; expected keys such as `training:`")])
    document = Document(name, {})
    value = _construct(node, (), document)
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise InvalidConfig([Problem(name, "", f"expected a mapping (`key: value` lines) at the top, found {kind}")])
    document.data = value
    return document


def parse_value(text: str, name: str) -> Any:
    """The value of an override such as `[a.h5, b.h5]` or `1e-4`, by the same rules. Raises InvalidConfig."""
    document = Document(name, {})
    try:
        node = _compose(text, name)
        value = None if node is None else _construct(node, (), document)
        if document.problems:
            raise InvalidConfig(document.problems)
    except InvalidConfig as error:
        # Line numbers mean nothing on the command line.
        raise InvalidConfig([Problem(name, problem.key, problem.what) for problem in error.problems]) from None
    return value


def _compose(text: str, name: str) -> Node | None:
    try:
        return _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        what = error.problem or error.context or "unreadable"
        if not isinstance(error, _Refused):
            context = f" {error.context}" if error.context and error.problem else ""
            what = f"not valid YAML: {what}{context}"
            if "alias" in context or "anchor" in context:
                what += "; quote a text that starts with * or &"
        raise InvalidConfig([Problem(where, "", what)]) from None
    except yaml.reader.ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character)
        what = f"holds the character U+{code:04X}, which YAML does not allow"
        line = text.count("\n", 0, error.position) + 1
        raise InvalidConfig([Problem(f"{name}:{line}", "", what)]) from None


def _like(path: Path) -> Path | None:
    """The YAML file beside `path`, or in configs/, whose name is most like it; None when nothing is similar."""
    names: dict[str, Path] = {}
    for folder in (Path("configs"), path.parent):
        with suppress(OSError):  # no such folder, or one that may not be listed
            names |= {found.stem: found for found in sorted(folder.iterdir()) if found.suffix in (".yaml", ".yml")}
    meant = difflib.get_close_matches(path.stem, names, n=1)
    return names[meant[0]] if meant else None


def _construct(node: Node, path: KeyPath, document: Document) -> Any:
    line = node.start_mark.line + 1
    if path and path not in document.lines:
        document.lines[path] = line
    if isinstance(node, MappingNode) and node.tag == MAPPING_TAG:
        return _construct_mapping(node, path, document)
    if isinstance(node, SequenceNode) and node.tag == LIST_TAG:
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, ScalarNode) and (node.tag == STR_TAG or node.tag in PATTERNS):
        try:
            return scalar_value(node.tag, node.value)
        except ValueError as error:
            document.problems.append(Problem(f"{document.name}:{line}", _dotted(path), str(error)))
            return None
    what = f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is not supported in a config"
    document.problems.append(Problem(f"{document.name}:{line}", _dotted(path), what))
    return None


def _construct_mapping(node: MappingNode, path: KeyPath, document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            document.problems.append(Problem(f"{document.name}:{line}", _dotted(path), "a key must be a word"))
            continue
        # A key is always its own text: `on: 1` names the key "on", whatever YAML would make of that word.
        key = key_node.value
        key_path = (*path, key)
        if key in values:
            first = document.lines[key_path]
            what = "given twice" + (f", on line {first} and on line {line}" if line != first else "")
            document.problems.append(Problem(f"{document.name}:{line}", _dotted(key_path), what))
            continue
        document.lines[key_path] = line
        values[key] = _construct(value_node, key_path, document)
    return values


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
