"""The expansion-value probe and the concepts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build

from trm_core.data.build.concepts import CONTROL_SYMBOLS, Concepts, fit_concepts
from trm_core.data.fields import IGNORE_LABEL
from trm_core.data.inspect import inspect_dataset
from trm_core.data.probe import ProbeSample, in_words, measure
from trm_core.errors import DataError


def hidden_task(path: Path, count: int = 600) -> Path:
    """The label is the sign of child 0 minus child 1 of capsule 2; every capsule's mean is noise."""
    rng = np.random.default_rng(0)
    children = rng.standard_normal((count, 4, 2, 3)).astype(np.float32)
    labels = (children[:, 2, 0, 0] > children[:, 2, 1, 0]).astype(int)
    np.savez(path, children=children, labels=labels)
    return path


def test_detail_that_decides_is_found_in_the_children_alone(build: Build, tmp_path: Path) -> None:
    value = build(hidden_task(tmp_path / "a.npz"), validation=0.25).report.expansion_value
    assert value is not None
    assert value["sketches"] < 0.65
    assert value["children"] > 0.93
    assert value["checksums"] > 0.85  # six numbers of detail, projected on six
    words = in_words(value)
    assert words[0].startswith("what EXPAND can be worth here: ")
    assert words[2].endswith(f"peeks at: {100 * value['checksums']:.1f} %")
    assert "paying for detail can help" in words[3]
    without = in_words({**value, "checksums": None})
    assert without == [*words[:2], *words[3:]]
    assert in_words({**value, "children": None})[2] == words[2], "there may be checksums of children that are not there"


def made_value(rows: int, sketches: int, children: int, *, lost: int = 0, chance: int = 0) -> dict[str, Any]:
    """What is measured when so many of the held-out samples are answered rightly."""
    shares = {"sketches": sketches / rows, "children": children / rows, "chance": chance / rows, "checksums": None}
    counts = {"gained": children - sketches + lost, "lost": lost, "eval_rows": rows, "train_rows": 8 * rows}
    return {**shares, **counts, "per": "sample", "split": "validation"}


def test_a_few_samples_promise_nothing() -> None:
    few = "are answered rightly, which may be chance: too few to tell"
    assert in_words(made_value(3, 1, 3))[-1] == f"with children 2 more of 3 samples {few}"
    assert in_words(made_value(30, 28, 29))[-1] == f"with children 1 more of 30 samples {few}"
    assert in_words(made_value(90, 70, 75, lost=20))[-1] == f"with children 5 more of 90 samples {few}"
    assert "paying for detail can help" in in_words(made_value(20, 12, 18))[-1]
    assert "paying for detail can help" in in_words(made_value(1000, 980, 995))[-1]
    assert "no clear use" in in_words(made_value(90, 70, 60, lost=20))[-1]


def test_being_as_good_as_guessing_is_no_praise_of_the_sketches() -> None:
    rare = made_value(200, 199, 199, chance=199)
    assert in_words(rare)[-1].startswith("neither is better than always guessing")
    assert "nearly enough" in in_words({**rare, "chance": 0.6})[-1]


def test_gained_and_lost_are_the_samples_that_the_children_change(build: Build, tmp_path: Path) -> None:
    value = build(hidden_task(tmp_path / "a.npz"), validation=0.25).report.expansion_value
    assert value is not None
    assert value["gained"] - value["lost"] == round((value["children"] - value["sketches"]) * value["eval_rows"])
    assert value["lost"] > 0, "not only the difference is counted"


def test_without_a_training_split_it_says_what_is_missing() -> None:
    assert in_words(None) == [
        "what EXPAND can be worth here: not measured (it needs labels in train and in validation or test)"
    ]


def test_inspection_measures_the_same(build: Build, tmp_path: Path) -> None:
    report = build(hidden_task(tmp_path / "a.npz")).report
    assert inspect_dataset(report.path).expansion_value == report.expansion_value


def test_rows_may_come_in_any_pieces() -> None:
    rng = np.random.default_rng(0)
    counts = {"train": 300, "test": 80}
    fields = {
        split: {"sketches": rng.standard_normal((n, 3, 2)), "labels": rng.integers(0, 2, n)}
        for split, n in counts.items()
    }
    results = []
    for step in (7, 1000):
        sample = ProbeSample(counts, 3, per_capsule=False)
        for split, n in counts.items():
            for start in range(0, n, step):
                sample.offer(split, start, {name: v[start : start + step] for name, v in fields[split].items()})
        results.append(measure(sample))
    assert results[0] == results[1]
    assert results[0] is not None
    assert results[0]["split"] == "test"


def test_large_files_are_sampled_and_wide_ones_projected() -> None:
    counts = {"train": 40_000, "validation": 9_000}
    sample = ProbeSample(counts, 2, per_capsule=False)
    kept = {"train": 0, "validation": 0}
    for split, n in counts.items():
        for start in range(0, n, 1000):
            wide = np.zeros((1000, 2, 4, 1000), np.float16)
            labels = np.zeros(1000, np.int64)
            wanted = np.arange(start, start + 1000)
            kept[split] += int(np.isin(sample.wanted(split), wanted).sum())
            if start < 2000:
                sample.offer(split, start, {"sketches": wide[:, :, 0], "children": wide, "labels": labels})
    assert kept == {"train": 5000, "validation": 2000}
    assert sample.arrays("train")["children"].shape[1:] == (2, 1024)


def test_classes_of_about_one_sample_cause_no_warnings() -> None:
    counts = {"train": 30, "validation": 10}
    sample = ProbeSample(counts, 2, per_capsule=False)
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        rows = rng.standard_normal((count, 2, 3)).astype(np.float32)
        sample.offer(split, 0, {"sketches": rows, "children": rows[:, :, None], "labels": np.arange(count) % 24})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(sample) is not None


def test_nothing_to_measure_on() -> None:
    sample = ProbeSample({"train": 10}, 1, per_capsule=False)
    assert measure(sample) is None
    assert "not measured" in in_words(None)[0]


def test_concepts_are_the_nearest_centres_and_padding_has_none() -> None:
    concepts = Concepts(np.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=np.float32))
    detail = np.asarray([[[1.0, 1.0], [9.0, 2.0]], [[1.0, 8.0], [0.0, 0.0]]])
    mask = np.asarray([[True, True], [True, False]])
    assert concepts.label(detail, None).tolist() == [[4, 5], [6, 4]]
    assert concepts.label(detail, mask).tolist() == [[4, 5], [6, IGNORE_LABEL]]
    assert CONTROL_SYMBOLS == 4


def test_fewer_distinct_capsules_than_concepts() -> None:
    said: list[str] = []
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    concepts = fit_concepts(points, 8, 0, said.append)
    assert concepts.count == 3
    assert "reduced from 8 to 3" in said[0]
    with pytest.raises(DataError, match="same detail"):
        fit_concepts(np.zeros((9, 2)), 8, 0, said.append)


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 5)) * 20
    which = rng.integers(0, 6, 600)
    concepts = fit_concepts(centres[which] + rng.standard_normal((600, 5)) * 0.1, 6, 0, lambda _: None)
    labels = concepts.label((centres[which] + 0.05)[:, None], None)[:, 0]
    assert len({(a, b) for a, b in zip(which.tolist(), labels.tolist(), strict=True)}) == 6
