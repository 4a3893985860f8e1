"""Which tokens of a row reach which others: the token-mixing certificate.

Two questions are asked of a model, about documents packed into a row and about the order in time:
does anything change where nothing may (bit for bit), and does the loss there depend on it (a
gradient that is not exactly zero). And the contrary, since a model that mixes nothing leaks
nothing: does what must be seen change something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from lsp.core.batch import Batch
from lsp.models.interface import LanguageModel
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.verify.probe import Probe, undisturbed
from lsp.verify.rows import (
    ACROSS_CHUNKS,
    BEFORE,
    ON_BOUNDARIES,
    PADDED,
    SHORT,
    WHOLE,
    Pieces,
    later_parts,
    make_rows,
)

APART = "apart"
TOGETHER = "together"
CAUSAL = "causal"
CHOICE = "causal but for the choice of keys"
BOTH_WAYS = "both ways"
KEPT_APART = "of its own document"
CARRIED = "of all documents"

CUTS, QUICK_CUTS = (0.2, 0.7), (0.5,)
"""Where documents are cut into an earlier and a later part, as shares of their length."""
EARLY_CUT = 0.1
"""One more for models whose first tokens may see what those in the middle do not."""


@dataclass(frozen=True)
class Leak:
    """Something that reached where nothing may.

    Attributes:
        what: `values` or `gradients`: a change of the scores, or of a loss's gradient.
        source: The tokens that it came from.
        target: Where it was found: scores there, or the loss there.
        size: Of the largest change, or gradient.
    """

    what: str
    source: str
    target: str
    size: float

    def __str__(self) -> str:
        if self.what == "values":
            return f"{self.source} changes the scores of {self.target} (by up to {self.size:.1e})"
        return f"the loss of {self.target} has a gradient at {self.source} ({self.size:.1e})"


@dataclass
class Mixing:
    """What was found.

    Attributes:
        length: Positions of the rows.
        documents: `APART`, or `TOGETHER` where the model does not claim that.
        causality: `CAUSAL`; `CHOICE` where later tokens choose among the earlier ones that are
            seen, but nothing of them is; `BOTH_WAYS` where the model does not claim that.
        memory: `KEPT_APART` or `CARRIED`; None for a model without.
        reaches: By what (`values` or `gradients`), whether the first document reaches the second;
            0 is padding.
        leaks: What must not be.
        unseen: What must be seen and is not.
        unclear: Why nothing can be said; None where something can.
        known: What is known of the published code that explains leaks; empty where nothing is.
    """

    length: int
    documents: str = APART
    causality: str = CAUSAL
    memory: str | None = None
    reaches: dict[str, dict[tuple[int, int], bool]] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unclear: str | None = None
    known: str = ""

    @property
    def holds(self) -> bool:
        """Whether everything is as it is claimed."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """In words, what is not."""
        unclear = [] if self.unclear is None else [self.unclear]
        return [*map(str, self.leaks), *self.unseen, *unclear]

    def __str__(self) -> str:
        if not self.holds:
            return "; ".join(self.problems)
        parts = [f"documents {self.documents}", self.causality]
        if self.memory is not None:
            parts.append(f"memory {self.memory}")
        return ", ".join(parts)


def merged(parts: Iterable[Mixing]) -> Mixing:
    """What was found of the parts of a model: all that is wrong, and what the first part claims."""
    first, *others = parts
    for part in others:
        first.leaks += part.leaks
        first.unseen += part.unseen
        first.unclear = first.unclear or part.unclear
        for what, pairs in part.reaches.items():
            known = first.reaches.setdefault(what, {})
            known |= {pair: seen or known.get(pair, False) for pair, seen in pairs.items()}
    return first


def examine(
    model: LanguageModel,
    *,
    length: int,
    vocab_size: int,
    causal: bool,
    apart: bool = True,
    memory_apart: bool | None = None,
    exchange: Exchange = WHOLE_ROWS,
    precision: str = "fp32",
    device: torch.device | None = None,
    quick: bool = False,
    early: bool = False,
) -> Mixing:
    """Finds out which tokens of a row reach which others; changes nothing about the model.

    Every process of `exchange` must call it, and finds the same.

    Args:
        model: With whole weights and empty gradients; has been given `exchange`.
        length: Positions of the rows; fits the model and the exchange.
        vocab_size: Tokens are drawn from 0 to this.
        causal: Whether the model claims that no token sees a later one.
        apart: Whether it claims that documents do not see each other.
        memory_apart: For a model with a memory, whether it claims that a document sees nothing of
            others in it; None for a model without.
        exchange: Between the processes that share rows.
        precision: Number format of matrix products: `fp32`, `bf16`, `fp16`.
        device: Of the model; None for the host.
        quick: One row, two documents, one cut: what there is time for before every training.
        early: Whether documents are also cut near their beginning (`EARLY_CUT`).
    """
    device = device or torch.device("cpu")
    packed: Sequence[Pieces] = (ACROSS_CHUNKS, ON_BOUNDARIES) if apart else (PADDED,)
    timed: Sequence[Pieces] = (ACROSS_CHUNKS, WHOLE) if apart else (PADDED, WHOLE)
    if quick:
        packed = timed = (SHORT,) if apart else (PADDED,)
    found = Mixing(
        length,
        documents=APART if apart else TOGETHER,
        causality=CAUSAL if causal else BOTH_WAYS,
    )
    with undisturbed(model):
        probe_of = partial(
            Probe, model, vocab_size=vocab_size, exchange=exchange, precision=precision
        )

        def rows_of(kinds: Sequence[Pieces], seed: int = 1) -> Batch:
            return make_rows(kinds, length, vocab_size, device, seed)

        probe = probe_of(rows_of(packed))
        found.unclear = probe.unclear
        if found.unclear is not None:
            return found
        _examine_documents(found, probe)
        if timed is not packed:
            probe = probe_of(rows_of(timed))
        cuts = (*([EARLY_CUT] if early else []), *(QUICK_CUTS if quick else CUTS))
        _examine_time(found, probe, causal=causal, cuts=cuts)
        if memory_apart is not None:
            before = rows_of([BEFORE] * len(packed), seed=2)
            beside = _examine_memory(found, probe_of, before, rows_of(packed), memory_apart)
            # What is remembered widens the attention: the same must hold beside it.
            _examine_documents(found, beside, " beside a memory")
            _examine_time(found, beside, causal=causal, cuts=QUICK_CUTS, beside=" beside a memory")
    return found


def _documents(segment_ids_BL: torch.Tensor) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Number, name and positions (B, L) of documents with that number, padding (0) first."""
    for number in torch.unique(segment_ids_BL).tolist():
        name = f"document {number}" if number else "padding"
        yield number, name, segment_ids_BL == number


