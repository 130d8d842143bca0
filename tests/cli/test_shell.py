"""The shell around the commands: what it imports, how errors become lines and exit codes, what goes to which stream."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from trm_cli import build_capsules, console
from trm_cli import eval as evaluating
from trm_cli.commands import Built, group_of
from trm_cli.config_options import load_from_cli, print_config
from trm_cli.console import print_json, table
from trm_cli.progress import Rate, progress
from trm_core.config.schema_keys import choices

HEAVY = ["torch", "wandb", "sklearn", "h5py", "matplotlib", "pydantic"]

# A command of its own beside the real ones, so that every kind of error passes through the real shell.
FAILING = """
import errno, os, sys
from typing import Annotated
import typer
from trm_cli.main import COMMANDS, main
from trm_core.config import InvalidConfig, load_config
from trm_core.errors import *

class OutOfMemoryError(RuntimeError):
    pass

def command(kind: str) -> None:
    if kind == "done":
        print("result")
    elif kind == "flood":
        for i in range(100_000):
            print("x" * 100)
    elif kind == "config":
        load_config(None, ["dqn.gamma=2", "nonsense"])
    elif kind == "exit":
        raise typer.Exit(3)
    elif kind == "parameter":
        raise typer.BadParameter("--price must not be negative")
    elif kind == "unwritable":
        open("/proc/version/x", "w")
    else:
        raise {
            "data": DataError("file.h5 is damaged", hint="build it again"),
            "check": CheckFailed("accuracy 0.5 is below 0.9"),
            "diverged": DivergedError("loss is NaN at step 7"),
            "early": StoppedEarly("stopped at step 5, state saved"),
            "interrupt": KeyboardInterrupt(),
            "memory": MemoryError(),
            "torch": OutOfMemoryError("CUDA out of memory"),
            "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "disk": OSError(errno.ENOSPC, "No space left on device", "big.h5"),
            "hdf5": OSError("Can't write data (file write failed: errno = 28, error message = 'No space')"),
            "bug": IndexError("list index out of range\\nsecond line"),
            "pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
            "escape": DataError("name \\x1b[31mred"),
        }[kind]

