"""Labels as people write them: which column they are in, one class under several names, and amounts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from built_file import Build


def _table(path: Path, labels: list[str], name: str = "label", rows: int = 60) -> Path:
    values = np.random.default_rng(0).normal(size=rows).round(4)
    lines = [f"size,{name}", *(f"{values[n]},{labels[n % len(labels)]}" for n in range(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["Label", "CLASS", "Species", "Outcome"])
def test_a_usual_name_in_any_case_is_the_label(build: Build, tmp_path: Path, name: str) -> None:
    built = build(_table(tmp_path / "t.csv", ["a", "b"], name))
    assert built.manifest["class_names"] == ["a", "b"]
    assert built.report.num_capsules == 1, "it is no feature"


def test_a_coordinate_is_no_label(build: Build, tmp_path: Path) -> None:
    assert build(_table(tmp_path / "t.csv", ["1", "2"], "Y"), num_concepts=4).report.task != "classes"


def test_a_text_column_of_a_usual_name_in_any_case(build: Build, tmp_path: Path) -> None:
    lines = ["Id,Review,Label", *(f"{n},this one is {['good', 'bad'][n % 2]} number {n},{n % 2}" for n in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    built = build(tmp_path / "t.csv", num_capsules=2, num_children=2, dim=8)
    assert (built.report.kind, built.manifest["class_names"]) == ("text", ["0", "1"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_whole_number_is_one_class_however_it_is_written(build: Build, tmp_path: Path, kind: str) -> None:
    source = _table(tmp_path / "t.csv", ["1", "2.0", "1.0", "2", "007"])
    names = ["007", "1", "2"]
    if kind == "jsonl":
        source, names = tmp_path / "t.jsonl", ["0", "1"]
        source.write_text("".join(json.dumps({"size": n * 0.1, "label": float(n % 2)}) + "\n" for n in range(60)))
    built = build(source)
    assert sorted(built.manifest["class_names"]) == sorted(names)
    again = build(source, name="again.h5", encoders_of=str(built.report.path))
    assert (again.all("labels") >= 0).all()


def test_answers_to_labels_that_are_floats_are_compared(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    source.write_text("".join(json.dumps({"a": n * 0.1, "b": -n % 7, "label": float(n % 2)}) + "\n" for n in range(60)))
    data = build(source).report.path
    run = tmp_path / "run"
    settings = tiny.as_overrides(data={"path": data}, training={"run_dir": run, "total_steps": 4})
    trained = tiny.invoke("train", *settings)
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "t.csv").write_text("a,b,label\n0.1,2,1.0\n0.2,3,0\n")
    for file in (source, tmp_path / "t.csv"):
        answered = tiny.invoke("predict", str(file), "--model", run, "--label", "label", "--json")
        assert answered.returncode == 0, answered.stderr
        answers = json.loads(answered.stdout)["answers"]
        assert {answer["target"] for answer in answers} == {"0", "1"}


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["low", "Low", "high"], "'Low' and 'low'"),
        (["caf\u00e9", "cafe\u0301", "tea"], r"'cafe\u0301' and 'caf\xe9'"),
        (["a b", "a  b", "c"], "'a  b' and 'a b'"),
    ],
)
def test_names_that_look_alike_are_said(build: Build, tmp_path: Path, labels: list[str], shown: str) -> None:
    built = build(_table(tmp_path / "t.csv", labels))
    assert any("differ only in case" in said and shown in said for said in built.messages), built.messages


def test_amounts_as_labels_are_said(build: Build, tmp_path: Path) -> None:
    few = build(_table(tmp_path / "few.csv", [str(n) for n in range(30)], rows=120), name="few.h5")
    assert any("30 different numbers in 120 samples" in said for said in few.messages)
    fractions = build(_table(tmp_path / "f.csv", [f"{n}.5" for n in range(30)], rows=600), name="f.h5")
    assert any("if these are amounts" in said for said in fractions.messages)
    many = build(_table(tmp_path / "many.csv", [str(n) for n in range(30)], rows=600), name="many.h5")
    assert not any("if these are amounts" in said for said in many.messages)


def test_twins_with_another_label_are_said(build: Build, tmp_path: Path) -> None:
    source = _table(tmp_path / "t.csv", ["a", "b"])
    source.write_text(source.read_text() + "100,a\n100,b\n100,b\n200,a\n200,a\n")
    assert "3 samples are identical to one with another label: no model can tell these apart" in build(source).messages
