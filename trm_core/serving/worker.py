"""The thread that runs the model: requests wait in a bounded queue, and their rows share the calls of the model.

A row begins at the next reasoning step if there is a place, and leaves when it halts, so a request waits for its own
rows only. A sample is one row or, with restarts, one row for each of its beginnings.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from trm_core.errors import DataError
from trm_core.evaluation.policies import Policy
from trm_core.inference.engine import Engine, Finished
from trm_core.inference.restarts import Beginnings, Best, remembering
from trm_core.inference.samples import Answer, Sample
from trm_core.inference.trained import Trained
from trm_core.serving.metrics import Metrics


class QueueFull(Exception):
    """There is no room for more rows; try again later."""


class ShuttingDown(Exception):
    """No more requests are accepted."""


@dataclass(eq=False)
class Request:
    """Samples that are answered together. `done` gets their answers, or the DataError of one of them."""

    samples: list[Sample]
    restarts: int  # rows per sample
    done: Future[list[Answer]] = field(default_factory=Future)
    best: dict[int, Best] = field(default_factory=dict)  # of samples whose rows are not all finished
    answers: dict[int, Answer] = field(default_factory=dict)
    begun: int = 0  # rows handed to the engine so far

    @property
    def rows(self) -> int:
        return len(self.samples) * self.restarts


class Worker:
    """Owns the engine. `submit` may be called from any thread.

    batch, most_waiting: rows that think and rows that wait. beginnings: where the rows of each sample begin, None: one
    row each, as the model was trained.
    """

    def __init__(
        self,
        trained: Trained,
        policy: Policy,
        batch: int,
        most_waiting: int,
        metrics: Metrics,
        beginnings: Beginnings | None = None,
    ) -> None:
        self.beginnings = beginnings or Beginnings(trained.model, 1)
        self.engine, self.batch, self.most_waiting, self.metrics = Engine(trained, policy), batch, most_waiting, metrics
        self.waiting: deque[Request] = deque()
        self.unanswered: set[Request] = set()
        self.rows_waiting = 0
        self.changed = threading.Condition()
        self.closing = False
        self.failure: BaseException | None = None
        self.threads = torch.get_num_threads()
        self.thread = threading.Thread(target=self._work, name="trm-worker", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def submit(self, samples: list[Sample]) -> Future[list[Answer]]:
        """Queue samples; returns their future answers. Raises QueueFull or ShuttingDown."""
        count = self.beginnings.count
        request = Request(samples if count == 1 else [remembering(one) for one in samples], count)
        request.done.set_running_or_notify_cancel()  # so that a client that hangs up cannot cancel it
        with self.changed:
            if self.closing or self.failure is not None:
                raise ShuttingDown
            # A request larger than the queue is accepted when nothing waits, or it never could be.
            if self.rows_waiting and self.rows_waiting + request.rows > self.most_waiting:
                raise QueueFull
            self.waiting.append(request)
            self.unanswered.add(request)
            request.done.add_done_callback(lambda _: self.unanswered.discard(request))
            self.rows_waiting += request.rows
            self.metrics.waiting.set(self.rows_waiting)
            self.changed.notify()
        return request.done

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, and end the thread."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        torch.set_num_threads(self.threads)  # this number is per thread, and starts at all processors
        try:
            while self._next():
                began = time.perf_counter()
                rows = len(self.engine)
                through = self.engine.step()
                self.metrics.step(rows, time.perf_counter() - began)
                self._settle(through)
                self.metrics.thinking.set(len(self.engine))
        except BaseException as error:
            # A bug of ours: everybody who waits must learn of it, and the process must end.
            self._fail(error)
            raise

    def _next(self) -> bool:
        """Wait for something to do and let rows begin; returns whether there is a step to take."""
        with self.changed:
            while not self.waiting and not len(self.engine):
                if self.closing:
                    return False
                self.changed.wait()
            fresh = self._take(self.batch - len(self.engine))
        samples = [request.samples[place] for request, place, _ in fresh]
        latents = [self.beginnings.latents[restart] for _, _, restart in fresh]
        self._settle(self.engine.admit(fresh, samples, latents))
        self.metrics.thinking.set(len(self.engine))
        return True

    def _take(self, room: int) -> list[tuple[Request, int, int]]:
        """The next rows, at most `room`, in the order of requests: (request, sample, beginning). The lock is held."""
        fresh: list[tuple[Request, int, int]] = []
        while self.waiting and len(fresh) < room:
            request = self.waiting[0]
            if request.done.done():  # one of its rows was refused
                self.rows_waiting -= request.rows - request.begun
                self.waiting.popleft()
                continue
            take = min(room - len(fresh), request.rows - request.begun)
            fresh += [(request, *divmod(row, request.restarts)) for row in range(request.begun, request.begun + take)]
            request.begun += take
            self.rows_waiting -= take
            if request.begun == request.rows:
                self.waiting.popleft()
        self.metrics.waiting.set(self.rows_waiting)
        return fresh

    def _settle(self, through: list[Finished]) -> None:
        for one in through:
            assert isinstance(one.key, tuple)
            request, place, restart = one.key
            if request.done.done():
                continue
            if one.error is not None:
                request.done.set_exception(DataError(f"sample {place}: {one.error.message}", hint=one.error.hint))
                continue
            if not request.best.setdefault(place, Best(request.restarts, self.engine.trained.prices)).add(restart, one):
                continue
            answer = request.best.pop(place).finished(one.key).answer
            assert answer is not None
            request.answers[place] = answer
            self.metrics.answered(answer)
            if len(request.answers) == len(request.samples):
                request.done.set_result([request.answers[n] for n in range(len(request.samples))])

    def _fail(self, error: BaseException) -> None:
        with self.changed:
            self.failure = error
            # Not only requests that wait or are in the engine: the error may have come in between.
            for request in list(self.unanswered):
                request.done.set_exception(ShuttingDown())
