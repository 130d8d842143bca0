"""The pipeline as a whole: resumed after a kill, any number of workers, several kinds in one file, bad sources."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build
from forked import Forked
from small_sources import random_table, write_arc, write_messages, write_pictures

from trm_core.config.schema import BuildConfig
from trm_core.data.build.chunks import _digest, _read_coder
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.build.work import WorkDir, locked
from trm_core.data.store.reader import open_capsules
from trm_core.errors import ConfigError, DataError, StoppedEarly, UsageError

SMALL = {"num_capsules": 4, "num_children": 2, "dim": 16}
FLAGS = ["--num-capsules", "4", "--num-children", "2", "--dim", "16"]


def wait_for_chunks(work: Path, count: int, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while len(list(work.glob("chunk-*.npz"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hash_of(path: Path) -> str:
    with open_capsules(path) as file:
        return str(file.manifest["content_hash"])


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """`trm build-capsules` in a process of its own, which says what it says elsewhere."""
    return functools.partial(Forked, "build-capsules", cwd=tmp_path_factory.mktemp("said"))


def test_a_killed_build_goes_on_and_ends_the_same(build: Build, tmp_path: Path, start: Callable[..., Forked]) -> None:
    source = write_messages(tmp_path / "messages.tsv", 4000)
    out = tmp_path / "killed.h5"
    process = start(str(source), "--out", str(out), *FLAGS)
    work = tmp_path / "killed.h5.work"
    wait_for_chunks(work, 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    there = {path.name: path.stat().st_mtime_ns for path in work.glob("chunk-*.npz")}
    assert 2 <= len(there) < 16
    fitted = (work / "fitted.npz").stat().st_mtime_ns
    said: list[str] = []
    kept: dict[str, int] = {}

    def look(stage: str, done: int, total: int) -> None:
        if stage == "write" and not kept:
            kept.update({path.name: path.stat().st_mtime_ns for path in work.glob("*.npz")})

    report = build_capsules([str(source)], out, BuildConfig(**SMALL), log=said.append, progress=look)
    assert report.reused_chunks == len(there)
    assert kept.items() >= there.items()
    assert kept["fitted.npz"] == fitted
    assert any("continued an earlier run" in message for message in said)
    assert report.content_hash == build(source, name="whole.h5", **SMALL).report.content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.h5", "messages.tsv", "whole.h5"]


def test_sigterm_ends_with_75_and_ctrl_c_with_130(tmp_path: Path, start: Callable[..., Forked]) -> None:
    source = write_messages(tmp_path / "messages.tsv", 4000)
    out = tmp_path / "out.h5"
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        process = start(str(source), "--out", str(out), *FLAGS)
        have = len(list((tmp_path / "out.h5.work").glob("chunk-*.npz")))
        wait_for_chunks(tmp_path / "out.h5.work", have + 2, process)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == code, err
        assert "run the same command again to continue" in err
        assert "Traceback" not in err
    assert not out.exists()
    assert not (tmp_path / "out.h5.lock").exists()


def test_a_changed_setting_starts_anew(tmp_path: Path) -> None:
    source = write_messages(tmp_path / "messages.tsv", 600)
    out = tmp_path / "out.h5"
    with pytest.raises(StoppedEarly):
        build_capsules([str(source)], out, BuildConfig(**SMALL), should_stop=lambda: True)
    said: list[str] = []
    report = build_capsules([str(source)], out, BuildConfig(seed=1, **SMALL), log=said.append)
    assert report.reused_chunks == 0
    assert any("starting from the beginning" in message for message in said)


def test_the_number_of_workers_changes_nothing(build: Build, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "messages.tsv", 700)
    alone = build(source, name="0.h5", **SMALL).report
    assert build(source, name="2.h5", workers=2, **SMALL).report.content_hash == alone.content_hash
    assert build(source, name="s.h5", seed=1, **SMALL).report.content_hash != alone.content_hash


def test_workers_unpickle_nothing_but_what_their_build_has_written(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    path = tmp_path / "coder.pickle"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DataError, match=r"coder\.pickle: was changed"):
        _read_coder(path, _digest(b"what the build wrote"))
    assert not ran.exists()


def test_an_error_in_a_worker_is_the_users_error(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "pictures", per_class=4)
    from trm_core.data.build import pipeline

    scan = pipeline.make_plan

    def spoil(*arguments: Any) -> Any:
        plan = scan(*arguments)
        (folder / "dark" / "001.png").write_bytes(b"gone")  # after the scan has seen it whole
        return plan

    monkeypatch.setattr(pipeline, "make_plan", spoil)
    with pytest.raises(DataError, match=r"001.png: cannot be decoded"):
        build(folder, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_wide_neighbour_leaves_a_sketch_coarse(build: Build, tmp_path: Path) -> None:
    """A quarter of what the kind's own children have, not of the file's width."""
    messages, arrays = write_messages(tmp_path / "m.tsv", 200), tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(60) % 2, "ham", "spam")
    np.savez(arrays, children=rng.normal(size=(60, 4, 2, 128)).astype(np.float32), labels=labels)
    alone = build(messages, name="alone.h5", **SMALL)
    mixed = build(messages, arrays, name="mixed.h5", **{**SMALL, "dim": "auto"})
    text = mixed.all("modality") == 0
    assert mixed.report.dim == 128
    for built, rows, quarter in ((alone, slice(None), 4), (mixed, text, 16)):
        used = np.abs(built.all("sketches")[rows]).sum((0, 1)) > 0
        assert used.sum() == quarter


def test_several_kinds_become_one_file(build: Build, tmp_path: Path) -> None:
    table = random_table(tmp_path / "t.csv", 40)
    messages = write_messages(tmp_path / "m.tsv", 50)
    built = build(table, messages, num_children=2, dim=16)
    assert built.report.kind == "table+text"
    assert built.manifest["modalities"] == ["table", "text"]
    assert np.bincount(built.all("modality")).tolist() == [40, 50]
    assert built.manifest["class_names"] == ["0", "1", "ham", "spam"]
    k = built.report.num_capsules
    assert k == 8
    rows = built.all("modality") == 0
    assert not built.all("mask")[rows][:, 3:].any()
    assert not built.all("children")[rows][:, 3:].any()
    labels = built.all("labels")
    assert set(labels[rows].tolist()) == {0, 1}
    assert set(labels[~rows].tolist()) == {2, 3}
    ids = built.all("ids")
    assert sorted(ids.tolist()) == list(range(90))


def test_sources_of_one_kind_are_joined(build: Build, tmp_path: Path) -> None:
    one = write_messages(tmp_path / "1.tsv", 40, seed=1)
    two = write_messages(tmp_path / "2.tsv", 60, seed=2)
    built = build(one, two, **SMALL)
    assert [source["rows"] for source in built.manifest["sources"]] == [40, 60]
    assert "modality" not in built.splits["train"]
    with pytest.raises(UsageError, match="given twice"):
        build(one, one, name="twice.h5")


def test_labels_in_only_one_source(build: Build, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("one two three four five\n\nsix seven eight nine ten\n")
    with pytest.raises(DataError, match=r"plain.txt: has no labels, but another source has"):
        build(write_messages(tmp_path / "m.tsv", 40), tmp_path / "plain.txt", **SMALL)


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS 3 without rpc.statd."""

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UsageError, match=r"b.h5.lock: cannot be locked \(No locks available\)") as caught:
        build_capsules([str(write_messages(tmp_path / "m.tsv", 40))], tmp_path / "b.h5", BuildConfig(**SMALL))
    assert "rpc.statd" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tsv"]


