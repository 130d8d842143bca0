"""Our policies against GDFS and DIME: the same capsules, the same splits, the same information.

    python -m benchmarks.acquisition --run RUN_DIR... --data FILE.h5 --out results.json \\
        [--gdfs PATH] [--dime PATH] [--cap-seconds 900] [--plot curves.png]
    python -m benchmarks.acquisition --train configs/quickstart.yaml --seeds 0 1 2 --out results.json \\
        [--gdfs PATH] [--dime PATH] -- data.build.fold={seed}
    python -m benchmarks.acquisition --merge results.json... --out all.json [--plot curves.png]

Each run directory is one seed. `docs/acquisition.md` explains what is compared and how to read the record.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.acquisition import dime, gdfs
from benchmarks.acquisition.curves import Curve
from benchmarks.acquisition.data import flat_data
from benchmarks.acquisition.field import DidNotInstall, FieldOptions, Trained
from benchmarks.acquisition.ours import SELECTORS, OursOptions, curves
from benchmarks.acquisition.plot import draw
from benchmarks.acquisition.summary import OWN, summarise
from benchmarks.runs import train
from trm_core.data.store import CapsuleFile, open_capsules
from trm_core.errors import TrmError, UsageError
from trm_core.evaluation.evaluate import require_fit
from trm_core.evaluation.load import TrainedRun, load_run
from trm_core.evaluation.plot import require_drawable
from trm_core.evaluation.report import EvaluationData, pick_split


def train_seed(config: Path, seed: int, folder: Path, overrides: list[str]) -> Path:
    """Train one seed through the command line, or resume it; `{seed}` in an override is replaced by the seed."""
    run = folder / f"seed{seed}"
    settings = [override.replace("{seed}", str(seed)) for override in overrides]
    train(config, run, [f"training.seed={seed}", *settings])
    return run


def one_seed(run: TrainedRun, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one seed. Raises TrmError."""
    notes: list[str] = list(run.notes)
    file = open_capsules(arguments.data or run.data["eval"]["path"])
    require_fit(run, run.config, file)
    split, _ = pick_split(file, arguments.split if arguments.split != "auto" else held_out_split(file))
    notes += doubts(run, file)
    began = time.monotonic()
    options = OursOptions(selectors=arguments.selectors, order_rows=arguments.order_rows)
    found, everything = curves(run, EvaluationData(file, split), options, notes.append)
    seconds = {OWN: round(time.monotonic() - began, 1)}
    all_of = {OWN: everything}
    facts: dict[str, Any] = {}
    for name, method, path in (("gdfs", gdfs, arguments.gdfs), ("dime", dime, arguments.dime)):
        if path is None:
            continue
        began = time.monotonic()
        trained = field_method(method, path, file, split, run, seed, arguments)
        seconds[name] = round(time.monotonic() - began, 1)
        if isinstance(trained, str):
            notes.append(f"{name}: did not install: {trained}")
            continue
        found += trained.curves
        all_of[name], facts[name] = trained.everything, trained.facts
        for stage in ("pretraining", "joint training"):
            if trained.facts[stage]["capped"]:
                notes.append(f"{name}, seed {seed}: {stage} cut short by --cap-seconds {arguments.cap_seconds:g}")
    return {
        "seed": seed, "run": str(run.path), "file": str(file.path), "split": split, "rows": file.rows[split],
        "content_hash": file.manifest.get("content_hash"), "capsules": file.num_capsules,
        "selector": run.config.dqn.expansion_selector, "parameters": run_parameters(run), "field": facts,
        "seconds": seconds, "notes": notes, "all": all_of, "curves": [curve.record() for curve in checked(found)],
    }  # fmt: skip


def field_method(
    method: Any, path: Path, file: CapsuleFile, split: str, run: TrainedRun, seed: int, arguments: argparse.Namespace
) -> Trained | str:
    """The method's result, or why its package cannot be used."""
    options = FieldOptions(
        seed, run_parameters(run), arguments.cap_seconds, arguments.epochs, arguments.hidden, arguments.max_features
    )
    try:
        return method.run(path, flat_data(file, split, seed), torch.as_tensor(file.prices), options)
    except DidNotInstall as error:
        return str(error)


def held_out_split(file: CapsuleFile) -> str:
    """`test` if there is one, since `validation` is used for early stopping."""
    return "test" if file.rows.get("test") else "auto"


def run_parameters(run: TrainedRun) -> int:
    return sum(p.numel() for p in run.model.parameters())


def checked(found: list[Curve]) -> list[Curve]:
    names = [curve.name for curve in found]
    assert len(set(names)) == len(names), names
    return found


