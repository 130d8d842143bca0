"""environment.json: what every start of a run writes down, and the uncommitted diffs beside it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from trm_core.training import environment, git_state
from trm_core.training.environment import installed_packages, record_start, relevant_variables
from trm_core.training.git_state import code_repository, repository
from trm_core.training.hardware import cpu_model, describe_hardware, gpu_driver

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def starts(run: Path) -> list[dict[str, Any]]:
    record = json.loads((run / "environment.json").read_text())
    assert list(record) == ["starts"]
    return record["starts"]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if trm were installed: whether these tests lie in a checkout, and what it holds, must not matter."""
    monkeypatch.setattr(environment, "code_repository", lambda folder: None)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit and a package in it."""
    root = tmp_path / "checkout"
    (root / "package").mkdir(parents=True)
    (root / "package" / "__init__.py").write_text("")
    (root / "file.txt").write_text("old\n")
    (root / ".gitignore").write_text("venv/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def record(run: Path) -> None:
    run.mkdir(exist_ok=True)
    record_start(run, torch.device("cpu"), 5, 40, ["device cpu: by the test"])


def test_every_start_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    record(run)
    record(run)
    first, second = starts(run)
    assert first["seed"] == second["seed"] == 5
    assert first["processes"] == 1
    assert first["working_directory"] == str(tmp_path)
    assert first["choices"] == ["device cpu: by the test"]
    assert first["packages"]["torch"] == version("torch")  # torch.__version__ also says for which CUDA it was built
    assert first["pid"] == os.getpid()
    assert first["hardware"]["cores"] == os.cpu_count()
    assert any(line.startswith("torch==") for line in first["installed"])


def test_a_resumed_run_has_two_starts(tmp_path: Path, trained_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = starts(run)
    assert tiny.invoke("train", "--resume", run, "training.total_steps=61").returncode == 0
    after = starts(run)
    assert after[:-1] == before
    assert len(after) == len(before) + 1
    assert [start["step"] for start in after] == [0, 60]


@pytest.mark.parametrize("text", ['{"command": ["old form"]}', '{"starts": 3}', '[{"a": 1}', "\0"])
def test_what_another_version_wrote_is_kept(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(text)
    record(tmp_path)
    before, now = starts(tmp_path)
    assert text in (json.dumps(before), before.get("unreadable"))
    assert now["seed"] == 5


@needs_git
def test_uncommitted_changes_are_saved_once(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout / "package")
    run = tmp_path / "run"
    record(run)
    (checkout / "file.txt").write_text("new\n")
    (checkout / "more.txt").write_text("not added\n")
    record(run)
    record(run)
    (checkout / "file.txt").write_text("newer\n")
    record(run)
    states = [start["git"]["working_directory"] for start in starts(run)]
    assert {state["commit"] for state in states} == {git(checkout, "rev-parse", "HEAD")}
    assert {state["root"] for state in states} == {str(checkout.resolve())}
    assert [state["dirty"] for state in states] == [False, True, True, True]
    assert [state.get("diff") for state in states] == [
        None,
        "uncommitted.diff",
        "uncommitted.diff",
        "uncommitted-2.diff",
    ]
    assert states[1]["untracked"] == ["more.txt"]
    assert "-old\n+new\n" in (run / "uncommitted.diff").read_text()
    assert "-old\n+newer\n" in (run / "uncommitted-2.diff").read_text()
    git(checkout, "checkout", "-q", "file.txt")
    git(checkout, "apply", str(run / "uncommitted-2.diff"))
    assert (checkout / "file.txt").read_text() == "newer\n", "the diff can be applied"


@needs_git
def test_code_and_working_directory_in_two_repositories(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, run = tmp_path / "code", tmp_path / "run"
    shutil.copytree(checkout, code)
    (checkout / "file.txt").write_text("mine\n")
    (code / "file.txt").write_text("theirs\n")
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(environment, "code_repository", lambda folder: code_repository(code / "package"))
    record(run)
    monkeypatch.chdir(code)
    record(run)
    both, one = (start["git"] for start in starts(run))
    assert {name: state["root"] for name, state in both.items()} == {
        "code": str(code.resolve()),
        "working_directory": str(checkout.resolve()),
    }
    assert "+theirs" in (run / both["code"]["diff"]).read_text()
    assert "+mine" in (run / both["working_directory"]["diff"]).read_text()
    assert list(one) == ["code"], "one entry where both are the same"


@needs_git
def test_a_large_diff_is_cut_and_says_so(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    (checkout / "file.txt").write_text("a line\n" * 1_000_000)
    run = tmp_path / "run"
    record(run)
    text = (run / "uncommitted.diff").read_text()
    assert len(text) < git_state.DIFF_LIMIT + 100
    assert text.endswith("... cut after 1,000,000 bytes\n")
    assert starts(run)[0]["git"]["working_directory"]["diff_cut"] is True


@needs_git
def test_only_a_tracked_package_is_code_of_a_repository(checkout: Path) -> None:
    found = code_repository(checkout / "package")
    assert found is not None
    assert found.record["dirty"] is False
    installed = checkout / "venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code_repository(installed) is None
    assert repository(checkout.parent) is None


@needs_git
def test_a_repository_without_a_commit_is_recorded(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    found = repository(tmp_path)
    assert found is not None
    assert found.record["commit"] is None
    assert found.record["incomplete"]


def test_a_missing_or_slow_git_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "run")
    slow = programs / "git"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(git_state, "_SECONDS", 0.3)
    began = time.monotonic()
    record(tmp_path / "run")
    assert time.monotonic() - began < 10
    assert [start["git"] for start in starts(tmp_path / "run")] == [{}, {}]


def test_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("SLURM_JWT", "secret")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    found = relevant_variables()
    assert found["SLURM_JOB_ID"] == "17"
    assert found["NCCL_DEBUG"] == "INFO"
    assert "secret" not in found.values()


def test_the_hardware_is_described(tmp_path: Path) -> None:
    found = describe_hardware()
    assert found["memory_gb"] > 0
    assert found["hostname"]
    assert cpu_model()
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (x)",
    ):
        (tmp_path / "version").write_text(f"{line}\nGCC version: 12\n")
        assert gpu_driver(tmp_path / "version") == "535.104.05"
    assert gpu_driver(tmp_path / "missing") is None
    assert installed_packages() == sorted(set(installed_packages()), key=str.lower)
