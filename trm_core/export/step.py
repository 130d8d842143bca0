"""One reasoning step and the decision after it as a single graph: tensors in, tensors out, no branch on values.

The caller keeps the loop: pass in the state, do what `action` says, fetch the children of the capsules in `opening`,
drop the rows that halt, and go on with the rest. Inputs and outputs are only those that a model has:

| input | shape | |
| --- | --- | --- |
| `z_H`, `z_L` | [B, K, hidden] | from the step before; at first config.json's `first` in every place |
| `q_memory` | [B, width] | recurrent Q-heads; at first zeros |
| `steps` | [B] int64 | reasoning steps done, this one included |
| `price` | [B] | reward per price unit; `price_level` of config.json |
| `sketches` | [B, k, D] | capsules |
| `tokens`, `puzzles` | [B, k] int64, [B] int64 | puzzles, and their identifiers where they have an embedding |
| `children`, `expanded` | [B, k, m, D], [B, k] bool | zeros where not opened |
| `mask` | [B, k] bool | models that were trained with padding; false: padding |
| `parents` | [B, k] int64 | hierarchical attention; -1: a root |
| `checksums` | [B, k, R] | `checksum` selection |

Outputs: the next `z_H`, `z_L`, `q_memory`; `logits` [B, P, V]; `confidence` and `halt_logit` [B]; `q_values` [B, A] and
`cycles` [B]; `action` [B] (0 continue, 1 halt, 2 expand) and, where there is something to open, `opening` [B, k] bool.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trm_core.dqn.actions import Action, act_continues, affordable, greedy, valid_actions
from trm_core.dqn.selectors import READING_DETAIL, choose_capsules, selection_scores
from trm_core.errors import UsageError
from trm_core.inference.trained import Trained
from trm_core.model.capsule_state import CapsuleState
from trm_core.model.q_head import largest_probability

Tensors = dict[str, Tensor]
NOT_IN_A_GRAPH = ("random", *READING_DETAIL)  # `random` needs a source of numbers


class ReasoningStep(nn.Module):
    """The step of one model, acting as it learned to (by its halt output where it has no Q-learning)."""

    prices: Tensor

    def __init__(self, trained: Trained) -> None:
        """Raises UsageError for a selector that cannot be put into a graph."""
        super().__init__()
        self.model, self.dqn, self.max_steps = trained.model, trained.dqn, trained.max_steps
        self.puzzles = trained.puzzles
        self.opens = trained.can_expand and self.model.q_head.num_actions > 2
        if self.opens and self.dqn.expansion_selector in NOT_IN_A_GRAPH:
            raise UsageError(
                f"dqn.expansion_selector={self.dqn.expansion_selector} cannot be exported as a graph",
                hint="--format safetensors, or a run with another selector",
            )
        self.input_names = input_names(trained)
        self.output_names = output_names(trained)
        self.register_buffer("prices", torch.as_tensor(trained.prices, device=trained.device), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Takes tensors in the order of `input_names`; returns those of `output_names`."""
        given = dict(zip(self.input_names, inputs, strict=True))
        found = self.step(given)
        return tuple(found[name] for name in self.output_names)

    def step(self, given: Tensors) -> Tensors:
        model, steps = self.model, given["steps"]
        sketches = given["tokens"] if "tokens" in given else given["sketches"]
        expanded = given.get("expanded")
        if expanded is None:
            expanded = torch.zeros(sketches.shape[:2], dtype=torch.bool, device=sketches.device)
        capsules = CapsuleState(
            sketches=sketches,
            children=given.get("children"),
            checksums=given.get("checksums"),
            mask=given.get("mask"),
            expanded=expanded,
            prices=self.prices,
            parents=given.get("parents"),
            puzzles=given.get("puzzles"),
        )
        q_memory = given["q_memory"] if "q_memory" in given else given["z_H"][:, 0, :0]
        output = model.forward_masked(given["z_H"], given["z_L"], capsules, steps, given["price"], q_memory)
        valid = valid_actions(capsules, steps, self.max_steps, model.q_head.num_actions, self.dqn.budget)
        found = {
            "z_H": output.z_H,
            "z_L": output.z_L,
            "q_memory": output.q_memory,
            "logits": output.logits.float(),
            "confidence": largest_probability(output.q_state),
            "halt_logit": output.halt_logit,
            "q_values": output.q_values,
            "cycles": output.cycles,
        }
        if not self.dqn.enabled:
            going = valid[:, Action.CONTINUE] & act_continues(output, model.halt_above)
            return found | {"action": torch.where(going, int(Action.CONTINUE), int(Action.HALT))}
        action = greedy(output.q_values, valid)
        if self.opens:
            scores = selection_scores(self.dqn.expansion_selector, model, output, capsules, sketches[:, :, 0])
            allowed = affordable(capsules, self.dqn.budget) & (action == Action.EXPAND)[:, None]
            opening = choose_capsules(scores, capsules, allowed, self.dqn.expand_count, self.dqn.budget)
            found |= {"opening": opening, "z_H": model.next_z_H(output.z_H, opening)}
        return found | {"action": action}

    def first_state(self, rows: int) -> Tensors:
        """z_H, z_L and q_memory before the first step."""
        z_H, z_L = self.model.first_latents(rows)
        found = {"z_H": z_H.contiguous(), "z_L": z_L.contiguous(), "q_memory": self.model.first_q_memory(rows)}
        return {name: value for name, value in found.items() if name in self.input_names}


def input_names(trained: Trained) -> list[str]:
    """Of this model's step, in order."""
    shape, head = trained.model.data, trained.model.q_head
    optional = {
        "sketches": not shape.tokens,
        "tokens": shape.tokens,
        "puzzles": shape.tokens and trained.model.positions > shape.num_capsules,
        "q_memory": head.recurrent_width > 0,
        "children": shape.num_children > 0,
        "expanded": shape.num_children > 0,
        "mask": trained.masked,
        "parents": shape.has_parents,
        "checksums": trained.can_expand and trained.dqn.expansion_selector == "checksum",
    }
    names = [
        "z_H",
        "z_L",
        "q_memory",
        "steps",
        "price",
        "sketches",
        "tokens",
        "puzzles",
        "children",
        "expanded",
        "mask",
        "parents",
        "checksums",
    ]
    return [name for name in names if optional.get(name, True)]


def output_names(trained: Trained) -> list[str]:
    """Of this model's step, in order."""
    names = ["z_H", "z_L", "logits", "confidence", "halt_logit", "q_values", "cycles", "action"]
    if trained.model.q_head.recurrent_width:
        names.insert(2, "q_memory")
    opens = trained.can_expand and trained.dqn.enabled and trained.model.q_head.num_actions > 2
    return [*names, "opening"] if opens else names
