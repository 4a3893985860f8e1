"""How a model trades memory for time.

Nothing here changes what is computed, but for which elements dropout happens to drop: a tile and a
group of heads have masks of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lsp.core.errors import require, unknown_choice

RESIDUALS = ("auto", "reversible", "recomputed", "stored")


@dataclass
class MemoryConfig:
    """Execution options of a native model; none is part of the published `config.json`.

    Attributes:
        residual: What is kept per layer for the backward pass. `reversible`: nothing, the inputs
            are computed back from the outputs. `recomputed`: the inputs. `stored`: everything,
            as plain autograd does. `auto`: as little as the architecture allows.
        feed_forward_tiles: Tiles of the sequence in a feed-forward layer; 0 chooses from the sizes.
        head_tiles: Tiles of the sequence in the language-model head; 0 chooses from the sizes.
        attention_groups: Groups of attention heads evaluated one after the other; 0 chooses.
        tile_megabytes: Size that the largest intermediate of a tile should stay below; 0 chooses
            2 on a CPU, whose caches are small, and 64 on a GPU, which wants large matrices.
        measure_drift: Whether to compare what the reversible stack computes back with what it
            was given.
    """

    residual: str = "auto"
    feed_forward_tiles: int = 0
    head_tiles: int = 0
    attention_groups: int = 0
    tile_megabytes: float = 0.0
    measure_drift: bool = False

    def __post_init__(self) -> None:
        if self.residual not in RESIDUALS:
            raise unknown_choice("memory.residual", self.residual, RESIDUALS)
        for key in ("feed_forward_tiles", "head_tiles", "attention_groups"):
            value = getattr(self, key)
            require(value >= 0, f"memory.{key}={value} has to be 0 (automatic) or more")
        require(
            self.tile_megabytes >= 0,
            f"memory.tile_megabytes={self.tile_megabytes} has to be 0 (automatic) or more",
        )

    def settled(self, possible: Sequence[str]) -> MemoryConfig:
        """A copy for an architecture that can keep its layers in some ways, the leanest first.

        Raises:
            UserError: It cannot keep them in the way that is asked for.
        """
        check_residual(self.residual, possible)
        residual = possible[0] if self.residual == "auto" else self.residual
        return replace(self, residual=residual)

    def tile_bytes(self, device_type: str) -> int:
        """The budget of a tile's largest intermediate."""
        return int((self.tile_megabytes or (2 if device_type == "cpu" else 64)) * 2**20)

    def head_tiles_for(
        self, rows: int, length: int, width: int, vocab_size: int, device_type: str
    ) -> int:
        """Tiles of a language-model head: scores within budget, or as large as its weight.

        Every tile reads the whole weight and adds to its gradient. With fewer positions than a
        token's vector is long, that takes longer than the product itself.

        Args:
            rows: In a batch.
            length: Positions of a row.
            width: Of the hidden states that the head reads.
            vocab_size: Scores of a position.
            device_type: `cpu` or `cuda`.
        """
        if self.head_tiles:
            return self.head_tiles
        scores = 4 * rows * length * max(vocab_size, width)  # in fp32
        return min(self.tiles_for(scores, device_type), -(-rows * length // width))

    def tiles_for(self, num_bytes: int, device_type: str) -> int:
        """Number of tiles that keeps an intermediate of `num_bytes` below the budget."""
        return -(-num_bytes // self.tile_bytes(device_type))


def check_residual(residual: str, possible: Sequence[str]) -> None:
    """Refuses a way to keep layers that an architecture does not have.

    Raises:
        UserError: It is not among the possible ones.
    """
    require(
        residual in ("auto", *possible),
        f"memory={residual} is not possible with this architecture: use auto or "
        f"{' or '.join(possible)}; a Longformer of two streams, which is another model, has it "
        "with architecture.residual=reversible",
    )


@contextmanager
def as_if(memory: MemoryConfig, other: MemoryConfig | None) -> Iterator[None]:
    """For as long as it lasts, layers that share `memory` cut themselves up by `other`.

    Args:
        memory: The object that they share; afterwards as before.
        other: Settled; None for no change.
    """
    own = vars(memory).copy()
    vars(memory).update(vars(other or memory))
    try:
        yield
    finally:
        vars(memory).update(own)
