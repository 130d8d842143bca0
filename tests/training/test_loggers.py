"""metrics.jsonl on a disk that is full for a while."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from trm_core.training.loggers import truncate_after

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
assert len(said) == 1 and "wait in memory" in said[0], said
"""


def test_lines_wait_for_a_full_disk(tmp_path: Path) -> None:
    """No file may grow past 517 bytes between steps 10 and 30: in the middle of a line."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert lines[6] == {"step": 6, "train/loss": 2.0, "train/odd": None}


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
