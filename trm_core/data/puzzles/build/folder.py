"""Chosen puzzles of one example each -> a puzzle folder, the training puzzles with their copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.build.choose import Chosen, Finished
from trm_core.data.puzzles.build.parallel import Counter, Progress
from trm_core.data.puzzles.build.report import BuiltPuzzles
from trm_core.data.puzzles.build.write import SplitData, write_folder
from trm_core.data.puzzles.layout import BLANK, SET, Manifest, Metadata

# (position in the training split, question [S], answer [S]) -> copies without the original, both [copies, S].
Copy = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of puzzles. A cell's token is its code plus `offset`."""

    name: str
    symbols: list[str]
    offset: int
    copies: int
    copy: Copy


def write_chosen(
    out: Path,
    chosen: Chosen,
    kind: Kind,
    settings: PuzzleBuildConfig,
    sources: list[str],
    facts: dict[str, int],
    progress: Progress,
) -> BuiltPuzzles:
    """Write the folder; `facts` join the settings in the manifest."""
    parts: list[tuple[str, Finished, int]] = [("train", chosen.train, kind.copies)]
    if chosen.test is not None:
        parts.append(("test", chosen.test, 0))
    total = sum(len(part.items) for _, part, _ in parts)
    counter = Counter(progress, "write", total)
    splits = {name: _split(part, kind, copies, counter) for name, part, copies in parts}
    facts = facts | {f"{name}_forms": len(np.unique(part.forms)) for name, part, _ in parts}
    side = chosen.train.items.side
    manifest = Manifest.model_validate(
        {
            "kind": kind.name,
            "height": side,
            "width": side,
            "symbols": kind.symbols,
            "sources": sources,
            "seed": settings.seed,
            # The number of workers changes nothing, so it must not change the folder.
            "settings": settings.model_dump(exclude={"seed", "workers"}) | facts,
            "tool_version": tool_version(),
        }
    )
    counts = write_folder(out, splits, [BLANK], manifest)
    return BuiltPuzzles(out, kind.name, counts, chosen.notes)


def tool_version() -> str:
    """Our version, for manifests."""
    try:
        return version("trm")
    except PackageNotFoundError:
        return ""


def _split(part: Finished, kind: Kind, copies: int, counter: Counter) -> SplitData:
    groups = len(part.items)
    puzzles = groups * (1 + copies)
    metadata = Metadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=len(kind.symbols),
        seq_len=part.items.questions.shape[1],
        num_puzzle_identifiers=1,
        total_groups=groups,
        mean_puzzle_examples=1.0,
        total_puzzles=groups,  # as the public builders write it
        sets=[SET],
    )
    return SplitData(
        metadata,
        _blocks(part, kind, copies, counter),
        puzzle_identifiers=np.zeros(puzzles, dtype=np.int32),
        puzzle_indices=np.arange(puzzles + 1),
        group_indices=np.arange(groups + 1) * (1 + copies),
    )


def _blocks(part: Finished, kind: Kind, copies: int, counter: Counter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    questions, answers = part.items.questions, part.items.answers
    if not copies:
        for start in range(0, len(questions), 4096):
            block = slice(start, start + 4096)
            yield questions[block] + kind.offset, answers[block] + kind.offset
            counter.add(len(questions[block]))
        return
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        more_questions, more_answers = kind.copy(index, question, answer)
        yield (
            np.concatenate([question[None], more_questions]) + kind.offset,
            np.concatenate([answer[None], more_answers]) + kind.offset,
        )
        counter.add(1)
