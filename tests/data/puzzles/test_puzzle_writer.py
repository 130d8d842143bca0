"""A puzzle folder is there complete or not at all, and nothing else is ever replaced."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from no_fsync import refuse_to_fsync_folders

from trm_core.data.puzzles.build.write import SplitData, replacing, write_folder
from trm_core.data.puzzles.layout import Manifest, Metadata
from trm_core.data.puzzles.reader import open_puzzles
from trm_core.errors import UsageError

MANIFEST = Manifest(kind="tokens", height=2, width=2, symbols=["<pad>", "a", "b"])
Blocks = Iterator[tuple[np.ndarray, np.ndarray]]


def split(blocks: Blocks, *, vocab: int = 3) -> SplitData:
    metadata = Metadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=vocab,
        seq_len=4,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1.5,
        total_puzzles=2,
        sets=["all"],
    )
    return SplitData(metadata, blocks, np.zeros(2), np.array([0, 1, 3]), np.array([0, 2]))


def blocks(value: int = 2) -> Blocks:
    yield np.full((1, 4), 1), np.full((1, 4), value)
    yield np.full((2, 4), 2), np.full((2, 4), value)


def interrupted() -> Blocks:
    yield np.full((1, 4), 1), np.full((1, 4), 2)
    raise KeyboardInterrupt


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    counts = write_folder(tmp_path / "p", {"train": split(blocks())}, ["<blank>"], MANIFEST, files={"extra.json": [1]})
    assert (counts["train"].groups, counts["train"].puzzles, counts["train"].examples) == (1, 2, 3)
    found = open_puzzles(tmp_path / "p")
    assert found.rows == {"train": 3}
    assert found.read("train", slice(0, 3))["sketches"][:, 0].tolist() == [1, 2, 2]
    assert np.load(tmp_path / "p" / "train" / "all__inputs.npy").dtype == np.uint8
    assert (tmp_path / "p" / "extra.json").read_text() == "[1]"


def test_large_vocabularies_get_larger_integers(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"train": split(blocks(300), vocab=301)}, ["<blank>"], MANIFEST)
    assert np.load(tmp_path / "p" / "train" / "all__labels.npy").max() == 300


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "p", {"train": split(interrupted())}, ["<blank>"], MANIFEST)
    assert not list(tmp_path.iterdir())


def test_wrong_announcements_are_bugs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 examples were given, 3 announced"):
        write_folder(tmp_path / "p", {"train": split(iter([next(blocks())]))}, ["<blank>"], MANIFEST)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write_folder(tmp_path / "p", {"train": split(blocks())}, ["<blank>"], MANIFEST)
    with pytest.raises(UsageError, match="exists already"):
        write_folder(tmp_path / "p", {"train": split(blocks())}, ["<blank>"], MANIFEST)


def test_replacing_swaps_only_when_all_went_well(tmp_path: Path) -> None:
    out = tmp_path / "p"
    write_folder(out, {"train": split(blocks(2))}, ["<blank>"], MANIFEST)
    with pytest.raises(KeyboardInterrupt), replacing(out, overwrite=True) as place:
        write_folder(place, {"train": split(interrupted())}, ["<blank>"], MANIFEST)
    assert np.load(out / "train" / "all__labels.npy").max() == 2
    with replacing(out, overwrite=True) as place:
        write_folder(place, {"train": split(blocks(1))}, ["<blank>"], MANIFEST)
    assert np.load(out / "train" / "all__labels.npy").max() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_what_holds_no_puzzles_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all my work")
    with (
        pytest.raises(UsageError, match="something other than puzzles"),
        replacing(tmp_path / "thesis", overwrite=True),
    ):
        pass
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_two_builds_of_one_output(tmp_path: Path) -> None:
    with (
        replacing(tmp_path / "p", overwrite=False),
        pytest.raises(UsageError, match="another process"),
        replacing(tmp_path / "p", overwrite=False),
    ):
        pass


def test_two_builds_that_no_lock_keeps_apart_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system whose locks do not reach other machines."""
    out = tmp_path / "p"
    write_folder(out, {"train": split(blocks(1))}, ["<blank>"], MANIFEST)
    monkeypatch.setattr("fcntl.flock", lambda descriptor, how: None)

    def other_build_meanwhile() -> Blocks:
        with replacing(out, overwrite=True) as place:
            write_folder(place, {"train": split(blocks(2))}, ["<blank>"], MANIFEST)
        yield from blocks(1)

    with suppress(OSError), replacing(out, overwrite=True) as place:
        write_folder(place, {"train": split(other_build_meanwhile())}, ["<blank>"], MANIFEST)
    assert open_puzzles(out).read("train", slice(0, 3))["labels"].max() == 2
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "p"
    write_folder(out, {"train": split(blocks())}, ["<blank>"], MANIFEST)
    token = "0123456789ab"
    left = [f".p.tmp.{token}", f".p.new.{token}", f"..p.new.{token}.tmp.{token}", f".p.old.{token}"]
    others = [f".p.tmp.tmp.{token}", f".pp.tmp.{token}", f"p.tmp.{token}"]
    for name in left + others:
        (tmp_path / name).mkdir()
    with replacing(out, overwrite=True) as place:
        write_folder(place, {"train": split(blocks())}, ["<blank>"], MANIFEST)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["p", *others])


def test_a_file_system_that_cannot_fsync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_fsync_folders(monkeypatch, errno.EINVAL)
    write_folder(tmp_path / "p", {"train": split(blocks())}, ["<blank>"], MANIFEST)
    assert open_puzzles(tmp_path / "p").rows == {"train": 3}
