"""The second pass: fit encoders and concepts on a bounded, seeded sample of the training split.

Whatever is fitted is kept in the work directory, so that a build resumed after a kill uses the very same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.concepts import Concepts, capsules_to_fit, fit_concepts
from trm_core.data.build.encoders import Layout
from trm_core.data.build.modality import Modality
from trm_core.data.build.plan import Plan, stream
from trm_core.data.build.records import Log, Progress
from trm_core.data.build.splits import TRAIN
from trm_core.data.build.work import WorkDir
from trm_core.data.threads import one_thread

_ENCODE_BYTES = 16 << 20


def fit_all(
    modalities: list[Modality],
    layouts: list[Layout],
    plan: Plan,
    config: BuildConfig,
    work: WorkDir,
    progress: Progress,
    log: Log,
) -> Concepts | None:
    """Fit every encoder in place and return the concepts, or None where the source has labels."""
    want_concepts = plan.labels is None and all(modality.encoder.label_rank != 2 for modality in modalities)
    stored = work.load_fitted()
    if stored is not None:
        for number, modality in enumerate(modalities):
            prefix = f"encoder{number}/"
            modality.encoder.load_state({k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)})
        return Concepts(stored["concepts"]) if want_concepts else None
    with one_thread():
        concepts, fitted = _fit(modalities, layouts, plan, config, want_concepts, progress, log)
    work.save_fitted(fitted)
    progress("fit", len(modalities), len(modalities))
    return concepts


def _fit(
    modalities: list[Modality],
    layouts: list[Layout],
    plan: Plan,
    config: BuildConfig,
    want_concepts: bool,
    progress: Progress,
    log: Log,
) -> tuple[Concepts | None, dict[str, np.ndarray]]:
    """Fit encoders in place; returns the concepts, and the arrays that hold everything learned."""
    fitted: dict[str, np.ndarray] = {}
    capsules: list[np.ndarray] = []
    for number, (modality, layout) in enumerate(zip(modalities, layouts, strict=True)):
        progress("fit", number, len(modalities))
        rng = np.random.default_rng([config.seed % 2**63, 0xF17, number])
        contents = _sample(modality, plan, number, rng)
        modality.encoder.fit(contents, config.seed)
        fitted |= {f"encoder{number}/{name}": values for name, values in modality.encoder.state().items()}
        if want_concepts:
            capsules.append(_details(modality, layout, contents, config.num_concepts, rng))
    concepts = fit_concepts(np.concatenate(capsules), config.num_concepts, config.seed, log) if want_concepts else None
    if concepts is not None:
        fitted["concepts"] = concepts.centres
    return concepts, fitted


def detail_of(fields: dict[str, np.ndarray]) -> np.ndarray:
    """What concepts are clusters of: the flattened children [n, k, m * D], or the sketches where there are none."""
    if "children" in fields:
        children = fields["children"]
        return children.reshape(*children.shape[:2], -1)
    return fields["sketches"]


def _sample(modality: Modality, plan: Plan, number: int, rng: np.random.Generator) -> list[Any]:
    """At most `encoder.fit_rows` training samples of a modality, in source order."""
    start, stop = plan.starts[number], plan.starts[number + 1]
    training = np.flatnonzero(plan.split[start:stop] == TRAIN)
    if len(training) > modality.encoder.fit_rows:
        training = np.sort(rng.choice(training, modality.encoder.fit_rows, replace=False))
    wanted = np.zeros(stop - start, dtype=bool)
    wanted[training] = True
    return [_own(record.content) for record, take in zip(stream(modality, stop - start), wanted, strict=True) if take]


def _own(content: Any) -> Any:
    """A copy of content that is a view, because a view would keep a larger block of the source in memory."""
    if isinstance(content, Mapping):
        return {name: _own(values) for name, values in content.items()}
    return content.copy() if isinstance(content, np.ndarray) else content


def _details(
    modality: Modality, layout: Layout, contents: Sequence[Any], num_concepts: int, rng: np.random.Generator
) -> np.ndarray:
    """Full detail of a bounded sample of real capsules, float32 [n, width]."""
    width = max(1, layout.num_children) * layout.dim
    limit = capsules_to_fit(num_concepts, width)
    rows = min(len(contents), -(-2 * limit // layout.num_capsules))
    chosen = np.sort(rng.choice(len(contents), rows, replace=False))
    step = max(1, _ENCODE_BYTES // (4 * layout.num_capsules * width))
    found: list[np.ndarray] = []
    for begin in range(0, rows, step):
        fields = layout.finish(modality.encoder.encode([contents[row] for row in chosen[begin : begin + step]]))
        detail = detail_of(fields)
        found.append(detail[fields["mask"]] if "mask" in fields else detail.reshape(-1, detail.shape[-1]))
    capsules = np.concatenate(found)
    if len(capsules) > limit:
        capsules = capsules[np.sort(rng.choice(len(capsules), limit, replace=False))]
    return capsules.astype(np.float32)
