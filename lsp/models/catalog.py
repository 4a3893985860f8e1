"""What `lsp architectures` says of each architecture; imports neither torch nor `transformers`."""

from __future__ import annotations

from dataclasses import dataclass

from lsp.models.hub.table import ROWS, HubRow

ANY_LENGTH = "any"


@dataclass(frozen=True)
class Entry:
    """An architecture that a run can have.

    Attributes:
        name: What it is called: the value of `architecture=`, or the published `model_type`.
        native: Whether it is written here, rather than taken from `transformers`.
        objectives: That it can be trained with, its paper's first.
        cost: Of attention in the length L of a row.
        longest: The longest row.
        documents: Whether several documents in a row are kept apart.
        sequence_parallel: Whether processes can share the positions of a row.
        tiled: What is computed a tile of positions at a time.
        kernels: Implementations of its attention.
        note: What else is to be known.
    """

    name: str
    native: bool
    objectives: tuple[str, ...]
    cost: str
    longest: str
    documents: bool
    sequence_parallel: bool
    tiled: tuple[str, ...]
    kernels: tuple[str, ...]
    note: str = ""

    @property
    def selected(self) -> str:
        """The words that choose it."""
        return (
            f"architecture={self.name}"
            if self.native
            else f"architecture=hub architecture.model_type={self.name}"
        )


def _native(
    name: str,
    cost: str,
    longest: str,
    objectives: tuple[str, ...],
    note: str,
    *,
    sequence_parallel: bool = True,
) -> Entry:
    return Entry(
        name=name,
        native=True,
        objectives=objectives,
        cost=cost,
        longest=longest,
        documents=True,
        sequence_parallel=sequence_parallel,
        tiled=("head", "feed-forward"),
        kernels=("own",),
        note=note,
    )


NATIVE = (
    _native(
        "reformer",
        "L·chunk",
        "product of axial_pos_shape",
        ("causal", "masked"),
        "reversible: memory does not grow with depth; LSH attention sorts tokens by content",
    ),
    _native(
        "longformer",
        "L·window",
        "max_position_embeddings",
        ("causal", "masked"),
        "reversible on request (architecture.residual=reversible)",
    ),
    _native(
        "transformer_xl",
        "L·(L + memory)",
        ANY_LENGTH,
        ("causal",),
        "remembers the rows before (packing=concatenate)",
    ),
    _native(
        "mega",
        "L·chunk",
        ANY_LENGTH,
        ("masked", "causal"),
        "moving averages through the whole text, attention within chunks (use_chunking=true)",
        sequence_parallel=False,
    ),
    _native(
        "nezha",
        "L²",
        "max_position_embeddings",
        ("next_sentence", "masked", "sentence_order", "causal", "fill_in_the_middle"),
        "relative positions, clipped; pairs of texts need parallelism.sequence=1",
    ),
)


KERNELS = {
    "interface": ("sdpa", "flex", "flash"),
    "mask4d": ("L × L mask",),
    "documents": ("published",),
    "": ("published",),
}
"""By how documents are kept apart: attention through transformers' interface can be any of them."""


KNOWN_LEAK = "lsp train refuses it but for verify.at_start=false"


def entries() -> tuple[Entry, ...]:
    """All of them: those written here, then those of `transformers` by name."""
    return (*NATIVE, *(_hub(name, row) for name, row in sorted(ROWS.items())))


def _hub(name: str, row: HubRow) -> Entry:
    return Entry(
        name=name,
        native=False,
        objectives=row.objectives,
        cost=row.cost,
        longest=row.positions if row.positions and row.table else ANY_LENGTH,
        documents=bool(row.segments),
        sequence_parallel=row.shares,
        tiled=("head", "feed-forward") if row.feed_forward else ("head",),
        kernels=KERNELS[row.segments],
        note="; ".join(filter(None, [row.note, row.leak, row.leak and KNOWN_LEAK])),
    )
