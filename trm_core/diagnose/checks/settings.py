"""Questions about a config that several checks ask."""

from __future__ import annotations

import math

from trm_core.diagnose.evidence import Evidence


def halts_on_whole_answers(evidence: Evidence) -> bool:
    """Whether the halt logit learns if all answers of a row are right. With a label per capsule it learns the share of
    right answers. False without data, because it is then unknown.
    """
    return evidence.data is not None and (evidence.data.file.task == "tokens" or evidence.data.file.label_rank == 1)


def has_policy(evidence: Evidence) -> bool:
    """Whether this run learns a policy. `auto` does when there is something to open."""
    config = evidence.settings
    if config.dqn.enabled != "auto":
        return config.dqn.enabled
    return config.arch.enable_capsule_expansion is not False and evidence.file_has_children is not False


def can_expand(evidence: Evidence) -> bool:
    return evidence.settings.arch.enable_capsule_expansion is not False and evidence.file_has_children is not False


def slower(evidence: Evidence, factor: float) -> dict[str, float]:
    """Overrides that divide every learning rate of the model by `factor`."""
    training = evidence.settings.training
    fix = {"training.base_lr": training.base_lr / factor}
    if training.optimizer == "muon":
        fix["training.muon_lr"] = training.muon_lr / factor
    return fix


def went_on(evidence: Evidence) -> bool:
    """Whether training was resumed; its first lines may then have been logged under other settings."""
    return evidence.run is not None and len(evidence.run.starts) > 1


def begun_at(evidence: Evidence) -> float:
    """First step of the newest start; infinite if it is unknown."""
    if evidence.run is None or not went_on(evidence):
        return 0
    step = evidence.run.last_start.get("step")
    return step + 1 if isinstance(step, int) else math.inf