COMMANDS["fail"] = command
main()
"""


def run_failing(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", FAILING, "fail", *arguments], capture_output=True, text=True, check=False, **options
    )


def run_trm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trm_cli.main", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("kind", "code", "stderr"),
    [
        ("done", 0, ""),
        ("data", 4, "error: file.h5 is damaged\nhint: build it again\n"),
        ("check", 1, "failed: accuracy 0.5 is below 0.9\n"),
        ("diverged", 5, "error: loss is NaN at step 7\n"),
        ("early", 75, "stopped: stopped at step 5, state saved\n"),
        ("interrupt", 130, "stopped: interrupted\n"),
        (
            "config",
            3,
            "error: command line: expected KEY=VALUE such as training.base_lr=1e-4; got 'nonsense'\n"
            "error: command line: dqn.gamma: expected a number >= 0 and <= 1; got 2\n",
        ),
        ("escape", 4, "error: name \\x1b[31mred\n"),
    ],
)
def test_errors_become_lines_and_exit_codes(kind: str, code: int, stderr: str) -> None:
    done = run_failing(kind)
    assert (done.returncode, done.stderr) == (code, stderr)
    assert done.stdout == ("result\n" if kind == "done" else "")


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("memory", 6, "out of memory"),
        ("torch", 6, "out of memory"),
        ("cpu", 6, "out of memory"),
        ("disk", 6, "no space left"),
        ("hdf5", 6, "no space left"),
        ("unwritable", 2, "error: cannot use /proc/version/x"),
        ("bug", 70, "error: internal error: IndexError: list index out of range\nhint: this is a bug in trm"),
        ("pipe", 70, "internal error: BrokenPipeError"),
    ],
)
def test_other_exceptions(kind: str, code: int, words: str) -> None:
    done = run_failing(kind)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(("kind", "code"), [("early", 75), ("interrupt", 130)])
def test_a_second_signal_does_not_change_how_it_ends(kind: str, code: int) -> None:
    """It comes while Python shuts down, which takes most of a second where torch was imported."""
    late = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
    done = subprocess.run([sys.executable, "-c", late + FAILING, "fail", kind], capture_output=True, check=False)
    assert done.returncode == code


def test_debug_shows_the_traceback() -> None:
    done = run_failing("data", "--debug")
    assert done.returncode == 4
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: file.h5 is damaged\nhint: build it again\n")


def test_usage_errors_end_with_2() -> None:
    assert run_failing("done", "--no-such-option").returncode == 2
    unknown = run_trm("tarin")
    assert unknown.returncode == 2
    assert "train" in unknown.stderr
    assert unknown.stdout == ""


def test_what_a_command_raises_of_typer_stays_typers() -> None:
    assert (run_failing("exit").returncode, run_failing("exit").stderr) == (3, "")
    wrong = run_failing("parameter")
    assert wrong.returncode == 2
    assert "--price must not be negative" in wrong.stderr
    assert "internal" not in wrong.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", FAILING, "fail", "flood"], stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    assert (process.wait(), stderr) == (0, b"")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom trm_cli.main import main\nsys.argv = ['trm', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for command in ("build-capsules", "inspect-dataset", "train", "eval"):
        assert command in done.stdout


def test_it_is_there_without_its_script() -> None:
    command = [sys.executable, "-m", "trm_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("trm ")


def test_every_command_explains_itself() -> None:
    for command in ("build-capsules", "inspect-dataset", "train", "eval"):
        done = run_trm(command, "--help")
        assert done.returncode == 0
        assert "--debug" in done.stdout


@pytest.mark.parametrize(
    ("function", "option", "key"),
    [
        (build_capsules.command, "encoder", "data.build.encoder"),
        (build_capsules.command, "kind", "data.build.kind"),
        (evaluating.command, "selector", "dqn.expansion_selector"),
    ],
)
def test_options_name_all_choices_of_their_keys(function: Callable[..., None], option: str, key: str) -> None:
    _, about = get_args(get_type_hints(function, include_extras=True)[option])
    missing = [name for name in choices(key) if name != "auto" and name not in re.findall(r"[\w-]+", about.help)]
    assert not missing, f"not in the help of --{option}"


def test_table_off_a_terminal_keeps_whole_values(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    table("results", ["policy", "accuracy"], [["learned", 0.96512345], [long, None]])
    out = capsys.readouterr().out
    assert out == f"results\n{'policy':<200}  accuracy\n{'learned':<200}  0.9651\n{long}  -\n"


def test_print_json_is_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": Path("x"), "e": (True, None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 0.5, "c": [0, 1], "d": "x", "e": [True, None]}


class Clock:
    """Seconds that only a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_off_a_terminal_prints_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress("training", 100, every=10, clock=clock) as p:
        for step in range(41):
            p.update(step, loss=0.123456)
            clock.now += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "training 10/100 (10%) 1/s ETA 0:01:30 loss=0.1235",
        "training 20/100 (20%) 1/s ETA 0:01:20 loss=0.1235",
        "training 30/100 (30%) 1/s ETA 0:01:10 loss=0.1235",
        "training 40/100 (40%) 1/s ETA 0:01:00 loss=0.1235",
    ]


def test_progress_always_says_where_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", None) as p:
        p.update(7)
    assert capsys.readouterr().err == "reading 7\n"


