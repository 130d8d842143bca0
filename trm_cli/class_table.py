"""The mistakes class by class: what `trm eval --by-class` prints below its table."""

from __future__ import annotations

from typing import Any

from trm_cli.console import clean, fits, out, table
from trm_cli.score_table import name_of_line

MOST_COLUMNS = 12  # classes in a printed confusion matrix


def print_classes(record: dict[str, Any]) -> None:
    """Print tables and confusion matrices. `record`: the `by_class` entry of an evaluation."""
    for entry in record["policies"]:
        policy = name_of_line(entry["policy"], entry["setting"])
        seen = [one for one in entry["classes"] if one["count"]]
        rows = [_cells(one, record["of"]) for one in sorted(seen, key=lambda one: one["right"])]
        title = f"{policy}: {record['of']} by class, worst first"
        table(title, list(rows[0]), [list(row.values()) for row in rows])
        unseen = len(entry["classes"]) - len(seen)
        if unseen:
            out(f"{unseen} of {len(entry['classes'])} classes never occur as a label here")
        _print_matrix(policy, [clean(name) for name in record["names"]], entry["matrix"])


def _cells(one: dict[str, Any], of: str) -> dict[str, str]:
    """A row of the table, by column."""
    other = "-" if one["instead"] is None else f"{one['instead']} ({100 * one['instead_share']:.1f} %)"
    return {
        "class": one["name"],
        of: str(one["count"]),
        "right %": f"{100 * one['right']:.2f}",
        "95 %": f"{100 * one['low']:.1f}-{100 * one['high']:.1f}",
        "most often answered instead": other,
    }


def _print_matrix(policy: str, names: list[str], matrix: list[list[int]]) -> None:
    if len(names) > MOST_COLUMNS:
        out(f"the matrix of {len(names)} classes is in the output of --json")
        return
    rows = [[name, *map(str, counts)] for name, counts in zip(names, matrix, strict=True)]
    columns = ["label", *names]
    if not fits(columns, rows):
        out("the matrix is wider than this terminal; it is in the output of --json")
        return
    table(f"{policy}: labels down, answers across", columns, rows)
