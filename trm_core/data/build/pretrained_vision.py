"""timm and open_clip models as functions of picture crops: loaded, fed at their own input size, pooled features out.

Weights are read from safetensors files or through the packages' own loaders of named models; timm opens no pickle that
a user names, and open_clip reads pickles as tensors only (`weights_only`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trm_core.data.build.extras import ModelSpec, import_encoder
from trm_core.data.build.pretrained import Loaded
from trm_core.errors import ConfigError


def load_timm(spec: ModelSpec, device: str) -> Loaded:
    """NAME, NAME:FILE.safetensors, or a folder with config.json and model.safetensors, as timm pushes to a hub."""
    timm = import_encoder(spec.encoder)
    if spec.path is None:
        model = timm.create_model(spec.name, pretrained=True, num_classes=0)
    elif spec.path.is_dir():
        for needed in ("config.json", "model.safetensors"):
            if not (spec.path / needed).is_file():
                raise ConfigError(
                    f"{spec.path}: holds no {needed}", hint="a timm folder holds config.json and model.safetensors"
                )
        model = timm.create_model(f"local-dir:{spec.path}", pretrained=True, num_classes=0)
    else:
        model = timm.create_model(_architecture(spec), pretrained=False, num_classes=0)
        _load_safetensors(model, spec)
    model = model.eval().to(device)
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]
    if channels != 3:
        raise ConfigError(f"{spec.name}: takes pictures of {channels} channels, expected 3")
    prepare = preparation(size, config["mean"], config["std"], config["interpolation"], device)
    return Loaded(model, _runner(model, prepare, spec.batch_size))


def load_open_clip(spec: ModelSpec, device: str) -> Loaded:
    """NAME:PRETRAINED, NAME:FILE, hf-hub:NAME, or a folder with open_clip_config.json and the weights."""
    open_clip = import_encoder(spec.encoder)
    name, pretrained = spec.name, None
    if spec.path is not None and spec.path.is_dir():
        name = f"local-dir:{spec.path}"
    elif spec.path is not None:
        name, pretrained = _architecture(spec), str(spec.path)
    elif not name.startswith("hf-hub:"):
        if spec.architecture is None:
            tags = open_clip.list_pretrained_tags_by_model(name)
            known = f"such as {name}:{tags[0]}" if tags else "or a path; open_clip knows no weights of this name"
            raise ConfigError(f"data.build.encoder_model={name}: which weights?", hint=f"NAME:PRETRAINED, {known}")
        name, _, pretrained = spec.name.partition(":")
    model = open_clip.create_model_from_pretrained(name, pretrained, device=device, return_transform=False)
    model.eval()
    config = model.visual.preprocess_cfg
    size = config["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    prepare = preparation(size, config["mean"], config["std"], config["interpolation"], device)
    return Loaded(model, _runner(model.encode_image, prepare, spec.batch_size))


def preparation(
    size: Sequence[int], mean: Sequence[float], std: Sequence[float], interpolation: str, device: str
) -> Callable[[np.ndarray], Any]:
    """A function from crops float32 [n, rows, columns, 1, 3 or 4] in [0, 1] to the tensor [n, 3, *size] a model takes.

    One channel is repeated, a fourth (transparency) left out.
    """
    import torch

    mode = "bicubic" if interpolation == "bicubic" else "bilinear"
    center = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    spread = torch.tensor(std, device=device).view(1, -1, 1, 1)

    def prepare(crops: np.ndarray) -> torch.Tensor:
        colours = np.repeat(crops, 3, axis=3) if crops.shape[3] == 1 else crops[..., :3]
        pixels = torch.from_numpy(np.ascontiguousarray(colours.transpose(0, 3, 1, 2))).to(device)
        pixels = torch.nn.functional.interpolate(pixels, tuple(size), mode=mode, antialias=True)
        return (pixels.clamp(0.0, 1.0) - center) / spread

    return prepare


def _runner(
    forward: Callable[[Any], Any], prepare: Callable[[np.ndarray], Any], batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def run(crops: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                forward(prepare(crops[begin : begin + batch_size])).float().cpu().numpy()
                for begin in range(0, len(crops), batch_size)
            ]
        return np.concatenate(parts)

    return run


def _architecture(spec: ModelSpec) -> str:
    if spec.architecture is None:
        raise ConfigError(
            f"data.build.encoder_model={spec.name}: a file of weights does not name its architecture",
            hint=f"give NAME:{spec.name}, such as resnet18:{spec.name}",
        )
    return spec.architecture


def _load_safetensors(model: Any, spec: ModelSpec) -> None:
    """Every weight of the model must be in the file; of the file only the classifier may be left over."""
    from safetensors.torch import load_file

    assert spec.path is not None
    if spec.path.suffix != ".safetensors":
        raise ConfigError(f"{spec.path}: is not a safetensors file", hint="save it with safetensors.torch.save_file")
    found = model.load_state_dict(load_file(spec.path), strict=False)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    strange = [name for name in found.unexpected_keys if not name.startswith(tuple(f"{head}." for head in heads))]
    if found.missing_keys or strange:
        example = (found.missing_keys + strange)[0]
        raise ConfigError(
            f"{spec.path}: does not hold the weights of {spec.architecture} ({len(found.missing_keys)} missing, "
            f"{len(strange)} unexpected, such as {example})",
            hint="name the architecture that the file was made with",
        )
