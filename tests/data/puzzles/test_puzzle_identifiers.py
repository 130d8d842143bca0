"""No other folder's puzzles are answered under the embeddings of the training puzzles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from tiny_puzzles import ARCH, write_puzzles

from trm_core.data.puzzles.identifiers import identifiers_record, unknown_puzzles
from trm_core.data.puzzles.reader import PuzzleData, open_puzzles

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
        (["<blank>", "puzzle1", "other", "puzzle3"], "identifier 2 is 'other', another puzzle in training"),
        ([*NAMES, "puzzle4"], "has 5 puzzle identifiers, the training puzzles 4"),
    ],
)
def test_identifiers_of_another_folder(names: list[str] | None, why: str | None, tmp_path: Path) -> None:
    record = identifiers_record([opened(tmp_path / "ours", NAMES)])
    found = unknown_puzzles(opened(tmp_path / "theirs", names), 4, json.loads(json.dumps(record)))
    assert found == why or (
        why is not None and found is not None and why in found and str(tmp_path / "theirs") in found
    )


def test_what_is_not_recorded_contradicts_nothing(tmp_path: Path) -> None:
    other = opened(tmp_path / "other", ["<blank>", "a", "b", "c"])
    assert identifiers_record([opened(tmp_path / "silent", None)]) is None
    for record in (None, 7, "no base64 at all", "YQ==", [1]):
        assert unknown_puzzles(other, 4, record) is None


def test_several_training_folders_are_one_list(tmp_path: Path) -> None:
    short, silent, long = (
        opened(tmp_path / name, names) for name, names in (("a", NAMES[:2]), ("b", None), ("c", NAMES))
    )
    record = identifiers_record([short, silent, long])
    assert record == identifiers_record([long])
    assert "identifier 3 is 'x'" in str(unknown_puzzles(opened(tmp_path / "d", [*NAMES[:3], "x"]), 4, record))


def test_a_second_folder_by_every_way_in(tmp_path: Path) -> None:
    ours, other = named(tmp_path / "ours", NAMES), named(tmp_path / "other", ["<blank>", "x", "y", "z"], seed=1)
    same, silent = named(tmp_path / "same", NAMES[:3], seed=2), named(tmp_path / "silent", None, seed=3)
    run, exported = tmp_path / "run", tmp_path / "exported"

    def train(where: Path, **data: object) -> tiny.Outcome:
        training = {"run_dir": where, "total_steps": 2, "lr_warmup_steps": 1}
        return tiny.invoke("train", *tiny.as_overrides(data={"path": ours, **data}, arch=ARCH, training=training))

    assert train(run).returncode == 0
    assert isinstance(json.loads((run / "dataset.json").read_text())["identifiers"], str)
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
