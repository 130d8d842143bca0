"""Checkpoints on disk: what is written comes back, what is damaged is noticed, and a failed save leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from no_fsync import refuse_to_fsync_folders
from safetensors.torch import load_file

from trm_core.errors import CheckpointError, ResourceError
from trm_core.evaluation.load import load_run
from trm_core.training import checkpoint_folders as checkpoints
from trm_core.training import checkpoint_verify
from trm_core.training.checkpoint import (
    Checkpoint,
    OwnState,
    complete,
    load_own,
    load_shared,
    load_weights,
    snapshot,
    write_part,
)
from trm_core.training.saving import Saver

FILES = [
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "rank0.safetensors",
    "rank0.json",
    "manifest.json",
]


def make(step: int) -> Checkpoint:
    torch.manual_seed(step)
    shared = torch.randn(4, 4)
    return Checkpoint(
        step,
        {"w": torch.randn(3, 2), "view": shared[:2], "transposed": shared.t()},
        {
            "shared": shared,
            "counts": torch.arange(5),
            "flags": torch.tensor([True, False]),
            "scalar": torch.tensor(1.5),
        },
        {"step": step, "stream": {"taken": 12}, "nothing": None},
        OwnState({"carry": torch.randn(2, 3)}, {"replay": {"head": step}}),
    )


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int = 100) -> Path:
    saver = Saver(run, keep)
    saver.start(checkpoint)
    saver.conclude()
    return checkpoints.folder_of(run, checkpoint.step)


def load_checkpoint(folder: Path) -> Checkpoint:
    return load_shared(folder, load_own(folder, 0))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path


def test_what_is_saved_comes_back(run: Path) -> None:
    saved = make(7)
    folder = save_checkpoint(run, saved)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    found, notes = checkpoint_verify.find_checkpoint(run)
    assert (found, notes) == (folder, [])
    loaded = load_checkpoint(found)
    assert (loaded.step, loaded.state) == (7, saved.state)
    assert loaded.own.numbers == {"replay": {"head": 7}}
    for mine, theirs in (
        (saved.model, loaded.model),
        (saved.training, loaded.training),
        (saved.own.tensors, loaded.own.tensors),
    ):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_the_older_one_used(run: Path, name: str, damage: str) -> None:
    older = save_checkpoint(run, make(5))
    newer = save_checkpoint(run, make(10))
    path = newer / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        # A digit of a hash in the manifest; elsewhere the last byte, which still parses.
        place = data.index(b"sha256") + 15 if name == "manifest.json" else len(data) - 1
        data[place] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    found, notes = checkpoint_verify.find_checkpoint(run)
    assert found == older
    if (name, damage) != ("manifest.json", "remove"):  # without a manifest it was never a checkpoint
        assert len(notes) == 1
        assert str(newer) in notes[0]
    checkpoints.mark_best(run, 10)
    with pytest.raises(CheckpointError, match=str(newer)):
        checkpoint_verify.find_checkpoint(run, "best")
    for other in FILES:
        (older / other).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        checkpoint_verify.find_checkpoint(run)


def test_every_byte_counts(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    for name in FILES[:-1]:
        path = folder / name
        data = path.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with pytest.raises(CheckpointError, match=name):
                checkpoint_verify.verify(folder)
        path.write_bytes(data)
    checkpoint_verify.verify(folder)


def test_pruning_keeps_the_newest_and_the_best(run: Path) -> None:
    saver = Saver(run, keep=2)
    for step in (2, 4, 6, 8, 10):
        saver.start(make(step), best=step == 4)
        saver.conclude()
    assert [p.name for p in checkpoints.list_checkpoints(run)] == ["step_00000010", "step_00000008", "step_00000004"]
    assert checkpoint_verify.find_checkpoint(run, "best")[0].name == "step_00000004"


def test_an_intact_checkpoint_stays_and_a_damaged_one_is_replaced(run: Path) -> None:
    folder = save_checkpoint(run, make(3))
    before = (folder / "state.json").read_bytes()
    changed = make(3)
    changed.state["again"] = True
    save_checkpoint(run, changed)
    assert (folder / "state.json").read_bytes() == before
    (folder / "state.json").write_text("{}")
    save_checkpoint(run, changed)
    assert load_checkpoint(checkpoint_verify.find_checkpoint(run)[0]).state["again"] is True
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_an_intact_checkpoint_that_training_went_back_to_is_replaced(run: Path) -> None:
    """What that has cost would be forgotten otherwise; which one is the best is not."""
    saver = Saver(run, 100)
    for step in (2, 3):
        saver.start(make(step), best=True)
        saver.conclude()
    changed = make(3)
    changed.state["faults"] = {"in_a_row": 0, "rollbacks": 1}
    folder = save_checkpoint(run, changed)
    assert load_checkpoint(folder).state["faults"]["rollbacks"] == 1
    checkpoint_verify.verify(folder)
    save_checkpoint(run, make(4))
    assert checkpoints.best(run) == folder
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "best",
        "step_00000002",
        "step_00000003",
        "step_00000004",
    }


def test_pruning_spares_what_a_rollback_would_take(run: Path) -> None:
    saver = Saver(run, keep=2)
    for step in (2, 4, 6, 8, 10):
        checkpoint = make(step)
        checkpoint.state["faults"] = {"in_a_row": max(0, step - 4)}
        saver.start(checkpoint)
        saver.conclude()
    assert [checkpoints.step_of(folder) for folder in checkpoints.list_checkpoints(run)] == [10, 8, 4]
    assert checkpoint_verify.find_checkpoint(run)[0].name == "step_00000010"
    healthy, notes = checkpoint_verify.find_checkpoint(run, checkpoints.HEALTHY)
    assert healthy.name == "step_00000004"
    assert len(notes) == 2


def test_what_kills_left_half_done_is_finished_by_the_next_start(run: Path) -> None:
    saver = Saver(run, 100)
    for step, best in ((1, True), (2, True), (3, False)):
        saver.start(make(step), best=best)
        saver.conclude()
    checkpoints.mark_best(run, 1)  # killed between the checkpoint of step 2 and its mark
    parent = run / "checkpoints"
    for name in (".step_00000000.pruned", ".step_00000004.0123456789ab"):
        (parent / name).mkdir()
        (parent / name / "state.json").write_text("{}")
    (parent / ".best.77").write_text("step_")
    save_checkpoint(run, make(4))
    assert checkpoints.best(run) == checkpoints.folder_of(run, 2)
    names = {path.name for path in parent.iterdir()}
    assert names == {"best", *(f"step_{step:08d}" for step in (1, 2, 3, 4))}


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_full_disk_leaves_nothing_and_says_so(run: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the fsyncs (five files, manifest, folder, its parent) meets the full disk."""
    older = save_checkpoint(run, make(1))
    calls = 0
    real = os.fsync

    def fail(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        save_checkpoint(run, make(2))
    assert calls == nth
    if nth == 8:
        return  # it is complete by then, whatever the parent's fsync says
    assert [p.name for p in (run / "checkpoints").iterdir()] == [older.name]
    assert checkpoint_verify.find_checkpoint(run) == (older, [])


@pytest.mark.parametrize("name", ["mark_best", "prune"])
def test_a_disk_that_is_full_after_the_rename_costs_no_later_save(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only concluding a save may fail, where the trainer expects it; starting the next one never does."""

    def full(*arguments: object) -> None:
        raise ResourceError("no space") if name == "mark_best" else OSError(errno.ENOSPC, "no space")

    saver = Saver(run, keep=2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, name, full)
        for step in (1, 2):
            saver.start(make(step), best=step == 1)
            with pytest.raises(ResourceError, match="no space"):
                saver.conclude()
    saver.start(make(3))
    saver.conclude()
    assert [folder.name for folder in checkpoints.list_checkpoints(run)][:2] == ["step_00000003", "step_00000002"]
    assert checkpoints.best(run) == checkpoints.folder_of(run, 1), "marked as soon as the disk takes it"


def test_a_killed_save_is_swept_away_by_the_next(run: Path) -> None:
    save_checkpoint(run, make(1))
    half = run / "checkpoints" / ".step_00000002.12345"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint_verify.find_checkpoint(run)[0].name == "step_00000001"
    save_checkpoint(run, make(3))
    assert not half.exists()


def test_training_goes_on_while_a_checkpoint_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state as it was at the start, and it is no checkpoint before it is concluded."""
    gate, real = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (gate.wait(10), real(descriptor)))
    saved, saver = make(4), Saver(run, 2)
    saver.start(saved)
    expected = {name: tensor.clone() for name, tensor in saved.model.items()}
    for tensor in (*saved.model.values(), *saved.training.values(), *saved.own.tensors.values()):
        tensor.zero_()
    saved.state["step"] = -1
    assert not saver.finished
    assert checkpoints.list_checkpoints(run) == []
    gate.set()
    saver.conclude()
    loaded = load_checkpoint(checkpoint_verify.find_checkpoint(run)[0])
    assert loaded.step == 4
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.model.items())
    assert bool(loaded.own.tensors["carry"].any())