def test_rate_starts_at_a_resumed_count_and_forgets() -> None:
    clock = Clock()
    rate = Rate(clock)
    rate.add(1000)
    assert rate.per_second() is None
    clock.now = 10
    rate.add(1020)
    assert rate.per_second() == pytest.approx(2)
    for second in range(11, 200):
        clock.now = second
        rate.add(1020 + 5 * (second - 10))
    assert rate.per_second() == pytest.approx(5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    console.stderr_console.cache_clear()
    try:
        with progress("training [x]", 10) as p:
            p.update(5, loss=0.5)
            console.warn("look [bold]here[/bold]")
            print("result")
    finally:
        console.stderr_console.cache_clear()
    shown = screen.getvalue()
    assert "5/10" in shown
    assert "training [x]" in shown
    assert "look [bold]here[/bold]" in shown
    assert "\x1b[" in shown
    assert "result" not in shown


def test_config_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: '1e-4'\nloss_weights: {vq_loss: 1}\n")
    loaded = load_from_cli(path, ["dqn.gamma=0.5"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("note: loss_weights.vq_loss has no effect")
    print_config(loaded)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["name"] == ["'1e-4'", f"{path}:1"]
    assert rows["dqn.gamma"] == ["0.5", "override"]
    assert rows["dqn.lr"] == ["null", "default"]
    print_config(loaded, json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["dqn.gamma"] == {"value": 0.5, "origin": "override"}


def test_logs_do_not_use_control_codes_off_a_terminal() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "PYTHONPATH": os.getcwd()}
    code = "from trm_cli.console import log, warn; log('a\\nb'); warn('c')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "a\\nb\nwarning: c\n"


LOGGING = """
import sys
from trm_cli.console import log, out, print_json
from trm_cli.main import COMMANDS, main

def command(kind: str) -> None:
    for i in range(1000):
        log("x" * 100)
    assert open(sys.executable).fileno() > 2, "a file took the place of a stream"
    print_json("the result") if kind == "json" else out("the result")

COMMANDS["log"] = command
main()
"""


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2> >(true)", "2>&- <&-", ""])
def test_a_log_that_nobody_takes_ends_nothing(stderr: str) -> None:
    """It lies on a full disk, its reader has left, or there is none."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {stderr}', "bash", sys.executable, "-c", LOGGING, "log", "text"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the result\n"), done.stderr


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_terminal_that_is_gone_ends_nothing(kind: str) -> None:
    """It outlived the connection by `trap "" HUP`, say."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", "import os\nos.read(0, 1)\n" + LOGGING, "log", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, text=True) as process:
        os.close(theirs)
        os.close(ours)
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("kind", ["text", "json"])
def test_without_stdout_the_work_is_done(streams: str, kind: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$@" {streams}', "bash", sys.executable, "-c", LOGGING, "log", kind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_help_lists_commands_without_building_one() -> None:
    """To build them all takes longer than the rest of the page."""

    def refuse(callback: object) -> NoReturn:
        raise AssertionError

    def serve() -> None:
        """Answer requests. More on that."""

    one = typer.Typer(cls=group_of(Built({"serve": serve}, refuse)), rich_markup_mode=None)
    one.callback()(lambda: None)
    done = CliRunner().invoke(one, ["--help"])
    assert done.exit_code == 0
    assert "serve  Answer requests." in done.stdout
    assert isinstance(CliRunner().invoke(one, ["serve"]).exception, AssertionError)


def test_a_table_that_a_narrow_terminal_would_fold_is_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    columns, rows = ["policy", "accuracy %", "steps"], [("learned " * 4, "97.35", 1.5), ("all", "98.00", None)]
    monkeypatch.setenv("COLUMNS", "30")
    table("scores", columns, rows)
    first = f"policy: {'learned ' * 4}\naccuracy %: 97.35\nsteps: 1.5\n"
    assert capsys.readouterr().out == f"scores\n{first}\npolicy: all\naccuracy %: 98.00\nsteps: -\n\n"
    monkeypatch.setenv("COLUMNS", "45")  # only the long text is folded
    table("scores", columns, rows)
    assert "│      97.35 │   1.5 │" in capsys.readouterr().out
