"""What the processes of the tests of sequence parallelism do: one step of a model, in shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments
from lsp.models.interface import LanguageModel
from lsp.models.layers.exchange import WHOLE_ROWS, Exchange
from lsp.models.memory import MemoryConfig
from lsp.parallel.config import ParallelismConfig
from lsp.parallel.runtime import runtime
from lsp.parallel.sequence import make_exchange
from tests.training.tiny import longformer, nezha, reformer, transformer_xl

LENGTHS = {"reformer": 64, "longformer": 256, "transformer_xl": 64, "nezha": 64, "hub": 64}
"""Long enough that a quarter of a row holds a chunk of every kind of attention."""


@dataclass(frozen=True)
class Case:
    """A model, and how its rows are shared.

    Attributes:
        name: Of the test.
        values: What differs from the tiny Reformer's config.
        residual: How the model keeps its activations.
        packed: Whether rows hold several documents and padding.
        training: Whether gradients are wanted.
        groups: Groups of heads, 0 for the model's choice.
        architecture: Of the model.
    """

    name: str
    values: tuple[tuple[str, Any], ...] = ()
    residual: str = "reversible"
    packed: bool = True
    training: bool = True
    groups: int = 0
    architecture: str = "reformer"


@dataclass
class Found:
    """What a step gave, summed over the processes; on every process the same.

    So is what it leaves to remember: each process has all of its rows.
    """

    loss: float = 0.0
    count: int = 0
    remembered: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


def model_of(case: Case) -> LanguageModel:
    torch.manual_seed(0)
    if case.architecture == "longformer":
        values = {"num_attention_heads": 4, "max_position_embeddings": 258} | dict(case.values)
        residual = "auto" if case.residual == "reversible" else case.residual
        return longformer(residual, **values).double().train(case.training)
    if case.architecture == "transformer_xl":
        values = {"n_head": 4, "memory_across_documents": False} | dict(case.values)
        residual = "auto" if case.residual == "reversible" else case.residual
        return transformer_xl(residual, **values).double().train(case.training)
    if case.architecture == "nezha":
        residual = "auto" if case.residual == "reversible" else case.residual
        return nezha(residual, **dict(case.values)).double().train(case.training)
    if case.architecture == "hub":
        return published(case).double().train(case.training)
    defaults = {"num_attention_heads": 4, "attention_head_size": 8}
    model = reformer(case.residual, **defaults | dict(case.values)).double()
    model.memory.attention_groups = case.groups
    return model.train(case.training)


def published(case: Case) -> LanguageModel:
    """A tiny model of `transformers`, for the objective that the case is to have."""
    from lsp.models.hub.build import build
    from lsp.models.hub.config import HubConfig, resolve

    values = dict(case.values)
    config = HubConfig(
        model_type=values.pop("model_type"),
        attention=values.pop("attention", "auto"),
        model_init_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        | values.pop("init", {}),
    )
    objective = values.pop("objective", "causal")
    special = {"pad": 0, "eos": 1}
    settled = resolve(
        config, vocab_size=64, sequence_length=64, objective=objective, special_ids=special
    )
    return build(settled, MemoryConfig(residual=case.residual))


def rows_of(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(1)
    length = LENGTHS[case.architecture]
    ids = torch.randint(4, 64, (2, length), generator=generator)
    labels = ids.roll(-1, 1)
    segments = torch.ones_like(ids)
    if case.packed:  # documents that end inside a share, at its end, and far behind it
        for row, ends in enumerate(((5, 16, 37, 60), (32, 48, 49, 64))):
            start = 0
            for number, end in enumerate((end * length // 64 for end in ends), start=1):
                segments[row, start:end] = number
                labels[row, end - 1] = IGNORE_INDEX
                start = end
            segments[row, start:] = 0
            labels[row, start:] = IGNORE_INDEX
    return Batch(ids, labels, segments, positions_from_segments(segments))


def step(case: Case, exchange: Exchange = WHOLE_ROWS) -> Found:
    """Loss and gradients of the rows, of which this process has its share.

    What remembers reads them twice: the first document goes on, as it were, from the last.
    """
    model, rows = model_of(case), rows_of(case)
    model.share_rows(exchange)
    length = LENGTHS[case.architecture] // exchange.degree
    here = slice(exchange.first(length), exchange.first(length) + length)
    model.begin_micro_batch(7)
    with torch.set_grad_enabled(case.training):
        loss, count = model(**rows.positions(here.start, here.stop).tensors())
        if (memory := model.remembered()) is not None:
            rows.position_ids[rows.segment_ids == 1] += 100
            model.recall(memory)
            model.begin_micro_batch(8)
            loss, count = model(**rows.positions(here.start, here.stop).tensors())
    found = Found(float(loss.detach()), int(count), model.remembered() or {})
    if case.training:
        loss.backward()
        found.gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    return found


def steps(degree: int, cases: list[Case]) -> list[Found]:
    """Every case on a mesh of groups of `degree` processes, all groups with the same rows."""
    with runtime(ParallelismConfig(strategy="ddp", device="cpu")) as place:
        exchange = make_exchange(degree, 60)
        assert place.rank % degree == exchange.index
        results = [step(case, exchange) for case in cases]
        for found in results:
            sums = torch.tensor([found.loss, found.count], dtype=torch.float64)
            dist.all_reduce(sums, group=exchange.group)
            found.loss, found.count = float(sums[0]), int(sums[1])
            for gradient in found.gradients.values():
                dist.all_reduce(gradient, group=exchange.group)
    return results
