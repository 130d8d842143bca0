"""From raw samples to answers, with the preprocessing of the training data: from a run and from an exported folder."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from trm_core.data.store import open_capsules
from trm_core.errors import DataError, UsageError
from trm_core.inference.predictor import Predictor

WORDS = ("red", "green", "blue", "cold", "warm", "stone", "river", "cloud", "quick", "slow", "ten", "twenty")


def text_of(generator: random.Random, label: str) -> str:
    own = WORDS[:6] if label == "a" else WORDS[6:]
    return " ".join(". ".join(" ".join(generator.choices(own + WORDS, k=5)) for _ in range(4)).split()) + "."


def row_of(generator: random.Random, label: str) -> dict[str, Any]:
    shift = 1.0 if label == "a" else -1.0
    numbers = {f"n{i}": round(generator.gauss(shift, 1.0), 4) for i in range(4)}
    return numbers | {"colour": generator.choice(["red", "blue"] if label == "a" else ["blue", "green"])}


def write_csv(path: Path, kind: str, rows: int = 240) -> list[Any]:
    """Raw samples with labels; returns them without."""
    generator = random.Random(kind)
    samples: list[Any] = []
    with path.open("w", newline="") as file:
        writer: Any = None
        for number in range(rows):
            label = "ab"[number % 2]
            sample = text_of(generator, label) if kind == "text" else row_of(generator, label)
            samples.append(sample)
            line = {"label": label, **({"body": sample} if kind == "text" else sample)}
            writer = writer or csv.DictWriter(file, list(line))
            if number == 0:
                writer.writeheader()
            writer.writerow(line)
    return samples


@pytest.fixture(scope="module", params=["text", "table"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path, Path, list[Any]]:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    samples = write_csv(folder / "raw.csv", kind)
    columns = ["--text", "body"] if kind == "text" else []
    done = tiny.invoke(
        "build-capsules", folder / "raw.csv", "--kind", kind, "--label", "label", *columns, "--out", folder / "c.h5",
        "--workers", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    overrides = tiny.as_overrides(
        data={"path": folder / "c.h5"}, training={"run_dir": folder / "run", "total_steps": 8}
    )
    done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr
    done = tiny.invoke("export", folder / "run", "--out", folder / "exported")
    assert done.returncode == 0, done.stderr
    return kind, folder / "c.h5", folder / "run", folder / "exported", samples


@pytest.mark.parametrize("exported", [False, True])
def test_raw_samples_are_answered_like_those_of_the_file(trained: Any, exported: bool, tmp_path: Path) -> None:
    _kind, capsules, run, folder, samples = trained
    predictor = Predictor.load(folder if exported else run, device="cpu")
    encoded = predictor.encoder.encode(samples)
    with open_capsules(capsules) as file:
        names = [name for name in ("sketches", "children", "mask", "parents") if file.has(name)]
        stored = file.read("train", slice(0, 50), names)
        # The file holds them in another order: each of its rows is one of the raw samples, bit for bit.
        places = [int(np.all(encoded["children"] == row, axis=(1, 2, 3)).argmax()) for row in stored["children"]]
        for name in names:
            assert np.array_equal(encoded[name][places], stored[name]), name
        expected = predictor.predict(**stored)
    answers = predictor.ask([samples[place] for place in places])
    assert [a.as_record(True) for a in answers] == [a.as_record(True) for a in expected]
    assert {a.label[0] for a in answers} <= {"a", "b"}


def test_a_file_of_raw_samples(trained: Any, tmp_path: Path) -> None:
    kind, capsules, run, folder, samples = trained
    raw = capsules.parent / "raw.csv"
    column = ["--column", "body"] if kind == "text" else []
    done = tiny.invoke("predict", raw, *column, "--model", folder, "--out", tmp_path / "csv")
    assert done.returncode == 0, done.stderr
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    done = tiny.invoke("predict", tmp_path / "raw.jsonl", "--model", run, "--out", tmp_path / "lines")
    assert done.returncode == 0, done.stderr
    expected = Predictor.load(folder, device="cpu").ask(samples)
    for name in ("csv", "lines"):
        found = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["row"] for line in found] == list(range(len(samples)))
        assert [line["prediction"] for line in found] == [answer.prediction[0] for answer in expected]


def test_samples_that_are_none_are_named(trained: Any, tmp_path: Path) -> None:
    kind, _, run, _, samples = trained
    with pytest.raises(DataError, match="of the samples from 192 on, sample 8"):
        Predictor.load(run, device="cpu").ask([*samples[:200], 17, *samples[200:]])
    (tmp_path / "bad.jsonl").write_text('{"a"\n')
    done = tiny.invoke("predict", tmp_path / "bad.jsonl", "--model", run, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "bad.jsonl:1: no JSON" in done.stderr
    (tmp_path / "odd.jsonl").write_text(f"{json.dumps(samples[0])}\n[[1, 2], [3]]\n")
    done = tiny.invoke("predict", tmp_path / "odd.jsonl", "--model", run, "--out", tmp_path / "out")
    assert done.returncode == 4
    # What is looked at line by line has the line; what is encoded together, the sample.
    where = ":2: " if kind in ("text", "table") else ": sample 1: "
    assert f"{tmp_path / 'odd.jsonl'}{where}" in done.stderr
    if kind == "text":
        done = tiny.invoke(
            "predict", run.parent / "raw.csv", "--column", "x", "--model", run, "--out", tmp_path / "out"
        )
        assert done.returncode == 4
        assert "has no column 'x'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_of_a_file_without_an_encoder_says_so(trained_run: Path) -> None:
    with pytest.raises(DataError, match="does not hold the encoder") as caught:
        Predictor.load(trained_run, device="cpu").ask(["a text"])
    assert "trm build-capsules" in str(caught.value.hint)


def test_tables_are_read_as_the_builder_reads_them(trained: Any, tmp_path: Path) -> None:
    """Excel's mark at the beginning, semicolons, spaces in the header; never a row of another length."""
    kind, capsules, run, _, samples = trained
    column = ["--column", "body"] if kind == "text" else []
    given = list(csv.reader((capsules.parent / "raw.csv").read_text().splitlines()))[:40]
    expected = [answer.prediction[0] for answer in Predictor.load(run, device="cpu").ask(samples[:39])]
    for name, mark, delimiter in (("marked", "\ufeff", ","), ("german", "", ";")):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(mark)
            csv.writer(file, delimiter=delimiter).writerows([[" " + cell for cell in given[0]], *given[1:]])
        done = tiny.invoke("predict", tmp_path / f"{name}.csv", *column, "--model", run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["prediction"] for line in (tmp_path / name).read_text().splitlines()] == expected
    with (tmp_path / "long.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*given[:3], [*given[3], "and more"]])
    done = tiny.invoke("predict", tmp_path / "long.csv", *column, "--model", run, "--out", tmp_path / "long")
    assert done.returncode == 4
    assert f"long.csv:4: has {len(given[0]) + 1} fields, the header has {len(given[0])}" in done.stderr


def test_a_file_of_no_samples_says_so(trained_run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", sketches=np.zeros((0, 4, 3)))
    done = tiny.invoke("predict", tmp_path / "empty.npz", "--model", trained_run, "--out", tmp_path / "out")
    assert (done.returncode, list(tmp_path.glob("out*"))) == (4, [])
    assert "holds no samples" in done.stderr


def test_what_no_sample_file_is_says_what_one_is(trained: Any, tmp_path: Path) -> None:
    kind, _, run, _, _ = trained
    (tmp_path / "note.xlsx").write_text("a text")
    (tmp_path / "cat.png").write_text("a picture")
    taken = {"text": "a text on each line, .csv, .tsv or .jsonl", "table": "it takes a .csv, .tsv or .jsonl"}[kind]
    for name, what in (
        ("cat.png", "a picture"),
        *([("", "a folder")] * (kind == "table")),
        *([("note.xlsx", "a .xlsx file")] * (kind == "table")),
    ):
        done = tiny.invoke("predict", tmp_path / name, "--model", run)
        assert done.returncode == 4
        assert f"is {what}, and the model was trained on {kind}" in done.stderr
        assert taken in done.stderr
    with pytest.raises(UsageError, match="samples is one str"):
        Predictor.load(run, device="cpu").ask("a single text")
    if kind == "text":
        (tmp_path / "two.csv").write_text("a,b\none,two\n")
        done = tiny.invoke("predict", tmp_path / "two.csv", "--model", run, "--out", tmp_path / "out")
        assert done.returncode == 4
        assert "two.csv:2: expected a text, got a row with the fields a, b" in done.stderr
        assert "--column NAME" in done.stderr


@pytest.mark.parametrize("option", [["--out", "a"], ["--json"], ["--probabilities"], ["--decisions"]])
def test_drawings_of_one_sample_are_no_answers(trained: Any, option: list[str]) -> None:
    _, capsules, run, _, _ = trained
    done = tiny.invoke("predict", capsules, "--model", run, "--show", *option)
    assert done.returncode == 2
    assert f"{option[0]} is for answers" in done.stderr
    assert "{" in done.stdout if option == ["--json"] else not done.stdout  # the document of the failure
