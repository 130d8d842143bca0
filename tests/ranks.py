"""Real gloo processes for tests of what several ranks do together.

They are forked, as by `forked`, because starting them would take longer than the tests.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forked import start_server


def _worker(
    rank: int,
    environment: dict[str, str],
    world: int,
    folder: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world, *arguments), f"{folder}/result{rank}.pt")
    except BaseException:
        Path(f"{folder}/error{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def on_ranks(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(rank, world, *arguments)` in `world` processes; their results in rank order.

    `work` is a module-level function (it is pickled); its result is made of tensors, numbers, strings and containers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start_server()
    given = (dict(os.environ), world, str(folder), work, arguments)
    mp.start_processes(_worker, args=given, nprocs=world, join=True, start_method="forkserver")
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(world)]
