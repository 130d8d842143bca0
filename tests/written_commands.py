"""Commands and inline code in the documents, and whether the command line knows them."""

from __future__ import annotations

import functools
import re
import shlex
from typing import Any

import typer

from trm_cli.main import app

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_COMMENT = re.compile(r"\s{2,}#.*$")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def blocks(text: str, language: str) -> list[str]:
    """The contents of ```language blocks."""
    return [body for found, body in _FENCED.findall(text) if found == language]


def prompts(text: str) -> list[str]:
    """The commands after `$ ` in console blocks, without comments; lines that end with a backslash are joined."""
    joined = [re.sub(r" \\\n\s+", " ", body) for body in blocks(text, "console")]
    lines = [line.removeprefix("$ ") for body in joined for line in body.splitlines() if line.startswith("$ ")]
    return [_COMMENT.sub("", line) for line in lines]


def inline(text: str) -> list[str]:
    """`code` in running text and tables, each on one line."""
    prose = _FENCED.sub("", text)
    return [" ".join(code.split()).replace("\\|", "|") for code in re.findall(r"`([^`]+)`", prose)]


def trm_calls(command: str) -> list[list[str]]:
    """The words after each `trm` in a shell line: for `echo x | trm predict -`, [["predict", "-"]]."""
    calls = []
    for part in re.split(r"\||&&|;", command):
        words = shlex.split(part, comments=True)
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        if words and words[0] == "trm":
            calls.append(words[1:])
    return calls


@functools.cache
def group() -> Any:
    """The command line as a click group."""
    return typer.main.get_command(app)


def require_parses(words: list[str]) -> None:
    """Raises click's UsageError unless `trm WORDS` names a command and its options with valid values."""
    if words and not words[0].startswith("-"):
        name, command, rest = group().resolve_command(group().make_context("trm", list(words)), list(words))
        command.make_context(name, rest)
    else:
        known = set(options(None))
        assert set(words) <= known, f"trm has no {set(words) - known}"


def options(name: str | None) -> list[str]:
    """The options of a command, or of `trm` itself."""
    command = group() if name is None else group().commands[name]
    found = [word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)]
    return [word for word in [*found, "--help"] if word.startswith("-")]
