"""Attacks on a checkpoint folder. File names are read from the folder, so new files are attacked as well."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tiny
from bytes_damage import damaged
from hostile_json import hostile_json
from hostile_tensors import hostile_tensors, pickled
from judge import Bench

from trm_core.training.checkpoint_folders import MANIFEST
from trm_core.training.checkpoint_verify import describe


@dataclass(frozen=True)
class Attack:
    """`forged`: the manifest vouches for what was changed, so it may be accepted where it makes sense."""

    said: str
    forged: bool = False


def attack_checkpoint(random: Random, bench: Bench, run: Path) -> Attack:
    """Change one checkpoint of the run, mostly the newest."""
    folders = sorted((run / "checkpoints").glob("step_*"))
    folder = folders[-1] if random.random() < 0.7 else random.choice(folders)
    attacks = (_damage, _damage, _move, _manifest, _forge_json, _forge_json, _forge_tensors, _forge_tensors, _pickle)
    attack = random.choice(attacks)(random, bench, folder)
    return Attack(f"{folder.name}: {attack.said}", attack.forged)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _some(random: Random, folder: Path, suffix: str) -> Path:
    return random.choice([path for path in files_of(folder) if path.suffix == suffix and path.name != MANIFEST])


def _damage(random: Random, bench: Bench, folder: Path) -> Attack:
    path = random.choice(files_of(folder))
    what, data = damaged(random, path.read_bytes())
    path.write_bytes(data)
    return Attack(f"{path.name} {what}")


def _move(random: Random, bench: Bench, folder: Path) -> Attack:
    """Files are missing, swapped, copied from another checkpoint, or replaced by something that is not a file."""
    path = random.choice(files_of(folder))
    kind = random.choice(("missing", "folder", "pipe", "link", "loop", "outside", "exchanged", "copied", "whole"))
    others = [other for other in folder.parent.glob("step_*") if other != folder]
    if kind == "exchanged":
        other = random.choice([one for one in files_of(folder) if one != path])
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return Attack(f"{path.name} exchanged with {other.name}")
    if kind == "copied":
        other = random.choice(others) / path.name
        shutil.copy(other, path)
        return Attack(f"{path.name} copied from {other.parent.name}")
    if kind == "whole":  # another checkpoint under this name; it is intact, so it may be used
        other = random.choice(others)
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
        return Attack(f"is {other.name}")
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "outside":
        path.symlink_to(bench.outside / "secret")
    return Attack(f"{path.name}: {kind}")


def _manifest(random: Random, bench: Bench, folder: Path) -> Attack:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    if random.random() < 0.6:
        what, text = hostile_json(random, path.read_text())
        path.write_text(text, encoding="utf-8", errors="replace")
        return Attack(f"{path.name}: {what}")
    secret = bench.outside / "secret"
    name = random.choice((str(secret), "../../../../outside/secret", "/etc/passwd", "../" + folder.name, "\0", "", "."))
    entry = describe(secret)
    replaced = random.choice(list(manifest["files"]))
    if random.random() < 0.5:
        del manifest["files"][replaced]
    manifest["files"][name] = entry
    path.write_text(json.dumps(manifest))
    return Attack(f"{path.name} names {name!r}")


def _forge_json(random: Random, bench: Bench, folder: Path) -> Attack:
    path = _some(random, folder, ".json")
    what, text = hostile_json(random, path.read_text())
    path.write_text(text, encoding="utf-8", errors="replace")
    tiny.vouch_for(folder)
    return Attack(f"{path.name} with its hash: {what}", forged=True)


def _forge_tensors(random: Random, bench: Bench, folder: Path) -> Attack:
    path = _some(random, folder, ".safetensors")
    what, data = hostile_tensors(random, path.read_bytes())
    path.write_bytes(data)
    tiny.vouch_for(folder)
    return Attack(f"{path.name} with its hash: {what}", forged=True)


def _pickle(random: Random, bench: Bench, folder: Path) -> Attack:
    """Everything that holds tensors becomes a pickle, so that any command would load one; so do names that other tools
    load.
    """
    what, data = pickled(random, bench.marker)
    for path in files_of(folder):
        if path.suffix == ".safetensors":
            path.write_bytes(data)
    for name in ("model.pt", "model.pkl", "pytorch_model.bin"):
        (folder / name).write_bytes(data)
    tiny.vouch_for(folder)
    return Attack(f"is a {what}", forged=True)
