"""What diagnosis says of puzzle runs and folders: the checks that make sense are run, the others say why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_puzzles import ARCH, VOCAB, write_puzzles

from trm_core.diagnose.check import Verdict
from trm_core.diagnose.checks import answers, children, labels, rates, twins
from trm_core.diagnose.checks import puzzles as puzzle_checks
from trm_core.diagnose.diagnose import look
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.puzzle_facts import PuzzleFacts, facts_of
from trm_core.diagnose.series import from_lines

CHECKS = {check.id: check for check in (*labels.CHECKS, twins.CHECK, *children.CHECKS, *puzzle_checks.CHECKS)}


def write_sound(folder: Path) -> Path:
    """Answers keep what is given, as those of Sudokus do: the last four of twelve cells repeat the first ones."""
    write_puzzles(folder, groups=300, copies=1)
    random = np.random.default_rng(1)
    for split, rows in (("train", 300), ("test", 100)):
        given = random.integers(1, VOCAB, (rows, 8))
        put(folder, np.pad(given, ((0, 0), (0, 4))), np.concatenate([given, given[:, :4]], 1), split)
        path = folder / split / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seq_len": 12}))
    return folder


def verdict(folder: Path, name: str) -> Verdict:
    evidence = Evidence(tiny.make_config(arch=ARCH, dqn={"enabled": True}), data=facts_of(folder))
    return look(CHECKS[name], evidence).finding.verdict


def arrays(folder: Path, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.load(folder / split / f"all__{field}.npy") for field in ("inputs", "labels"))  # type: ignore[return-value]


def put(folder: Path, inputs: np.ndarray, labels: np.ndarray, split: str = "train") -> None:
    np.save(folder / split / "all__inputs.npy", inputs.astype(np.uint8))
    np.save(folder / split / "all__labels.npy", labels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "sound")


def test_sound_puzzles_are_let_alone(folder: Path) -> None:
    found = {name: verdict(folder, name) for name in CHECKS}
    assert not [name for name, said in found.items() if said in (Verdict.FAIL, Verdict.WARN)]
    assert {name for name, said in found.items() if said is Verdict.UNKNOWN} == {
        "labels-leaked",
        "children-equal-sketch",
    }


@pytest.mark.parametrize(("share", "expected"), [(0.0, Verdict.OK), (0.2, Verdict.WARN), (1.0, Verdict.FAIL)])
def test_answers_that_were_moved_to_other_questions(folder: Path, share: float, expected: Verdict) -> None:
    inputs, labels = arrays(folder)
    moved = np.arange(round(share * len(labels)))
    labels[moved] = labels[np.roll(moved, 1)]
    put(folder, inputs, labels)
    assert verdict(folder, "labels-shuffled") is expected


def test_answers_of_which_questions_tell_nothing_cannot_be_judged(tmp_path: Path) -> None:
    folder = write_puzzles(tmp_path / "turned", groups=2000, copies=1)
    assert verdict(folder, "labels-shuffled") is Verdict.UNKNOWN


def test_test_puzzles_in_training(folder: Path) -> None:
    inputs, labels = arrays(folder)
    put(folder, inputs[:100], labels[:100], "test")
    assert verdict(folder, "duplicate-across-splits") is Verdict.FAIL


def test_answers_that_are_missing(folder: Path) -> None:
    inputs, labels = arrays(folder)
    for count, expected in ((0, Verdict.OK), (30, Verdict.WARN), (100, Verdict.FAIL)):
        labels[:count] = 0
        put(folder, inputs, labels)
        assert verdict(folder, "answers-missing") is expected


def test_answers_that_stand_in_the_question(folder: Path) -> None:
    inputs, labels = arrays(folder)
    inputs[:200] = labels[:200]
    put(folder, inputs, labels)
    assert verdict(folder, "answers-copied") is Verdict.FAIL


def test_a_task_some_of_whose_puzzles_ask_for_nothing_is_no_copy(folder: Path) -> None:
    for split in ("train", "test"):
        inputs, labels = arrays(folder, split)
        inputs[: len(inputs) // 4] = labels[: len(inputs) // 4]
        put(folder, inputs, labels, split)
    assert verdict(folder, "answers-copied") is Verdict.OK
    inputs, labels = arrays(folder)
    put(folder, np.where(np.arange(len(inputs))[:, None] % 5 < 1, labels, inputs), labels)
    assert verdict(folder, "answers-copied") is Verdict.WARN


def test_answers_that_contradict_each_other(folder: Path) -> None:
    inputs, labels = arrays(folder)
    inputs[:100] = inputs[100:200]
    put(folder, inputs, labels)
    assert verdict(folder, "answers-contradict") is Verdict.FAIL


def test_one_token_for_every_answer(folder: Path) -> None:
    inputs, labels = arrays(folder)
    labels[:] = 3
    labels[0, 0] = 2
    put(folder, inputs, labels)
    assert verdict(folder, "labels-constant") is Verdict.FAIL


def test_tasks_of_other_backgrounds_are_no_constant_label(folder: Path) -> None:
    """ARC-AGI-2: 41 % of the training cells are black, 16 % of those that are held out."""
    inputs, labels = arrays(folder)
    labels[:, : round(0.6 * labels.shape[1])] = 2
    put(folder, inputs, labels)
    assert verdict(folder, "labels-constant") is Verdict.OK


def test_chance_is_that_of_the_cells(folder: Path) -> None:
    facts = PuzzleFacts(folder)
    _, labels = arrays(folder)
    counts = np.bincount(labels.ravel(), minlength=VOCAB)
    assert facts.top_share == pytest.approx(counts.max() / counts.sum())
    _, held_out = arrays(folder, "test")
    assert facts.chance == pytest.approx(float((held_out == counts.argmax()).mean()))


def test_tokens_of_no_vocabulary_are_said_and_no_crash(folder: Path) -> None:
    inputs, labels = arrays(folder)
    inputs[3, 3] = 77
    put(folder, inputs, labels)
    evidence = Evidence(tiny.make_config(arch=ARCH), data=facts_of(folder))
    found = look(CHECKS["answers-missing"], evidence).finding
    assert found.verdict is Verdict.UNKNOWN
    assert "example 3, position 3: token 77" in found.evidence


@pytest.mark.parametrize(("repeats", "expected"), [(0, Verdict.WARN), (280, Verdict.FAIL)])
def test_puzzles_that_are_learned_by_heart(folder: Path, repeats: int, expected: Verdict) -> None:
    inputs, labels = arrays(folder)
    inputs[:repeats], labels[:repeats] = inputs[0], labels[0]
    put(folder, inputs, labels)
    lines: list[dict[str, object]] = [
        {"step": step, "train/final_accuracy": 1.0, "train/exact_accuracy": 0.9} for step in range(1, 101)
    ]
    lines.append({"step": 100, "eval/accuracy": 0.95, "eval/exact_accuracy": 0.01})
    evidence = Evidence(tiny.make_config(arch=ARCH), from_lines(lines), facts_of(folder))
    (check,) = [check for check in answers.CHECKS if check.id == "overfitting"]
    assert look(check, evidence).finding.verdict is expected


@pytest.mark.parametrize("policy", ["false", "true"])
def test_a_run_and_a_config_are_diagnosed(folder: Path, tmp_path: Path, policy: str) -> None:
    run = tmp_path / "run"
    overrides = tiny.as_overrides(
        arch=ARCH,
        data={"path": folder},
        training={"run_dir": run, "total_steps": 30, "watch": "true"},
        dqn={"enabled": policy},
    )
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    said = tiny.invoke("diagnose", run, "--json")
    assert said.returncode in (0, 1), said.stderr
    document = json.loads(said.stdout)
    assert "were not looked at" not in said.stdout
    verdicts = {one["id"]: one["verdict"] for one in document["checks"]}
    assert verdicts["answers-missing"] == verdicts["children-missing"] == verdicts["expansion-off"] == "ok"
    assert verdicts["two-actions"] == "ok"
    loud = {name for name, verdict in verdicts.items() if verdict == "fail"}
    assert not loud & set(CHECKS), loud


@pytest.mark.parametrize(
    ("probabilities", "peak", "loss", "expected"),
    [
        ("stablemax", 0.3, 2.08, Verdict.FAIL),
        ("stablemax", 0.3, 0.2, Verdict.OK),
        ("stablemax", 0.02, 2.08, Verdict.OK),
        ("softmax", 0.3, 2.08, Verdict.OK),
    ],
)
def test_a_rate_that_threw_the_weights_away(
    folder: Path, probabilities: str, peak: float, loss: float, expected: Verdict
) -> None:
    """The loss of stablemax does not explode, so that a run which was thrown in warm-up looks as if it only learned
    nothing.
    """
    config = tiny.make_config(
        arch={**ARCH, "probabilities": probabilities}, training={"total_steps": 200, "lr_warmup_steps": 20}
    )
    lines = [
        {"step": step, "train/lm_loss": loss, "train/update_ratio": peak if step <= 10 else 0.002}
        for step in range(1, 201)
    ]
    evidence = Evidence(config, from_lines(lines), facts_of(folder))
    check = rates.TOO_HIGH
    assert look(check, evidence).finding.verdict is expected


@pytest.mark.parametrize("more", [[], pytest.param(["--probe"], marks=pytest.mark.slow)])
def test_a_config_is_diagnosed_before_its_run(folder: Path, tmp_path: Path, more: list[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"data:\n  path: {folder}\n")
    words = [word for word in tiny.as_overrides(arch=ARCH) if not word.startswith("data.")]
    said = tiny.invoke("diagnose", "--config", config, *words, "--json", *more)
    assert said.returncode in (0, 1), said.stderr
    assert "were not looked at" not in said.stdout
    verdicts = {one["id"]: one["verdict"] for one in json.loads(said.stdout)["checks"]}
    assert verdicts["answers-copied"] == "ok"