def _examine_documents(found: Mixing, probe: Probe, beside: str = "") -> None:
    """Exchanges the tokens of each document, and differentiates the loss of each."""
    documents = list(_documents(probe.rows.segment_ids))
    values = found.reaches.setdefault("values", {})
    gradients = found.reaches.setdefault("gradients", {})
    for number, name, here_BL in documents:
        changes_BL = probe.effects(probe.scores(here_BL))
        for other, other_name, there_BL in documents:
            if other == 0:  # what is computed for padding is used by nothing
                continue
            size = float(changes_BL[there_BL].max())
            values[number, other] = values.get((number, other), False) or size != 0
            if size and number != other:
                found.leaks.append(Leak("values", name + beside, other_name, size))
    for number, name, here_BL in documents:
        if number == 0:
            continue
        sizes_BL = probe.gradients(here_BL)
        for other, other_name, there_BL in documents:
            size = float(sizes_BL[there_BL].max())
            gradients[other, number] = gradients.get((other, number), False) or size != 0
            if size and number != other:
                found.leaks.append(Leak("gradients", other_name + beside, name, size))
    if probe.rows.input_ids.shape[0] > 1:
        _examine_separate_rows(found, probe, beside)


def _examine_separate_rows(found: Mixing, probe: Probe, beside: str) -> None:
    """Exchanges a whole row, and differentiates its loss: the others are another text."""
    first_BL = torch.zeros_like(probe.rows.segment_ids, dtype=torch.bool)
    first_BL[0] = True
    real_BL = probe.rows.segment_ids != 0
    changes_BL = probe.effects(probe.scores(first_BL)).where(real_BL, 0.0)
    sizes_BL = probe.gradients(first_BL & real_BL)
    if changes_BL[1:].any():
        size = float(changes_BL[1:].max())
        found.leaks.append(Leak("values", "a row" + beside, "another row", size))
    if sizes_BL[1:].any():
        size = float(sizes_BL[1:].max())
        found.leaks.append(Leak("gradients", "another row" + beside, "a row", size))


