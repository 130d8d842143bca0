"""`trm checkpoints`: lists what there is, and finds every damage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

DAMAGE = ["flipped bit", "truncated", "missing", "manifest of rubbish"]


def folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*"), reverse=True)


def damage(folder: Path, how: str) -> Path:
    path = folder / ("manifest.json" if how == "manifest of rubbish" else "training.safetensors")
    content = bytearray(path.read_bytes())
    if how == "flipped bit":
        content[len(content) // 2] ^= 1
    elif how == "truncated":
        content = content[:-1]
    elif how == "manifest of rubbish":
        content = bytearray(b"[" * 100_000)
    path.write_bytes(content)
    if how == "missing":
        path.unlink()
    return path


def test_lists_and_verifies(trained_run: Path) -> None:
    done = tiny.invoke("checkpoints", trained_run, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["checkpoints"]
    assert [Path(one["path"]).name for one in found] == [path.name for path in folders(trained_run)]
    assert all(one["fault"] is None for one in found)
    assert found[0]["bytes"] == sum(path.stat().st_size for path in folders(trained_run)[0].iterdir())
    text = tiny.invoke("checkpoints", trained_run)
    assert text.returncode == 0
    assert folders(trained_run)[0].name in text.stdout
    assert "verifies" in text.stdout


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_and_ends_with_1(trained_run: Path, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    path = damage(folders(run)[0], how)
    done = tiny.invoke("checkpoints", run)
    assert done.returncode == 1
    assert path.name in done.stderr
    assert "damaged" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_run_without_checkpoints_and_no_run(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(trained_run / "config.yaml", tmp_path / "run")
    assert tiny.invoke("checkpoints", tmp_path / "run").returncode == 4
    assert tiny.invoke("checkpoints", tmp_path).returncode == 4


def test_needs_no_torch(trained_run: Path) -> None:
    code = (
        "import sys, trm_cli.main\n"
        "try: trm_cli.main.app(['checkpoints', sys.argv[1]])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, trained_run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
