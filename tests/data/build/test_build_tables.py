"""Tables: columns and groups as capsules, prices, categories, missing values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build
from small_sources import random_table, write_table

from trm_core.data.recorded_encoder import RecordedEncoder
from trm_core.errors import ConfigError, DataError


def test_each_column_is_a_capsule_by_default(build: Build, tmp_path: Path) -> None:
    built = build(random_table(tmp_path / "t.csv", 200))
    assert (built.report.kind, built.report.encoder) == ("table", "columns")
    assert built.all("children").shape == (200, 3, 1, 4)
    assert not built.all("sketches").any()
    value = built.report.expansion_value
    assert value is not None
    assert value["sketches"] < 0.7 < 0.9 < value["children"]


def test_numbers_are_standardised_on_the_training_split(build: Build, tmp_path: Path) -> None:
    built = build(random_table(tmp_path / "t.csv", 100))
    weight = built.splits["train"]["children"][:, 2, 0, 0].astype(np.float64)
    assert abs(weight.mean()) < 1e-3
    assert abs(weight.std() - 1) < 1e-3
    lines = (tmp_path / "t.csv").read_text().splitlines()
    raw = np.asarray([float(lines[1 + row].split(",")[2]) for row in built.splits["train"]["ids"]])
    assert np.allclose(weight, (raw - raw.mean()) / raw.std(), atol=2e-3)


def test_groups_prices_and_columns_left_out(build: Build, tmp_path: Path) -> None:
    built = build(
        random_table(tmp_path / "t.csv"),
        groups={"body": ["weight", "age"], "look": ["colour"]},
        prices={"body": 2.5},
    )
    assert built.all("children").shape[1:3] == (2, 2)
    assert built.prices.tolist() == [2.5, 1.0]
    assert not built.all("children")[:, 1, 1].any()
    left = build(tmp_path / "t.csv", name="left.h5", groups={"body": ["weight"]})
    assert any("left out: age, colour" in message for message in left.messages)
    runs = build(tmp_path / "t.csv", name="runs.h5", num_capsules=2, prices={"age..colour": 3.0})
    assert runs.prices.tolist() == [3.0, 1.0]


def test_categories_are_one_hot_and_missing_is_flagged(build: Build, tmp_path: Path) -> None:
    rows: list[list[object]] = [["red", 1.5, "a"], ["green", "NA", "b"], ["", 2.5, "a"], ["blue", 3.5, "b"]] * 10
    rows = [[*row, number] for number, row in enumerate(rows)]
    built = build(write_table(tmp_path / "t.csv", rows, ["colour", "size", "label", "n"]), validation=0.0, test=0.0)
    children = built.by_id("children").astype(np.float32)
    # blue, green, red in alphabetical order, then the missing flag
    assert children[0, 0, 0].tolist() == [0, 0, 1, 0]
    assert children[2, 0, 0].tolist() == [0, 0, 0, 1]
    assert children[3, 0, 0].tolist() == [1, 0, 0, 0]
    assert children[1, 1, 0].tolist() == [0, 1, 0, 0]
    hashed = build(tmp_path / "t.csv", name="hashed.h5", dim=3, validation=0.0, test=0.0).by_id("children")
    assert set(hashed[:, 0, 0].sum(axis=1).tolist()) == {1.0}


def test_several_tables_are_examined_as_one(build: Build, tmp_path: Path) -> None:
    def table(name: str, colours: str, size: str) -> Path:
        rows: list[list[object]] = [
            [colours[n % len(colours)], f"{size}{n}" * bool(size), "xy"[n % 2]] for n in range(60)
        ]
        return write_table(tmp_path / name, rows, ["colour", "size", "label"])

    few, many, text = table("a.csv", "rg", "1"), table("b.csv", "bcmkyw", ""), table("c.csv", "rg", "s")
    one, two = (build(*files, name=f"{n}.h5") for n, files in enumerate(((few, many), (many, few))))
    for built in (one, two):
        assert built.report.dim == 9  # eight colours, and the flag
        assert built.manifest["encoder_settings"][0]["numeric"] == ["size"]
        assert (built.all("children")[:, 0, 0].sum(axis=1) == 1).all()
        assert len(np.unique(built.all("children")[:, 0, 0], axis=0)) == 8
    with pytest.raises(DataError, match=r"c.csv: column 'size' holds text here, and holds numbers in .*a.csv"):
        build(many, few, text, name="x.h5")


def test_a_column_of_one_number_is_zero(build: Build, tmp_path: Path) -> None:
    """std() of equal numbers leaves 1e-17, and another number would be ten thousand of them away."""
    rows: list[list[object]] = [[0.1, n, "ab"[n % 2]] for n in range(240)]
    built = build(write_table(tmp_path / "t.csv", rows, ["x", "n", "label"]))
    assert not built.all("children")[:, 0].any()
    near = RecordedEncoder.of_file(built.report.path).encode([(0.11, 1)])["children"]
    assert abs(near[0, 0, 0, 0] - 0.01) < 1e-3


def test_names_that_are_not_there(build: Build, tmp_path: Path) -> None:
    source = random_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match="no column 'lable'") as caught:
        build(source, label="lable")
    assert caught.value.hint == "did you mean 'label'?"
    with pytest.raises(ConfigError, match="no feature column 'wieght'") as config:
        build(source, groups={"a": ["wieght"]})
    assert config.value.hint == "did you mean 'weight'?"
    with pytest.raises(ConfigError, match="in both 'a' and 'b'"):
        build(source, groups={"a": ["age"], "b": ["age"]})
    with pytest.raises(ConfigError, match="no group 'wight'"):
        build(source, prices={"wight": 2.0})
    with pytest.raises(ConfigError, match="largest group has 2"):
        build(source, groups={"a": ["age", "weight"]}, num_children=1)


def test_a_number_as_label_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a class"):
        build(random_table(tmp_path / "t.csv", 100), label="weight")


def test_without_labels_the_targets_are_concepts(build: Build, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[list[object]] = [rng.normal(size=3).round(3).tolist() for _ in range(80)]
    built = build(write_table(tmp_path / "t.csv", rows, ["a", "b", "c"]), num_concepts=5, num_capsules=1)
    assert built.report.task == "concepts"
    assert built.all("labels").shape == (80, 1)


def test_a_blank_line_before_the_header_is_no_header(build: Build, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n  \n" + random_table(tmp_path / "u.csv", 80).read_text())
    built = build(tmp_path / "t.csv")
    assert np.array_equal(built.all("children"), build(tmp_path / "u.csv", name="u.h5").all("children"))
    assert built.manifest["class_names"] == ["0", "1"]


def test_a_class_may_be_called_none(build: Build, tmp_path: Path) -> None:
    rows: list[list[object]] = [[n, ("none", "mild", "severe", "")[n % 4]] for n in range(80)]
    built = build(write_table(tmp_path / "t.csv", rows, ["x", "label"]), validation=0.0, test=0.0)
    assert built.manifest["class_names"] == ["mild", "none", "severe"]
    assert built.by_id("labels").tolist() == [1, 0, 2, -100] * 20


def test_columns_that_come_later_are_columns(build: Build, tmp_path: Path) -> None:
    records = [{"x": n, "y": -n} | ({"label": "ab"[n % 2]} if n else {}) for n in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    built = build(tmp_path / "t.jsonl", validation=0.0, test=0.0)
    assert built.manifest["class_names"] == ["a", "b"]
    assert built.by_id("labels")[:3].tolist() == [-100, 1, 0]


def test_a_column_that_comes_after_hundreds_of_lines_is_a_column(build: Build, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"a": n * 0.1, "label": n % 2} for n in range(400)]
    rows[320]["rare"] = 1.5
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(build(tmp_path / "t.jsonl").manifest["encoder_settings"][0]["groups"]) == ["a", "rare"]


def test_what_is_a_number_only_to_python(build: Build, tmp_path: Path) -> None:
    rows: list[list[object]] = [["-nan" if n == 3 else n, f"{n}_0", "ab"[n % 2]] for n in range(60)]
    built = build(write_table(tmp_path / "t.csv", rows, ["x", "code", "label"]), validation=0.0, test=0.0)
    assert built.manifest["encoder_settings"][0]["numeric"] == ["x"]
    assert np.isfinite(built.all("children")).all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [({name: 8}, name) for name in ("image_size", "augment_warps", "augment_grids")],
)
def test_settings_of_other_kinds_are_refused(build: Build, tmp_path: Path, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"data.build.{name} is for .*, not for table"):
        build(random_table(tmp_path / "t.csv"), **settings)


def test_a_label_that_no_held_out_sample_has_is_said(build: Build, tmp_path: Path) -> None:
    """A rare class whose samples repeat each other stays together."""
    rows: list[list[object]] = [[n, n % 7, "ab"[n % 2]] for n in range(80)] + [[-1, -1, "rare"]] * 20
    built = build(write_table(tmp_path / "t.csv", rows, ["x", "y", "label"]))
    for split in ("validation", "test"):
        assert 2 not in built.splits[split]["labels"]
        assert f"no {split} sample has the label 'rare'" in built.messages
    other = build(random_table(tmp_path / "u.csv"), name="u.h5")
    assert not any("sample has the label" in said for said in other.messages)
