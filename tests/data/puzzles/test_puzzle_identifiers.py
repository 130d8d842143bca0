"""Every puzzle of several folders has a number of its own, and no other folder's puzzles are answered under the
embeddings of the training puzzles.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_puzzles import ARCH, write_puzzles

from trm_core.data.dataset import open_stream
from trm_core.data.puzzles.identifiers import (
    identifiers_record,
    numbered_as_trained,
    numbered_together,
    shift_in,
)
from trm_core.data.puzzles.layout import BLANK, Metadata
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles
from trm_core.errors import DataError
from trm_core.training.checkpoint import load_model
from trm_core.training.checkpoint_verify import find_checkpoint
from trm_core.training.initial_weights import PUZZLES

NAMES = ["<blank>", "puzzle1", "puzzle2", "puzzle3"]


def named(folder: Path, names: list[str] | None, seed: int = 0) -> Path:
    """A folder whose identifiers have these names; None: as many without any."""
    write_puzzles(folder, groups=6, identifiers=len(NAMES if names is None else names), seed=seed)
    if names is None:
        (folder / "identifiers.json").unlink()
    else:
        (folder / "identifiers.json").write_text(json.dumps(names))
    return folder


def opened(folder: Path, names: list[str] | None) -> PuzzleData:
    return open_puzzles(named(folder, names))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (NAMES, None),
        (NAMES[:2], None),
        (["<blank>", "<blank>", "puzzle2", "puzzle3"], None),
        (None, None),
        (["<blank>", "puzzle1", "other", "puzzle3"], "identifier 2 is 'other', but another puzzle had it in training"),
        ([*NAMES, "puzzle4"], "has 5 puzzle identifiers, but the training puzzles have 4"),
    ],
)
def test_identifiers_of_another_folder(names: list[str] | None, why: str | None, tmp_path: Path) -> None:
    record = identifiers_record([opened(tmp_path / "ours", NAMES)])
    theirs, record = opened(tmp_path / "theirs", names), json.loads(json.dumps(record))
    if why is None:
        assert numbered_as_trained(theirs, 4, record).shift == 0
        return
    with pytest.raises(DataError, match=why) as caught:
        numbered_as_trained(theirs, 4, record)
    assert str(theirs.path) in caught.value.message


def test_what_is_not_recorded_contradicts_nothing(tmp_path: Path) -> None:
    other = opened(tmp_path / "other", ["<blank>", "a", "b", "c"])
    assert identifiers_record([opened(tmp_path / "silent", None)]) is None
    for record in (
        None,
        7,
        {"names": "no base64 at all"},
        {"names": "YQ==", "begin": 7},
        {"begin": ["a", -1, 9, 8, 10**30]},
        [1],
    ):
        assert shift_in(other, 4, record) == 0


def test_several_training_folders_are_one_list(tmp_path: Path) -> None:
    short, silent, long = (
        opened(tmp_path / name, names) for name, names in (("a", NAMES[:2]), ("b", None), ("c", NAMES))
    )
    together = numbered_together([short, silent, long])
    assert [folder.shift for folder in together] == [0, 0, 0]
    record = identifiers_record(together)
    assert record == identifiers_record([long])
    with pytest.raises(DataError, match="identifier 3 is 'x'"):
        numbered_as_trained(opened(tmp_path / "d", [*NAMES[:3], "x"]), 4, record)


def nothing_but(names: list[str]) -> PuzzleData:
    """A folder of which only the identifiers matter."""
    about = Metadata(
        pad_id=0, vocab_size=3, seq_len=4, blank_identifier_id=0, ignore_label_id=0, sets=["all"],
        num_puzzle_identifiers=len(names), total_groups=1, total_puzzles=1, mean_puzzle_examples=1,
    )  # fmt: skip
    return PuzzleData(Path("nowhere"), {"train": about}, {"train": []}, None, names)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5), min_size=1, max_size=5))
@example([["a"], ["b"], ["a", "c"]])  # the first range agrees and is too short
def test_one_number_is_one_puzzle_and_folders_are_found_again(lists: list[list[str]]) -> None:
    folders = numbered_together([nothing_but([BLANK, *names]) for names in lists])
    owners: dict[int, str] = {}
    for folder in folders:
        for here, name in enumerate((folder.names or [])[1:], start=1):
            assert owners.setdefault(here + folder.shift, name) == name
            assert folder.name_of(here + folder.shift) == name
        assert folder.name_of(0) == BLANK
    total, record = max(folder.shift + folder.num_puzzles for folder in folders), identifiers_record(folders)
    for folder in folders:
        again = numbered_as_trained(nothing_but(folder.names or []), total, record)
        assert again.shift == folder.shift


def test_folders_without_names_keep_their_numbers() -> None:
    """Also where they have more of them than the first folder, and another has the numbers behind it."""
    silent = [nothing_but([BLANK] * 6), nothing_but([BLANK])]
    lists = [nothing_but([BLANK, "a"]), nothing_but([BLANK, "b"]), *silent]
    folders = numbered_together(lists)
    assert [folder.shift for folder in folders] == [0, 6, 0, 0]
    record = identifiers_record(folders)
    assert [shift_in(folder, 8, record) for folder in lists] == [0, 6, 0, 0]


def test_folders_that_were_built_apart_are_read_together(tmp_path: Path) -> None:
    """A folder whose names contradict has the next numbers; the blank one is everybody's."""
    ours, other = opened(tmp_path / "a", NAMES), opened(tmp_path / "b", ["<blank>", "x", "y", "z"])
    together = numbered_together([ours, other, ours])
    assert [folder.shift for folder in together] == [0, 4, 0]
    assert ours.shift == other.shift == 0
    rows = slice(0, other.rows["train"])
    own, shifted = (folder.read("train", rows)["puzzles"] for folder in (other, together[1]))
    assert np.array_equal(shifted, np.where(own == 0, 0, own + 4))
    assert own.max() > 0
    batch = open_stream([(folder, 1.0) for folder in together[:2]], "train", seed=0).take(200)
    assert batch.puzzles is not None
    assert {1, 2, 3, 5, 6, 7} <= set(batch.puzzles.tolist()) <= {0, 1, 2, 3, 5, 6, 7}
    assert together[1].manifest["content_hash"] == other.manifest["content_hash"]


