"""The batch scripts of configs/slurm as they are, with stand-ins for SLURM's commands (`fake_slurm`)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from fake_slurm import SCRIPTS, Cluster
from forked_shell import trm_program

LONG = "training.total_steps=100000"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    with trm_program(tmp_path / "commands" / "trm"):
        yield cluster


@pytest.fixture
def config(tmp_path: Path, capsule_file: Path) -> Path:
    path = tmp_path / "config.yaml"
    sections: dict[str, Any] = {**tiny.BASE, "data": {"path": str(capsule_file)}}
    path.write_text(yaml.safe_dump(sections))
    return path


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


@pytest.mark.slow
def test_a_signalled_job_saves_queues_itself_and_goes_on(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Two tasks, as in a job of two GPUs; then the same command again, as SLURM runs it."""
    run = tmp_path / "run"
    # Whoever leaves first with a code ends the others at once.
    job = cluster.submit("several_nodes.sbatch", config, run, LONG, tasks=2, TRM_REQUEUE="1", KILL_WAIT="0")
    job.wait_for_step(run, 3)
    job.signal_task(signal.SIGUSR1, 0, 1)
    text = job.output.read_text()
    assert job.end() == 75, text
    assert cluster.asked() == [
        *[f"show job {os.getpid()} --oneliner"] * 2,
        f"show job {os.getpid()}",
        f"requeue {os.getpid()}",
    ]
    stopped = status(run)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75)
    text = job.output.read_text()
    assert "SIGUSR1: saving at step" in text
    assert text.count("run directory:") == 1, "two tasks are one run"
    assert text.count("stopped: stopped at step") == 1, "both stop, and one says so"
    assert len(list((run / "checkpoints" / f"step_{stopped['step']:08d}").glob("rank*.json"))) == 2

    total = f"training.total_steps={stopped['step'] + 3}"
    job = cluster.submit("several_nodes.sbatch", config, run, total, tasks=2, TRM_REQUEUE="1")
    assert job.end() == 0, job.output.read_text()
    assert f"resuming from step_{stopped['step']:08d}" in job.output.read_text()
    assert status(run)["state"] == "done"
    assert not any("requeue" in line for line in cluster.asked())


@pytest.mark.slow
@pytest.mark.parametrize("kill_wait", ["10", "0"])
def test_a_killed_task_gives_the_runs_own_code(cluster: Cluster, config: Path, tmp_path: Path, kill_wait: str) -> None:
    """Also where the others were not left the time to say it."""
    run = tmp_path / "run"
    job = cluster.submit("one_node.sbatch", config, run, LONG, tasks=2, TRM_REQUEUE="1", KILL_WAIT=kill_wait)
    job.wait_for_step(run, 3)
    job.signal_task(signal.SIGKILL, 1)
    assert job.end() == 6, job.output.read_text()
    assert not any("requeue" in line for line in cluster.asked())
    if kill_wait != "0":
        assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 6)


@pytest.mark.slow
def test_the_end_of_the_job_stops_it_in_time(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """The end as SLURM's environment says it, and as scontrol does; without TRM_REQUEUE nothing is queued. A mistake in
    the next start is not taken for the stop before it.
    """
    margin = "training.time_margin=15"
    job = cluster.submit("one_node.sbatch", config, tmp_path / "a", LONG, margin, SLURM_JOB_END_TIME=end_in(24))
    assert job.end() == 75, job.output.read_text()
    assert cluster.asked() == []
    assert_stopped_by_the_limit(job.output.read_text())

    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 24))
    (tmp_path / "job").write_text(f"JobId={os.getpid()} StartTime=2020-01-01T00:00:00 EndTime={at} Deadline=N/A")
    job = cluster.submit("one_node.sbatch", config, tmp_path / "b", LONG, margin)
    assert job.end() == 75, job.output.read_text()
    assert cluster.asked() == [f"show job {os.getpid()} --oneliner"]
    assert_stopped_by_the_limit(job.output.read_text())

    job = cluster.submit("one_node.sbatch", config, tmp_path / "b", "arch.hidden_size=17", TRM_REQUEUE="1")
    assert job.end() == 3, job.output.read_text()
    assert not any("requeue" in line for line in cluster.asked())


def end_in(seconds: float) -> str:
    return str(int(time.time() + seconds))


def assert_stopped_by_the_limit(text: str) -> None:
    assert f"SLURM job {os.getpid()} ends" in text
    assert "the time limit: saving at step" in text


