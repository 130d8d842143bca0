"""Does `trm diagnose` name what is wrong? Diagnoses every run of the fault zoo and prints one table.

    python -m tests.faults.zoo ZOO --seeds 0 1 && python -m benchmarks.faults ZOO [--seeds 1] [--out FILE]

A fault counts as named if the first finding (fail or warn) is one of those expected for it. Rows are faults, columns
severity and base run; for healthy runs, the checks that fail or warn are listed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_core.diagnose import evidence
from trm_core.diagnose.check import Diagnosis, Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.registry import CHECKS

SEVERITIES = ("mild", "middle", "severe")


@dataclass(frozen=True)
class Judged:
    """One run of the zoo and what was found in it."""

    entry: dict[str, Any]
    loud: list[Diagnosis]  # failures and warnings, in order

    @property
    def first(self) -> str:
        return self.loud[0].check.id if self.loud else ""

    @property
    def named(self) -> bool:
        return self.first in self.entry["expected"]


def judge(entry: dict[str, Any]) -> Judged:
    run = Path(entry["run"])
    found = diagnose(CHECKS, evidence.of_run(run))
    return Judged(entry, [one for one in found if one.finding.verdict in (Verdict.FAIL, Verdict.WARN)])


def table(judged: list[Judged]) -> list[str]:
    """Markdown: for each fault, severity and base, how often it was named first, and what was named instead."""
    bases = sorted({one.entry["base"] for one in judged})
    cells: dict[tuple[str, str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        cells[one.entry["fault"], one.entry["severity"], one.entry["base"]].append(one)
    heads = [f"{severity} {base}" for severity in SEVERITIES for base in bases]
    lines = ["| fault | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for fault in dict.fromkeys(one.entry["fault"] for one in judged):
        row = []
        for severity in SEVERITIES:
            for base in bases:
                runs = cells[fault, severity, base]
                wrong = Counter(one.first or "nothing" for one in runs if not one.named)
                named = f"{sum(one.named for one in runs)}/{len(runs)}" if runs else "-"
                row.append(named + "".join(f" {name}" for name in wrong))
        lines.append(f"| {fault} | " + " | ".join(row) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    entries = json.loads((options.zoo / "index.json").read_text())
    entries = [entry for entry in entries if not options.seeds or entry["seed"] in options.seeds]
    judged = [judge(entry) for entry in entries]
    sick = [one for one in judged if one.entry["fault"]]
    strong = [one for one in sick if one.entry["severity"] != "mild"]
    healthy = [one for one in judged if not one.entry["fault"]]
    print("\n".join(table(sick)))
    print(f"\nnamed first from the middle severity up: {sum(one.named for one in strong)} of {len(strong)}")
    mild = [one for one in sick if one not in strong]
    print(f"named first in a mild form: {sum(one.named for one in mild)} of {len(mild)}")
    for one in healthy:
        words = [f"{found.finding.verdict} {found.check.id}: {found.finding.evidence}" for found in one.loud]
        print(f"healthy {Path(one.entry['run']).name}: {'; '.join(words) or 'nothing'}")
    record = {
        "middle and severe": [sum(one.named for one in strong), len(strong)],
        "mild": [sum(one.named for one in mild), len(mild)],
        "healthy runs": len(healthy),
        "healthy runs with a failure": sum(
            any(found.finding.verdict is Verdict.FAIL for found in one.loud) for one in healthy
        ),
        "most warnings on a healthy run": max((len(one.loud) for one in healthy), default=0),
        "table": table(sick),
        "missed": [
            {key: one.entry[key] for key in ("fault", "severity", "base", "seed")} | {"first": one.first}
            for one in strong
            if not one.named
        ],
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