def test_outputs_that_cannot_be(build: Build, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "m.tsv", 40)
    build(source, **SMALL)
    with pytest.raises(UsageError, match="exists already"):
        build(source, **SMALL)
    with pytest.raises(UsageError, match="no source"):
        build(name="b.h5")
    with locked(tmp_path / "b.h5.lock", lambda _: None, wait=False), pytest.raises(UsageError, match="another process"):
        build(source, name="b.h5", **SMALL)
    with pytest.raises(ConfigError, match="prices names table groups"):
        build(source, name="b.h5", prices={"a": 1.0})


def test_overwriting_keeps_the_old_file_until_the_end(build: Build, tmp_path: Path) -> None:
    out = build(write_messages(tmp_path / "m.tsv", 40), **SMALL).report.path
    before = hash_of(out)
    bad = tmp_path / "bad.tsv"
    bad.write_text("ham\tone two three\nham\tfour five six\n" * 20)
    with pytest.raises(DataError, match="all 'ham'"):
        build_capsules([str(bad)], out, BuildConfig(**SMALL), overwrite=True)
    assert hash_of(out) == before


def test_chunks_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "w", "f", lambda _: None)
    work.save_chunk(0, {"a": np.arange(3)})
    (tmp_path / "w" / "chunk-000001.tmp").write_bytes(b"half")
    again = WorkDir(tmp_path / "w", "f", lambda _: None)
    assert again.has_chunk(0)
    assert not again.has_chunk(1)
    assert again.load_chunk(0)["a"].tolist() == [0, 1, 2]


