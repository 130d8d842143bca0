"""`trm predict`: a trained model's answers to raw samples, to the samples of a data file, or to puzzles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_cli.config_options import JsonOption
from trm_cli.console import log, out, print_json
from trm_cli.progress import progress

STDOUT = Path("-")


def command(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DATA]...",
            show_default=False,
            help="Raw samples as the training data had them: texts (.txt, one on each line; a folder, one in each "
            ".txt), tables and texts (.csv, .tsv, .jsonl), pictures (files, a folder, .npz, .npy), ARC tasks "
            "(.json); - is stdin. Or a capsule file, or an .npz with arrays sketches, children, ... Of puzzles: a "
            "folder of them, or a file or - with Sudoku lines, mazes or ARC JSON.",
        ),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option("--ask", metavar="TEXT", help="A sample on the command line, instead of DATA; repeatable."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Run directory or exported folder; default: the newest under runs/."),
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write JSON lines to this file; a stopped call continues. Default: stdout (-); answers.jsonl for a "
            "capsule file, an .npz of capsules or a puzzle folder.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of a capsule file or puzzle folder; default: the first of test, validation, train there is."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Raw samples: the column or field that holds the text.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Raw samples: the column or field with the class; default: one with a usual name."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Raw samples: their kind, if the training data mixed several.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="learned, threshold, act, never, all; default: as it was trained."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Reward per price unit: higher buys less; default: the run's.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.0, max=1.0, help="Confidence at which 'threshold' halts.")] = 0.95,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most reasoning steps per sample; default: as trained.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=1, metavar="K", help="Think K times, from different initial states; the most confident answer counts."
        ),
    ] = 1,
    votes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="ARC: two attempts at each test input, by the votes of at most N copies of its task that the model "
            "knows, the task itself among them; --out FILE writes them as Kaggle asks. Policy: never, if not named.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Draw the reasoning about one sample, step by step.")] = False,
    gif: Annotated[Path | None, typer.Option(metavar="FILE", help="The same as an animation, a .gif.")] = None,
    row: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Which sample --show and --gif draw; default: the first, 0.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows processed at once; does not change the answers.")] = 64,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every class.")
    ] = False,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Also write what was done after each step, and why.")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option(metavar="latest|best", help="Which checkpoint of a run to use.")
    ] = "latest",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    json: JsonOption = False,
) -> None:
    """Answer samples: a line for each with the class, the confidence, the steps and the capsules opened, and the
    accuracy if labels are known. Memory use is constant, and the detail of capsules that stay closed is not read.

    Example: trm predict one.png two.jpg --model runs/photos-...

    Example: tail -f messages.txt | trm predict -

    Example: trm predict data.h5 --model exported/digits --out answers.jsonl

    Example: trm predict arc-agi_evaluation_challenges.json --votes 1000 --out submission.json
    """
    import sys
    from contextlib import nullcontext
    from dataclasses import asdict

    from trm_cli.predict_arc import answer_by_votes
    from trm_cli.predict_output import accuracy_line, print_answers, show_thinking
    from trm_core.errors import UsageError
    from trm_core.inference.predictor import Predictor
    from trm_core.inference.scoring import Settings, score
    from trm_core.inference.sources import STDIN, Asked, open_source
    from trm_core.training.run_dir import newest_run
    from trm_core.training.stopping import StopFlag, stop_on_signals

    if show or gif is not None:
        others = {
            "--out": out_,
            "--json": json,
            "--votes": votes,
            "--probabilities": probabilities,
            "--decisions": decisions,
        }
        for name, given in others.items():
            if given:
                raise UsageError(
                    f"{name} is for answers, and --show and --gif draw one sample (--row)",
                    hint="run the command once for each",
                )
    elif row is not None:
        raise UsageError("--row says which sample --show and --gif draw", hint="add one of them, or leave --row out")
    if votes is not None and (probabilities or decisions):
        raise UsageError(
            f"{'--probabilities' if probabilities else '--decisions'} is for single answers, and --votes counts many",
            hint="run the command once for each",
        )
    asked = Asked(tuple(data or ()), tuple(ask or ()), split, kind, column, label)
    asked.require()
    if model is None:
        model = newest_run()
        log(f"model: {model} (the newest run)")
    predictor = Predictor.load(model, device, checkpoint, max_steps=max_steps, restarts=restarts)
    for note in predictor.trained.notes:
        log(note)
    puzzles = predictor.trained.puzzles is not None
    if asked.paths == (STDIN,) and sys.stdin.isatty():
        log("reading from the terminal; Ctrl-D ends")
    settings = Settings(policy, price, confidence, batch, probabilities, decisions)
    if votes is not None:
        answer_by_votes(predictor, asked, votes, settings, None if out_ == STDOUT else out_, json)
        return
    source = open_source(asked, predictor, sys.stdin.buffer, log)
    if show or gif is not None:
        show_thinking(predictor, source, predictor.policy(policy, price, confidence), row or 0, show, gif)
        return
    if out_ == STDOUT or (out_ is None and not source.bulk):
        print_answers(predictor, source, settings, json)
        return
    out_ = out_ or Path("answers.jsonl")
    # While waiting for stdin no flag is polled, so there signals have to interrupt as usual.
    stopping = nullcontext(StopFlag()) if source.rows is None else stop_on_signals()
    with stopping as stop, progress("answering", total=source.rows) as bar:
        found = score(
            predictor,
            source,
            out_,
            settings,
            lambda done, total: bar.update(done, total=total),
            lambda: stop.check(f"stopped; answers so far are in {out_}.part", hint="run the same command to continue"),
        )
    if json:
        print_json({**asdict(found), "path": str(found.path)})
        return
    if found.resumed_at:
        log(f"continued after row {found.resumed_at}")
    if puzzles:
        judged = [f", {share:.1%} {name}" for name in ("right", "valid") if (share := getattr(found, name)) is not None]
        out(f"{found.rows} answers: {found.path} ({found.steps:.2f} steps per puzzle{''.join(judged)})")
    else:
        out(
            f"{found.rows} answers: {found.path} ({found.steps:.2f} steps, {found.opened:.2f} capsules opened, "
            f"{found.spent:.2f} price units per sample)"
        )
    if found.accuracy is not None:
        out(accuracy_line(found.accuracy))
