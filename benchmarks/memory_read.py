"""Time of one read of the memory bank against a softmax over all slots, and against one call of the block network.

    python -m benchmarks.memory_read --out benchmarks/results/memory_read.json [--rounds 40] [--threads 1] [--rows 96]

All on [96, 12, 512] with 4,096 full slots, top 4, 8 heads, float32, forward only. In every round each is timed once,
in turn, so that what else the machine does falls on all alike; figures are medians over rounds, and medians of the
ratios within a round with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trm_core.config.schema import ArchConfig, MemoryConfig
from trm_core.model.layers import Network
from trm_core.model.memory import MemoryBank

K, HIDDEN, CAPACITY, TOP_K, HEADS = 12, 512, 4096, 4, 8


def full_bank() -> MemoryBank:
    random = torch.Generator().manual_seed(0)
    config = MemoryConfig.model_validate({"capacity": CAPACITY, "top_k": TOP_K, "num_heads": HEADS})
    bank = MemoryBank(config, HIDDEN)
    bank.write(torch.randn(CAPACITY, HIDDEN, generator=random), torch.ones(CAPACITY), 1)
    assert int(bank.filled) == CAPACITY
    torch.nn.init.ones_(bank.gate)
    return bank


def full_attention(bank: MemoryBank, z_BKD: Tensor) -> Tensor:
    """The same read without a choice: every head attends to every slot."""

    def heads(x: Tensor) -> Tensor:
        return x.view(1, -1, HEADS, x.shape[-1] // HEADS).transpose(1, 2)

    query = bank.query(z_BKD).flatten(0, 1)
    answer = F.scaled_dot_product_attention(heads(query), heads(bank.keys), heads(bank.values))
    return bank.gate * bank.output(answer.transpose(1, 2).reshape(*z_BKD.shape[:2], -1))


def measure(rows: int, rounds: int) -> dict[str, Any]:
    bank, arch = full_bank(), ArchConfig()
    z = torch.randn(rows, K, HIDDEN, generator=torch.Generator().manual_seed(1))
    block = Network(arch.model_copy(update={"hidden_size": HIDDEN, "num_layers": 2, "num_heads": HEADS}), K)
    work: dict[str, Callable[[], Tensor]] = {
        "read": lambda: bank.read(z),
        "full_attention": lambda: full_attention(bank, z),
        "network": lambda: block(z, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with torch.no_grad():
        for round_ in range(rounds + 2):
            for name, call in work.items():
                began = time.perf_counter()
                call()
                if round_ >= 2:  # the first two warm up
                    seconds[name].append(time.perf_counter() - began)
    taken = {name: np.array(values) for name, values in seconds.items()}
    return {
        "milliseconds": {name: round(1e3 * float(np.median(values)), 2) for name, values in taken.items()},
        "read / full_attention": ratio(taken["read"], taken["full_attention"]),
        "read / network": ratio(taken["read"], taken["network"]),
        "ffn_expansion": arch.ffn_expansion,
    }


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """Median of the ratios within rounds, with its 95 % bootstrap interval."""
    ratios = above / below
    draws = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"median": round(float(np.median(ratios)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = {
        "shape": [options.rows, K, HIDDEN],
        "slots": CAPACITY,
        "top_k": TOP_K,
        "heads": HEADS,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        **measure(options.rows, options.rounds),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
