"""Where a batch system may start `trm`: folders that are gone, read-only, a stranger's, or shared with others."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import tiny
from forked import run_together

from trm_core.training import run_dir

SHADOWS = ["json", "signal", "random", "torch", "yaml", "pickle"]


def settings(data: Path, run: Path) -> list[str]:
    return tiny.as_overrides(data={"path": data}, training={"run_dir": run, "total_steps": 2})


def run_installed(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`trm` as pip installs it: a script, beside which Python looks for modules, not in the current folder."""
    script = cwd.parent / "trm"
    script.write_text("import sys\nfrom trm_cli.main import main\nsys.exit(main())\n")
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=tiny.environment(cwd),
    )


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, capsule_file: Path) -> None:
    """Not in the processes that look at files, train together or build either: the folder may be a stranger's."""
    strange = tmp_path / "strange"
    strange.mkdir()
    for name in SHADOWS:
        (strange / f"{name}.py").write_text("raise SystemExit('a stranger was here')\n")
    run = tmp_path / "run"
    trained = run_installed("train", *settings(capsule_file, run), "--nproc", "2", cwd=strange)
    assert trained.returncode == 0, trained.stderr
    sudoku = ["build-puzzles", "sudoku", "--size", "4", "--count", "4", "--workers", "1", "--out", "puzzles"]
    built = run_installed(*sudoku, cwd=strange)
    assert built.returncode == 0, built.stderr


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m trm_cli.main --version"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path, env=tiny.environment(tmp_path)
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: the current folder was removed\nhint: cd to one that exists\n")


def test_without_a_home_the_cache_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "TRM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    arguments = tiny.as_overrides(data={"source": "digits"}, training={"run_dir": tmp_path / "run", "total_steps": 2})
    done = tiny.invoke("train", *arguments)
    assert done.returncode == 3
    assert "there is no home folder" in done.stderr
    assert "TRM_CACHE" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("home", ["/proc/version/home", "/proc"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("TRM_CACHE", home)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/proc")  # root may all
    arguments = tiny.as_overrides(data={"source": "digits"}, training={"run_dir": tmp_path / "run", "total_steps": 2})
    done = tiny.invoke("train", *arguments)
    assert done.returncode == 2
    assert f"{home} cannot be " in done.stderr
    assert "TRM_CACHE" in done.stderr


def test_others_may_read_a_checkpoint_where_the_umask_says_so(tmp_path: Path, capsule_file: Path) -> None:
    run = tmp_path / "run"
    before = os.umask(0o027)
    try:
        assert tiny.invoke("train", *settings(capsule_file, run)).returncode == 0
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (run / "checkpoints").glob("*/*")}
    assert set(modes.values()) == {"0o640"}, modes


def test_a_run_directory_without_locks(tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre, where it is mounted without flock."""

    def refuse(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(run_dir, "fcntl", type("fcntl", (), {**vars(fcntl), "flock": staticmethod(refuse)}))
    done = tiny.invoke("train", *settings(capsule_file, tmp_path / "run"))
    assert done.returncode == 2
    assert f"{tmp_path / 'run'} cannot be created, written or locked: Function not implemented" in done.stderr


def test_a_run_directory_that_cannot_be_made_is_said_once(tmp_path: Path, capsule_file: Path) -> None:
    ends = run_together(2, "train", *settings(capsule_file, Path("/proc/version/run")), cwd=tmp_path)
    assert [end.returncode for end in ends] == [2, 2]
    assert "cannot be created, written or locked" in ends[0].stderr
    assert "error:" not in ends[1].stderr
