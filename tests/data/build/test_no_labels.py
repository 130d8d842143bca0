"""`data.build.label=none`: a source with labels is built without them, and its capsules' concepts are the targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_sources
import tiny
from built_file import Build

from trm_core.errors import ConfigError


def write_arrays(folder: Path, labels: np.ndarray) -> Path:
    children = np.random.default_rng(0).standard_normal((60, 3, 2, 4)).astype(np.float32)
    np.savez(folder / "a.npz", embeddings=children, labels=labels)
    return folder / "a.npz"


def write_images(folder: Path) -> Path:
    pictures = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(folder / "i.npz", images=pictures, y=np.arange(40) % 2)
    return folder / "i.npz"


def write_text(folder: Path) -> Path:
    words = [" ".join(f"word{(7 * row + place) % 31}" for place in range(12)) for row in range(40)]
    rows = [[f"{text}. And more of it, {row}.", row % 2] for row, text in enumerate(words)]
    return small_sources.write_table(folder / "t.csv", rows, ["text", "label"])


SOURCES: dict[str, tuple[Callable[[Path], Path | str], dict[str, int]]] = {
    "arrays": (lambda at: write_arrays(at, np.arange(60) % 3), {}),
    "labels of capsules": (lambda at: write_arrays(at, np.arange(180).reshape(60, 3) % 3), {}),
    "images": (write_images, {}),
    "folder": (lambda at: small_sources.write_pictures(at / "p"), {}),
    "digits": (lambda at: "digits", {}),
    "text": (write_text, {"dim": 4}),
    "lines": (lambda at: small_sources.write_messages(at / "m.tsv", 60), {"dim": 4}),
    "table": (lambda at: small_sources.random_table(at / "t.csv"), {}),
    "arc": (lambda at: small_sources.write_arc(at / "arc"), {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_is_built_without_its_labels(build: Build, tmp_path: Path, name: str) -> None:
    make, settings = SOURCES[name]
    built = build(make(tmp_path), label="none", num_concepts=4, **settings)
    assert built.report.task == "concepts", built.messages
    assert built.all("labels").ndim == 2
    assert set(np.unique(built.all("labels"))) <= {-100, 4, 5, 6, 7}


def test_a_column_of_that_name_is_the_label(build: Build, tmp_path: Path) -> None:
    rows: list[list[object]] = [[row % 7, row, row % 2] for row in range(60)]
    built = build(small_sources.write_table(tmp_path / "t.csv", rows, ["a", "b", "none"]), label="none")
    assert built.manifest["class_names"] == ["0", "1"]


def test_the_label_column_of_a_table_becomes_no_feature(build: Build, tmp_path: Path) -> None:
    rows: list[list[object]] = [[row % 7, row, row % 2] for row in range(60)]
    table = small_sources.write_table(tmp_path / "t.csv", rows, ["a", "b", "label"])
    built = build(table, label="none", num_concepts=4)
    assert built.all("sketches").shape[1] == 2
    assert any("label column 'label' ignored, as requested" in message for message in built.messages)


def test_the_digits_have_no_columns(build: Build) -> None:
    with pytest.raises(ConfigError, match="label=digit: the digits have no columns"):
        build("digits", label="digit")


def test_a_legacy_file_with_dummy_labels(tmp_path: Path) -> None:
    """The hint of the refusal is the command that works."""
    import torch

    children = torch.randn(60, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.save(
        {"sketches": children.mean(2), "children": children, "labels": torch.zeros(60, dtype=torch.int64)},
        tmp_path / "old.pt",
    )
    arguments = ("build-capsules", tmp_path / "old.pt", "--out", tmp_path / "new.h5")
    refused = tiny.invoke(*arguments)
    assert refused.returncode == 4, refused.stderr
    assert "--label none" in refused.stderr
    done = tiny.invoke(*arguments, "--label", "none", "data.build.num_concepts=4")
    assert done.returncode == 0, done.stderr
    assert "labels ignored, as requested: concepts are the targets" in done.stderr
    assert "4 concepts (one per capsule)" in done.stdout
