"""`trm predict --votes`: ARC tasks answered by votes, and the output of these."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trm_cli.console import clean, is_terminal, log, out, print_json
from trm_cli.progress import progress
from trm_cli.score_table import vote_lines

if TYPE_CHECKING:
    from trm_core.inference.arc_votes import Voted
    from trm_core.inference.predictor import Predictor
    from trm_core.inference.scoring import Settings
    from trm_core.inference.sources import Asked


def answer_by_votes(
    predictor: Predictor, asked: Asked, most: int, settings: Settings, path: Path | None, as_json: bool
) -> None:
    """Print the answers as they come: for reading on a terminal, elsewhere as JSON lines, with --json as one document
    at the end. Or write the submission to `path`. Raises UsageError, DataError, or StoppedEarly on a signal.
    """
    from trm_core.evaluation.arc_voting import Votes
    from trm_core.inference.arc_inputs import arc_inputs
    from trm_core.inference.arc_votes import VOTER, result_of, rows_of, vote_on
    from trm_core.training.run_dir import write_atomic
    from trm_core.training.stopping import stop_on_signals

    if path is not None:
        require_new(path)
    inputs = arc_inputs(asked, predictor, sys.stdin.buffer, log)
    votes, records = Votes(), []
    terminal = is_terminal(sys.stdout)
    printed = path is None and not as_json
    done, rows = 0, rows_of(predictor, inputs, most)
    with stop_on_signals() as stop, progress("copies", total=rows) as bar:

        def on_row() -> None:
            nonlocal done
            done += 1
            bar.update(done)
            stop.check("stopped before all votes were counted", hint="votes are not kept: run the command again")

        for row, voted in enumerate(vote_on(predictor, inputs, most, settings, votes, on_row)):
            record = {"row": row, **voted.record()}
            if not printed:
                records.append(record)
            elif not out(_for_humans(voted) if terminal else json.dumps(record)):
                return
    result = result_of(votes, inputs)
    arc = result.summary(settings.policy or VOTER)
    if path is not None:
        write_atomic(path, json.dumps(result.submission))
    if as_json:
        print_json({"answers": records, "arc": arc, "path": None if path is None else str(path)})
        return
    if path is not None:
        out(f"two attempts at {len(inputs)} test inputs of {len(result.submission)} tasks: {path}")
    for line in vote_lines(arc):
        (log if printed else out)(line)


def require_new(path: Path) -> None:
    """Raise UsageError unless a file can be made at `path`."""
    from trm_core.errors import UsageError

    if path.exists():
        raise UsageError(f"{path} exists already", hint="name another --out, or remove it first")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}", hint="make it")


def _for_humans(voted: Voted) -> str:
    title = f"{voted.input.task}, test input {voted.input.number}: {voted.copies} copies asked"
    if voted.illegal:
        title += f", {voted.illegal} answered without a grid"
    lines, right = [title], voted.right()
    for number, one in enumerate(voted.best):
        judged = "" if not right else ", right" if right[number] else ", not right"
        lines.append(f"attempt {number + 1}: {one.votes} votes, halt {one.halt_probability:.0%}{judged}")
        lines += [" ".join(map(str, row)) for row in one.grid.tolist()]
    if not voted.best:
        lines.append("no votes")
    return "\n".join([*map(clean, lines), ""])
