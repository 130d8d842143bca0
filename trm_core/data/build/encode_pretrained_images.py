"""Sub-cells of pictures to vectors by a timm or open_clip model: each is a crop, resized to the model's input size.

Needs `pip install 'trm[vision]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from trm_core.data.build.encode_images import PictureEncoder, recorded_lattice
from trm_core.data.build.encoders import Encoded, State
from trm_core.data.build.extras import PICTURE_ENCODERS, ModelSpec, recorded_model
from trm_core.data.build.lattice import Lattice
from trm_core.data.build.pretrained import PretrainedModel
from trm_core.data.build.pretrained_vision import load_open_clip, load_timm
from trm_core.data.build.recorded import Spec
from trm_core.data.build.reduction import Reduction
from trm_core.errors import ConfigError

_LOADERS = {"timm": load_timm, "open_clip": load_open_clip}
_FIT_CROPS = 4096


class PretrainedPictureEncoder(PictureEncoder):
    """`dim` None: the model's width. `name` is the name of the package."""

    def __init__(self, lattice: Lattice, channels: int, dim: int | None, spec: ModelSpec) -> None:
        if channels not in (1, 3, 4):
            raise ConfigError(f"encoder {spec.encoder} takes pictures of 1, 3 or 4 channels, these have {channels}")
        self._crop = (*lattice.subcell_shape, channels)
        example = np.zeros((1, *self._crop), dtype=np.float32)
        self._model = PretrainedModel(spec, _LOADERS[spec.encoder], example)
        super().__init__(lattice, channels, dim or self._model.width)
        self.name = spec.encoder
        self._reduction = Reduction(self._model.width, self.dim, spec.name)

    def fit(self, contents: Sequence[Any], seed: int) -> None:
        crops = self.patches(contents).reshape(-1, *self._crop)
        if len(crops) > _FIT_CROPS:
            rng = np.random.default_rng([seed % 2**63, 0x71CC])
            crops = crops[np.sort(rng.choice(len(crops), _FIT_CROPS, replace=False))]
        self._reduction.fit(self._model(crops))

    def encode(self, contents: Sequence[Any]) -> Encoded:
        patches = self.patches(contents)
        vectors = self._reduction.apply(self._model(patches.reshape(-1, *self._crop)))
        return self._encoded(vectors.reshape(*patches.shape[:3], -1))

    def state(self) -> State:
        return self._reduction.state() | self._model.state()

    def load_state(self, state: State) -> None:
        self._reduction.load_state(self._model.load_state(state))

    def settings(self) -> dict[str, Any]:
        return super().settings() | self._reduction.settings() | self._model.settings()

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"model": self._model.spec.record()}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        lattice, channels, dim = recorded_lattice(spec), spec.whole("channels", 1, 4), spec.whole("dim")
        model = recorded_model(spec.part("model"), PICTURE_ENCODERS)
        spec.close()
        return cls(lattice, channels, dim, model)
