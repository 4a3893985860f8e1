"""Out of memory, explained: what has taken it, and which overrides would need less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from lsp.core.errors import UserError
from lsp.core.exit_codes import USER_ERROR
from lsp.core.ranks import leave_quietly
from lsp.data.batches import Share
from lsp.models import registry
from lsp.models.interface import Architecture, LanguageModel
from lsp.models.memory import MemoryConfig
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.memory import MOMENTS, SHARDINGS, state_bytes
from lsp.parallel.runtime import Runtime

GIB = 2**30

WORTH = 0.02
"""Share of the whole that an override has to save to be told."""

SIGNS = ("out of memory", "can't allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Remedy:
    """An override, and the bytes by which the estimate is smaller with it."""

    override: str
    saving: int


@dataclass(frozen=True)
class Needs:
    """What decides how much memory a process needs.

    Attributes:
        model: As built.
        memory: How the model trades memory for time; settled, as its own.
        parallelism: The strategy, decided.
        precision: Of the matrix products.
        optimizer: `AdamW`, `Adafactor` or `Muon`.
        share: Of this process.
        length: Positions of a whole row.
        place: This process.
        fresh: Whether the optimizer has no state yet: it makes it at its first step.
    """

    model: LanguageModel
    memory: MemoryConfig
    parallelism: ParallelismConfig
    precision: PrecisionConfig
    optimizer: str
    share: Share
    length: int
    place: Runtime
    fresh: bool = True

    @property
    def parameters(self) -> int:
        """Trained elements of the whole model, sharded or not."""
        trained = (p for p in self.model.parameters() if p.requires_grad)
        return sum(getattr(p, "ds_numel", p.numel()) for p in trained)

    @property
    def first_step_bytes(self) -> int:
        """What the optimizer still has to allocate on the device."""
        sharding = self.parallelism.sharding
        if not self.fresh or sharding.optimizer != "device":
            return 0
        shards = self.place.world_size if sharding.stage else 1
        return MOMENTS[self.optimizer] * -(-self.parameters // shards)

    def state(self, strategy: str | None = None) -> dict[str, int]:
        """Bytes of weights, gradients and optimizer state, under another strategy or the own."""
        return state_bytes(
            strategy or self.parallelism.strategy,
            self.parameters,
            self.place.world_size,
            self.precision.name,
            self.optimizer,
            bucket=self.parallelism.reduce_bucket_size,
            live=self.parallelism.max_live_parameters,
        )

    def activations(
        self,
        *,
        rows: int | None = None,
        memory: MemoryConfig | None = None,
        half: bool | None = None,
        degree: int | None = None,
    ) -> dict[str, int]:
        """Bytes of a pass, with some of what decides about them changed."""
        return self.model.activation_bytes(
            rows or self.share.micro_batch,
            self.length // (degree or self.share.sequence_degree),
            half=self.precision.name != "fp32" if half is None else half,
            memory=memory or self.memory,
        )

    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        return self.state() | self.activations()

    def remedies(self) -> list[Remedy]:
        """Overrides that would need less, most effective first."""
        passes, found = sum(self.activations().values()), []
        for override, change in self._changes():
            found.append(Remedy(override, passes - sum(change().values())))
        state = sum(self.state().values())
        for strategy in self._other_strategies():
            saving = state - sum(self.state(strategy).values())
            found.append(Remedy(f"parallelism={strategy}", saving))
        least = WORTH * (state + passes)
        worth = [remedy for remedy in found if remedy.saving > least]
        return sorted(worth, key=lambda remedy: -remedy.saving)

    def leaner(self) -> list[str]:
        """Overrides that leave fewer activations, in no order."""
        return [override for override, _ in self._changes()]

    def _changes(self) -> Iterator[tuple[str, Callable[[], dict[str, int]]]]:
        """Overrides with the activations that each leaves."""
        for rows in self._fewer_rows():
            yield f"trainer.micro_batch={rows}", partial(self.activations, rows=rows)
        for key, memory in self._other_memory():
            yield key, partial(self.activations, memory=memory)
        for degree in self._other_degrees():
            yield f"parallelism.sequence={degree}", partial(self.activations, degree=degree)
        if self.precision.name == "fp32":
            yield "precision=bf16", partial(self.activations, half=True)

    @property
    def _architecture(self) -> Architecture:
        return registry.get(registry.name_of(self.model.config))

    def _fewer_rows(self) -> list[int]:
        now, whole = self.share.micro_batch, self.share.rows_per_rank
        divisors = [n for n in range(1, now // 2 + 1) if whole % n == 0]
        return sorted({divisors[0], divisors[-1]}) if divisors else []

    def _other_memory(self) -> Iterator[tuple[str, MemoryConfig]]:
        memory, leanest_first = self.memory, self._architecture.residuals(self.model.config)
        for residual in leanest_first[: leanest_first.index(memory.residual)]:
            yield f"memory={residual}", replace(memory, residual=residual)
        heads = getattr(self.model.config, "num_attention_heads", 0)
        if heads and memory.attention_groups != heads:
            groups = replace(memory, attention_groups=heads)
            yield f"memory.attention_groups={heads}", groups
        megabytes = memory.tile_bytes(self.place.device.type) / 2**20 / 8
        tiles = replace(memory, tile_megabytes=megabytes, feed_forward_tiles=0, head_tiles=0)
        yield f"memory.tile_megabytes={megabytes:g}", tiles

    def _other_degrees(self) -> Iterator[int]:
        degree = self.share.sequence_degree * 2
        if self.place.world_size % degree or self.parallelism.strategy == "single":
            return
        try:
            self._architecture.check_shares(self.model.config, self.length, degree)
        except UserError:
            return
        yield degree

    def _other_strategies(self) -> Iterator[str]:
        offloads = self.place.device.type == "cuda"  # a CPU's device is its host
        for name, sharding in SHARDINGS.items():
            if sharding.stage == 0 or self.optimizer != "AdamW" or sharding.optimizer == "nvme":
                continue
            if sharding.optimizer == "cpu" and not offloads:
                continue
            yield name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def explain(error: BaseException, needs: Needs, doing: str) -> str:
    """The lines that a person reads.

    Args:
        error: What the allocation failed with.
        needs: Of this process.
        doing: What the loop said last that it does.
    """
    parts, place = needs.parts(), needs.place
    total = sum(parts.values())
    shown = sorted(((size, name) for name, size in parts.items() if size), reverse=True)
    lines = [f"out of memory on rank {place.rank} ({place.device}), {doing} ({_wanted(error)})"]
    lines.append(f"  this process needs about {_size(total)}, estimated from the shapes:")
    lines += [f"    {_size(size):>9}  {name}" for size, name in shown]
    if not needs.activations():
        lines.append("  and activations, which this architecture cannot estimate. These need less:")
        lines.append(f"    {', '.join(needs.leaner())}")
    remedies = needs.remedies()
    if not remedies and needs.activations():
        return "\n".join([*lines, "  only a shorter sequence_length or a smaller model needs less"])
    capacity = _capacity(place.device)
    if remedies:
        lines.append("  overrides that need less, most effective first:")
    width = max((len(remedy.override) for remedy in remedies), default=0)
    for remedy in remedies:
        enough = capacity is not None and total - remedy.saving < capacity
        verdict = ", enough by itself" if enough and total >= (capacity or 0) else ""
        lines.append(f"    {remedy.override:<{width}}  {_size(remedy.saving)} less{verdict}")
    return "\n".join(lines)


def _wanted(error: BaseException) -> str:
    """What the allocator said, without the path of its source file."""
    text = (str(error).splitlines() or ["an allocation failed"])[0] or "an allocation failed"
    text = text.rpartition("DefaultCPUAllocator: ")[2] if "DefaultCPUAllocator" in text else text
    return text.split(". If reserved")[0].rstrip(". ")


def _capacity(device: torch.device) -> int | None:
    """Bytes that this process may hope for; unknown on a host, which others use too."""
    if device.type != "cuda":
        return None
    return int(0.95 * torch.cuda.get_device_properties(device).total_memory)


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


@contextmanager
def explained(
    needs: Needs, doing: Callable[[], str], first: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Turns an allocation that fails inside into a mistake that the user can mend.

    Args:
        needs: Of this process.
        doing: What the loop said last that it does.
        first: Whether no other process has told; all tend to run out of memory at once.

    Raises:
        UserError: With the explanation.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if not first():
            leave_quietly(USER_ERROR)
        raise UserError(explain(error, needs, doing())) from None
