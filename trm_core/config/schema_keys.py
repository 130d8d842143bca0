"""The schema as tables: every dotted key, and in words what it accepts.

Reads the pydantic models of `trm_core.config.schema`; used by the loader to walk a file, and for its messages.
"""

from __future__ import annotations

import functools
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from trm_core.config.schema import Config, Section

SCALAR_WORDS = {int: "a whole number", float: "a number", str: "text", type(None): "null"}


@functools.cache
def sections() -> dict[str, type[Section]]:
    """Dotted name -> model of every group of keys; "" is the top."""
    found: dict[str, type[Section]] = {}

    def walk(model: type[Section], prefix: str) -> None:
        found[prefix] = model
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                walk(info.annotation, f"{prefix}.{name}" if prefix else name)

    walk(Config, "")
    return found


@functools.cache
def leaves() -> dict[str, FieldInfo]:
    """Dotted key -> field of every key that holds a value, in the schema's order."""
    found: dict[str, FieldInfo] = {}
    for prefix, model in sections().items():
        for name, info in model.model_fields.items():
            key = f"{prefix}.{name}" if prefix else name
            if key not in sections():
                found[key] = info
    return found


def accepted_types(key: str) -> set[type]:
    """The plain types a key takes directly (int, float, str, bool, NoneType, list, dict)."""
    return {kind for kind, _ in _members(leaves()[key].annotation, leaves()[key].metadata)}


def choices(key: str) -> list[str]:
    """The words a key may be, if it is or includes a fixed choice."""
    annotation = leaves()[key].annotation
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [str(word) for member in members if get_origin(member) is Literal for word in get_args(member)]


def expectation(key: str) -> str:
    """What a key accepts, in words: "a whole number >= 1 or 'auto'"."""
    info = leaves()[key]
    return _either([words for _, words in _members(info.annotation, info.metadata)])


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _members(annotation: Any, metadata: list[Any]) -> list[tuple[type, str]]:
    """(plain type, words) of each alternative of an annotation."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        for item in extra:
            metadata = [*metadata, *(item.metadata if isinstance(item, FieldInfo) else [item])]
        return _members(inner, metadata)
    if _is_union(annotation):
        return [member for part in get_args(annotation) for member in _members(part, metadata)]
    if get_origin(annotation) is Literal:
        return [(type(word), repr(word)) for word in get_args(annotation)]
    if annotation is bool:
        return [(bool, "true"), (bool, "false")]
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return [(list, f"a list of {_plural(item)}")]
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        return [(list, f"a list of {len(items)} items, each {_words(items[0])}")]
    if get_origin(annotation) is dict:
        _, item = get_args(annotation)
        return [(dict, f"a mapping of names to {_plural(item)}")]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [(dict, "a mapping {" + ", ".join(annotation.model_fields) + "}")]
    return [(annotation, SCALAR_WORDS[annotation] + _range(metadata))]


def _words(annotation: Any) -> str:
    return _either([words for _, words in _members(annotation, [])])


def _plural(annotation: Any) -> str:
    """The words for many of `annotation`: "numbers > 0", "(text or a mapping {path, weight})", "lists of text"."""
    words = [words.replace("a list", "lists").replace("a number", "numbers") for _, words in _members(annotation, [])]
    return words[0] if len(words) == 1 else f"({_either(words)})"


def _range(metadata: list[Any]) -> str:
    low = high = ""
    for item in metadata:
        if isinstance(item, annotated_types.Ge):
            low = f">= {_number(item.ge)}"
        elif isinstance(item, annotated_types.Gt):
            low = f"> {_number(item.gt)}"
        elif isinstance(item, annotated_types.Le):
            high = f"<= {_number(item.le)}"
        elif isinstance(item, annotated_types.Lt):
            high = f"< {_number(item.lt)}"
    limits = " and ".join(part for part in (low, high) if part)
    return f" {limits}" if limits else ""


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}".replace("e+0", "e")


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
