"""Do the fixes work? For faults that a config can fix: train again with the config of `trm diagnose --fix`.

    python -m tests.faults.zoo ZOO --seeds 0 1 2 && python -m benchmarks.fixes ZOO OUT [--severity severe] [--out FILE]

For every run whose fault is in its config: what was found first, whether the check behind the fix passes on the new run
(judging by what that logged, not by its config alone), and held-out accuracy before and after.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from trm_core.config.load import LoadedConfig
from trm_core.diagnose import evidence
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import Evidence
from trm_core.diagnose.fix import fixed, overrides
from trm_core.diagnose.registry import CHECKS
from trm_core.prepare import RunHooks
from trm_core.runs import train_run
from trm_core.training.stopping import StopFlag

CONFIG_FAULTS = (
    "expansion-off", "two-actions", "buffer-min-size", "epsilon-zero", "expansion-price", "target-frozen",
    "rewards-zero", "lr-too-high", "warmup-missing",
)  # fmt: skip


def look(run: Path) -> Evidence:
    return evidence.of_run(run)


def accuracy(seen: Evidence) -> float:
    """Held-out accuracy of the run's own policy."""
    return float(seen.facts.evaluation["scores"][0]["accuracy"])


def mend(entry: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train a broken run again with its fixes; the record of both."""
    before = look(Path(entry["run"]))
    found = diagnose(CHECKS, before)
    config, fix = fixed(before, found)
    run = out / f"{entry['fault']}-{entry['severity']}-{entry['base']}-{entry['seed']}"
    config = config.model_copy(update={"training": config.training.model_copy(update={"run_dir": str(run)})})
    if not (run / "evaluation.json").is_file():
        train_run(LoadedConfig(config, {}, [], None), None, RunHooks(), StopFlag())
    after = look(run)
    again = {one.check.id: one.finding.verdict for one in diagnose(CHECKS, after)}
    return {key: entry[key] for key in ("fault", "severity", "base", "seed")} | {
        "first": found[0].check.id,
        "fix": overrides(fix),
        "gone": again[found[0].check.id] is Verdict.OK,
        "fails after": [name for name, verdict in again.items() if verdict is Verdict.FAIL],
        "accuracy before": accuracy(before),
        "accuracy after": accuracy(after),
        "opened after": float(after.facts.evaluation["scores"][0]["opened"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--severity", default="severe")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    entries = json.loads((options.zoo / "index.json").read_text())
    rows = []
    for entry in entries:
        if entry["fault"] in CONFIG_FAULTS and entry["severity"] == options.severity:
            rows.append(mend(entry, options.runs))
            print(json.dumps(rows[-1]), flush=True)
    table = [
        {
            "fault": fault,
            "runs": len(own),
            "symptom gone": sum(row["gone"] for row in own),
            "accuracy before": round(fmean(row["accuracy before"] for row in own), 4),
            "accuracy after": round(fmean(row["accuracy after"] for row in own), 4),
        }
        for fault in CONFIG_FAULTS
        if (own := [row for row in rows if row["fault"] == fault])
    ]
    print(json.dumps(table, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"table": table, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
