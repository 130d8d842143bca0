"""What the network has to know about the data it reads and the answers it gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataShape:
    """Sizes, in the symbols of docs/decision-process.md. A puzzle's cells are capsules whose sketch is a token."""

    num_capsules: int  # k; tokens of a puzzle
    dim: int  # D; 0: puzzles
    num_children: int  # m; 0: none
    checksum_dim: int  # R; 0: none
    num_classes: int  # V
    label_rank: int  # 1: labels [N], one answer per row; 2: labels [N, k], one answer per capsule
    total_price: float  # cost of opening every capsule
    has_parents: bool = False
    vocab_size: int = 0  # tokens that a puzzle is written in; 0: capsules
    num_puzzles: int = 0  # puzzle identifiers

    @property
    def answers(self) -> int:
        """Answers per row: 1 or k."""
        return 1 if self.label_rank == 1 else self.num_capsules

    @property
    def tokens(self) -> bool:
        """Whether the rows are puzzles."""
        return self.vocab_size > 0
