"""Several processes evaluate together: what one would find, and one decision to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked import run_together
from ranks import on_ranks

import trm_core.prepare
from trm_cli import profile
from trm_core.devices import pick_device
from trm_core.distributed.collectives import rank
from trm_core.errors import CheckpointError, ConfigError, StoppedEarly, TrmError
from trm_core.evaluation import evaluate, report
from trm_core.evaluation.evaluate import EvalRequest, evaluate_run
from trm_core.evaluation.load import load_run

SMALL = 7  # rows of a batch: six of them in the 40 validation rows


def scores(number: int, world: int, run: str, batch: int) -> Any:
    """Of all policies, at two prices, with curves and counts by class."""
    report.EVAL_BATCH = batch
    seen: list[tuple[int, int]] = []
    request = EvalRequest(prices=[0.001, 0.01], curves=True, by_class=True, split="validation")
    record = evaluate_run(Path(run), request, on_rows=lambda done, total: seen.append((done, total)))
    assert all(0 <= done <= total for done, total in seen)
    return json.loads(json.dumps(record))


@pytest.mark.parametrize(("world", "batch"), [(2, SMALL), pytest.param(3, 512, marks=pytest.mark.slow)])
def test_several_processes_find_what_one_does(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, batch: int
) -> None:
    """Also where there is one batch, and nothing to do for the others."""
    monkeypatch.setattr(report, "EVAL_BATCH", report.EVAL_BATCH)  # put back
    alone = scores(0, 1, str(trained_run), batch)
    assert len({score["accuracy"] for score in alone["scores"]}) > 1
    for record in on_ranks(world, tmp_path / "together", scores, str(trained_run), batch):
        assert record == alone


def stopped(number: int, world: int, run: str, stops: int) -> list[Any]:
    """What a process of which one is told to stop ends with: exit code and message."""
    report.EVAL_BATCH = SMALL

    def on_rows(done: int, total: int) -> None:
        if rank() == stops:
            raise StoppedEarly("told to stop")

    try:
        evaluate_run(Path(run), EvalRequest(policies=["never"]), on_rows=on_rows)
    except TrmError as error:
        return [int(error.exit_code), error.message]
    return []


@pytest.mark.parametrize("stops", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_has_to_stop_stops_all(trained_run: Path, tmp_path: Path, stops: int) -> None:
    found = on_ranks(2, tmp_path / "ranks", stopped, str(trained_run), stops)
    assert found == [[75, "told to stop"]] * 2


def without_gpu(number: int, world: int, run: str, command: str) -> list[Any]:
    """What each of two processes ends with if the second has no GPU of its own."""

    def choose(*arguments: Any) -> Any:
        if rank() == 1:
            raise ConfigError("no GPU of its own")
        return pick_device("cpu")

    evaluate.pick_device = trm_core.prepare.pick_device = choose
    try:
        if command == "eval":
            evaluate_run(Path(run), EvalRequest(policies=["never"]))
        else:
            profile.command([], Path(run) / "config.yaml")
    except TrmError as error:
        return [int(error.exit_code), error.message]
    return []


@pytest.mark.parametrize("command", ["eval", "profile"])
def test_a_process_without_a_gpu_ends_all_with_the_reason(trained_run: Path, tmp_path: Path, command: str) -> None:
    """The first process would be left waiting for it otherwise, and report that another one is gone."""
    assert on_ranks(2, tmp_path / "ranks", without_gpu, str(trained_run), command) == [[3, "no GPU of its own"]] * 2


def late(number: int, world: int, run: str, lag: float) -> list[Any]:
    """Steps that the processes load where the second one sees the checkpoint only at its third look."""
    looks = 0

    def looked(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        if rank() == 1 and looks < 3:
            raise CheckpointError("nothing there")
        return load_run(*arguments)

    evaluate.load_run, evaluate._LAG_S = looked, lag
    try:
        return [evaluate.load_alike(Path(run), torch.device("cpu"), "latest").step, looks]
    except TrmError as error:
        return [int(error.exit_code), error.message]


@pytest.mark.slow
def test_a_file_system_may_lag(trained_run: Path, tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path / "seen", late, str(trained_run), 20.0) == [[60, 1], [60, 3]]
    for code, message in on_ranks(2, tmp_path / "unseen", late, str(trained_run), -1.0):
        assert code == 4
        assert message.endswith("process 1 sees nothing there, but the first process a checkpoint of step 60")


@pytest.mark.slow
def test_the_command_in_two_processes(trained_run: Path, sudoku_run: Path, tmp_path: Path) -> None:
    for run in (trained_run, sudoku_run):
        alone = tiny.invoke("eval", run, "--json")
        assert alone.returncode == 0, alone.stderr
        first, second = run_together(2, "eval", run, "--json", cwd=tmp_path)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr
        assert json.loads(first.stdout) == json.loads(alone.stdout)
        assert not second.stdout, "one process speaks"
    failed = tiny.run_trm("eval", str(trained_run), "--json", "--min-accuracy", "1", "--nproc=2", cwd=tmp_path)
    assert json.loads(failed.stdout), "one document"
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.count("is below 1") == 1
    odd = run_together(2, "eval", trained_run, "--policy", "best", cwd=tmp_path)
    assert [one.returncode for one in odd] == [2, 2]
    assert "".join(one.stderr for one in odd).count("unknown policy") == 1
