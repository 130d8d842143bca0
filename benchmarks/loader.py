"""Throughput of the capsule loader against the same data in memory, and whether its memory grows with the file.

    python -m benchmarks.loader --out benchmarks/results/loader.json [--rows 4000 16000] [--batch 96] [--turns 15]

Random capsules (k 12, m 4, D 512, float16 in the file) are first written to two files. In turn: one shuffled epoch of
the smaller file by the loader, which reads it in windows of 64 MB; and one by a DataLoader with shuffle=True over a
TensorDataset of the same fields. All produce float32 batches in this process. `in memory` holds the float16 numbers of
the file and converts each batch, as the loader does; `in memory, float32` holds twice the bytes and converts nothing.
Ratios are of neighbouring turns, with 95 % intervals; `first epoch` is the loader's first, which verifies every
checksum, relative to its median. Memory is the growth of peak resident memory over two epochs, with separate processes
for each contender and file. The files are in the page cache, as any file is after one epoch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.puzzle_step import peak_bytes
from benchmarks.record import describe_machine, publish
from benchmarks.step_cost import write_random
from benchmarks.timing import alternate, ratio
from trm_core.data.store import open_capsules
from trm_core.data.stream import SampleStream

FIELDS = ["children", "labels", "parents"]  # read in addition to sketches
Epoch = Callable[[], object]


def by_the_loader(path: Path, batch: int) -> Epoch:
    file = open_capsules(path)
    rows, stream = file.rows["train"], SampleStream([(file, 1.0)], seed=0, fields=FIELDS)

    def epoch() -> None:
        for first in range(0, rows, batch):
            stream.take(min(batch, rows - first))

    return epoch


def in_memory(path: Path, batch: int, dtype: torch.dtype = torch.float16) -> Epoch:
    loader = DataLoader(TensorDataset(*whole(path, dtype)), batch_size=batch, shuffle=True)

    def epoch() -> None:
        for tensors in loader:
            for tensor in tensors:
                _ = tensor.float() if tensor.is_floating_point() else tensor

    return epoch


CONTENDERS: dict[str, Callable[[Path, int], Epoch]] = {
    "loader": by_the_loader,
    "in memory": in_memory,
    "in memory, float32": partial(in_memory, dtype=torch.float32),
}


def whole(path: Path, dtype: torch.dtype) -> list[Tensor]:
    """The training split as tensors."""
    with open_capsules(path) as file:
        arrays = file.read("train", slice(None), ["sketches", *FIELDS])
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def peak_growth(name: str, path: Path, batch: int, processes: int) -> float:
    """Megabytes that opening the file and two epochs add to peak resident memory: the median over some processes."""
    command = [sys.executable, "-m", "benchmarks.loader", "--alone", name, "--file", str(path), "--batch", str(batch)]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(processes)]
    return round(median(map(float, outputs)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, nargs=2, default=[4000, 16_000], help="of the two files, by hundreds")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--processes", type=int, default=3, help="whose median is the growth of memory")
    parser.add_argument("--folder", type=Path, help="where the files go for the time (2.5 GB by default)")
    parser.add_argument("--alone", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.alone:
        before = peak_bytes()
        epoch = CONTENDERS[arguments.alone](arguments.file, arguments.batch)
        epoch()
        epoch()
        print((peak_bytes() - before) / 1e6)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        files = {rows: write_random(Path(folder) / f"{rows}.h5", rows=rows) for rows in arguments.rows}
        small = files[arguments.rows[0]]
        epochs = {name: make(small, arguments.batch) for name, make in CONTENDERS.items()}
        first = alternate({"loader": epochs["loader"]}, 1, warmup=0)["loader"][0]
        seconds = alternate(epochs, arguments.turns)
        memory = {
            name: {
                str(rows): peak_growth(name, path, arguments.batch, arguments.processes) for rows, path in files.items()
            }
            for name in ("loader", "in memory")
        }
    record = {
        "setting": {"rows": arguments.rows, "batch": arguments.batch, "turns": arguments.turns, "fields": FIELDS},
        "machine": describe_machine(threads=1),
        "samples per second": {
            name: round(arguments.rows[0] / float(np.median(values))) for name, values in seconds.items()
        },
        # Ratios of samples per second, so the times are swapped.
        "loader / in memory": ratio(seconds["in memory"], seconds["loader"]),
        "loader / in memory, float32": ratio(seconds["in memory, float32"], seconds["loader"]),
        "first epoch": float(first / np.median(seconds["loader"])),
        "peak growth, MB": memory,
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
