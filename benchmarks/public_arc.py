"""Build the same ARC tasks with the public TRM code's script and with ours, and let both count the same votes.

    git clone https://github.com/SamsungSAILMontreal/TinyRecursiveModels /tmp/public; pip install argdantic numba
    python -m benchmarks.public_arc --public /tmp/public --out benchmarks/results/public_arc.json [--copies 20]

The tasks are those of ConceptARC, of which the clone has a copy. `folders`: entries of a split's dataset.json and types
of arrays that differ, tasks with another number of copies, and tasks whose examples differ (which pairs of grids, how
often, once copies and translations are undone). `votes`: noisy predictions for every test example of their folder; the
largest difference of any pass@k, and tasks whose two attempts differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.record import publish
from trm_core.config.schema import PuzzleBuildConfig
from trm_core.data.puzzles.arc_copies import inverse_of
from trm_core.data.puzzles.arc_held_out import read_held_out
from trm_core.data.puzzles.arc_tokens import FIRST_COLOUR, MAX_SIDE
from trm_core.data.puzzles.build.arc import build_arc
from trm_core.data.puzzles.checked_files import PuzzleSet
from trm_core.data.puzzles.layout import DATASET
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.evaluation.arc_voting import Votes

PREFIX, SUBSET = "kaggle/combined/arc-agi", "concept"


def build_theirs(public: Path, out: Path, copies: int) -> PuzzleData:
    from dataset.build_arc_dataset import DataProcessConfig, convert_dataset  # type: ignore[import-not-found]

    settings: dict[str, Any] = {"input_file_prefix": str(public / PREFIX), "output_dir": str(out), "num_aug": copies}
    convert_dataset(DataProcessConfig(subsets=[SUBSET], test_set_name=SUBSET, **settings))
    return open_puzzles(out)


def build_ours(public: Path, out: Path, copies: int) -> PuzzleData:
    source = public / f"{PREFIX}_{SUBSET}_challenges.json"
    build_arc([source], out, PuzzleBuildConfig(augmentations=copies), lambda *_: None, lambda _: None)
    return open_puzzles(out)


def compare_folders(theirs: PuzzleData, ours: PuzzleData, split: str) -> dict[str, Any]:
    a, b = (json.loads((folder.path / split / DATASET).read_text()) for folder in (theirs, ours))
    (one,), (other,) = theirs.sets[split], ours.sets[split]
    tasks, own = tasks_of(theirs, one), tasks_of(ours, other)
    assert tasks.keys() == own.keys()
    return {
        "tasks": len(tasks),
        "dataset.json": {key: [a[key], b.get(key)] for key in a if a[key] != b.get(key)},
        "types": [field for field in ("inputs", "labels") if getattr(one, field).dtype != getattr(other, field).dtype],
        "copies": {name: [tasks[name][0], own[name][0]] for name in tasks if tasks[name][0] != own[name][0]},
        "examples": [name for name in tasks if tasks[name][0] == own[name][0] and tasks[name][1] != own[name][1]],
    }


def tasks_of(folder: PuzzleData, part: PuzzleSet) -> dict[str, tuple[int, Counter[bytes]]]:
    """By task: the number of its puzzles, and how often each pair of grids stands in them."""
    assert folder.names is not None
    found: dict[str, tuple[int, Counter[bytes]]] = {}
    for begin, end in zip(part.group_indices[:-1], part.group_indices[1:], strict=True):
        pairs: Counter[bytes] = Counter()
        task = ""
        for example in range(part.puzzle_indices[begin], part.puzzle_indices[end]):
            task, undo = inverse_of(folder.names[part.identifiers[example]])
            grids = [undo(grid_of(tokens[example])) for tokens in (part.inputs, part.labels)]
            pairs[b"|".join(bytes(grid.shape) + grid.tobytes() for grid in grids)] += 1
        found[task] = int(end - begin), pairs
    return found


def grid_of(tokens: np.ndarray) -> np.ndarray:
    """The grid, wherever it lies in the square."""
    square = tokens.reshape(MAX_SIDE, MAX_SIDE)
    (top, left), (bottom, right) = (edge(np.argwhere(square >= FIRST_COLOUR), axis=0) for edge in (np.min, np.max))
    return square[top : bottom + 1, left : right + 1] - FIRST_COLOUR


def compare_votes(folder: PuzzleData) -> dict[str, Any]:
    from evaluators.arc import ARC  # type: ignore[import-not-found]

    (part,), random = folder.sets["test"], np.random.default_rng(0)
    assert folder.names is not None
    answers = np.array(part.labels)
    for row in np.flatnonzero(random.random(len(answers)) < 0.6):  # wrong in a cell; often in the same one
        cell = random.choice(np.flatnonzero(answers[row] >= FIRST_COLOUR)[:2])
        answers[row, cell] = FIRST_COLOUR + (answers[row, cell] - FIRST_COLOUR + random.integers(1, 3)) % 10
    logits = random.normal(size=len(answers)).astype(np.float32)
    public = ARC(str(folder.path), SimpleNamespace(blank_identifier_id=0))
    batch = {"inputs": part.inputs, "puzzle_identifiers": part.identifiers, "preds": answers, "q_halt_logits": logits}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
    public.update_batch(tensors, {})
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    theirs = public.result(str(folder.path), 0, 1)
    torch.distributed.destroy_process_group()
    votes = Votes()
    names = [folder.names[number] for number in part.identifiers]
    votes.add(names, part.inputs, answers, torch.from_numpy(logits).double().sigmoid().numpy())
    ours = votes.result(read_held_out(folder.path))
    assert ours.pass_at is not None
    submission = json.loads((folder.path / "submission.json").read_text())
    return {
        "votes": ours.votes,
        "pass@1": ours.pass_at[1],
        "apart": max(abs(theirs[f"ARC/pass@{k}"] - share) for k, share in ours.pass_at.items()),
        "attempts": [name for name in submission if submission[name] != ours.submission[name]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="a clone of the public code")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.public))
    with tempfile.TemporaryDirectory() as folder:
        theirs = build_theirs(arguments.public, Path(folder, "theirs"), arguments.copies)
        ours = build_ours(arguments.public, Path(folder, "ours"), arguments.copies)
        found = {split: compare_folders(theirs, ours, split) for split in ("train", "test")}
        publish({"copies": arguments.copies, "folders": found, "votes": compare_votes(theirs)}, arguments.out)


if __name__ == "__main__":
    main()
