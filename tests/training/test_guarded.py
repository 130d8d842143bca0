"""Sinks of foreign code that raise or hang: one warning, and training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

from trm_core.training.guarded import Guarded, Patience


class Sink:
    """Fails, by raising or by hanging, in the calls named; `broken_off` ends what hangs."""

    def __init__(self, fails_in: str = "", error: BaseException | None = None) -> None:
        self.fails_in, self.error = fails_in, error
        self.broken_off = threading.Event()
        self.logged: list[int] = []
        self.closed = 0

    def _maybe_fail(self, call: str) -> None:
        if call == self.fails_in:
            if self.error is not None:
                raise self.error
            assert self.broken_off.wait(20), "nobody broke it off"
            raise ConnectionResetError("broken off")

    def open(self) -> None:
        self._maybe_fail("open")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == 3:
            self._maybe_fail("log")
        self.logged.append(step)

    def close(self) -> None:
        self.closed += 1
        self._maybe_fail("close")

    def break_off(self) -> None:
        self.broken_off.set()


def run(sink: Sink, patience: Patience | None = None) -> list[str]:
    said: list[str] = []
    guarded = Guarded("Foreign", sink, said.append, patience)
    for step in range(1, 2000):
        guarded.log(step, {"train/loss": 1.0})
    guarded.close()
    guarded.log(2000, {})
    return said


def test_a_sink_that_works_gets_every_line_in_order() -> None:
    sink = Sink()
    assert run(sink) == []
    assert sink.logged == list(range(1, 2000))
    assert sink.closed == 1


@pytest.mark.parametrize("call", ["open", "log", "close"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError(), SystemExit(1)], ids=lambda error: repr(error)
)
def test_whatever_it_raises_is_said_once(call: str, error: BaseException) -> None:
    sink = Sink(call, error)
    said = run(sink)
    assert len(said) == 1, said
    assert said[0].startswith(f"warning: Foreign is switched off: {type(error).__name__}")
    assert str(error) in said[0]
    assert "training goes on, and metrics.jsonl has every line" in said[0]
    assert sink.logged[-1:] == {"open": [], "log": [2], "close": [1999]}[call]
    assert sink.closed >= 1, "what it holds is let go of"


@pytest.mark.parametrize(
    ("call", "words"), [("open", "did not start"), ("log", "has accepted nothing"), ("close", "did not finish")]
)
def test_a_sink_that_hangs_is_broken_off(call: str, words: str) -> None:
    sink, began = Sink(call), time.monotonic()
    said = run(sink, Patience(0.2, 0.2, 0.2))
    assert time.monotonic() - began < 5
    assert len(said) == 1, said
    assert words in said[0]
    assert sink.broken_off.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "Foreign sink"]


def test_a_slow_sink_slows_the_caller_and_loses_nothing() -> None:
    """Longer than the queue, quicker than the patience."""
    sink = Sink()
    log = sink.log

    def slow(step: int, values: Mapping[str, float]) -> None:
        if step in (1, 1500):
            time.sleep(0.3)
        log(step, values)

    sink.log = slow  # type: ignore[method-assign]
    assert run(sink) == []
    assert sink.logged == list(range(1, 2000))


def test_without_a_thread_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    said = run(Sink())
    assert len(said) == 1
    assert "can't start new thread" in said[0]