def test_weights_that_do_not_fit_are_named() -> None:
    model = torch.nn.Linear(2, 3)
    good = model.state_dict()
    for weights, words in (
        ({"weight": good["weight"]}, "missing \\['bias'\\]"),
        ({**good, "more": torch.ones(1)}, "surplus \\['more'\\]"),
        ({**good, "bias": torch.ones(4)}, "bias is \\(4,\\) float32, not \\(3,\\) float32"),
        ({**good, "bias": torch.ones(3, dtype=torch.int64)}, "bias is \\(3,\\) int64, not \\(3,\\) float32"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_weights(model, weights, "file")


def test_weights_that_fit_are_loaded_and_those_that_do_not_change_nothing() -> None:
    torch.manual_seed(0)
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    load_weights(model, other.state_dict(), "file")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError):
        load_weights(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(4)}, "file")
    assert torch.equal(model.weight, other.weight)


def test_a_checkpoint_under_another_name_is_refused(run: Path) -> None:
    """A copy of an old one would otherwise be gone on from, as if it were the newest."""
    older = save_checkpoint(run, make(5))
    newer = save_checkpoint(run, make(10))
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    found, notes = checkpoint_verify.find_checkpoint(run)
    assert found == older
    assert "manifest is from step 5" in notes[0]
    with pytest.raises(CheckpointError, match=r"state.json is from step 5"):
        load_checkpoint(newer)


