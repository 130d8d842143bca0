"""One source of settings (a YAML file, the command line) as a flat list of canonical keys with their places.

Walks a document by the schema: sections are descended into, alternative spellings translated, unknown keys reported
with the nearest valid one. `trm_core.config.load` stacks the layers and validates the result.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trm_core.config.aliases import ELSEWHERE, all_spellings, canonical, canonical_value
from trm_core.config.problems import InvalidConfig, Problem
from trm_core.config.schema_keys import accepted_types, leaves, sections
from trm_core.config.yaml_loader import Document, parse_value

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Setting:
    """One key given a value. `item` names one entry of a mapping value (`data.build.prices.petal=2`)."""

    key: str
    value: Any
    where: str
    written: str
    item: str | None = None


@dataclass
class Layer:
    """Everything one source sets, in order, and what is wrong with it."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def layer_of_document(document: Document) -> Layer:
    """The settings of a YAML file; `extends` is left to the caller."""
    layer = Layer(problems=list(document.problems))
    _walk(document.data, (), document, layer)
    first: dict[tuple[str, str | None], Setting] = {}
    for setting in layer.settings:
        other = first.setdefault((setting.key, setting.item), setting)
        if other.value != setting.value:
            what = f"is the same key as {other.written} ({other.where}: {show(other.value)}); got {show(setting.value)}"
            layer.problems.append(Problem(setting.where, setting.written, what))
    return layer


def layer_of_overrides(overrides: Sequence[str]) -> Layer:
    """The settings of `key=value` words; where a key comes twice, the last one wins, as on any command line."""
    layer = Layer()
    for override in overrides:
        written, equals, text = override.partition("=")
        written = written.strip()
        if not equals or not written:
            what = f"expected KEY=VALUE such as training.base_lr=1e-4; got {override!r}"
            if override.endswith((".yaml", ".yml")):
                what += f"; did you mean --config {override}?"
            layer.problems.append(Problem(COMMAND_LINE, "", what))
            continue
        try:
            value = parse_value(text, COMMAND_LINE)
        except InvalidConfig as error:
            layer.problems += [
                Problem(COMMAND_LINE, f"{written}.{problem.key}" if problem.key else written, problem.what)
                for problem in error.problems
            ]
            continue
        _assign(written, value, Document(COMMAND_LINE, {}), (), layer)
    return layer


def show(value: Any) -> str:
    """A value as a config would write it, shortened to 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate most like `word`, comparing whole names and last parts; None when nothing is similar."""
    best, best_score = None, 0.6
    if len(word) > 100:  # no spelling is that long, and comparing takes quadratic time
        return None
    tail = word.rpartition(".")[2]
    for candidate in candidates:
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        last = difflib.SequenceMatcher(None, tail, candidate.rpartition(".")[2]).ratio()
        score = max(whole, 0.6 * last + 0.4 * whole)
        if score > best_score:
            best, best_score = candidate, score
    return best


def _walk(data: dict[str, Any], path: tuple[str, ...], document: Document, layer: Layer) -> None:
    for key, value in data.items():
        if not path and key == "extends":
            continue
        _assign(".".join((*path, key)), value, document, (*path, key), layer)


def _assign(written: str, value: Any, document: Document, path: tuple[str, ...], layer: Layer) -> None:
    """Record `written: value`, descending into a section's mapping. `path` finds its line in the document."""
    key = canonical(written)
    where = document.where(path)
    if key in sections():
        if isinstance(value, dict):
            for name, inner in value.items():
                _assign(f"{written}.{name}", inner, document, (*path, name), layer)
        elif value is not None:  # a section whose keys are all commented out is empty, not wrong
            what = f"expected a mapping of keys such as {_example(key)}; got {show(value)}"
            layer.problems.append(Problem(where, written, what))
        return
    leaf, item = _leaf_and_item(key)
    if leaf is None:
        # Comparing with every spelling is slow: a file of thousands of foreign keys gets no suggestions after 20
        # problems.
        guess = ELSEWHERE.get(written.rpartition(".")[2])
        if guess is None and len(layer.problems) < 20:
            guess = nearest(written, all_spellings())
        what = "is not a known key" + (f"; did you mean {guess}?" if guess else "")
        if written == "extends":  # in a file it is handled earlier
            what = f"belongs at the top of a config file; did you mean --config {value}?"
        layer.problems.append(Problem(where, written, what))
    elif not _is_text(value) or not _is_text(item):
        layer.problems.append(Problem(where, leaf, "holds characters that are not valid Unicode text"))
    else:
        layer.settings.append(Setting(leaf, canonical_value(leaf, value), where, written, item))


def _leaf_and_item(key: str) -> tuple[str | None, str | None]:
    """Split a key into a schema key and, below a key whose value is a mapping, the name of one entry."""
    if key in leaves():
        return key, None
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in leaves() and dict in accepted_types(head):
            return head, ".".join(parts[length:])
    return None, None


def _example(section: str) -> str:
    return f"`{next(iter(sections()[section].model_fields))}: ...`"


def _is_text(value: Any) -> bool:
    """False when a text in `value` holds lone surrogates (undecodable bytes of a command line, odd YAML escapes)."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, list):
        return all(_is_text(item) for item in value)
    if isinstance(value, dict):
        return all(_is_text(key) and _is_text(item) for key, item in value.items())
    return True
