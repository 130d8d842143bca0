"""The memory that `trm profile --estimate` predicts, against what training needs.

    python -m benchmarks.memory_estimate --out benchmarks/results/memory_estimate.json [--only tiny,quickstart]

For each config the estimate is computed from shapes. Then a trainer takes steps until it replays, and torch's profiler
records every allocation over ten more. Both figures are bytes of tensors at the peak of a step on the CPU, not the size
of the process. The capsules are random except for the quickstart, which builds its digits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.step_cost import write_random
from trm_core.config import load_config
from trm_core.config.schema import Config
from trm_core.prepare import RunHooks, prepare
from trm_core.profiling.memory import memory_of
from trm_core.profiling.steps import Stepper
from trm_core.training.estimate import estimate_memory

CONFIGS = Path(__file__).parent.parent / "configs"
STEPS = 10
TINY = [
    *("arch.hidden_size=16", "arch.num_layers=1", "arch.num_heads=2", "arch.ffn_expansion=1.0", "arch.H_cycles=1"),
    *("arch.L_cycles=1", "arch.max_steps=3", "arch.q_head_hidden_dim=16", "training.global_batch_size=8"),
    *("dqn.buffer_capacity=200", "dqn.buffer_min_size=16", "dqn.batch_size=8"),
]
TEN_MILLION = [
    *(
        "arch.hidden_size=512",
        "arch.num_layers=3",
        "arch.H_cycles=2",
        "arch.L_cycles=2",
        "training.global_batch_size=32",
    ),
    "dqn.buffer_capacity=5000",
]
BANK = ["memory.enabled=true", "memory.num_heads=2"]
CONCEPTS = ["arch.enable_concepts=true"]
NO_DQN = ["dqn.enabled=false", "arch.enable_capsule_expansion=false"]
NO_EMA = ["training.ema_decay=null"]
# Parts that are switched on or off in every config.
PARTS: dict[str, list[str]] = {
    "as it is": [],
    "memory bank": BANK,
    "concepts": CONCEPTS,
    "without DQN": NO_DQN,
    "without EMA": NO_EMA,
    "memory bank, concepts, without EMA": [*BANK, *CONCEPTS, *NO_EMA],
}
# Other settings that affect memory, tried in the tiny config only.
MORE: dict[str, list[str]] = {
    "adamw": ["training.optimizer=adamw"],
    "muon": ["training.optimizer=muon"],
    "accumulation": ["training.accumulation_steps=2"],
    "untied": ["arch.tied=false"],
    "recurrent Q-head": ["arch.q_head_type=rnn", "dqn.sequence_length=3"],
    "attention Q-head": ["arch.q_head_type=attention"],
    "curiosity": ["dqn.enable_curiosity=true"],
    "prioritised, float16": ["dqn.replay=prioritized", "dqn.buffer_dtype=float16"],
    "hierarchy": ["arch.enable_hierarchical_attention=true"],
    "adaptive H-cycles": ["arch.enable_adaptive_hcycles=true", "arch.H_cycles=3"],
    "dropout": ["arch.dropout=0.1"],
    "q_continue": [*NO_DQN, "arch.enable_q_continue=true"],
}


def cases(folder: Path) -> dict[str, tuple[Path | None, list[str]]]:
    """Config file and overrides by name."""
    tiny = f"data.path={write_random(folder / 'tiny.h5', k=4, m=2, dim=3, checksum_dim=5)}"
    small = f"data.path={write_random(folder / 'small.h5', k=16, m=4, dim=64)}"
    wide = f"data.path={write_random(folder / 'wide.h5', rows=200)}"
    bases: dict[str, tuple[Path | None, list[str]]] = {
        "tiny": (None, [tiny, *TINY]),
        "quickstart": (CONFIGS / "quickstart.yaml", []),
        "small": (CONFIGS / "small.yaml", [small]),
        "10M": (None, [wide, *TEN_MILLION]),
    }
    found = {
        f"{base}: {part}": (file, [*overrides, *more])
        for base, (file, overrides) in bases.items()
        for part, more in PARTS.items()
        # Configs from a file let the policy learn on after the predictor, which is impossible without DQN.
        if not (more is NO_DQN and file is not None)
    }
    for base in ("quickstart", "small"):
        file, overrides = bases[base]
        found[f"{base}: without DQN"] = (file, [*overrides, *NO_DQN, "training.predictor_steps=null"])
    return found | {f"tiny: {name}": (None, [tiny, *TINY, *more]) for name, more in MORE.items()}


def compare(config: Config) -> dict[str, Any]:
    """Estimate, measured peak, and their ratio."""
    prepared = prepare(config, RunHooks())
    estimate = estimate_memory(prepared.config, prepared.features)
    with closing(Stepper(prepared.config, prepared.features, prepared.files, torch.device("cpu"))) as stepper:
        stepper.warm()
        steps = max(STEPS, config.training.log_interval)
        use = memory_of(stepper.trainer.state, lambda: stepper.take(steps), [ProfilerActivity.CPU])
        parameters = sum(p.numel() for p in stepper.trainer.state.model.parameters())
    return {
        "parameters": parameters,
        "estimate MB": round(estimate.step_peak / 1e6, 3),
        "measured MB": round(use.peak / 1e6, 3),
        "ratio": round(estimate.step_peak / use.peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="beginnings of names, with commas: measure these anew, keep the others")
    arguments = parser.parse_args()
    chosen = None if arguments.only is None else tuple(arguments.only.split(","))
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (file, overrides) in cases(Path(folder)).items():
            if chosen is not None and not name.startswith(chosen):
                continue
            config = load_config(file, [*overrides, "training.device=cpu", "training.threads=1"]).config
            record[name] = found = compare(config)
            print(f"{name:44} {found}", flush=True)
    if arguments.only is not None and arguments.out.exists():
        record = json.loads(arguments.out.read_text()) | record
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
