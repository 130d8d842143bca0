"""metrics.jsonl on a disk that is full for a while."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trm_core.training.loggers import JsonLines, truncate_after

SCRIPT = """
import resource, sys
from pathlib import Path
from trm_core.training.loggers import JsonLines
said = []
logger = JsonLines(Path(sys.argv[1]), said.append)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for step in range(40):
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (517, hard))
    if step == 30:
        assert len(said) == 1, said
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    logger.log(step, {"train/loss": step / 3, "train/odd": float("nan")})
logger.close()
assert len(said) == 1 and "kept in memory" in said[0], said
"""


def test_lines_wait_for_a_full_disk(tmp_path: Path) -> None:
    """No file may grow past 517 bytes between steps 10 and 30: in the middle of a line."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[6] == {"step": 6, "train/loss": 2.0, "train/odd": None}


class FullForAWhile(io.FileIO):
    """Takes `left` bytes more."""

    left = 0

    def write(self, data: Any) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = super().write(bytes(data)[: self.left])
        self.left -= taken
        return taken


def waiting_logger(path: Path, left: int) -> tuple[JsonLines, list[str], FullForAWhile]:
    """Steps 1 to 4 are logged; the disk takes `left` bytes of the last three."""
    said: list[str] = []
    logger = JsonLines(path, said.append)
    logger.log(1, {"a": 1.0})
    logger.file.close()
    logger.file = file = FullForAWhile(path, "a+b")
    file.left = left
    for step in (2, 3, 4):
        logger.log(step, {"a": float(step)})
    return logger, said, file


def test_a_file_that_was_removed_or_replaced_is_written_on(tmp_path: Path) -> None:
    path, said = tmp_path / "metrics.jsonl", []
    logger = JsonLines(path, said.append)

    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    logger.log(1, {"a": 1.0})
    path.unlink()
    logger.log(2, {"a": 2.0})
    assert steps() == [1, 2], "nothing is lost"
    other = tmp_path / "edited"
    other.write_text(path.read_text())
    other.replace(path)
    logger.log(3, {"a": 3.0})
    assert steps() == [1, 2, 3], "and nothing there twice"
    logger.rewind(2)
    logger.log(3, {"a": 4.0})
    logger.close()
    assert steps() == [1, 2, 3]
    assert [line.rpartition(" was ")[2] for line in said] == [
        "removed; its lines are written again",
        "replaced; new lines follow those already in it",
    ]


def test_lines_of_a_removed_folder_wait(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    folder.mkdir()
    logger = JsonLines(folder / "metrics.jsonl", said.append)
    logger.log(1, {"a": 1.0})
    shutil.rmtree(folder)
    logger.log(2, {"a": 2.0})
    assert "its lines are kept in memory" in said[0]
    folder.mkdir()
    logger.close()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2


def test_what_still_waits_at_the_end_is_written_or_said_to_be_lost(tmp_path: Path) -> None:
    logger, said, file = waiting_logger(tmp_path / "a", 5)
    file.left = 10_000
    logger.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "a").read_text().splitlines()] == [1, 2, 3, 4]
    assert len(said) == 1
    logger, said, file = waiting_logger(tmp_path / "b", 5)
    logger.close()
    assert "are lost" in said[-1]


@pytest.mark.parametrize("left", [0, 5, 30])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_going_back_keeps_what_waits_and_is_not_void(tmp_path: Path, left: int, step: int) -> None:
    """Also while the disk is full, and where it took half a line."""
    path = tmp_path / "metrics.jsonl"
    logger, _, file = waiting_logger(path, left)
    logger.rewind(step)
    assert len(path.read_bytes()) <= len(b'{"step": 1, "a": 1.0}\n') + left
    file.left = 10_000
    logger.log(step + 1, {"a": 9.0})
    logger.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [*({"step": n, "a": float(n)} for n in range(1, step + 1)), {"step": step + 1, "a": 9.0}]


def test_what_is_no_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = [
        '{"step": "2"}',
        '{"step": null}',
        '{"step": [1]}',
        "[1]",
        "7",
        "[" * 100_000,
        "9" * 5000,
        '{"step": 1',
        "\ufffd",
    ]
    path.write_text("\n".join(['{"step": 1}', *odd, '{"step": 2, "loss": null}', '{"step": 3}']))
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": null}\n'


def test_a_disk_that_went_away_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    class Gone(FullForAWhile):
        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    logger, said, _ = waiting_logger(tmp_path / "metrics.jsonl", 0)
    logger.file.close()
    logger.file = Gone(tmp_path / "metrics.jsonl", "a+b")
    logger.file.left = 0
    logger.close()
    assert said[-1].endswith("the lines kept in memory are lost")
