"""How step time grows with batch, capsules, cycles and width, and whether replay and loader stay flat.

    python -m benchmarks.growth --out benchmarks/results/growth.json --plot docs/images/growth.png [--rounds 12]

One quantity grows while all else stays fixed: B 16, k 12, H 2, L 2, width 128, two layers, D 128, plain halting (no
DQN), one thread. Cycles grow through L alone, because the last H-cycle learns and costs more than the others. All sizes
take a turn in every round. For each quantity: the exponent of a straight-line fit to the logarithms (95 % interval over
rounds), the expected exponent, and a fit of non-negative polynomial terms, with each term's share of the time at the
largest size. A constant term makes the exponent smaller than the leading one; attention is the term that grows with k
squared.

Replay is one step's work on a buffer of prioritised transitions (`benchmarks.replay`), by capacity. The loader serves
batches of 96 from files of 1,000 rows and more with windows of 1 MB, so that even the smallest file spans many windows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.record import describe_machine, publish
from benchmarks.replay import Source, ours
from benchmarks.step_cost import write_random
from benchmarks.timing import alternate, take_step
from trm_core.config.schema import Config
from trm_core.data.store import open_capsules
from trm_core.data.stream import SampleStream
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

WIDTH_OF_CAPSULES, BATCH = 128, 96
BASE = {"B": 16, "k": 12, "H": 2, "L": 2, "width": 128}
Work = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """A quantity that grows: its sizes, the expected exponent of its leading term, and the powers to fit."""

    sizes: tuple[int, ...]
    expected: float
    parts: tuple[int, ...] = (0, 1)


GROWTHS = {
    "B": Growth((4, 8, 16, 32, 64), 1),
    "k": Growth((8, 16, 32, 64, 128), 1, (0, 1, 2)),
    "H(L+1)": Growth((4, 8, 16, 32), 1),
    "width": Growth((64, 128, 256, 512), 2, (0, 1, 2)),
    "replay capacity": Growth((10_000, 30_000, 100_000, 300_000), 0),
    "rows of the file": Growth((1000, 4000, 16_000), 0),
}
QUICK = {"B": 3, "k": 3, "H(L+1)": 3, "width": 2, "replay capacity": 2, "rows of the file": 2}  # sizes kept


def trainer(folder: Path, **changes: int) -> Trainer:
    size = BASE | changes
    path = folder / f"k{size['k']}.h5"
    if not path.exists():
        write_random(path, k=size["k"], dim=WIDTH_OF_CAPSULES, rows=300)
    arch = {"hidden_size": size["width"], "num_layers": 2, "num_heads": 4, "q_head_hidden_dim": size["width"]}
    arch |= {"H_cycles": size["H"], "L_cycles": size["L"], "enable_capsule_expansion": False, "q_head_num_actions": 2}
    training = {"global_batch_size": size["B"], "lr_warmup_steps": 10, "device": "cpu"}
    config, file = (
        Config.model_validate({"arch": arch, "training": training, "dqn": {"enabled": False}}),
        open_capsules(path),
    )
    features = resolve_features(config, file)
    return Trainer(resolved(config, features), features, [(file, 1.0)], torch.device("cpu"))


def loader(folder: Path, rows: int) -> Work:
    """Ten batches, after every row was read once: the first reading takes longer, whatever the size of the file."""
    path = folder / f"rows{rows}.h5"
    write_random(path, dim=64, rows=rows)
    stream = SampleStream([(open_capsules(path), 1.0)], seed=0, window_bytes=1 << 20)
    for _ in range(-(-rows // BATCH)):
        stream.take(BATCH)

    def work() -> None:
        for _ in range(10):
            stream.take(BATCH)

    return work


def work_of(name: str, size: int, folder: Path) -> Work:
    if name == "replay capacity":
        return ours(size, Source())
    if name == "rows of the file":
        return loader(folder, size)
    if name == "H(L+1)":
        return partial(take_step, trainer(folder, L=size // BASE["H"] - 1))
    return partial(take_step, trainer(folder, **{name: size}))


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> dict[str, float]:
    """Slope of log median time over log size, with its bootstrap interval over rounds. `seconds`: [rounds, sizes]."""

    def slope(times: np.ndarray) -> float:
        return float(np.polyfit(np.log(sizes), np.log(np.median(times, axis=0)), 1)[0])

    random = np.random.default_rng(0)
    draws = [slope(seconds[random.integers(0, len(seconds), len(seconds))]) for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"exponent": round(slope(seconds), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def parts_at_largest(sizes: np.ndarray, seconds: np.ndarray, powers: tuple[int, ...]) -> dict[str, float]:
    """Share of each power in the time at the largest size, by non-negative least squares on relative errors."""
    median = np.median(seconds, axis=0)
    columns = np.stack([(sizes / sizes[-1]) ** power for power in powers], axis=1)
    found, _ = nnls(columns / median[:, None], np.ones(len(sizes)))
    return {f"size^{power}": round(float(part), 3) for power, part in zip(powers, found / found.sum(), strict=True)}


def measure(name: str, growth: Growth, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        works = {str(size): work_of(name, size, Path(folder)) for size in growth.sizes}
        taken = alternate(works, rounds, warmup=2, calls=10 if name == "replay capacity" else 1)
    sizes, seconds = np.array(growth.sizes, float), np.stack(list(taken.values()), axis=1)
    return {
        "sizes": list(growth.sizes),
        "milliseconds": [round(1e3 * value, 3) for value in np.median(seconds, axis=0).tolist()],
        "expected": growth.expected,
        **exponent(sizes, seconds),
        "parts of the largest": parts_at_largest(sizes, seconds, growth.parts),
    }


def plot(curves: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        sizes, times = np.array(curve["sizes"], float), np.array(curve["milliseconds"])
        line = times[-1] * (sizes / sizes[-1]) ** curve["expected"]
        axis.loglog(sizes, line, "--", color="0.6", label=f"exponent {curve['expected']:g}")
        interval = f"{curve['low']:.2f} to {curve['high']:.2f}"
        axis.loglog(sizes, times, "o-", color="tab:blue", label=f"measured: {curve['exponent']:.2f} ({interval})")
        if curve["expected"] == 0:
            axis.set_ylim(times.min() / 4, times.max() * 4)
        axis.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(name)
        axis.set_ylabel("milliseconds")
        axis.legend(fontsize=8, loc="upper left")
    figure.suptitle("Time by size, everything else fixed (one thread)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", choices=list(GROWTHS), nargs="+", default=list(GROWTHS))
    parser.add_argument("--quick", action="store_true", help="the smallest sizes alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    curves = {}
    for name in arguments.only:
        growth = GROWTHS[name]
        if arguments.quick:
            growth = Growth(growth.sizes[: QUICK[name]], growth.expected, growth.parts)
        curves[name] = measure(name, growth, arguments.rounds)
    setting = {"base": BASE, "rounds": arguments.rounds, "quick": arguments.quick}
    if arguments.plot is not None:
        plot(curves, arguments.plot)
    publish({"setting": setting, "machine": describe_machine(threads=1), "growth": curves}, arguments.out)


if __name__ == "__main__":
    main()
