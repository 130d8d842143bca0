"""Serving: continuous against static batching at the engine, and a real server under a bounded load.

    OMP_NUM_THREADS=1 python -m benchmarks.serving RUN --out benchmarks/results/serving.json [--seconds 15]

`engine`: a model with random weights, which takes at least 20 ms per step for a full batch, answers the same 256
samples. Each needs a number of steps drawn from 1 to 8 (in place of a policy, so that it does not depend on weights).
`static` admits a batch and steps all of it until its last row has finished, as batches are usually run; `compacted` is
static but drops finished rows (on one thread this saves as much as refilling their places, since the time of a step is
proportional to its rows); `continuous` refills every free place. In turn, one thread; ratios are requests per second,
continuous over the others, with 95 % intervals.

`server`: `trm serve RUN` on loopback. First one client alone (median latency), then 64 at once as fast as they can (the
peak), then requests at fixed times at 70 % of that peak (open loop: a late answer does not delay the next request) for
`--seconds`. Every answer is compared with that of the library. Finally a SIGTERM under the load of 64 clients: how many
accepted requests were not answered?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import torch
from torch import Tensor

from benchmarks.exported_step import random_model
from benchmarks.record import publish
from benchmarks.timing import alternate, ratio
from trm_core.data.store import open_capsules
from trm_core.dqn.actions import Action
from trm_core.evaluation.policies import Situation, nothing
from trm_core.inference.engine import Engine
from trm_core.inference.predictor import Predictor
from trm_core.inference.samples import Sample
from trm_core.inference.trained import Trained
from trm_core.model.capsule_state import CapsuleState

BATCH, REQUESTS, CLIENTS, SHARE = 32, 256, 64, 0.7
ARCH = {"hidden_size": 192, "num_layers": 2, "num_heads": 4, "H_cycles": 2, "L_cycles": 2, "max_steps": 8}


@dataclass
class DrawnNeed:
    """A policy that halts each row after the number of steps that it needs."""

    selects: ClassVar[bool] = False
    need: Tensor  # [N]
    price: float = 0.01
    name: str = "drawn"

    def open_first(self, capsules: CapsuleState) -> Tensor:
        return nothing(capsules)

    def decide(self, now: Situation) -> tuple[Tensor, Tensor]:
        action = torch.where(now.steps >= self.need[now.rows], int(Action.HALT), int(Action.CONTINUE))
        return action, nothing(now.capsules)


def answer_static(trained: Trained, samples: list[Sample], need: Tensor) -> None:
    """Answer in batches in which every row takes as many steps as the slowest."""
    for first in range(0, len(samples), BATCH):
        slowest = need[first : first + BATCH].max().expand(BATCH)
        engine = Engine(trained, DrawnNeed(slowest))
        engine.admit(range(BATCH), samples[first : first + BATCH])
        while len(engine):
            engine.step()


def answer_all(trained: Trained, samples: list[Sample], need: Tensor, continuous: bool) -> None:
    engine, following, done = Engine(trained, DrawnNeed(need)), 0, 0
    while done < len(samples):
        room = BATCH - len(engine) if continuous or not len(engine) else 0
        fresh = samples[following : following + room]
        engine.admit(range(following, following + len(fresh)), fresh)
        following += len(fresh)
        done += len(engine.step())


def compare_batching(repetitions: int) -> dict[str, Any]:
    trained = random_model(ARCH)
    random = np.random.default_rng(0)
    samples = [Sample(random.normal(size=(16, 32)).astype(np.float32)) for _ in range(REQUESTS)]
    need = torch.from_numpy(random.integers(1, 9, REQUESTS))
    works = {
        "static": partial(answer_static, trained, samples, need),
        "compacted": partial(answer_all, trained, samples, need, False),
        "continuous": partial(answer_all, trained, samples, need, True),
    }
    seconds = alternate(works, repetitions)
    engine = Engine(trained, DrawnNeed(torch.full((REQUESTS,), 99)))
    engine.admit(range(BATCH), samples[:BATCH])
    began = time.perf_counter()
    for _ in range(5):
        engine.step()
    return {
        "step ms": round(1e3 * (time.perf_counter() - began) / 5, 1),
        "requests per second, continuous / static": ratio(seconds["static"], seconds["continuous"]),
        "requests per second, continuous / compacted": ratio(seconds["compacted"], seconds["continuous"]),
    }


@dataclass
class Load:
    """Sends requests and records what clients see."""

    bodies: list[str]
    expected: list[Any]
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: int = 0  # 503, or no connection
    dropped: int = 0  # a connection that was accepted and ended without an answer

    async def ask(self, client: httpx.AsyncClient, number: int) -> bool:
        number %= len(self.bodies)
        began = time.perf_counter()
        try:
            answer = await client.post("/predict", content=self.bodies[number])
        except httpx.ConnectError:
            self.refused += 1
            return False
        except httpx.TransportError:
            self.dropped += 1
            return False
        self.seconds.append(time.perf_counter() - began)
        if answer.status_code != 200:
            self.refused += 1
            return False
        found = answer.json()["answers"][0]
        self.wrong += (found["prediction"], found["steps"], found["opened"]) != self.expected[number]
        return True


def client_of(address: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    return httpx.AsyncClient(base_url=address, limits=limits, timeout=60)


async def closed_loop(address: str, load: Load, clients: int, seconds: float) -> float:
    """Requests per second of clients that send the next request as soon as they are answered."""
    end = time.perf_counter() + seconds

    async def one(client: httpx.AsyncClient, first: int) -> None:
        number = first
        while time.perf_counter() < end and await load.ask(client, number):
            number += clients

    began = time.perf_counter()
    async with client_of(address) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    return len(load.seconds) / (time.perf_counter() - began)


async def open_loop(address: str, load: Load, rate: float, seconds: float) -> None:
    """Send requests at fixed times."""
    async with client_of(address) as client:
        began, asked = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            asked.append(asyncio.ensure_future(load.ask(client, number)))
        await asyncio.gather(*asked)


def measure_server(run: Path, seconds: float) -> dict[str, Any]:
    predictor = Predictor.load(run, device="cpu")
    about = predictor.trained.about
    with open_capsules(about["data"]) as file:
        names = [name for name in ("sketches", "children", "mask", "checksums", "parents") if file.has(name)]
        fields = file.read(about["split"], slice(0, 200), names)
    answers = predictor.predict(**fields)
    expected = [(a.as_record()["prediction"], a.steps, list(a.opened)) for a in answers]
    rows = [{name: values[row].tolist() for name, values in fields.items()} for row in range(len(answers))]
    bodies = [json.dumps({"samples": [row]}) for row in rows]
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_cli.main", "serve", str(run), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]

    def fresh() -> Load:
        return Load(bodies, expected)

    asyncio.run(closed_loop(address, fresh(), 1, 2.0))
    alone, full, steady, ending = fresh(), fresh(), fresh(), fresh()
    asyncio.run(closed_loop(address, alone, 1, 5.0))
    peak = asyncio.run(closed_loop(address, full, CLIENTS, seconds))
    asyncio.run(open_loop(address, steady, SHARE * peak, seconds))

    async def stopped() -> None:
        asking = asyncio.ensure_future(closed_loop(address, ending, CLIENTS, 30.0))
        await asyncio.sleep(3.0)
        process.send_signal(signal.SIGTERM)
        await asking

    asyncio.run(stopped())
    code = process.wait(timeout=60)
    single, p50, p99 = (
        1e3 * float(np.quantile(load.seconds, share)) for load, share in ((alone, 0.5), (steady, 0.5), (steady, 0.99))
    )
    return {
        "single request ms (median)": round(single, 2),
        "peak requests per second": round(peak, 1),
        "requests at 70 % of it": len(steady.seconds),
        "p50 ms at 70 %": round(p50, 2),
        "p99 ms at 70 %": round(p99, 2),
        "p99 / single request": round(p99 / single, 2),
        "answers compared": sum(len(load.seconds) for load in (alone, full, steady, ending)),
        "wrong": sum(load.wrong for load in (alone, full, steady, ending)),
        "refused before the end": sum(load.refused for load in (alone, full, steady)),
        "dropped": sum(load.dropped for load in (alone, full, steady)),
        "SIGTERM under load": {
            "answered": len(ending.seconds), "refused": ending.refused, "dropped": ending.dropped, "exit code": code,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory whose capsule file is there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    busy = {"cores": os.cpu_count(), "load before": round(os.getloadavg()[0], 1)}  # of others, who slow this down
    engine = compare_batching(options.repetitions)
    server = measure_server(options.run, options.seconds)
    record = {"machine": busy, "engine": engine, "server": server}
    publish(record, options.out)


if __name__ == "__main__":
    main()
