"""Arrays and legacy files pass through; their concepts, labels, and everything that must be refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from built_file import Build

from trm_core.config.schema import BuildConfig
from trm_core.data.build.fitting import _sample
from trm_core.data.build.modality import open_modality
from trm_core.data.build.plan import make_plan
from trm_core.data.build.records import silent
from trm_core.data.checksum import checksums
from trm_core.errors import ConfigError, DataError


def embeddings(count: int = 60, k: int = 3, m: int = 2, dim: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    children = rng.standard_normal((count, k, m, dim)).astype(np.float32)
    return {"children": children, "labels": rng.integers(0, 3, count)}


def save(path: Path, arrays: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values, compression="gzip")
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_children_and_labels_pass_through(build: Build, tmp_path: Path, suffix: str) -> None:
    arrays = embeddings()
    built = build(save(tmp_path / f"a{suffix}", arrays), dtype="float32")
    assert built.report.kind == "arrays"
    assert np.array_equal(built.by_id("children"), arrays["children"])
    assert np.allclose(built.by_id("sketches"), arrays["children"].mean(axis=2), atol=1e-6)
    assert np.array_equal(built.by_id("labels"), arrays["labels"])
    assert np.allclose(built.by_id("checksums"), checksums(arrays["children"], 8, 0), atol=1e-5)


def test_an_npy_file_without_labels_gets_concepts(build: Build, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", embeddings()["children"])
    built = build(tmp_path / "a.npy", num_concepts=6)
    assert (built.report.task, built.report.num_classes) == ("concepts", 10)
    np.save(tmp_path / "s.npy", embeddings()["children"][:, :, 0])
    only = build(tmp_path / "s.npy", name="s.h5", num_concepts=6)
    assert (only.report.num_children, only.report.checksum_dim) == (0, 0)
    assert only.report.expansion_value is not None
    assert only.report.expansion_value["children"] is None


def test_sketches_given_are_kept_and_labels_per_capsule_stay(build: Build, tmp_path: Path) -> None:
    arrays = embeddings()
    arrays["sketches"] = np.ones((60, 3, 4), np.float16) * np.arange(60)[:, None, None]
    arrays["labels"] = np.random.default_rng(1).integers(4, 9, (60, 3))
    built = build(save(tmp_path / "a.npz", arrays))
    assert np.array_equal(built.by_id("sketches"), arrays["sketches"])
    assert np.array_equal(built.by_id("labels"), arrays["labels"])
    assert (built.report.task, built.report.num_classes) == ("classes", 9)


def test_labels_of_capsules_that_training_lacks_are_not_scored(build: Build, tmp_path: Path) -> None:
    arrays = embeddings(60)
    labels = np.random.default_rng(1).choice([0, 2], (60, 3))
    held_out = build(save(tmp_path / "a.npz", {**arrays, "labels": labels}), name="a.h5").splits["test"]["ids"]
    labels[held_out[0]] = [0, 1, 7]
    built = build(save(tmp_path / "b.npz", {**arrays, "labels": labels}), name="b.h5")
    assert built.manifest["num_classes"] == 3
    assert built.by_id("labels")[held_out[0]].tolist() == [0, -100, -100]
    assert any(
        "2 test capsules have a label that is not in the training split" in message for message in built.messages
    )


def test_a_legacy_file_is_converted(build: Build, tmp_path: Path) -> None:
    import torch

    arrays = embeddings()
    children = torch.from_numpy(arrays["children"])
    torch.save(
        {
            "sketches": children.mean(2),
            "checksums": torch.zeros(60, 3, 5),
            "children": children,
            "labels": torch.from_numpy(arrays["labels"]),
        },
        tmp_path / "old.pt",
    )
    built = build(tmp_path / "old.pt", dtype="float32")
    assert built.report.kind == "legacy"
    assert np.array_equal(built.by_id("children"), arrays["children"])
    assert any("can be verified" in message for message in built.messages)
    torch.save(torch.ones(4, 3, 2), tmp_path / "bare.pt")
    with pytest.raises(DataError, match="same detail"):
        build(tmp_path / "bare.pt", name="bare.h5")


@pytest.mark.parametrize("dtype", [bool, np.uint8])
@pytest.mark.parametrize("names", [("children",), ("children", "sketches"), ("sketches",)])
def test_masks_and_prices_are_used(build: Build, tmp_path: Path, dtype: Any, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    real = rng.random((60, 3)) < 0.6
    real[:, 0] = True
    both = embeddings() | {"sketches": rng.standard_normal((60, 3, 4)).astype(np.float32)}
    arrays = {name: both[name] for name in names}
    labels, parents = rng.integers(0, 3, (60, 3)), np.tile([-1, 0, 0], (60, 1))
    beside = {"labels": labels, "mask": real.astype(dtype), "parents": parents, "prices": np.array([1, 2, 0.5])}
    built = build(save(tmp_path / "a.npz", {**arrays, **beside}), dtype="float32")
    assert not any("not used" in message for message in built.messages)
    assert np.array_equal(built.by_id("mask"), real)
    assert built.prices.tolist() == [1, 2, 0.5]
    for name, given in arrays.items():
        assert np.array_equal(built.by_id(name), np.where(real.reshape(60, 3, *(1,) * (given.ndim - 2)), given, 0))
    if "sketches" not in names:
        mean = np.where(real[..., None], both["children"].mean(axis=2), 0)
        assert np.allclose(built.by_id("sketches"), mean, atol=1e-6)
    assert np.array_equal(built.by_id("labels"), np.where(real, labels, -100))
    assert np.array_equal(built.by_id("parents"), np.where(real, parents, -1))


def test_prices_of_several_files_are_one_list(build: Build, tmp_path: Path) -> None:
    one, other = (
        save(tmp_path / f"{name}.npz", {**embeddings(seed=seed), "prices": np.array([1.0, 2.0, price])})
        for name, seed, price in (("one", 0, 3.0), ("other", 1, 4.0))
    )
    first = build(one)
    with pytest.raises(DataError, match="have different prices"):
        build(one, other, name="both.h5")
    with pytest.raises(DataError, match="its prices differ from those of"):
        build(other, name="more.h5", encoders_of=str(first.report.path))
    plain = save(tmp_path / "plain.npz", embeddings(seed=2))
    assert build(plain, name="plain.h5", encoders_of=str(first.report.path)).prices.tolist() == [1, 2, 3]


def test_what_is_not_used_is_said(build: Build, tmp_path: Path) -> None:
    built = build(save(tmp_path / "a.npz", {**embeddings(), "weights": np.ones(60), "price": np.ones(3)}))
    assert [message for message in built.messages if "not used: weights, price" in message]


def test_text_labels_and_label_by_name(build: Build, tmp_path: Path) -> None:
    arrays = embeddings() | {"kind": np.asarray(["b", "a"] * 30)}
    built = build(save(tmp_path / "a.npz", arrays), label="kind")
    assert built.manifest["class_names"] == ["a", "b"]
    assert built.by_id("labels").tolist() == [1, 0] * 30


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("nan", {"children": np.full((5, 2, 2, 2), np.nan)}, r"row 0 holds NaN"),
    ("k0", {"children": np.zeros((5, 0, 2, 2))}, "k = 0"),
    ("m0", {"children": np.zeros((5, 2, 0, 2))}, "m = 0"),
    ("n", {"children": np.zeros((5, 2, 2, 2)), "labels": np.zeros(4, int)}, "N = 4 where children has N = 5"),
    ("d", {"children": np.zeros((5, 2, 2, 2)), "sketches": np.zeros((5, 2, 3))}, "D = 2 where sketches has D = 3"),
    ("rank", {"data2": np.zeros((5, 2))}, r"shape \[5, 2\]"),
    ("which", {"one": np.zeros((5, 2, 2)), "two": np.zeros((5, 2, 2))}, "which array"),
    ("mask", {"children": np.zeros((5, 2, 2, 2)), "mask": np.ones((5, 2, 2), bool)}, r"expected \[N, k\] for mask"),
    ("halves", {"children": np.zeros((5, 2, 2, 2)), "mask": np.full((5, 2), 0.5)}, "float64, which cannot be mask"),
    ("twos", {"children": np.zeros((5, 2, 2, 2)), "mask": np.full((5, 2), 2)}, "mask: row 0 is .*neither true nor"),
    ("empty", {"children": np.zeros((5, 2, 2, 2)), "mask": np.eye(5, 2, dtype=bool)}, "mask: row 2 has no capsule"),
    (
        "orphan",
        {
            "children": np.zeros((5, 2, 2, 2)),
            "mask": np.tile([False, True], (5, 1)),
            "parents": np.tile([-1, 0], (5, 1)),
        },
        "mask: row 0 marks the parent of a capsule as padding",
    ),
    (
        "prices",
        {"children": np.zeros((5, 2, 2, 2)), "prices": np.ones((5, 2))},
        r"prices is float64 \[5, 2\], expected",
    ),
    ("free", {"children": np.zeros((5, 2, 2, 2)), "prices": np.array([1.0, 0.0])}, "finite and above 0"),
    ("alike", {"children": np.random.default_rng(0).random((5, 2, 2, 2)), "labels": np.ones(5, int)}, "all '1'"),
]


@pytest.mark.parametrize(("name", "arrays", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_arrays(build: Build, tmp_path: Path, name: str, arrays: dict[str, Any], message: str) -> None:
    source = save(tmp_path / f"{name}.npz", arrays)
    with pytest.raises(DataError, match=message):
        build(source)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (np.eye(3)[[0, 1, 2] * 20], r"labels\.argmax\(1\)"),
        (np.eye(4, dtype=int)[[0, 1, 2] * 20], r"labels\.argmax\(1\)"),
        (np.zeros((60, 1), int), r"labels\[:, 0\]"),
        (np.asarray(["cat", "dog", "cow"], object)[[0, 1, 2] * 20], r"\.astype\(str\)"),
        (np.asarray([b"cat", b"dog", b"cow"])[[0, 1, 2] * 20], r"\.astype\(str\)"),
    ],
)
def test_how_labels_are_saved_is_said(build: Build, tmp_path: Path, labels: np.ndarray, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        build(save(tmp_path / "made.npz", embeddings() | {"labels": labels}))
    assert re.search(hint, caught.value.hint or ""), caught.value.hint


def test_pickles_and_truncated_files_are_refused(build: Build, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected numbers"):
        build(tmp_path / "objects.npy")
    np.save(tmp_path / "cut.npy", embeddings()["children"])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        build(tmp_path / "cut.npy")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="npz"):
        build(tmp_path / "cut.npz")


def test_hdf5_that_leads_elsewhere_is_refused(build: Build, tmp_path: Path) -> None:
    save(tmp_path / "real.h5", embeddings())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["children"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/children")
    with pytest.raises(DataError, match="soft or external link"):
        build(tmp_path / "link.h5")
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("children", (8, 4, 4, 4), "f4", external=[(str(tmp_path / "secret"), 0, 2048)])
    with pytest.raises(DataError, match="another file"):
        build(tmp_path / "external.h5")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("children", (10**9, 12, 4, 512), "f4", chunks=(1, 12, 4, 512))
    with pytest.raises(DataError, match="claims"):
        build(tmp_path / "huge.h5")


def test_values_too_large_for_half_precision(build: Build, tmp_path: Path) -> None:
    arrays = embeddings()
    arrays["children"][7, 1, 1, 1] = 1e6
    source = save(tmp_path / "a.npz", arrays)
    with pytest.raises(DataError, match="more than float16 can hold"):
        build(source)
    assert build(source, dtype="float32").report.counts


def test_settings_that_contradict_the_arrays(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_capsules=5, but .* holds 3"):
        build(save(tmp_path / "a.npz", embeddings()), num_capsules=5)
    with pytest.raises(ConfigError, match="does not fit arrays"):
        build(tmp_path / "a.npz", encoder="tfidf-svd")


def test_the_sample_to_fit_on_does_not_hold_the_blocks_it_came_from(tmp_path: Path) -> None:
    source = save(tmp_path / "a.npz", embeddings(200))
    config = BuildConfig()
    modality = open_modality("arrays", "", [str(source)], config, silent)
    plan = make_plan([modality], config, lambda *_: None, silent)
    sample = _sample(modality, plan, 0, np.random.default_rng(0))
    assert len(sample) == 160
    assert all(content["children"].base is None for content in sample)
