"""The real TensorBoard and Weights & Biases, with their disk full and their processes killed or stopped."""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from trm_core.config.schema import Config
from trm_core.errors import ConfigError
from trm_core.training import third_party
from trm_core.training.guarded import Guarded
from trm_core.training.loggers import open_loggers
from trm_core.training.third_party import TensorBoard


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulators.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(p.step, p.value) for p in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def steps_logged(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    said: list[str] = []
    for first in (0, 3):  # a run and its resumption
        guarded = Guarded("TensorBoard", TensorBoard(tmp_path / "tensorboard"), said.append)
        for step in range(first, first + 3):
            guarded.log(step, {"train/loss": step / 2, "eval/accuracy": float("nan")})
        guarded.close()
    assert said == []
    found = points(tmp_path / "tensorboard")
    assert found["train/loss"] == [(step, step / 2) for step in range(6)]
    assert len(found["eval/accuracy"]) == 6


def test_a_full_disk_switches_tensorboard_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    said: list[str] = []
    sink = TensorBoard(tmp_path)
    guarded = Guarded("TensorBoard", sink, said.append)
    guarded.log(1, {"train/loss": 1.0})
    while not guarded.lines.empty():
        time.sleep(0.01)
    time.sleep(0.1)
    assert sink.file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, sink.file.fileno())
    os.close(full)
    for step in range(2, 50):
        guarded.log(step, {"train/loss": 1.0})
    guarded.close()
    assert len(said) == 1, said
    assert "TensorBoard is switched off: OSError: [Errno 28] No space left on device" in said[0]
    assert capfd.readouterr().err == ""
    assert points(tmp_path)["train/loss"] == [(1, 1.0)], "what was written before stays readable"


def test_training_goes_on_without_a_folder_for_tensorboard(tmp_path: Path, capsule_file: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    common = tiny.as_overrides(
        data={"path": capsule_file},
        training={"run_dir": run, "total_steps": 12, "stop_at_step": 4},
        logging={"tensorboard": "true"},
    )
    assert tiny.invoke("train", *common).returncode == 75
    (run / "tensorboard").rename(tmp_path / "moved")
    (run / "tensorboard").write_text("a file in its place")
    done = tiny.invoke("train", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TensorBoard is switched off: FileExistsError") == 1
    assert steps_logged(run) == list(range(1, 13))
    assert [step for step, _ in points(tmp_path / "moved")["train/loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
@pytest.mark.parametrize("left", ["nothing", "a folder of that name"])
def test_a_missing_package_is_an_error_of_the_config(
    package: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = None if left == "nothing" else importlib.machinery.ModuleSpec(package, None, is_package=True)
    monkeypatch.setattr(third_party, "find_spec", lambda name: spec)
    config = Config.model_validate({"logging": {package: True}})
    with pytest.raises(ConfigError, match=f"the {package} package is not installed") as raised:
        open_loggers(tmp_path, config, print)
    assert f"logging.{package}=false" in str(raised.value.hint)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_broken_package_is_a_warning(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("import a_library_that_was_removed")
    monkeypatch.syspath_prepend(tmp_path)
    said: list[str] = []
    loggers = open_loggers(tmp_path, Config.model_validate({"logging": {package: True}}), said.append)
    loggers.log(1, {"train/loss": 1.0})
    loggers.close()
    assert len(said) == 1, said
    assert "ModuleNotFoundError: No module named 'a_library_that_was_removed'" in said[0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 1.0}


def test_a_login_is_looked_for_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "logins").write_text("machine wandb.example.org login user password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "logins"))
    assert not third_party.wandb_login_exists()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert third_party.wandb_login_exists()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert not third_party.wandb_login_exists()


LOGGED = """
import sys
from pathlib import Path
from trm_core.config.schema import Config
from trm_core.training.loggers import open_loggers
loggers = open_loggers(Path(sys.argv[1]), Config.model_validate({"logging": {"wandb": True}}), print)
loggers.log(1, {"train/loss": 1.0})
loggers.close()
"""


@pytest.mark.parametrize(
    ("mode", "said", "logged"),
    [
        (None, "warning: Weights & Biases: no login was found", True),
        ("disabled", "warning: Weights & Biases: WANDB_MODE=disabled", False),
        ("offline", None, True),
    ],
)
def test_where_points_go_is_said_unless_it_was_asked_for(
    mode: str | None, said: str | None, logged: bool, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    environment = {**tiny.environment(tmp_path), "HOME": str(tmp_path)}
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        environment.pop(name, None)
    if mode is not None:
        environment["WANDB_MODE"] = mode
    done = subprocess.run(
        [sys.executable, "-c", LOGGED, tmp_path], capture_output=True, text=True, env=environment, check=True
    )
    told = done.stdout.splitlines()
    assert [line[: len(said or "")] for line in told] == ([] if said is None else [said]), told
    assert bool(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) is logged


def service_of(parent: int) -> int:
    """The wandb-core process of another process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if "(wandb-core)" in text and int(text.rpartition(") ")[2].split()[1]) == parent:
            return int(stat.parent.name)
    raise AssertionError("no wandb-core")


@pytest.mark.slow
def test_a_killed_wandb_service_does_not_end_a_run(tmp_path: Path, capsule_file: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    arguments = tiny.as_overrides(
        data={"path": capsule_file}, training={"run_dir": run, "total_steps": 100_000}, logging={"wandb": "true"}
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_cli.main", "train", *arguments],
        cwd=tmp_path,
        env={**tiny.environment(tmp_path), "WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        tiny.wait_for_step(process, run, 3)
        os.kill(service_of(process.pid), signal.SIGKILL)
        tiny.wait_for_step(process, run, (run / "metrics.jsonl").read_text().count("\n") + 20)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 75, err
    assert len(re.findall(r"Weights & Biases is switched off: (ConnectionReset|BrokenPipe)Error: ", err)) == 1, err
    assert err.count("warning") == 1
    assert "Traceback" not in err
    step = json.loads((run / "status.json").read_text())["step"]
    assert steps_logged(run) == list(range(1, step + 1))
    assert list(run.glob("wandb/offline-run-*/run-*.wandb")), "what was logged before is there to be synced"


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from trm_core.config.schema import Config
from trm_core.training.guarded import Guarded, Patience
from trm_core.training.third_party import WandB, service_processes
said = []
guarded = Guarded("W&B", WandB(Path(sys.argv[1]), Config(), print), said.append, Patience(90, 2, 2))
guarded.log(1, {"train/loss": 1.0})
[service] = service_processes()
os.kill(service, signal.SIGSTOP)
began = time.monotonic()
for step in range(2, int(sys.argv[2])):
    guarded.log(step, {f"train/{i}": 0.1 for i in range(100)})
guarded.close()
print(time.monotonic() - began, *said)
"""


@pytest.mark.parametrize(("lines", "words"), [(3, "it did not finish"), (5000, "it has accepted nothing")])
def test_a_wandb_service_that_hangs_holds_up_neither_training_nor_the_end(
    lines: int, words: str, tmp_path: Path
) -> None:
    """With few lines `finish` never returns, with many the socket fills up and `log` does not."""
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, tmp_path, str(lines)],
        capture_output=True,
        text=True,
        check=False,
        env={**tiny.environment(tmp_path), "WANDB_MODE": "offline"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seconds, warning = done.stdout.strip().split(" ", 1)
    assert float(seconds) < 15
    assert words in warning
    assert warning.count("switched off") == 1
    assert "Traceback" not in done.stderr
