"""`trm inspect-dataset FOLDER` for a folder of puzzles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trm_cli.findings import as_json, conclude, failed
from trm_core.errors import CheckFailed

if TYPE_CHECKING:
    from trm_core.data.puzzles.inspect import PuzzleInspection

_MOST_TOKENS = 40
_COUNTED = ("unanswered", "copied", "repeated", "contradicting")


def inspect_puzzle_folder(folder: Path, split: str | None, quick: bool, ignore: list[str], json: bool) -> None:
    """Inspect the folder and print what was found. Raises CheckFailed if something inside is wrong."""
    from trm_cli.console import print_json
    from trm_cli.progress import progress
    from trm_core.data.puzzles.inspect import inspect_puzzles
    from trm_core.diagnose.of_data import checks_of_puzzles
    from trm_core.diagnose.registry import OF_DATA, without

    checks = without(OF_DATA, ignore)
    with progress("reading") as bar:

        def report(stage: str, done: int, total: int) -> None:
            bar.update(done, total=total or None, label=stage)

        inspection = inspect_puzzles(folder, split, report)
        found = [] if quick else checks_of_puzzles(inspection, report, checks)
    if json:
        print_json(inspection.to_dict() | {"checks": [as_json(one) for one in found]})
    else:
        show(inspection)
        conclude(found, False, quick)
    if failures := failed(found):
        raise CheckFailed(failures)


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
        ["split", "examples", "puzzles", "groups", "examples each"],
        [
            (
                name,
                one.examples,
                one.puzzles,
                one.groups,
                f"{one.examples_per_puzzle[0]:.3g} ({one.examples_per_puzzle[1]} to {one.examples_per_puzzle[2]})",
            )
            for name, one in found.splits.items()
        ],
    )
    table(
        "of these examples",
        ["split", *_COUNTED, "also in train"],
        [
            (name, *(getattr(one, what) for what in _COUNTED), found.shared if name == "test" else None)
            for name, one in found.splits.items()
        ],
    )
    show_tokens(found)
    for note in found.notes:
        out(f"note: {note}")


def show_tokens(found: PuzzleInspection) -> None:
    """Print how often each token occurs in questions and in answers."""
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
