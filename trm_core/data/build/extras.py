"""Pretrained encoders: which package each needs, how it is imported, and which local file or folder its model is.

An optional package can fail at import in many ways, not only by its absence: a torchvision built for another torch
raises RuntimeError deep inside. Whatever it raises, the user gets one `ConfigError` with what to install or change.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from trm_core.config.schema import BuildConfig
from trm_core.data.build.recorded import Spec
from trm_core.errors import ConfigError

_EXAMPLES = {
    "sentence-transformers": "sentence-transformers/all-MiniLM-L6-v2",
    "timm": "resnet18.a1_in1k",
    "open_clip": "ViT-B-32:laion2b_s34b_b79k",
}
# encoder: (module, distribution, extra, packages whose versions go into the manifest)
_PACKAGES = {
    "sentence-transformers": ("sentence_transformers", "sentence-transformers", "text", ("transformers", "tokenizers")),
    "timm": ("timm", "timm", "vision", ("torchvision",)),
    "open_clip": ("open_clip", "open_clip_torch", "vision", ("timm", "torchvision")),
}
TEXT_ENCODERS = ("sentence-transformers",)
PICTURE_ENCODERS = ("timm", "open_clip")
_HUB = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is run. `path` is set where `name` is, or ends in, the path of something on this disk.

    `architecture` is the part before the colon in `resnet18:weights.safetensors` or `ViT-B-32:laion2b_s34b_b79k`.
    """

    encoder: str
    name: str
    architecture: str | None
    path: Path | None
    batch_size: int
    device: str

    def record(self) -> dict[str, Any]:
        """JSON for `recorded_model`. The name holds the revision where there is one (NAME:PRETRAINED)."""
        return {"encoder": self.encoder, "name": self.name, "batch_size": self.batch_size, "device": self.device}


def is_pretrained(config: BuildConfig) -> bool:
    return config.encoder in _PACKAGES


def model_spec(config: BuildConfig) -> ModelSpec:
    """The model that `data.build` names. Raises `ConfigError` if there is none, or if its path does not exist."""
    name = config.encoder_model
    if not name:
        raise ConfigError(
            f"data.build.encoder={config.encoder} needs a model",
            hint=f"set data.build.encoder_model to a name, such as {_EXAMPLES[config.encoder]}, or to a local path",
        )
    return _find_model(config.encoder, name, config.encoder_batch_size, config.encoder_device)


def recorded_model(spec: Spec, encoders: tuple[str, ...]) -> ModelSpec:
    """The model that `ModelSpec.record` describes. Raises `DataError` for nonsense, `ConfigError` for a missing
    path.
    """
    encoder, name = spec.text("encoder", encoders), spec.text("name")
    batch_size, device = spec.whole("batch_size", 1, 1 << 16), spec.text("device")
    spec.close()
    # The builder's GPU may not be here.
    return _find_model(encoder, name, batch_size, device if device == "cpu" else "auto")


def _find_model(encoder: str, name: str, batch_size: int, device: str) -> ModelSpec:
    architecture, path = None, _existing(name)
    if path is None and encoder in PICTURE_ENCODERS and not name.startswith(_HUB):
        before, colon, after = name.partition(":")
        if colon:
            architecture, path = before, _existing(after)
            if path is None and _looks_like_path(after):
                raise _no_such_path(after)
    if path is None and _looks_like_path(name):
        raise _no_such_path(name)
    return ModelSpec(encoder, name, architecture, path, batch_size, device)


def import_encoder(encoder: str) -> ModuleType:
    """The package of an encoder. Raises `ConfigError` if it is not installed or cannot be imported."""
    module, distribution, extra, _ = _PACKAGES[encoder]
    install = f"pip install 'trm[{extra}]'"
    if module not in _loaded() and util.find_spec(module) is None:
        raise ConfigError(
            f"data.build.encoder={encoder} needs the package {distribution}, which is not installed", hint=install
        )
    try:
        return importlib.import_module(module)
    except Exception as error:
        advice = f"{install}; if it is installed, it or what it imports does not fit this torch ({_version('torch')})"
        if "torchvision" in _whole_story(error):
            advice = f"install the torchvision that belongs to torch {_version('torch')}, from the same index as torch"
        raise ConfigError(
            f"data.build.encoder={encoder}: the package {distribution} cannot be imported ({brief(error)})", hint=advice
        ) from error


def load_or_explain(spec: ModelSpec, load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever it raises becomes a `ConfigError` that names the model."""
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        unknown = "check the name, and the network if it must be downloaded"
        where = f"is it a {spec.encoder} model?" if spec.path else unknown
        raise ConfigError(
            f"data.build.encoder_model={spec.name}: the model cannot be loaded ({brief(error)})",
            hint=f"{where}; a local path works without a network",
        ) from error


def versions(encoder: str) -> dict[str, str]:
    """Versions of the packages that compute the vectors, for the manifest."""
    _, distribution, _, others = _PACKAGES[encoder]
    return {name: _version(name) for name in (distribution, *others, "torch")}


def brief(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def _loaded() -> dict[str, ModuleType]:
    import sys

    return sys.modules


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _whole_story(error: BaseException) -> str:
    """The messages of an error and its causes: the last one often does not name the package at fault."""
    parts: list[str] = []
    at: BaseException | None = error
    while at is not None:
        parts.append(str(at))
        at = at.__cause__ or at.__context__
    return " ".join(parts)


def _existing(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path if path.exists() else None


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.endswith((".safetensors", ".pt", ".pth", ".bin"))


def _no_such_path(name: str) -> ConfigError:
    return ConfigError(f"data.build.encoder_model={name}: no such file or folder", hint="check the path")
