"""Files of one shape whose numbers mean different things are told apart wherever a second file comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from small_sources import write_arc, write_messages

from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.encoding import Encoding
from trm_core.data.store import open_capsules

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
    done = train(folder / "run", path=folder / "ours.h5")
    assert done.returncode == 0, done.stderr
    return folder


def train(run: Path, **data: object) -> tiny.Outcome:
    training = {"run_dir": run, "total_steps": 3, "lr_warmup_steps": 1}
    return tiny.invoke("train", *tiny.as_overrides(data=data, training=training))


@pytest.mark.parametrize(("name", "why"), [("again", None), ("other", FITTED), ("renamed", NAMED)])
def test_another_file_of_the_same_shape(name: str, why: str | None, folder: Path, tmp_path: Path) -> None:
    other = folder / f"{name}.h5"
    require(why, other, by_every_way_in(folder / "ours.h5", other, folder / "run", tmp_path))


def by_every_way_in(ours: Path, other: Path, run: Path, tmp_path: Path) -> dict[str, tiny.Outcome]:
    """`other` where `run` was trained on `ours`."""
    exported = tmp_path / "exported"
    assert tiny.invoke("export", str(run), "--format", "safetensors", "--out", str(exported)).returncode == 0
    return {
        "evaluated": tiny.invoke("eval", str(run), "--data", str(other), "--policy", "all"),
        "answered": tiny.invoke("predict", str(other), "--model", str(run), "--out", str(tmp_path / "a")),
        "answered by an export": tiny.invoke(
            "predict", str(other), "--model", str(exported), "--out", str(tmp_path / "b")
        ),
        "evaluated in training": train(tmp_path / "1", path=ours, eval_path=other),
        "mixed": train(tmp_path / "2", path=f"[{ours}, {other}]"),
    }


def require(why: str | None, other: Path, tries: dict[str, tiny.Outcome]) -> None:
    for what, done in tries.items():
        if why is None:
            assert done.returncode == 0, (what, done.stderr)
        else:
            # A config that names files which do not fit together, or a file that does not fit a trained model.
            assert done.returncode == (3 if what in ("mixed", "evaluated in training") else 4), (what, done)
            assert why in done.stderr, what
            assert str(other) in done.stderr, what
            assert "hint: build " in done.stderr, what


def test_concepts_of_another_file(tmp_path: Path) -> None:
    """The encoder of grids is not fitted, so all that tells the files apart are the concepts."""
    for name, seed in (("ours", 0), ("again", 0), ("other", 1)):
        source, settings = write_arc(tmp_path / f"{name}.json", tasks=8, seed=seed), ["data.build.num_concepts=6"]
        done = tiny.invoke("build-capsules", str(source), "--out", str(tmp_path / f"{name}.h5"), *settings)
        assert done.returncode == 0, done.stderr
    ours, run = tmp_path / "ours.h5", tmp_path / "run"
    assert train(run, path=ours).returncode == 0
    for name, why in (("again", None), ("other", "its labels are concepts that were found in it")):
        (tmp_path / f"ways {name}").mkdir()
        other = tmp_path / f"{name}.h5"
        require(why, other, by_every_way_in(ours, other, run, tmp_path / f"ways {name}"))


def test_concepts_of_files_that_keep_no_hash_of_them() -> None:
    old = {"task": "concepts", "encoders": "abc", "content_hash": "1"}
    new = {**old, "concepts_sha256": "x"}
    fits = [(old, old), (old, new), (new, new), (new, {**new, "content_hash": "2"})]
    differ = [{**old, "content_hash": "2"}, {**new, "concepts_sha256": "y"}, {"task": "concepts"}]
    for one, other in fits:
        assert Encoding.of_record(one).contradiction(Encoding.of_record(other)) is None
    for other in differ:
        found = Encoding.of_record(new).contradiction(Encoding.of_record(other))
        assert found is not None
        assert "one file" in found.hint
    assert Encoding.of_record(old).contradiction(Encoding.of_record({**old, "task": "classes"})) is None


def test_checksums_of_another_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        build_capsules(["digits"], tmp_path / f"{seed}.h5", BuildConfig(seed=seed))
    first, second = (open_capsules(tmp_path / f"{seed}.h5").manifest for seed in (0, 1))
    found = Encoding.of(first).contradiction(Encoding.of(second))
    assert found is not None
    assert found.why == "its checksums have the seed 1, not 0"
    recorded = Encoding.of(first).as_record()
    del recorded["checksum_seed"]  # as runs were recorded earlier
    assert Encoding.of_run({"train": [recorded]}).contradiction(Encoding.of(second)) is None


def test_what_a_file_does_not_say_contradicts_nothing() -> None:
    silent, ours = Encoding(None, None), Encoding("abc", ["a", "b"])
    assert silent.contradiction(ours) is ours.contradiction(silent) is None
    assert Encoding.of({"encoders": "nonsense", "class_names": 3}) == silent
    assert Encoding.of_record({"encoders": 7}) == Encoding.of_record(None) == silent
    for data in ({}, {"train": 3}, {"train": []}, {"train": [None]}, {"train": [{"class_names": ["a", None]}]}):
        assert Encoding.of_run(data) == silent
    assert Encoding.of_run({"train": [ours.as_record(), {"encoders": "other"}]}) == ours
    found = ours.contradiction(Encoding("abc", ["a"]))
    assert found is not None
    assert found.why == "its class 1 is missing, not 'b'"