UNREADABLE: list[tuple[str, bytes, str]] = [
    ("empty.tsv", b"", "is empty"),
    ("header.csv", b"a,b,label\n", "has a header and no rows"),
    ("ragged.csv", b"a,b,label\n1,2,x\n1,2\n", r"ragged.csv:3: has 2 fields, the header has 3"),
    ("quote.csv", b'a,b,label\n1,2,x\n1,"2,x\n', r"quote.csv:3"),
    ("latin.csv", "a,label\n1,x\n2,\u00e9\n".encode("latin-1"), r"latin.csv:3: is not UTF-8"),
    ("numbers.csv", b"1,2,3\n4,5,6\n", "only numbers"),
    ("twice.csv", b"a,a,label\n1,2,x\n", "two columns are called 'a'"),
    ("nohead.csv", b"spam,win a prize\nham,hello you there\nspam,again\n", "looks like data"),
    ("infinite.csv", b"a,label\n1,x\ninf,y\n", r"infinite.csv:3: column 'a' holds infinity"),
    ("prose.csv", b"a,label\nthis is a long story,x\nthat is a long one too,y\n", "is this text or a table"),
    ("line.jsonl", b'{"text": "a b", "label": 1}\n[1]\n', r"line.jsonl:2: is list, expected an object"),
    ("broken.jsonl", b'{"text": "a b", "label": 1}\n{"text"\n', r"broken.jsonl:2: is not JSON"),
    (
        "twice.jsonl",
        b'{"text": "a b", "label": 1}\n{"text": "a b", "label": 1, "text": "c"}\n',
        "twice.jsonl:2: an object has the key 'text' twice",
    ),
    ("text.jsonl", b'{"text": {"en": "a b"}, "label": 1}\n', r"text.jsonl:1: field 'text' holds an object"),
    (
        "label.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": [2]}\n',
        r"label.jsonl:2: field 'label' holds a",
    ),
    ("cell.jsonl", b'{"a": 1, "y": 1}\n\n{"a": [2], "y": 2}\n', r"cell.jsonl:3: field 'a' holds a list"),
    ("tab.tsv", b"ham\ta b\nspam\tc d\nham\te f\nno tab here\n", "no columns besides the label|tab"),
    ("what.xyz", b"123", "kind cannot be told"),
    ("one.png", b"123", "single picture"),
    ("missing.csv", b"-", "no such file"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE, ids=[name for name, _, _ in UNREADABLE])
def test_sources_that_cannot_be_read(build: Build, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    source = tmp_path / name
    if content != b"-":
        source.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build(source)
    assert name in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content != b"-" else [])


HINTS: list[tuple[str, bytes, str]] = [
    ("table.xlsx", b"PK", "save it as .csv"),
    ("table.csv.gz", b"x", "unpack it"),
    ("records.json", b'[{"a": 1, "label": 2}]', r"jq -c \.\[\]"),
    ("records.jsonl", b'[\n {"a": 1, "label": 2}\n]\n', r"jq -c \.\[\]"),
    ("nested.jsonl", b'{"f": {"one": 1, "two": 2, "three": 3}, "label": 1}\n' * 2, "a field of its own"),
    ("texts/good/1.md", b"a text of its own", "with the columns text and label, or into .txt files"),
    ("photos/good/1.heic", b"x", r"there are \.heic; .* bring pictures to one of .*\.png"),
]


@pytest.mark.parametrize(("name", "content", "hint"), HINTS, ids=[name for name, _, _ in HINTS])
def test_what_to_do_is_said_of_forms_that_are_not_read(
    build: Build, tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        build(tmp_path / name.split("/")[0])
    assert re.search(hint, caught.value.hint or ""), caught.value.hint


def test_a_capsule_file_is_no_source(build: Build, tmp_path: Path) -> None:
    built = build(write_messages(tmp_path / "m.tsv", 40), **SMALL)
    with pytest.raises(DataError, match="is already a capsule file"):
        build(built.report.path, name="again.h5")


def test_ambiguous_arrays_ask_for_the_kind(build: Build, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).random((30, 4, 2, 5)), y=np.arange(30) % 2)
    with pytest.raises(DataError, match="pictures or embeddings") as caught:
        build(tmp_path / "a.npz")
    assert caught.value.hint is not None
    assert "--kind arrays" in caught.value.hint
    assert build(tmp_path / "a.npz", kind="arrays").report.num_children == 2


def test_arc_may_be_forced_and_wrong_kinds_fail_clearly(build: Build, tmp_path: Path) -> None:
    source = write_arc(tmp_path / "arc")
    assert build(source, kind="arc", num_concepts=8).report.kind == "arc"
    with pytest.raises(DataError):
        build(source, name="t.h5", kind="table")
