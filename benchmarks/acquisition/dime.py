"""DIME with its authors' code: pretraining on random masks, then joint training of predictor and value network.

Needs pytorch-lightning 1.9 (2.0 removed the hooks that they use), pandas, torchmetrics and tensorboard.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.acquisition.curves import Curve, Point
from benchmarks.acquisition.data import FlatData
from benchmarks.acquisition.field import (
    CONFIDENCES,
    PREDICT_BATCH,
    FieldOptions,
    Trained,
    import_package,
    loaders,
    networks,
    plateau_that_takes_verbose,
    point,
    random_order,
    seed_everything,
)
from benchmarks.acquisition.networks import Accuracy, CrossEntropy, RevealedSketches, answers

# experiments/ROSMAP_dementia, their table of feature groups
PRETRAIN_EPOCHS, JOINT_EPOCHS, LR, MIN_LR, PATIENCE = 200, 250, 1e-3, 1e-6, 5
EPS, EPS_DECAY, EPS_STEPS, MONITOR = 0.05, 0.2, 10, "Perf Val/Mean"
PENALTIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0003)  # nats per capsule


def run(path: Path, data: FlatData, prices: Tensor, options: FieldOptions) -> Trained:
    """Train and evaluate. Raises DidNotInstall."""
    package = import_package(path, "dime")
    seed_everything(options.seed)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    value_network, predictor, facts = networks(data, options)
    mask_layer = RevealedSketches(package.MaskLayerGrouped(data.group_matrix, append=True), data.free)
    single = answers(data) == 1
    # Their bound by the entropy of the answer assumes one answer per row; their other scaling works for several.
    facts["cmi_scaling"] = "bounded" if single else "positive"
    with plateau_that_takes_verbose(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        pretrain = package.MaskingPretrainer(predictor, mask_layer, LR, CrossEntropy(), Accuracy())
        facts["pretraining"] = fit(pretrain, data, options, options.epochs or PRETRAIN_EPOCHS, folder)
        method = package.CMIEstimator(
            value_network, predictor, mask_layer, lr=LR, min_lr=MIN_LR,
            max_features=options.max_features or data.num_capsules, eps=EPS, eps_decay=EPS_DECAY, eps_steps=EPS_STEPS,
            loss_fn=CrossEntropy(per_row=True), val_loss_fn=Accuracy(), patience=PATIENCE,
            feature_costs=costs(prices), cmi_scaling=facts["cmi_scaling"],
        )  # fmt: skip
        facts["joint training"] = fit(method, data, options, options.epochs or JOINT_EPOCHS, folder, keep=MONITOR)
        curves = evaluate(method, data, prices, folder, single)
    everything = curves[0].points[-1].accuracy
    return Trained([*curves, random_order("dime", predictor, mask_layer, data.test, prices)], everything, facts)


def costs(prices: Tensor) -> Tensor | None:
    """Their feature costs; None if all are equal."""
    return None if bool((prices == prices[0]).all()) else prices


def trainer(folder: str, **options: Any) -> Any:
    """A quiet Lightning trainer on the CPU that writes into `folder` only."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import TensorBoardLogger

    return Trainer(
        accelerator="cpu", devices=1, logger=TensorBoardLogger(folder), num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip


def fit(
    module: Any, data: FlatData, options: FieldOptions, epochs: int, folder: str, keep: str | None = None
) -> dict[str, Any]:
    """Train with their module within the time limit. `keep`: finally restore the weights at which this validation
    figure was best, as their scripts do from a checkpoint on disk.
    """
    from pytorch_lightning import Callback

    best: dict[str, Any] = {"value": -float("inf"), "weights": None}

    class KeepBest(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            value = float(trainer.callback_metrics[keep])
            if value > best["value"]:
                best.update(value=value, weights=copy.deepcopy(module.state_dict()))

    limit = timedelta(seconds=options.cap_seconds)
    lightning = trainer(folder, max_epochs=epochs, max_time=limit, callbacks=[KeepBest()] if keep else [])
    lightning.fit(module, *loaders(data))
    if best["weights"] is not None:
        module.load_state_dict(best["weights"])
    return {"epochs": lightning.current_epoch, "capped": timed_out(lightning)}


def timed_out(lightning: Any) -> bool:
    from pytorch_lightning.callbacks import Timer

    remaining = [c.time_remaining() for c in lightning.callbacks if isinstance(c, Timer)]
    return any(left is not None and left <= 0 for left in remaining)


def evaluate(method: Any, data: FlatData, prices: Tensor, folder: str, single: bool) -> list[Curve]:
    """Curves of their three stopping rules: a budget, a penalty on the estimated information per cost, a confidence."""
    loader = DataLoader(TensorDataset(data.test.x, data.test.y), batch_size=PREDICT_BATCH)
    lightning = trainer(folder)

    def at(setting: float, **rule: float) -> Point:
        answer = method.inference(lightning, loader, feature_costs=costs(prices), **rule)
        return point(setting, answer["mask"], answer["pred"], data.test, prices)

    # Budgets in steps of the mean price; the last one buys everything.
    total, k = float(prices.sum()), data.num_capsules
    budgets = [at(total * n / k, budget=total * n / k * (1 + 1e-6)) for n in range(k + 1)]
    curves = [
        Curve("dime, budget", "field", "dime", budgets),
        Curve("dime, penalty", "field", "dime", [budgets[0], *(at(lam, lam=lam) for lam in PENALTIES)]),
    ]
    if single:
        sure = [budgets[0], *(at(level, confidence=level) for level in CONFIDENCES)]
        curves.append(Curve("dime, confidence", "field", "dime", sure))
    return curves
