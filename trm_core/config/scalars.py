"""Which plain YAML words are numbers, booleans or null: the rules that loading and dumping share.

The rules are YAML 1.2's, because PyYAML's own (YAML 1.1) read `1e-4` as text, `no` as false, `1:30` as ninety and `010`
as eight: `true`/`false`, `null`/`~`/nothing, decimal and `0x` integers (underscores allowed between digits), floats
with an optional dot and exponent, `.inf` and `.nan`. Everything else is text.
"""

from __future__ import annotations

import re

from yaml.resolver import BaseResolver

# Longer numbers stay text: nobody means them, and parsing them takes quadratic time.
LONGEST_NUMBER = 64

BOOL_TAG = "tag:yaml.org,2002:bool"
FLOAT_TAG = "tag:yaml.org,2002:float"
INT_TAG = "tag:yaml.org,2002:int"
NULL_TAG = "tag:yaml.org,2002:null"
STR_TAG = "tag:yaml.org,2002:str"
LIST_TAG = "tag:yaml.org,2002:seq"
MAPPING_TAG = "tag:yaml.org,2002:map"

_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_SHORT = rf"(?=.{{1,{LONGEST_NUMBER}}}\Z)"
PATTERNS = {
    BOOL_TAG: re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    INT_TAG: re.compile(_SHORT + rf"(?:[-+]?{_DIGITS}|0x[0-9a-fA-F]+)\Z"),
    FLOAT_TAG: re.compile(
        _SHORT + rf"(?:[-+]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    NULL_TAG: re.compile(r"(?:~|null|Null|NULL|)\Z"),
}


class PlainResolver(BaseResolver):
    """Gives a plain scalar its tag by PATTERNS; mixed into the loader and the dumper."""


for _tag, _pattern in PATTERNS.items():
    PlainResolver.add_implicit_resolver(_tag, _pattern, None)


def scalar_value(tag: str, text: str) -> str | int | float | bool | None:
    """The value of a scalar that was resolved or tagged as `tag`. ValueError when the text does not fit the tag."""
    if tag != STR_TAG and not PATTERNS[tag].match(text):
        raise ValueError(f"{text!r} does not fit its tag !!{tag.rpartition(':')[2]}")
    if tag == BOOL_TAG:
        return text.lower() == "true"
    if tag == INT_TAG:
        return int(text, 16) if text.startswith("0x") else int(text)
    if tag == FLOAT_TAG:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag == NULL_TAG:
        return None
    return text
