"""Packed rows -> the batches of one optimizer step, for one process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments
from lsp.core.seeding import stream
from lsp.data import objectives
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives import Vocabulary
from lsp.data.order import SampleOrder

OBJECTIVE_STREAM = 2
EVALUATION_STREAM = 3


class Rows(Protocol):
    """Random access to packed rows; `data_pipelines.shards.PackedSplit` is one."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(L,) token ids and (L,) document numbers of a row, 0 for padding."""
        ...


@dataclass(frozen=True)
class Share:
    """Which part of every global batch belongs to this process.

    Attributes:
        rank: Number, among those that share the rows, of this process or of the group that it
            forms with those who have other positions of the same rows.
        degree: How many share the rows.
        rows_per_step: Rows of the whole global batch.
        micro_batch: Rows of one forward pass.
        sequence_rank: Number of this process among those that share the positions of a row.
        sequence_degree: How many share them.
    """

    rank: int
    degree: int
    rows_per_step: int
    micro_batch: int
    sequence_rank: int = 0
    sequence_degree: int = 1

    @property
    def rows_per_rank(self) -> int:
        return self.rows_per_step // self.degree

    @property
    def accumulation(self) -> int:
        return self.rows_per_rank // self.micro_batch

    def positions(self, batch: Batch) -> Batch:
        """The positions of whole rows that belong to this process."""
        if self.sequence_degree == 1:
            return batch
        length = batch.input_ids.shape[1] // self.sequence_degree
        return batch.positions(self.sequence_rank * length, (self.sequence_rank + 1) * length)


class BatchMaker:
    """Turns rows into a `Batch` under an objective."""

    def __init__(
        self, rows: Rows, objective: ObjectiveConfig, vocabulary: Vocabulary, seed: int
    ) -> None:
        self.rows = rows
        self.config = objective
        self.vocabulary = vocabulary
        self.seed = seed
        self._objective = objectives.get(objective.name, vocabulary)

    def make(self, rows: Sequence[int], keys: Sequence[tuple[int, ...]]) -> Batch:
        """A batch of `rows`; row i takes its random choices from `keys[i]`."""
        inputs, labels, segments = [], [], []
        for row, key in zip(rows, keys, strict=True):
            ids, segment_ids = self.rows.row(row)
            generator = stream(self.seed, *key)
            ids, row_labels = self._objective(
                ids.astype(np.int64), segment_ids, generator, self.config, self.vocabulary
            )
            inputs.append(ids)
            labels.append(row_labels)
            segments.append(segment_ids.astype(np.int64))
        segment_ids_BL = torch.from_numpy(np.stack(segments))
        return Batch(
            input_ids=torch.from_numpy(np.stack(inputs)),
            labels=torch.from_numpy(np.stack(labels)),
            segment_ids=segment_ids_BL,
            position_ids=positions_from_segments(segment_ids_BL),
        )


class TrainingBatches:
    """The micro-batches of a step, for this process, from the run's cursor.

    The next step is prepared in a thread while the current one trains. That changes nothing
    about what is resumed: the cursor counts what was consumed.
    """

    def __init__(self, maker: BatchMaker, share: Share) -> None:
        self.maker = maker
        self.share = share
        self.order = SampleOrder(len(maker.rows), maker.seed)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._made: dict[int, Future[list[Batch]]] = {}

    def fetch(self, cursor: int) -> list[Batch]:
        """Micro-batches of the step that begins at global sample `cursor`."""
        wanted = (cursor, cursor + self.share.rows_per_step)
        self._made = {c: self._made.get(c) or self._pool.submit(self._make, c) for c in wanted}
        return self._made[cursor].result()

    def _make(self, cursor: int) -> list[Batch]:
        share = self.share
        first = cursor + share.rank * share.rows_per_rank
        batches = []
        for start in range(first, first + share.rows_per_rank, share.micro_batch):
            samples = range(start, start + share.micro_batch)
            rows = [self.order.row(sample) for sample in samples]
            keys = [(OBJECTIVE_STREAM, sample) for sample in samples]
            batches.append(share.positions(self.maker.make(rows, keys)))
        return batches

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class EvaluationBatches:
    """The same rows with the same masks every time, dealt out over the processes.

    Every process gets the same number of batches, because sharded weights are gathered in step;
    rows that only fill up predict nothing.
    """

    def __init__(self, maker: BatchMaker, share: Share, max_rows: int = 0) -> None:
        self.maker = maker
        self.share = share
        self.num_rows = min(max_rows, len(maker.rows)) if max_rows else len(maker.rows)

    def __len__(self) -> int:
        per_round = self.share.micro_batch * self.share.degree
        return -(-self.num_rows // per_round)

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        share = self.share
        first = (index * share.degree + share.rank) * share.micro_batch
        wanted = range(first, first + share.micro_batch)
        rows = [row if row < self.num_rows else 0 for row in wanted]
        batch = self.maker.make(rows, [(EVALUATION_STREAM, row) for row in rows])
        filler = torch.tensor([row >= self.num_rows for row in wanted])
        batch.labels[filler] = IGNORE_INDEX
        return share.positions(batch)
