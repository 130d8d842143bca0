"""Time of one training step's work on the replay buffer, against cpprb and against rows in a list.

One step: store the transitions of 96 rows, sample 256 by priority with importance weights, and update their priorities.
States have 517 numbers (q_state of hidden_size 512), stored as float16 (the default) or, where stated, float32; samples
are float32. The buffers are full before timing starts. Contenders take turns (A B A B ...) in one process with one
thread; a ratio is the median over turns of the quotient of two neighbouring times, with the 95 % bootstrap interval of
that median. The comparisons:

- `cpprb`: PrioritizedReplayBuffer with obs, act, rew, next_obs, done (`pip install cpprb`; left out if absent). It has
  no masks or intrinsic rewards, which ours also store and return. Its arrays stay numpy, ours are tensors.
- `rows`: pushed row by row as tensors into a list, priorities in a numpy array, np.random.choice with p.
- `rows, lists`: the same with priorities in a list and random.choices, that is, all in Python.
- ours at other capacities, with whole states and with states of one number (which leaves only the bookkeeping).

    OMP_NUM_THREADS=1 python -m benchmarks.replay [--out FILE] [--turns 60]

prints one JSON document.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.record import describe_machine, publish
from benchmarks.timing import alternate, median_interval
from trm_core.config.schema import DQNConfig
from trm_core.dqn.replay import ReplayBuffer

WIDTH, ACTIONS, ROWS, BATCH = 517, 3, 96, 256
ALPHA, BETA = 0.6, 0.5
Step = Callable[[], None]


class Source:
    """The same new states and TD errors for all contenders, made before timing starts."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.states = self.random.standard_normal((8, ROWS, WIDTH), dtype=np.float32)
        self.actions = self.random.integers(0, ACTIONS, ROWS)
        self.rewards = self.random.standard_normal(ROWS, dtype=np.float32)
        self.done = self.random.random(ROWS) < 0.2
        self.td_errors = np.abs(self.random.standard_normal((8, BATCH), dtype=np.float32))
        self.draws = self.random.random((8, BATCH), dtype=np.float32)


