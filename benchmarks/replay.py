"""Time of one training step's work on the replay buffer, against cpprb and against a list.

One step: store the transitions of 96 rows, sample 256 by priority with importance weights, give them new priorities.
States have 517 numbers (q_state of hidden_size 512), float32. The buffers are full before the clock starts. Contenders
take turns (A B A B ...) in one process with one thread; a ratio is the median over turns of the quotient of two
neighbouring times, its interval the bootstrap's 95 % of that median. The comparisons:

- `cpprb`: PrioritizedReplayBuffer with obs, act, rew, next_obs, done (`pip install cpprb`; left out where absent). It
  has no masks and no intrinsic rewards; ours store and return those as well. Its arrays stay numpy, ours are tensors.
- `list`: a Python list of tuples written row by row, a numpy array of priorities, np.random.choice with p. Prioritised
  replay as tutorials write it.
- ourselves at other capacities, for the growth with N.

    OMP_NUM_THREADS=1 python -m benchmarks.replay [--out FILE] [--turns 60]

prints one JSON document.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trm_core.config.schema import DQNConfig
from trm_core.dqn.replay import ReplayBuffer

WIDTH, ACTIONS, ROWS, BATCH = 517, 3, 96, 256
ALPHA, BETA = 0.6, 0.5
Step = Callable[[], None]


class Source:
    """The same new states and TD errors for everybody, made before the clock starts."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.states = self.random.standard_normal((8, ROWS, WIDTH), dtype=np.float32)
        self.actions = self.random.integers(0, ACTIONS, ROWS)
        self.rewards = self.random.standard_normal(ROWS, dtype=np.float32)
        self.done = self.random.random(ROWS) < 0.2
        self.td_errors = np.abs(self.random.standard_normal((8, BATCH), dtype=np.float32))
        self.draws = self.random.random((8, BATCH), dtype=np.float32)


