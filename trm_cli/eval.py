"""`trm eval`: the accuracy and cost of a trained run, under its learned policy and under those that it has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_cli.class_table import print_classes
from trm_cli.config_options import JsonOption, RunWords, run_and_overrides
from trm_cli.console import log, out, print_json
from trm_cli.difficulty_table import print_difficulties
from trm_cli.processes import start_processes
from trm_cli.progress import progress
from trm_cli.score_table import print_scores


def command(
    words: RunWords = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Comma-separated: learned, threshold, never, all, random, act. Default: all that apply.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate: train, validation, test. Default: as in training.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another capsule file or puzzle folder. Default: the run's own."),
    ] = None,
    price: Annotated[
        str | None, typer.Option(metavar="P,...", help="Price levels (reward per price unit) of the learned policy.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.0, max=1.0, help="Confidence at which 'threshold' halts.")] = 0.95,
    selector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another rule to choose capsules: cmi, static, entropy, attention, random; checksum and variance "
            "peek at closed detail.",
        ),
    ] = None,
    checkpoint: Annotated[str, typer.Option(metavar="latest|best", help="Which checkpoint to evaluate.")] = "latest",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the accuracy/cost curves of learned and threshold.")
    ] = None,
    by_class: Annotated[
        bool,
        typer.Option(
            "--by-class", help="Show where the mistakes are: a table by class, for each --policy or the first."
        ),
    ] = False,
    by_difficulty: Annotated[
        bool,
        typer.Option(
            "--by-difficulty",
            help="Puzzles: show how many are right, and after how many steps, by how many cells are to be filled.",
        ),
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="T", help="Most reasoning steps per sample; default: as in training.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=1, metavar="K", help="Think K times, from different initial states; the most confident answer counts."
        ),
    ] = 1,
    submission: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="ARC: write two attempts per test input, as Kaggle asks.")
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="A", help="Exit with code 1 if the first policy's accuracy is below A."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    nproc: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Evaluate in N processes, each on its own GPU.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a run: accuracy with a 95 % interval, capsules opened, price paid, steps and FLOPs per sample.

    Example: trm eval runs/quickstart-... --policy learned,threshold --price 0.002,0.008,0.03 --plot pareto.png

    Example: trm eval runs/quickstart-... dqn.budget=2
    """
    prices = parse_prices(price)
    run, overrides = run_and_overrides(words)
    if nproc is not None:
        start_processes(nproc, json)
        return

    from trm_core.distributed.place import find_place
    from trm_core.distributed.processes import joined
    from trm_core.errors import CheckFailed
    from trm_core.evaluation.evaluate import EvalRequest, evaluate_run
    from trm_core.evaluation.plot import plot_pareto, require_drawable
    from trm_core.training.run_dir import newest_run

    if plot is not None:
        require_drawable(plot)
    place = find_place()
    says = log if place.rank == 0 else lambda message: None
    if run is None:
        run = newest_run()
        says(f"run: {run} (the newest)")
    request = EvalRequest(
        policies=[name.strip() for name in policy.split(",")] if policy else None,
        split=split,
        data=data,
        prices=prices,
        confidence=confidence,
        selector=selector,
        checkpoint=checkpoint,
        curves=plot is not None,
        by_class=by_class,
        by_difficulty=by_difficulty,
        max_steps=max_steps,
        restarts=restarts,
        submission=submission,
        device=device,
        overrides=overrides,
    )
    with joined(place, log=log), progress("evaluating", total=None) as bar:
        record = evaluate_run(run, request, says, lambda done, total: bar.update(done, total=total), place.local_rank)
    if place.rank:
        return
    if plot is not None:
        plot_pareto(record, plot)
        log(f"plot: {plot}")
    if json:
        print_json(record)
    else:
        print_scores(record)
        if by_class:
            print_classes(record["by_class"])
        if by_difficulty:
            print_difficulties(record["by_difficulty"])
        if plot is not None:
            out(f"plot: {plot}")
    if not record["scores"]:
        return
    first = record["scores"][0]
    # A puzzle is right only if all of it is.
    accuracy = first["exact_accuracy" if record["puzzles"] else "accuracy"]
    if min_accuracy is not None and accuracy < min_accuracy:
        raise CheckFailed(
            f"accuracy {accuracy:.4f} of policy '{first['policy']}' is below {min_accuracy}",
            hint="train longer, or lower --min-accuracy",
        )


def parse_prices(text: str | None) -> list[float] | None:
    """'0.01,0.1' -> [0.01, 0.1]. Raises BadParameter unless all are positive numbers."""
    if text is None:
        return None
    try:
        prices = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--price takes numbers separated by commas, not '{text}'") from error
    if not all(0 < price < float("inf") for price in prices):
        raise typer.BadParameter(f"--price must be above 0, got '{text}' (a very small price makes detail nearly free)")
    return prices
