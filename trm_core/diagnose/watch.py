"""`training.watch`: run the cheap checks repeatedly during training, and warn once for each that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trm_core.config.schema import Config
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import Evidence, Mixed
from trm_core.diagnose.fix import in_words
from trm_core.diagnose.puzzle_facts import facts_of
from trm_core.diagnose.registry import CHECKS
from trm_core.diagnose.series import from_lines

_LINES = 2000  # kept at most; beyond that, every second line of the older half is dropped
_LOOKS = 40  # per run


class Kept:
    """A logger that keeps its lines in memory; see `trm_core.training.loggers.MetricsLogger`."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})

    def rewind(self, step: int) -> None:
        self.lines = [line for line in self.lines if isinstance(line["step"], int) and line["step"] <= step]

    def close(self) -> None:
        pass


class Watch(Kept):
    """A logger that checks what it keeps as training goes on."""

    def __init__(
        self, config: Config, files: Sequence[tuple[Path, float]], warn: Callable[[str], None], processes: int
    ) -> None:
        """files: the training files with their weights."""
        super().__init__()
        self.warn = warn
        (first, its), *rest = files
        others = [Mixed(facts_of(path), weight / its) for path, weight in rest]
        self.evidence = Evidence(config, data=facts_of(first), processes=processes, others=others)
        self.every = max(config.training.total_steps // _LOOKS, 20)
        self.due = self.every
        self.said: set[str] = set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        super().log(step, values)
        if len(self.lines) > _LINES:
            half = len(self.lines) // 2
            self.lines = self.lines[:half:2] + self.lines[half:]
        if step >= self.due:
            self.due = step + self.every
            self.look(step)

    def look(self, step: int) -> None:
        """Warn of each check that fails and was not reported before."""
        self.evidence.metrics = from_lines(self.lines)
        watched = [check for check in CHECKS if check.watched and check.id not in self.said]
        for one in diagnose(watched, self.evidence):
            if one.finding.verdict is Verdict.FAIL:
                self.said.add(one.check.id)
                mend = in_words(one.finding)
                self.warn(f"warning: step {step}: {one.check.id}: {one.finding.evidence}{f'; {mend}' if mend else ''}")
