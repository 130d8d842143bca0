"""Files of one shape whose numbers mean different things are told apart wherever a second file comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from small_sources import write_messages

from trm_core.data.encoding import Encoding

FITTED, NAMED = "encoders were fitted or set differently", "class 0 is 'eggs', not 'ham'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.h5; again.h5 of the same messages; other.h5 of others; renamed.h5 with a class of another name; run/."""
    folder = tmp_path_factory.mktemp("encodings")
    ours = write_messages(folder / "ours.tsv", 120)
    write_messages(folder / "other.tsv", 120, seed=1)
    (folder / "renamed.tsv").write_text(ours.read_text().replace("ham\t", "eggs\t"))
    (folder / "again.tsv").write_text(ours.read_text())
    for name in ("ours", "again", "other", "renamed"):
        settings = ["data.build.dim=8", "data.build.num_capsules=4", "data.build.num_children=2"]
        done = tiny.invoke(
            "build-capsules", str(folder / f"{name}.tsv"), "--out", str(folder / f"{name}.h5"), *settings
        )
        assert done.returncode == 0, done.stderr
    done = train(folder, folder / "run", path=folder / "ours.h5")
    assert done.returncode == 0, done.stderr
    return folder


def train(folder: Path, run: Path, **data: object) -> tiny.Outcome:
    training = {"run_dir": run, "total_steps": 3, "lr_warmup_steps": 1}
    return tiny.invoke("train", *tiny.as_overrides(data=data, training=training))


@pytest.mark.parametrize(("name", "why"), [("again", None), ("other", FITTED), ("renamed", NAMED)])
def test_another_file_of_the_same_shape(name: str, why: str | None, folder: Path, tmp_path: Path) -> None:
    ours, other, run, exported = folder / "ours.h5", folder / f"{name}.h5", folder / "run", tmp_path / "exported"
    assert tiny.invoke("export", str(run), "--format", "safetensors", "--out", str(exported)).returncode == 0
    tries = {
        "evaluated": tiny.invoke("eval", str(run), "--data", str(other), "--policy", "all"),
        "answered": tiny.invoke("predict", str(other), "--model", str(run), "--out", str(tmp_path / "a")),
        "answered by an export": tiny.invoke(
            "predict", str(other), "--model", str(exported), "--out", str(tmp_path / "b")
        ),
        "evaluated in training": train(folder, tmp_path / "1", path=ours, eval_path=other),
        "mixed": train(folder, tmp_path / "2", path=f"[{ours}, {other}]"),
    }
    for what, done in tries.items():
        if why is None:
            assert done.returncode == 0, (what, done.stderr)
        else:
            assert done.returncode in (3, 4), (what, done)
            assert why in done.stderr, what
            assert str(other) in done.stderr, what
            assert "hint: build " in done.stderr, what


def test_what_a_file_does_not_say_contradicts_nothing() -> None:
    silent, ours = Encoding(None, None), Encoding("abc", ["a", "b"])
    assert silent.contradiction(ours) is ours.contradiction(silent) is None
    assert Encoding.of({"encoders": "nonsense", "class_names": 3}) == silent
    assert Encoding.of_record({"encoders": 7}) == Encoding.of_record(None) == silent
    for data in ({}, {"train": 3}, {"train": []}, {"train": [None]}, {"train": [{"class_names": ["a", None]}]}):
        assert Encoding.of_run(data) == silent
    assert Encoding.of_run({"train": [ours.as_record(), {"encoders": "other"}]}) == ours
    assert ours.contradiction(Encoding("abc", ["a"])) == "its class 1 is missing, not 'b'"
