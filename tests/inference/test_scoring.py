"""`trm predict` from its command line: the predictor's answers, killed and gone on with, and what it leaves."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from forked import Forked

from trm_core.data.store import open_capsules
from trm_core.inference import sources
from trm_core.inference.predictor import Predictor

ROWS = 600


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_capsules(tmp_path_factory.mktemp("large") / "large.h5", {"train": 30, "test": ROWS}, seed=5)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_the_predictors_answers(trained_run: Path, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    done = tiny.invoke("predict", large, "--model", trained_run, "--out", out, "--probabilities", "--decisions")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ROWS} answers: {out}")
    with open_capsules(large) as file:
        fields = file.read("test", slice(0, ROWS), ["sketches", "children"])
    expected = Predictor.load(trained_run, device="cpu").predict(**fields)
    found = lines(out)
    assert [line.pop("row") for line in found] == list(range(ROWS))
    for answer, line in zip(expected, found, strict=True):
        record = answer.as_record(probabilities=True)
        assert (line["prediction"], line["steps"], line["opened"]) == (
            answer.prediction[0],
            answer.steps,
            list(answer.opened),
        )
        assert line["probabilities"] == pytest.approx(record["probabilities"], abs=2e-6)
        assert [d["action"] for d in line["decisions"]] == [d.action for d in answer.decisions]
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl"}


def test_arrays_and_capsules_give_the_same(trained_run: Path, large: Path, tmp_path: Path) -> None:
    with open_capsules(large) as file:
        np.savez(tmp_path / "samples.npz", **file.read("test", slice(0, 200), ["sketches", "children", "labels"]))
    for source, name in ((tmp_path / "samples.npz", "a"), (large, "b")):
        done = tiny.invoke("predict", source, "--model", trained_run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "a") == lines(tmp_path / "b")[:200]


def test_only_opened_detail_is_read(trained_run: Path, large: Path, tmp_path: Path, monkeypatch: Any) -> None:
    read: list[tuple[int, int]] = []
    original = sources._child
    monkeypatch.setattr(sources, "_child", lambda f, s, row, c: read.append((row, c)) or original(f, s, row, c))
    done = tiny.invoke("predict", large, "--model", trained_run, "--out", tmp_path / "a", "--policy", "threshold")
    assert done.returncode == 0, done.stderr
    opened = [(line["row"], capsule) for line in lines(tmp_path / "a") for capsule in line["opened"]]
    assert sorted(read) == sorted(opened)
    assert opened


@pytest.fixture(scope="module")
def whole(trained_run: Path, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a call that nobody stops writes."""
    out = tmp_path_factory.mktemp("whole") / "whole"
    done = tiny.invoke("predict", large, "--model", trained_run, "--batch", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_call_goes_on(trained_run: Path, large: Path, whole: Path, tmp_path: Path, number: int) -> None:
    command = ["predict", large, "--model", trained_run, "--batch", "2"]
    process = Forked(*command, "--out", tmp_path / "a", cwd=tmp_path)
    part = tmp_path / "a.part"
    for _ in range(1200):
        if part.exists() and part.stat().st_size > 2000:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[signal.Signals(number)], (
        errors
    )
    assert 0 < len(part.read_text().splitlines()) < ROWS
    with part.open("a") as file:
        file.write('{"row": 17')  # half a line, as a full disk leaves it
    done = tiny.invoke(*command, "--out", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert "continued after row" in done.stderr
    assert [line["row"] for line in lines(tmp_path / "a")] == list(range(ROWS))
    for a, b in zip(lines(tmp_path / "a"), lines(whole), strict=True):
        assert a["prediction"] == b["prediction"]
        assert a["confidence"] == pytest.approx(b["confidence"], abs=2e-6)
    assert not list(tmp_path.glob("*.part*"))


def test_another_question_does_not_go_on(trained_run: Path, large: Path, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_text('{"row": 0}\n')
    (tmp_path / "a.part.json").write_text("{}")
    done = tiny.invoke("predict", large, "--model", trained_run, "--out", tmp_path / "a")
    assert done.returncode == 2
    assert "was written with another model" in done.stderr
    assert (tmp_path / "a.part").read_text() == '{"row": 0}\n'


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "nothing"], 2, "no split 'nothing'"),
        (["--label", "y"], 2, "--label is for raw samples, not for a capsule file"),
        (["--row", "3"], 2, "--row says which sample --show and --gif draw"),
        (["--policy", "best"], 2, "choose from learned"),
        (["--price", "-1"], 2, "not above 0"),
        (["--model", "nowhere"], 4, "nowhere is not a run directory"),
    ],
)
def test_mistakes_are_named(
    trained_run: Path, large: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", trained_run]
    done = tiny.invoke("predict", large, *model, "--out", tmp_path / "a", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_leaves_nothing(trained_run: Path, tmp_path: Path) -> None:
    wider = tiny.write_capsules(tmp_path / "wider.h5", {"train": 30, "test": 30}, dim=5)
    done = tiny.invoke("predict", wider, "--model", trained_run, "--out", tmp_path / "a")
    assert done.returncode == 4
    assert "sketches have shape [30, 4, 5], the model takes [30, 4, 3]" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["wider.h5"]
