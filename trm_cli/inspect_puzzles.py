"""`trm inspect-dataset FOLDER` for a folder of puzzles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trm_core.errors import CheckFailed

if TYPE_CHECKING:
    from trm_core.data.puzzles.inspect import PuzzleInspection

_MOST_TOKENS = 40


def inspect_puzzle_folder(folder: Path, split: str | None, json: bool) -> None:
    """Look at it, print what was found, and raise CheckFailed for what is wrong inside."""
    from trm_cli.console import print_json
    from trm_cli.progress import progress
    from trm_core.data.puzzles.inspect import inspect_puzzles

    with progress("reading") as bar:
        found = inspect_puzzles(
            folder, split, lambda stage, done, total: bar.update(done, total=total or None, label=stage)
        )
    if json:
        print_json(found.to_dict())
    else:
        show(found)
    if found.problems:
        raise CheckFailed("\n".join(found.problems), hint="build the folder again from its source")


def show(found: PuzzleInspection) -> None:
    from trm_cli.console import out, table

    ignored = "none" if found.ignore_label_id is None else str(found.ignore_label_id)
    table(
        str(found.path),
        ["", ""],
        [
            ("kind", found.kind),
            ("tokens", f"{found.seq_len} of each puzzle, out of {found.vocab_size}"),
            ("padding", f"token {found.pad_id}; label to ignore: {ignored}"),
            ("puzzle identifiers", found.num_puzzle_identifiers),
            ("content", found.content_hash[:16]),
        ],
    )
    table(
        "splits",
        ["split", "examples", "puzzles", "groups", "examples each", "unanswered", "repeated", "contradicting"],
        [
            (
                name,
                one.examples,
                one.puzzles,
                one.groups,
                f"{one.examples_per_puzzle[0]:.3g} ({one.examples_per_puzzle[1]} to {one.examples_per_puzzle[2]})",
                one.unanswered,
                one.repeated,
                one.contradicting,
            )
            for name, one in found.splits.items()
        ],
    )
    show_tokens(found)
    for note in found.notes:
        out(f"note: {note}")
    if not found.problems:
        out("no problems found")


def show_tokens(found: PuzzleInspection) -> None:
    """How often each token is asked and answered."""
    from trm_cli.console import table

    symbols = found.symbols or []
    used = [
        token
        for token in range(found.vocab_size)
        if any(one.inputs[token] or one.labels[token] for one in found.splits.values())
    ]
    table(
        "tokens" if len(used) <= _MOST_TOKENS else f"the first {_MOST_TOKENS} of {len(used)} tokens",
        ["token", "shown as", *(f"{name} {what}" for name in found.splits for what in ("asked", "answered"))],
        [
            (
                token,
                repr(symbols[token]) if token < len(symbols) else None,
                *(count for one in found.splits.values() for count in (one.inputs[token], one.labels[token])),
            )
            for token in used[:_MOST_TOKENS]
        ],
    )
