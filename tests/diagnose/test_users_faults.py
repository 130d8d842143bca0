"""Faults that users make with their own data, config and cluster, each beside what looks like it and is sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_evidence import made, run_of, told

from tests.faults.capsules import Capsules, generated, write
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.data_facts import DataFacts
from trm_core.diagnose.evidence import Evidence, Mixed

Arrays = dict[str, np.ndarray]


def facts(folder: Path, change: Callable[[Arrays, str], None], name: str = "capsules") -> DataFacts:
    """Generated capsules (2,000 training rows of 4 classes) in which each split was changed."""
    capsules = generated(0)
    for split, arrays in capsules.splits.items():
        change(arrays, split)
    write(capsules, folder / f"{name}.h5")
    return DataFacts(folder / f"{name}.h5")


def padded(arrays: Arrays) -> np.ndarray:
    """[N, k] bool: which capsules are left once the last two of each row were blanked."""
    real = np.arange(arrays["sketches"].shape[1]) < arrays["sketches"].shape[1] - 2
    for name in ("sketches", "children"):
        arrays[name][:, ~real] = 0
    return np.broadcast_to(real, arrays["sketches"].shape[:2]).copy()


@pytest.mark.parametrize(("share", "verdict"), [(1.0, Verdict.FAIL), (0.05, Verdict.WARN), (0.0, Verdict.OK)])
def test_a_mask_the_other_way_round(tmp_path: Path, share: float, verdict: Verdict) -> None:
    def invert(arrays: Arrays, split: str) -> None:
        real = padded(arrays)
        real[: int(share * len(real))] ^= True
        arrays["mask"] = real

    assert told("mask-inverted", made(data=facts(tmp_path, invert))).verdict is verdict


def test_padding_may_hold_anything_and_single_capsules_may_be_blank(tmp_path: Path) -> None:
    def change(arrays: Arrays, split: str) -> None:
        real = padded(arrays)
        arrays["sketches"][~real] = 7.0  # an embedding of the padding
        for name in ("sketches", "children"):
            arrays[name][:, 0] = 0
        arrays["mask"] = real

    assert told("mask-inverted", made(data=facts(tmp_path, change))).verdict is Verdict.OK


def cut(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.trunc(arrays[name])


def pixels(arrays: Arrays, split: str) -> None:
    arrays["children"] = (arrays["children"] > 1).astype(np.float32)
    arrays["sketches"] = arrays["children"].mean(2)


def binary_codes(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = (arrays[name] > 1).astype(np.float32)
    arrays["sketches"] = arrays["children"].max(2) * 3  # nothing of a mean


def integers(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.rint(30 * arrays[name])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(cut, Verdict.FAIL), (pixels, Verdict.OK), (binary_codes, Verdict.OK), (integers, Verdict.OK)],
)
def test_numbers_that_were_cut_to_whole_ones(tmp_path: Path, change: Any, verdict: Verdict) -> None:
    found = told("values-cut", made(data=facts(tmp_path, change)))
    assert found.verdict is verdict, found.evidence


def with_column(fitted_on: tuple[str, ...]) -> Callable[[Arrays, str], None]:
    """A column that is the label in the splits `fitted_on`, and noise in the others."""

    def change(arrays: Arrays, split: str) -> None:
        random = np.random.default_rng(len(split))
        labels = arrays["labels"].astype(float)
        column = labels + 0.3 * random.normal(size=len(labels))
        if split not in fitted_on:
            random.shuffle(column)
        for name in ("sketches", "children"):
            shape = arrays[name].shape[:-1]
            added = np.broadcast_to(column.reshape(-1, *[1] * (len(shape) - 1)), shape)[..., None]
            arrays[name] = np.concatenate([arrays[name], added], -1).astype(np.float32)

    return change


def test_a_column_that_was_computed_from_the_labels_of_training(tmp_path: Path) -> None:
    found = told("labels-leaked", made(data=facts(tmp_path, with_column(("train",)))))
    assert found.verdict is Verdict.FAIL
    assert "lies between the classes in training" in found.evidence
    last = generated(0).splits["train"]["sketches"].shape[2]
    assert found.numbers["dimension"] == last


def test_a_column_that_tells_the_label_everywhere_or_columns_in_another_order(tmp_path: Path) -> None:
    everywhere = facts(tmp_path, with_column(("train", "validation", "test")), "everywhere")
    assert everywhere.betrayal is None

    def turned(arrays: Arrays, split: str) -> None:
        if split != "train":
            for name in ("sketches", "children"):
                arrays[name] = np.roll(arrays[name], 1, -1)

    assert facts(tmp_path, turned, "turned").betrayal is None


def ignored(train: float, held_out: float) -> Callable[[Arrays, str], None]:
    def change(arrays: Arrays, split: str) -> None:
        labels = arrays["labels"].copy()
        labels[np.random.default_rng(0).random(len(labels)) < (train if split == "train" else held_out)] = -100
        arrays["labels"] = labels

    return change


@pytest.mark.parametrize(
    ("train", "held_out", "verdict"),
    [(0.93, 0.0, Verdict.FAIL), (0.3, 0.0, Verdict.WARN), (0.05, 0.0, Verdict.OK), (0.85, 0.85, Verdict.OK)],
)
def test_training_labels_that_are_ignored(tmp_path: Path, train: float, held_out: float, verdict: Verdict) -> None:
    found = told("answers-missing", made(data=facts(tmp_path, ignored(train, held_out))))
    assert found.verdict is verdict, found.evidence


def mixed(folder: Path, change: Callable[[Arrays], None]) -> Evidence:
    """Two training files, of which the second has the same samples in another order, changed."""
    first = generated(0)
    train = {name: array.copy() for name, array in first.splits["train"].items()}
    order = np.random.default_rng(0).permutation(len(train["labels"]))
    second = {name: array[order] for name, array in train.items()}
    change(second)
    write(first, folder / "first.h5")
    write(Capsules({"train": second}, first.manifest, first.prices), folder / "second.h5")
    evidence = made(data=DataFacts(folder / "first.h5"))
    evidence.others = [Mixed(DataFacts(folder / "second.h5"))]
    return evidence


def test_two_training_files_that_contradict_each_other(tmp_path: Path) -> None:
    def renumber(arrays: Arrays) -> None:
        arrays["labels"] = (arrays["labels"] + 1) % 4

    found = told("files-contradict", mixed(tmp_path, renumber))
    assert found.verdict is Verdict.FAIL
    assert found.numbers["agree"] == 0.0
    assert told("files-contradict", mixed(tmp_path, lambda arrays: None)).verdict is Verdict.OK


def test_files_may_contradict_each_other_as_much_as_themselves(tmp_path: Path) -> None:
    """Few distinct inputs, whose labels are partly chance."""
    evidence = made()
    for number, name in enumerate(("first", "second")):
        capsules = generated(number)
        train = capsules.splits["train"]
        random = np.random.default_rng(number)
        for field in ("sketches", "children"):
            kinds = generated(0).splits["train"][field][:10]
            train[field] = kinds[random.integers(0, 10, len(train[field]))]
        train["labels"] = random.integers(0, 2, len(train["labels"]))
        write(Capsules({"train": train}, capsules.manifest, capsules.prices), tmp_path / f"{name}.h5")
    evidence.data, evidence.others = DataFacts(tmp_path / "first.h5"), [Mixed(DataFacts(tmp_path / "second.h5"))]
    found = told("files-contradict", evidence)
    assert found.verdict is Verdict.OK, found.evidence


def start(step: int, command: str = "trm train --resume auto") -> dict[str, Any]:
    return {"step": step, "command": command.split()}


@pytest.mark.parametrize(
    ("starts", "verdict"),
    [
        ([start(0)] * 3, Verdict.FAIL),
        ([start(0), *[start(500)] * 3], Verdict.FAIL),
        ([start(0)] * 2, Verdict.OK),
        ([start(0), start(100), start(200)], Verdict.OK),
        ([start(0, f"trm train seed={seed}") for seed in range(3)], Verdict.OK),  # mistakes that were mended
        ([{}, {}, {}], Verdict.OK),
        ([], Verdict.OK),
    ],
)
def test_a_job_that_starts_again_without_having_saved(starts: list[Any], verdict: Verdict) -> None:
    overrides = ["training.checkpoint_interval=5000", "training.total_steps=4000"]
    found = told("never-saved", made(overrides, run=run_of(environment={"starts": starts})))
    assert found.verdict is verdict
    if verdict is Verdict.FAIL:
        assert found.fix == {"training.checkpoint_interval": 200}


@pytest.mark.parametrize(
    ("check", "wrong", "sound"),
    [
        (
            "parts-of-one-row",
            ["training.global_batch_size=8", "training.accumulation_steps=8"],
            ["training.global_batch_size=8", "training.accumulation_steps=1"],
        ),
        ("frozen-untrained", ["training.freeze=['embedding.*']"], ["training.freeze=[a]", "training.init_from=runs/a"]),
    ],
)
def test_what_a_config_lets_learn(check: str, wrong: list[str], sound: list[str]) -> None:
    found = told(check, made(wrong))
    assert found.verdict is Verdict.FAIL
    fixed = [*wrong, *(f"{key}={value}" for key, value in found.fix.items())]
    for settings in (sound, fixed, []):
        assert told(check, made(settings)).verdict is Verdict.OK


def test_more_evaluation_than_training(tmp_path: Path) -> None:
    data = facts(tmp_path, lambda arrays, split: None)
    wrong = ["training.eval_interval=2", "training.global_batch_size=32", "training.total_steps=5000"]
    found = told("evaluation-frequency", made(wrong, data=data))
    assert found.verdict is Verdict.FAIL
    fixed = [*wrong, *(f"{key}={value}" for key, value in found.fix.items())]
    after = told("evaluation-frequency", made(fixed, data=data))
    assert after.verdict is Verdict.OK
    assert after.numbers["share"] == pytest.approx(0.05, abs=0.01)
    halts_at_once = {"eval/steps": ([2, 4, 6], 1.0)}
    assert told("evaluation-frequency", made(wrong, halts_at_once, data)).numbers["share"] < found.numbers["share"]
