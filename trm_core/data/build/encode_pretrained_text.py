"""Phrases to vectors by a sentence-transformers model, given by its name on Hugging Face or by the path of its folder.

Needs `pip install 'trm[text]'`. Equal phrases of a chunk are encoded once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from trm_core.data.build.encoders import State
from trm_core.data.build.extras import TEXT_ENCODERS, ModelSpec, import_encoder, recorded_model
from trm_core.data.build.phrases import PhraseEncoder
from trm_core.data.build.pretrained import Loaded, PretrainedModel
from trm_core.data.build.recorded import Spec
from trm_core.data.build.reduction import Reduction


class SentenceEncoder(PhraseEncoder):
    """`dim` None: the model's width."""

    name = "sentence-transformers"
    fit_phrases = 10_000

    def __init__(self, num_capsules: int, num_children: int, dim: int | None, spec: ModelSpec) -> None:
        self._model = PretrainedModel(spec, load_sentence_model, ["a phrase"])
        super().__init__(num_capsules, num_children, dim or self._model.width)
        self._reduction = Reduction(self._model.width, self.dim, spec.name)

    def _learn(self, phrases: list[str], seed: int) -> None:
        self._reduction.fit(self._raw(phrases))

    def _vectors(self, phrases: list[str]) -> np.ndarray:
        return self._reduction.apply(self._raw(phrases))

    def _raw(self, phrases: list[str]) -> np.ndarray:
        place = {phrase: number for number, phrase in enumerate(dict.fromkeys(phrases))}
        return self._model(list(place))[[place[phrase] for phrase in phrases]]

    def state(self) -> State:
        return self._reduction.state() | self._model.state()

    def load_state(self, state: State) -> None:
        self._reduction.load_state(self._model.load_state(state))

    def settings(self) -> dict[str, Any]:
        return self._reduction.settings() | self._model.settings()

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"model": self._model.spec.record()}

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        sizes = spec.whole("num_capsules"), spec.whole("num_children"), spec.whole("dim")
        model = recorded_model(spec.part("model"), TEXT_ENCODERS)
        spec.close()
        return cls(*sizes, model)


def load_sentence_model(spec: ModelSpec, device: str) -> Loaded:
    """Raises `ConfigError` if the package is missing, and whatever the package raises for the model."""
    package = import_encoder(spec.encoder)
    with _quiet():
        model = package.SentenceTransformer(str(spec.path or spec.name), device=device)
    model.eval()

    def run(phrases: list[str]) -> np.ndarray:
        vectors: np.ndarray = model.encode(
            phrases, batch_size=spec.batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors

    return Loaded(model, run)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars and reports that transformers prints while it loads a model off the terminal."""
    from transformers.utils import logging as reports

    bars, level = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()
