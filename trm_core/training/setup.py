"""The state that training starts from: model, optimisers, data, replay, and a carry whose rows wait for a sample."""

from __future__ import annotations

from pathlib import Path

import torch

from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.dataset import Dataset, batches_of, open_stream
from trm_core.data.puzzles.reader import PuzzleData
from trm_core.data.sound import require_finite_split
from trm_core.distributed.collectives import rank, world_size
from trm_core.dqn.curiosity import Curiosity
from trm_core.dqn.learner import TargetNetwork
from trm_core.dqn.replay import ReplayBuffer
from trm_core.errors import ConfigError
from trm_core.model.trm import TinyRecursiveModel
from trm_core.optim.build import build_optimizers
from trm_core.optim.ema import WeightAverage
from trm_core.optim.freeze import freeze
from trm_core.optim.loss_scale import LossScale
from trm_core.training.episodes import Episodes
from trm_core.training.features import Features
from trm_core.training.initial_weights import load_initial
from trm_core.training.state import TrainingState

_SCALE_ROWS = 2048  # rows that the input scale is taken from


def build(
    config: Config, features: Features, files: list[tuple[Dataset, float]], device: torch.device
) -> tuple[TrainingState, Episodes]:
    """Build the same on every process, except for its rows: each has n = `global_batch_size / processes` of them, rank
    r those from r * n on.
    """
    training, dqn = config.training, config.dqn
    torch.manual_seed(training.seed)
    stream = open_stream(files, "train", seed=training.seed, num_workers=config.data.num_workers)
    model = TinyRecursiveModel(config, features.shape, with_cmi=features.cmi)
    fit_input_scale(model, files, training.seed)
    notes = []
    if training.init_from is not None:
        puzzles = [file for file, _ in files if isinstance(file, PuzzleData)]
        notes = load_initial(model, Path(training.init_from), puzzles)
    model = model.to(device)
    frozen = freeze(model, training.freeze)
    if training.compile:
        model.recursion.compile_networks()
    # Mixed files agree on everything, prices included (checked by `trm_core.prepare.prepare`).
    prices = torch.as_tensor(files[0][0].prices, dtype=torch.float32, device=device)
    replay = target = curiosity = None
    if features.dqn:
        replay = ReplayBuffer(dqn, model.q_head.state_width, model.q_head.num_actions, device)
        target = TargetNetwork(model.q_head, dqn)
    else:
        model.q_head.value_net.requires_grad_(False)  # nothing trains it, and DDP would wait for its gradient
    if features.curiosity:
        head = model.q_head
        curiosity = Curiosity(dqn, head.state_width - head.recurrent_width).to(device)
    optimizers = build_optimizers(model, config, frozen, [] if curiosity is None else [curiosity])
    optimizers.notes.extend(notes)
    if training.predictor_steps is not None and not any(p.requires_grad for p in optimizers.policy_params):
        raise ConfigError(
            "training.freeze leaves nothing to learn once the predictor is finished (training.predictor_steps)",
            hint="freeze less of q_head and cmi_head, or set training.predictor_steps=null",
        )
    rows = training.global_batch_size // world_size()
    episodes = Episodes(model, config, prices, replay, curiosity, rank() * rows)
    state = TrainingState(
        model=model,
        curiosity=curiosity,
        optimizers=optimizers,
        average=None if training.ema_decay is None else WeightAverage(model, training.ema_decay),
        target=target,
        replay=replay,
        scale=episodes.scale,
        intrinsic_scale=episodes.intrinsic_scale,
        stream=stream,
        carry=episodes.initial_carry(stream_like(files[0][0], rows).to(device)),
        loss_scale=LossScale() if training.precision == "float16" else None,
    )
    if rank():
        # All processes are built from the same seed; their dropout should differ.
        torch.manual_seed(training.seed + (rank() << 32))
    return state, episodes


def stream_like(file: Dataset, rows: int) -> CapsuleBatch:
    """A batch of `rows` training rows, of which only the shapes matter."""
    batch = next(batches_of(file, "train", rows))
    # A batch larger than the split repeats rows; every row is replaced before it is used.
    return batch if len(batch) == rows else batch.select(torch.arange(rows) % len(batch))


def fit_input_scale(model: TinyRecursiveModel, files: list[tuple[Dataset, float]], seed: int) -> None:
    """Fit the input standardisation to a sample of the training rows, drawn as training draws them. Tokens have no
    scale. Raises DataError for rows that are not finite.
    """
    if model.data.tokens:
        return
    stream = open_stream(files, "train", seed=seed)
    batch = stream.take(min(_SCALE_ROWS, sum(file.rows["train"] for file, _ in files)))
    stream.close()
    children = batch.children if model.data.num_children else None
    sketches = batch.sketches
    if batch.mask is not None:
        sketches = sketches[batch.mask]
        children = None if children is None else children[batch.mask]
    if not all(bool(values.isfinite().all()) for values in (sketches, children) if values is not None):
        require_finite_split([file for file, _ in files], "train")  # it would make the scale, and so every step, NaN
    model.capsule_embedding.fit_scale(sketches, children)
