"""`trm export`: a trained run as a folder that other people and programs can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_cli.config_options import JsonOption, RunWords, run_and_overrides
from trm_cli.console import log, out, print_json, table


def command(
    words: RunWords = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format", metavar="LIST", help="Comma-separated: safetensors (always there), torch-export, onnx; or all."
        ),
    ] = "safetensors",
    out_: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder to write; default: exported/ and the run's name."),
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="TYPE", help="How weights are stored: float32, bfloat16, int8.")
    ] = "float32",
    license_: Annotated[
        str, typer.Option("--license", metavar="ID", help="License named in the model card.")
    ] = "other",
    checkpoint: Annotated[str, typer.Option(metavar="latest|best", help="Which checkpoint to export.")] = "latest",
    json: JsonOption = False,
) -> None:
    """Export a run: config.json, weights, model card and, if asked for, one reasoning step as a graph with the loop
    around it. Every form is compared with the model on real samples, after every step; if one differs, nothing is kept.

    Example: trm export runs/quickstart-... --format all --out exported/digits
    """
    from dataclasses import asdict

    from trm_core.export.export import export_run
    from trm_core.training.run_dir import newest_run

    run, overrides = run_and_overrides(words)
    if run is None:
        run = newest_run()
        log(f"run: {run} (the newest)")
    folder = out_ or Path("exported") / run.name
    forms = [name.strip() for name in format_.split(",")]
    found = export_run(run, folder, forms, weights, license_, checkpoint, log, overrides)
    if json:
        print_json(
            {
                "folder": str(found.folder),
                "formats": found.forms,
                "verified": [asdict(one) for one in found.verified],
                "scores": found.scores,
                "accuracy_before": found.accuracy_before,
            }
        )
        return
    table(
        "compared with the model",
        ["form", "samples", "largest difference", "other decisions", "other answers"],
        [
            (v.form, v.samples, f"{v.largest_difference:.2g}", v.differing_decisions, v.differing_answers)
            for v in found.verified
        ],
    )
    if found.accuracy_before is not None:
        out(
            f"accuracy with weights as {weights}: {100 * found.scores[0]['accuracy']:.2f} %, "
            f"before {100 * found.accuracy_before:.2f} %"
        )
    out(f"exported: {found.folder}")
