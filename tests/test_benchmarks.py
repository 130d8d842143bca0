"""The benchmarks run from their own command lines. Their figures are not judged here."""

from __future__ import annotations

import ast
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from forked import forked_workers, run_together, start_server

from benchmarks import ablation, learning_speed, loader, policy_wins, runs, sudoku
from benchmarks import start as start_of
from benchmarks.mutants import changes
from benchmarks.timing import alternate

ROOT = Path(__file__).parent.parent
NARROW = ["arch.hidden_size=32", "arch.num_heads=2", "arch.q_head_hidden_dim=32"]
TINY = [
    *NARROW,
    "training.total_steps=24",
    "training.predictor_steps=16",
    "training.lr_warmup_steps=5",
    "dqn.buffer_min_size=300",
    "data.build.augment_warps=1",
]


@pytest.fixture(autouse=True, scope="module")
def _built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(runs, "in_a_process", here)
        yield


def here(arguments: list[str], threads: int) -> tiny.Outcome:
    """Run `trm arguments` in this process, or in as many forked ones as --nproc says."""
    if "--nproc" not in arguments:
        return tiny.invoke(*arguments)
    at = arguments.index("--nproc")
    count, alone = int(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]
    ends = run_together(count, *alone, cwd=Path(os.environ["TRM_CACHE"]))
    return next((end for end in ends if end.returncode), ends[0])


@pytest.mark.slow
def test_quickstart_folds(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    where = ("--plot", plot, "--runs", tmp_path / "runs", "--threads", "1", "--folds", "0")
    record = run(tmp_path, "quickstart_folds", *where, "--", *TINY)
    assert record["digits"] == 360, "one fold"
    assert record["never"]["opened"] == 0
    assert record["all"]["opened"] == 16
    assert record["svm, all pixels"] > 97
    assert plot.stat().st_size > 10_000


def run(folder: Path, module: str, *arguments: str | Path) -> Any:
    """The record that a benchmark prints and writes. The benchmark and its trainings run in this process, because
    starting others would take longer than the test.
    """
    out, printed = folder / f"{module}.json", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(io.StringIO()):
        patch.setattr(sys, "argv", [module, *words(out, *arguments)])
        importlib.import_module(f"benchmarks.{module}").main()
    assert json.loads(printed.getvalue())
    return json.loads(out.read_text())


def words(out: Path, *arguments: str | Path) -> list[str]:
    """The arguments, with --out inserted before `--` if that is among them."""
    given = [str(argument) for argument in arguments]
    end = given.index("--") if "--" in given else len(given)
    return [*given[:end], "--out", str(out), *given[end:]]


def run_alone(folder: Path, module: str, *arguments: str | Path) -> Any:
    """The same for a benchmark that itself starts or forks processes."""
    out = folder / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *words(out, *arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)
    return json.loads(out.read_text())


def forked_module(command: list[str], **_: Any) -> SimpleNamespace:
    """Run `python -m module arguments` as a fork, without its start-up; what it printed."""
    start_server()
    ours, theirs = multiprocessing.get_context("forkserver").Pipe(duplex=False)
    given = (command[2], command[3:], theirs)
    process = multiprocessing.get_context("forkserver").Process(target=printed_by, args=given)
    process.start()
    theirs.close()
    printed = ours.recv()
    process.join()
    assert process.exitcode == 0
    return SimpleNamespace(stdout=printed)


def printed_by(module: str, arguments: list[str], pipe: Connection) -> None:
    sys.argv = [module, *arguments]
    with redirect_stdout(io.StringIO()) as printed:
        importlib.import_module(module).main()
    pipe.send(printed.getvalue())


def test_false_alarms(tmp_path: Path) -> None:
    """A table without rows, one that makes no task, and one with copies of its rows."""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "empty.csv").write_text("")
    (tables / "short.csv").write_text("a,b,c\n1,2,3\n")
    random = np.random.default_rng(0)
    rows = [(*random.standard_normal(4), n % 2) for n in range(300)]
    copies = [(*(value + 1e-4 for value in row[:4]), row[4]) for row in rows]
    lines = [",".join(map(str, row)) for row in rows + copies]
    (tables / "copied.csv").write_text("\n".join(["p,q,r,s,kind", *lines]))
    record = run(tmp_path, "false_alarms", tables)
    assert (record["tables"], record["with a failure"]) == (1, 1)
    assert set(record["failures"]["copied"]) == {"duplicate-across-splits"}


@pytest.mark.slow
def test_step_cost(tmp_path: Path) -> None:
    small = ("--hidden", "32", "--layers", "1", "--batch", "16", "--repetitions", "3")
    record = run(tmp_path, "step_cost", *small)
    for name in ("dqn over plain", "expand over plain", "expand over dqn"):
        assert 0.2 < record[name]["low"] <= record[name]["ratio"] <= record[name]["high"] < 20


