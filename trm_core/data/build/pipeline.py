"""From raw sources to one capsule file, in passes over the source: scan, fit, encode, write.

No large source is ever held in memory: the scan keeps a digest, a label and a split per sample, fitting sees a bounded
sample of the training split, encoding works on chunks that are kept on disk until the file is written. A build that was
killed resumes from those chunks; its result is bit for bit that of an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trm_core.config.schema import BuildConfig
from trm_core.data.build.adopted import Adopted
from trm_core.data.build.augment import Augmentation, GridCopies, PictureCopies
from trm_core.data.build.chunks import WORKER_IMPORTS, Coder, chunk_list, encode_all
from trm_core.data.build.detect import detect_kind
from trm_core.data.build.encoders import Layout
from trm_core.data.build.fingerprint import build_fingerprint, source_sha256
from trm_core.data.build.fitting import fit_all
from trm_core.data.build.modality import Modality, open_modality, record_encoder
from trm_core.data.build.output import write_file
from trm_core.data.build.plan import make_plan
from trm_core.data.build.records import Log, Progress, silent
from trm_core.data.build.report import BuildReport
from trm_core.data.build.work import WorkDir, locked
from trm_core.data.fields import CONCEPTS_SHA256
from trm_core.data.store.reader import open_capsules
from trm_core.data.workers import started_workers
from trm_core.errors import ConfigError, DataError, UsageError

_MAX_CHECKSUM_DIM = 64


def build_capsules(
    sources: Sequence[str],
    out: Path,
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BuildReport:
    """Build the capsule file `out` from `sources` (paths, or "digits").

    `progress(stage, done, total)` is called often (total 0: unknown); `log` gets one line per decision; `should_stop`
    is asked between chunks and ends the build with `StoppedEarly`, state saved. Raises `DataError` for faults of a
    source (nothing is left behind), `ConfigError` for settings that contradict it, `UsageError` if `out` exists.
    """
    if not sources:
        raise UsageError("no source given", hint="name a file, a folder, or digits")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already", hint="give --overwrite, or another --out")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder", hint="name a file, such as " + str(out / "capsules.h5"))
    with locked(out.with_name(out.name + ".lock"), log or silent, wait=False):
        return build_under_lock(
            sources, out, config, progress=progress, overwrite=overwrite, log=log, should_stop=should_stop
        )


def build_under_lock(
    sources: Sequence[str],
    out: Path,
    config: BuildConfig,
    *,
    progress: Progress | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> BuildReport:
    """`build_capsules` for a caller that already holds the output's lock and has checked whether `out` exists."""
    return _build(list(sources), out, config, progress or _no_progress, overwrite, log or silent, should_stop or _never)


def _build(
    sources: list[str],
    out: Path,
    config: BuildConfig,
    progress: Progress,
    overwrite: bool,
    log: Log,
    should_stop: Callable[[], bool],
) -> BuildReport:
    started = time.monotonic()
    messages: list[str] = []

    def say(message: str) -> None:
        messages.append(message)
        log(message)

    adopted = None if config.encoders_of is None else Adopted.of(Path(config.encoders_of))
    if adopted is not None:
        config = adopted.settings(config)
    modalities = _open(sources, config, say)
    hashes = [source_sha256(source) for source in sources]
    work = WorkDir(out.with_name(out.name + ".work"), build_fingerprint(hashes, config), say)
    try:
        layouts = _layouts(modalities, config) if adopted is None else adopted.take(modalities)
        plan = make_plan(modalities, config, progress, say, None if adopted is None else adopted.classes)
        # The workers start up while this process fits.
        with started_workers(config.workers, "data.build.workers", WORKER_IMPORTS) as workers:
            concepts = augmentation = None
            if adopted is None:
                concepts = fit_all(modalities, layouts, plan, config, work, progress, say)
                if concepts is None and config.num_concepts != BuildConfig.model_fields["num_concepts"].default:
                    say(f"data.build.num_concepts={config.num_concepts} has no effect: the targets are labels")
                augmentation = choose_augmentation({modality.kind for modality in modalities}, config)
            coder = Coder([modality.encoder for modality in modalities], layouts, concepts, augmentation)
            chunks = chunk_list(plan, layouts[0], augmentation)
            reused = encode_all(modalities, coder, chunks, plan, work, workers, progress, should_stop)
        if reused:
            say(f"continued an earlier run: {reused} of {len(chunks)} chunks were done")
        paths = [(number, path) for number, modality in enumerate(modalities) for path in modality.paths]
        manifest = {
            "kind": "+".join(modality.kind for modality in modalities),
            "kind_reason": "; ".join(modality.reason for modality in modalities),
            "encoder": "+".join(modality.encoder.name for modality in modalities),
            "encoder_settings": [
                modality.encoder.settings() | {"sketch": layout.sketch}
                for modality, layout in zip(modalities, layouts, strict=True)
            ],
            "build": config.model_dump(mode="json"),
            "seed": config.seed,
            "sources": [
                {"path": path, "sha256": hashes[sources.index(path)], "rows": rows, "modality": number}
                for (number, path), rows in zip(paths, plan.source_rows, strict=True)
            ],
            "checksum_seed": layouts[0].checksum_seed if layouts[0].checksum_dim and layouts[0].num_children else None,
            CONCEPTS_SHA256: None if concepts is None else concepts.sha256(),
            "modalities": [modality.kind for modality in modalities],
            "input_shape": [modality.encoder.settings() for modality in modalities],
            "duplicates_in_source": plan.duplicates,
        }
        written = write_file(
            out,
            chunks,
            layouts[0],
            plan,
            None if concepts is None else concepts.count,
            adopted.prices if adopted is not None else modalities[0].prices if len(modalities) == 1 else None,
            config,
            work,
            manifest,
            [record_encoder(modality, layout) for modality, layout in zip(modalities, layouts, strict=True)],
            overwrite,
            progress,
            say,
        )
    except (DataError, ConfigError):
        # The source or the settings have to change, and then these chunks are useless.
        work.remove()
        raise
    work.remove()
    built = open_capsules(out)
    layout = layouts[0]
    report = BuildReport(
        path=out,
        kind=str(manifest["kind"]),
        reason=str(manifest["kind_reason"]),
        encoder=str(manifest["encoder"]),
        counts=written.counts,
        num_capsules=layout.num_capsules,
        num_children=layout.num_children,
        dim=layout.dim,
        checksum_dim=layout.checksum_dim,
        task=written.target.task,
        num_classes=written.target.num_classes,
        class_names=written.target.class_names,
        duplicates=plan.duplicates,
        expansion_value=written.expansion_value,
        content_hash=str(built.manifest["content_hash"]),
        bytes=out.stat().st_size,
        seconds=time.monotonic() - started,
        chunks=len(chunks),
        reused_chunks=reused,
        messages=messages,
    )
    built.close()
    return report


