"""`trm build-capsules` as a user runs it: output, JSON, configs, groups and prices, errors and their codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from trm_core.data.store.reader import open_capsules


def run(*arguments: str | Path, cwd: Path) -> tiny.Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return tiny.invoke("build-capsules", *arguments)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["age,weight,size,verdict"]
    for _ in range(80):
        age, weight, size = rng.normal(50, 9, 3).round(2)
        lines.append(f"{age},{weight},{size},{'yes' if weight > 50 else 'no'}")
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_digits_in_words(tmp_path: Path) -> None:
    """As a user runs it, in a process of its own."""
    result = tiny.run_trm("build-capsules", "digits", "--out", "digits.h5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "digits: digits (the embedded handwritten digits)" in result.stderr
    assert "\r" not in result.stderr
    assert "train 1437, validation 180, test 180" in result.stdout
    assert "what EXPAND can be worth here: 9" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["digits.h5"]


def test_json_is_one_document(tmp_path: Path, table: Path) -> None:
    result = run(table, "--out", "t.h5", "--label", "verdict", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["path"] == "t.h5"
    assert document["class_names"] == ["no", "yes"]
    assert document["expansion_value"]["children"] > 0.8
    assert "people.csv: table (4 columns with a header, 3 of them numbers)" in result.stderr


def test_flags_groups_prices_and_overrides(tmp_path: Path, table: Path) -> None:
    result = run(
        table,
        "data.build.validation=0.2",
        *("--out", "t.h5", "--label", "verdict", "--test", "0.2", "--seed", "3", "--dim", "4"),
        *("--group", "body=weight,size", "--group", "age=age", "--price", "age=0.5", "--price", "body=3"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    with open_capsules(tmp_path / "t.h5") as file:
        assert file.rows == {"train": 48, "validation": 16, "test": 16}
        assert (file.num_capsules, file.num_children, file.dim) == (2, 2, 4)
        assert file.prices.tolist() == [3.0, 0.5]
        assert file.manifest["build"]["seed"] == 3


def test_a_config_of_either_form(tmp_path: Path, table: Path) -> None:
    (tmp_path / "train.yaml").write_text("data:\n  source: people.csv\n  build:\n    label: verdict\n    test: 0.3\n")
    result = run("--config", "train.yaml", "--out", "a.h5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (tmp_path / "build.yaml").write_text("label: verdict\ntest: 0.3\n")
    result = run(table, "--config", "build.yaml", "--out", "b.h5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with open_capsules(tmp_path / "a.h5") as one, open_capsules(tmp_path / "b.h5") as two:
        assert one.rows["test"] == 24
        assert one.manifest["content_hash"] == two.manifest["content_hash"]


BAD = [
    (["people.csv"], 2, "no output given"),
    (["--out", "x.h5"], 2, "no source given"),
    (["missing.csv", "--out", "x.h5"], 4, "missing.csv: no such file"),
    (["people.csv", "--out", "x.h5", "--label", "verdct"], 4, "no column 'verdct'"),
    (["people.csv", "--out", "x.h5", "--kind", "tabel"], 3, "data.build.kind"),
    (["people.csv", "--out", "x.h5", "--price", "weight"], 2, "--price weight: expected NAME="),
    (["people.csv", "--out", "x.h5", "--label", "verdict", "--encoder", "pixels"], 3, "does not fit tables"),
    (["digits", "--out", "x.h5", "--num-capsules", "5000"], 3, "do not fit on pictures of 8 x 8"),
    (["digits", "--out", "x.h5", "--validation", "1.5"], 3, "data.build.validation"),
    (["digits", "--out", "people.csv"], 2, "people.csv: exists already"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[message for _, _, message in BAD])
def test_mistakes_are_one_line_and_a_code(
    tmp_path: Path, table: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["people.csv"]


def test_settings_that_nothing_heeds(tmp_path: Path, table: Path) -> None:
    """Cross-validation that is none, a width of a sketch that is another, concepts where there are labels."""
    fold = run(table, "--out", "t.h5", "--label", "verdict", "--fold", "2", cwd=tmp_path)
    assert fold.returncode == 3, fold.stderr
    assert "fold=2" in fold.stderr
    assert "folds" in fold.stderr
    dims = run("digits", "--out", "t.h5", "--sketch", "mean", "--sketch-dims", "3", cwd=tmp_path)
    assert dims.returncode == 3, dims.stderr
    assert "data.build.sketch_dims=3 is for sketch leading, and the sketch is mean" in dims.stderr
    assert not (tmp_path / "t.h5").exists()
    built = run(table, "--out", "t.h5", "--label", "verdict", "data.build.num_concepts=9", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "data.build.num_concepts=9 has no effect: the targets are labels" in built.stderr


def test_notes_about_training_are_not_said_of_a_build(tmp_path: Path, table: Path) -> None:
    """A config may name the file that it is built into."""
    (tmp_path / "c.yaml").write_text("data: {path: t.h5, build: {label: verdict}}\nloss_weights: {vq_loss: 0.5}\n")
    built = run(table, "--config", "c.yaml", "--out", "t.h5", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "no effect" not in built.stderr