def _examine_time(
    found: Mixing, probe: Probe, *, causal: bool, cuts: Sequence[float], beside: str = ""
) -> None:
    """Cuts every document in two: what the later part may not reach, and the earlier has to."""
    segments_BL = probe.rows.segment_ids
    forward, backward = _Seen(segments_BL), _Seen(segments_BL)
    for cut in cuts:
        later_BL = later_parts(segments_BL, cut)
        earlier_BL = (segments_BL != 0) & ~later_BL
        into_future = probe.effects(probe.scores(earlier_BL)).where(later_BL, 0.0)
        forward.note(into_future, probe.gradients(later_BL).where(earlier_BL, 0.0))
        into_past = probe.effects(probe.scores(later_BL)).where(earlier_BL, 0.0)
        from_past = probe.gradients(earlier_BL).where(later_BL, 0.0)
        if not causal:
            backward.note(into_past, from_past)
            continue
        names = "later tokens" + beside, f"earlier ones (cut at {cut:.0%} of a document)"
        if from_past.any():
            found.leaks.append(Leak("gradients", *names, float(from_past.max())))
        if into_past.any() and _only_by_choice(probe, later_BL, earlier_BL):
            found.causality = CHOICE
        elif into_past.any():
            found.leaks.append(Leak("values", *names, float(into_past.max())))
    found.unseen += forward.missing("earlier tokens", "later ones", beside)
    if not causal:
        found.unseen += backward.missing("later tokens", "earlier ones", beside)


def _only_by_choice(probe: Probe, later_BL: torch.Tensor, earlier_BL: torch.Tensor) -> bool:
    """Whether nothing reaches the past once the model looks where it looked before."""
    changes_BL = probe.held(later_BL)
    return changes_BL is not None and not bool(changes_BL[earlier_BL].any())


class _Seen:
    """In which documents a part has been seen by the other, at any of the cuts."""

    def __init__(self, segment_ids_BL: torch.Tensor) -> None:
        self.documents = [
            (f"document {number} of row {row + 1}", (row, row_L == number))
            for row, row_L in enumerate(segment_ids_BL)
            for number in torch.unique(row_L).tolist()
            if number and int((row_L == number).sum()) > 1
        ]
        self.seen: dict[str, set[str]] = {"values": set(), "gradients": set()}

    def note(self, values_BL: torch.Tensor, gradients_BL: torch.Tensor) -> None:
        for what, sizes_BL in (("values", values_BL), ("gradients", gradients_BL)):
            for name, place in self.documents:
                if bool(sizes_BL[place].any()):
                    self.seen[what].add(name)

    def missing(self, source: str, target: str, beside: str) -> list[str]:
        return [
            f"{source}{beside} are not seen by {target} in {name} ({what})"
            for what, names in self.seen.items()
            for name, _ in self.documents
            if name not in names
        ]


def _examine_memory(
    found: Mixing, probe_of: Callable[..., Probe], before: Batch, rows: Batch, apart: bool
) -> Probe:
    """Exchanges the documents of the rows before: a document may see only its own beginning.

    Args:
        found: Completed.
        probe_of: Makes a probe of rows and of what is remembered.
        before: Rows that end within a document.
        rows: Rows that follow.
        apart: Whether the model claims that a document sees nothing of others.

    Returns:
        A probe of the rows that follow, beside what is remembered.
    """
    going_on_B = torch.full((len(rows.segment_ids),), apart, device=rows.segment_ids.device)
    if len(going_on_B) > 1:
        going_on_B[0] = False  # a new document begins with the row, and remembers nothing
    rows = _continued(before, rows, going_on_B)
    probe_before = probe_of(before)
    remembered = probe_before.remembered()
    probe = probe_of(rows, memory=remembered)
    found.memory = KEPT_APART if apart else CARRIED
    if not remembered:
        found.unseen.append("nothing is remembered")
        return probe
    for name, tensor in remembered.items():
        if tensor.requires_grad:
            found.leaks.append(Leak("gradients", f"what is remembered ({name})", "rows", torch.inf))
    own_BL = (before.segment_ids == before.segment_ids[:, -1:]) & going_on_B[:, None]
    first_BL = (rows.segment_ids == 1) & going_on_B[:, None]
    own, others = (
        probe.effects(probe_of(rows, memory=probe_before.remembered(where_BL)).scores())
        for where_BL in (own_BL, ~own_BL)
    )
    if apart:
        elsewhere = (rows.segment_ids != 0) & ~first_BL
        if own[elsewhere].any():
            size = float(own[elsewhere].max())
            found.leaks.append(Leak("values", "the memory of a document", "another one", size))
        real_BL = rows.segment_ids != 0
        if others[real_BL].any():
            size = float(others[real_BL].max())
            found.leaks.append(Leak("values", "the memory of others", "a document", size))
        if not own[first_BL].any():
            found.unseen.append("what is remembered of a document is not seen by its next part")
    elif not others.any():
        found.unseen.append("what is remembered of other documents is not seen")
    return probe


def _continued(before: Batch, rows: Batch, going_on_B: torch.Tensor) -> Batch:
    """The rows with positions that go on from the rows before in their first document."""
    offset_B = (before.position_ids[:, -1] + 1).where(going_on_B, 0)
    first_BL = (rows.segment_ids == 1) & going_on_B[:, None]
    return replace(rows, position_ids=rows.position_ids + first_BL * offset_B[:, None])
