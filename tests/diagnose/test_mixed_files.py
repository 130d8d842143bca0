"""Several training files: labels are counted over all as they are drawn, and each file's samples are looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_puzzles import SIZE, write_puzzles

from tests.faults.capsules import generated, write
from trm_core.config.load import load_config_dict
from trm_core.diagnose.check import Finding, Verdict
from trm_core.diagnose.diagnose import diagnose, look
from trm_core.diagnose.evidence import MOST_FILES, Evidence, of_config, of_run
from trm_core.diagnose.registry import CHECKS, OF_DATA
from trm_core.diagnose.series import Metrics, Series

BY_ID = {check.id: check for check in CHECKS}


def files(folder: Path, *tops: float) -> list[str]:
    """Four classes each, of which the first has about this share of the labels."""
    found = []
    for number, top in enumerate(tops):
        capsules, random = generated(number, rows=1200), np.random.default_rng(number)
        for split, arrays in capsules.splits.items():
            labels = arrays["labels"]
            kept = (labels == 0) | (random.random(len(labels)) < (1 - top) / (3 * top))
            capsules.splits[split] = {name: values[kept] for name, values in arrays.items()}
        found.append(str(folder / f"{number}.h5"))
        write(capsules, Path(found[-1]))
    return found


def mixed(paths: list[str], weights: list[float], **values: float) -> Evidence:
    """A run over these files; each value is logged at every line."""
    listed: list[dict[str, Any]] = [{"path": p, "weight": w} for p, w in zip(paths, weights, strict=True)]
    found = of_config(
        load_config_dict({"data": {"path": listed}, "training": {"total_steps": 500, "lr_warmup_steps": 20}}).config
    )
    at, noise = np.arange(5, 501, 5), 0.002 * np.random.default_rng(0).standard_normal(100)
    found.metrics = Metrics({f"train/{name}": Series(at, value + noise) for name, value in values.items()})
    return found


def finding(evidence: Evidence, check: str) -> Finding:
    return look(BY_ID[check], evidence).finding


def test_labels_are_counted_as_they_are_drawn(tmp_path: Path) -> None:
    paths = files(tmp_path, 0.9, 0.25)
    shares = mixed(paths, [2.0, 6.0]).label_shares
    assert shares is not None
    assert shares[0] == pytest.approx(0.25 * 0.9 + 0.75 * 0.25, abs=0.03)
    assert shares.sum() == pytest.approx(1)


def test_of_puzzle_folders_the_groups_count(tmp_path: Path) -> None:
    """An epoch visits each once, so a small folder says little."""
    large, small = (write_puzzles(tmp_path / str(groups), groups=groups) for groups in (30, 6))
    labels = np.full((12, SIZE), 1, np.uint8)
    labels[0, 0] = 2  # not all alike
    np.save(small / "train" / "all__labels.npy", labels)
    of_large, shares = (
        of_config(load_config_dict({"data": {"path": paths}}).config).label_shares
        for paths in ([str(large)], [str(large), str(small)])
    )
    assert of_large is not None
    assert shares is not None
    assert shares[1] == pytest.approx(30 / 36 * of_large[1] + 6 / 36, abs=0.01)


def test_accuracy_is_judged_by_all_files(tmp_path: Path) -> None:
    """84 % is less than always naming the first file's most frequent label, and far more than that of all samples."""
    paths = files(tmp_path, 0.9, 0.25)
    right = {"accuracy": 0.84, "lm_loss": 0.4}
    assert finding(mixed(paths, [1.0, 3.0], **right), "accuracy-at-chance").verdict is Verdict.OK
    assert finding(mixed(paths[:1], [1.0], **right), "accuracy-at-chance").verdict is not Verdict.OK
    assert finding(mixed(paths, [1.0, 3.0], accuracy=0.4), "accuracy-at-chance").verdict is Verdict.FAIL
    gone = [*paths, str(tmp_path / "gone.h5")]
    assert finding(mixed(gone, [1.0, 3.0, 1.0], **right), "accuracy-at-chance").verdict is Verdict.UNKNOWN
    constant = {"prediction_top_share": 0.99}
    assert finding(mixed(paths, [1.0, 3.0], **constant), "predictions-collapse").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("weights", "evaluated", "verdict"),
    [
        ([1.0, 1.0], 0, Verdict.UNKNOWN),  # it may be right on 82 % of the first file's training samples
        ([1.0, 1.0], 1, Verdict.UNKNOWN),
        ([9.0, 1.0], 0, Verdict.WARN),  # on 90 % at least
        ([9.0, 1.0], 1, Verdict.UNKNOWN),
        ([1.0, 1.0], None, Verdict.WARN),  # on a file of its own, as with one training file
    ],
)
def test_training_on_several_files_is_compared_with_one(
    tmp_path: Path, weights: list[float], evaluated: int | None, verdict: Verdict
) -> None:
    paths = [*files(tmp_path, 0.25, 0.25), str(tmp_path / "other.h5")]
    evidence = mixed(paths[:2], weights, final_accuracy=0.91)
    evidence.evaluated = paths[-1 if evaluated is None else evaluated]
    evidence.metrics.series["eval/accuracy"] = Series(np.array([500]), np.array([0.6]))
    assert finding(evidence, "overfitting").verdict is verdict
    gone = mixed([paths[0], str(tmp_path / "gone.h5")], weights)
    gone.metrics = evidence.metrics
    assert finding(gone, "overfitting").verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("weights", "verdict"), [([1.0, 1.0], Verdict.OK), ([9.0, 1.0], Verdict.FAIL)])
