"""What a diagnosis starts before it imports the rest: examining the data in a separate process."""

from __future__ import annotations

from pathlib import Path

from trm_core.data.store import quarantine
from trm_core.diagnose.small_files import record_of
from trm_core.training.run_dir import DATASET


def look_ahead(run: Path) -> None:
    """Start examining the run's first training file in the background. Errors are reported later, when it is opened."""
    try:
        path = Path(record_of(run / DATASET)["train"][0]["path"])
        if path.is_file():
            quarantine.begin(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return
