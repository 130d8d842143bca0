"""`trm profile` from its command line, and what it rests on: stages that add up, and objects that are as before."""

from __future__ import annotations

import ast
import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from forked import Forked, run_together
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

import trm_core.training.step
from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.prepare import RunHooks, prepare
from trm_core.profiling import changes as profiling_changes
from trm_core.profiling import rate as profiling_rate
from trm_core.profiling.attach import Watched, attached
from trm_core.profiling.changes import changes
from trm_core.profiling.operators import times_of
from trm_core.profiling.profile import Profile, Timing, profile_steps, time_steps, whole_intervals
from trm_core.profiling.rate import matrix_rate
from trm_core.profiling.stages import STAGES, StageClock, watched_in
from trm_core.profiling.steps import Stepper

CPU = torch.device("cpu")
EVERYTHING = {
    "memory": {"enabled": True, "capacity": 64, "top_k": 2, "num_heads": 2},
    "arch": {"enable_concepts": True, "num_concepts": 8},
    "training": {"ema_decay": 0.9},
    "dqn": {"enable_curiosity": True, "replay": "prioritized"},
}


def make_stepper(config: Config) -> Stepper:
    prepared = prepare(config, RunHooks())
    stepper = Stepper(prepared.config, prepared.features, prepared.files, prepared.device)
    stepper.warm()
    return stepper


def timed(config: Config) -> Timing:
    with closing(make_stepper(config)) as stepper:
        return time_steps(stepper, 20, lambda message: None)


@pytest.mark.parametrize(
    "sections",
    [{}, pytest.param(EVERYTHING, marks=pytest.mark.slow), {"dqn": {"enabled": False}}],
    ids=["plain", "all", "no dqn"],
)
def test_named_stages_make_up_the_step(sections: dict[str, dict[str, object]], capsule_file: Path) -> None:
    if "enabled" in sections.get("dqn", {}):
        sections = {**sections, "arch": {"enable_capsule_expansion": False}}
    config = tiny.make_config(data={"path": str(capsule_file)}, **sections)
    # A machine that is busy takes its time from whatever runs, and a step is a few milliseconds: three tries.
    tries = (timed(config) for _ in range(3))
    found = next((one for one in tries if one.accounted >= 0.95), None)
    assert found is not None
    assert [one.name for one in found.stages] == list(STAGES)
    assert sum(one.milliseconds for one in found.stages) == pytest.approx(found.watched_ms, rel=0.02)
    times = {one.name: one.milliseconds for one in found.stages}
    used = {name for name, milliseconds in times.items() if milliseconds > 0}
    unused = {"sync"} if sections is EVERYTHING else {"sync", "forward: memory", "forward: concepts"}
    assert used == set(STAGES) - unused
    assert times["backward"] > times["data"]


def snapshot(stepper: Stepper) -> dict[str, object]:
    """Own attributes of everything that is watched, and the hooks of everything that learns."""
    watched = watched_in(stepper.trainer)
    found: dict[str, object] = {
        f"{number} {one.name}": vars(one.owner).get(one.name) for number, one in enumerate(watched)
    }
    # But for modules: at its first use torch's profiler imports parts of torch.distributed.
    found |= {
        f"{number} names": sorted(name for name, there in vars(one.owner).items() if not isinstance(there, ModuleType))
        for number, one in enumerate(watched)
    }
    for name, parameter in stepper.trainer.state.model.named_parameters():
        found[f"hooks of {name}"] = len(getattr(parameter, "_post_accumulate_grad_hooks", None) or {})
    for number, optimizer in enumerate(stepper.trainer.state.optimizers.all):
        found[f"hooks of optimiser {number}"] = len(optimizer._optimizer_step_post_hooks)
    return found


@pytest.mark.slow
def test_what_is_watched_is_as_before(capsule_file: Path) -> None:
    with closing(make_stepper(tiny.make_config(data={"path": str(capsule_file)}, **EVERYTHING))) as stepper:
        before = snapshot(stepper)
        backward, to, keep_up = torch.autograd.backward, CapsuleBatch.to, trm_core.training.step.keep_up
        clock = StageClock(torch.device("cpu"))
        with attached(watched_in(stepper.trainer), clock.around):
            assert torch.autograd.backward is not backward
            assert snapshot(stepper) != before
        profile_steps(stepper, 4, None, lambda message: None)
        assert snapshot(stepper) == before
        assert (torch.autograd.backward, CapsuleBatch.to, trm_core.training.step.keep_up) == (backward, to, keep_up)


