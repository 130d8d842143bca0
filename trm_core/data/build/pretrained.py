"""A pretrained model in memory: loaded at first use in each process, identified by the hash of its weights.

Only its name and that hash travel to worker processes and into the work directory; a model whose weights differ when it
is loaded again is refused, so no file mixes the vectors of two models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_core.data.build.encoders import State
from trm_core.data.build.extras import ModelSpec, load_or_explain, versions
from trm_core.data.build.recorded import Arrays
from trm_core.data.threads import one_thread
from trm_core.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """`module`: the torch module; `run`: its inputs (phrases, or crops [n, rows, columns, channels]) to [n, width]."""

    module: Any
    run: Callable[[Any], np.ndarray]


class PretrainedModel:
    """`load(spec, device)` must be a function of a module, so that it can be sent to a worker."""

    def __init__(self, spec: ModelSpec, load: Callable[[ModelSpec, str], Loaded], example: Any) -> None:
        """Load the model and run `example` through it for its width. Raises `ConfigError` if that cannot be done."""
        self.spec = spec
        self.weights_sha256 = ""
        self._load = load
        self._loaded: Loaded | None = None
        self.width = int(load_or_explain(spec, lambda: self(example)).shape[1])

    def __call__(self, inputs: Any) -> np.ndarray:
        """float32 [n, width], computed on one CPU thread or on the device: the same in every process."""
        loaded = self._get()
        # Entered after torch is loaded, because the limit would not reach it otherwise.
        with one_thread():
            return np.asarray(loaded.run(inputs), dtype=np.float32)

    def _get(self) -> Loaded:
        if self._loaded is None:
            device = choose_device(self.spec.device)
            loaded: Loaded = load_or_explain(self.spec, lambda: self._load(self.spec, device))
            found = weights_sha256(loaded.module)
            self._expect(self.weights_sha256 or found, found)
            self.weights_sha256, self._loaded = found, loaded
        return self._loaded

    def _expect(self, known: str, found: str) -> None:
        if known != found:
            raise ConfigError(
                f"data.build.encoder_model={self.spec.name}: its weights have changed since this build began",
                hint="run it again: it starts from the beginning",
            )

    def state(self) -> State:
        return {"weights_sha256": np.frombuffer(bytes.fromhex(self.weights_sha256), dtype=np.uint8)}

    def load_state(self, state: State) -> State:
        """The state without the model's part. Raises `ConfigError` if the build was begun with other weights."""
        known = Arrays(state).take("weights_sha256", "uint8", (32,))
        self._expect(known.tobytes().hex(), self.weights_sha256)
        return {name: values for name, values in state.items() if name != "weights_sha256"}

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.spec.name,
            "weights_sha256": self.weights_sha256,
            "versions": versions(self.spec.encoder),
            "device": choose_device(self.spec.device),
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}


def choose_device(asked: str) -> str:
    """A torch device of this machine; auto: the GPU if there is one. Raises `ConfigError` if it does not exist."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=torch.device(asked))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0][:160]
        raise ConfigError(
            f"data.build.encoder_device={asked}: there is no such device here ({first})", hint="use auto or cpu"
        ) from None
    return asked


def weights_sha256(module: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a torch module's state, in the order of the names."""
    import torch

    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data)
    return state.hexdigest()
