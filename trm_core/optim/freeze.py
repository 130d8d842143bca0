"""Parameters that do not learn."""

from __future__ import annotations

import fnmatch
import json
import shlex

from torch import nn

from trm_core.errors import ConfigError
from trm_core.model.token_embedding import PuzzleEmbedding


def freeze(model: nn.Module, patterns: list[str]) -> set[str]:
    """Switch off the gradient of the parameters whose names match; returns these names. Of patterns that match a name
    the last one counts; one that begins with ! exempts. Raises ConfigError if a pattern matches none, or if nothing is
    left to learn. Puzzle embeddings learn without being parameters, and are named as if they were.
    """
    tables = [f"{name}.weights" for name, module in model.named_modules() if isinstance(module, PuzzleEmbedding)]
    names = [*(name for name, _ in model.named_parameters()), *tables]
    frozen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern.removeprefix("!"))
        if not matched:
            raise ConfigError(
                f"training.freeze: no parameter is named {pattern}",
                hint=f"they begin with {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}",
            )
        frozen = frozen.difference(matched) if pattern.startswith("!") else frozen.union(matched)
    if len(frozen) == len(names):
        raise ConfigError("training.freeze leaves no parameter to train", hint="name fewer")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen


def require_more_than_exceptions(patterns: list[str]) -> None:
    """Raise ConfigError for exceptions alone, which freeze nothing. For new runs: one that began with them goes on."""
    if patterns and all(pattern.startswith("!") for pattern in patterns):
        override = shlex.quote(f"training.freeze={json.dumps(['*', *patterns])}")
        raise ConfigError(
            "training.freeze freezes nothing: all its patterns are exceptions from what those before them froze",
            hint=f"to train nothing else: {override}",
        )
