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
from trm_core.training.checkpoint_verify import CheckpointFacts

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


def test_padding_that_is_the_same_everywhere_is_no_content(tmp_path: Path) -> None:
    """Counts, many of them 0, and -1 where there is none: some samples have only zeros and padding."""

    def change(arrays: Arrays, split: str) -> None:
        random = np.random.default_rng(0)
        real = np.arange(6) < random.integers(1, 6, len(arrays["labels"]))[:, None]
        for name in ("sketches", "children"):
            arrays[name] = random.poisson(0.05, arrays[name].shape).astype(np.float32)
            arrays[name][~real] = -1.0
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


def words(arrays: Arrays, split: str) -> None:
    arrays["children"] = (arrays["children"] > 1).astype(np.float32)
    arrays["sketches"] = arrays["children"].max(2)  # whether any child has the word


def nothing_is_free(arrays: Arrays, split: str) -> None:
    arrays["children"] = (arrays["children"] > 1).astype(np.float32)
    arrays["sketches"][:] = 0
    arrays["sketches"][:, 0] = arrays["children"][:, 0, :1].mean(1)  # but for one column
    arrays["children"][:, 0] = arrays["sketches"][:, 0, None]


def most(arrays: Arrays, split: str) -> None:
    kinds = np.random.default_rng(0).integers(0, 6, (*arrays["sketches"].shape[:2], 9))
    arrays["children"] = np.eye(6, dtype=np.float32)[kinds]
    arrays["sketches"] = np.eye(6, dtype=np.float32)[arrays["children"].mean(2).argmax(2)]


def board(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.sign(np.trunc(arrays[name]))
    arrays["children"] = arrays["children"][..., ::-1]  # other fields, so that no sketch is a mean


def pixels_cut(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.trunc(np.clip(arrays[name], 0, 1))
    arrays["sketches"] = np.trunc(arrays["children"].mean(2))


def nearly_all_cut(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.sign(np.trunc(arrays[name] / 3))


def integers(arrays: Arrays, split: str) -> None:
    for name in ("sketches", "children"):
        arrays[name] = np.rint(30 * arrays[name])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (cut, Verdict.FAIL),
        (pixels_cut, Verdict.FAIL),
        (nearly_all_cut, Verdict.FAIL),
        (pixels, Verdict.OK),
        (binary_codes, Verdict.OK),
        (words, Verdict.OK),
        (nothing_is_free, Verdict.OK),
        (most, Verdict.OK),
        (board, Verdict.OK),
        (integers, Verdict.OK),
    ],
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


def test_a_single_column_may_lose_all_by_a_shift(tmp_path: Path) -> None:
    def only(arrays: Arrays, split: str) -> None:
        with_column(("train",))(arrays, split)
        for name in ("sketches", "children"):
            arrays[name] = arrays[name][..., -1:]

    assert facts(tmp_path, only).betrayal is None


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


def test_labels_of_padding_are_not_missing(tmp_path: Path) -> None:
    """A label for each capsule, and longer samples in the held-out split."""

    def change(arrays: Arrays, split: str) -> None:
        random = np.random.default_rng(0)
        length = random.integers(1, 3, len(arrays["labels"])) + (0 if split == "train" else 4)
        real = np.arange(6) < length[:, None]
        arrays["mask"] = real
        arrays["labels"] = np.where(real, random.integers(0, 4, real.shape), -100)

    assert told("answers-missing", made(data=facts(tmp_path, change))).verdict is Verdict.OK


def test_of_a_few_labels_nothing_is_said(tmp_path: Path) -> None:
    few = generated(0, rows=3)
    few.splits["train"]["labels"][0] = -100
    write(few, tmp_path / "few.h5")
    assert told("answers-missing", made(data=DataFacts(tmp_path / "few.h5"))).verdict is Verdict.UNKNOWN


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


def test_one_sample_in_all_files_contradicts_as_often_as_itself(tmp_path: Path) -> None:
    """A blank sample with 40 % of one label and 60 % of another, whichever of the file comes first."""
    evidence = made()
    for number, name in enumerate(("first", "second")):
        capsules = generated(0)
        train = capsules.splits["train"]
        for field in ("sketches", "children"):
            train[field][:100] = 0
        train["labels"][:100] = np.arange(100) % 5 > 2
        if number:
            train["labels"][:100] = train["labels"][:100][::-1]
        for field in train:
            train[field] = train[field][:100]
        write(Capsules({"train": train}, capsules.manifest, capsules.prices), tmp_path / f"{name}.h5")
    evidence.data, evidence.others = DataFacts(tmp_path / "first.h5"), [Mixed(DataFacts(tmp_path / "second.h5"))]
    found = told("files-contradict", evidence)
    assert found.verdict is Verdict.OK, found.evidence
    assert found.numbers["agree"] == pytest.approx(0.52)


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
        ([start(4000)] * 3, Verdict.OK),  # through, and only evaluated again
        ([], Verdict.OK),
    ],
)
def test_a_job_that_starts_again_without_having_saved(starts: list[Any], verdict: Verdict) -> None:
    overrides = ["training.checkpoint_interval=5000", "training.total_steps=4000"]
    found = told("never-saved", made(overrides, run=run_of(environment={"starts": starts})))
    assert found.verdict is verdict
    if verdict is Verdict.FAIL:
        assert found.fix == {"training.checkpoint_interval": 200}


def test_a_job_that_got_through_in_the_end_may_have_failed_for_another_reason() -> None:
    starts = {"starts": [start(0)] * 3}
    through = made(run=run_of(environment=starts, status={"state": "done"}))
    saved = made(run=run_of(environment=starts, status={"state": "running"}))
    saved.checkpoints = [CheckpointFacts(Path("step-100"), 100, 1, 0.0, False, None)]
    for evidence in (through, saved):
        found = told("never-saved", evidence)
        assert (found.verdict, found.sure) == (Verdict.WARN, "possible")


@pytest.mark.parametrize(
    ("check", "wrong", "sound"),
    [
        (
            "parts-of-one-row",
            ["training.global_batch_size=8", "training.accumulation_steps=8"],
            ["training.global_batch_size=8", "training.accumulation_steps=1"],
        ),
        (
            "parts-of-one-row",
            ["training.global_batch_size=2", "training.accumulation_steps=2"],
            ["training.global_batch_size=256", "training.accumulation_steps=256"],  # no more fits into memory
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


def test_one_evaluation_at_the_end_of_a_short_run_is_not_too_many(tmp_path: Path) -> None:
    data = facts(tmp_path, lambda arrays, split: None)
    short = ["training.total_steps=50", "training.lr_warmup_steps=5", "training.global_batch_size=8"]
    found = told("evaluation-frequency", made([*short, "training.eval_interval=10"], data=data))
    assert found.verdict is Verdict.FAIL
    fixed = [*short, *(f"{key}={value}" for key, value in found.fix.items())]
    assert told("evaluation-frequency", made(fixed, data=data)).verdict is Verdict.OK
