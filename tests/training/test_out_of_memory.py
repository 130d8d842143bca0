"""Running out of memory: the breakdown, the override that is named, and real runs whose allocations are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from trm_core.config.schema import Config
from trm_core.errors import ResourceError
from trm_core.runs import RunHooks, prepare
from trm_core.training import what_fits
from trm_core.training.features import Features
from trm_core.training.memory_breakdown import available_memory, bytes_by_owner
from trm_core.training.out_of_memory import explain, memory_explained
from trm_core.training.trainer import Trainer
from trm_core.training.what_fits import fit, fit_by_child, override_that_fits, parts_that_fit

FLOAT = 4


def make_trainer(data: Path) -> tuple[Trainer, Features]:
    config = tiny.make_config(
        data={"path": str(data)},
        memory={"enabled": True, "capacity": 64, "top_k": 2, "num_heads": 2},
        training={"ema_decay": 0.9, "optimizer": "adamw"},
        dqn={"replay": "prioritized", "recent_fraction": 0.5},
    )
    prepared = prepare(config, RunHooks())
    trainer = Trainer(prepared.config, prepared.features, prepared.files, prepared.device)
    return trainer, prepared.features


def test_bytes_by_owner_are_counted_once(capsule_file: Path) -> None:
    trainer, _ = make_trainer(capsule_file)
    state = trainer.state
    assert bytes_by_owner(state)["optimiser state"] == 0, "nothing is there before the first step"
    for _ in range(4):
        trainer.taker.take(trainer.standing())
    assert state.replay is not None
    assert state.target is not None
    assert state.model.memory is not None
    weights = sum(p.numel() for p in state.model.parameters()) * FLOAT
    bank = sum(buffer.nbytes for buffer in state.model.memory.buffers())
    buffers = sum(buffer.nbytes for buffer in state.model.buffers()) - bank
    head = sum(p.numel() for p in state.target.head.parameters()) * FLOAT
    count = len(list(state.model.parameters()))
    found = bytes_by_owner(state)
    assert found["parameters"] == weights + buffers
    assert found["average"] == weights
    assert found["target network"] == head
    assert found["memory bank"] == bank
    assert found["optimiser state"] == 2 * weights + count * FLOAT, "two moments, and a counter per parameter"
    assert found["gradients"] == 0
    slots = trainer.config.dqn.buffer_capacity
    per_slot = state.replay.states[0].nbytes + state.replay.valid.shape[1] + 24 + 1 + 8 + 2 * 8
    assert slots * per_slot <= found["replay"] <= 1.2 * slots * per_slot
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert bytes_by_owner(state)["gradients"] == weights
    carry = state.carry
    k, hidden = tiny.K, trainer.config.arch.hidden_size
    assert carry.z_H.untyped_storage().data_ptr() != carry.z_L.untyped_storage().data_ptr()
    assert found["carry"] >= 8 * k * (3 * hidden + tiny.D * (1 + tiny.M) + tiny.R) * FLOAT


def total(config: Config) -> int:
    """100 bytes, 10 per row and 1 per slot."""
    return 100 + 10 * config.training.global_batch_size + config.dqn.buffer_capacity


@pytest.mark.parametrize(
    ("rows", "slots", "budget", "overrides"),
    [
        (1000, 7000, 15_100, "training.global_batch_size=800"),
        (1000, 7000, 15_099, "training.global_batch_size=792"),
        (10, 90_000, 50_000, "dqn.buffer_capacity=49000"),
        (1000, 60_000, 20_000, "dqn.buffer_capacity=9000"),
        (5000, 30_000, 20_000, "training.global_batch_size=1184 dqn.buffer_capacity=8000"),
        (1000, 7000, 1000, None),
    ],
)
def test_the_override_is_the_largest_that_fits(rows: int, slots: int, budget: int, overrides: str | None) -> None:
    config = tiny.make_config(
        training={"global_batch_size": rows}, dqn={"buffer_capacity": slots, "buffer_min_size": 1000}
    )
    found = override_that_fits(config, total, budget, slots, 1)
    assert (found and found[0]) == overrides
    if found is not None:
        sizes = {key.partition(".")[2]: int(value) for key, value in re.findall(r"([\w.]+)=(\d+)", found[0])}
        batch = sizes.get("global_batch_size", rows)
        capacity = sizes.get("buffer_capacity", slots)
        assert found[1] == 100 + 10 * batch + capacity <= budget
        assert capacity >= 2 * batch * config.arch.max_steps, "or the config would be refused"


def test_without_a_buffer_only_the_batch_can_shrink() -> None:
    config = tiny.make_config(training={"global_batch_size": 100}, dqn={"buffer_capacity": 5000})
    assert override_that_fits(config, lambda c: total(c) - 5000, 600, 0, 1) == ("training.global_batch_size=48", 580)


def test_a_batch_in_parts_fits_too() -> None:
    def in_parts(config: Config) -> int:
        return 1000 // config.training.accumulation_steps

    config = tiny.make_config(training={"global_batch_size": 96})
    assert parts_that_fit(config, in_parts, 1000, 1) == 2
    assert parts_that_fit(config, in_parts, 210, 1) == 6, "5 parts would fit, but do not divide the batch"
    assert parts_that_fit(config, in_parts, 80, 1) is None, "more parts would have fewer than 8 rows"
    asked: list[int] = []

    def counted(config: Config) -> int:
        asked.append(config.training.accumulation_steps)
        return in_parts(config)

    many = tiny.make_config(training={"global_batch_size": 5040}, dqn={"buffer_capacity": 50_000})
    assert parts_that_fit(many, counted, 10, 1) == 105, "100 parts would fit, but do not divide the batch"
    assert len(asked) <= 8, "each look traces a step"
    config = tiny.make_config(training={"global_batch_size": 96, "accumulation_steps": 4})
    assert parts_that_fit(config, in_parts, 1000, 1) == 6
    # Batches stay divisible by the parts.
    config = tiny.make_config(
        training={"global_batch_size": 1000, "accumulation_steps": 3}, dqn={"buffer_capacity": 7000}
    )
    assert override_that_fits(config, total, 15_100, 0, 1) == ("training.global_batch_size=792", 15_020)


def test_a_process_of_its_own_finds_the_same_fit(capsule_file: Path) -> None:
    sizes = {"global_batch_size": 16, "accumulation_steps": 2}  # for which two traces do, and none takes long
    config = tiny.make_config(data={"path": str(capsule_file)}, training=sizes, dqn={"buffer_capacity": 7000})
    prepared = prepare(config, RunHooks())
    here = fit(prepared.config, prepared.features, "cpu", 10_000_000, 1)
    assert here.needs["parameters"] > 0
    assert "this fits" in here.hint
    assert fit_by_child(prepared.config, prepared.features, "cpu", 10_000_000) == here


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 11)", "raise SystemError('without exception set')"])
def test_an_estimate_that_breaks_hides_nothing(
    ending: str, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, features = make_trainer(capsule_file)
    monkeypatch.setattr(what_fits, "command_of", lambda *_: [sys.executable, "-c", f"import os; {ending}"])
    for state, told in [(trainer.state, "activations estimated"), (None, "tensors")]:
        with (
            pytest.raises(ResourceError) as raised,
            memory_explained(trainer.config, features, trainer.device, state),
        ):
            raise MemoryError
        assert "out of memory on cpu" in raised.value.message
        assert " available " in raised.value.message
        assert told not in raised.value.message, "there is no estimate"
        assert raised.value.hint is not None
        assert "training.global_batch_size" in raised.value.hint


def test_a_gpu_says_what_was_measured(capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, features = make_trainer(capsule_file)
    trainer.taker.take(trainer.standing())
    held = sum(bytes_by_owner(trainer.state).values())
    fakes: dict[str, Callable[..., object]] = {
        "mem_get_info": lambda device: (100_000, 10**9),
        "memory_reserved": lambda device: 50_000,
        "get_per_process_memory_fraction": lambda device: 1.0,
        "max_memory_allocated": lambda device: held + 7_700_000,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    device = torch.device("cuda")
    assert available_memory(device, 0)[0] == 150_000
    with (
        pytest.raises(ResourceError) as raised,
        memory_explained(trainer.config, features, device, trainer.state),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
    assert "out of memory on cuda, after step 1, allocating 20.00 GiB" in raised.value.message
    assert "measured, activations as the rest of the measured peak" in raised.value.message
    assert "activations 7.7," in raised.value.message
    assert "0.1 available on the GPU" in raised.value.message or "0.2 available on the GPU" in raised.value.message


@pytest.mark.parametrize(("unused", "told"), [("30.00 GiB", True), ("20.00 MiB", False)])
def test_free_memory_in_pieces_is_told(capsule_file: Path, unused: str, told: bool) -> None:
    """The allocator of a GPU says so, in a text of which the user sees nothing else."""
    trainer, features = make_trainer(capsule_file)
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.00 GiB is "
        f"free. Of the allocated memory 40.00 GiB is allocated by PyTorch, and {unused} is reserved by PyTorch but "
        "unallocated. If reserved but unallocated memory is large try setting ..."
    )
    found = explain(error, trainer.config, features, torch.device("cpu"), trainer.state, (10**9, "of a test"))
    assert ("PYTORCH_ALLOC_CONF=expandable_segments:True" in found.message) == told
    assert (f"{unused} more are reserved but free" in found.message) == told


def test_other_errors_pass(capsule_file: Path) -> None:
    trainer, features = make_trainer(capsule_file)
    for error in (RuntimeError("shapes do not fit"), KeyError("x")):
        with (
            pytest.raises(type(error)),
            memory_explained(trainer.config, features, trainer.device, trainer.state),
        ):
            raise error


# The limit is relative to what the libraries take, which for a CUDA build is many gigabytes of addresses; all of them
# are loaded before, so that it is tensors that do not fit.
LIMITED = """
import re, resource, runpy, sys
import scipy.stats, sklearn.linear_model, trm_core.runs
taken = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv.pop(1)), resource.RLIM_INFINITY))
runpy.run_module("trm_cli.main", run_name="__main__")
"""


def limited(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`trm train` with 800 MB of address space."""
    command = [sys.executable, "-c", LIMITED, "800000000", "train", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=tiny.environment(cwd), timeout=300
    )


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize(
    ("sizes", "when", "largest"),
    [
        (
            ["training.global_batch_size=9000", "dqn.buffer_capacity=100000"],
            # The tensors of a step exceed the limit. Which allocation is the one too many is the heap's affair, and
            # not all say their size.
            r"after step \d",
            "tensors (measured, activations estimated), MB: activations ",
        ),
        (
            ["training.global_batch_size=8", "dqn.buffer_capacity=100000000"],
            "before training, allocating 2.24 GiB",
            "tensors (estimated, as nothing was measured yet), MB: a save's copy ",
        ),
    ],
    ids=["batch", "buffer"],
)
def test_a_run_that_does_not_fit_names_one_that_does(
    sizes: list[str], when: str, largest: str, tmp_path: Path, capsule_file: Path
) -> None:
    run = tmp_path / "run"
    common = tiny.as_overrides(
        data={"path": capsule_file},
        arch={"hidden_size": 64, "num_layers": 6},
        training={"run_dir": run, "total_steps": 2},
        dqn={"buffer_dtype": "float32"},
    )
    done = limited(tmp_path, *common, *sizes)
    assert done.returncode == 6, done.stderr
    assert re.search(f"error: out of memory on cpu, {when}", done.stderr), done.stderr
    assert largest in done.stderr
    assert "available of the limit on address space" in done.stderr
    assert "Traceback" not in done.stderr
    if "after step" in when:
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("failed", 6)
    hints = re.findall(r"hint: by the estimate this fits, with [^:]+: (.+)", done.stderr)
    assert len(hints) == (2 if "after step" in when else 1), done.stderr
    for number, hint in enumerate(hints):
        again = limited(tmp_path, *common, *sizes, *hint.split(), f"training.run_dir={tmp_path / str(number)}")
        assert again.returncode == 0, again.stderr
