"""The folder layout of puzzle datasets, as the public TRM and HRM code writes and reads it.

    FOLDER/
      identifiers.json           names of the puzzle identifiers, "<blank>" first
      test_puzzles.json          ARC only: the tasks of the test split, for voting and submissions
      trm.json                   ours, ignored by others: what the puzzles are and how they were made
      {train,test}/
        dataset.json             `Metadata`
        {set}__inputs.npy        [N, S] tokens
        {set}__labels.npy        [N, S] tokens; ignore_label_id where there is nothing to answer
        {set}__puzzle_identifiers.npy  [P] int32: the identifier of each puzzle
        {set}__puzzle_indices.npy      [P + 1] int32: examples puzzle_indices[i] .. puzzle_indices[i + 1] are puzzle i's
        {set}__group_indices.npy       [G + 1] int32: puzzles group_indices[g] .. group_indices[g + 1] are group g's

A group holds one original puzzle and its augmented copies. N examples, S tokens each, P puzzles, G groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SPLITS = ("train", "test")
EXAMPLE_FIELDS = ("inputs", "labels")
INDEX_FIELDS = ("puzzle_identifiers", "puzzle_indices", "group_indices")
DATASET, IDENTIFIERS, TEST_PUZZLES, MANIFEST = "dataset.json", "identifiers.json", "test_puzzles.json", "trm.json"
BLANK = "<blank>"
SET = "all"  # the one set that we write

Size = Annotated[int, Field(ge=0, lt=2**31)]


class Metadata(BaseModel):
    """`dataset.json` of a split. Unknown keys are ignored, as in the public code."""

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)  # most runs that are diagnosed have none

    pad_id: Size
    ignore_label_id: Size | None
    blank_identifier_id: Size
    vocab_size: Annotated[int, Field(ge=2, lt=2**31)]
    seq_len: Annotated[int, Field(ge=1, lt=2**31)]
    num_puzzle_identifiers: Annotated[int, Field(ge=1, lt=2**31)]
    total_groups: Size
    mean_puzzle_examples: float
    total_puzzles: Size  # the public Sudoku and maze builders write the number of groups here
    sets: list[str]


class Manifest(BaseModel):
    """`trm.json`: what the tokens mean and where they come from."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    format: Literal["trm-puzzles"] = "trm-puzzles"
    version: Literal[1] = 1
    kind: Literal["sudoku", "maze", "arc", "tokens"]
    height: Annotated[int, Field(ge=1, le=1000)]
    width: Annotated[int, Field(ge=1, le=1000)]
    symbols: list[str]  # what each token id is shown as, the padding first
    sources: list[str] = []
    seed: int | None = None
    settings: dict[str, bool | int | float | str | list[str] | None] = {}
    tool_version: str = ""


def array_path(folder: Path, split: str, set_name: str, field: str) -> Path:
    """Where an array of a set lies."""
    return folder / split / f"{set_name}__{field}.npy"
