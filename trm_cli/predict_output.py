"""What `trm predict` prints: answers as JSON lines or drawn, and the thinking step by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trm_cli.console import clean, is_terminal, log, out, print_json

if TYPE_CHECKING:
    from trm_core.evaluation.policies import Policy
    from trm_core.inference.predictor import Predictor
    from trm_core.inference.scoring import Settings
    from trm_core.inference.source import Source
    from trm_core.render.thinking import CapsuleThinking, PuzzleThinking


def print_answers(predictor: Predictor, source: Source, settings: Settings, as_json: bool) -> None:
    """Answers to puzzles on stdout: drawn on a terminal, else JSON lines; with --json one document."""
    from trm_core.data.puzzles.answers import drawn
    from trm_core.inference.scoring import answers

    meaning = predictor.trained.puzzles
    assert meaning is not None
    policy = predictor.policy(settings.policy, settings.price, settings.confidence)
    found = answers(predictor, policy, source, settings)
    if as_json:
        print_json({"answers": [record for _, record in found]})
    elif not is_terminal(sys.stdout):
        for _, record in found:
            out(json.dumps(record))
    else:
        for answer, record in found:
            told = [f"puzzle {record['row']}"]
            told += [name if record[name] else f"not {name}" for name in ("valid", "right") if name in record]
            told += [f"halt {answer.halt_probability:.0%}", f"sure {answer.confidence:.0%}", f"{answer.steps} steps"]
            if answer.in_all is not None:
                told.append(f"restart {answer.restart} ({answer.in_all.steps} steps in all)")
            lines = drawn(answer.prediction, meaning).splitlines()
            out("\n".join([", ".join(told), *map(clean, lines), ""]))


def show_thinking(predictor: Predictor, source: Source, policy: Policy, row: int, show: bool, gif: Path | None) -> None:
    """Answer one sample and draw how its answer came about. Raises UsageError for a row that is not there."""
    from trm_core.errors import UsageError
    from trm_core.render.animation import write_animation
    from trm_core.render.of_answer import thinking_of

    if not 0 <= row < source.rows:
        raise UsageError(f"--row {row}: {source.path} has {source.rows} rows, counted from 0")
    sample = next(source.start(row))
    thinking = thinking_of(predictor.trained, sample, next(predictor.stream([sample], policy, trace=True, first=row)))
    if show:
        _print_thinking(thinking)
    if gif is not None:
        write_animation(thinking, gif)
        log(f"animation: {gif}")


def _print_thinking(thinking: PuzzleThinking | CapsuleThinking) -> None:
    """Without colours and within 100 columns where nobody looks."""
    from rich.console import Console

    from trm_core.render.terminal import PuzzlePanels
    from trm_core.render.terminal_capsules import CapsulePanels
    from trm_core.render.thinking import PuzzleThinking

    terminal = is_terminal(sys.stdout)
    console = Console(highlight=False) if terminal else Console(highlight=False, width=100, color_system=None)
    panels = PuzzlePanels(thinking) if isinstance(thinking, PuzzleThinking) else CapsulePanels(thinking)
    console.print(panels)
