"""Looking on while a stack runs: what goes into each layer, and what its attention sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lsp.models.layers.reversible import Drift, add_branch, run_stack
from lsp.models.layers.sequential import Block, run_blocks
from lsp.models.layers.tiling import Autocast


class Trace:
    """Runs stacks whose layers are an attention and a feed-forward, in turns.

    Attributes:
        hidden_states: (B, L, D) what the attention of each layer was given, and after the last
            layer what the next would be; empty if not asked for.
        seen: What `look` gave for each layer.
    """

    def __init__(
        self, *, hidden_states: bool, look: Callable[[Any, torch.Tensor, Any], Any] | None
    ) -> None:
        """What to note.

        Args:
            hidden_states: Whether to keep the streams.
            look: `look(attention, x_BLD, memo)`, called for each layer once it has run.
        """
        self._states, self._look = hidden_states, look
        self.hidden_states: list[torch.Tensor] = []
        self.seen: list[Any] = []

    def run_blocks(
        self,
        x_BLD: torch.Tensor,
        blocks: Sequence[Block],
        memos: Sequence[Any],
        *,
        recompute: bool = True,
    ) -> torch.Tensor:
        """As `sequential.run_blocks`. What was noted belongs to the same graph."""
        for first in range(0, len(blocks), 2):
            layer = slice(first, first + 2)
            after = run_blocks(x_BLD, blocks[layer], memos[layer], recompute=recompute)
            self._note(x_BLD, blocks[first], memos[first])
            x_BLD = after
        self._note(x_BLD)
        return x_BLD

    def run_stack(
        self,
        x_BLD: torch.Tensor,
        branches: Sequence[Any],
        memos: Sequence[Any],
        *,
        residual: str = "reversible",
        drift: Drift | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `reversible.run_stack`. What was noted belongs to no graph: nothing inside is kept.

        Where gradients are wanted, the stack runs once more for them.
        """
        with torch.no_grad(), Autocast(x_BLD.device.type)():
            first, second = x_BLD.clone(), x_BLD.clone()
            for k in range(0, len(branches), 2):
                add_branch(branches[k], memos[k], second, first)
                self._note(second.clone(), branches[k], memos[k])
                add_branch(branches[k + 1], memos[k + 1], first, second)
            self._note(second.clone())
        if torch.is_grad_enabled():
            return run_stack(x_BLD, branches, memos, residual=residual, drift=drift)
        return first, second

    def _note(self, x_BLD: torch.Tensor, attention: Any = None, memo: Any = None) -> None:
        if self._states:
            self.hidden_states.append(x_BLD)
        if self._look is not None and attention is not None:
            self.seen.append(self._look(attention, x_BLD, memo))
