"""Small configs, models, capsules and capsule files, shared by the tests of the model, training and the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor
from typer.testing import CliRunner

from trm_cli.main import app
from trm_core.config.schema import Config
from trm_core.data.batch import CapsuleBatch
from trm_core.data.checksum import checksums
from trm_core.data.store import CapsuleWriter
from trm_core.data.store.layout import ATTRIBUTES_HASH, attributes_hash
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.carry import Carry, Pending
from trm_core.model.data_shape import DataShape
from trm_core.model.trm import TinyRecursiveModel
from trm_core.training.checkpoint_folders import MANIFEST
from trm_core.training.checkpoint_verify import describe

ROOT = Path(__file__).parent.parent
K, M, D, R, CLASSES, SEED = 4, 2, 3, 5, 3, 7

BASE: dict[str, dict[str, Any]] = {
    "arch": {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_expansion": 1.0,
        "H_cycles": 1,
        "L_cycles": 1,
        "max_steps": 3,
        "q_head_hidden_dim": 16,
    },
    "training": {
        "global_batch_size": 8,
        "total_steps": 12,
        "lr_warmup_steps": 2,
        "base_lr": 3e-3,
        "eval_interval": 100,
        "checkpoint_interval": 100,
        "threads": 1,
        "device": "cpu",
    },
    "dqn": {"buffer_capacity": 200, "buffer_min_size": 16, "batch_size": 8, "epsilon_decay": 10},
}


def make_config(**sections: dict[str, Any]) -> Config:
    """The tiny config with some keys of some sections changed."""
    names = BASE.keys() | sections.keys()
    return Config.model_validate({name: {**BASE.get(name, {}), **sections.get(name, {})} for name in names})


def as_overrides(**sections: dict[str, Any]) -> list[str]:
    """The same as command-line overrides."""
    names = sorted(BASE.keys() | sections.keys())
    merged = {name: {**BASE.get(name, {}), **sections.get(name, {})} for name in names}
    return [f"{name}.{key}={value}" for name, keys in merged.items() for key, value in keys.items()]


def make_shape(**changes: Any) -> DataShape:
    values = {
        "num_capsules": K,
        "dim": D,
        "num_children": M,
        "checksum_dim": R,
        "num_classes": CLASSES,
        "label_rank": 1,
        "total_price": float(K),
    }
    return DataShape(**{**values, **changes})


def make_model(
    config: Config, shape: DataShape | None = None, seed: int = 0, with_cmi: bool = True
) -> TinyRecursiveModel:
    """A model whose zero-initialised parameters are made random, so that every output depends on the input."""
    torch.manual_seed(seed)
    model = TinyRecursiveModel(config, shape or make_shape(), with_cmi=with_cmi)
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.3)
    return model


def make_capsules(rows: int, shape: DataShape | None = None, seed: int = 0, mask: Tensor | None = None) -> CapsuleState:
    """Closed capsules of random numbers, with prices of 1."""
    shape = shape or make_shape()
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(rows, shape.num_capsules, *sizes, generator=generator)

    sketches = normal(shape.dim)
    return CapsuleState.closed(
        sketches,
        normal(shape.num_children, shape.dim) if shape.num_children else None,
        normal(shape.checksum_dim) if shape.checksum_dim else None,
        mask,
        torch.ones(shape.num_capsules),
    )


def make_carry(model: TinyRecursiveModel, rows: int = 4, seed: int = 0, mask: Tensor | None = None) -> Carry:
    """Rows in the middle of their episodes; every second one has just opened a capsule."""
    shape = model.data
    torch.manual_seed(seed)
    opened = torch.zeros(rows, shape.num_capsules, dtype=torch.bool)
    if shape.num_children:
        opened[::2, 1] = True
        opened[0, 0] = True
    capsules = make_capsules(rows, shape, seed, mask).opened(opened)
    z_H, z_L, x = (torch.randn(rows, shape.num_capsules, model.first_z_H.shape[-1]) for _ in range(3))
    return Carry(
        z_H=z_H,
        z_L=z_L,
        x=x,
        steps=torch.full((rows,), 2),
        min_steps=torch.ones(rows, dtype=torch.int64),
        halted=torch.zeros(rows, dtype=torch.bool),
        capsules=capsules,
        open_at_start=torch.zeros_like(opened),
        labels=torch.randint(shape.num_classes, (rows, shape.answers)),
        price=torch.full((rows,), 0.02),
        q_state=torch.rand(rows, model.q_head.state_width),
        q_memory=torch.rand(rows, model.q_head.recurrent_width),
        accuracy=torch.rand(rows).round(),
        utility=torch.rand(rows),
        loss=torch.rand(rows),
        pending=Pending(torch.arange(rows), torch.where(opened.any(1), 2, 0), opened.sum(1).float(), capsules.expanded),
    )


def make_batch(rows: int, seed: int = 0, shape: DataShape | None = None) -> CapsuleBatch:
    """Random samples in the form that the loader gives."""
    shape = shape or make_shape()
    capsules = make_capsules(rows, shape, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    sizes = (rows,) if shape.label_rank == 1 else (rows, shape.num_capsules)
    labels = torch.randint(shape.num_classes, sizes, generator=generator)
    return CapsuleBatch(
        capsules.sketches, capsules.children, capsules.checksums, labels, None, None, None, torch.arange(rows)
    )


def write_capsules(path: Path, rows: dict[str, int], seed: int = 0, **changes: Any) -> Path:
    """Write a capsule file whose labels show in the children and faintly in the sketches."""
    k, m, dim, classes = (
        changes.get(name, value) for name, value in (("k", K), ("m", M), ("dim", D), ("classes", CLASSES))
    )
    width = changes.get("checksum_dim", R)
    random = np.random.default_rng(seed)
    writer = CapsuleWriter(
        path,
        num_capsules=k,
        dim=dim,
        num_children=m,
        checksum_dim=width,
        label_rank=changes.get("label_rank", 1),
        dtype="float32",
        prices=changes.get("prices"),
        with_parents=changes.get("parents", False),
    )
    with writer:
        for split, n in rows.items():
            labels = random.integers(0, classes, n if writer.layout.label_rank == 1 else (n, k))
            labels.flat[:classes] = np.arange(classes)
            signal = labels.reshape(n, -1).mean(1)
            arrays = {
                "sketches": random.normal(size=(n, k, dim)) + 0.5 * signal[:, None, None],
                "labels": labels,
            }
            if changes.get("parents"):
                arrays["parents"] = np.tile(np.r_[-1, np.zeros(k - 1, np.int64)], (n, 1))
            if m:
                arrays["children"] = random.normal(size=(n, k, m, dim)) + signal[:, None, None, None]
                if width:
                    arrays["checksums"] = checksums(arrays["children"].astype(np.float32), width, SEED)
            writer.append(split, arrays)
        writer.close({"task": "classes", "num_classes": classes, "checksum_seed": SEED, "kind": "arrays"})
    return path


def metrics_without_clock(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock and the system."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("_per_sec", "time_share", "rss_gb")
    return [{k: v for k, v in line.items() if not k.endswith(clock)} for line in lines]


def set_text(h5: h5py.File, name: str, text: str | bytes) -> None:
    """Replace an attribute of a capsule file, rows or manifest, as if it had been written that way."""
    data = text if isinstance(text, bytes) else text.encode(errors="replace")
    h5.attrs.create(name, np.array(data, dtype=h5py.string_dtype("utf-8", max(1, len(data)))))
    texts = [bytes(np.asarray(h5.attrs.get(key, b""))).decode(errors="replace") for key in ("rows", "manifest")]
    digest = attributes_hash(*texts).encode()
    h5.attrs.create(ATTRIBUTES_HASH, np.array(digest, dtype=h5py.string_dtype("utf-8", len(digest))))


def vouch_for(checkpoint: Path) -> None:
    """Update the manifest of a checkpoint folder to match the files in it."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"] = {
        name: describe(checkpoint / name) for name in manifest["files"] if (checkpoint / name).is_file()
    }
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def run_trm(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `trm` as a user does, in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "trm_cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(cwd),
        **options,
    )


def environment(cwd: Path) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRM_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common."""

    def poll(self) -> int | None: ...

    def communicate(self) -> tuple[str, str]: ...


def wait_for_step(process: Process, run: Path, step: int) -> None:
    """Wait until the run that `process` trains has logged that many lines."""
    for _ in range(1800):
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("training never got that far")


def invoke(*arguments: str) -> Outcome:
    """Run `trm` in this process: the same code from arguments to exit code, without starting another process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="trm")
    return Outcome(result.exit_code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str