def doubts(run: TrainedRun, file: CapsuleFile) -> list[str]:
    """What a reader of the numbers must know about this run and file."""
    notes = []
    trained_on = {entry["content_hash"] for entry in run.data["train"]}
    if file.manifest.get("content_hash") not in trained_on:
        notes.append(f"{run.path} was trained on another file than {file.path}: its rows may be among the judged ones")
    if not bool((file.prices == file.prices[0]).all()):
        notes.append("prices differ between capsules: curves are over the number opened, `spent` has the prices")
    return notes


def collect(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of any number of seeds. Raises UsageError if they are of different data."""
    kinds = {(one["split"], one["capsules"]) for one in seeds}
    if len(kinds) != 1:
        raise UsageError(f"seeds of different data cannot be put together: {sorted(kinds)}")
    split, k = kinds.pop()
    notes = list(dict.fromkeys(note for one in seeds for note in one["notes"]))
    return {"split": split, "capsules": k, "notes": notes, **summarise(seeds, k), "seeds": seeds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.acquisition",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, nargs="+", help="run directories of `trm train`, one per seed")
    source.add_argument("--train", type=Path, metavar="CONFIG", help="train the seeds first, by `trm train`")
    source.add_argument("--merge", type=Path, nargs="+", help="put records of this script together; nothing is run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="capsule file (default: each run's own)")
    parser.add_argument("--split", default="auto", help="judged split (default: test, else validation)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="to train; with --run, of the baselines (default: the runs')"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/acquisition"), help="where --train puts its runs, by config"
    )
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS), help="of the threshold policy")
    parser.add_argument("--order-rows", type=int, default=512, help="rows on which the fixed order is chosen")
    parser.add_argument("--gdfs", type=Path, help="folder of iancovert/dynamic-selection")
    parser.add_argument("--dime", type=Path, help="folder of suinleelab/DIME")
    parser.add_argument("--cap-seconds", type=float, default=900.0, help="of each of their trainings (two per method)")
    parser.add_argument("--epochs", type=int, help="of each of their trainings (default: as published)")
    parser.add_argument("--hidden", type=int, help="width of their networks (default: as many parameters as ours)")
    parser.add_argument("--max-features", type=int, help="selections per row in their training (default: all capsules)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    parser.add_argument("overrides", nargs="*", help="of --train; {seed} becomes the seed")
    arguments = parser.parse_args()
    if arguments.overrides and not arguments.train:
        parser.error("overrides belong to --train")
    if arguments.train and not arguments.seeds:
        parser.error("--train needs --seeds")
    if arguments.run and arguments.seeds and len(arguments.seeds) != len(arguments.run):
        parser.error(f"{len(arguments.seeds)} seeds for {len(arguments.run)} runs")
    return arguments


def execute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run or merge, writing the record after every seed. Raises TrmError."""
    if arguments.plot is not None:
        require_drawable(arguments.plot)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.merge:
        seeds = [seed for path in arguments.merge for seed in json.loads(path.read_text())["seeds"]]
        return write(arguments.out, seeds)
    seeds, record = [], {}
    for place in range(len(arguments.run or arguments.seeds)):
        if arguments.run:
            path = arguments.run[place]
        else:
            path = train_seed(
                arguments.train, arguments.seeds[place], arguments.runs / arguments.train.stem, arguments.overrides
            )
        run = load_run(path, torch.device("cpu"))
        seed = arguments.seeds[place] if arguments.seeds else run.config.training.seed
        seeds.append(one_seed(run, seed, arguments))
        record = write(arguments.out, seeds)
        print(f"{path}: {seeds[-1]['seconds']} s", file=sys.stderr)
    return record


def write(path: Path, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    record = collect(seeds)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return record


def table(record: dict[str, Any]) -> str:
    """The figures as text, with peeking methods last."""
    lines = [f"{'method':34}{'area':>15}{'area early':>15}{'way early':>11}{'gap early':>11}"]
    methods = record["methods"].items()
    for peeks in (False, True):
        chosen = [(name, m) for name, m in methods if (m["group"] == "peeks") == peeks]
        lines += ["peeks at unopened detail:"] if peeks and chosen else []
        for name, m in chosen:
            cells = [cell(m[key]) for key in ("area", "area_early", "way_early", "gap_share_early")]
            lines.append(f"{name:34}{cells[0]:>15}{cells[1]:>15}{cells[2]:>11}{cells[3]:>11}")
    return "\n".join([*lines, *(f"note: {note}" for note in record["notes"])])


def cell(figure: dict[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    half = "" if figure["low"] is None else f" ±{100 * (figure['mean'] - figure['low']):.1f}"
    return f"{100 * figure['mean']:.2f}{half}"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    try:
        record = execute(arguments)
        if arguments.plot is not None:
            draw(record, arguments.plot)
    except TrmError as error:
        raise SystemExit(f"{error.message}\n{error.hint or ''}") from error
    print(table(record))


if __name__ == "__main__":
    main()
