"""Training, evaluation and checkpoints with the model on another device than the host's, where no GPU is needed to see
that nothing mixes the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from _pytest.mark import ParameterSet
from tiny_puzzles import ARCH, write_puzzles
from two_devices import Elsewhere, second_device, waits

from trm_core.data.dataset import open_dataset
from trm_core.evaluation.report import EvaluationData, Evaluator, rows_at_once
from trm_core.evaluation.rollout import Thinking
from trm_core.inference.predictor import Predictor
from trm_core.inference.trained import Trained
from trm_core.training import measure
from trm_core.training.checkpoint import snapshot
from trm_core.training.features import resolve_features, resolved
from trm_core.training.trainer import Trainer

Settings = dict[str, dict[str, Any]]
CAPSULES: dict[str, Settings] = {
    "plain": {},
    "no monitor": {"training": {"monitor_gradients": False}, "dqn": {"expansion_selector": "checksum"}},
    "recurrent, Muon, a finished predictor": {
        "training": {"optimizer": "muon", "predictor_steps": 3},
        "arch": {"q_head_type": "rnn"},
        "dqn": {
            "sequence_length": 2, "expansion_selector": "attention", "replay": "prioritized", "recent_fraction": 0.5,
            "budget": 2.0,
        },
    },
    "all parts": {
        "arch": {
            "q_head_type": "attention", "q_head_tokens": 2, "enable_concepts": True, "num_concepts": 8,
            "enable_mtp": True, "enable_hierarchical_attention": True, "H_cycles": 2, "enable_adaptive_hcycles": True,
            "hcycle_confidence_threshold": 0.0,
        },
        "memory": {"enabled": True, "capacity": 16, "num_heads": 2, "top_k": 2, "reward_threshold": -1.0},
        "dqn": {"enable_curiosity": True, "expansion_selector": "static"},
        "training": {"accumulation_steps": 2},
    },
    "mixer": {
        "arch": {"mixer": "mlp", "q_head_type": "linear"},
        "dqn": {"expansion_selector": "entropy", "expand_count": 2, "target_tau": 0.1},
    },
}  # fmt: skip
PUZZLES: dict[str, Settings] = {
    "halting": {"arch": ARCH, "dqn": {"enabled": False}},
    "no monitor": {"arch": ARCH, "dqn": {"enabled": False}, "training": {"monitor_gradients": False}},
    "HRM": {
        "arch": {**ARCH, "enable_q_continue": True, "tied": False},
        "dqn": {"enabled": False},
        "data": {"draw": "batch"},
    },
    "learned halting": {
        "arch": {**ARCH, "q_head_type": "mlp"},
        "dqn": {"enabled": True},
        "training": {"predictor_steps": 3},
    },
    "only new puzzles": {
        "arch": ARCH,
        "dqn": {"enabled": False},
        "training": {"freeze": ["*", "!embedding.puzzles.*"]},
    },
}


SOON = ("plain", "no monitor", "all parts", "only new puzzles")


def cases(settings: dict[str, Settings]) -> list[ParameterSet]:
    return [
        pytest.param(one, id=name, marks=[] if name in SOON else [pytest.mark.slow]) for name, one in settings.items()
    ]


@pytest.mark.parametrize("settings", cases(CAPSULES))
def test_capsules_on_another_device(tmp_path: Path, settings: Settings) -> None:
    rows = {"train": 64, "test": 32}
    file = tiny.write_capsules(tmp_path / "a.h5", rows, label_rank=2, parents=True)
    lives_there(file, settings, tmp_path)


@pytest.mark.parametrize("settings", cases(PUZZLES))
def test_puzzles_on_another_device(tmp_path: Path, settings: Settings) -> None:
    lives_there(write_puzzles(tmp_path / "puzzles", identifiers=5), settings, tmp_path)


def lives_there(path: Path, settings: Settings, folder: Path) -> None:
    file = open_dataset(path)
    config = tiny.make_config(**settings)
    features = resolve_features(config, file)
    config = resolved(config, features)
    with second_device() as device:
        trainer = Trainer(config, features, [(file, 1.0)], device, folder / "run", {"shape": {}})
        for _ in range(6):
            trainer.taker.take(trainer.standing())
        assert isinstance(trainer.state.carry.z_H, Elsewhere)
        logged = trainer.taker.averages.take()
        assert {"train/lm_loss", "train/data_time_share"} <= logged.keys()
        assert measure.numbers_now(trainer.state, config, torch.device("cpu"))
        policies = ["learned", "random"] if features.dqn else []
        data = EvaluationData(file, "test")
        table = Evaluator(trainer.state.model, config, data, thinking=Thinking(None, 2)).table(
            [*policies, "threshold", "never", "all", "act"]
        )
        assert all(score.rows for score in table)
        trainer.state.restore(snapshot(trainer.state.to_checkpoint({}), 0))
        trainer.taker.take(trainer.standing())


@pytest.mark.parametrize("policy", ["learned", "threshold", pytest.param("all", marks=pytest.mark.slow)])
def test_answers_are_the_same_on_another_device(policy: str) -> None:
    """Those of `trm predict` and `trm serve`, whose rows come and go, and fetch detail from the host."""
    config = tiny.make_config(arch={"enable_capsule_expansion": True}, dqn={"enabled": True})
    model = tiny.make_model(config).eval()
    data, random = model.data, np.random.default_rng(0)
    fields = {
        "sketches": random.normal(size=(9, data.num_capsules, data.dim)).astype(np.float32),
        "children": random.normal(size=(9, data.num_capsules, data.num_children, data.dim)).astype(np.float32),
    }

    def answers() -> list[tuple[Any, ...]]:
        trained = Trained(model, config, np.ones(data.num_capsules, np.float32), None, False, Path("nowhere"))
        found = Predictor(trained, restarts=2).predict(policy=policy, batch=4, trace=True, **fields)
        return [(one.prediction, one.steps, one.opened) for one in found]

    on_host = answers()
    with second_device() as device:
        model.to(device)
        assert isinstance(model.first_z_H, Elsewhere)
        assert answers() == on_host


@pytest.mark.parametrize(
    ("puzzles", "settings", "allowed"),
    [
        (True, {"arch": ARCH, "dqn": {"enabled": False}}, ["agreement", "step"]),
        (True, {"arch": {**ARCH, "q_head_type": "mlp"}, "dqn": {"enabled": True}}, ["agreement", "step", "devices"]),
        (False, {}, ["agreement", "step", "devices"]),
        (False, {"dqn": {"replay": "prioritized"}}, ["agreement", "step", "devices", "devices"]),
        (False, {"training": {"accumulation_steps": 2}}, ["agreement", "step", "devices"]),
        (False, {"dqn": {"enable_curiosity": True}}, ["agreement", "step", "devices"]),
    ],
    ids=["halting", "learned halting", "capsules", "prioritised", "accumulated", "curious"],
)
def test_a_step_waits_for_a_gpu_only_where_it_has_to(
    tmp_path: Path, puzzles: bool, settings: Settings, allowed: list[str]
) -> None:
    """Once to know which rows have halted, once before the weights move, and with Q-learning once for what is stored
    and once for new priorities. Steps that are logged may wait more often.
    """
    rows = {"train": 64, "test": 32}
    path = write_puzzles(tmp_path / "puzzles") if puzzles else tiny.write_capsules(tmp_path / "a.h5", rows)
    file = open_dataset(path)
    config = tiny.make_config(**{**settings, "training": {"log_interval": 100, **settings.get("training", {})}})
    features = resolve_features(config, file)
    with second_device() as device:
        trainer = Trainer(resolved(config, features), features, [(file, 1.0)], device)
        for _ in range(6):
            trainer.taker.take(trainer.standing())
        assert trainer.standing().can_replay == features.dqn
        for _ in range(3):
            with waits() as found:
                trainer.taker.take(trainer.standing())
            assert sorted(place.split(".py:")[0].split("/")[-1] for place in found) == sorted(allowed), found


def test_mixing_is_refused() -> None:
    """What the tests above rest on."""
    with second_device() as device:
        there, here = torch.ones(2, device=device), torch.ones(2)
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0]
        assert there[torch.tensor([1])].cpu().numpy().tolist() == [1.0]
        assert isinstance(torch.tensor(1.0, device=there.device) * there, Elsewhere)


def test_a_gpu_evaluates_as_many_rows_together_as_it_has_trained() -> None:
    config = tiny.make_config()
    assert rows_at_once(tiny.make_model(config), 5000) == 512
    with second_device() as device:
        model = tiny.make_model(config).to(device)
        assert [rows_at_once(model, trained) for trained in (8, 5000)] == [512, 5000]


def test_what_waits_for_a_gpu_is_seen() -> None:
    """What the test of waits rests on."""
    with second_device() as device:
        there, here = torch.ones(2, device=device), torch.ones(2)
        reads = (
            there.tolist, there.nonzero, there.cpu, there.sum().item, there.unique, lambda: there.numpy(force=True),
            lambda: there[there > 0], lambda: there[here.long()], lambda: here.to(device), lambda: there.copy_(here),
            lambda: torch.tensor(1.0, device=device), lambda: torch.bincount(there.long()),
        )  # fmt: skip
        for number, read in enumerate(reads):
            with waits() as found:
                read()
            assert len(found) == 1, (number, found)
        with waits() as found:
            there[there.long()] + here.to(device, non_blocking=True)
            there.copy_(here, non_blocking=True)
            here[here > 0].tolist()
        assert not found