def test_what_is_watched_is_as_before_after_an_error(capsule_file: Path) -> None:
    with closing(make_stepper(tiny.make_config(data={"path": str(capsule_file)}))) as stepper:
        before = snapshot(stepper)
        with (
            pytest.raises(KeyError),
            attached(watched_in(stepper.trainer), StageClock(torch.device("cpu")).around),
        ):
            raise KeyError
        assert snapshot(stepper) == before


def test_watching_changes_no_number(capsule_file: Path) -> None:
    config = tiny.make_config(data={"path": str(capsule_file)}, **EVERYTHING)
    weights = []
    for watch in (False, True):
        with closing(make_stepper(config)) as stepper:
            watched = watched_in(stepper.trainer) if watch else []
            with attached(watched, StageClock(torch.device("cpu")).around):
                stepper.take(6)
            weights.append([p.detach().clone() for p in stepper.trainer.state.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_training_knows_nothing_of_profiling() -> None:
    for path in sorted((tiny.ROOT / "trm_core").rglob("*.py")):
        if "profiling" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [word for word in words if "profil" in word.lower() or word == "record_function"], path


def test_whole_log_intervals_are_timed() -> None:
    assert whole_intervals(20, 1) == 20
    assert whole_intervals(20, 15) == 30
    assert whole_intervals(20, 10_000) == 20


def test_rules_decide_what_is_tried_first(capsule_file: Path) -> None:
    config = tiny.make_config(data={"path": str(capsule_file)})
    with closing(make_stepper(config)) as stepper:
        found = profile_steps(stepper, 2, None, lambda message: None)
    # A busy machine may be slow in any stage: times of a quiet one.
    quiet = [type(one)(one.name, min(one.milliseconds, 0.1 * found.watched_ms, 5.0), 0.0) for one in found.stages]
    found = Profile(**{**vars(found), "stages": quiet})
    assert all(not change.why for change in changes(config, found, CPU))
    slow = [type(one)(one.name, 10 * found.watched_ms if one.name == "metrics" else 0.0, 0.0) for one in found.stages]
    slow = [type(one)(one.name, max(one.milliseconds, 11.0 * (one.name == "metrics")), 0.0) for one in slow]
    first = changes(config, Profile(**{**vars(found), "stages": slow}), CPU)[0]
    assert first.override == "training.log_interval=10"
    assert "metrics take" in first.why
    waits = [type(one)(one.name, found.watched_ms * (one.name == "data"), 0.0) for one in found.stages]
    assert changes(config, Profile(**{**vars(found), "stages": waits}), CPU)[0].override == "data.num_workers=2"


def overrides(data: Path, **sections: dict[str, object]) -> list[str]:
    return tiny.as_overrides(data={"path": data}, **sections)


def test_command_prints_tables_and_writes_no_run(
    tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tiny.invoke("profile", *overrides(capsule_file), "--no-try", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step: ")
    for text in ("time by stage", "forward: recursion", "operators by self time", "aten::", "at the peak"):
        assert text in done.stdout
    assert "\x1b" not in done.stdout
    assert not list(tmp_path.glob("runs*"))


class Products(TorchDispatchMode):
    """Collects the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_share_is_of_a_product_in_the_precision_of_the_run(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU multiplies bfloat16 many times as fast as float32: a share of the latter would be above 1."""
    monkeypatch.setattr(profiling_rate, "_SIZE", {"cpu": 8})
    monkeypatch.setattr(profiling_rate, "_SECONDS", 0.001)
    with Products() as products:
        assert matrix_rate(torch.device("cpu"), precision) > 0
    assert products.dtypes == {getattr(torch, precision)}


@pytest.mark.slow
def test_everything_as_json(tmp_path: Path, capsule_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)  # which would take most of the time
    monkeypatch.setattr(profiling_changes, "_BLOCK", 0.01)
    monkeypatch.setattr(profiling_changes, "_LEAST", 3)
    traces = tmp_path / "new" / "traces"
    arguments = ["--json", "--steps", "2", "--seconds", "0.1", "--trace", traces]
    done = tiny.invoke("profile", *overrides(capsule_file, training={"threads": 1}), *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accounted"] >= 0.9
    assert 0 < found["utilisation"] < 1
    assert found["memory"]["peak"] == sum(found["memory"]["owners"].values())
    assert sum(operator["share"] for operator in found["operators"]) == pytest.approx(1.0)
    tried = {one["override"]: one for one in found["tried"]}
    assert {"data.num_workers=2", "training.global_batch_size=4", "training.global_batch_size=16"} <= set(tried)
    assert {"training.log_interval=10", "training.monitor_gradients=false"} <= set(tried)
    for one in tried.values():
        for speed in (one["steps_per_sec"], one["samples_per_sec"]):
            assert speed["low"] <= speed["ratio"] <= speed["high"]
        assert one["recommended"] == (one["samples_per_sec"]["low"] > 1)
    doubled = tried["training.global_batch_size=16"]
    assert doubled["samples_per_sec"]["ratio"] == pytest.approx(2 * doubled["steps_per_sec"]["ratio"])
    (path,) = traces.iterdir()
    assert path.name.endswith(".pt.trace.json")
    assert found["traces"] == [str(path)]
    events = json.loads(path.read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"forward: recursion", "backward", "optimiser", "aten::mm", "[memory]"} <= names


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["training.base_lr=no"], 3, "training.base_lr"),
        (["data.path=nowhere.h5"], 4, "nowhere.h5"),
        (["--steps", "0"], 2, "--steps"),
        (["--trace", "{file}"], 2, "cannot use"),
    ],
)
def test_mistakes_are_named(arguments: list[str], code: int, message: str, capsule_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = [argument.format(file=tmp_path / "file") for argument in arguments]
    done = tiny.invoke("profile", *overrides(capsule_file), *given)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_two_processes_are_profiled_together(tmp_path: Path, capsule_file: Path) -> None:
    given = [*overrides(capsule_file), "--steps", "4", "--nproc", "2", "--json", "--trace", tmp_path / "traces"]
    launcher = Forked("profile", *given, cwd=tmp_path)
    out, err = launcher.communicate()
    assert launcher.returncode == 0, err
    found = json.loads(out)
    times = {stage["name"]: stage["milliseconds"] for stage in found["stages"]}
    assert found["processes"] == 2
    assert "tried" not in found
    assert times["sync"] > 0
    assert times["backward"] > 0
    assert min(times.values()) >= 0
    assert sum(times.values()) == pytest.approx(found["watched_ms"], rel=0.1)
    assert len(list((tmp_path / "traces").glob("*.pt.trace.json"))) == 2


def test_waiting_after_the_last_gradient_is_not_backward() -> None:
    clock = StageClock(torch.device("cpu"))
    watched = Watched(torch.autograd, "backward", "backward")
    clock.start()

    def backward() -> None:
        time.sleep(0.05)
        clock.last_gradient = clock.now()
        time.sleep(0.2)

    clock.around(watched, backward)
    clock.stop()
    assert 0.04 < clock.seconds["backward"] < 0.15 < clock.seconds["sync"]


def test_mistakes_of_processes_have_their_code(tmp_path: Path, capsule_file: Path) -> None:
    arguments = [*overrides(capsule_file), "training.global_batch_size=5"]
    first, second = run_together(2, "profile", *arguments, cwd=tmp_path)
    assert (first.returncode, second.returncode) == (3, 3)
    assert "training.global_batch_size" in first.stderr


def test_a_step_that_is_not_finite_is_an_error(capsule_file: Path) -> None:
    done = tiny.invoke("profile", *overrides(capsule_file, training={"base_lr": 1e9}), "--no-try")
    assert done.returncode == 5, done.stderr
    assert "not finite" in done.stderr


@dataclass
class Event:
    key: str
    device_type: DeviceType
    self_device_time_total: float
    self_cpu_time_total: float = 1.0
    count: int = 2


def test_a_kernel_is_not_counted_beside_what_launched_it() -> None:
    events: Any = [
        Event("aten::mm", DeviceType.CPU, 900.0),
        Event("sgemm_128x64", DeviceType.CUDA, 900.0),
        Event("aten::add", DeviceType.CPU, 100.0),
        Event("vectorized_elementwise", DeviceType.CUDA, 100.0),
    ]
    assert times_of(events, torch.device("cuda")) == {"aten::mm": (900.0, 2), "aten::add": (100.0, 2)}
    assert times_of(events, torch.device("cpu")) == {"aten::mm": (1.0, 2), "aten::add": (1.0, 2)}