def ours(capacity: int, source: Source, width: int = WIDTH, **changes: Any) -> Step:
    """Do what the trainer does: push, complete transitions of the last step and those ending now, sample, update."""
    config = DQNConfig(
        **{
            "buffer_capacity": capacity,
            "replay": "prioritized",
            "priority_alpha": ALPHA,
            "buffer_min_size": 1,
            **changes,
        }
    )
    buffer = ReplayBuffer(config, width, ACTIONS, torch.device("cpu"))
    states, td_errors, draws = (torch.from_numpy(a) for a in (source.states, source.td_errors, source.draws))
    states = states[..., :width].contiguous()
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
        buffer.complete(
            torch.cat([previous, slots]),
            torch.cat([going, done]),
            torch.cat([actions, actions]),
            torch.cat([rewards, rewards]),
            torch.cat([intrinsic, intrinsic]),
            torch.cat([slots, slots]),
            torch.cat([nothing, done]),
        )
        going = ~done

    def step() -> None:
        store()
        batch = buffer.sample(draws[turn % 8], turn, BETA)
        buffer.update_priorities(batch.slot, td_errors[turn % 8])

    for _ in range(capacity // ROWS + 2):
        store()
    spread_priorities(buffer, source.random)
    return step


def spread_priorities(buffer: ReplayBuffer, generator: np.random.Generator) -> None:
    """Give everything stored a TD error, so that sampling covers the whole buffer."""
    slots = torch.from_numpy(np.flatnonzero(buffer.index.complete))
    buffer.update_priorities(slots, torch.from_numpy(np.abs(generator.standard_normal(len(slots)))))


def cpprb_step(capacity: int, source: Source, dtype: str) -> Step:
    from cpprb import PrioritizedReplayBuffer

    columns = {"obs": {"shape": WIDTH, "dtype": dtype}, "act": {"dtype": np.int8}, "rew": {}, "done": {}}
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
        for name in ("obs", "next_obs"):
            torch.from_numpy(batch[name]).float()  # what a network wants, as ours returns it
        buffer.update_priorities(batch["indexes"], source.td_errors[turn % 8])

    for _ in range(capacity // ROWS + 2):
        store()
    everything = np.arange(capacity)
    buffer.update_priorities(everything, np.abs(source.random.standard_normal(capacity)))
    return step


def rows_step(capacity: int, source: Source, lists: bool) -> Step:
    memory: list[tuple[Tensor, int, float, Tensor, bool]] = []
    priorities: Any = [0.0] * capacity if lists else np.zeros(capacity)
    states, rewards = torch.from_numpy(source.states), torch.from_numpy(source.rewards)
    actions, done = torch.from_numpy(source.actions), torch.from_numpy(source.done)
    pick = random.Random(0)
    largest = 1.0
    place = turn = 0

    def push(state: Tensor, action: Tensor, reward: Tensor, following: Tensor, ended: Tensor) -> None:
        nonlocal place
        entry = (state.clone(), int(action), float(reward), following.clone(), bool(ended))
        if len(memory) < capacity:
            memory.append(entry)
        else:
            memory[place] = entry
        priorities[place] = largest
        place = (place + 1) % capacity

    def store() -> None:
        nonlocal turn
        turn += 1
        for row in range(ROWS):
            push(states[turn % 8, row], actions[row], rewards[row], states[(turn + 1) % 8, row], done[row])

    def sample() -> tuple[Any, NDArray[np.float64]]:
        """Indexes and their probabilities."""
        if lists:
            mass = [priority**ALPHA for priority in priorities[: len(memory)]]
            indexes = pick.choices(range(len(memory)), mass, k=BATCH)
            return indexes, np.array([mass[index] for index in indexes]) / sum(mass)
        chances = priorities[: len(memory)] ** ALPHA
        chances /= chances.sum()
        indexes = source.random.choice(len(memory), BATCH, p=chances)
        return indexes, chances[indexes]

    def step() -> None:
        nonlocal largest
        store()
        indexes, chances = sample()
        state, action, reward, following, ended = zip(*(memory[index] for index in indexes), strict=True)
        torch.stack(state), torch.tensor(action), torch.tensor(reward), torch.stack(following), torch.tensor(ended)
        weights = (len(memory) * chances) ** -BETA
        torch.from_numpy(weights / weights.max())
        for index, error in zip(indexes, source.td_errors[turn % 8], strict=True):
            priorities[index] = abs(float(error)) + 1e-6
            largest = max(largest, priorities[index])

    for _ in range(capacity // ROWS + 2):
        store()
    priorities[:] = (np.abs(source.random.standard_normal(capacity)) + 1e-6).tolist()
    return step


def compare(steps: dict[str, Step], turns: int, repeats: int) -> dict[str, Any]:
    """Compare ours (the first) with each of the others; one turn is the mean of `repeats` steps."""
    times = alternate(dict(steps), turns, warmup=3, calls=repeats)  # to warm up caches and allocator
    first, *others = times
    result: dict[str, Any] = {"ms": {name: round(1e3 * float(np.median(values)), 4) for name, values in times.items()}}
    for other in others:
        found, low, high = (round(value, 4) for value in median_interval(times[first] / times[other]))
        result[f"{first} / {other}"] = {"ratio": found, "interval": [low, high]}
    return result


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
        "machine": describe_machine(threads=1),
    }
    if importlib.util.find_spec("cpprb") is not None:
        record["machine"]["cpprb"] = importlib.metadata.version("cpprb")
        for capacity in (middle, large):
            for dtype in ("float16", "float32"):
                steps = {
                    "ours": ours(capacity, source, buffer_dtype=dtype),
                    "cpprb": cpprb_step(capacity, source, dtype),
                }
                record[f"cpprb, {capacity}, {dtype}"] = compare(steps, turns, repeats=20)
    for name, lists in (("rows", False), ("rows, lists", True)):
        steps = {"ours": ours(middle, source), name: rows_step(middle, source, lists)}
        record[f"{name}, {middle}"] = compare(steps, turns, repeats=20)
    for name, width in (("whole states", WIDTH), ("states of one number", 1)):
        sizes = {str(n): ours(n, source, width) for n in (large, middle, small)}
        record[f"capacities, {name}"] = compare(sizes, turns, repeats=20)
    kinds: dict[str, dict[str, Any]] = {
        "prioritized": {},
        "uniform": {"replay": "uniform"},
        "everything": {"recent_fraction": 0.25, "td_error_threshold": 1e-3, "max_age": middle // ROWS // 2},
    }
    record["kinds"] = compare(
        {name: ours(middle, source, **changes) for name, changes in kinds.items()}, turns, repeats=20
    )
    publish(record, options.out)


if __name__ == "__main__":
    main()