def test_names_that_only_look_like_numbers_are_no_checkpoints(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    for name in ("step_²", "step_٣", "step_-1", "step_"):
        shutil.copytree(folder, folder.with_name(name))
    assert checkpoints.list_checkpoints(run) == [folder]
    assert [one.step for one in checkpoint_verify.checkpoint_facts(run)] == [1]


def test_a_linked_folder_is_unlinked_and_left_alone(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    older = save_checkpoint(run, make(1))
    theirs = shutil.copytree(older, tmp_path_factory.mktemp("other") / older.name)
    link = older.with_name("step_00000009")
    link.symlink_to(theirs)
    checkpoints.drop_newer(run, older)
    assert checkpoints.list_checkpoints(run) == [older]
    assert sorted(p.name for p in theirs.iterdir()) == sorted(FILES)


def test_json_that_is_nested_deeper_than_ours_is_refused(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    (folder / "state.json").write_text('{"step": 1, "shape": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(CheckpointError, match=r"state.json is nested more than 20 levels deep"):
        load_checkpoint(folder)


def test_a_strangers_pointer_or_json_is_refused(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    (run / "checkpoints" / "best").write_text("../../elsewhere\n")
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        checkpoint_verify.find_checkpoint(run, "best")
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        checkpoint_verify.find_checkpoint(run)


def test_a_process_keeps_what_it_writes_and_nothing_else() -> None:
    first, second = snapshot(make(3), 0), snapshot(make(3), 1)
    assert (first.model.keys(), first.training.keys(), first.state) == (
        make(3).model.keys(),
        make(3).training.keys(),
        make(3).state,
    )
    assert (second.model, second.training, second.state) == ({}, {}, {})
    assert second.step == 3
    assert second.own.numbers == make(3).own.numbers
    assert torch.equal(second.own.tensors["carry"], make(3).own.tensors["carry"])
    changing = make(3)
    kept = snapshot(changing, 0)
    changing.state["stream"]["taken"] = 99
    changing.own.numbers["replay"]["head"] = 99
    assert kept.state["stream"] == {"taken": 12}
    assert kept.own.numbers == {"replay": {"head": 3}}


def test_a_checkpoint_of_two_processes_has_the_files_of_both(run: Path) -> None:
    folder = checkpoints.unfinished(run, 3, "token")
    files = write_part(folder, snapshot(make(3), 0), 0) | write_part(folder, snapshot(make(3), 1), 1)
    final = complete(run, 3, folder, files)
    assert not folder.exists()
    assert sorted(p.name for p in final.iterdir()) == sorted([*FILES, "rank1.safetensors", "rank1.json"])
    assert checkpoints.ranks_in(final) == 2
    assert checkpoint_verify.find_checkpoint(run) == (final, [])
    assert load_own(final, 1).numbers == {"replay": {"head": 3}}
    assert load_checkpoint(final).folder == final
    again = write_part(folder, snapshot(make(3), 0), 0)
    assert complete(run, 3, folder, again) == final, "the intact one stays"
    assert checkpoints.ranks_in(final) == 2
    assert not folder.exists()
    (final / "rank1.json").unlink()
    with pytest.raises(CheckpointError, match=r"rank1.json is missing"):
        checkpoint_verify.verify(final)


def rewrite(folder: Path, **changed: Any) -> None:
    """Change some entries of a manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"schema_version": 1}, "schema version 1"),
        ({"schema_version": 3}, "schema version 3"),
        ({"step": 2}, "manifest is from step 2"),
        ({"files": None}, "lists no files"),
        ({"files": []}, "lists no files"),
        ({"files": {}}, "model.safetensors is missing"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(run: Path, changed: dict[str, Any], words: str) -> None:
    folder = save_checkpoint(run, make(1))
    rewrite(folder, **changed)
    with pytest.raises(CheckpointError, match=words):
        checkpoint_verify.verify(folder)
    assert not checkpoint_verify.is_intact(folder)


@pytest.mark.parametrize("name", ["../../secret", "rank7.json", "notes.txt"])
def test_no_other_file_is_read(run: Path, name: str) -> None:
    folder = save_checkpoint(run, make(1))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    for names in ([name], [name, "more.txt"]):
        rewrite(folder, files={**files, **{one: {"bytes": 0, "sha256": ""} for one in names}})
        with pytest.raises(CheckpointError, match="not written by trm"):
            checkpoint_verify.verify(folder)


def test_facts_of_checkpoints(run: Path) -> None:
    begun = time.time()
    saver = Saver(run, 100)
    for step in (1, 2, 3):
        saver.start(make(step), best=step == 2)
        saver.conclude()
    facts = checkpoint_verify.checkpoint_facts(run)
    assert [(one.step, one.best, one.fault) for one in facts] == [(3, False, None), (2, True, None), (1, False, None)]
    for one in facts:
        assert one.path == checkpoints.folder_of(run, one.step)
        assert one.bytes == sum(path.stat().st_size for path in one.path.iterdir())
        assert begun - 5 <= one.written <= time.time() + 5
    for step in (1, 2, 3):  # as large as before, so that only a hash tells
        path = checkpoints.folder_of(run, step) / "state.json"
        path.write_text(path.read_text().replace("12", "13"))
    assert ["damaged" in (one.fault or "") for one in checkpoint_verify.checkpoint_facts(run)] == [True] * 3
    size = facts[0].bytes
    for limit, looked_at in ((0, 0), (1, 1), (size, 1), (size + 1, 2)):
        found = checkpoint_verify.checkpoint_facts(run, limit)
        assert [one.fault is not None for one in found] == [place < looked_at for place in range(3)], limit
    for name in ("best", "step_00000002/rank0.json", "step_00000001/manifest.json"):
        (run / "checkpoints" / name).unlink()
    found = checkpoint_verify.checkpoint_facts(run, 0)
    assert [(one.step, one.best, "missing" in (one.fault or "")) for one in found] == [
        (3, False, False),
        (2, False, True),
    ]


def test_a_checkpoint_that_is_pruned_while_it_is_looked_at_is_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only lost a file is named."""
    for step in (1, 2):
        save_checkpoint(run, make(step))
    newest, verify = checkpoints.folder_of(run, 2), checkpoint_verify.verify

    def pruned(folder: Path, hashes: bool = True) -> None:
        if folder == newest:
            (folder / gone).unlink()
            raise FileNotFoundError(folder / gone)
        verify(folder, hashes)

    monkeypatch.setattr(checkpoint_verify, "verify", pruned)
    gone = "state.json"
    found = checkpoint_verify.checkpoint_facts(run)
    assert [(one.step, "lost a file" in (one.fault or "")) for one in found] == [(2, True), (1, False)]
    gone = "manifest.json"
    assert [(one.step, one.fault) for one in checkpoint_verify.checkpoint_facts(run)] == [(1, None)]


def test_what_may_be_whole_is_not_passed_over(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on from the one before would delete it."""
    older, newer = save_checkpoint(run, make(1)), save_checkpoint(run, make(2))
    describe = checkpoint_verify.describe

    def broken(path: Path, sync: bool = False) -> dict[str, Any]:
        if path.parent == newer:
            raise OSError(errno.EIO, "Input/output error")
        return describe(path, sync)

    monkeypatch.setattr(checkpoint_verify, "describe", broken)
    with pytest.raises(CheckpointError, match=f"{newer} cannot be read: Input/output error") as refused:
        checkpoint_verify.find_checkpoint(run)
    assert "try again" in str(refused.value.hint)
    assert not checkpoint_verify.is_intact(newer)
    assert checkpoint_verify.is_intact(older)
    monkeypatch.undo()
    rewrite(newer, schema_version=checkpoints.SCHEMA_VERSION + 1)
    with pytest.raises(CheckpointError, match="schema version") as refused:
        checkpoint_verify.find_checkpoint(run)
    assert "the version of trm that wrote it" in str(refused.value.hint)
    (newer / "manifest.json").write_text("{}")
    assert checkpoint_verify.find_checkpoint(run)[0] == older


def test_only_what_is_newer_is_dropped(run: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(run, make(step))
    checkpoints.drop_newer(run, checkpoints.folder_of(run, 2))
    assert [checkpoints.step_of(folder) for folder in checkpoints.list_checkpoints(run)] == [2, 1]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00000001", "step_00000002"}


def test_a_run_without_checkpoints_has_none(run: Path) -> None:
    assert checkpoints.list_checkpoints(run) == []
    assert checkpoint_verify.checkpoint_facts(run) == []
    assert checkpoints.best(run) is None
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        checkpoint_verify.find_checkpoint(run)
    folder = save_checkpoint(run, make(1))
    (folder / "manifest.json").unlink()
    assert checkpoints.list_checkpoints(run) == []


def test_the_mark_of_the_best_is_caught_up_with_the_newest_that_was_best(run: Path) -> None:
    for step in (1, 2, 3):
        rewrite(save_checkpoint(run, make(step)), best=step < 3)
    checkpoints.catch_up_best(run)
    assert checkpoints.best(run) == checkpoints.folder_of(run, 2)
    rewrite(checkpoints.folder_of(run, 3), best="yes")
    (checkpoints.folder_of(run, 2) / "manifest.json").write_text("{")
    checkpoints.catch_up_best(run)
    assert checkpoints.best(run) == checkpoints.folder_of(run, 1), "neither of the others says that it is"


def test_a_linked_checkpoint_is_not_intact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A save of that step replaces the link, so that the run has its checkpoint in its own folder."""
    folder = save_checkpoint(run, make(1))
    theirs = folder.rename(tmp_path_factory.mktemp("other") / folder.name)
    folder.symlink_to(theirs)
    assert not checkpoint_verify.is_intact(folder)
    save_checkpoint(run, make(1))
    assert not folder.is_symlink()
    assert checkpoint_verify.is_intact(folder)
    assert checkpoint_verify.is_intact(theirs)


def test_how_large_and_how_deep_json_may_be(run: Path) -> None:
    path = run / "some.json"
    path.write_text('{"a": 1}' + " " * ((16 << 20) - 8))
    assert checkpoints.read_json(path) == {"a": 1}
    path.write_text('{"a": 1}' + " " * ((16 << 20) - 7))
    with pytest.raises(CheckpointError, match="is larger than"):
        checkpoints.read_json(path)
    for levels, opening, closing in ((20, '{"a": ', "}"), (20, "[", "]")):
        path.write_text('{"a": ' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}")
        checkpoints.read_json(path)
        path.write_text('{"a": ' + opening * levels + "1" + closing * levels + "}")
        with pytest.raises(CheckpointError, match="nested more than 20"):
            checkpoints.read_json(path)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="not hold a JSON object"):
        checkpoints.read_json(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.read_json(run / "none.json")


def test_a_checkpoint_holds_the_averages_of_every_weight(trained_run: Path) -> None:
    """Under both names of a tied network; `trained_run` averages, and its policy and predictor learn to the end."""
    loaded = load_run(trained_run, torch.device("cpu"))
    folder = trained_run / "checkpoints" / "step_00000060"
    saved, raw = load_file(folder / "model.safetensors"), load_file(folder / "training.safetensors")
    names = dict(loaded.model.named_parameters(remove_duplicate=False))
    assert {"recursion.low.blocks.0.ffn.down.weight", "recursion.high.blocks.0.ffn.down.weight"} <= names.keys()
    moved = 0
    for name, parameter in names.items():
        assert torch.equal(parameter, saved[name]), name
        moved += not torch.equal(parameter, raw[f"weights.{name}"])
        other = name.replace(".high.", ".low.")
        assert torch.equal(saved[name], saved[other]), name
    assert moved > len(names) // 2, "averages are no raw weights"


def test_the_halves_of_an_earlier_checkpoint_are_brought_together() -> None:
    """Those of tied networks had averages under the first name and raw weights under the second."""
    model = tiny.make_model(tiny.make_config(), tiny.make_shape())
    averages = {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}
    halves = {name: torch.full_like(value, 7.0) if ".high." in name else value for name, value in averages.items()}
    load_weights(model, halves, "these weights")
    assert all(bool((value == 2).all()) for value in model.state_dict().values())


def test_what_is_evaluated_in_training_is_what_is_saved(trained_run: Path) -> None:
    best = load_run(trained_run, torch.device("cpu"), "best").step
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    seen = next(line for line in lines if line["step"] == best and "eval/loss" in line)
    done = tiny.invoke(
        "eval", trained_run, "--checkpoint", "best", "--policy", "learned", "--split", "validation", "--json"
    )
    assert done.returncode == 0, done.stderr
    (score,) = json.loads(done.stdout)["scores"]
    for name in ("accuracy", "loss", "opened", "steps"):
        assert score[name] == seen[f"eval/{name}"], name


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_fsync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    refuse_to_fsync_folders(monkeypatch, code)
    saver = Saver(tmp_path, keep=2)
    saver.start(make(1))
    saver.conclude()
    checkpoint_verify.verify(checkpoints.folder_of(tmp_path, 1))


def test_what_an_optimiser_keeps_is_not_mapped_from_the_file(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=2)
    saver.start(make(1))
    saver.conclude()
    kept = load_shared(checkpoints.folder_of(tmp_path, 1), OwnState({}, {})).training
    assert kept
    assert f"{tmp_path}/checkpoints/step_00000001/training.safetensors" not in Path("/proc/self/maps").read_text()
