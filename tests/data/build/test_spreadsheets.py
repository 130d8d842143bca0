"""Tables as spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from built_file import Build

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


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("a;label\n1;x\n".encode("utf-16"), "is UTF-16", "iconv -f utf-16"),
        ("a;label\n1;x\n".encode("utf-16-le"), "is UTF-16", "iconv -f utf-16"),
        ("größe;label\n1;x\n".encode("cp1252"), "is not UTF-8", "windows-1252"),
        (b"a;label\r1;x\r2;y\r", "carriage return", "tr "),
        (b";;\n1;2;3\n", "no names of columns", "header"),
        (b"made by a program\n\na,label\n1,x\n", "has 2 fields, the header has 1", "header is the first line"),
    ],
)
def test_what_has_to_be_converted_first(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(open_delimited(tmp_path / "table.csv").rows())
    assert hint in (caught.value.hint or "")
