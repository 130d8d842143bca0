"""Memory and speed of the capsule store on a file much larger than the memory that it may use.

Writes N x 12 capsules x (1 sketch + 4 children) x 512 random float16 numbers (36,000 samples: 2.2 GB) to a temporary
folder, reads it once in shuffled batches, and prints one JSON document. "MB beyond imports" is the peak resident memory
of the process that did the work, minus its peak after the imports. Run from the repository:

    python benchmarks/capsule_store_memory.py [--rows 36000] [--folder /tmp] [--workers 0]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

K, M, DIM, CLASSES = 12, 4, 512, 10
BATCH = 96
SLICE_ROWS = 2000
LIMIT_MB = 600


def peak_mb() -> float:
    """Peak resident memory of this process."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def build(path: Path, rows: int) -> dict[str, Any]:
    """Write the file in chunks of random rows."""
    import numpy as np

    from trm_core.data.store import CapsuleWriter

    before = peak_mb()
    start = time.perf_counter()
    with CapsuleWriter(path, num_capsules=K, dim=DIM, num_children=M) as writer:
        for first in range(0, rows, 128):
            random = np.random.default_rng(first)
            n = min(128, rows - first)
            children = random.standard_normal((n, K, M, DIM), dtype=np.float32)
            labels = random.integers(0, CLASSES, n)
            writer.append("train", {"sketches": children.mean(2), "children": children, "labels": labels})
        writer.close({"task": "classes", "num_classes": CLASSES})
    return {"mb_beyond_imports": round(peak_mb() - before), "seconds": round(time.perf_counter() - start, 1)}


def iterate(path: Path, workers: int) -> dict[str, Any]:
    """Visit every row once, shuffled."""
    import torch

    from trm_core.data.store import open_capsules
    from trm_core.data.stream import SampleStream

    before = peak_mb()
    file = open_capsules(path)
    rows = file.rows["train"]
    seen = torch.zeros(rows, dtype=torch.bool)
    start = time.perf_counter()
    stream = SampleStream([(file, 1.0)], seed=0, num_workers=workers)
    for first in range(0, rows, BATCH):
        seen[stream.take(min(BATCH, rows - first)).rows] = True
    seconds = time.perf_counter() - start
    stream.close()
    assert seen.all(), "an epoch must visit every row"
    return {"mb_beyond_imports": round(peak_mb() - before), "samples_per_second": round(rows / seconds)}


def in_memory(path: Path) -> dict[str, Any]:
    """The usual way, on a slice that fits into memory: TensorDataset and a shuffling DataLoader."""
    import numpy as np
    from torch import from_numpy
    from torch.utils.data import DataLoader, TensorDataset

    from trm_core.data.store import open_capsules

    file = open_capsules(path)
    arrays = file.read("train", slice(0, SLICE_ROWS))
    rows = len(arrays["labels"])
    dataset = TensorDataset(*(from_numpy(np.ascontiguousarray(array)) for array in arrays.values()))
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    start = time.perf_counter()
    for sketches, children, _ in loader:
        sketches.float(), children.float()
    return {"rows": rows, "samples_per_second": round(rows / (time.perf_counter() - start))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=36_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part", choices=["build", "iterate", "in_memory"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        parts = {
            "build": lambda: build(options.file, options.rows),
            "iterate": lambda: iterate(options.file, options.workers),
            "in_memory": lambda: in_memory(options.file),
        }
        print(json.dumps(parts[options.part]()))
        return
    needed = options.rows * K * (1 + M) * DIM * 2
    if shutil.disk_usage(options.folder).free < 1.2 * needed:
        sys.exit(
            f"{options.folder} has less than {1.2 * needed / 1e9:.1f} GB free; choose another --folder or fewer --rows"
        )
    result: dict[str, Any] = {"rows": options.rows, "shape": [K, 1 + M, DIM], "workers": options.workers}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "large.h5"
        for part in ("build", "iterate", "in_memory"):
            # Each part in a separate process, because peak memory never falls.
            command = [sys.executable, __file__, "--part", part, "--file", str(path)]
            command += ["--rows", str(options.rows), "--workers", str(options.workers)]
            root = str(Path(__file__).resolve().parent.parent)
            search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            output = subprocess.run(
                command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": search}, check=True
            ).stdout
            result[part] = json.loads(output)
        result["file_gb"] = round(path.stat().st_size / 1e9, 2)
    result["limit_mb"] = LIMIT_MB
    result["within_limit"] = (
        max(result["build"]["mb_beyond_imports"], result["iterate"]["mb_beyond_imports"]) < LIMIT_MB
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
