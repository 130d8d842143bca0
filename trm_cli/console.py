"""The output of every command: results on stdout, logs and progress on stderr.

Commands pass plain values. On a terminal these become Rich tables, coloured logs and progress bars; elsewhere plain
text without control codes, one line per message, never truncated. Importing this module is cheap: Rich is imported only
when something is printed on a terminal.
"""

from __future__ import annotations

import codecs
import dataclasses
import errno
import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from trm_cli.streams import stdout_is_closed

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WIDTH = 16  # characters: longer cells of a table may be wrapped, while numbers must not be
OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
documents_printed = 0  # how often `print_json` was called in this process


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that interprets control codes (a dumb one does not)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def clean(text: object) -> str:
    """`text` on one line, with control characters escaped: names in a stranger's file must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@functools.cache
def stderr_console() -> Console:
    """The only Rich console on stderr: logs and a running progress bar must share it, or they overwrite each other."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def log(message: str) -> None:
    """Print one line for the user on stderr."""
    _say(clean(message), style=None)


def warn(message: str) -> None:
    """Say that something is not as requested although the command continues."""
    _say(f"warning: {clean(message)}", style="yellow")


def error(message: str, *, label: str = "error", hint: str | None = None) -> None:
    """Say what went wrong: each line of `message` as `label: ...`, then how to fix it as `hint: ...`."""
    for line in message.splitlines() or [""]:
        _say(f"{label}: {clean(line)}", style="bold red")
    if hint is not None:
        for line in hint.splitlines():
            _say(f"hint: {clean(line)}", style="cyan")


def out(text: str) -> bool:
    """Write a result line to stdout. Returns False if the reader has left (`trm ... | head`), which is not an error:
    the rest is discarded.
    """
    try:
        print(text, flush=True)
    except OSError:
        if not stdout_is_closed():
            raise
        return False
    return True


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows to stdout: on a terminal as a Rich table, or as `column: value` lines if it is too narrow for one;
    elsewhere as aligned plain text with complete values.
    """
    cells = [[format_value(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout) and _is_wide_enough(columns, cells, LEAST_WIDTH):
        _print_grid(title, columns, cells)
        return
    if title:
        out(clean(title))
    if is_terminal(sys.stdout):
        for row in cells:
            told = zip(columns, row, strict=True)
            out("\n".join([*(f"{column}: {cell}" if column else cell for column, cell in told), ""]))
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        out("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def fits(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
    """Whether a table of these fits the width of the terminal. Elsewhere everything fits."""
    return not is_terminal(sys.stdout) or _is_wide_enough(columns, rows)


def _print_grid(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(clean(title)) if title else None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
        grid.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(grid)


def _is_wide_enough(columns: Sequence[str], rows: Iterable[Sequence[str]], foldable: float = math.inf) -> bool:
    """Whether the terminal has room for a table in which only cells longer than `foldable` are wrapped."""
    from rich.cells import cell_len
    from rich.console import Console

    frame = 3  # characters around a cell
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    return 1 + sum(frame + min(width, foldable) for width in widths) <= Console().width


def print_json(value: Any) -> None:
    """Print exactly one JSON document on stdout. NaN and infinity, which JSON lacks, become null."""
    global documents_printed
    documents_printed += 1
    utf_8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_jsonable(value), indent=2, ensure_ascii=not utf_8, allow_nan=False)
    # A lone surrogate, as in a file name that is not UTF-8, becomes its JSON escape.
    out(text.encode("utf-8", "backslashreplace").decode())


def format_value(value: object) -> str:
    """A cell or field for reading: floats with four significant digits, None as '-'."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(value)


def _say(line: str, style: str | None) -> None:
    if is_terminal(sys.stderr):
        stderr_console().print(line, style=style, markup=False, emoji=False, soft_wrap=True)
        return
    print(line, file=sys.stderr, flush=True)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return text == "-"
    return True


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        return _jsonable(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be printed as JSON")
