"""GDFS with its authors' code: pretraining on random masks, then joint training at five falling temperatures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.acquisition.curves import Curve
from benchmarks.acquisition.data import FlatData
from benchmarks.acquisition.field import (
    CappedLoader,
    FieldOptions,
    Trained,
    import_package,
    loaders,
    networks,
    plateau_that_takes_verbose,
    point,
    random_order,
    seed_everything,
    stop_when_sure,
)
from benchmarks.acquisition.networks import CrossEntropy, RevealedSketches

PRETRAIN_EPOCHS, JOINT_EPOCHS, LR, PATIENCE = 100, 250, 1e-3, 5  # their experiments/mnist and experiments/tabular


def run(path: Path, data: FlatData, prices: Tensor, options: FieldOptions) -> Trained:
    """Train and evaluate. Raises DidNotInstall."""
    package = import_package(path, "dynamic_selection")
    seed_everything(options.seed)
    selector, predictor, facts = networks(data, options)
    mask_layer = RevealedSketches(package.MaskLayerGrouped(data.group_matrix, append=True), data.free)
    steps = options.max_features or data.num_capsules
    train, held_out = loaders(data)
    with plateau_that_takes_verbose():
        first = CappedLoader(train, options.cap_seconds)
        package.MaskingPretrainer(predictor, mask_layer).fit(
            first, held_out, lr=LR, nepochs=options.epochs or PRETRAIN_EPOCHS, loss_fn=CrossEntropy(),
            patience=PATIENCE, verbose=False,
        )  # fmt: skip
        second = CappedLoader(train, options.cap_seconds)
        method = package.GreedyDynamicSelection(selector, predictor, mask_layer)
        method.fit(
            second, held_out, lr=LR, nepochs=options.epochs or JOINT_EPOCHS, max_features=steps,
            loss_fn=CrossEntropy(), patience=PATIENCE, verbose=False,
        )  # fmt: skip
    for name, loader in (("pretraining", first), ("joint training", second)):
        facts[name] = {"epochs": loader.epochs, "capped": loader.capped}
    method.eval()
    logits, masks = [], []
    with torch.no_grad():
        for number in range(data.num_capsules + 1):
            answer, _, mask = method(data.test.x, number)
            logits.append(answer)
            masks.append(mask)
    fixed = [point(n, m, a, data.test, prices) for n, (m, a) in enumerate(zip(masks, logits, strict=True))]
    # Their method opens the same number in every row; stopping by confidence is our addition, in their favour.
    sure = [fixed[0], *stop_when_sure(masks, logits, data.test, prices)]
    curves = [
        Curve("gdfs, budget", "field", "gdfs", fixed),
        Curve("gdfs, confidence", "field", "gdfs", sure),
        random_order("gdfs", predictor, mask_layer, data.test, prices),
    ]
    return Trained(curves, fixed[-1].accuracy, facts)
