"""The cost of saving every hundred steps: a model of 10 million parameters with a full replay buffer.

    OMP_NUM_THREADS=2 python -m benchmarks.save_cost --out benchmarks/results/save_cost.json [--saves 12]

In turn: one checkpoint written in the background, from the copy of the state to the complete folder, with the steps
taken meanwhile; and as many steps without a save. The difference is the cost of a save, given as a share of 100 steps;
the same is measured for a save that training waits for. Means with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.record import publish
from benchmarks.runs import interval
from benchmarks.step_cost import write_random
from benchmarks.timing import take_step
from trm_core.config.schema import Config
from trm_core.data.store import open_capsules
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

SETTINGS = {
    "arch": {
        "hidden_size": 512, "num_layers": 3, "num_heads": 8, "H_cycles": 1, "L_cycles": 1, "q_head_hidden_dim": 256,
    },
    "training": {"lr_warmup_steps": 10, "device": "cpu"},
    "dqn": {"enabled": True, "buffer_capacity": 100_000, "buffer_dtype": "float16", "buffer_min_size": 1000},
}  # fmt: skip


def make_trainer(data: Path, run: Path, batch: int) -> Trainer:
    settings = {**SETTINGS, "training": {**SETTINGS["training"], "global_batch_size": batch}}
    config, file = Config.model_validate(settings), open_capsules(data)
    features = resolve_features(config, file)
    return Trainer(resolved(config, features), features, [(file, 1.0)], torch.device("cpu"), run)


def fill_replay(trainer: Trainer) -> None:
    """Fill every slot with random transitions, so that a checkpoint holds a full buffer."""
    replay, capacity = trainer.state.replay, trainer.config.dqn.buffer_capacity
    assert replay is not None
    width, actions = trainer.state.model.q_head.state_width, trainer.state.model.q_head.num_actions
    size = 1000
    for _ in range(capacity // size):
        slots = replay.push(torch.rand(size, width), torch.ones(size, actions, dtype=torch.bool), trainer.state.step)
        ended, reward = torch.ones(size, dtype=torch.bool), torch.rand(size)
        replay.complete(slots, ended, torch.ones_like(slots), reward, torch.zeros(size), slots, ended)


def seconds_of(trainer: Trainer, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        take_step(trainer)
    return time.perf_counter() - began


def lost_to_a_save(trainer: Trainer, waits: bool) -> tuple[float, float]:
    """(seconds that a save costs, seconds of a step)."""
    keeper, steps = trainer.keeper, 0
    assert keeper is not None
    began = time.perf_counter()
    keeper.start(print)
    while not waits and not trainer.standing().saved:
        take_step(trainer)
        steps += 1
    keeper.conclude(print)
    elapsed, compared = time.perf_counter() - began, max(steps, 5)
    without = seconds_of(trainer, compared) / compared
    return elapsed - steps * without, without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--saves", type=int, default=12)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    shares: dict[str, list[float]] = {"beside training": [], "waited for": []}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(write_random(Path(folder) / "random.h5"), Path(folder) / "run", arguments.batch)
        fill_replay(trainer)
        seconds_of(trainer, 4)
        for _ in range(arguments.saves):
            for name, found in shares.items():
                lost, step = lost_to_a_save(trainer, waits=name == "waited for")
                found.append(100 * lost / (arguments.interval * step))
                seconds_of(trainer, 1)  # a checkpoint of the same step is not written again
        newest = max((Path(folder) / "run/checkpoints").glob("step_*"))
        bytes_saved = sum(path.stat().st_size for path in newest.iterdir())
    record = {
        "parameters": sum(p.numel() for p in trainer.state.model.parameters()),
        "checkpoint bytes": bytes_saved,
        "interval": arguments.interval,
        "batch": arguments.batch,
        "threads": torch.get_num_threads(),
        **{f"{name}, % of the interval": interval(found) for name, found in shares.items()},
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