def test_a_sweep_takes_its_line(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("training.seed=4\ntraining.seed=5 training.total_steps=3\n")
    job = cluster.submit("sweep.sbatch", config, tmp_path / "runs", sweep, SLURM_ARRAY_TASK_ID="1")
    assert job.end() == 0, job.output.read_text()
    told = yaml.safe_load((tmp_path / "runs" / "1" / "config.yaml").read_text())
    assert (told["training"]["seed"], told["training"]["total_steps"]) == (5, 3)
    job = cluster.submit("sweep.sbatch", config, tmp_path / "runs", sweep, SLURM_ARRAY_TASK_ID="2")
    assert job.end() == 2
    assert "has no line 3" in job.output.read_text()
    assert not (tmp_path / "runs" / "2").exists()


@pytest.mark.parametrize(("number", "code"), [("USR1", 75), ("TERM", 75), ("KILL", 6)])
def test_a_start_that_a_signal_meets_is_made_again(cluster: Cluster, tmp_path: Path, number: str, code: int) -> None:
    """Before the process can handle it; one that is killed would be killed again."""
    trm = tmp_path / "commands" / "trm"
    trm.write_text(f"#!/bin/bash\nkill -{number} $$\n")
    variables = {"TRM_REQUEUE": "1", "SLURM_CPUS_PER_TASK": "5"}
    job = cluster.submit("one_node.sbatch", "c.yaml", tmp_path / "run", tasks=2, **variables)
    assert job.end() == code, job.output.read_text()
    assert cluster.asked() == [f"show job {os.getpid()}", f"requeue {os.getpid()}"] * (code == 75)
    assert (tmp_path / "cpus").read_text() == "5", "srun has to be told"


@pytest.mark.parametrize(
    ("state", "requeued"),
    [
        ("JobState=RUNNING Reason=None", True),
        ("JobState=COMPLETING Reason=TimeLimit", True),
        ("JobState=COMPLETING Reason=None", False),
    ],
)
def test_a_cancelled_job_stays_away(cluster: Cluster, tmp_path: Path, state: str, requeued: bool) -> None:
    """Neither does a job ask for itself that SLURM requeues, as it does one that is preempted: it looks the same."""
    (tmp_path / "commands" / "trm").write_text("#!/bin/bash\nexit 75\n")
    (tmp_path / "job").write_text(state)
    job = cluster.submit("one_node.sbatch", "c.yaml", tmp_path / "run", TRM_REQUEUE="1")
    assert job.end() == 75, job.output.read_text()
    assert (f"requeue {os.getpid()}" in cluster.asked()) == requeued


def test_a_job_of_a_sweep_requeues_itself_alone(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM_JOB_ID of an array's last job is the number of the array: requeueing that runs finished jobs again."""
    (tmp_path / "commands" / "trm").write_text("#!/bin/bash\nexit 75\n")
    (tmp_path / "sweep.txt").write_text("training.seed=4\n")
    variables = {"TRM_REQUEUE": "1", "SLURM_ARRAY_JOB_ID": str(os.getpid()), "SLURM_ARRAY_TASK_ID": "0"}
    job = cluster.submit("sweep.sbatch", "c.yaml", tmp_path / "runs", tmp_path / "sweep.txt", **variables)
    assert job.end() == 75, job.output.read_text()
    assert cluster.asked()[-1] == f"requeue {os.getpid()}_0"


@pytest.mark.parametrize("others", ["exec sleep 60", "trap 'exit 75' TERM; sleep 60 & wait"])
def test_the_task_that_fails_gives_the_code(cluster: Cluster, tmp_path: Path, others: str) -> None:
    """Not those that srun ended because of it, before or after they could handle that: they seem to have been asked to
    stop, and the job would be requeued forever.
    """
    trm = tmp_path / "commands" / "trm"
    trm.write_text(f"#!/bin/bash\nif [[ $SLURM_PROCID == 1 ]]; then sleep 1; exit 3; fi\n{others}\n")
    job = cluster.submit("one_node.sbatch", "c.yaml", tmp_path / "runs" / "a", tasks=2, TRM_REQUEUE="1")
    assert job.end() == 3, job.output.read_text()
    assert cluster.asked() == []
    assert not list((tmp_path / "runs").iterdir()), "nothing is left beside the run"


def test_a_note_that_a_full_disk_left_empty_is_none(cluster: Cluster, tmp_path: Path) -> None:
    trm = tmp_path / "commands" / "trm"
    trm.write_text('#!/bin/bash\n: >"$FAILED"; exit 3\n')
    job = cluster.submit("one_node.sbatch", "c.yaml", tmp_path / "runs" / "a")
    assert job.end() == 3, job.output.read_text()


@pytest.mark.parametrize("started", [True, False])
def test_a_task_without_memory_gives_its_code(cluster: Cluster, tmp_path: Path, started: bool) -> None:
    """Where a cgroup limits a job's memory, srun says 1, whether the run has begun or not."""
    trm, run = tmp_path / "commands" / "trm", tmp_path / "run"
    begun = f"mkdir {run}; echo '{{\"exit_code\": null}}' >{run}/status.json; " if started else ""
    trm.write_text(f"#!/bin/bash\n{begun}kill -KILL $$\n")
    job = cluster.submit("one_node.sbatch", "c.yaml", run, OUT_OF_MEMORY="1")
    assert job.end() == 6, job.output.read_text()


@pytest.mark.slow
def test_the_log_of_a_job_is_lines_of_text(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """No control characters, and a sign of life at least about every ten seconds."""
    run = tmp_path / "run"
    job = cluster.submit("one_node.sbatch", config, run, LONG, tasks=2)
    job.wait_for_step(run, 1)
    time.sleep(13)
    early = job.output.read_text()
    job.signal_task(signal.SIGTERM, 0, 1)
    assert job.end() == 75
    assert "\ntraining " in early, "progress"
    whole = job.output.read_bytes()
    assert all(byte >= 32 or byte == 10 for byte in whole), whole
    assert max(map(len, whole.splitlines())) < 400


def test_a_batch_script_without_srun_is_one_process(tmp_path: Path, capsule_file: Path) -> None:
    overrides = tiny.as_overrides(data={"path": capsule_file}, training={"run_dir": tmp_path / "run"})
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NODELIST": "gpu[1-2]"}
    variables["SLURM_JOB_END_TIME"] = end_in(3600)  # else a scontrol of this machine is asked
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        done = tiny.invoke("train", *overrides)
    assert done.returncode == 0, done.stderr


def test_the_scripts_are_sound_bash() -> None:
    for script in SCRIPTS.iterdir():
        assert os.system(f"bash -n {script}") == 0
