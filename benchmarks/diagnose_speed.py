"""Time to read the metrics of a long run and to write its report.

    python -m benchmarks.diagnose_speed [--lines 100000] [--names 90]

Prints seconds, the best of three: `read` is everything from file to series; `parse` is parsing as many lines of JSON
alone; `report` is the page without checks. The file is in the page cache, as it is for a run that has just ended.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trm_core.diagnose.read_metrics import read_metrics
from trm_core.diagnose.report_html import html_report

LOG_INTERVAL = 10
EVAL_INTERVAL = 500


def write_metrics(path: Path, lines: int, names: int) -> None:
    """Write metrics as a run does: a line every 10 steps, and every 500 steps also one of an evaluation."""
    random = np.random.default_rng(0)
    columns = [f"train/grad/layer_part.{index:02d}.w" for index in range(names)]
    texts = [json.dumps(dict(zip(columns, values, strict=True)))[1:] for values in random.random((200, names)).tolist()]
    with path.open("w") as file:
        for index in range(lines):
            step = (index + 1) * LOG_INTERVAL
            file.write(f'{{"step": {step}, {texts[index % len(texts)]}\n')
            if step % EVAL_INTERVAL == 0:
                file.write(f'{{"step": {step}, "eval/accuracy": {index / lines}, "eval/loss": 0.5}}\n')


def best(work: Callable[[], object], repetitions: int = 3) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the reading of a long run's metrics.")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--names", type=int, default=90)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_metrics(path, options.lines, options.names)
        metrics = read_metrics(path)
        kept = max(len(metrics[name]) for name in metrics)
        with path.open() as file:
            texts = [file.readline() for _ in range(kept)]
        print(f"file: {path.stat().st_size / 1e6:.0f} MB, {options.lines} lines; {'; '.join(metrics.notes)}")
        print(f"evaluations: {len(metrics['eval/accuracy'])}")
        print(f"parse: {best(lambda: [json.loads(text) for text in texts]):.3f} s")
        print(f"read: {best(lambda: read_metrics(path)):.3f} s")
        print(f"report: {best(lambda: html_report('run', {}, [], metrics)):.3f} s")


if __name__ == "__main__":
    main()
