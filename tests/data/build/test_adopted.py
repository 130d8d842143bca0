"""`--encoders-of`: new labelled samples of every kind, as a model of another file reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from built_file import Build
from small_sources import random_table, write_messages, write_pictures, write_table

from trm_core.data.encoding import Encoding
from trm_core.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"num_capsules": 4, "num_children": 2}


def pictures(path: Path, seed: int) -> Path:
    images = np.random.default_rng(seed).random((60, 8, 8)) * np.linspace(0.5, 1, 60)[:, None, None]
    np.savez(path, images=images, labels=np.arange(60) % 2)
    return path


SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (lambda folder, seed: write_messages(folder / f"{seed}.tsv", 120, seed), {"dim": 8, **SMALL}),
    "table": (lambda folder, seed: random_table(folder / f"{seed}.csv", 80, seed), {}),
    "pictures": (lambda folder, seed: write_pictures(folder / str(seed), 20, 20, seed=seed), {"image_size": 8}),
    "arrays of pictures": (lambda folder, seed: pictures(folder / f"{seed}.npz", seed), {}),
    "patches": (
        lambda folder, seed: write_pictures(folder / str(seed), 20, 32, seed=seed),
        {"encoder": "patch-pca", "dim": 8},
    ),
}


@pytest.mark.parametrize("kind", list(SOURCES))
def test_it_means_the_same(build: Build, tmp_path: Path, kind: str) -> None:
    """A sample that both sources have is the same to the bit, and nothing contradicts the first file."""
    make, settings = SOURCES[kind]
    ours, theirs = make(tmp_path, 0), make(tmp_path, 1)
    first = build(ours, **settings)
    alone = build(theirs, name="alone.h5", **settings)
    same = build(ours, name="same.h5", encoders_of=str(first.report.path))
    new = build(theirs, name="new.h5", encoders_of=str(first.report.path))
    assert list(same.splits) == list(new.splits) == ["test"]
    for field in ("sketches", "children", "labels"):
        assert np.array_equal(same.by_id(field), first.by_id(field)), field
    assert new.manifest["class_names"] == first.manifest["class_names"]
    assert Encoding.of(first.manifest).contradiction(Encoding.of(new.manifest)) is None
    fitted = kind in ("text", "table", "patches")
    assert (Encoding.of(first.manifest).contradiction(Encoding.of(alone.manifest)) is not None) == fitted


def test_a_model_is_as_good_as_on_its_own_file(tmp_path: Path) -> None:
    write_messages(tmp_path / "old.tsv", 300)
    write_messages(tmp_path / "new.tsv", 200, seed=5)
    settings = ["--dim", "8", "--num-capsules", "4", "--num-children", "2"]
    built = tiny.invoke("build-capsules", tmp_path / "old.tsv", "--out", tmp_path / "old.h5", *settings)
    assert built.returncode == 0, built.stderr
    training = {"run_dir": tmp_path / "run", "total_steps": 120, "lr_warmup_steps": 5, "ema_decay": 0.9}
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": tmp_path / "old.h5"}, training=training))
    assert done.returncode == 0, done.stderr
    new = ["build-capsules", tmp_path / "new.tsv", "--encoders-of", tmp_path / "old.h5", "--out", tmp_path / "new.h5"]
    assert tiny.invoke(*new).returncode == 0
    done = tiny.invoke("eval", tmp_path / "run", "--data", tmp_path / "new.h5", "--policy", "all", "--json")
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)["scores"]
    assert score["rows"] == 200
    assert score["accuracy"] > 0.9, "words of ham and spam hardly overlap"


def test_other_labels_are_not_scored_and_none_are_no_evaluation(build: Build, tmp_path: Path) -> None:
    first = build(write_messages(tmp_path / "a.tsv", 120), dim=8, **SMALL)
    text = write_messages(tmp_path / "b.tsv", 60, seed=2).read_text()
    (tmp_path / "b.tsv").write_text(text.replace("spam\t", "eggs\t"))
    new = build(tmp_path / "b.tsv", name="b.h5", encoders_of=str(first.report.path))
    assert set(new.by_id("labels").tolist()) == {-100, 0}
    assert any("'eggs'" in message for message in new.messages)
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"text": line.split("\t")[1]}) for line in text.splitlines())
    )
    with pytest.raises(DataError, match="has no labels to compare answers with") as refused:
        build(tmp_path / "c.jsonl", name="c.h5", kind="text", encoders_of=str(first.report.path))
    assert "trm predict" in str(refused.value.hint)


def test_sources_that_do_not_fit_are_refused(build: Build, tmp_path: Path) -> None:
    table = str(build(random_table(tmp_path / "a.csv", 80), name="a.h5").report.path)
    with pytest.raises(ConfigError, match="encodes table, the sources are text"):
        build(write_messages(tmp_path / "m.tsv", 60), name="x.h5", encoders_of=table)
    rows: list[list[object]] = [[n, "red", n, n % 2] for n in range(40)]
    with pytest.raises(DataError, match=r"its columns are years, colour, weight; those of .* are age, colour, weight"):
        build(
            write_table(tmp_path / "b.csv", rows, ["years", "colour", "weight", "label"]),
            name="x.h5",
            encoders_of=table,
        )
    rows = [["old", "red", n, n % 2] for n in range(40)]
    with pytest.raises(DataError, match="column 'age' holds text"):
        build(
            write_table(tmp_path / "c.csv", rows, ["age", "colour", "weight", "label"]), name="x.h5", encoders_of=table
        )
    dim = str(build(pictures(tmp_path / "p.npz", 0), name="p.h5").report.path)
    np.savez(tmp_path / "q.npz", images=np.random.default_rng(1).random((60, 8, 8)) * 900, labels=np.arange(60) % 2)
    with pytest.raises(DataError, match=r"its pixels are numbers up to .*, those of .* numbers up to 1"):
        build(tmp_path / "q.npz", name="x.h5", encoders_of=dim)
    np.savez(tmp_path / "r.npz", images=np.random.default_rng(1).random((60, 9, 9)), labels=np.arange(60) % 2)
    with pytest.raises(DataError, match="do not have the size"):
        build(tmp_path / "r.npz", name="x.h5", encoders_of=dim)
    unlabelled = tmp_path / "u.jsonl"
    unlabelled.write_text("\n".join(json.dumps({"text": f"a text of number {n}"}) for n in range(60)))
    concepts = str(build(unlabelled, name="u.h5", kind="text", dim=4, num_concepts=4, **SMALL).report.path)
    with pytest.raises(DataError, match="its targets are concepts"):
        build(write_messages(tmp_path / "n.tsv", 60), name="x.h5", encoders_of=concepts)
    assert not (tmp_path / "x.h5").exists()


def arrays(path: Path, labels: np.ndarray | None, k: int = 4, dim: int = 8, **more: np.ndarray) -> Path:
    children = np.random.default_rng(0).normal(size=(60, k, 2, dim)).astype(np.float32)
    np.savez(path, children=children, **({} if labels is None else {"labels": labels}), **more)
    return path


def test_arrays_have_to_have_the_same_form(build: Build, tmp_path: Path) -> None:
    one, parents = np.arange(60) % 3, np.tile([-1, 0, 0, 0], (60, 1))
    plain = str(build(arrays(tmp_path / "a.npz", one), name="a.h5").report.path)
    with_parents = str(build(arrays(tmp_path / "b.npz", one, parents=parents), name="b.h5").report.path)
    for number, (first, changes, why) in enumerate(
        (
            (plain, {"k": 3}, r"children \[3, 2, 8\]; in .* it is .*children \[4, 2, 8\]"),
            (plain, {"k": 5}, r"children \[5, 2, 8\]"),
            (plain, {"dim": 6}, r"children \[4, 2, 6\]"),
            (plain, {"parents": parents}, r"parents \[4\]; in "),
            (with_parents, {}, r"; in .* it is .*parents \[4\]"),
            (plain, {"labels": None}, "has no labels, .* one label per sample"),
            (plain, {"labels": np.tile(one[:, None], 4)}, "has one label per capsule, .* one label per sample"),
        )
    ):
        settings: dict[str, Any] = {"labels": one, **changes}
        with pytest.raises(DataError, match=why):
            build(arrays(tmp_path / f"new{number}.npz", **settings), name="x.h5", encoders_of=first)


def test_labels_of_capsules(build: Build, tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (60, 4))
    first = build(arrays(tmp_path / "a.npz", labels), name="a.h5")
    labels[5] = 7
    new = build(arrays(tmp_path / "b.npz", labels), name="b.h5", encoders_of=str(first.report.path))
    assert new.manifest["num_classes"] == 3
    assert np.array_equal(new.by_id("labels"), np.where(labels == 7, -100, labels))
    assert any(
        "4 test capsules have a label that is not in the training split (7, ...)" in message for message in new.messages
    )
    with pytest.raises(DataError, match=r"has one label per sample, .* one label per capsule"):
        build(arrays(tmp_path / "c.npz", labels[:, 0] % 2), name="x.h5", encoders_of=str(first.report.path))
