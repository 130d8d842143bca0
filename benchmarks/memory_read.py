"""Time of one memory-bank read against a softmax over all slots, and against one call of the block network.

    python -m benchmarks.memory_read --out benchmarks/results/memory_read.json [--rounds 40] [--threads 1] [--rows 96]

All on [96, 12, 512] with 4,096 full slots, top 4, 8 heads, float32, forward only. In every round each is timed once, in
turn, so that other load on the machine affects all alike. Figures are medians over rounds, and medians of the ratios
within a round with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, rounded
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
    """The same read without selecting slots: every head attends to every slot."""

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
    with torch.no_grad():
        taken = alternate(dict(work), rounds, warmup=2)
    return {
        "milliseconds": {name: round(1e3 * float(np.median(values)), 2) for name, values in taken.items()},
        "read / full_attention": rounded(taken["read"] / taken["full_attention"]),
        "read / network": rounded(taken["read"] / taken["network"]),
        "ffn_expansion": arch.ffn_expansion,
    }


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
        "machine": describe_machine(options.threads),
        **measure(options.rows, options.rounds),
    }
    publish(record, options.out)


if __name__ == "__main__":
    main()
