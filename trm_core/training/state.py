"""Everything that training carries from one step to the next, and its way into a checkpoint and back.

What is saved is listed in one place; a resumed run has bit-identical weights and losses to one that never stopped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trm_core.data.dataset import Stream
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.learner import TargetNetwork
from trm_core.dqn.replay import ReplayBuffer
from trm_core.dqn.rewards import RewardScale
from trm_core.errors import CheckpointError
from trm_core.model.carry import Carry, tensors_of, with_tensors
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.build import Optimizers
from trm_core.optim.ema import WeightAverage
from trm_core.optim.loss_scale import LossScale
from trm_core.training.checkpoint import Checkpoint, OwnState, load_weights, require_weights
from trm_core.training.faults import Faults
from trm_core.training.saved_state import require_known, require_optimizer_state, take_numbers


@dataclass
class TrainingState:
    """| part | in the checkpoint |
    | --- | --- |
    | model | model.safetensors (the average, if there is one); raw weights in training.safetensors |
    | optimizers, average, target, curiosity | training.safetensors, numbers in state.json |
    | stream, reward scales, loss scale, faults, step | state.json |
    | carry, replay, torch's generators (dropout) | rank<r>.safetensors, numbers in rank<r>.json |

    All but the last row is the same in all processes. Exploration, prices and replay draws are functions of seed, step
    and row, so they have no state.
    """

    model: TinyRecursiveModel
    curiosity: Curiosity | None
    optimizers: Optimizers
    average: WeightAverage | None
    target: TargetNetwork | None
    replay: ReplayBuffer | None
    scale: RewardScale
    intrinsic_scale: RewardScale
    stream: Stream
    carry: Carry
    loss_scale: LossScale | None = None
    step: int = 0
    faults: Faults = field(default_factory=Faults)

    def to_checkpoint(self, about: dict[str, Any]) -> Checkpoint:
        """about: what else state.json should say (data and shapes). Tensors are the state's own, not copies."""
        return replace(self.shared(about), own=self.own())

    def shared(self, about: dict[str, Any]) -> Checkpoint:
        """What is the same in all processes."""
        weights = self.model.state_dict()
        tensors = {f"weights.{name}": value for name, value in weights.items()} if self.average else {}
        numbers: dict[str, Any] = {"step": self.step, "stream": self.stream.state_dict()}
        numbers |= {"scale": vars(self.scale), "intrinsic_scale": vars(self.intrinsic_scale)}
        if self.loss_scale is not None:
            numbers["loss_scale"] = vars(self.loss_scale)
        numbers["faults"] = asdict(self.faults)
        numbers["optimizers"] = []
        for index, optimizer in enumerate(self.optimizers.all):
            state = optimizer.state_dict()
            for parameter, values in state["state"].items():
                for name, value in values.items():
                    tensors[f"optimizer.{index}.{parameter}.{name}"] = torch.as_tensor(value)
            numbers["optimizers"].append(state["param_groups"])
        model = dict(weights)
        if self.average is not None:
            model.update(self.average.by_every_name())
            numbers["average_updates"] = self.average.updates
        if self.target is not None:
            tensors.update({f"target.{k}": v for k, v in self.target.head.state_dict().items()})
        if self.curiosity is not None:
            tensors.update({f"curiosity.{k}": v for k, v in self.curiosity.state_dict().items()})
        return Checkpoint(self.step, model, tensors, {**numbers, **about}, OwnState({}, {}))

    def own(self) -> OwnState:
        """What differs between processes: the part of this one."""
        tensors = {f"carry.{k}": v for k, v in tensors_of(self.carry).items()}
        numbers: dict[str, Any] = {}
        if self.replay is not None:
            replay, numbers["replay"] = self.replay.state_dict()
            tensors.update({f"replay.{k}": v for k, v in replay.items()})
        tensors["generator"] = torch.get_rng_state()
        if self.carry.z_H.is_cuda:
            tensors["cuda_generator"] = torch.cuda.get_rng_state(self.carry.z_H.device)
        return OwnState(tensors, numbers)

    def restore(self, saved: Checkpoint) -> None:
        """Take over a checkpoint's state. Raises CheckpointError if it does not fit this configuration."""
        tensors, numbers = saved.training, saved.state
        source = saved.folder or f"the checkpoint of step {saved.step}"
        try:
            if self.average is not None:
                load_weights(self.model, _part(tensors, "weights."), "the set of raw weights")
                require_weights(self.model.state_dict(), saved.model, "the set of averaged weights")
                for name, value in self.average.average.items():
                    value.copy_(saved.model[name])
                self.average.updates = int(numbers["average_updates"])
            else:
                load_weights(self.model, saved.model, "the set of weights")
            for index, optimizer in enumerate(self.optimizers.all):
                state: dict[int, dict[str, Tensor]] = {}
                for key, value in _part(tensors, f"optimizer.{index}.").items():
                    parameter, name = key.split(".", 1)
                    state.setdefault(int(parameter), {})[name] = value
                require_optimizer_state(optimizer, numbers["optimizers"][index], state)
                # Learning rates, decay and betas are the config's, where they may have been changed on purpose.
                groups = [
                    {**saved_group, **{key: value for key, value in own.items() if key != "params"}}
                    for saved_group, own in zip(numbers["optimizers"][index], optimizer.param_groups, strict=True)
                ]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            if self.target is not None:
                self.target.head.load_state_dict(_part(tensors, "target."))
            if self.curiosity is not None:
                self.curiosity.load_state_dict(_part(tensors, "curiosity."))
            take_numbers(self.scale, numbers["scale"])
            take_numbers(self.intrinsic_scale, numbers["intrinsic_scale"])
            if self.loss_scale is not None:
                take_numbers(self.loss_scale, numbers["loss_scale"])
                self.loss_scale.require_valid()
            self.faults = Faults()
            take_numbers(self.faults, numbers["faults"])
            self.restore_own(saved.own)
            self.stream.load_state_dict(numbers["stream"])
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error.message}", hint=error.hint) from error
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{source} does not fit this configuration: {error}",
                hint="resume with the config of the run (RUN/config.yaml)",
            ) from error
        self.step = saved.step

    def restore_own(self, own: OwnState) -> None:
        """Take over this process's own part. A random generator that was not saved goes on as it is."""
        if self.replay is not None:
            self.replay.load_state_dict(_part(own.tensors, "replay."), own.numbers["replay"])
            valid, why = self.replay.check_valid()
            if not valid:
                raise ValueError(f"replay: {why}")
        carry = with_tensors(self.carry, _part(own.tensors, "carry."))
        require_known(carry, self.model.data)
        self.carry = carry
        if "generator" in own.tensors:
            torch.set_rng_state(own.tensors["generator"])
        if "cuda_generator" in own.tensors and self.carry.z_H.is_cuda:
            torch.cuda.set_rng_state(own.tensors["cuda_generator"], self.carry.z_H.device)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
