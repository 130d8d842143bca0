"""SLURM's commands as small scripts on PATH: `srun` starts real processes with the variables of a step's tasks and
passes signals on to them, `scontrol` notes what it was asked. So the batch scripts run as they are.

Like SLURM 22.05: a signal reaches all processes of a task; when a task fails, the others get TERM at once, and KILL
after a while; srun returns the highest code, 128 + the signal for a task that one killed, and 1 if memory ran out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

SCRIPTS = tiny.ROOT / "configs" / "slurm"
PATIENCE_S = 240

SRUN = """
import os, signal, subprocess, sys, time

command = sys.argv[1:]
while command[0].startswith("-"):
    option = command.pop(0)
    assert option == "--kill-on-bad-exit=1", option
count = int(os.environ["SLURM_NTASKS"])
step = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "127.0.0.1"}
tasks = [
    subprocess.Popen(
        command,
        env={**os.environ, **step, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
        start_new_session=True,
    )
    for n in range(count)
]

def forward(number, frame):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, forward)
with open("cpus", "w") as file:
    file.write(os.environ.get("SRUN_CPUS_PER_TASK", "not said"))
with open("tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks) + "\\n")
bad_since = None
while any(task.poll() is None for task in tasks):
    if bad_since is None and any(task.poll() for task in tasks):
        bad_since = time.monotonic()
        forward(signal.SIGTERM, None)
    if bad_since is not None and time.monotonic() >= bad_since + float(os.environ["KILL_WAIT"]):
        forward(signal.SIGKILL, None)
    time.sleep(0.01)
codes = [128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks]
sys.exit(1 if "OUT_OF_MEMORY" in os.environ else max(codes))
"""

SCONTROL = """
import pathlib, sys

with open("scontrol", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
answer = pathlib.Path("job")
if sys.argv[1] == "show":
    print(answer.read_text() if answer.exists() else "JobState=RUNNING Reason=None")
"""


@dataclass
class Job:
    """A batch script under way in `folder`."""

    folder: Path
    process: subprocess.Popen[str]
    output: Path

    def signal_task(self, number: signal.Signals, *ranks: int) -> None:
        tasks = (self.folder / "tasks").read_text().split()
        for rank in ranks:
            os.killpg(int(tasks[rank]), number)

    def wait_for_step(self, run: Path, step: int) -> None:
        tiny.wait_for_step(self.process, run, step)

    def end(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)


@dataclass(frozen=True)
class Cluster:
    """Where jobs run: a folder with the commands (`trm` itself is put there by the tests), and what they wrote."""

    folder: Path

    def __post_init__(self) -> None:
        commands = self.folder / "commands"
        commands.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (commands / name).write_text(f"#!{sys.executable}\n{text}")
            (commands / name).chmod(0o755)

    def submit(self, script: str, *arguments: Any, tasks: int = 1, **variables: str) -> Job:
        kept = {name: value for name, value in tiny.environment(self.folder).items() if not name.startswith("SLURM_")}
        path = f"{self.folder / 'commands'}{os.pathsep}{os.environ['PATH']}"
        # The port comes from the job's number.
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(tasks), "SLURM_SUBMIT_DIR": str(tiny.ROOT)}
        for name in ("tasks", "scontrol"):
            (self.folder / name).unlink(missing_ok=True)
        output = self.folder / f"output{time.monotonic_ns()}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", str(SCRIPTS / script), *map(str, arguments)],
                cwd=self.folder,
                env={**kept, "PATH": path, "KILL_WAIT": "10", **slurm, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return Job(self.folder, process, output)

    def asked(self) -> list[str]:
        """What `scontrol` was called with by the last job."""
        path = self.folder / "scontrol"
        return path.read_text().splitlines() if path.exists() else []
