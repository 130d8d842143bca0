"""A checkpoint that trm did not write, with hashes that are right: refused with its folder before training begins."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from trm_core.training.faults import Faults
from trm_core.training.saved_state import require_known, require_optimizer_state, take_numbers


def test_numbers_are_taken_as_what_they_are() -> None:
    faults = Faults()
    take_numbers(faults, {"skipped": 3, "in_a_row": 1.0, "rollbacks": 2, "rate": 1})
    assert faults == Faults(3, 1, 2, 1.0)
    assert [type(value) for value in vars(faults).values()] == [int, int, int, float]
    for odd in (1.5, "1", None, True, [1], float("nan")):
        with pytest.raises((ValueError, TypeError)):
            take_numbers(Faults(), {**vars(faults), "skipped": odd})


def test_labels_under_way_are_ones_of_the_model() -> None:
    model = tiny.make_model(tiny.make_config())
    carry = tiny.make_carry(model)
    for labels in ([-100, 0, tiny.CLASSES - 1], []):
        require_known(replace(carry, labels=torch.tensor(labels, dtype=torch.int64)), model.data)
    for labels in ([-101, 0], [0, tiny.CLASSES]):
        with pytest.raises(ValueError, match="labels are"):
            require_known(replace(carry, labels=torch.tensor(labels)), model.data)


def test_tokens_and_puzzles_under_way_are_ones_of_the_model() -> None:
    carry = tiny.make_carry(tiny.make_model(tiny.make_config()))
    shape = tiny.make_shape(dim=0, vocab_size=5, num_puzzles=2)

    def of(tokens: list[int], puzzles: list[int] | None) -> Any:
        numbers = None if puzzles is None else torch.tensor(puzzles)
        return replace(carry, capsules=replace(carry.capsules, sketches=torch.tensor([tokens]), puzzles=numbers))

    for tokens, puzzles in (([0, 4], [0, 1]), ([], None)):
        require_known(of(tokens, puzzles), shape)
    for tokens in ([-1, 0], [0, 5]):
        with pytest.raises(ValueError, match="tokens are"):
            require_known(of(tokens, [0]), shape)
    for puzzles in ([-1], [2]):
        with pytest.raises(ValueError, match="puzzles are"):
            require_known(of([0], puzzles), shape)
    require_known(of([99], [99]), tiny.make_shape())  # sketches are any numbers


def test_the_state_of_an_optimiser_fits_its_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam([{"params": [layer.weight]}, {"params": [layer.bias], "lr": 0.1}])
    require_optimizer_state(optimizer, optimizer.state_dict()["param_groups"], {})  # before its first step
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    groups, good = saved["param_groups"], saved["state"]
    require_optimizer_state(optimizer, groups, good)
    require_optimizer_state(optimizer, groups, {1: good[1]})  # one that never had a gradient has no state

    def refused_state(index: int, words: str, **values: torch.Tensor) -> None:
        state = copy.deepcopy(good)
        state[index].update(values)
        with pytest.raises(ValueError, match=words):
            require_optimizer_state(optimizer, groups, state)

    refused_state(0, r"exp_avg of parameter 0 has the shape \(2,\)", exp_avg=torch.zeros(2))
    refused_state(1, r"exp_avg of parameter 1 has the shape \(2, 3\)", exp_avg=torch.zeros(2, 3))
    refused_state(0, r"step of parameter 0 has the shape \(1,\)", step=torch.ones(1))
    refused_state(1, r"taken -1.0 steps for parameter 1", step=torch.tensor(-1.0))
    refused_state(1, r"taken nan steps", step=torch.tensor(float("nan")))
    refused_state(1, r"parameter 0 has .* where others have .*'more'", more=torch.zeros(2))
    for values in good.values():
        values["step"] = torch.tensor(0.0)
    require_optimizer_state(optimizer, groups, good)
    for other in (groups[::-1], groups[:1], [{"params": [0, 1]}]):
        with pytest.raises(ValueError, match="numbered in another way"):
            require_optimizer_state(optimizer, other, good)


@pytest.fixture
def newest(trained_run: Path, tmp_path: Path) -> Path:
    """The newest checkpoint of a copy of the trained run."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    return max((run / "checkpoints").glob("step_*"))


def refused(newest: Path, words: str) -> None:
    """Two more steps are asked for; the answer is a refusal."""
    tiny.vouch_for(newest)
    done = tiny.invoke("train", "--resume", newest.parents[1], "training.total_steps=62")
    assert done.returncode == 4, done.stderr
    assert words in done.stderr
    assert str(newest) in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("faults.rate", "12", "rate is '12'"),
        ("scale.count", 1.5, "count is 1.5"),
        ("scale.mean", True, "mean is True"),
        ("intrinsic_scale.squares", None, "squares is None"),
        ("replay.head", float("inf"), "cannot convert float infinity"),
        ("replay.young", 1, "incomplete or expired slots can be drawn"),
        ("stream.taken", "x", "invalid literal"),
        ("stream", None, "not subscriptable"),
        ("optimizers", [[{"params": [0]}], [{"params": [0]}]], "numbered in another way"),
        ("best", "0.5", "its best accuracy is '0.5'"),
        ("step", 61, "is from step 61"),
    ],
)
def test_numbers(newest: Path, key: str, value: Any, words: str) -> None:
    *parents, name = key.split(".")
    path = newest / ("rank0.json" if parents[:1] == ["replay"] else "state.json")
    document = json.loads(path.read_text())
    target = document
    for parent in parents:
        target = target[parent]
    target[name] = value
    path.write_text(json.dumps(document))
    refused(newest, words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("carry.halted", lambda t: None, "the rows of its processes do not fit together: 'carry.halted'"),
        ("carry.halted", lambda t: t[0], "the rows of its processes do not fit together"),
        ("carry.z_H", lambda t: t[:1], "carry: z_H is (1,"),
        ("carry.steps", lambda t: t.float(), "carry: steps is (8,) torch.float32"),
        ("optimizer.0.0.exp_avg", lambda t: t[:1], "exp_avg of parameter 0 has the shape"),
        ("optimizer.0.0.step", lambda t: -t, "has taken -60.0 steps"),
        ("optimizer.0.0.exp_avg_sq", lambda t: None, "parameter 0 has ['exp_avg', 'step']"),
        ("replay.next_slot", lambda t: t + 10**6, "are not younger"),
        ("weights.input_scale", lambda t: torch.ones(()), "surplus ['input_scale']"),
        ("generator", lambda t: t[:10], "does not fit this configuration"),
    ],
)
def test_tensors(newest: Path, name: str, change: Any, words: str) -> None:
    own = name.startswith(("carry.", "replay.", "generator"))
    path = newest / ("rank0.safetensors" if own else "training.safetensors")
    tensors = load_file(path)
    changed = change(tensors.pop(name, None))
    save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, path)
    refused(newest, words)


def test_averaged_weights_of_another_shape_are_not_broadcast(newest: Path) -> None:
    path = newest / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name].flatten()[:1].clone()
    save_file(tensors, path)
    refused(newest, f"set of averaged weights does not fit this model: {name} is (1,)")