def test_a_run_of_folders_that_were_built_apart(tmp_path: Path) -> None:
    ours, other = named(tmp_path / "ours", NAMES), named(tmp_path / "other", ["<blank>", "x", "y", "z"], seed=1)
    third = named(tmp_path / "third", ["<blank>", "q", "y", "z"], seed=2)
    run, exported = tmp_path / "run", tmp_path / "exported"
    settings = {"arch": ARCH, "training": {"run_dir": run, "total_steps": 4, "lr_warmup_steps": 1, "stop_at_step": 2}}
    paths = f'data.path=["{ours}","{other}"]'
    stopped = tiny.invoke("train", *tiny.as_overrides(**settings), paths, f"data.eval_path={other}")
    assert stopped.returncode == 75, stopped.stderr
    done = tiny.invoke(
        "train", *tiny.as_overrides(**settings), paths, "--resume", str(run), "training.stop_at_step=null"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "dataset.json").read_text())["identifiers"]["begin"] == [0, 4]
    assert tiny.invoke("export", str(run), "--format", "safetensors", "--out", str(exported)).returncode == 0
    for folder in (ours, other):
        evaluated = tiny.invoke("eval", str(run), "--data", str(folder))
        assert evaluated.returncode == 0, evaluated.stderr
        answers = [tmp_path / f"{folder.name} {number}" for number in (1, 2)]
        for model, out in zip((run, exported), answers, strict=True):
            found = tiny.invoke("predict", str(folder), "--model", str(model), "--out", str(out))
            assert found.returncode == 0, found.stderr
        assert answers[0].read_text() == answers[1].read_text() != ""
    refused = tiny.invoke("eval", str(run), "--data", str(third))
    assert refused.returncode == 4
    assert "identifier 1 is 'q', but another puzzle had it in training" in refused.stderr
    begun = tiny.invoke(
        "train", *tiny.as_overrides(data={"path": other}, arch=ARCH, training={
            "run_dir": tmp_path / "again", "total_steps": 2, "lr_warmup_steps": 1, "init_from": run,
        }),
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    assert "3 puzzle embeddings are those of the same names in" in begun.stderr


def test_a_second_folder_by_every_way_in(tmp_path: Path) -> None:
    ours, other = named(tmp_path / "ours", NAMES), named(tmp_path / "other", ["<blank>", "x", "y", "z"], seed=1)
    same, silent = named(tmp_path / "same", NAMES[:3], seed=2), named(tmp_path / "silent", None, seed=3)
    run, exported = tmp_path / "run", tmp_path / "exported"

    def train(where: Path, **data: object) -> tiny.Outcome:
        training = {"run_dir": where, "total_steps": 2, "lr_warmup_steps": 1}
        return tiny.invoke("train", *tiny.as_overrides(data={"path": ours, **data}, arch=ARCH, training=training))

    assert train(run).returncode == 0
    assert json.loads((run / "dataset.json").read_text())["identifiers"]["begin"] == [0]
    assert tiny.invoke("export", str(run), "--format", "safetensors", "--out", str(exported)).returncode == 0
    for folder, why in ((other, "identifiers.json: identifier 1 is 'x'"), (same, None), (silent, None)):
        answers = [tmp_path / f"{folder.name} {number}" for number in (1, 2)]
        tries = [
            (3, train(tmp_path / f"with {folder.name}", eval_path=folder)),
            (4, tiny.invoke("eval", str(run), "--data", str(folder))),
            (4, tiny.invoke("predict", str(folder), "--model", str(run), "--out", str(answers[0]))),
            (4, tiny.invoke("predict", str(folder), "--model", str(exported), "--out", str(answers[1]))),
        ]
        for code, done in tries:
            assert done.returncode == (0 if why is None else code), done
            assert why is None or (f"{folder}/{why}" in done.stderr and "hint: build" in done.stderr), done
    free = {**ARCH, "puzzle_emb_ndim": 0}
    training = {"run_dir": tmp_path / "free", "total_steps": 2, "lr_warmup_steps": 1}
    done = tiny.invoke(
        "train", *tiny.as_overrides(data={"path": ours, "eval_path": other}, arch=free, training=training)
    )
    assert done.returncode == 0, done.stderr


def test_embeddings_of_other_puzzles_begin_at_the_mean(tmp_path: Path) -> None:
    """As many of them, so only the names can tell."""
    ours, other = named(tmp_path / "ours", NAMES), named(tmp_path / "other", ["<blank>", "x", "y", "z"], seed=1)

    def train(name: str, **settings: object) -> str:
        training = {"run_dir": tmp_path / name, "total_steps": 2, "lr_warmup_steps": 1}
        data = {"path": settings.pop("path")}
        done = tiny.invoke("train", *tiny.as_overrides(data=data, arch=ARCH, training={**training, **settings}))
        assert done.returncode == 0, done.stderr
        return done.stderr

    train("first", path=ours)
    assert "begin at the mean" not in train("again", path=ours, init_from=tmp_path / "first")
    assert "4 puzzle embeddings begin at the mean of the 4" in train("else", path=other, init_from=tmp_path / "first")
    # As for tasks that the model has not seen: only their embeddings are learned.
    alone = {"freeze": "['*', '!embedding.puzzles.*']", "puzzle_emb_lr": 0.1, "ema_decay": "null"}
    train("adapted", path=other, init_from=tmp_path / "first", **alone)
    before, after = (load_model(find_checkpoint(tmp_path / run, "latest")[0])[1] for run in ("first", "adapted"))
    moved = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert PUZZLES in moved
    assert {name for name in moved if not name.startswith("q_head.value_net.")} == {PUZZLES}


def test_embeddings_are_found_by_the_names_of_puzzles(tmp_path: Path) -> None:
    """Folders in another order have other numbers."""
    lists = {"a": NAMES, "b": ["<blank>", "x", "y", "z"], "c": ["<blank>", "q", "r"]}
    made = {name: named(tmp_path / name, names, seed=n) for n, (name, names) in enumerate(lists.items())}

    def train(run: str, *folders: str, **settings: object) -> tuple[dict[str, Any], str]:
        training = {"run_dir": tmp_path / run, "total_steps": 4, "lr_warmup_steps": 1, **settings}
        paths = "data.path=" + json.dumps([str(made[name]) for name in folders])
        done = tiny.invoke("train", *tiny.as_overrides(arch=ARCH, training=training), paths)
        assert done.returncode == 0, done.stderr
        folder, _ = find_checkpoint(tmp_path / run, "latest")
        begin, by_name, table = 0, {}, load_model(folder)[1][PUZZLES]
        for name in folders:
            by_name |= {lists[name][n]: table[begin + n if n else 0] for n in range(len(lists[name]))}
            begin += len(lists[name])
        return by_name, done.stderr

    kept = {"init_from": tmp_path / "first", "puzzle_emb_lr": 0.0, "puzzle_emb_weight_decay": 0.0}
    first, _ = train("first", "a", "b", puzzle_emb_lr=0.1)
    assert not torch.equal(first["x"], first["puzzle1"])
    again, said = train("again", "b", "a", **kept)
    assert "6 puzzle embeddings are those of the same names in" in said
    assert "begin at the mean" not in said
    assert all(torch.equal(again[name], value) for name, value in first.items())
    more, said = train("more", "c", "b", **kept)
    assert "3 puzzle embeddings are those of the same names, 2 begin at the mean of the 8 in" in said
    assert all(torch.equal(more[name], first[name]) for name in lists["b"])
    assert torch.equal(more["q"], more["r"])
