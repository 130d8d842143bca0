"""`trm diagnose` on damaged or forged run folders: it reads every file, so every file is attacked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from amount import many
from bytes_damage import damaged
from hostile_json import HOSTILE, hostile_json
from judge import Bench

SHORT, LONG = 14, many(50)
MEMORY_BYTES = 500 << 20
RECORDS = ("status.json", "dataset.json", "environment.json", "evaluation.json")
FILES = (*RECORDS, "metrics.jsonl", "log.txt", "config.yaml")
ODD_FILES = ("/dev/zero", "folder", "pipe", "loop", "nowhere")

Attack = Callable[[Random, Path], str]


@pytest.fixture
def bench(bench: Bench) -> Bench:
    bench.memory_bytes = MEMORY_BYTES
    return bench


@pytest.fixture
def run(trained_run: Path, bench: Bench) -> Path:
    return Path(shutil.copytree(trained_run, bench.work / "run"))


def diagnose(bench: Bench, run: Path, way: int) -> int:
    """Run the command in one of its variants; the exit code."""
    ways: tuple[tuple[str | Path, ...], ...] = (
        (run,),
        ("dqn", run),
        (run, "--json"),
        (run, "--html", bench.work / "page.html"),
    )
    return bench.trm("diagnose", *ways[way % len(ways)], named=run).returncode


def turn_into(path: Path, kind: str) -> None:
    """Make `path` something other than a file with an end."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": str(path), "nowhere": "gone"}.get(kind, kind))


@pytest.mark.parametrize(("number", "name"), list(enumerate((*FILES, "checkpoints"))))
def test_a_file_without_an_end(number: int, name: str, bench: Bench, run: Path) -> None:
    bench.said = f"{name} has no end"
    turn_into(run / name, ("/dev/zero", "pipe")[number % 2])
    code = diagnose(bench, run, number)
    assert code in (0, 1) or name == "config.yaml", "the rest was not looked at"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize(("number", "name"), list(enumerate((*FILES, "checkpoints"))))
def test_a_file_that_is_none(number: int, name: str, kind: str, bench: Bench, run: Path) -> None:
    bench.said = f"{name}: {kind}"
    turn_into(run / name, kind)
    code = diagnose(bench, run, number)
    assert code in (0, 1) or name == "config.yaml", "the rest was not looked at"


def forge_data(bench: Bench, run: Path, place: str, kind: str) -> None:
    """Let dataset.json name something of this kind as the training or held-out file, and diagnose."""
    path, aim = run / "dataset.json", bench.work / "aim"
    turn_into(aim, kind)
    record = json.loads(path.read_text())
    (record["train"][0] if place == "train" else record["eval"])["path"] = str(aim)
    path.write_text(json.dumps(record))
    bench.said = f"dataset.json, {place}: {kind}"
    diagnose(bench, run, len(kind))


@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder"])
def test_training_data_that_are_no_file(kind: str, bench: Bench, run: Path) -> None:
    forge_data(bench, run, "train", kind)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["train", "eval"])
@pytest.mark.parametrize("kind", [*ODD_FILES, "/dev/full", "/proc/self/mem", "/"])
def test_data_that_are_no_file(place: str, kind: str, bench: Bench, run: Path) -> None:
    forge_data(bench, run, place, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_checkpoint_without_an_end(kind: str, bench: Bench, run: Path) -> None:
    newest = max((run / "checkpoints").glob("step_*"))
    for number, path in enumerate(sorted(newest.iterdir())):
        bench.said = f"{path.name}: {kind}"
        turn_into(path, kind)
        diagnose(bench, run, number)


def of_bytes(random: Random, run: Path) -> str:
    path = run / random.choice(FILES)
    what, data = damaged(random, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name} {what}"


def of_record(random: Random, run: Path) -> str:
    path = run / random.choice(RECORDS)
    what, text = hostile_json(random, path.read_text())
    path.write_text(text, encoding="utf-8", errors="replace")
    return f"{path.name}: {what}"


def of_metrics(random: Random, run: Path) -> str:
    """One metric has a hostile value from some line on; or lines are changed, duplicated or out of order."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    kind = random.choice(("value", "value", "value", "lines", "twice", "order", "keys"))
    if kind == "value":
        records, raw = [json.loads(line) for line in lines], random.choice(HOSTILE)
        name = random.choice(sorted({key for record in records for key in record}))
        begin = random.randrange(len(lines))
        for number in range(begin, len(lines)):
            if name in records[number]:
                lines[number] = json.dumps({**records[number], name: "here"}).replace('"here"', raw)
        kind = f"{name} from line {begin} on: {raw[:40]}"
    elif kind == "lines":
        lines = [hostile_json(random, line)[1] for line in lines]
    elif kind == "twice":
        lines = [line for line in lines for _ in range(random.randint(1, 3))]
    elif kind == "order":
        random.shuffle(lines)
    else:
        lines = [line.replace("{", '{"step": 5, "train/loss": NaN, ', 1) for line in lines]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return f"{path.name}: {kind}"


def of_config(random: Random, run: Path) -> str:
    path = run / "config.yaml"
    lines = path.read_text().splitlines()
    place = random.randrange(len(lines))
    raw = random.choice((*HOSTILE, "&a [*a]", "*none", "!!python/name:os.system", "? [x]", "\t", "!!binary x"))
    lines[place] = lines[place].split(":")[0] + ": " + raw
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    return f"{path.name}, line {place}: {raw[:40]}"


ATTACKS: tuple[Attack, ...] = (of_metrics, of_record, of_config, of_bytes)


@pytest.mark.parametrize("case", range(SHORT))
def test_damaged_run(case: int, random: Random, bench: Bench, run: Path) -> None:
    bench.said = ATTACKS[case % len(ATTACKS)](random, run)
    diagnose(bench, run, random.randrange(4))


@pytest.mark.slow
@pytest.mark.parametrize("case", range(SHORT, LONG))
def test_damaged_run_more(case: int, random: Random, bench: Bench, run: Path) -> None:
    test_damaged_run(case, random, bench, run)
