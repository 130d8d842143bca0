"""The puzzle reader: what it reads of sound folders, and that it refuses every other one with file and place."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_puzzles import SIZE, VOCAB, write_puzzles

from trm_core.data.puzzles.reader import PuzzleData, open_puzzles, require_mergeable
from trm_core.errors import ConfigError, DataError

IGNORED = -100
Change = Callable[[np.ndarray], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_puzzles(tmp_path / "puzzles", groups=4, copies=2, examples=3, identifiers=5)


def array(folder: Path, field: str, split: str = "train") -> Path:
    return folder / split / f"all__{field}.npy"


def change(path: Path, how: Change) -> None:
    np.save(path, how(np.load(path)))


def put(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    array[place] = value
    return array


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def opened(folder: Path) -> PuzzleData:
    """Opened, with every token looked at."""
    data = open_puzzles(folder)
    for split in data.rows:
        data.require_labels(split)
    return data


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(folder)
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_reads_examples_of_any_split_in_any_order(folder: Path) -> None:
    data = opened(folder)
    assert data.rows == {"train": 24, "test": 12}
    rows = np.array([17, 0, 23, 0])
    found = data.read("train", rows)
    inputs, labels = np.load(array(folder, "inputs")), np.load(array(folder, "labels"))
    assert np.array_equal(found["sketches"], inputs[rows])
    assert np.array_equal(found["labels"], labels[rows])
    assert found["puzzles"].tolist() == [number // 3 % 5 for number in rows]
    assert {values.dtype for values in found.values()} == {np.dtype(np.int64)}
    assert np.array_equal(data.read("test", slice(3, 5))["sketches"], np.load(array(folder, "inputs", "test"))[3:5])


def test_labels_to_ignore_become_minus_100(folder: Path) -> None:
    change(array(folder, "labels"), lambda labels: put(labels, (2, slice(0, 4)), 0))
    assert opened(folder).read("train", np.array([2]))["labels"][0, :4].tolist() == [IGNORED] * 4
    for split in ("train", "test"):
        edit(folder / split / "dataset.json", ignore_label_id=None)
    assert opened(folder).read("train", np.array([2]))["labels"][0, :4].tolist() == [0] * 4


def test_the_label_to_ignore_need_be_no_token(folder: Path) -> None:
    for split in ("train", "test"):
        edit(folder / split / "dataset.json", ignore_label_id=255)
    change(array(folder, "labels"), lambda labels: put(labels, (2, 1), 255))
    assert opened(folder).read("train", np.array([2]))["labels"][0, 1] == IGNORED
    change(array(folder, "inputs"), lambda inputs: put(inputs, (2, 1), 255))
    refused(folder, "train/all__inputs.npy", "example 2, position 1: token 255")


def test_padding_is_a_token_like_any_other_whose_label_is_ignored(folder: Path) -> None:
    for field in ("inputs", "labels"):
        change(array(folder, field), lambda tokens: put(tokens, (slice(None), slice(4, None)), 0))
    found = opened(folder).read("train", slice(0, 24))
    assert (found["sketches"][:, 4:] == 0).all()
    assert (found["labels"][:, 4:] == IGNORED).all()
    assert (found["labels"][:, :4] != IGNORED).all()


def test_several_sets_follow_each_other(folder: Path) -> None:
    """Numbers count through the sets of a split, in the order of dataset.json."""
    for field in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"):
        np.save(folder / "train" / f"more__{field}.npy", np.load(array(folder, field, "test")))
    edit(folder / "train" / "dataset.json", sets=["all", "more"])
    data = opened(folder)
    assert data.rows["train"] == 36
    found = data.read("train", np.array([35, 23, 24]))
    test = np.load(array(folder, "inputs", "test"))
    assert np.array_equal(found["sketches"][[0, 2]], test[[11, 0]])
    assert np.array_equal(found["sketches"][1], np.load(array(folder, "inputs"))[23])
    assert found["puzzles"].tolist() == [3, 7 % 5, 0]


def test_byte_order_width_and_layout_of_arrays_do_not_matter(folder: Path) -> None:
    before = opened(folder).read("train", slice(0, 24))
    change(array(folder, "inputs"), lambda tokens: np.asfortranarray(tokens.astype(">i4")))
    change(array(folder, "labels"), lambda tokens: tokens.astype(np.uint64))
    change(array(folder, "puzzle_indices"), lambda index: index.astype(">u8"))
    after = opened(folder).read("train", slice(0, 24))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_content_hash_is_of_everything_that_is_read(folder: Path) -> None:
    def fingerprint() -> str:
        return str(open_puzzles(folder).manifest["content_hash"])

    before = fingerprint()
    assert fingerprint() == before
    for split in ("train", "test"):
        for field in ("inputs", "labels"):
            path = array(folder, field, split)
            kept = path.read_bytes()
            change(path, lambda tokens: put(tokens, (3, 2), tokens[3, 2] % 4 + 1))
            assert fingerprint() != before, path
            path.write_bytes(kept)
    change(array(folder, "puzzle_identifiers"), lambda ids: put(ids, 1, 4))
    assert fingerprint() != before


BAD_ARRAYS: list[tuple[str, Change, tuple[str, ...]]] = [
    ("inputs", lambda a: a[:, :-1], ("has shape [24, 5]", "seq_len=6")),
    ("inputs", lambda a: a[0], ("has shape [6]",)),
    ("inputs", lambda a: a[:, None], ("has shape [24, 1, 6]",)),
    ("inputs", lambda a: a.astype(np.float32), ("holds float32",)),
    ("inputs", lambda a: a.astype(bool), ("holds bool",)),
    ("inputs", lambda a: a.astype("datetime64[s]"), ("holds datetime64",)),
    ("inputs", lambda a: put(a, (7, 3), VOCAB), ("example 7, position 3", "token 5")),
    ("inputs", lambda a: put(a.astype(np.int8), (7, 3), -1), ("example 7, position 3", "token -1")),
    ("inputs", lambda a: put(a.astype(np.uint64), (7, 3), 2**64 - 1), ("example 7, position 3",)),
    ("labels", lambda a: put(a, (0, 5), 200), ("example 0, position 5", "token 200")),
    ("labels", lambda a: put(a.astype(np.int64), (0, 5), IGNORED), ("example 0, position 5", "token -100")),
    ("labels", lambda a: a[:-1], ("has 23 examples, the inputs 24",)),
    ("puzzle_indices", lambda a: a[None], ("expected one dimension",)),
    ("puzzle_indices", lambda a: a[:0], ("does not go from 0 to the 24 examples",)),
    ("puzzle_indices", lambda a: a + 1, ("does not go from 0 to the 24 examples",)),
    ("puzzle_indices", lambda a: put(a, -1, 23), ("does not go from 0 to the 24 examples",)),
    ("puzzle_indices", lambda a: put(a, 3, 6), ("index 3: 6 does not follow 6",)),
    ("puzzle_indices", lambda a: put(a, 3, 99), ("index 4: 12 does not follow 99",)),
    ("puzzle_indices", lambda a: np.delete(a, 3), ("has 8 entries for 8 puzzles",)),
    (
        "puzzle_indices",
        lambda a: put(a.astype(np.uint64), 3, 2**63 + 5),
        ("index 3: -9223372036854775803 does not follow 6",),
    ),
    (
        "puzzle_indices",
        lambda a: put(a.astype(np.int64), slice(3, 6), (2**62, -(2**63) + 9, -(2**62))),
        ("index 4: -9223372036854775799 does not follow 4611686018427387904",),
    ),
    ("group_indices", lambda a: put(a, -1, 9), ("does not go from 0 to the 8 puzzles",)),
    ("group_indices", lambda a: put(a, 1, -2), ("index 1: -2 does not follow 0",)),
    ("group_indices", lambda a: a.astype(np.float64), ("holds float64",)),
    ("puzzle_identifiers", lambda a: put(a, 2, 5), ("puzzle 2: identifier 5 is not below num_puzzle_identifiers=5",)),
    ("puzzle_identifiers", lambda a: put(a, 6, -1), ("puzzle 6: identifier -1",)),
    ("puzzle_identifiers", lambda a: a[:-1], ("does not go from 0 to the 7 puzzles",)),
]


@pytest.mark.parametrize(("field", "how", "words"), BAD_ARRAYS)
def test_arrays_that_do_not_fit(folder: Path, field: str, how: Change, words: tuple[str, ...]) -> None:
    change(array(folder, field), how)
    name = "group_indices" if field == "puzzle_identifiers" and "does not go" in words[0] else field
    refused(folder, f"train/all__{name}.npy", *words)


def test_a_bad_token_of_a_late_example_is_numbered_through(tmp_path: Path) -> None:
    """Tokens are looked at in blocks; the message counts from the start of the file."""
    folder = write_puzzles(tmp_path / "many", groups=3, copies=1, examples=30_000)
    change(array(folder, "inputs"), lambda a: put(a, (80_001, 2), 77))
    refused(folder, "example 80001, position 2: token 77")


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1") + body


def shaped(shape: str, dtype: str = "'|u1'") -> bytes:
    return npy(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n", b"\x01" * 64)


class Payload:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


HOSTILE_ARRAYS = {
    "empty": b"",
    "no array": b"hello",
    "a pickle": pickle.dumps(Payload()),
    "an archive": b"PK\x03\x04" + bytes(40),
    "objects": shaped("(24, 6)", "'|O'") + pickle.dumps(Payload()),
    "more than there is": shaped("(24, 6)"),
    "terabytes": shaped(f"({2**40}, 6)"),
    "more than a number holds": shaped(f"({2**70}, 6)"),
    "a product that overflows": shaped(f"({2**40}, {2**40})"),
    "less than nothing": shaped("(-1, 6)"),
    "no numbers": shaped("(True, 6)"),
    "records": shaped("(1, 6)", "[('a', '|u1')]"),
    "code": npy("__import__('os').mkdir('executed')"),
    "depth": npy("(" * 9000),
    "an open text": npy("{'descr': '''"),
    "a header of four gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "another version": b"\x93NUMPY\x09\x00\x02\x00{}",
}


@pytest.mark.parametrize("field", ["inputs", "puzzle_indices"])
@pytest.mark.parametrize("kind", HOSTILE_ARRAYS)
def test_hostile_arrays(folder: Path, kind: str, field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    array(folder, field).write_bytes(HOSTILE_ARRAYS[kind])
    refused(folder, f"train/all__{field}.npy")
    assert not (tmp_path / "executed").exists()


def test_truncated_arrays(folder: Path) -> None:
    path = array(folder, "labels")
    whole = path.read_bytes()
    for size in (0, 3, 8, 60, 127, 128, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(folder, "train/all__labels.npy")


@pytest.mark.parametrize("field", ["inputs", "labels"])
def test_arrays_that_are_cut_while_they_are_in_use(folder: Path, field: str) -> None:
    """One byte less would be read as a zero, and all of them less would end the process."""
    path, data = array(folder, field), open_puzzles(folder)
    before, whole = data.read("train", slice(None)), path.read_bytes()
    with path.open("ab") as file:
        file.write(b"more")
    assert np.array_equal(data.read("train", slice(None))["labels"], before["labels"])
    for size in (len(whole) - 1, 0):
        os.truncate(path, size)
        needed = f"it has {size} bytes, and had at least {len(whole)}"
        for reading in (lambda: data.read("train", np.arange(2)), lambda: data.require_labels("train")):
            with pytest.raises(DataError, match=rf"train/all__{field}\.npy: was truncated while .*{needed}"):
                reading()
        with pytest.raises(DataError, match="was truncated"):
            _ = data.manifest
        data.read("test", slice(None))


def test_arrays_that_are_replaced_while_they_are_in_use(folder: Path) -> None:
    """The path leads to another file; what was opened is still there."""
    path, data = array(folder, "labels"), open_puzzles(folder)
    before = data.read("train", slice(None))["labels"]
    (folder / "new").write_bytes(b"")
    (folder / "new").replace(path)
    assert np.array_equal(data.read("train", slice(None))["labels"], before)


def test_what_is_no_file(folder: Path) -> None:
    path = array(folder, "labels")
    path.unlink()
    refused(folder, "train/all__labels.npy: is missing")
    os.mkfifo(path)
    refused(folder, "train/all__labels.npy: is not a file")
    path.unlink()
    path.mkdir()
    refused(folder, "train/all__labels.npy: is not a file")


BAD_METADATA: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"vocab_size": 4}, ("vocab_size is 4, and 5 in train/dataset.json",)),
    ({"seq_len": 7}, ("seq_len is 7, and 6 in train/dataset.json",)),
    ({"num_puzzle_identifiers": 6}, ("num_puzzle_identifiers is 6",)),
    ({"ignore_label_id": None}, ("ignore_label_id is None",)),
    ({"pad_id": 5}, ("pad_id=5 is not below 5",)),
    ({"pad_id": -1}, ("pad_id", "greater than or equal to 0")),
    ({"pad_id": "0"}, ("pad_id", "valid integer")),
    ({"pad_id": True}, ("pad_id", "valid integer")),
    ({"blank_identifier_id": 5}, ("blank_identifier_id=5 is not below 5",)),
    ({"vocab_size": 2**40}, ("vocab_size",)),
    ({"vocab_size": 1.5}, ("vocab_size",)),
    ({"total_groups": 3}, ("total_groups is 3, but all__group_indices.npy has 2",)),
    ({"sets": []}, ("sets are []",)),
    ({"sets": ["all", "all"]}, ("sets are",)),
    ({"sets": ["../train/all"]}, ("a set is named '../train/all'",)),
    ({"sets": ["a\nb"]}, (r"a set is named 'a\nb'",)),
    ({"sets": ["\ud800"]}, (r"a set is named '\ud800'",)),
    ({"sets": ["\0"]}, ("a set is named",)),
    ({"sets": ["x" * 5000]}, ("a set is named",)),
    ({"sets": [""]}, ("a set is named ''",)),
    ({"sets": "all"}, ("sets",)),
    ({"mean_puzzle_examples": "many"}, ("mean_puzzle_examples",)),
]


@pytest.mark.parametrize(("values", "words"), BAD_METADATA)
def test_metadata_that_does_not_fit(folder: Path, values: dict[str, Any], words: tuple[str, ...]) -> None:
    edit(folder / "test" / "dataset.json", **values)
    refused(folder, "test/dataset.json", *words)


NO_JSON = ["", "{", "[" * 60_000, '{"a":' * 60_000, "1" * 5000, "\x00", "nul", "[]", "null", '"text"']


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_json_that_is_none(folder: Path, text: str) -> None:
    (folder / "test" / "dataset.json").write_text(text)
    refused(folder, "test/dataset.json")


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "test" / "dataset.json").write_bytes(b"\xff\xfe{")
    refused(folder, "test/dataset.json")


@pytest.mark.parametrize("text", ["{}", '["<blank>", 1]', "null", '["<blank>"', "3"])
def test_identifiers_that_are_no_names(folder: Path, text: str) -> None:
    (folder / "identifiers.json").write_text(text)
    refused(folder, "identifiers.json")


def test_identifiers_are_as_many_as_the_metadata_say(folder: Path) -> None:
    (folder / "identifiers.json").write_text(json.dumps(["<blank>", "a"]))
    refused(folder, "identifiers.json: has 2 names, but num_puzzle_identifiers=5")


def test_a_manifest_that_is_none(folder: Path) -> None:
    (folder / "trm.json").write_text(json.dumps({"kind": "chess", "height": 2, "width": 3, "symbols": []}))
    refused(folder, "trm.json", "kind")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"height": 3}, "height 3 times width 3 is not seq_len=6"),
        ({"symbols": ["pad", "a"]}, "has 2 symbols, but vocab_size=5"),
    ],
)
def test_a_manifest_of_another_folder_is_refused(folder: Path, values: dict[str, Any], words: str) -> None:
    manifest = {"kind": "tokens", "height": 2, "width": 3, "symbols": list("pabcd")}
    (folder / "trm.json").write_text(json.dumps(manifest))
    assert open_puzzles(folder).about is not None
    (folder / "trm.json").write_text(json.dumps(manifest | values))
    refused(folder, f"trm.json: {words}")


def test_all_missing_fields_are_named_at_once(folder: Path) -> None:
    (folder / "test" / "dataset.json").write_text(json.dumps({"seq_len": 6, "vocab_size": 5, "sets": ["all"]}))
    refused(folder, "test/dataset.json: has no pad_id, ignore_label_id, blank_identifier_id, num_puzzle_identifiers")


def test_what_is_no_puzzle_folder(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "neither train/dataset.json nor test/dataset.json")
    refused(tmp_path / "nowhere", "is not a puzzle folder")


def test_nothing_to_learn_from(folder: Path, tmp_path: Path) -> None:
    change(array(folder, "labels"), np.zeros_like)
    with pytest.raises(DataError, match="every training label is ignored"):
        open_puzzles(folder).require_trainable()
    only_test = tmp_path / "only_test"
    (only_test / "test").mkdir(parents=True)
    for path in (folder / "test").iterdir():
        (only_test / "test" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="has no training puzzles"):
        open_puzzles(only_test).require_trainable()


def test_labels_that_are_all_alike_teach_nothing(folder: Path) -> None:
    """Those that are ignored do not count, and of the test set nothing is learned."""
    change(array(folder, "labels"), lambda a: np.where(a == 0, 0, 3))
    with pytest.raises(DataError, match="all training labels are the token 3"):
        open_puzzles(folder).require_trainable()
    done = tiny.invoke("train", *tiny.as_overrides(data={"path": folder}, training={"run_dir": folder / "run"}))
    assert done.returncode == 4, done.stderr
    assert f"{folder}: all training labels are the token 3" in done.stderr
    change(array(folder, "labels"), lambda a: np.where(np.arange(a.size).reshape(a.shape) == 0, 2, a))
    open_puzzles(folder).require_trainable()


def test_an_empty_set_is_read(folder: Path) -> None:
    for field in ("inputs", "labels", "puzzle_identifiers"):
        change(array(folder, field, "test"), lambda a: a[:0])
    for field in ("puzzle_indices", "group_indices"):
        change(array(folder, field, "test"), lambda a: a[:1])
    edit(folder / "test" / "dataset.json", total_groups=0)
    data = opened(folder)
    assert data.rows["test"] == 0
    low, high = data.require_labels("test")
    assert low > high


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_puzzles(tmp_path / "a", identifiers=2), write_puzzles(tmp_path / "b", identifiers=3, seed=1)


def test_folders_of_one_language_merge(two: tuple[Path, Path]) -> None:
    require_mergeable([open_puzzles(folder) for folder in two])


@pytest.mark.parametrize(
    ("values", "word"), [({"vocab_size": 9}, "vocab_size is 9"), ({"pad_id": 1}, "pad_id is 1"),
                         ({"ignore_label_id": None}, "ignore_label_id is None")]
)  # fmt: skip
def test_folders_of_other_languages_do_not_merge(two: tuple[Path, Path], values: dict[str, Any], word: str) -> None:
    for split in ("train", "test"):
        edit(two[1] / split / "dataset.json", **values)
    with pytest.raises(ConfigError, match=word) as caught:
        require_mergeable([open_puzzles(folder) for folder in two])
    assert str(two[1]) in caught.value.message


def test_folders_of_other_lengths_do_not_merge(two: tuple[Path, Path]) -> None:
    for split in ("train", "test"):
        for field in ("inputs", "labels"):
            change(array(two[1], field, split), lambda a: a[:, : SIZE - 2])
        edit(two[1] / split / "dataset.json", seq_len=SIZE - 2)
    with pytest.raises(ConfigError, match="seq_len is 4, and 6"):
        require_mergeable([open_puzzles(folder) for folder in two])
