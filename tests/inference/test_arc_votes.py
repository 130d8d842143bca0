"""`trm predict --votes`: the copies of a task that the model knows vote as in `trm eval`, without the data folder."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_puzzles
from made_tasks import write, write_subset

from trm_cli import predict_arc
from trm_core.data.puzzles.arc_held_out import read_held_out
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import DataError, UsageError
from trm_core.evaluation.arc_voting import Votes
from trm_core.inference import arc_votes
from trm_core.inference.arc_inputs import arc_inputs
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Answer
from trm_core.inference.sources import Asked

COPIES = 7  # with the task itself
PAIR = {"input": [[1, 2]], "output": [[2, 1]]}


def recoloured(seed: int, test: int = 1) -> dict[str, Any]:
    """A task that is learned quickly, at least in part: every colour becomes another one."""
    random = np.random.default_rng(seed)
    colours = np.array([0, *(1 + random.permutation(9))])
    grids = [random.integers(3, size=random.integers(1, 4, size=2)) for _ in range(3 + test)]
    pairs = [{"input": grid.tolist(), "output": colours[grid].tolist()} for grid in grids]
    return {"train": pairs[:3], "test": pairs[3:]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_subset(folder, "training", {"t1": recoloured(0), "t2": recoloured(3)})
    write_subset(folder, "evaluation", {"e1": recoloured(1, test=2), "e2": recoloured(2)})
    return folder


@pytest.fixture(scope="module")
def data(source: Path) -> Path:
    folder = source / "data"
    done = tiny.invoke("build-puzzles", "arc", source, "--augmentations", str(COPIES - 1), "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it answers with grids, on which some copies agree and others do not."""
    path = tmp_path_factory.mktemp("runs") / "arc"
    overrides = tiny.as_overrides(
        data={"path": data},
        arch={**tiny_puzzles.ARCH, "max_steps": 1, "H_cycles": 1, "num_heads": 1},
        dqn={"enabled": False},
        training={
            "run_dir": path, "total_steps": 40, "global_batch_size": 4, "base_lr": 2e-2, "puzzle_emb_lr": 0.1,
            "eval_interval": 1000,
        },
    )  # fmt: skip
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def evaluated(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `trm eval` says of the votes, and its submission."""
    done = tiny.invoke("eval", run, "--submission", run / "submission.json", "--json")
    assert done.returncode == 0, done.stderr
    submission = json.loads((run / "submission.json").read_text())
    attempts = {json.dumps(one) for inputs in submission.values() for pair in inputs for one in pair.values()}
    assert len(attempts) > 3, "answers differ, between tasks and between attempts"
    return json.loads(done.stdout)["arc"], submission


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor.load(run, device="cpu")


def answers_of(*arguments: object) -> dict[str, Any]:
    done = tiny.invoke("predict", *map(str, arguments), "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def attempts_in(found: dict[str, Any]) -> dict[str, Any]:
    """The answers in the form of a submission."""
    tasks: dict[str, Any] = {}
    for one in found["answers"]:
        assert one["test"] == len(tasks.setdefault(one["task"], []))
        tasks[one["task"]].append({name: one[name] for name in ("attempt_1", "attempt_2")})
    return tasks


def test_the_votes_are_those_of_an_evaluation(
    run: Path, data: Path, evaluated: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    arc, submission = evaluated
    out, tasks = (
        tmp_path / "mine.json",
        write(tmp_path / "tasks.json", json.loads((data / "test_puzzles.json").read_text())),
    )
    away = data.rename(tmp_path / "away")
    try:
        done = tiny.invoke("predict", tasks, "--model", run, "--votes", "100", "--out", out)
    finally:
        away.rename(data)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == submission
    assert f"two attempts at 3 test inputs of 2 tasks: {out}" in done.stdout
    assert f"{3 * COPIES} votes of never on 2 tasks with solutions: pass@1" in done.stdout
    found = answers_of(tasks, "--model", run, "--votes", "100")
    assert found["arc"] == arc
    assert any(max(one["votes"]) > 1 for one in found["answers"]), "some copies agree"
    again = tiny.invoke("predict", tasks, "--model", run, "--votes", "100", "--out", out)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_as_other_policies_and_beginnings_answer(run: Path, data: Path, tmp_path: Path) -> None:
    how = ["--policy", "act", "--max-steps", "3", "--restarts", "2"]
    done = tiny.invoke("eval", run, "--submission", tmp_path / "s.json", "--json", *how)
    assert done.returncode == 0, done.stderr
    found = answers_of(data / "test_puzzles.json", "--model", run, "--votes", COPIES, *how, "--batch", 5)
    assert found["arc"] == json.loads(done.stdout)["arc"]
    assert found["arc"]["policy"] == "act"
    assert attempts_in(found) == json.loads((tmp_path / "s.json").read_text())


def test_fewer_copies_are_the_first_ones(run: Path, data: Path, predictor: Predictor) -> None:
    folder = open_puzzles(data)
    rows = folder.read("test", slice(None))
    names = [folder.name_of(number) for number in rows["puzzles"].tolist()]
    votes = Votes()
    first = {
        task: [name for name in folder.names or [] if name.partition("|||")[0] == task][:3] for task in ("e1", "e2")
    }
    chosen = [row for row, name in enumerate(names) if name in first["e1"] + first["e2"]]
    answers = predictor.predict(tokens=rows["sketches"][chosen], puzzles=rows["puzzles"][chosen], policy="never")
    votes.add(
        [names[row] for row in chosen],
        rows["sketches"][chosen],
        np.array([answer.prediction for answer in answers]),
        np.array([answer.halt_probability for answer in answers]),
    )
    found = answers_of(data / "test_puzzles.json", "--model", run, "--votes", "3")
    assert found["arc"]["votes"] == 9
    assert attempts_in(found) == votes.result(read_held_out(data)).submission


def test_an_export_needs_no_run(
    run: Path, source: Path, evaluated: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """Nor are solutions needed."""
    done = tiny.invoke("export", run, "--format", "safetensors", "--out", tmp_path / "export")
    assert done.returncode == 0, done.stderr
    tasks = source / "made_evaluation_challenges.json"
    found = answers_of(tasks, "--model", tmp_path / "export", "--votes", "100")
    assert attempts_in(found) == evaluated[1]
    assert found["arc"]["pass_at"] is None
    assert not any("right" in one for one in found["answers"])


def test_lines_for_programs_and_grids_for_people(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ("predict", data / "test_puzzles.json", "--model", run, "--votes", "100")
    done = tiny.invoke(*call)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["row"], one["task"], one["test"], one["copies"]) for one in lines] == [
        (0, "e1", 0, COPIES), (1, "e1", 1, COPIES), (2, "e2", 0, COPIES),
    ]  # fmt: skip
    assert lines == answers_of(*call[1:])["answers"]
    assert "votes of never on 2 tasks with solutions: pass@1" in done.stderr
    monkeypatch.setattr(predict_arc, "is_terminal", lambda stream: True)
    first = lines[0]
    drawn = [" ".join(map(str, row)) for row in first["attempt_1"]]
    shown = tiny.invoke(*call).stdout.splitlines()
    assert shown[0] == f"e1, test input 0: {COPIES} copies asked"
    judged = "right" if first["right"][0] else "not right"
    assert shown[1] == f"attempt 1: {first['votes'][0]} votes, halt {first['halt_probability'][0]:.0%}, {judged}"
    assert shown[2 : 2 + len(drawn)] == drawn


def test_a_task_that_was_not_trained_on_is_a_guess(run: Path, predictor: Predictor, tmp_path: Path) -> None:
    file = write(tmp_path / "tasks.json", {"e2": {"test": [PAIR]}, "cccc": {"test": [PAIR]}})
    done = tiny.invoke("predict", file, "--model", run, "--votes", "100")
    assert done.returncode == 0, done.stderr
    known, guess = map(json.loads, done.stdout.splitlines())
    assert (known["copies"], guess["copies"]) == (COPIES, 1)
    assert "the model was not trained on cccc; answers with the blank identifier are guesses" in done.stderr
    (alone,) = predictor.ask([PAIR], policy="never")
    assert guess["halt_probability"] == [pytest.approx(alone.halt_probability, abs=1e-5)]


def test_a_name_may_stand_in_a_puzzle_or_be_that_of_the_file(predictor: Predictor, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({**PAIR, "puzzle": name}) for name in ("e2", "e1", "e2"))
    file = tmp_path / "lines.jsonl"
    file.write_text(lines)
    asked = arc_inputs(Asked((file,)), predictor, io.BytesIO())
    assert [(one.task, one.number) for one in asked] == [("e2", 0), ("e1", 0), ("e2", 1)]
    alone = write(tmp_path / "e1.json", {"test": [PAIR, {"input": [[3]]}]})
    asked = arc_inputs(Asked((alone,)), predictor, io.BytesIO())
    assert [(one.task, one.number) for one in asked] == [("e1", 0), ("e1", 1)]
    assert asked[1].pair.output is None


def test_an_input_that_comes_again_is_asked_once(run: Path, data: Path, tmp_path: Path) -> None:
    """In the task itself, as a submission has an answer for each, and in another line."""
    (one, two), (three,) = (read["test"] for read in json.loads((data / "test_puzzles.json").read_text()).values())
    plain = answers_of(data / "test_puzzles.json", "--model", run, "--votes", "100", "--batch", "4")
    asked = [("e1", one), ("e1", two), ("e1", one), ("e2", three), ("e1", two), ("e2", one)]
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(json.dumps({**pair, "puzzle": task}) for task, pair in asked))
    found = answers_of(file, "--model", run, "--votes", "100", "--batch", "4")
    assert found["arc"]["votes"] + found["arc"]["illegal"] == 4 * COPIES, "e2 was asked about an input of e1 as well"
    assert [(answer["task"], answer["test"]) for answer in found["answers"]] == [
        ("e1", 0), ("e1", 1), ("e1", 2), ("e2", 0), ("e1", 3), ("e2", 1),
    ]  # fmt: skip

    def told(number: int, answers: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in answers["answers"][number].items() if name not in ("row", "test")}

    for number, as_in in enumerate((0, 1, 0, 2, 1)):
        assert told(number, found) == told(as_in, plain)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([PAIR], "puzzle 0: names no task"),
        ([{**PAIR, "puzzle": 3}], "puzzle 0: is asked as 3, which is not the name of a task"),
        ([{**PAIR, "puzzle": "e1|||t3|||0213456789"}], "is not the name of a task"),
        ([{**PAIR, "puzzle": "<blank>"}], "is asked as '<blank>', which is not the name of a task"),
        ([{**PAIR, "puzzle": "cccc"}], "the model knows no puzzle called 'cccc'"),
        ({"e1": {"test": []}}, "no puzzles in it"),
        ({"e1": {"test": [{"input": [2] * 900, "output": [0] * 900}]}}, "output: no grid in the top left corner"),
    ],
)
def test_what_cannot_be_voted_on_is_named(run: Path, tmp_path: Path, document: object, message: str) -> None:
    done = tiny.invoke("predict", write(tmp_path / "f.json", document), "--model", run, "--votes", "3")
    assert done.returncode == 4
    assert message in done.stderr


def test_what_votes_are_not_for(run: Path, data: Path, sudoku_run: Path, trained_run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "e1.json", {"test": [PAIR]})
    for arguments, message in (
        ((file, "--model", sudoku_run), "votes are for ARC tasks"),
        ((file, "--model", trained_run), "votes are for ARC tasks"),
        ((data, "--model", run), "--submission FILE counts the votes of a folder"),
        ((file, "--model", run, "--decisions"), "--decisions is for single answers"),
        ((file, "--model", run, "--show"), "--votes is for answers, and --show"),
        ((file, "--model", run, "--split", "test"), "has no splits"),
        ((file, "--model", run, "--column", "x"), "--column is for raw samples, not for puzzles"),
        ((file, "--model", run, "--label", "x"), "--label is for raw samples, not for puzzles"),
        ((file, "--model", run, "--kind", "arc"), "--kind is for raw samples, not for puzzles"),
        ((file, "--model", run, "--row", "0"), "--row says which sample --show and --gif draw"),
        ((file, "--model", run, "--out", tmp_path / "none" / "s.json"), "there is no folder"),
    ):
        done = tiny.invoke("predict", *arguments, "--votes", "3")
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_a_model_must_know_its_tasks_by_name(predictor: Predictor, tmp_path: Path) -> None:
    asked, trained = Asked((write(tmp_path / "e1.json", {"test": [PAIR]}),)), predictor.trained
    with pytest.raises(DataError, match="does not record the names"):
        arc_inputs(asked, Predictor(replace(trained, identifiers=None)), io.BytesIO())
    arch = trained.config.arch.model_copy(update={"puzzle_emb_ndim": 0})
    blind = replace(trained, config=trained.config.model_copy(update={"arch": arch}))
    with pytest.raises(UsageError, match="has no embeddings of tasks"):
        arc_inputs(asked, Predictor(blind), io.BytesIO())


def test_two_tasks_with_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    one = json.dumps({"test": [PAIR]})
    file = tmp_path / "f.json"
    for text, where in (
        (f'{{"e1": {one}, "e1": {one}}}', "f.json: "),
        (f'{one}\n{{"e1": 0, "e1": {one}}}', "line 2: "),
    ):
        file.write_text(text)
        done = tiny.invoke("predict", file, "--model", run)
        assert done.returncode == 4
        assert f"{where}an object has the key 'e1' twice" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_between_answers(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    heard: list[int] = []

    def halt_probability(answer: Answer) -> float:
        heard.append(len(heard))
        if len(heard) == 3:
            os.kill(os.getpid(), number)
        return 0.5

    monkeypatch.setattr(arc_votes, "_halt_probability", halt_probability)
    out = tmp_path / "s.json"
    done = tiny.invoke("predict", data / "test_puzzles.json", "--model", run, "--votes", "100", "--out", out)
    assert done.returncode == code
    assert "stopped before all votes were counted" in done.stderr
    assert len(heard) == 3
    assert not list(tmp_path.iterdir())
