"""The accuracy/cost table, printed the same by `trm train` and `trm eval`."""

from __future__ import annotations

from typing import Any

from trm_cli.console import out, table


def print_scores(evaluation: dict[str, Any]) -> None:
    """`evaluation`: the record of evaluation.json."""
    scores, chance = evaluation["scores"], evaluation["chance"]
    data = evaluation["data"]
    rows = [
        (
            score["policy"] + ("" if score["setting"] is None else f" @{score['setting']:.4g}"),
            f"{100 * score['accuracy']:.2f}",
            f"{100 * score['low']:.1f}-{100 * score['high']:.1f}",
            f"{100 * score['exact_accuracy']:.2f}",
            f"{score['opened']:.2f}",
            f"{score['spent']:.2f}",
            f"{score['steps']:.2f}",
            f"{score['flops'] / 1e6:.2f}",
        )
        for score in scores
    ]
    columns = ["policy", "accuracy %", "95 %", "exact %", "opened", "spent", "steps", "MFLOPs"]
    title = (
        f"{data['split']} split of {data['path']}: {scores[0]['rows']} samples, "
        f"{evaluation['capsules']} capsules each, at most {evaluation['max_steps']} steps"
    )
    table(title, columns, rows)
    note = f"chance: {100 * chance['majority']:.1f} % (most frequent label)"
    if evaluation.get("peeks"):
        note += f"; {evaluation['selector']} selection peeks at side information about unopened capsules"
    out(note)
    for name, area in evaluation.get("areas", {}).items():
        out(f"area under accuracy/opened, {name}: {100 * area:.2f} % (mean accuracy over 0 to all capsules open)")