def test_a_harder_file_is_no_noise(tmp_path: Path, weights: list[float], verdict: Verdict) -> None:
    evidence = mixed(files(tmp_path, 0.25, 0.25), weights, final_accuracy=0.5)
    evidence.metrics.series["eval/accuracy"] = Series(np.array([500]), np.array([0.9]))
    assert finding(evidence, "regularisation").verdict is verdict


def test_a_fault_of_a_later_file_is_found(tmp_path: Path) -> None:
    paths = files(tmp_path, 0.25, 0.9, 0.25)
    evidence = mixed(paths, [1.0, 1.0, 1.0])
    assert diagnose(OF_DATA, mixed(paths[:1], [1.0])), "one file is as before"
    found = finding(evidence, "labels-constant")
    assert found.verdict is Verdict.WARN
    assert paths[1] in found.evidence
    assert paths[0] in finding(evidence, "children-equal-sketch").evidence
    assert paths[0] not in finding(mixed(paths[:1], [1.0]), "children-equal-sketch").evidence


def test_it_is_said_which_files_were_not_looked_at(tmp_path: Path) -> None:
    paths = files(tmp_path, *[0.25] * MOST_FILES, 0.9)
    evidence = mixed(paths, [1.0] * len(paths))
    assert finding(evidence, "labels-constant").verdict is Verdict.OK
    assert any(paths[-1] in note for note in evidence.notes)
    assert not any(path in note for note in evidence.notes for path in paths[:-1])
    assert evidence.top_share == pytest.approx((MOST_FILES * 0.25 + 0.9) / len(paths), abs=0.04)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_file_that_is_gone_is_named_and_the_others_looked_at(tmp_path: Path, gone: int) -> None:
    paths = files(tmp_path, 0.25, 0.25, 0.9)
    Path(paths[gone]).unlink()
    evidence = mixed(paths, [1.0, 1.0, 1.0])
    found = finding(evidence, "labels-constant")
    assert found.verdict is Verdict.WARN
    assert paths[2] in found.evidence
    assert evidence.notes == [f"one of the files was not looked at: {paths[gone]}: no such file"]


@pytest.mark.parametrize("weight", [3.0, "three", -1.0, None])
def test_the_files_of_a_run(tmp_path: Path, weight: Any) -> None:
    paths = files(tmp_path, 0.9, 0.25)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("training:\n  total_steps: 500\n  lr_warmup_steps: 20\n")
    train = [{"path": paths[0], "weight": 1.0}, {"path": paths[1], "weight": weight}]
    (run / "dataset.json").write_text(json.dumps({"train": train, "eval": {"path": paths[1], "split": "validation"}}))
    evidence = of_run(run)
    if weight == 3.0:
        assert [(other.weight, other.data and str(other.data.file.path)) for other in evidence.others] == [
            (3.0, paths[1])
        ]
        assert evidence.top_share == pytest.approx(0.25 * 0.9 + 0.75 * 0.25, abs=0.03)
        assert evidence.trained_as_evaluated == 0.75
        assert evidence.evaluated_rows == evidence.others[0].data.file.rows["validation"]
    else:
        assert evidence.data is None
        assert any("does not say where the data lie" in note for note in evidence.notes)
