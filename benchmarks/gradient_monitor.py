"""The overhead of the gradient monitor, as a share of a training step.

    OMP_NUM_THREADS=1 python -m benchmarks.gradient_monitor --out benchmarks/results/gradient_monitor.json

Each pair times, in turn: one real training step without the monitor; `clip_grad_norm_` on a saved real gradient; and
the monitor (measure, accumulate) with clipping by the norms that it already has. `gross` is everything the monitor
does, relative to the step; `net` excludes the norms that clipping would have computed anyway. Medians over pairs, with
95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.record import describe_machine, publish
from benchmarks.timing import rounded, take_step
from trm_core.config import load_config
from trm_core.prepare import RunHooks, prepare
from trm_core.training.gradient_monitor import GradientMonitor
from trm_core.training.metrics import Averages
from trm_core.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
WIDE = [
    "arch.hidden_size=512",
    "arch.num_heads=8",
    "arch.q_head_hidden_dim=512",
    "training.optimizer=adamatan2",
    "training.base_lr=3e-4",
]
CASES = {
    "quickstart": [],
    "quickstart, predictor at rest": ["training.predictor_steps=10"],
    "512 wide, 2 layers": WIDE,
}


def seconds(action: Callable[[], object]) -> float:
    """Duration of one call, including the work that it queues on the device."""
    synchronise()
    began = time.perf_counter()
    action()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keep_gradients(model: nn.Module, step: Callable[[], object]) -> dict[nn.Parameter, torch.Tensor]:
    """Copies of the gradients of one step, which itself clears them."""
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def keep(parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        kept[parameter] = parameter.grad.clone()

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(keep) for parameter in learning]
    step()
    for handle in handles:
        handle.remove()
    return kept


def measure(overrides: list[str], pairs: int, warmup: int) -> dict[str, Any]:
    """The record of one case."""
    off = ["training.monitor_gradients=false", "training.lr_warmup_steps=5"]
    prepared = prepare(load_config(ROOT / "configs/quickstart.yaml", [*off, *overrides]).config, RunHooks())
    trainer = Trainer(prepared.config, prepared.features, prepared.files, prepared.device)
    model, optimizers = trainer.state.model, trainer.state.optimizers
    for _ in range(warmup):
        take_step(trainer)
    kept = keep_gradients(model, partial(take_step, trainer))
    parts, limits = (optimizers.model_params, optimizers.policy_params), (1e9, 1e9)
    monitor, averages = GradientMonitor(model, parts), Averages()

    def with_gradients(action: Callable[[], object]) -> float:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        taken = seconds(action)
        optimizers.zero_grad()
        return taken

    def clip_alone() -> None:
        for part, limit in zip(parts, limits, strict=True):
            nn.utils.clip_grad_norm_(part, limit)

    def observe() -> tuple[torch.Tensor, ...]:
        stats = monitor.measure()
        averages.add_vector(stats.names, stats.values)
        return stats.totals

    def clip_observed() -> None:
        for part, limit, total in zip(parts, limits, observe(), strict=True):
            nn.utils.clip_grads_with_norm_(part, limit, total)

    rows = []
    for _ in range(pairs):
        step = seconds(partial(take_step, trainer))
        gross, plain, both = (with_gradients(action) for action in (observe, clip_alone, clip_observed))
        rows.append((step, gross, both - plain))
    trainer.state.stream.close()
    step, gross, net = np.array(rows).T
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(monitor.parameters),
        "tensors_with_gradient": len(kept),
        "groups": list(monitor.groups),
        "step_ms": round(1e3 * float(np.median(step)), 3),
        "monitor_ms": round(1e3 * float(np.median(gross)), 3),
        "gross_pct": rounded(100 * gross / step),
        "net_pct": rounded(100 * net / step),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=40, help="steps first; enough for Q-learning to have begun")
    parser.add_argument("--case", choices=list(CASES), action="append")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    record: dict[str, Any] = {
        "machine": describe_machine(torch.get_num_threads()),
        "device": device,
        "pairs": arguments.pairs,
        "cases": {
            name: measure(CASES[name], arguments.pairs, arguments.warmup) for name in arguments.case or list(CASES)
        },
    }
    publish(record, arguments.out)


if __name__ == "__main__":
    main()
