"""The output of `trm predict`: answers as JSON lines or for reading, and the reasoning step by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_cli.console import clean, is_terminal, log, out, print_json, warn

if TYPE_CHECKING:
    from trm_core.data.puzzles.meaning import Meaning
    from trm_core.evaluation.policies import Policy
    from trm_core.inference.predictor import Predictor
    from trm_core.inference.samples import Answer, Sample
    from trm_core.inference.scoring import Accuracy, Settings
    from trm_core.inference.source import Source
    from trm_core.render.thinking import CapsuleThinking, PuzzleThinking


def print_answers(predictor: Predictor, source: Source, settings: Settings, as_json: bool) -> None:
    """Print answers on stdout as they come: for reading on a terminal, elsewhere as JSON lines, with --json as one
    document. Then print the accuracy, if labels are known.
    """
    from trm_core.inference.scoring import Means, answers

    policy = predictor.policy(settings.policy, settings.price, settings.confidence)
    means, records = Means(), []
    terminal = is_terminal(sys.stdout)
    for sample, answer, record in answers(predictor, policy, source, settings):
        means.add(record)
        if as_json:
            records.append(record)
        elif not out(_for_humans(predictor, sample, answer, record) if terminal else json.dumps(record)):
            return
    accuracy = means.accuracy()
    if as_json:
        print_json({"answers": records, "accuracy": accuracy})
    elif accuracy is not None:
        log(accuracy_line(accuracy))


def accuracy_line(accuracy: Accuracy) -> str:
    return (
        f"accuracy {100 * accuracy.mean:.2f} % (95 % interval {100 * accuracy.low:.1f}-{100 * accuracy.high:.1f}) of "
        f"{accuracy.samples} samples whose label is known"
    )


def _for_humans(predictor: Predictor, sample: Sample, answer: Answer, record: dict[str, Any]) -> str:
    meaning = predictor.trained.puzzles
    return _sample_line(sample, answer, record) if meaning is None else _puzzle(answer, record, meaning)


def _sample_line(sample: Sample, answer: Answer, record: dict[str, Any]) -> str:
    title = record.get("id", f"row {record['row']}") + (f' "{sample.excerpt}"' if sample.excerpt else "")
    told = [" ".join(answer.label), f"sure {answer.confidence:.0%}"]
    if "accuracy" in record:
        told.append(f"{record['accuracy']:.0%} right")
    elif "right" in record:
        told.append("right" if record["right"] else f"wrong: it is {record['target']}")
    told.append(_steps(answer))
    if answer.opened:
        told.append(f"opened {' '.join(map(str, answer.opened))}")
    return clean(f"{title}: {', '.join(told)}")


def _puzzle(answer: Answer, record: dict[str, Any], meaning: Meaning) -> str:
    from trm_core.data.puzzles.answers import drawn

    told = [f"puzzle {record['row']}"]
    told += [name if record[name] else f"not {name}" for name in ("valid", "right") if name in record]
    told += [f"halt {answer.halt_probability:.0%}", f"sure {answer.confidence:.0%}", _steps(answer)]
    lines = drawn(answer.prediction, meaning).splitlines()
    return "\n".join([", ".join(told), *map(clean, lines), ""])


def _steps(answer: Answer) -> str:
    text = f"{answer.steps} step{'s' if answer.steps > 1 else ''}"
    if answer.in_all is None:
        return text
    return f"{text}, restart {answer.restart} ({answer.in_all.steps} steps in all)"


def show_thinking(predictor: Predictor, source: Source, policy: Policy, row: int, show: bool, gif: Path | None) -> None:
    """Answer one sample and draw how the answer came about. Raises UsageError if the row does not exist."""
    from trm_core.errors import UsageError
    from trm_core.render.animation import write_animation
    from trm_core.render.of_answer import thinking_of

    sample = next((one for one in source.start(row) if one is not None), None)
    if sample is None:
        there = "fewer rows" if source.rows is None else f"{source.rows} rows"
        raise UsageError(f"--row {row}: {source.name} has {there}, counted from 0")
    thinking = thinking_of(predictor.trained, sample, next(predictor.stream([sample], policy, trace=True, first=row)))
    if show:
        _print_thinking(thinking)
    if gif is not None:
        for note in write_animation(thinking, gif):
            warn(note)
        log(f"animation: {gif}")


def _print_thinking(thinking: PuzzleThinking | CapsuleThinking) -> None:
    """Print the thinking; off a terminal without colours and within 100 columns."""
    from rich.console import Console

    from trm_core.render.terminal import PuzzlePanels
    from trm_core.render.terminal_capsules import CapsulePanels
    from trm_core.render.thinking import PuzzleThinking

    terminal = is_terminal(sys.stdout)
    console = Console(highlight=False) if terminal else Console(highlight=False, width=100, color_system=None)
    panels = PuzzlePanels(thinking) if isinstance(thinking, PuzzleThinking) else CapsulePanels(thinking)
    console.print(panels)
