"""What all text encoders share: documents cut into k segments of m phrases, phrases to vectors, vectors to children.

A phrase is a child, a segment a capsule; the segments cut from one sentence are children of its first segment
(`segment_tree`). Everything is fitted on phrases of training documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trm_core.data.build.encoders import Encoded
from trm_core.data.build.segment import segment, segment_tree
from trm_core.errors import DataError

_FIT_DOCUMENTS = 20_000


class PhraseEncoder:
    """Segmentation, sampling and padding; subclasses learn from phrases and turn phrases into vectors."""

    name = ""
    default_sketch = "leading"
    masks = True
    parents = True
    label_rank = 1
    given_checksums = 0
    fit_rows = _FIT_DOCUMENTS
    fit_phrases = 40_000

    def __init__(self, num_capsules: int, num_children: int, dim: int) -> None:
        self.num_capsules = num_capsules
        self.num_children = num_children
        self.dim = dim

    def spec(self) -> dict[str, Any]:
        return {"num_capsules": self.num_capsules, "num_children": self.num_children, "dim": self.dim}

    def _learn(self, phrases: list[str], seed: int) -> None:
        """Fit on at least one phrase, at most `fit_phrases`."""
        raise NotImplementedError

    def _vectors(self, phrases: list[str]) -> np.ndarray:
        """float32 [phrases, at most D]."""
        raise NotImplementedError

    def fit(self, contents: Sequence[str], seed: int) -> None:
        cut = (segment(document, self.num_capsules, self.num_children) for document in contents)
        phrases = [phrase for segments in cut for phrase in _flat(segments) if phrase]
        if not phrases:
            raise DataError("the training documents hold no words", hint="check the text column")
        if len(phrases) > self.fit_phrases:
            rng = np.random.default_rng([seed % 2**63, 0x7E87])
            chosen = np.sort(rng.choice(len(phrases), self.fit_phrases, replace=False))
            phrases = [phrases[index] for index in chosen]
        self._learn(phrases, seed)

    def encode(self, contents: Sequence[Any]) -> Encoded:
        trees = [segment_tree(document, self.num_capsules, self.num_children) for document in contents]
        phrases = [phrase for segments, _ in trees for phrase in _flat(segments)]
        real = np.asarray([bool(phrase) for phrase in phrases])
        children = np.zeros((len(phrases), self.dim), dtype=np.float32)
        if real.any():
            vectors = self._vectors([phrase for phrase in phrases if phrase])
            children[real, : vectors.shape[1]] = vectors
        shape = (len(contents), self.num_capsules, self.num_children)
        mask = real.reshape(shape)
        # A sample needs at least one capsule that is not padding, even where the document is empty.
        mask[~mask.any(axis=(1, 2)), 0, 0] = True
        parents = np.asarray([parents for _, parents in trees], dtype=np.int64)
        return Encoded(children.reshape(*shape, self.dim), mask, parents=parents)


def _flat(segments: list[list[str]]) -> list[str]:
    return [phrase for phrases in segments for phrase in phrases]