@pytest.mark.slow
def test_save_cost(tmp_path: Path) -> None:
    record = run(tmp_path, "save_cost", "--saves", "1", "--batch", "4")
    assert record["parameters"] > 10_000_000
    assert record["checkpoint bytes"] > 200e6, "with a whole replay buffer"
    assert record["waited for, % of the interval"][0] > 0


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    small = [*TINY, "training.global_batch_size=16", "training.lr_warmup_steps=2"]
    record = run(tmp_path, "ranks", "--pairs", "1", "--steps", "6", "--", *small)
    assert set(record["samples per second"]) == {"1", "2"}


@pytest.mark.slow
def test_two_checkouts_take_turns(tmp_path: Path, capsule_file: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({**tiny.BASE, "data": {"path": str(capsule_file)}}))
    given = ("--config", config, "--rounds", "3", "--overrides", "training.log_interval=2")
    record = run(tmp_path, "versions", ROOT, *given)
    assert record["after / before"]["repetitions"] == 3
    assert record["after / before"]["low"] > 0
    assert all(value > 0 for value in record["milliseconds of processor time, median"].values())


@pytest.mark.slow
def test_ablation_keeps_finished_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        *NARROW,
        "training.log_interval=5",
        "training.lr_warmup_steps=2",
        "dqn.buffer_min_size=300",
        "data.build.augment_warps=1",
    ]
    monkeypatch.setattr(ablation, "COMMON", [*ablation.COMMON, *small])
    rows = ("--steps", "20", "--seeds", "0", "--rows", "baseline")
    first = run(tmp_path, "ablation", *rows)
    more = run(tmp_path, "ablation", *rows, "+ DQN with EXPAND")
    assert more["cells"]["digits|baseline|0"] == first["cells"]["digits|baseline|0"]
    table = more["table"]["digits"]
    assert table["baseline"]["opened"][0] == 0
    assert table["baseline"]["points over the baseline"][0] == 0
    assert set(table) == {"baseline", "+ DQN with EXPAND"}


