"""Joining the other processes of a run, and noticing when one is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread

import torch
import torch.distributed as dist

from trm_core.distributed.place import Place
from trm_core.errors import ResourceError

# Between two exchanges, processes may evaluate a pass over all rows, and rank 0 alone counts votes, so the limit must
# be far longer than a step. A process that dies is noticed at once (its connections close), whatever the limit.
_PATIENCE = timedelta(hours=2)
_SILENCE_S = 20.0  # how long to wait for the others before saying so
_POLL_S = 0.1  # how long a signal may go unnoticed while waiting for the others


@contextmanager
def joined(
    place: Place, poll: Callable[[], None] = lambda: None, log: Callable[[str], None] = lambda message: None
) -> Iterator[None]:
    """Be one of `place.world_size` processes inside the context: NCCL between GPUs, gloo between CPUs.

    poll: called repeatedly while waiting for the others; what it raises ends the wait. log: told of a long wait.
    """
    if place.world_size == 1:
        yield
        return
    # Loopback for the processes of one machine: gloo would look up its host name, which need not resolve.
    if place.address in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    # torch reads the environment; with the local rank it also is what `find_place` understands, under srun as well.
    os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.local_rank), "WORLD_SIZE": str(place.world_size)}
    os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    try:
        _meet(backend, poll, lambda: log(f"waiting at {place.address}:{place.port} for the others: {place.why}"))
    except (dist.DistError, RuntimeError) as error:
        raise ResourceError(
            f"rank {place.rank} cannot reach the others at {place.address}:{place.port}: {_first_line(error)}",
            hint="set MASTER_ADDR to rank 0's machine and MASTER_PORT to a port that is free on it",
        ) from error
    left_in_order = False
    try:
        with peers_watched(place):
            yield
        left_in_order = True
    finally:
        # Leaving NCCL waits until all have left. After an error the others may be waiting for this process in the
        # middle of a step, and its end is what tells them.
        if dist.is_initialized() and (left_in_order or backend == "gloo"):
            dist.destroy_process_group()


def _meet(backend: str, poll: Callable[[], None], say: Callable[[], None]) -> None:
    """Wait for the others in a thread: in the main thread, no signal would be handled for as long as that takes. `say`
    is called once if it takes long: a user who started no others, but has variables of a job left over in the
    environment, would otherwise wait for hours without knowing why.
    """
    errors: list[BaseException] = []

    def meet() -> None:
        try:
            # By the environment: under torchrun the agent, not rank 0, holds the store, and says so there.
            dist.init_process_group(backend, init_method="env://", timeout=_PATIENCE)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            errors.append(error)

    meeting = Thread(target=meet, name="meeting", daemon=True)
    with stdout_kept_clean():
        meeting.start()
        due: float | None = time.monotonic() + _SILENCE_S
        while meeting.is_alive():
            poll()
            if due is not None and time.monotonic() >= due:
                say()
                due = None
            meeting.join(_POLL_S)
    if errors:
        raise errors[0]


@contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What libraries write to stdout, where only results belong, goes to stderr. Gloo of torch 2.10 greets peers."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def peers_watched(place: Place) -> Iterator[None]:
    """Raises ResourceError if another process is lost inside the context."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if place.world_size == 1 or not _is_lost_peer(error):
            raise
        raise ResourceError(
            f"rank {place.rank}: another process of this run is gone ({_first_line(error)})",
            hint="the output above or its machine's log says why it ended; --resume continues from the last checkpoint",
        ) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    """gloo has no error class of its own: its errors are known by their text. NCCL has one, also for other faults."""
    text = str(error).lower()
    if any(words in text for words in ("invalid usage", "duplicate gpu", "out of memory")):
        return False
    return isinstance(error, dist.DistError) or "gloo" in text or "connection closed by peer" in text


def _first_line(error: BaseException) -> str:
    """The first line, without the position in gloo's source before it and the advice after it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(".cc:", 1)[-1].split("] ", 1)[-1].split(". This is typically", 1)[0]
