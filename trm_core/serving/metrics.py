"""What the server counts, in Prometheus format. One registry per server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trm_core.inference.samples import Answer

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Updated by the worker and by the requests."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trm_requests", "Requests by path and status code.", ["path", "code"], registry=registry
        )
        self.latency = Histogram(
            "trm_predict_seconds", "From a whole request to its answers.", buckets=_SECONDS, registry=registry
        )
        self.rows = Counter("trm_rows", "Samples answered.", registry=registry)
        self.reasoning_steps = Counter(
            "trm_reasoning_steps", "Reasoning steps of all rows of samples answered.", registry=registry
        )
        self.opened = Counter("trm_opened_capsules", "Capsules opened in samples answered.", registry=registry)
        self.spent = Counter("trm_price_units", "Price units spent on samples answered.", registry=registry)
        self.waiting = Gauge("trm_rows_waiting", "Rows that wait for a place.", registry=registry)
        self.thinking = Gauge("trm_rows_thinking", "Rows in flight: begun and not yet through.", registry=registry)
        self.batch = Histogram("trm_step_rows", "Rows in a call of the model.", buckets=_ROWS, registry=registry)
        self.step_seconds = Histogram(
            "trm_step_seconds", "Time of a reasoning step.", buckets=_SECONDS, registry=registry
        )

    def step(self, rows: int, seconds: float) -> None:
        self.batch.observe(rows)
        self.step_seconds.observe(seconds)

    def answered(self, answer: Answer) -> None:
        self.rows.inc()
        self.reasoning_steps.inc(answer.cost.steps)
        self.opened.inc(len(answer.cost.opened))
        self.spent.inc(answer.cost.spent)

    def text(self) -> bytes:
        return generate_latest(self.registry)
