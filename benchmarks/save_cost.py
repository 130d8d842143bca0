"""What saving every hundred steps costs: a model of 10 million parameters with a full replay buffer.

    OMP_NUM_THREADS=2 python -m benchmarks.save_cost --out benchmarks/results/save_cost.json [--pairs 5]

Blocks of 100 steps in turn: without saving, with one checkpoint written beside training (as `trm train` does), and with
one that training waits for. A block ends when its checkpoint is complete on the disk. Ratios to the block without, with
bootstrap intervals of 95 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.step_cost import write_random
from benchmarks.timing import alternate, ratio, take_step
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
    """Random transitions in every slot, so that a checkpoint holds a whole buffer."""
    replay, capacity = trainer.state.replay, trainer.config.dqn.buffer_capacity
    assert replay is not None
    width, actions = trainer.state.model.q_head.state_width, trainer.state.model.q_head.num_actions
    size = 1000
    for _ in range(capacity // size):
        slots = replay.push(torch.rand(size, width), torch.ones(size, actions, dtype=torch.bool), trainer.state.step)
        ended, reward = torch.ones(size, dtype=torch.bool), torch.rand(size)
        replay.complete(slots, ended, torch.ones_like(slots), reward, torch.zeros(size), slots, ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_random(Path(folder) / "random.h5")
        trainer = make_trainer(data, Path(folder) / "run", arguments.batch)
        fill_replay(trainer)
        keeper = trainer.keeper
        assert keeper is not None

        def block(saves: bool, waits: bool) -> None:
            if saves:
                keeper.start(print)
            if waits:
                keeper.conclude(print)
            for _ in range(arguments.steps):
                if trainer.standing().saved:
                    keeper.conclude(print)
                take_step(trainer)
            keeper.conclude(print)

        works = {"none": (False, False), "beside": (True, False), "waited for": (True, True)}
        seconds = alternate({name: lambda how=how: block(*how) for name, how in works.items()}, arguments.pairs)
        newest = max((Path(folder) / "run/checkpoints").glob("step_*"))
        bytes_saved = sum(path.stat().st_size for path in newest.iterdir())
    record = {
        "parameters": sum(p.numel() for p in trainer.state.model.parameters()),
        "checkpoint bytes": bytes_saved,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "threads": torch.get_num_threads(),
        "seconds without": float(sorted(seconds["none"])[len(seconds["none"]) // 2]),
        "beside over none": ratio(seconds["beside"], seconds["none"]),
        "waited for over none": ratio(seconds["waited for"], seconds["none"]),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
