"""What a newcomer meets first: the version, TAB, and being told what was meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tiny

from trm_cli.complete import complete_override
from trm_core import about

ROOT = tiny.ROOT
REQUIREMENTS = ["torch>=2", 'onnx>=1; extra == "onnx"', "gone>=1; sys_platform == 'linux' and extra == 'cuda'"]


def test_version_says_what_is_here() -> None:
    import torch

    done = tiny.invoke("--version")
    assert done.returncode == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("extra"))
    # The version of the installed package; builds of PyPI leave out which CUDA they are for.
    assert rows["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert rows["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert rows["device"].startswith("cpu: ")
    document = json.loads(tiny.invoke("--json", "--version").stdout)
    assert document == json.loads(tiny.invoke("--version", "--json").stdout)
    assert document["packages"]["numpy"] == metadata.version("numpy")
    assert document["devices"]


def test_extras_are_what_the_package_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"onnx": "1.0"}
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(about, "installed", here.get)
    assert about.missing_of_extras() == {"cuda": ["gone"], "onnx": []}
    shown = tiny.invoke("--version").stdout
    assert "extra cuda" in shown
    assert "needs gone" in shown
    assert shown.splitlines()[0].split(maxsplit=1) == ["trm", "not installed"]


def test_a_torch_that_cannot_be_imported_is_part_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = tiny.invoke("--version")
    assert done.returncode == 0
    assert "torch cannot be imported: import of torch halted" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tarin"], 2, "Did you mean 'train'?"),
        (["build"], 2, "Did you mean 'build-capsules' or 'build-puzzles'?"),
        (["nonsense"], 2, "No such command 'nonsense'."),
        (["train", "--confg", "c.yaml"], 2, "--config"),
        (["eval", "--polcy", "all"], 2, "--policy"),
        (["--json", "train"], 2, "trm COMMAND --json"),
        (["--json"], 2, "--json"),
        (["train", "configs/quickstart.yaml"], 3, "did you mean --config configs/quickstart.yaml?"),
        (["train", "--config", "configs/quickstat.yaml"], 3, "did you mean configs/quickstart.yaml?"),
        (["train", "--config", "sms"], 3, "did you mean configs/sms.yaml?"),
        (["train", "--config", "no/where/else.yaml"], 3, "config file not found\n"),
        (["train", "trainng.base_lr=1"], 3, "did you mean training.base_lr?"),
        (["diagnose", "dqm"], 2, "did you mean dqn?"),
    ],
)
def test_a_mistyped_word_is_answered_with_what_was_meant(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = tiny.invoke(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("training.base", ["training.base_lr="]),
        ("dqn.replay=", ["dqn.replay=uniform", "dqn.replay=prioritized"]),
        ("dqn.replay=p", ["dqn.replay=prioritized"]),
        ("memory.enabled=", ["memory.enabled=true", "memory.enabled=false"]),
        ("arch.enable_capsule_expansion=", [f"arch.enable_capsule_expansion={w}" for w in ("auto", "true", "false")]),
        ("training.base_lr=", []),
        ("nonsense.key=", []),
        ("configs/", []),
    ],
)
def test_keys_and_their_words_are_offered(typed: str, offered: list[str]) -> None:
    assert complete_override(typed) == offered


@pytest.fixture
def home(tmp_path: Path) -> dict[str, Any]:
    """The environment of a user whose home is empty, and who has `trm` on the path."""
    program = tmp_path / "bin" / "trm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m trm_cli.main "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    return {**tiny.environment(tmp_path), "HOME": str(tmp_path), "PATH": path}


def bash(script: str, environment: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "--norc", "-c", script + "\ntrue"]  # one command alone would take bash's place
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_after_the_installation(home: dict[str, Any]) -> None:
    """In a home of the test's own: the shell is found, its files are written there, and TAB works after that."""
    done = bash("trm --install-completion", home)
    assert "bash completion installed" in done.stdout, done.stderr
    assert ".bash_completions/trm.sh" in (Path(home["HOME"]) / ".bashrc").read_text()
    press_tab = 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _trm_completion trm; echo "${COMPREPLY[*]}"'
    script = f"""
        source ~/.bashrc
        COMP_WORDS=(trm bui); {press_tab}
        COMP_WORDS=(trm train --resu); {press_tab}
        COMP_WORDS=(trm train training.lr_w); {press_tab}
    """
    assert bash(script, home).stdout.split() == [
        "build-capsules", "build-puzzles", "--resume", "training.lr_warmup_steps=",
    ]  # fmt: skip


def test_a_home_that_cannot_be_written_is_no_internal_error(home: dict[str, Any]) -> None:
    done = bash("HOME=/proc trm --install-completion; echo $?", home)
    assert done.stdout == "2\n"
    assert done.stderr.startswith("error: cannot use /proc/")
    assert "Traceback" not in done.stderr


def test_completion_imports_no_torch(home: dict[str, Any]) -> None:
    script = (
        "import sys\nfrom trm_cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**home, "_TRM_COMPLETE": "complete_bash", "COMP_WORDS": "trm train dqn.gam", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr.strip()) == ("dqn.gamma=", "False")
