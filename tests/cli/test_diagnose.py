"""`trm diagnose` as a user runs it: on a run, on a config, during training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from trm_core.config import load_config
from trm_core.diagnose.registry import of_group


@pytest.fixture
def run(tmp_path: Path, trained_run: Path) -> Path:
    return shutil.copytree(trained_run, tmp_path / "run")


def checks(*arguments: object) -> dict[str, dict[str, Any]]:
    done = tiny.invoke("diagnose", *map(str, arguments), "--json")
    assert done.returncode in (0, 1), done.stderr
    return {check["id"]: check for check in json.loads(done.stdout)["checks"]}


def write_config(path: Path, data: Path, **sections: dict[str, Any]) -> Path:
    names = tiny.BASE.keys() | sections.keys()
    merged = {name: {**tiny.BASE.get(name, {}), **sections.get(name, {})} for name in names}
    path.write_text(yaml.safe_dump({**merged, "data": {"path": str(data)}}))
    return path


def test_a_finished_run_without_torch(run: Path) -> None:
    program = (
        "import sys\nfrom trm_cli.main import app\n"
        f"sys.argv = ['trm', 'diagnose', {str(run)!r}]\n"
        "try:\n    app(prog_name='trm')\nexcept SystemExit as end:\n    code = end.code\n"
        "for slow in ('torch', 'sklearn', 'numpy.ma'):\n    assert slow not in sys.modules, slow\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode in (0, 1), done.stderr
    assert "assert" not in done.stderr
    assert done.stdout.startswith(f"run: {run} (step 60)\n")
    assert "\x1b" not in done.stdout


def test_a_group_asks_only_its_checks(run: Path) -> None:
    everything, some = checks(run), checks("dqn", run)
    assert some.keys() < everything.keys()
    assert all("dqn" in check["groups"] for check in some.values())
    assert some == {name: everything[name] for name in some}


def test_a_finding_that_is_meant_so_is_ignored(tmp_path: Path, capsule_file: Path) -> None:
    path = write_config(tmp_path / "fixed.yaml", capsule_file, dqn={"enabled": False}, loss_weights={"q_halt_loss": 0})
    found = tiny.invoke("diagnose", "--config", path)
    assert found.returncode == 1
    assert "FAIL  loss-weights" in found.stdout
    ignored = tiny.invoke("diagnose", "--config", path, "--ignore", "loss-weights")
    assert ignored.returncode == 0, ignored.stdout
    assert "loss-weights" not in ignored.stdout
    other = tiny.invoke("diagnose", "--config", path, "--ignore", "loss-weihgts")
    assert other.returncode == 2
    assert "no check 'loss-weihgts'; did you mean loss-weights?" in other.stderr


def test_a_torn_checkpoint_is_named_first_and_ends_with_one(run: Path) -> None:
    newest = max((run / "checkpoints").glob("step_*"))
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff\xff\xff")
    done = tiny.invoke("diagnose", str(run))
    assert done.returncode == 1
    first = next(line for line in done.stdout.splitlines() if line.startswith(("FAIL", "WARN")))
    assert first.startswith("FAIL  checkpoint-torn: ")
    assert newest.name in first
    assert "resume" in done.stdout
    assert "checkpoint-torn" in done.stderr


def test_a_config_before_its_run_and_the_fix(tmp_path: Path, capsule_file: Path) -> None:
    path = write_config(tmp_path / "bad.yaml", capsule_file, dqn={"buffer_min_size": 190, "epsilon_start": 0.0})
    out = tmp_path / "good.yaml"
    done = tiny.invoke("diagnose", "--config", str(path), "--fix", str(out))
    assert done.returncode == 1, done.stderr
    assert "FAIL  buffer-min-size" in done.stdout
    assert "FAIL  epsilon-zero" in done.stdout
    before, after = load_config(path).config.model_dump(), load_config(out).config.model_dump()
    changed = {
        f"{section}.{key}"
        for section in before
        for key in (before[section] if isinstance(before[section], dict) else ())
        if before[section][key] != after[section][key]
    }
    assert changed == {
        "dqn.buffer_min_size",
        "dqn.epsilon_start",
        "dqn.epsilon_end",
        "dqn.epsilon_decay",
        "dqn.target_tau",
    }
    again = checks("--config", out)
    assert again["buffer-min-size"]["verdict"] == "ok"
    assert again["epsilon-zero"]["verdict"] == "ok"


def test_overrides_of_a_config(tmp_path: Path, capsule_file: Path) -> None:
    path = write_config(tmp_path / "config.yaml", capsule_file)
    assert checks("--config", path)["rewards-zero"]["verdict"] == "ok"
    off = ("dqn.reward_terminal_correct=0", "dqn.reward_terminal_incorrect=0")
    assert checks("dqn", "--config", path, *off)["rewards-zero"]["verdict"] == "fail"


def test_a_probe_takes_real_steps_and_writes_nothing(tmp_path: Path, capsule_file: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "config.yaml", capsule_file, training={"total_steps": 500, "lr_warmup_steps": 10})
    found = checks("--config", path, "--probe")
    assert found["dead-layer"]["verdict"] == "ok"
    assert found["loader-starvation"]["verdict"] in ("ok", "warn", "fail")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]
    wild = ("training.base_lr=3", "training.optimizer=adamw")
    assert checks("--config", path, "--probe", *wild)["lr-too-high"]["verdict"] == "fail"


def test_a_run_that_is_watched_warns_once(tmp_path: Path, capsule_file: Path) -> None:
    run = tmp_path / "run"
    arguments = tiny.as_overrides(
        data={"path": capsule_file},
        training={"run_dir": run, "total_steps": 120, "watch": "true", "base_lr": 3.0, "optimizer": "adamw"},
    )
    done = tiny.invoke("train", *arguments)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "lr-too-high" in line]
    assert len(said) == 1, done.stderr
    assert "warning: step " in said[0]
    assert "fix: training.base_lr=0.003" in said[0]
    assert "lr-too-high" in (run / "log.txt").read_text()
    quiet = tiny.invoke("train", *arguments, "training.watch=false", f"training.run_dir={tmp_path / 'quiet'}")
    assert "lr-too-high" not in quiet.stderr


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_rate_a_hundred_times_too_high_is_told_in_the_first_half(
    tmp_path: Path, capsule_file: Path, optimizer: str
) -> None:
    """And nothing at the rate that it is a hundred times of, but for what depends on the machine."""
    about_the_machine = {check.id for group in ("speed", "memory") for check in of_group(group)}
    warned = {}
    for factor in (1, 100):
        arguments = tiny.as_overrides(
            data={"path": capsule_file},
            dqn={"target_tau": 0.05, "epsilon_decay": 60, "epsilon_end": 0.2},
            training={
                "run_dir": tmp_path / f"times-{factor}",
                "total_steps": 120,
                "watch": "true",
                "optimizer": optimizer,
                "base_lr": factor * 3e-3,
                "muon_lr": factor * 1e-2,
            },
        )
        done = tiny.invoke("train", *arguments)
        assert done.returncode == 0, done.stderr
        told = [line.split(": ")[1:3] for line in done.stderr.splitlines() if "warning: step " in line]
        warned[factor] = [(check, int(step.removeprefix("step "))) for step, check in told]
    assert not [check for check, _ in warned[1] if check not in about_the_machine]
    steps = [step for check, step in warned[100] if check == "lr-too-high"]
    assert len(steps) == 1, warned[100]
    assert steps[0] <= 60


def test_watching_changes_nothing(tmp_path: Path, capsule_file: Path) -> None:
    lines = []
    for name, watch in (("a", "true"), ("b", "false")):
        run = tmp_path / name
        arguments = tiny.as_overrides(
            data={"path": capsule_file}, training={"run_dir": run, "total_steps": 50, "watch": watch}
        )
        assert tiny.invoke("train", *arguments).returncode == 0
        lines.append(tiny.metrics_without_clock(run))
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nonsense"], 2, "neither a group of checks nor a run"),
        (["dqn", "a=b"], 2, "need --config"),
        (["--probe"], 2, "need --config"),
        (["--config", "no.yaml"], 3, "no.yaml"),
        (["."], 4, "holds no metrics that can be read"),
    ],
)
def test_bad_input(tmp_path: Path, monkeypatch: Any, arguments: list[str], code: int, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = tiny.invoke("diagnose", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_a_run_with_broken_files_is_still_looked_at(run: Path) -> None:
    (run / "status.json").write_text("{")
    (run / "dataset.json").write_text('{"train": [{"path": "a\\u0000b"}], "eval": {"path": "", "split": ""}}')
    (run / "evaluation.json").write_bytes(b"\xff\x00")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "train/loss": \x00 nul\n[1,2]\n{"step": 62, "tr')
    done = tiny.invoke("diagnose", str(run))
    assert done.returncode in (0, 1), done.stderr
    assert "WARN  run-ended" in done.stdout
    assert "note: " in done.stdout


def test_what_another_logger_wrote(tmp_path: Path, capsule_file: Path) -> None:
    """TensorBoard's files alone, with the config beside them: the same verdicts, as far as these can tell."""
    run = tmp_path / "run"
    arguments = tiny.as_overrides(
        data={"path": capsule_file}, training={"run_dir": run, "total_steps": 60}, logging={"tensorboard": "true"}
    )
    assert tiny.invoke("train", *arguments).returncode == 0
    own = checks(run)
    alone = checks(run / "tensorboard", "--config", run / "config.yaml")
    assert alone["lr-too-high"]["numbers"] == pytest.approx(own["lr-too-high"]["numbers"], rel=1e-5)
    told = [name for name, check in alone.items() if check["verdict"] != "cannot tell"]
    assert len(told) > 20
    assert {name: alone[name]["verdict"] for name in told} == {name: own[name]["verdict"] for name in told}
    assert checks(run / "tensorboard")["lr-too-high"]["verdict"] == "cannot tell"
    page = tmp_path / "log.html"
    assert tiny.invoke("diagnose", str(run / "tensorboard"), "--html", str(page)).returncode in (0, 1)
    assert "<svg" in page.read_text()
    for more in (["--fix", "fixed.yaml"], ["--config", str(run / "config.yaml"), "--probe"]):
        assert tiny.invoke("diagnose", str(run / "tensorboard"), *more).returncode == 2


def test_the_page_stands_alone(tmp_path: Path, run: Path) -> None:
    page = tmp_path / "report.html"
    done = tiny.invoke("diagnose", str(run), "--html", str(page))
    assert done.returncode in (0, 1), done.stderr
    text = page.read_text()
    assert "<svg" in text
    assert "loss-not-falling" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "<script" not in text


def test_a_folder_of_the_name_of_a_group_is_no_run(trained_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    done = tiny.invoke("diagnose", "data", trained_run, "--json")
    assert json.loads(done.stdout)["group"] == "data"
