"""Run `trm` on a damaged or hostile file and check what it must never do.

Never: an internal error or traceback, a hang, execution of code from the file, a change to anything outside the run, or
a refusal that does not say which file it is about.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import tiny

SECONDS = 20
_MEMORY_BYTES = 4 << 30
# 1: a requested check failed. 2 to 6: refusals with a reason.
ANSWERS = (0, 1, 2, 3, 4, 5, 6)


class Hung(BaseException):
    """Not an Exception, so that no error handling can swallow it."""


@contextlib.contextmanager
def limits(memory_bytes: int) -> Iterator[None]:
    """Stop what takes longer than SECONDS or allocates more than `memory_bytes`."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hung(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes | None]:
    """The contents of every file below a folder; None for a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass
class Bench:
    """A separate folder for one case: `work` holds what is attacked, `outside` what must not change."""

    folder: Path
    said: str = ""  # what was done to the files
    commands: list[str] = field(default_factory=list)
    memory_bytes: int = _MEMORY_BYTES  # that a command may allocate in addition to what is in use

    def __post_init__(self) -> None:
        self.work, self.outside = self.folder / "work", self.folder / "outside"
        self.work.mkdir()
        self.outside.mkdir()
        (self.outside / "secret").write_text("root:x:0:0\n")

    @property
    def marker(self) -> Path:
        """Exists when a payload was executed."""
        return self.outside / "executed"

    def trm(self, *arguments: str | Path, named: str | Path | None = None, real: bool = False) -> tiny.Outcome:
        """Run a command and judge it. `named`: what a refusal must name; `real`: in a separate process."""
        words = [str(argument) for argument in arguments]
        self.commands.append("trm " + " ".join(words))
        before = contents(self.outside)
        try:
            if real:
                done = tiny.run_trm(*words, cwd=self.work, timeout=6 * SECONDS)
                outcome = tiny.Outcome(done.returncode, done.stdout, done.stderr)
            else:
                with limits(self.memory_bytes):
                    outcome = tiny.invoke(*words)
        except Hung as hung:
            raise AssertionError(self.about(f"hangs: {hung}")) from hung
        self.require(not list(self.folder.rglob("executed")), "a payload was executed", outcome)
        self.require(contents(self.outside) == before, "something outside was changed", outcome)
        self.require(outcome.returncode in ANSWERS, f"ended with {outcome.returncode}", outcome)
        self.require("Traceback" not in outcome.stderr + outcome.stdout, "a traceback", outcome)
        if outcome.returncode in (2, 3, 4, 5):
            self.require(named is None or str(named) in outcome.stderr, f"does not name {named}", outcome)
        if outcome.returncode:
            last = (outcome.stderr.strip().splitlines() or [""])[-1]
            said = last.startswith(("hint: ", "error: ", "failed: "))
            self.require(said or outcome.returncode == 2, "the reason is not the last thing it says", outcome)
        return outcome

    def require(self, holds: bool, what: str, outcome: tiny.Outcome) -> None:
        """Fail with the whole story."""
        assert holds, self.about(f"{what}\nexit code {outcome.returncode}\n{outcome.stderr[-2000:]}")

    def about(self, what: str) -> str:
        return f"{self.said}\n{self.commands[-1] if self.commands else ''}\n{what}"
