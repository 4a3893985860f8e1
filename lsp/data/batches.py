"""Packed rows -> the batches of one optimizer step, for one process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lsp.core.batch import IGNORE_INDEX, Batch, positions_from_segments
from lsp.core.seeding import stream
from lsp.data import objectives
from lsp.data.config import ObjectiveConfig
from lsp.data.objectives.sample import Row, Sample, Vocabulary
from lsp.data.order import ContiguousOrder, Order, SampleOrder

OBJECTIVE_STREAM = 2
EVALUATION_STREAM = 3

LANE_ROWS = 16
"""Rows that a lane of an evaluation has at least, where there are so many: before the first of
them there is nothing to remember, which a long lane hardly shows."""


class Rows(Protocol):
    """Random access to packed rows; `data_pipelines.shards.PackedSplit` is one."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(L,) token ids and (L,) document numbers of a row, 0 for padding."""
        ...

    def offset(self, index: int) -> int:
        """Position of the row's first token in its document; read in contiguous order alone."""
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
    def lanes(self) -> range:
        """The rows of this process, by their place in the global batch."""
        first = self.rank * self.rows_per_rank
        return range(first, first + self.rows_per_rank)

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
    """Turns rows into a `Batch` under an objective.

    Args:
        rows: Of a split.
        objective: What is predicted.
        vocabulary: Of the tokenizer.
        seed: Of the run.
        contiguous: Whether rows are read in order, by a model that remembers those before. Then
            the position of a token is that in its document, wherever that began, and the last
            token of a row predicts the first of the next, where the document goes on (causal).
    """

    def __init__(
        self,
        rows: Rows,
        objective: ObjectiveConfig,
        vocabulary: Vocabulary,
        seed: int,
        *,
        contiguous: bool = False,
    ) -> None:
        self.rows = rows
        self.config = objective
        self.vocabulary = vocabulary
        self.seed = seed
        self.contiguous = contiguous
        self._objective = objectives.get(objective, vocabulary)

    def make(self, rows: Sequence[int], keys: Sequence[tuple[int, ...]]) -> Batch:
        """A batch of `rows`; row i takes its random choices from `keys[i]`."""
        samples = [self._sample(row, key) for row, key in zip(rows, keys, strict=True)]

        def stacked(parts: Iterable[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.stack(list(parts)))

        segment_ids_BL = stacked(sample.segment_ids for sample in samples)
        position_ids_BL = positions_from_segments(segment_ids_BL)
        if self.contiguous:
            offsets_B = torch.tensor([self.rows.offset(row) for row in rows])
            # Those of the row's first document count from the beginning of the row.
            first_BL = position_ids_BL == torch.arange(position_ids_BL.shape[1])
            position_ids_BL += offsets_B[:, None] * first_BL
        return Batch(
            input_ids=stacked(sample.input_ids for sample in samples),
            labels=stacked(sample.labels for sample in samples),
            segment_ids=segment_ids_BL,
            position_ids=position_ids_BL,
            extra={
                name: stacked(sample.extra[name] for sample in samples) for name in samples[0].extra
            },
        )

    def _sample(self, row: int, key: tuple[int, ...]) -> Sample:
        generator = stream(self.seed, *key)
        sample = self._objective(
            Row(*self._read(row), another=self._another), generator, self.config, self.vocabulary
        )
        if self.contiguous and self.config.name == "causal":
            sample.labels[-1] = self._token_after(row)
        return sample

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        ids, segment_ids = self.rows.row(row)
        return ids.astype(np.int64), segment_ids.astype(np.int64)

    def _another(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self._read(int(generator.integers(len(self.rows))))

    def _token_after(self, row: int) -> int:
        """What follows a row in its last document; `IGNORE_INDEX` where that has ended."""
        if row + 1 == len(self.rows) or self.rows.offset(row + 1) == 0:
            return IGNORE_INDEX
        return int(self.rows.row(row + 1)[0][0])


class TrainingBatches:
    """The micro-batches of a step, for this process, from the run's cursor.

    The next step is prepared in a thread while the current one trains. That changes nothing
    about what is resumed: the cursor counts what was consumed.
    """

    def __init__(self, maker: BatchMaker, share: Share) -> None:
        self.maker = maker
        self.share = share
        rows = len(maker.rows)
        self.order: Order = (
            ContiguousOrder(rows, share.rows_per_step)
            if maker.contiguous
            else SampleOrder(rows, maker.seed)
        )
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._made: dict[int, Future[list[Batch]]] = {}

    def fetch(self, cursor: int) -> list[Batch]:
        """Micro-batches of the step that begins at global sample `cursor`."""
        wanted = (cursor, cursor + self.share.rows_per_step)
        self._made = {c: self._made.get(c) or self._pool.submit(self._make, c) for c in wanted}
        return self._made[cursor].result()

    def _make(self, cursor: int) -> list[Batch]:
        share, batches = self.share, []
        for lane in share.lanes[:: share.micro_batch]:
            samples = range(cursor + lane, cursor + lane + share.micro_batch)
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

    In contiguous order the rows are parted into lanes, each a stream from its first row on: a
    micro-batch has a row of some lanes, and the batch that has their next rows comes `groups`
    batches later. How many lanes there are does not depend on the number of processes.

    Attributes:
        num_rows: How many are evaluated.
        groups: Batches that read in turn; 1 or more.

    Args:
        maker: Of the split.
        share: Of this process.
        max_rows: Rows evaluated, the first ones; 0 for all.
        lanes: Streams that the rows are parted into, in contiguous order; 0 for as many as a step
            has rows, unless they would be shorter than `LANE_ROWS`.
    """

    def __init__(
        self, maker: BatchMaker, share: Share, max_rows: int = 0, *, lanes: int = 0
    ) -> None:
        self.maker = maker
        self.share = share
        self.num_rows = min(max_rows, len(maker.rows)) if max_rows else len(maker.rows)
        if not maker.contiguous:
            lanes = self.num_rows
        elif not lanes:
            lanes = max(1, min(share.rows_per_step, self.num_rows // LANE_ROWS))
        self._lanes = min(lanes, self.num_rows)
        self._lane_rows = -(-self.num_rows // max(1, self._lanes))
        self._lanes_per_rank = -(-self._lanes // share.degree)
        self._size = min(share.micro_batch, self._lanes_per_rank)
        self.groups = -(-self._lanes_per_rank // max(1, self._size))

    def __len__(self) -> int:
        return self._lane_rows * self.groups

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        wanted = self._rows(index)
        rows = [row if row is not None else 0 for row in wanted]
        batch = self.maker.make(rows, [(EVALUATION_STREAM, row) for row in rows])
        batch.labels[torch.tensor([row is None for row in wanted])] = IGNORE_INDEX
        return self.share.positions(batch)

    def _rows(self, index: int) -> list[int | None]:
        """The rows of a batch; None for those that only fill up."""
        within, group = divmod(index, self.groups)
        rows: list[int | None] = []
        for number in range(group * self._size, (group + 1) * self._size):
            lane = self.share.rank * self._lanes_per_rank + number
            row = lane * self._lane_rows + within
            there = number < self._lanes_per_rank and lane < self._lanes and row < self.num_rows
            rows.append(row if there else None)
        return rows
