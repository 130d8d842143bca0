"""Checkpoints on disk: what is written comes back, what is damaged is noticed, and a failed save leaves nothing."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from trm_core.errors import CheckpointError, ResourceError
from trm_core.training import checkpoint_folders as checkpoints
from trm_core.training.checkpoint import Checkpoint, OwnState, load_own, load_shared, load_weights
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
    found, notes = checkpoints.find_checkpoint(run)
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
    found, notes = checkpoints.find_checkpoint(run)
    assert found == older
    if (name, damage) != ("manifest.json", "remove"):  # without a manifest it was never a checkpoint
        assert len(notes) == 1
        assert str(newer) in notes[0]
    checkpoints.mark_best(run, 10)
    with pytest.raises(CheckpointError, match=str(newer)):
        checkpoints.find_checkpoint(run, "best")
    for other in FILES:
        (older / other).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        checkpoints.find_checkpoint(run)


def test_every_byte_counts(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    for name in FILES[:-1]:
        path = folder / name
        data = path.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with pytest.raises(CheckpointError, match=name):
                checkpoints.verify(folder)
        path.write_bytes(data)
    checkpoints.verify(folder)


def test_pruning_keeps_the_newest_and_the_best(run: Path) -> None:
    saver = Saver(run, keep=2)
    for step in (2, 4, 6, 8, 10):
        saver.start(make(step), best=step == 4)
        saver.conclude()
    assert [p.name for p in checkpoints.list_checkpoints(run)] == ["step_00000010", "step_00000008", "step_00000004"]
    assert checkpoints.find_checkpoint(run, "best")[0].name == "step_00000004"


def test_an_intact_checkpoint_stays_and_a_damaged_one_is_replaced(run: Path) -> None:
    folder = save_checkpoint(run, make(3))
    before = (folder / "state.json").read_bytes()
    changed = make(3)
    changed.state["again"] = True
    save_checkpoint(run, changed)
    assert (folder / "state.json").read_bytes() == before
    (folder / "state.json").write_text("{}")
    save_checkpoint(run, changed)
    assert load_checkpoint(checkpoints.find_checkpoint(run)[0]).state["again"] is True
    assert len(list((run / "checkpoints").iterdir())) == 1


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
    assert checkpoints.find_checkpoint(run) == (older, [])


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
    assert checkpoints.find_checkpoint(run)[0].name == "step_00000001"
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
    loaded = load_checkpoint(checkpoints.find_checkpoint(run)[0])
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


def test_a_checkpoint_under_another_name_is_refused(run: Path) -> None:
    """A copy of an old one would otherwise be gone on from, as if it were the newest."""
    older = save_checkpoint(run, make(5))
    newer = save_checkpoint(run, make(10))
    shutil.rmtree(newer)
    shutil.copytree(older, newer)
    found, notes = checkpoints.find_checkpoint(run)
    assert found == older
    assert "manifest is that of step 5" in notes[0]
    with pytest.raises(CheckpointError, match=r"state.json is that of step 5"):
        load_checkpoint(newer)


def test_names_that_only_look_like_numbers_are_no_checkpoints(run: Path) -> None:
    folder = save_checkpoint(run, make(1))
    for name in ("step_²", "step_٣", "step_-1", "step_"):
        shutil.copytree(folder, folder.with_name(name))
    assert checkpoints.list_checkpoints(run) == [folder]
    assert [one.step for one in checkpoints.checkpoint_facts(run)] == [1]


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
        checkpoints.find_checkpoint(run, "best")
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no checkpoint that verifies"):
        checkpoints.find_checkpoint(run)
