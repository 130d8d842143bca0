"""The table of accuracy and cost that `trm train` and `trm eval` print."""

from __future__ import annotations

from typing import Any

from trm_cli.console import out, table


def print_scores(evaluation: dict[str, Any]) -> None:
    """Print scores and ARC votes. `evaluation`: the contents of evaluation.json."""
    if evaluation["scores"]:
        print_table(evaluation)
    if "arc" in evaluation:
        for line in vote_lines(evaluation["arc"]):
            out(line)


def vote_lines(arc: dict[str, Any]) -> list[str]:
    """What ARC votes came to. `arc`: the summary of a `VotingResult`."""
    shares = "their solutions are not known"
    if arc["pass_at"] is not None:
        shares = ", ".join(f"pass@{k} {100 * share:.2f} %" for k, share in arc["pass_at"].items() if int(k) <= 10)
    notes = {
        "unanswered": "test inputs without a vote",
        "illegal": "answers that are not a grid",
        "strangers": "votes on inputs that belong to no task",
    }
    return [
        f"{arc['votes']} votes of {arc['policy']} on {arc['tasks']} tasks with solutions: {shares}",
        *(f"note: {arc[name]} {what}" for name, what in notes.items() if arc[name]),
    ]


def print_table(evaluation: dict[str, Any]) -> None:
    """Print the table with one row per policy, and notes."""
    scores, data = evaluation["scores"], evaluation["data"]
    puzzles = bool(evaluation.get("puzzles"))
    rows = [puzzle_cells(score) if puzzles else capsule_cells(score) for score in scores]
    what = ("puzzles", "tokens") if puzzles else ("samples", "capsules")
    title = (
        f"{data['split']} split of {data['path']}: {scores[0]['rows']} {what[0]}, "
        f"{evaluation['capsules']} {what[1]} each, at most {evaluation['max_steps']} steps"
    )
    table(title, list(rows[0]), [list(row.values()) for row in rows])
    note = f"chance: {100 * evaluation['chance']['majority']:.1f} % (most frequent label)"
    if evaluation.get("peeks"):
        note += f"; {evaluation['selector']} selection peeks at side information about unopened capsules"
    out(note)
    if data["split"] == "validation" and "test" in data["splits"]:
        out("the file also has a test split, which was not used to choose anything: trm eval --split test")
    for name, area in evaluation.get("areas", {}).items():
        out(f"area under accuracy/opened, {name}: {100 * area:.2f} % (mean accuracy over 0 to all capsules open)")
    longest = max(scores, key=lambda score: score["steps"])
    if puzzles and longest["exact_by_step"]:
        shown = " ".join(f"{100 * share:.1f}" for share in longest["exact_by_step"])
        out(f"exact % after each step, {longest['policy']}: {shown}")


def name_of_line(policy: str, setting: float | None) -> str:
    """The name of a policy with its price level or confidence."""
    return policy if setting is None else f"{policy} @{setting:.4g}"


def capsule_cells(score: dict[str, Any]) -> dict[str, str]:
    """A row of the table, by column."""
    return {
        "policy": name_of_line(score["policy"], score["setting"]),
        "accuracy %": f"{100 * score['accuracy']:.2f}",
        "95 %": f"{100 * score['low']:.1f}-{100 * score['high']:.1f}",
        "exact %": f"{100 * score['exact_accuracy']:.2f}",
        "opened": f"{score['opened']:.2f}",
        "spent": f"{score['spent']:.2f}",
        "steps": f"{score['steps']:.2f}",
        "MFLOPs": f"{score['flops'] / 1e6:.2f}",
    }


def puzzle_cells(score: dict[str, Any]) -> dict[str, str]:
    """A row for puzzles, in which nothing is bought: no prices, and `never` simply thinks to the last step."""
    cells = capsule_cells(score)
    names = {"never": "never (all steps)", "threshold": cells["policy"]}
    cells |= {"policy": names.get(score["policy"], score["policy"]), "cells %": cells["accuracy %"]}
    cells["95 %"] = f"{100 * score['exact_low']:.1f}-{100 * score['exact_high']:.1f}"
    return {name: cells[name] for name in ("policy", "exact %", "95 %", "cells %", "steps", "MFLOPs")}
