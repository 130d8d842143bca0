"""Fixtures of the fuzz tests: a bench per case, and a finished run with its outputs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import tiny
from intact_run import RESUMED_STEPS, Intact
from judge import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench in a folder that is deleted afterwards: a thousand copies of a run are too much to keep."""
    folder = Path(tempfile.mkdtemp(prefix="trm-fuzz-"))
    yield Bench(folder)
    shutil.rmtree(folder)


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """Seeded by test and case, so that a single case can be repeated. TRM_FUZZ_SEED draws other cases."""
    function = request.node.originalname.removesuffix("_more")
    return Random(f"{os.environ.get('TRM_FUZZ_SEED', '0')}/{function}/{request.node.callspec.params['case']}")


@pytest.fixture(scope="session")
def intact(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Intact:
    folders = {int(path.name.removeprefix("step_")): path for path in (trained_run / "checkpoints").glob("step_*")}
    evaluations, resumed = {}, {}
    for step in folders:
        run = tmp_path_factory.mktemp("intact") / "run"
        shutil.copytree(trained_run, run)
        for other in folders.keys() - {step}:
            shutil.rmtree(run / "checkpoints" / folders[other].name)
        done = tiny.invoke("eval", run, "--json")
        assert done.returncode == 0, done.stderr
        evaluations[step] = {**json.loads(done.stdout), "run": None}
        done = tiny.invoke("train", "--resume", run, f"training.total_steps={RESUMED_STEPS}")
        assert done.returncode == 0, done.stderr
        resumed[step] = max((run / "checkpoints").glob("step_*"))
    return Intact(trained_run, folders, evaluations, resumed)


@pytest.fixture
def run(intact: Intact, bench: Bench) -> Path:
    """A copy of the intact run to damage."""
    return Path(shutil.copytree(intact.run, bench.work / "run"))
