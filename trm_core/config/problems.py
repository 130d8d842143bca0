"""What can be wrong with a config, as data: every problem has a place and a sentence, and all are raised together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trm_core.errors import ConfigError

MOST_LINES = 50  # a file with more is not a config at all


@dataclass(frozen=True)
class Problem:
    """`where` is "file:line", "command line" or empty; `key` the dotted key it is about, or empty."""

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.what) if part)


class InvalidConfig(ConfigError):
    """Everything that is wrong with a config: as data in `problems`, and one line each in `message` (the first 50)."""

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        lines = [str(problem) for problem in problems[:MOST_LINES]]
        if len(problems) > MOST_LINES:
            lines.append(f"... and {len(problems) - MOST_LINES} more problems")
        super().__init__("\n".join(lines), hint=hint)
        self.problems = list(problems)
