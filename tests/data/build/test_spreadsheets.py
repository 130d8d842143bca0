"""Tables as spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from built_file import Build
from small_sources import write_table

from trm_core.data.build.delimited import open_delimited
from trm_core.errors import DataError

_ROWS = [(f"{20 + n % 40}", "fm"[n % 2], ["low", "high"][n % 40 > 20]) for n in range(60)]


def _table(path: Path, header: str = "age;sex;label", tail: str = "", below: str = "", end: str = "\n") -> Path:
    lines = [header, *(";".join(row) + tail for row in _ROWS)]
    path.write_bytes((end.join(lines) + end + below).encode())
    return path


def test_empty_columns_and_rows_at_the_end_are_none(build: Build, tmp_path: Path) -> None:
    plain = build(_table(tmp_path / "plain.csv"), name="plain.h5")
    padded = _table(tmp_path / "padded.csv", "\ufeffage;sex;label;;", ";;", ";;;;\r\n" * 20, "\r\n")
    built = build(padded)
    assert built.report.counts == plain.report.counts
    assert built.manifest["content_hash"] == plain.manifest["content_hash"]
    padded.write_text(padded.read_text().replace("20;f;low;;", "20;f;low;;why", 1))
    with pytest.raises(DataError, match=r"padded.csv:2: has 5 fields, the header has 3"):
        build(padded, name="other.h5")


def test_a_name_may_be_broken_over_two_lines(tmp_path: Path) -> None:
    table = open_delimited(_table(tmp_path / "broken.csv", '"age, about\n(years, whole)";sex;label'))
    assert table.columns == ("age, about (years, whole)", "sex", "label")
    assert next(table.rows()) == (3, _ROWS[0])


@pytest.mark.parametrize("first", ["sep=;\r\n", "\ufeffsep=;\n", '"sep=;"\n', "\nSEP=;\n", "sep=;;; \n"])
def test_a_line_that_names_the_delimiter_is_no_row(build: Build, tmp_path: Path, first: str) -> None:
    plain = build(_table(tmp_path / "plain.csv", "a,ge;sex;label"), name="plain.h5")
    table = _table(tmp_path / "named.csv", f"{first}a,ge;sex;label")
    assert build(table).manifest["content_hash"] == plain.manifest["content_hash"]
    assert next(open_delimited(table).rows()) == (2 + first.count("\n"), _ROWS[0])
    tabs = _table(tmp_path / "named.tsv", "sep=;\na,b,c,d\te;sex;label")
    assert open_delimited(tabs).columns == ("a,b,c,d\te", "sex", "label")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("a;label\n1;x\n".encode("utf-16"), "is UTF-16", "iconv -f utf-16"),
        ("a;label\n1;x\n".encode("utf-16-le"), "is UTF-16", "iconv -f utf-16"),
        ("größe;label\n1;x\n".encode("cp1252"), "is not UTF-8", "windows-1252"),
        (b"a;label\r1;x\r2;y\r", "carriage return", "tr "),
        (b";;\n1;2;3\n", "no names of columns", "header"),
        (b"sep=;\n", "has no line below the one that names the delimiter", "header"),
        (b"made by a program\n\na,label\n1,x\n", "has 2 fields, the header has 1", "header is the first line"),
    ],
)
def test_what_has_to_be_converted_first(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(open_delimited(tmp_path / "table.csv").rows())
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "cells",
    [
        ["3,5", "17,25", "4"],
        ["1,234.50", "999.00", "12,000,000"],
        ["12%", "7 %", "100%"],
        ["$5", "$1,000", "€ 7"],
        ["1", "2", "3", "4", "5", "-"],
        ["1.5", "2.5", "3.5", "4.5", "5.5", "about 6"],
    ],
)
def test_numbers_that_are_read_as_categories_are_said(build: Build, tmp_path: Path, cells: list[str]) -> None:
    rows = [f"{cells[n % len(cells)]};{n % 2}" for n in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["size;label", *rows]))
    built = build(tmp_path / "table.csv")
    said = [message for message in built.messages if "column 'size' is read as categories, not as numbers" in message]
    odd = next(cell for cell in cells if not cell.replace(".", "").isdigit())
    assert [f"line {cells.index(odd) + 2} holds {odd!r}" in one for one in said] == [True]


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([f"2026-{n % 12 + 1:02}-{n % 28 + 1:02}" for n in range(60)], True),
        ([f"2026-{n % 12 + 1:02}" for n in range(60)], False),
        ([f"patient {n}" for n in range(60)], True),
        ([f"patient {n}" if n % 2 else "" for n in range(60)], True),
        ([str(n) for n in range(60)], False),
    ],
    ids=["dates", "months", "names", "half of them missing", "numbers"],
)
def test_categories_of_one_row_each_are_said(build: Build, tmp_path: Path, cells: list[str], told: bool) -> None:
    rows: list[list[object]] = [[cell, number, "ab"[number % 2]] for number, cell in enumerate(cells)]
    table = write_table(tmp_path / "t.csv", rows, ["what", "age", "label"])
    said = [message for message in build(table).messages if "category of its own in nearly every row" in message]
    assert len(said) == told
    assert all("'what'" in message for message in said)


def test_categories_are_no_numbers(build: Build, tmp_path: Path) -> None:
    rows = [f"{'123'[n % 3]}{' +'[n % 2]};2024-01-{n % 28 + 1:02};{n % 20}-{n % 20 + 10};{n % 2}" for n in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["stage;day;age;label", *rows]))
    assert not any("not as numbers" in message for message in build(tmp_path / "table.csv").messages)


def test_errors_of_spreadsheets_are_missing_values(build: Build, tmp_path: Path) -> None:
    rows = [f"{'#DIV/0!' if n % 7 == 0 else n};{'#N/A' if n % 5 == 0 else 2.5 * n};{n % 2}" for n in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["a;b;label", *rows]))
    built = build(tmp_path / "table.csv")
    assert built.manifest["encoder_settings"][0]["numeric"] == ["a", "b"]
    assert built.by_id("children")[:2, 0, 0].tolist()[0] == [0.0, 1.0], "the flag of a missing value"


def test_a_number_too_large_for_any_mean_is_named(build: Build, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("\n".join(["a;label", *(f"{n};{n % 2}" for n in range(40)), "1.79e308;1"]))
    with pytest.raises(DataError, match=r"table.csv:42: column 'a' holds 1.79e308, which is too large") as caught:
        build(tmp_path / "table.csv")
    assert "empty" in (caught.value.hint or "")