def _open(sources: list[str], config: BuildConfig, log: Log) -> list[Modality]:
    """Detect every source's kind and open sources of one kind together, in the order of their first source."""
    by_kind: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for source in sources:
        if sources.count(source) > 1:
            raise UsageError(f"{source}: given twice")
        kind, reason = detect_kind(source, config)
        log(f"{source}: {kind} ({reason})")
        by_kind.setdefault(kind, []).append(source)
        reasons.setdefault(kind, reason)
    refuse_unused(set(by_kind), config)
    if config.prices and list(by_kind) != ["table"]:
        raise ConfigError("data.build.prices names table groups, but the source is " + "+".join(by_kind))
    found = [open_modality(kind, reasons[kind], paths, config, log) for kind, paths in by_kind.items()]
    for modality in found if len(found) > 1 else ():
        if modality.prices is not None:
            log(f"{modality.paths[0]}: not used: prices (a file of several kinds has one price for all capsules)")
    return found


_FOR = {
    "label": {"text", "table", "arc", "images", "digits", "arrays", "legacy"},
    "text": {"text", "table"},  # for tables it is refused with a hint of its own
    "groups": {"table"},
    "image_size": {"images", "digits"},  # likewise for digits
    "augment_shift": {"images", "digits"},
    "augment_warps": {"images", "digits"},
    "augment_grids": {"arc"},
}


def refuse_unused(kinds: set[str], config: BuildConfig) -> None:
    """ConfigError for a setting that no source of these kinds uses."""
    for name, heeding in _FOR.items():
        if getattr(config, name) != BuildConfig.model_fields[name].default and not heeding & kinds:
            raise ConfigError(
                f"data.build.{name} is for {' and '.join(sorted(heeding))}, not for {' and '.join(sorted(kinds))}",
                hint="leave it out, or say with data.build.kind what the source is",
            )


def _layouts(modalities: list[Modality], config: BuildConfig) -> list[Layout]:
    """One shape for the whole file; only the way sketches are made may differ between modalities."""
    encoders = [modality.encoder for modality in modalities]
    k, m, dim = (
        max(values) for values in zip(*((e.num_capsules, e.num_children, e.dim) for e in encoders), strict=True)
    )
    if m and any(encoder.num_children == 0 for encoder in encoders):
        raise ConfigError("a source without children cannot be mixed with sources that have them")
    checksum_dim = min(_MAX_CHECKSUM_DIM, m * dim) if config.checksum_dim == "auto" else config.checksum_dim
    if m == 0:
        checksum_dim = encoders[0].given_checksums if len(encoders) == 1 else 0
    sketches = [encoder.default_sketch if config.sketch == "auto" else config.sketch for encoder in encoders]
    if config.sketch_dims != "auto" and "leading" not in sketches:
        raise ConfigError(
            f"data.build.sketch_dims={config.sketch_dims} is for sketch leading, and the sketch is {sketches[0]}",
            hint="leave it out, or set data.build.sketch=leading",
        )
    if config.sketch_dims != "auto" and config.sketch_dims > dim:
        raise ConfigError(f"data.build.sketch_dims={config.sketch_dims} exceeds the width of {dim}", hint="lower it")
    masked = any(encoder.masks or encoder.num_capsules < k for encoder in encoders)
    return [
        Layout(
            num_capsules=k,
            num_children=m,
            dim=dim,
            checksum_dim=checksum_dim,
            sketch=sketch,
            checksum_seed=config.seed % 2**31,
            dtype=np.dtype(config.dtype).name,
            with_mask=masked,
            with_parents=any(encoder.parents for encoder in encoders),
            sketch_dims=max(1, encoder.dim // 4) if config.sketch_dims == "auto" else config.sketch_dims,
        )
        for encoder, sketch in zip(encoders, sketches, strict=True)
    ]


def choose_augmentation(kinds: set[str], config: BuildConfig) -> Augmentation | None:
    """The augmentation of training samples of these kinds; None for none."""
    if kinds <= {"digits", "images"} and (config.augment_shift or config.augment_warps):
        return PictureCopies(config.augment_shift, config.augment_warps, config.seed)
    if kinds == {"arc"} and config.augment_grids:
        return GridCopies(config.augment_grids, config.seed)
    return None


def _no_progress(stage: str, done: int, total: int) -> None:
    """For callers that want no progress reports."""


def _never() -> bool:
    return False
