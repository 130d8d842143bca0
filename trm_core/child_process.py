"""Child processes: how one runs a function of this package, and which signals are not meant for it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import trm_core

# With these signals people, SLURM and a lost connection ask a whole job to stop. The process that started the work
# decides what becomes of it.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
)


def command_of(module: str, function: str, *arguments: str) -> list[str]:
    """A command that calls `function(*arguments)` of `module` and exits with the code that it returns.

    Its imports are searched for where those of this process are.
    """
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
        f"from {module} import {function}; sys.exit({function}(*sys.argv[2:]))"
    )
    # The package's own folder comes last, for installations that are found through an import hook.
    search = [*sys.path, str(Path(trm_core.__file__).parent.parent)]
    return [sys.executable, "-S", "-c", code, json.dumps(search), *arguments]
