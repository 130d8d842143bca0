"""Reading YAML: what plain words mean, where keys stand, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trm_core.config.problems import InvalidConfig
from trm_core.config.yaml_loader import MAX_BYTES, parse_document, parse_value, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-3E5", -3e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0.005-0.5", "0.005-0.5"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("[a.h5, 1, {b: no}]", ["a.h5", 1, {"b": "no"}]),
        ("9" * 100, "9" * 100),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = parse_value(text, "x")
    assert read == value
    assert type(read) is type(value)


def test_infinity_is_a_number() -> None:
    assert parse_value("-.inf", "x") == float("-inf")


def test_every_key_path_has_its_line() -> None:
    document = parse_document("a: 1\nb:\n  c: [1,\n    2]\n  on: x\n", "f.yaml")
    assert document.data == {"a": 1, "b": {"c": [1, 2], "on": "x"}}
    assert [document.where(path) for path in [("a",), ("b", "c"), ("b", "c", 1), ("b", "on")]] == [
        "f.yaml:1",
        "f.yaml:3",
        "f.yaml:4",
        "f.yaml:5",
    ]
    assert document.where(("b", "missing")) == "f.yaml:2"


def test_duplicate_keys_name_both_lines() -> None:
    document = parse_document("a: 1\nb: {x: 1,\n  x: 2}\na: 3\n", "f.yaml")
    assert [str(problem) for problem in document.problems] == [
        "f.yaml:3: b.x: given twice, on line 2 and on line 3",
        "f.yaml:4: a: given twice, on line 1 and on line 4",
    ]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: &x 1\nb: 2", "f.yaml:1", "anchors"),
        ("a: 1\nb: *x", "f.yaml:2", "aliases"),
        ("a: *.h5", "f.yaml:1", "quote"),
        ("a: 1\nb: [1", "f.yaml:2", "not valid YAML"),
        ("a: 1\n\tb: 2", "f.yaml:2", "not valid YAML"),
        ("a: 1\nb: \x07", "f.yaml:2", "U+0007"),
        ("---\na: 1\n---\nb: 2", "f.yaml:3", "another document"),
        ("a: " + "[" * 5000, "f.yaml:1", "levels deep"),
        ("- a\n- b", "f.yaml", "found a list"),
        ("hello", "f.yaml", "found a single value"),
        ("", "f.yaml", "is empty"),
        ("# only a comment\n", "f.yaml", "is empty"),
    ],
)
def test_refused_text(text: str, where: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_document(text, "f.yaml")
    (problem,) = caught.value.problems
    assert problem.where == where
    assert words in problem.what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system [id]", "!!python/object/apply:os.system"),
        ("a: !!set {x}", "!!set"),
        ("a: !!int x", "!!int"),
        ("? [a]\n: 1", "a key must be a word"),
    ],
)
def test_refused_values_are_collected(text: str, words: str) -> None:
    (problem,) = parse_document(text, "f.yaml").problems
    assert words in problem.what
    assert problem.where == "f.yaml:1"


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nname: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    expected = {
        tmp_path / "missing.yaml": "not found",
        tmp_path: "is a folder",
        tmp_path / "latin.yaml": "latin.yaml:2: is not UTF-8",
        tmp_path / "large.yaml": "larger than",
    }
    for path, words in expected.items():
        with pytest.raises(InvalidConfig, match=words):
            read_document(path)


def test_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_document(tmp_path / "bom.yaml").data == {"name": "x"}
