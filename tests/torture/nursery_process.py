"""The process that forks one child for each life. It has a single thread, so forking is safe, and has touched no
tensor, so each child is in the state of a process that has just done its imports.

Imports nothing of ours at the top, because loader processes run this file too.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = ("trm_cli.main", "trm_core.runs")
WORKERS = "trm_core.data.windows"


def serve(log: Path) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    prepare_workers()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"{len(threads)} threads: a fork of this is not sound"
    print("ready", flush=True)
    child = 0
    for line in sys.stdin:
        if line.strip() == "reap":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            live(json.loads(line), log)
        print(child, flush=True)


def prepare_workers() -> None:
    """Let loader processes come from a server that has also imported torch. As with "spawn", which it replaces, they
    inherit nothing from the trainer: neither its lock nor its end of the pipe.
    """
    multiprocessing.set_forkserver_preload([WORKERS])
    multiprocessing.forkserver.ensure_running()
    server = multiprocessing.get_context("forkserver")
    multiprocessing.get_context = lambda method=None: server  # type: ignore[assignment]
    # The server is a child of the nursery, so a life cannot wait for it.
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]


def live(arguments: list[str], log: Path) -> NoReturn:
    """Run `trm arguments` as a shell would."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    main: Any = importlib.import_module("trm_cli.main")
    sys.argv = ["trm", *arguments]
    code: Any = 1
    try:
        main.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
