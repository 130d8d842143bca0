"""What a diagnosis begins before it imports the rest: the first look at the data, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from trm_core.data.store import quarantine
from trm_core.diagnose.small_files import record_of
from trm_core.training.run_dir import DATASET


def look_ahead(run: Path) -> None:
    """Have the run's first training file looked at meanwhile. Whatever is wrong is said when it is opened."""
    try:
        path = Path(record_of(run / DATASET)["train"][0]["path"])
        if path.is_file():
            quarantine.begin(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return
