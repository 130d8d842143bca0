"""The concept vocabulary against vector-quantize-pytorch: time of a forward pass, alone and with its update.

    pip install vector-quantize-pytorch
    python -m benchmarks.concepts --out benchmarks/results/concepts.json

Both start from the same codebook and averages and see the same inputs. They alternate within every round, so that other
load on the machine affects both; figures are medians over rounds of ours / theirs, with 95 % intervals. Prints one JSON
document. In training, the library's forward pass includes its update; `freeze_codebook=True` gives the forward pass
alone.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, median_interval
from trm_core.model.concepts import DEAD_SHARE, ConceptVocabulary

DECAY = 0.99
PLACING = 20  # updates before timing starts, after which all codes are placed


def summary(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    ratio, low, high = (round(value, 3) for value in median_interval(ours / theirs))
    return {
        "ours_ms": round(1e3 * float(np.median(ours)), 2),
        "library_ms": round(1e3 * float(np.median(theirs)), 2),
        "ours_over_library": ratio,
        "ratio_low": low,
        "ratio_high": high,
    }


def measure(library: Any, size: argparse.Namespace) -> dict[str, Any]:
    """Ratios for forward passes with and without update, at one size."""
    generator = torch.Generator().manual_seed(0)
    # As many clusters as codes, so that on both sides codes stay in use and few die.
    centres = torch.randn(size.codes, size.width, generator=generator)

    def draw() -> Tensor:
        cluster = torch.randint(size.codes, (size.rows, size.capsules), generator=generator)
        return centres[cluster] + 0.5 * torch.randn(*cluster.shape, size.width, generator=generator)

    ours = ConceptVocabulary(size.width, size.codes, size.width, 0.5, DECAY)
    for step in range(PLACING):
        ours.update(*ours(draw(), None)[1].rows(), step, 0)
    theirs = library.VectorQuantize(
        size.width,
        size.codes,
        decay=DECAY,
        rotation_trick=False,  # plain straight-through estimator, as ours
        threshold_ema_dead_code=DEAD_SHARE * size.rows * size.capsules / size.codes,
    )
    theirs._codebook.embed.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.copy_(ours.ema_sums[None])
    theirs._codebook.cluster_size.copy_(ours.ema_counts[None])

    z, step = draw(), PLACING

    def begin_round() -> None:
        nonlocal z, step
        z, step = draw().requires_grad_(), step + 1

    def our_step() -> None:
        _, found = ours(z, None)
        ours.update(*found.rows(), step, 0)

    work = {
        "ours": our_step,
        "theirs": lambda: theirs(z),
        "ours_forward": lambda: ours(z, None),
        "theirs_forward": lambda: theirs(z, freeze_codebook=True),
    }
    times = alternate(work, size.rounds, warmup=size.warmup, before=begin_round)
    return {
        "forward and update": summary(times["ours"], times["theirs"]),
        "forward": summary(times["ours_forward"], times["theirs_forward"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--capsules", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--codes", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import vector_quantize_pytorch as library
    except ModuleNotFoundError:
        raise SystemExit("compares with vector-quantize-pytorch: pip install vector-quantize-pytorch") from None
    torch.set_num_threads(arguments.threads)
    record = {
        "size": {name: getattr(arguments, name) for name in ("rows", "capsules", "width", "codes")},
        "rounds": arguments.rounds,
        "machine": describe_machine(arguments.threads),
        "library": version("vector-quantize-pytorch"),
        **measure(library, arguments),
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
