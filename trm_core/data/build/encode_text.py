"""Phrases to vectors without any download: tf-idf or hashing of words and character n-grams, then truncated SVD.

Vectors are scaled so that a training phrase has RMS 1 per dimension.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from trm_core.data.build.encoders import State
from trm_core.data.build.phrases import PhraseEncoder
from trm_core.data.build.recorded import Arrays, Spec, as_bytes
from trm_core.errors import DataError

_MAX_WORDS = 20_000
_MAX_CHARACTER_GRAMS = 20_000
_HASHED = 1 << 16


class _SvdTextEncoder(PhraseEncoder):
    """SVD and scaling; subclasses provide the sparse features of a list of phrases."""

    def __init__(self, num_capsules: int, num_children: int, dim: int) -> None:
        super().__init__(num_capsules, num_children, dim)
        self._components = np.zeros((0, 0), dtype=np.float32)
        self._scale = np.ones((), dtype=np.float32)
        self._kept = 0.0

    def _learn_features(self, phrases: list[str]) -> Any:
        """Learn from the phrases; returns what `_features` then makes of them."""
        raise NotImplementedError

    def _features(self, phrases: list[str]) -> Any:
        """Sparse float matrix [phrases, features]."""
        raise NotImplementedError

    def _feature_state(self) -> State:
        raise NotImplementedError

    def _load_features(self, arrays: Arrays) -> int:
        """Restore what `_feature_state` gave; returns the number of features."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: Spec) -> Self:
        sizes = spec.whole("num_capsules"), spec.whole("num_children"), spec.whole("dim")
        spec.close()
        return cls(*sizes)

    def _learn(self, phrases: list[str], seed: int) -> None:
        from sklearn.decomposition import TruncatedSVD

        features = self._learn_features(phrases)
        components = min(self.dim, features.shape[1] - 1, len(phrases) - 1)
        if components < 1:
            raise DataError("the training documents hold too few different words to learn from")
        svd = TruncatedSVD(components, n_iter=4, random_state=seed % 2**32)
        coded = svd.fit_transform(features)
        rms = float(np.sqrt(np.mean(coded**2)))
        self._components = svd.components_.astype(np.float32)
        self._scale = np.asarray(1.0 / rms if rms > 0 else 1.0, dtype=np.float32)
        self._kept = float(np.nan_to_num(svd.explained_variance_ratio_).sum())  # NaN: all phrases are identical

    def _vectors(self, phrases: list[str]) -> np.ndarray:
        vectors: np.ndarray = (self._features(phrases) @ self._components.T) * self._scale
        return vectors

    def state(self) -> State:
        own = {"components": self._components, "scale": self._scale, "kept": np.asarray(self._kept)}
        return own | self._feature_state()

    def load_state(self, state: State) -> None:
        with Arrays(state) as arrays:
            width = self._load_features(arrays)
            self._components = arrays.take("components", "float32", (None, width))
            self._scale = arrays.take("scale", "float32", ())
            self._kept = float(arrays.take("kept", "float64", ()))
        if len(self._components) > self.dim:
            raise DataError(f"array components has {len(self._components)} rows, more than the {self.dim} of dim")

    def settings(self) -> dict[str, Any]:
        return {"components": len(self._components), "variance_kept": round(self._kept, 4)}


class TfidfSvdEncoder(_SvdTextEncoder):
    """Words and pairs of words, and character 3- and 4-grams within words, weighted by tf-idf."""

    name = "tfidf-svd"

    def __init__(self, num_capsules: int, num_children: int, dim: int) -> None:
        super().__init__(num_capsules, num_children, dim)
        self._state: State = {}
        self._vectorizers: list[Any] | None = None

    def _learn_features(self, phrases: list[str]) -> Any:
        from scipy.sparse import hstack

        least = 2 if len(phrases) >= 1000 else 1
        state: State = {}
        features = []
        for name, settings, limit in _VIEWS:
            vectorizer = _tfidf(settings | {"min_df": least, "max_features": limit})
            try:
                features.append(vectorizer.fit_transform(phrases))
            except ValueError:
                raise DataError("the training documents hold no words", hint="check the text column") from None
            terms = vectorizer.get_feature_names_out()
            # Joined by a character that no term can hold.
            state[f"{name}_terms"] = as_bytes("\n".join(terms))
            state[f"{name}_idf"] = vectorizer.idf_.astype(np.float64)
        self._state, self._vectorizers = state, None
        learned = hstack(features, format="csr")
        learned.sort_indices()  # as in `_features`, so that sums run in the same order
        return learned

    def _features(self, phrases: list[str]) -> Any:
        from scipy.sparse import hstack

        if self._vectorizers is None:
            self._vectorizers = [_restored(settings, name, self._state) for name, settings, _ in _VIEWS]
        return hstack([vectorizer.transform(phrases) for vectorizer in self._vectorizers], format="csr")

    def _feature_state(self) -> State:
        return self._state

    def _load_features(self, arrays: Arrays) -> int:
        state: State = {}
        width = 0
        for name, _, limit in _VIEWS:
            terms = arrays.text(f"{name}_terms").split("\n")
            if len(terms) > limit or len(set(terms)) < len(terms) or "" in terms:
                raise DataError(f"array {name}_terms does not hold up to {limit} different terms")
            state[f"{name}_terms"] = as_bytes("\n".join(terms))
            state[f"{name}_idf"] = arrays.take(f"{name}_idf", "float64", (len(terms),))
            width += len(terms)
        self._state, self._vectorizers = state, None
        return width

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_vectorizers": None}

    def settings(self) -> dict[str, Any]:
        terms = {f"{name}_terms": len(self._state.get(f"{name}_idf", ())) for name, _, _ in _VIEWS}
        return super().settings() | terms


class HashingSvdEncoder(_SvdTextEncoder):
    """The same n-grams, hashed: without a vocabulary, for sources of any size."""

    name = "hashing-svd"

    def _learn_features(self, phrases: list[str]) -> Any:
        return self._features(phrases)  # hashing learns nothing

    def _features(self, phrases: list[str]) -> Any:
        from scipy.sparse import hstack
        from sklearn.feature_extraction.text import HashingVectorizer

        views = [HashingVectorizer(n_features=_HASHED, **settings) for _, settings, _ in _VIEWS]
        return hstack([view.transform(phrases) for view in views], format="csr")

    def _feature_state(self) -> State:
        return {}

    def _load_features(self, arrays: Arrays) -> int:
        return len(_VIEWS) * _HASHED


_VIEWS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("word", {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"}, _MAX_WORDS),
    ("character", {"analyzer": "char_wb", "ngram_range": (3, 4)}, _MAX_CHARACTER_GRAMS),
)


def _tfidf(settings: dict[str, Any]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **settings)


def _restored(settings: dict[str, Any], name: str, state: State) -> Any:
    terms = state[f"{name}_terms"].tobytes().decode().split("\n")
    vectorizer = _tfidf(settings | {"vocabulary": {term: index for index, term in enumerate(terms)}})
    vectorizer.idf_ = state[f"{name}_idf"]
    return vectorizer