@pytest.mark.slow
def test_learning_speed(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    record = run(tmp_path, "learning_speed", "quickstart", *TINY, "--seeds", "1", "--plot", plot)
    assert plot.stat().st_size > 10_000
    first, now = record["runs"]
    assert (first["settings"], now["settings"]) == ("first", "now")
    for one in (first, now):
        (point,) = one["points"]
        assert (point["step"], one["reached"]) == (24, {"learned": None, "all": None})
        assert 0 < point["seconds"] < 60
        assert record["final"][one["settings"]]["all"][0] == point["all"] > 0


@pytest.mark.slow
def test_sudokus_of_a_finished_run(sudoku_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = tmp_path / "curve.png"
    points = run(tmp_path, "sudoku", "curve", sudoku_run, "--plot", plot)
    assert plot.stat().st_size > 10_000
    assert [point["step"] for point in points] == [150]
    monkeypatch.setattr(sudoku, "THRESHOLDS", (-100.0, 3.0))
    (found,) = sudoku.halting([sudoku_run])
    assert (found["cells"], found["training steps"]) == (16, 150)
    at_once, usual, all_steps = found["scores"].values()
    assert at_once["steps"] == 1
    assert usual == points[0]["act"]
    assert all_steps == points[0]["never"]


def test_a_goal_counts_from_where_it_is_kept() -> None:
    points = [{"seconds": t, "all": accuracy} for t, accuracy in ((1, 0.97), (2, 0.9), (3, 0.966), (4, 0.98))]
    assert learning_speed.when(points, "all", 0.965) == 3
    assert learning_speed.when(points[:2], "all", 0.965) is None


@pytest.mark.slow
def test_adaptive_inference_and_the_learned_policy(tmp_path: Path) -> None:
    where = tmp_path / "run"
    settings = [*TINY, "arch.H_cycles=2", "arch.max_steps=3", "arch.enable_adaptive_hcycles=true"]
    runs.train(ROOT / "configs" / "quickstart.yaml", where, settings)
    record = run(tmp_path, "adaptive_inference", where, where, "--repetitions", "1")
    one, other = record["runs"]
    assert one["all samples"]["steps"]["all"] == one["T"]
    assert one["easy half"]["cycles"]["all"] == 2 * one["T"]
    faster = [found["easy half"]["times faster"] for found in (one, other)]
    found = record["easy half"]["times faster"]
    assert found["ratio"] == pytest.approx((faster[0]["ratio"] + faster[1]["ratio"]) / 2)
    assert (found["low"], found["high"]) == (min(f["low"] for f in faster), max(f["high"] for f in faster))
    policy = run(tmp_path, "learned_policy", "--run", f"digits={where}")
    assert policy["digits"]["seeds"] == 1


@pytest.mark.slow
def test_price_conditioning(tmp_path: Path) -> None:
    """Both runs are evaluated at the price of the single-price run."""
    where = ("--runs", tmp_path / "runs", "--seeds", "0", "--factors", "20")
    line = run(tmp_path, "price_conditioning", *where, "--", *TINY)["prices"]["20"]
    assert line["level"] == pytest.approx(20 * 0.00025 * 4)
    for name, (difference, _) in line["difference"].items():
        assert difference == pytest.approx(line["conditioned"][name][0] - line["single"][name][0])
    for one in (line["conditioned"], line["single"]):
        terminal = -0.5 + 1.5 * one["accuracy, %"][0] / 100
        expected = terminal - 0.01 * (one["steps"][0] - 1) - line["level"] * one["opened"][0]
        assert one["return"][0] == pytest.approx(expected)


@pytest.mark.slow
def test_capsule_store_memory_stays_below_its_limit(tmp_path: Path) -> None:
    """A file of 370 MB is built and read with less memory than its size."""
    command = [sys.executable, "benchmarks/capsule_store_memory.py", "--rows", "6000", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    assert record["build"]["mb_beyond_imports"] < 300
    assert record["iterate"]["mb_beyond_imports"] < 300


@pytest.mark.slow(minutes=2)
def test_policy_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a barely trained model and few settings; checks only what does not depend on learning."""
    out, plot = tmp_path / "wins.json", tmp_path / "curves.png"
    for name, values in (("FACTORS", (1.0, 2.0)), ("LEVELS", (0.0, 0.3, 0.9)), ("CAPS", (1, 4))):
        monkeypatch.setattr(policy_wins, name, values)
    arguments = ["--out", out, "--plot", plot, "--runs", tmp_path / "runs", "--seeds", "3", "--", *TINY]
    monkeypatch.setattr(sys, "argv", ["policy_wins", *map(str, arguments)])
    policy_wins.main()
    record = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert (record["seeds"], record["test digits"]) == (1, 539)
    assert 0.3 < record["blank"] < 0.5
    assert record["all"][0]["spent on blank samples"] == 8
    for line in record["capped"]:
        cap, _ = line["setting"]
        assert line["spent"] <= cap
        assert line["steps"] <= cap + 1, "the rule halts once the cap is reached"
    for rule in ("threshold", "capped"):
        points = record[f"learned against {rule}"]["points at equal spending"]
        assert [point["factor"] for point in points] == [line["setting"] for line in record["learned"]]
        assert all(point["low"] <= point["mean"] + 1e-9 and point["mean"] <= point["high"] + 1e-9 for point in points)
    assert plot.stat().st_size > 10_000


def test_differences_at_equal_spending_are_read_off_the_rules_upper_hull() -> None:
    import numpy as np

    from benchmarks.policy_wins import at_equal_spending, upper_hull

    spent = np.array([3.0, 0.0, 2.0, 1.0, 4.0, 2.0])
    accuracy = np.array([0.9, 0.1, 0.5, 0.5, 0.9, 0.6])
    # (2, 0.5) and (2, 0.6) lie below the line from (1, 0.5) to (3, 0.9); (4, 0.9) costs more than (3, 0.9).
    assert upper_hull(spent, accuracy).tolist() == [1, 3, 0]

    def samples(spent: list[float], accuracy: list[float]) -> dict[str, np.ndarray]:
        """Two seeds with three digits, all equal."""
        return {
            name: np.tile(np.array(values)[:, None, None], (1, 2, 3))
            for name, values in (("spent", spent), ("accuracy", accuracy))
        }

    rule, learned = samples([3.0, 1.0], [0.9, 0.5]), samples([2.0, 5.0], [0.8, 0.8])
    found = at_equal_spending(learned, rule, np.array([0, 0]), np.array([2, 1, 1]))
    np.testing.assert_allclose(found, [0.1, -0.1])


@pytest.mark.slow(minutes=2)
def test_loader_build_start_and_growth_at_a_tiny_size(
    tmp_path: Path, trained_run: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "subprocess", SimpleNamespace(run=forked_module))
    sizes = ("--rows", "200", "400", "--turns", "2", "--batch", "32", "--processes", "1")
    growths = run(tmp_path, "loader", *sizes)["peak growth, MB"]
    assert {name: set(found) for name, found in growths.items()} == {
        name: {"200", "400"} for name in ("loader", "in memory")
    }
    messages = tmp_path / "messages.tsv"
    lines = [f"{'spam' if n % 3 else 'ham'}\tword{n % 7} other{n % 11} third{n % 5}" for n in range(60)]
    messages.write_text("\n".join(lines))
    with forked_workers():
        build = run(tmp_path, "build", "--rows", "120", "--rounds", "1", "--text", messages)
    for kind in ("pictures", "messages"):
        assert build[kind]["overhead"]["ratio"] > -1
        assert set(build[kind]["seconds by stage"]["two"]) == {"scan", "fit", "encode", "write", "probe"}
    # One start of each, with a config whose data need not be built.
    monkeypatch.setattr(start_of, "alternate", partial(alternate, warmup=0))
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps({**tiny.BASE, "data": {"path": str(capsule_file)}}))
    monkeypatch.setattr(start_of, "QUICKSTART", config)
    start = run(tmp_path, "start", "--rounds", "1", "--heavy-rounds", "1", "--lines", "300", "--run", trained_run)
    assert start["light"]["trm --help - python -c pass"]["seconds"]["difference"] > 0
    plot = tmp_path / "growth.png"
    growth = run(tmp_path, "growth", "--quick", "--rounds", "1", "--only", "B", "replay capacity", "--plot", plot)
    assert growth["growth"]["B"]["sizes"] == [4, 8, 16]
    assert sum(growth["growth"]["B"]["parts of the largest"].values()) == pytest.approx(1, abs=0.01)
    assert plot.stat().st_size > 10_000


def test_the_table_says_what_it_cannot_run() -> None:
    from benchmarks.table import JOBS, ROWS, Given, table

    names = [job.name for job in JOBS]
    assert len(set(names)) == len(names)
    assert {row.job for row in ROWS} == set(names), "every row has its job, every job a row"
    for job in JOBS:
        assert (ROOT / "benchmarks" / f"{job.module}.py").is_file()
    without = {job.name: why for job in JOBS if (why := job.needs(Given())) is not None}
    assert "--public" in without["puzzle_step_compiled"]
    text = table({}, without)
    assert text.count("not run: needs") == sum(row.job in without for row in ROWS)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(0.8, 0.7, 0.85, "met"), (0.95, 0.93, 1.0, "missed"), (0.95, 0.8, 1.0, "missed, within the interval")],
)
def test_the_verdict_is_of_the_median(value: float, low: float, high: float, verdict: str) -> None:
    from benchmarks.table import Figure, Row

    row = Row("what", "against", "job", lambda record: Figure(value), 0.9)
    assert row.verdict(Figure(value, low, high)) == verdict
    assert row.target() == "<= 0.9"


def test_records_are_read_where_the_benchmarks_write_them() -> None:
    """The records of the last run have every figure that the table asks for."""
    from benchmarks.table import ROWS

    folder = ROOT / "benchmarks" / "results"
    for row in ROWS:
        path = folder / f"{row.job}.json"
        if path.exists():
            assert row.figure(json.loads(path.read_text())).value == pytest.approx(0, abs=1e6), row.what


@pytest.mark.slow
def test_mutation(tmp_path: Path) -> None:
    found = run_alone(tmp_path, "mutation", "--mutants", "2", "--only", "trm_core/dqn/rewards.py")["modules"]
    rewards = found["trm_core/dqn/rewards.py"]
    assert rewards["drawn"] == 2 < rewards["possible"]
    assert rewards["killed"] + len(rewards["survivors"]) == 2
    assert rewards["share"]["low"] <= rewards["share"]["killed"] <= rewards["share"]["high"]


@pytest.mark.parametrize(
    ("code", "mutants"),
    [
        ("a < 2", ["a <= 2", "a >= 2", "a < 3"]),
        ("x = not a == b and c", ["x = not a == b or c", "x = not not a == b and c", "x = not a != b and c"]),
        ("def f(a: Literal[1], b=None) -> Literal[2]:\n    return a", ["b=0", "return None"]),
        ("@d(1)\nclass C:\n    x: int = True", ["x: int = False"]),
        ("x.a += 1", ["pass", "x.a -= 1", "x.a += 2"]),
        ("f(run / 'x', g[0], strict=True)", ["pass", "f(run / 'x', g[1], strict=True)"]),
        ("if TYPE_CHECKING:\n    x += 1", []),
        ("raise E(f'{1 + 2}')", []),
    ],
)
def test_a_mutant_is_one_small_change(code: str, mutants: list[str]) -> None:
    tree, found = ast.parse(code), []
    for node, name, value in changes(tree):
        before = getattr(node, name)
        setattr(node, name, value)
        found.append(ast.unparse(tree))
        setattr(node, name, before)
    assert len(found) == len(mutants)
    assert all(mutant in text for mutant, text in zip(mutants, found, strict=True)), found
    assert ast.unparse(tree) == ast.unparse(ast.parse(code))
