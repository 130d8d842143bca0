"""All encoders by name: only this module knows which class made what a capsule file records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trm_core.data.build.arrays import ArraysEncoder
from trm_core.data.build.encode_arc import ArcEncoder
from trm_core.data.build.encode_images import PatchPCAEncoder, PixelEncoder
from trm_core.data.build.encode_pretrained_images import PretrainedPictureEncoder
from trm_core.data.build.encode_pretrained_text import SentenceEncoder
from trm_core.data.build.encode_table import TableEncoder
from trm_core.data.build.encode_text import HashingSvdEncoder, TfidfSvdEncoder
from trm_core.data.build.encoders import Encoder, State
from trm_core.data.build.extras import PICTURE_ENCODERS, TEXT_ENCODERS
from trm_core.data.build.recorded import Spec
from trm_core.errors import ConfigError, DataError

ENCODERS: dict[str, type[Encoder]] = {
    "pixels": PixelEncoder,
    "patch-pca": PatchPCAEncoder,
    "tfidf-svd": TfidfSvdEncoder,
    "hashing-svd": HashingSvdEncoder,
    "colours": ArcEncoder,
    "columns": TableEncoder,
    "none": ArraysEncoder,
    "sentence-transformers": SentenceEncoder,
    "timm": PretrainedPictureEncoder,
    "open_clip": PretrainedPictureEncoder,
}
PRETRAINED = (*TEXT_ENCODERS, *PICTURE_ENCODERS)


def remake_encoder(name: str, spec: Mapping[str, Any], state: State) -> Encoder:
    """The fitted encoder, restored from its `Encoder.name`, `Encoder.spec()` and `Encoder.state()`.

    Raises `DataError` for an unknown name, for a spec or arrays that no builder writes, and where a pretrained model is
    missing or has other weights.
    """
    if name not in ENCODERS:
        raise DataError(
            f"the encoder {name!r:.80} is not known; there are {', '.join(ENCODERS)}",
            hint="upgrade trm, or build the file again from its source",
        )
    try:
        encoder = ENCODERS[name].from_spec(Spec(spec, f"the recorded encoder {name}"))
        if encoder.name != name:
            raise DataError(f"the recorded encoder {name} names a model of {encoder.name}")
    except ConfigError as error:  # sizes that contradict each other, a package or a model that is not here
        hint = f"{error.hint}; if it was moved, say where with encoder_model=..." if name in PRETRAINED else error.hint
        raise DataError(f"the recorded encoder {name} cannot be made: {error.message}", hint=hint) from error
    try:
        encoder.load_state(state)
    except ConfigError as error:
        raise DataError(
            f"the recorded encoder {name} cannot be made: the model's weights differ from those used in the build",
            hint="say with encoder_model=... where the model used in the build is",
        ) from error
    return encoder
