"""`trm predict` of what people have in their hands: lines of stdin, texts of the command line, pictures, arrays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_sources
import tiny
from PIL import Image
from typer.testing import CliRunner

from trm_cli import predict_output
from trm_cli.main import app
from trm_core.data.arriving import ArrivingLines
from trm_core.data.raw_files import raw_samples
from trm_core.data.raw_rows import Wanted, of_lines
from trm_core.inference import scoring
from trm_core.inference.predictor import Predictor
from trm_core.inference.sources import Asked, open_source


def run_of(folder: Path, source: Path, *options: str) -> Path:
    done = tiny.invoke("build-capsules", source, *options, "--out", folder / "c.h5", "--workers", "0")
    assert done.returncode == 0, done.stderr
    done = tiny.invoke(
        "train",
        *tiny.as_overrides(data={"path": folder / "c.h5"}, training={"run_dir": folder / "run", "total_steps": 8}),
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    return run_of(folder, small_sources.write_messages(folder / "m.tsv", 60))


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    return run_of(folder, small_sources.write_pictures(folder / "photos"), "--num-capsules", "4")


def messages(run: Path) -> list[tuple[str, str]]:
    lines = (run.parent / "m.tsv").read_text().splitlines()
    return [(label, text) for label, text in (line.split("\t") for line in lines)]


def asked(text: str | bytes, *arguments: Any) -> tiny.Outcome:
    result = CliRunner().invoke(app, ["predict", "-", *map(str, arguments)], input=text, prog_name="trm")
    return tiny.Outcome(result.exit_code, result.stdout, result.stderr)


def records(done: tiny.Outcome) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_form_of_stdin_is_the_same_texts(text_run: Path) -> None:
    pairs = messages(text_run)[:5]
    expected = [answer.label[0] for answer in Predictor.load(text_run, device="cpu").ask([text for _, text in pairs])]
    plain = "\n\n".join(text for _, text in pairs)
    objects = "\n".join(
        json.dumps({"id": f"m{n}", "text": text, "label": label}) for n, (label, text) in enumerate(pairs)
    )
    table = "label,text\n" + "\n".join(f'{label},"{text}"' for label, text in pairs)
    odd = "kind,words\n" + "\n".join(f'{label},"{text}"' for label, text in pairs)
    named = "sep=;\nlabel;text\n" + "\n".join(f'{label};"{text}"' for label, text in pairs)
    labelled = "\n".join("\t".join(pair) for pair in pairs)
    found = {
        "a text on each line": records(asked(plain, "--model", text_run)),
        "JSON": records(asked(objects, "--model", text_run)),
        "csv": records(asked(table, "--model", text_run)),
        "csv of Excel": records(asked(named, "--model", text_run)),
        "other csv": records(asked(odd, "--model", text_run, "--column", "words", "--label", "kind")),
        "a label, a tab": records(asked(labelled, "--model", text_run)),
    }
    for form, lines in found.items():
        assert [line["label"] for line in lines] == expected, form
        assert [line["row"] for line in lines] == list(range(5))
        if form == "a text on each line":
            assert "target" not in lines[0]
            assert [line["id"] for line in lines] == [f"stdin:{n}" for n in (1, 3, 5, 7, 9)]
        else:
            assert [line["target"] for line in lines] == [label for label, _ in pairs], form
            assert [line["right"] for line in lines] == [a == b for a, (b, _) in zip(expected, pairs, strict=True)]
    assert [line["id"] for line in found["JSON"]] == [f"m{n}" for n in range(5)]


def test_texts_in_files_of_their_own(text_run: Path, tmp_path: Path) -> None:
    pairs = messages(text_run)[:6]
    lines = tmp_path / "lines.tsv"
    lines.write_text("".join(f"{label}\t{text}\n" for label, text in sorted(pairs)))
    folder = small_sources.write_text_folders(tmp_path / "folder", lines)
    found = []
    for path in (folder, lines):
        out = tmp_path / f"{path.stem}.jsonl"
        done = tiny.invoke("predict", path, "--model", text_run, "--out", out)
        assert done.returncode == 0, done.stderr
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    assert [Path(line["id"]).name for line in found[0]] == [f"{number:04}.txt" for number in range(6)]
    told = [[(line["label"], line["confidence"], line["target"]) for line in answers] for answers in found]
    assert told[0] == told[1]


def test_texts_of_the_command_line_and_of_a_file(text_run: Path, tmp_path: Path) -> None:
    texts = [text for _, text in messages(text_run)[:2]]
    done = tiny.invoke("predict", "--ask", texts[0], "--ask", texts[1], "--model", text_run, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [answer["id"] for answer in document["answers"]] == ["--ask 0", "--ask 1"]
    assert document["accuracy"] is None
    (tmp_path / "mine.txt").write_text("\n".join(texts))
    lines = records(tiny.invoke("predict", tmp_path / "mine.txt", "--model", text_run))
    assert [line["label"] for line in lines] == [answer["label"] for answer in document["answers"]]
    assert lines[1]["id"] == f"{tmp_path / 'mine.txt'}:2"


def test_an_answer_comes_before_the_next_line_is_there(text_run: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_cli.main", "predict", "-", "--model", str(text_run)],
        env=tiny.environment(tmp_path), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for row in range(3):
        process.stdin.write(f"message number {row}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["row"] == row  # hangs where it waits for more
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_lines_know_what_has_arrived() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        lines = ArrivingLines(stream, "stdin")
        numbered = iter(lines)
        os.write(writing, b"\xef\xbb\xbfone\r\ntwo\nthr")
        assert next(numbered) == (1, "one")
        assert not lines.idle()
        assert next(numbered) == (2, "two")
        assert lines.idle()
        os.write(writing, b"ee")
        os.close(writing)
        assert not lines.idle()
        assert list(numbered) == [(3, "three")]
        assert not lines.idle()


def test_nothing_of_a_long_stream_is_read_ahead_without_end() -> None:
    taken = 0

    def lines() -> Any:
        nonlocal taken
        for number in range(1, 10**9):
            taken = number
            yield number, "a text"

    raws = of_lines("stdin", lines(), Wanted("text", lambda name: False))
    for _ in range(10):
        next(raws)
    assert taken == 10


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        ("", [], 4, "stdin holds no samples"),
        ("\n \n", [], 4, "stdin holds no samples"),
        (b"fine\nna\xefve\n", [], 4, "stdin:2: is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n", [], 4, "stdin is a picture"),
        ('{"text": "a b"}\n{"text"\n', [], 4, "stdin:2: no JSON"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}\n', [], 4, "stdin:2: an object has the key 'text' twice"),
        ("a,b\none,two,three\n", ["--column", "a"], 4, "stdin:2: has 3 fields, the header has 2"),
        ("a,b\none,two\n", ["--column", "c"], 4, "stdin:2: has no column 'c'"),
        (
            "a,b\none,two\n",
            ["--column", "a", "--label", "b"],
            4,
            "stdin:2: the label 'two' is not a class of the model",
        ),
        ("a text\n", ["--split", "test"], 2, "have no splits"),
        ("a text\n", ["--ask", "another"], 2, "both files and --ask"),
    ],
)
def test_mistakes_of_stdin_are_named(
    text: str | bytes, arguments: list[str], code: int, message: str, text_run: Path
) -> None:
    done = asked(text, "--model", text_run, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_a_human_sees_a_line_each(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = messages(text_run)[:2]
    monkeypatch.setattr(predict_output, "is_terminal", lambda stream: stream is sys.stdout)
    done = asked("\n".join("\t".join(pair) for pair in pairs), "--model", text_run, "--policy", "all")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(f'stdin:1 "{pairs[0][1][:20]}')
    assert ", sure " in second
    assert ("right" in second) != ("wrong: it is" in second)
    assert "opened " in second
    assert "of 2 samples whose label is known" in done.stderr


def test_pictures_of_every_kind_are_the_builders(picture_run: Path, tmp_path: Path) -> None:
    photos = picture_run.parent / "photos"
    lines = records(tiny.invoke("predict", photos, "--model", picture_run))
    files = sorted(photos.rglob("*.png"))
    assert [line["id"] for line in lines] == [str(file) for file in files]
    assert [line["target"] for line in lines] == [file.parent.name for file in files]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, flat / f"{number:03d}.png")
    unlabelled = records(tiny.invoke("predict", flat, "--model", picture_run))
    assert "target" not in unlabelled[0]
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(tmp_path / "all.npz", images=arrays, labels=[file.parent.name for file in files])
    np.save(tmp_path / "all.npy", arrays)
    of_arrays = records(tiny.invoke("predict", tmp_path / "all.npz", "--model", picture_run))
    several = records(tiny.invoke("predict", *files, "--model", picture_run))
    rows = records(tiny.invoke("predict", tmp_path / "all.npy", "--model", picture_run))
    paths = records(asked("\n".join(map(str, files)), "--model", picture_run))
    for found in (unlabelled, of_arrays, several, rows, paths):
        for one, line in zip(found, lines, strict=True):
            assert one["prediction"] == line["prediction"]
            assert one["confidence"] == pytest.approx(line["confidence"], abs=2e-6)
    assert [line["right"] for line in of_arrays] == [line["right"] for line in lines]
    assert [line["id"] for line in paths] == [str(file) for file in files]


def test_a_photo_is_answered_as_it_stands_upright(picture_run: Path, tmp_path: Path) -> None:
    plain = next((picture_run.parent / "photos").rglob("*.png"))
    turned = small_sources.write_turned(tmp_path / "turned.png", np.asarray(Image.open(plain)), 6)
    first, second = records(tiny.invoke("predict", plain, turned, "--model", picture_run))
    assert second["confidence"] == first["confidence"]


def test_pictures_beside_folders_are_answered_too(picture_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    shutil.copytree(picture_run.parent / "photos" / "dark", folder / "dark")
    shutil.copy(folder / "dark" / "000.png", folder / "new.png")
    lines = records(tiny.invoke("predict", folder, "--model", picture_run))
    assert [line["id"] for line in lines] == [*map(str, sorted(folder.glob("dark/*"))), str(folder / "new.png")]
    assert ["target" in line for line in lines] == [True] * 12 + [False]


def test_what_is_no_such_picture_is_named(picture_run: Path, tmp_path: Path) -> None:
    good = next((picture_run.parent / "photos").rglob("*.png"))
    (tmp_path / "broken.png").write_bytes(b"hello")
    Image.new("L", (9, 12)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("broken.png", "broken.png: cannot be decoded as an image"),
        ("small.png", "small.png: has shape [12, 9, 1]; expected a picture of 12 x 12"),
        ("deep.png", "deep.png: has more than 8 bits per channel"),
        ("empty", "empty: holds no pictures"),
        ("nothing.png", "nothing.png: no such file or folder"),
    ):
        done = tiny.invoke("predict", good, tmp_path / name, "--model", picture_run)
        assert (done.returncode, done.stdout) == (4, ""), done.stderr
        assert message in done.stderr
    done = tiny.invoke("predict", picture_run.parent / "c.h5", good, "--model", picture_run)
    assert done.returncode == 2
    assert "cannot be combined with" in done.stderr


def test_a_file_of_answers_is_gone_on_with_and_judged_as_a_whole(text_run: Path, tmp_path: Path) -> None:
    command = ["predict", text_run.parent / "m.tsv", "--model", text_run]
    whole = tiny.invoke(*command, "--out", tmp_path / "a", "--json")
    assert whole.returncode == 0, whole.stderr
    document = json.loads(whole.stdout)
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    right = [json.loads(line)["right"] for line in lines]
    assert document["accuracy"]["mean"] == pytest.approx(np.mean(right))
    assert document["accuracy"]["samples"] == document["rows"] == len(lines)
    assert document["accuracy"]["low"] < document["accuracy"]["mean"] < document["accuracy"]["high"]
    # As a killed call leaves it: the first lines, and the note of what they are.
    predictor = Predictor.load(text_run, device="cpu")
    source = open_source(Asked((text_run.parent / "m.tsv",)), predictor, sys.stdin.buffer, print)
    (tmp_path / "b.part").write_text("".join(lines[:20]))
    (tmp_path / "b.part.json").write_text(json.dumps(scoring._identity(predictor, source, scoring.Settings())))
    again = tiny.invoke(*command, "--out", tmp_path / "b", "--json")
    assert again.returncode == 0, again.stderr
    resumed = json.loads(again.stdout)
    assert resumed["resumed_at"] == 20
    assert resumed["accuracy"] == document["accuracy"]
    (tmp_path / "c.part").write_text("")
    refused = asked("a text\n", "--model", text_run, "--out", tmp_path / "c")
    assert refused.returncode == 2
    assert "answers to stdin cannot be continued" in refused.stderr


def test_accuracy_is_that_of_eval_for_runs_and_exports(text_run: Path, tmp_path: Path) -> None:
    done = tiny.invoke("export", text_run, "--out", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    done = tiny.invoke("eval", text_run, "--policy", "learned", "--split", "test", "--json")
    assert done.returncode == 0, done.stderr
    (expected,) = json.loads(done.stdout)["scores"]
    for model in (text_run, tmp_path / "exported"):
        out = tmp_path / model.name
        done = tiny.invoke(
            "predict", text_run.parent / "c.h5", "--model", model, "--out", out.with_suffix(".jsonl"), "--json"
        )
        assert done.returncode == 0, done.stderr
        accuracy = json.loads(done.stdout)["accuracy"]
        assert (accuracy["mean"], accuracy["low"], accuracy["high"]) == pytest.approx(
            (expected["accuracy"], expected["low"], expected["high"])
        )
    refused = tiny.invoke("eval", tmp_path / "exported")
    assert refused.returncode == 4
    assert "is an exported folder" in refused.stderr
    assert "trm predict FILE --model" in refused.stderr


def test_arc_tasks_of_files_folders_and_lines(tmp_path: Path) -> None:
    file = small_sources.write_arc(tmp_path / "arc", tasks=3)
    wanted = Wanted("arc", lambda name: name == "Copy")
    every = list(raw_samples(file, wanted))
    assert [raw.id for raw in every[:3]] == ["Copy1 train 0", "Copy1 train 1", "Copy1 test 0"]
    assert [raw.label for raw in every] == ["Copy"] * 3 + [None] * 3 + ["Copy"] * 3
    assert every[2].value["output"] is not None  # of the solutions beside it
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in json.loads(file.read_text()).items():
        (folder / f"{name}.json").write_text(json.dumps(task))
    assert [raw.id for raw in raw_samples(folder / "Copy1.json", wanted)] == [raw.id for raw in every[:3]]
    assert {raw.id for raw in raw_samples(folder, wanted)} == {raw.id for raw in every}
    (tmp_path / "pairs.json").write_text(json.dumps([{"input": [[1]]}, {"input": [[2]], "id": "mine"}]))
    assert [raw.id for raw in raw_samples(tmp_path / "pairs.json", wanted)] == [
        f"{tmp_path / 'pairs.json'}, pair 0",
        "mine",
    ]
