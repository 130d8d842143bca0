"""All initial values, in one place."""

from __future__ import annotations

import math

import torch
from torch import nn

from trm_core.config.schema import ArchConfig
from trm_core.model.layers import Block, truncated_normal_
from trm_core.model.memory import MemoryBank
from trm_core.model.token_embedding import TokenEmbedding

FIRST_HALT_LOGIT = -5.0  # of the linear Q-head: no row halts before anything is learned (as in public TRM and HRM code)


def initialise(model: nn.Module, arch: ArchConfig) -> None:
    """Set every parameter. Standard deviations of truncated normals are those before the cut (`truncated_normal_`), and
    are multiplied by `init_scale`.

    | parameter                          | initial value                                               |
    | ---------------------------------- | ----------------------------------------------------------- |
    | linear weights                     | truncated normal, 1/sqrt(fan_in)                            |
    | linear biases                      | 0                                                           |
    | attention.out, ffn.down            | residual_init_scale/sqrt(fan_in): f starts near the identity |
    | positions                          | normal, 1 (as large as z)                                   |
    | opened_mark                        | normal, 1                                                   |
    | answer head                        | 0: the first loss is ln V; puzzles: as any linear weight    |
    | tokens, positions of puzzles       | truncated normal, 1/sqrt(hidden_size), scaled up where read |
    | puzzle embeddings                  | 0                                                           |
    | linear halt and continue logits    | weights 0, biases -5                                        |
    | outputs of Q, halt and cmi heads   | 0: no action is preferred before anything is learned        |
    | outputs of the mtp heads           | 0, as in the answer head                                    |
    | memory gate, query                 | 0; the key projection, so that like finds like              |
    | first z_H, z_L                     | truncated normal, 1, fixed                                  |
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            truncated_normal_(module.weight, arch.init_scale / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            for matrix in (module.mix_output.weight, module.ffn.down.weight):
                with torch.no_grad():
                    matrix.mul_(arch.residual_init_scale)
        elif isinstance(module, MemoryBank):
            module.reset_parameters()
    puzzles = isinstance(model.embedding, TokenEmbedding)
    small = arch.init_scale / math.sqrt(arch.hidden_size)
    linear = arch.q_head_type == "linear"
    for name, parameter in model.named_parameters():
        if name.startswith("embedding.") and puzzles:
            truncated_normal_(parameter, small)
        elif name.endswith(("embedding.position", "embedding.opened_mark")):
            nn.init.normal_(parameter, std=1.0)
        elif linear and name in ("q_head.halt_net.bias", "q_head.continue_net.bias"):
            nn.init.constant_(parameter, FIRST_HALT_LOGIT)
        elif linear and name.startswith("q_head."):
            nn.init.zeros_(parameter)
        elif name.startswith("answer.output") and puzzles:
            continue
        elif name.startswith(
            (
                "answer.output",
                "mtp.depths.",
                "q_head.value_net.output",
                "q_head.halt_net.output",
                "q_head.continue_net.output",
                "cmi_head.net.output",
            )
        ):
            nn.init.zeros_(parameter)
    for name, buffer in model.named_buffers():
        if name in ("first_z_H", "first_z_L"):
            truncated_normal_(buffer, arch.init_scale)
