"""`training.init_from`: where the weights of a new run come from, unless they are random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trm_core.data.puzzles.identifiers import same_puzzles, shift_in
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.errors import CheckpointError
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.checkpoint import load_model, one_value_each
from trm_core.training.checkpoint_verify import find_checkpoint
from trm_core.training.public_weights import read_public

PUZZLES = "embedding.puzzles.weights"
# Parts that the model may have but the weights lack: they are initialised at random.
_MAY_LACK = ("q_head.value_net.", "q_head.continue_net.", "mtp.", "memory.", "concepts.", "cmi_head.", "opening_worth.")


@dataclass(frozen=True)
class Initial:
    """Weights that fit a model, and notes about them."""

    weights: dict[str, Tensor]
    notes: list[str]


def load_initial(model: TinyRecursiveModel, path: Path, puzzles: Sequence[PuzzleData] = ()) -> list[str]:
    """Load what `read_initial` finds into the model; returns its notes."""
    initial, own = read_initial(model, path, puzzles), model.state_dict()
    with torch.no_grad():
        for name, value in one_value_each(model, initial.weights).items():
            own[name].copy_(value)
    if model.memory is not None:
        model.memory.begin_anew()
    return initial.notes


def read_initial(model: TinyRecursiveModel, path: Path, puzzles: Sequence[PuzzleData] = ()) -> Initial:
    """The weights of a run, or of a checkpoint file of the public TRM or HRM code, for this model (shapes are enough).
    puzzles: folders to train on. If they are not those of that run in the same order, embeddings are matched by the
    names of puzzles, and unmatched ones start at the mean of those in the weights, as they do in the public code if the
    number differs. Raises CheckpointError if the weights are those of another network.
    """
    public = path.is_file()
    recorded = None
    if public:
        weights, source = read_public(path), str(path)
    else:
        folder, _ = find_checkpoint(path, "latest")
        _, weights, state = load_model(folder)
        data, source = state.get("data"), str(folder)
        recorded = data.get("identifiers") if isinstance(data, dict) else None
    own, notes = model.state_dict(), [f"weights from {source}"]
    if PUZZLES in own and PUZZLES in weights:
        count = len(weights[PUZZLES])
        others = len(own[PUZZLES]) != count or any(shift_in(some, count, recorded) != some.shift for some in puzzles)
    else:
        others = False
    if others:
        weights[PUZZLES], note = _of_these_puzzles(weights[PUZZLES], len(own[PUZZLES]), puzzles, recorded)
        notes.append(f"{note} in {source}")
    # TRM keeps the second row of its Q-head although nothing trains it.
    dropped = [name for name in weights if name not in own and public and name.startswith("q_head.continue_net.")]
    weights = {name: value for name, value in weights.items() if name not in dropped}
    lacking = [name for name in own if name not in weights]
    wrong = [name for name in lacking if not name.startswith(_MAY_LACK)] + [name for name in weights if name not in own]
    if wrong:
        raise CheckpointError(f"{source}: {_difference(wrong[0], own, weights)}", hint=_hint(public))
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise CheckpointError(
                f"{source}: {name} is {list(value.shape)}, but {list(own[name].shape)} in this model",
                hint=_hint(public),
            )
    parts = sorted({name.split(".")[0] + "." + name.split(".")[1] for name in lacking})
    return Initial(weights, [*notes, *([f"initialised at random: {', '.join(parts)}"] if parts else [])])


def _of_these_puzzles(
    trained: Tensor, count: int, puzzles: Sequence[PuzzleData], recorded: object
) -> tuple[Tensor, str]:
    """Embeddings [count, E] for the puzzles of these folders, and a note about them."""
    begun = trained.mean(0, keepdim=True).repeat(count, 1)
    mean = f"begin at the mean of the {len(trained)}"
    here, there = (torch.from_numpy(numbers) for numbers in same_puzzles(puzzles, len(trained), recorded))
    if not len(here):
        return begun, f"{count} puzzle embeddings {mean}"
    begun[here], begun[0] = trained[there], trained[0]  # all folders share the blank identifier
    left = torch.zeros(count, dtype=torch.bool)
    for folder in puzzles:
        left[folder.shift + 1 : folder.shift + folder.num_puzzles] = True
    left[here] = False
    found = f"{len(here.unique())} puzzle embeddings are those of the same names"
    return begun, f"{found}, {int(left.sum())} {mean}" if left.any() else found


def _difference(name: str, own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    return f"has no {name}" if name in own else f"has {name}, which this model does not have"


def _hint(public: bool) -> str:
    if public:
        return (
            "set arch to the network's sizes (trm convert takes them from the checkpoint), and give the puzzles it was "
            "trained on"
        )
    return "use the arch settings of that run (its config.yaml) and data of the same sizes"
