"""Puzzles by how much there was to find out: what `trm eval --by-difficulty` prints below its table."""

from __future__ import annotations

from typing import Any

from trm_cli.console import table
from trm_cli.score_table import name_of_line


def print_difficulties(record: dict[str, Any]) -> None:
    """Print a table for each policy. `record`: the `by_difficulty` entry of an evaluation."""
    columns = [record["of"], "puzzles", "exact %", "95 %", "cells %", "steps"]
    for entry in record["policies"]:
        rows = [
            [
                f"{one['fewest']}" if one["fewest"] == one["most"] else f"{one['fewest']}-{one['most']}",
                str(one["puzzles"]),
                f"{100 * one['exact']:.2f}",
                f"{100 * one['low']:.1f}-{100 * one['high']:.1f}",
                f"{100 * one['cells']:.2f}",
                f"{one['steps']:.2f}",
            ]
            for one in entry["groups"]
        ]
        table(f"{name_of_line(entry['policy'], entry['setting'])}: by {record['of']}", columns, rows)
