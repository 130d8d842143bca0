"""Parent ids: one root, no circles, siblings where they belong, and the same after every road to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import random_table, write_arc, write_messages, write_pictures

from trm_core.config.schema import BuildConfig
from trm_core.data.build.arc import GridPair
from trm_core.data.build.encode_arc import FEATURES, ArcEncoder
from trm_core.data.build.encoders import Encoded, Layout
from trm_core.data.build.forest import is_forest
from trm_core.data.build.lattice import Lattice
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.build.segment import segment_tree
from trm_core.data.inspect import inspect_dataset
from trm_core.data.store.reader import open_capsules
from trm_core.errors import DataError, StoppedEarly

_word = st.text(alphabet="abcdefg", min_size=1, max_size=6)
_end = st.sampled_from(["", "", "", "", ",", ".", "!", "\n"])
_document = st.lists(st.tuples(_word, _end), max_size=90).map(lambda parts: " ".join(a + b for a, b in parts))


def naive_quadtree(rows: int, columns: int) -> np.ndarray:
    """Level by level from the cells up: the top-left cell of a 2 x 2 block of the heads so far heads it."""
    heads = {(r, c): (r, c) for r in range(rows) for c in range(columns)}  # place among the heads -> cell
    parents = np.full((rows, columns), -1)
    while len(heads) > 1:
        above: dict[tuple[int, int], tuple[int, int]] = {}
        for (r, c), cell in sorted(heads.items()):
            top = heads[r // 2 * 2, c // 2 * 2]
            above[r // 2, c // 2] = top
            if cell != top:
                parents[cell] = top[0] * columns + top[1]
        heads = above
    return parents.ravel()


@given(st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_quadtree_of_a_lattice(rows: int, columns: int) -> None:
    parents = Lattice(rows, columns, (rows, columns), (1, 1)).parents
    assert np.array_equal(parents, naive_quadtree(rows, columns))
    assert is_forest(parents)
    assert np.flatnonzero(parents == -1).tolist() == [0]
    assert np.bincount(parents[1:], minlength=1).max(initial=0) <= 3 * max(rows, columns).bit_length()


def test_a_lattice_of_4_by_4() -> None:
    blocks = [[-1, 0, 0, 2], [0, 0, 2, 2], [0, 8, 0, 10], [8, 8, 10, 10]]
    assert Lattice(8, 8, (4, 4), (2, 2)).parents.reshape(4, 4).tolist() == blocks


@given(_document, st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_the_tree_of_a_document(document: str, k: int, m: int) -> None:
    segments, parents = segment_tree(document, k, m)
    real = [bool(phrases[0]) for phrases in segments]
    assert is_forest(np.asarray(parents))
    assert parents[0] == -1
    assert all((parent >= 0) == there for parent, there in zip(parents[1:], real[1:], strict=True))
    assert all(real[parent] and parent < child for child, parent in enumerate(parents) if parent >= 0)
    # A child of another segment than the first continues its sentence: all from the head on have the same parent.
    for child, parent in enumerate(parents):
        if parent > 0:
            assert parents[parent] == 0
            assert set(parents[parent + 1 : child + 1]) == {parent}


def test_segments_of_one_sentence_are_siblings() -> None:
    short = "Stop here now please."
    long = "one two three four because five six seven eight while nine ten eleven twelve and so on it goes again."
    segments, parents = segment_tree(f"{short} {long} {short}", 6, 1)
    assert segments[0] == segments[5] == [short]
    assert parents == [-1, 0, 1, 1, 1, 0]
    # More sentences than segments: each segment begins with a sentence of its own.
    assert segment_tree(" ".join([short] * 9), 3, 1)[1] == [-1, 0, 0]


def test_an_output_cell_hangs_on_the_input_cell_at_its_place() -> None:
    grid = np.zeros((6, 6), dtype=np.int8)
    encoder = ArcEncoder(18, 4, FEATURES)
    encoded = encoder.encode([GridPair(grid, grid), GridPair(grid, None)])
    assert encoded.parents is not None
    assert encoded.parents[0, 9:].tolist() == list(range(9))
    assert np.array_equal(encoded.parents[0, :9], naive_quadtree(3, 3))
    fields = Layout(20, 4, FEATURES, 0, "mean", 0, "float16", True, 1, True).finish(encoded)
    assert fields["parents"][0, 18:].tolist() == [-1, -1]
    assert (fields["parents"][1, 9:] == -1).all()  # no output: padding
    assert is_forest(fields["parents"][0])


def test_parents_of_padding_are_refused() -> None:
    mask = np.asarray([[[True], [False], [True]]])
    encoded = Encoded(np.zeros((1, 3, 1, 2), np.float32), mask, parents=np.asarray([[-1, 0, 1]]))
    with pytest.raises(AssertionError, match="parents that are padding"):
        Layout(3, 1, 2, 0, "mean", 0, "float16", True, 1, True).finish(encoded)


Writer = Callable[[Path], Path]
SOURCES: dict[str, tuple[Writer, dict[str, Any]]] = {
    "text": (lambda at: write_messages(at / "m.tsv", 300), {"num_capsules": 5, "num_children": 2, "dim": 8}),
    "images": (lambda at: write_pictures(at / "p"), {"num_capsules": 9, "num_children": 4}),
    "arc": (lambda at: write_arc(at / "arc"), {"num_concepts": 8}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_files_hold_one_tree_per_sample(build: Build, tmp_path: Path, kind: str) -> None:
    write, asked = SOURCES[kind]
    source = write(tmp_path)
    built = build(source, **asked)
    parents = built.all("parents")
    mask = built.all("mask") if "mask" in built.splits["train"] else np.ones(parents.shape, bool)
    assert parents.dtype == np.int64
    assert ((parents == -1).sum(axis=1) == 1 + (~mask).sum(axis=1)).all()
    assert (parents[~mask] == -1).all()
    assert all(is_forest(row) for row in parents)
    with open_capsules(built.report.path) as file:
        assert file.has("parents")
    assert inspect_dataset(built.report.path).capabilities["parents"]
    assert build(source, name="w.h5", workers=2, **asked).report.content_hash == built.report.content_hash


def test_a_build_that_goes_on_has_the_same_parents(build: Build, tmp_path: Path) -> None:
    write, asked = SOURCES["text"]
    source = write(tmp_path)
    out = tmp_path / "late.h5"
    with pytest.raises(StoppedEarly):
        build_capsules([str(source)], out, BuildConfig(**asked), should_stop=lambda: True)
    assert build_capsules([str(source)], out, BuildConfig(**asked)).reused_chunks == 1
    whole = build(source, **asked)
    with open_capsules(out) as file:
        assert np.array_equal(file.read("train", slice(None))["parents"], whole.splits["train"]["parents"])
        assert file.manifest["content_hash"] == whole.report.content_hash


def test_tables_have_none_and_are_roots_beside_sources_that_do(build: Build, tmp_path: Path) -> None:
    table = random_table(tmp_path / "t.csv", 40)
    assert "parents" not in build(table, name="alone.h5").splits["train"]
    built = build(table, write_messages(tmp_path / "m.tsv", 50), num_children=2, dim=16)
    parents, of_table = built.all("parents"), built.all("modality") == 0
    assert (parents[of_table] == -1).all()
    assert (parents[~of_table] >= 0).any(axis=1).sum() > 25


def test_copies_of_a_picture_have_its_tree(build: Build) -> None:
    built = build("digits", augment_warps=1)
    assert (built.all("parents") == naive_quadtree(4, 4)).all()


def test_given_parents_are_kept_and_circles_refused(build: Build, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"children": rng.standard_normal((40, 3, 2, 4)), "labels": rng.integers(0, 2, 40)}
    parents = np.tile([[-1, 0, 0], [1, -1, 1]], (20, 1)).astype(np.int32)
    np.savez(tmp_path / "a.npz", parents=parents, **arrays)
    built = build(tmp_path / "a.npz")
    assert np.array_equal(built.by_id("parents"), parents)
    for bad in ([1, 0, -1], [0, -1, -1], [-1, 3, 0], [-2, 0, 0]):
        parents[7] = bad
        np.savez(tmp_path / "b.npz", parents=parents, **arrays)
        with pytest.raises(DataError, match=r"parents: row 7 is .*not a hierarchy"):
            build(tmp_path / "b.npz", name="b.h5")
    np.savez(tmp_path / "c.npz", parents=parents[:, :2], **arrays)
    with pytest.raises(DataError, match="parents has k = 2 where children has k = 3"):
        build(tmp_path / "c.npz", name="c.h5")
    np.savez(tmp_path / "d.npz", parents=parents * 1.0, **arrays)
    with pytest.raises(DataError, match="dtype float64, which cannot be parents"):
        build(tmp_path / "d.npz", name="d.h5")


@given(st.integers(1, 7).flatmap(lambda k: st.lists(st.integers(-2, k), min_size=k, max_size=k)))
@settings(max_examples=200, deadline=None)
def test_what_a_forest_is(parents: list[int]) -> None:
    def ends(at: int) -> bool:
        seen: set[int] = set()
        while at != -1:
            if not 0 <= at < len(parents) or at in seen:
                return False
            seen.add(at)
            at = parents[at]
        return True

    assert is_forest(np.asarray(parents)) == all(ends(at) for at in range(len(parents)))