def ours(capacity: int, source: Source, **changes: Any) -> Step:
    """Push, complete the step before and what ends now, sample, update: what the trainer does."""
    config = DQNConfig(
        **{
            "buffer_capacity": capacity,
            "replay": "prioritized",
            "priority_alpha": ALPHA,
            "buffer_min_size": 1,
            **changes,
        }
    )
    buffer = ReplayBuffer(config, WIDTH, ACTIONS, torch.device("cpu"))
    states, td_errors, draws = (torch.from_numpy(a) for a in (source.states, source.td_errors, source.draws))
    actions, rewards, done = (torch.from_numpy(a) for a in (source.actions, source.rewards, source.done))
    valid, nothing = torch.ones(ROWS, ACTIONS, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.bool)
    intrinsic = torch.zeros(ROWS)
    slots = torch.full((ROWS,), -1)
    going = nothing
    turn = 0

    def store() -> None:
        nonlocal slots, going, turn
        turn += 1
        previous, slots = slots, buffer.push(states[turn % 8], valid, turn)
        buffer.complete(previous, going, actions, rewards, intrinsic, slots, nothing)
        buffer.complete(slots, done, actions, rewards, intrinsic, slots, done)
        going = ~done

    def step() -> None:
        store()
        batch = buffer.sample(draws[turn % 8], turn, BETA)
        buffer.update_priorities(batch.slot, td_errors[turn % 8])

    for _ in range(capacity // ROWS + 2):
        store()
    spread_priorities(buffer, source.random)
    return step


def spread_priorities(buffer: ReplayBuffer, random: np.random.Generator) -> None:
    """A TD error for everything stored, so that sampling visits all of the buffer."""
    slots = torch.from_numpy(np.flatnonzero(buffer.index.complete))
    buffer.update_priorities(slots, torch.from_numpy(np.abs(random.standard_normal(len(slots)))))


def cpprb_step(capacity: int, source: Source) -> Step:
    from cpprb import PrioritizedReplayBuffer

    columns = {"obs": {"shape": WIDTH, "dtype": np.float32}, "act": {"dtype": np.int8}, "rew": {}, "done": {}}
    columns["next_obs"] = columns["obs"]
    buffer = PrioritizedReplayBuffer(capacity, columns, alpha=ALPHA)
    turn = 0

    def store() -> None:
        nonlocal turn
        turn += 1
        buffer.add(
            obs=source.states[turn % 8],
            act=source.actions,
            rew=source.rewards,
            next_obs=source.states[(turn + 1) % 8],
            done=source.done,
        )

    def step() -> None:
        store()
        batch = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(batch["indexes"], source.td_errors[turn % 8])

    for _ in range(capacity // ROWS + 2):
        store()
    everything = np.arange(capacity)
    buffer.update_priorities(everything, np.abs(source.random.standard_normal(capacity)))
    return step


def list_step(capacity: int, source: Source) -> Step:
    memory: list[tuple[Any, ...]] = []
    priorities: NDArray[np.float64] = np.zeros(capacity)
    place = turn = 0

    def store() -> None:
        nonlocal place, turn
        turn += 1
        states, following = source.states[turn % 8], source.states[(turn + 1) % 8]
        largest = priorities.max() if memory else 1.0
        for row in range(ROWS):
            entry = (states[row].copy(), int(source.actions[row]), float(source.rewards[row]), following[row].copy())
            entry = (*entry, bool(source.done[row]))
            if len(memory) < capacity:
                memory.append(entry)
            else:
                memory[place] = entry
            priorities[place] = largest
            place = (place + 1) % capacity

    def step() -> None:
        store()
        chances = priorities[: len(memory)] ** ALPHA
        chances /= chances.sum()
        indexes = source.random.choice(len(memory), BATCH, p=chances)
        state, action, reward, following, done = zip(*(memory[index] for index in indexes), strict=True)
        for array in (np.stack(state), np.array(action), np.array(reward), np.stack(following), np.array(done)):
            torch.from_numpy(array)
        weights = (len(memory) * chances[indexes]) ** -BETA
        torch.from_numpy(weights / weights.max())
        for index, error in zip(indexes, source.td_errors[turn % 8], strict=True):
            priorities[index] = abs(float(error)) + 1e-6

    for _ in range(capacity // ROWS + 2):
        store()
    priorities[:] = np.abs(source.random.standard_normal(capacity)) + 1e-6
    return step


def alternate(steps: dict[str, Step], turns: int, repeats: int) -> dict[str, NDArray[np.float64]]:
    """Milliseconds per step [turns] of each contender; one turn is the mean of `repeats` steps."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            if turn >= 3:  # the first turns warm caches and allocator
                times[name].append((time.perf_counter() - start) / repeats * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def ratio(mine: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    """Median of mine / other over turns, with the bootstrap's 95 % interval."""
    quotients = mine / other
    picks = np.random.default_rng(0).integers(0, len(quotients), (2000, len(quotients)))
    low, high = np.percentile(np.median(quotients[picks], axis=1), [2.5, 97.5])
    return {"ratio": round(float(np.median(quotients)), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def compare(steps: dict[str, Step], turns: int, repeats: int) -> dict[str, Any]:
    """Ours (the first) against each other one."""
    times = alternate(steps, turns, repeats)
    first, *others = times
    result: dict[str, Any] = {"ms": {name: round(float(np.median(values)), 4) for name, values in times.items()}}
    return result | {f"{first} / {other}": ratio(times[first], times[other]) for other in others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--capacities", type=int, nargs=3, default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, turns = Source(), options.turns
    small, middle, large = options.capacities
    record: dict[str, Any] = {
        "rows": ROWS,
        "batch": BATCH,
        "width": WIDTH,
        "turns": turns,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    if importlib.util.find_spec("cpprb") is not None:
        record["machine"]["cpprb"] = importlib.metadata.version("cpprb")
        for capacity in (middle, large):
            steps = {"ours": ours(capacity, source), "cpprb": cpprb_step(capacity, source)}
            record[f"cpprb, {capacity}"] = compare(steps, turns, repeats=20)
    record[f"list, {middle}"] = compare(
        {"ours": ours(middle, source), "list": list_step(middle, source)}, turns, repeats=3
    )
    sizes = {str(capacity): ours(capacity, source, buffer_dtype="float16") for capacity in (large, middle, small)}
    record["float16, by capacity"] = compare(sizes, turns, repeats=20)
    kinds: dict[str, dict[str, Any]] = {
        "prioritized": {},
        "uniform": {"replay": "uniform"},
        "everything": {"recent_fraction": 0.25, "td_error_threshold": 1e-3, "max_age": middle // ROWS // 2},
    }
    record["kinds"] = compare(
        {name: ours(middle, source, **changes) for name, changes in kinds.items()}, turns, repeats=20
    )
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
