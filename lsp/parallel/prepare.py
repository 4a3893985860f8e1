"""From a strategy's name to an engine; the one place that chooses."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from lsp.core.errors import require
from lsp.models.interface import LanguageModel
from lsp.parallel.config import ParallelismConfig, PrecisionConfig
from lsp.parallel.engine import Engine
from lsp.parallel.runtime import Runtime, check_precision


def prepare_engine(
    module: nn.Module,
    optimizers: list[Optimizer],
    runtime: Runtime,
    parallelism: ParallelismConfig,
    precision: PrecisionConfig,
    *,
    gradient_clip: float,
    micro_batch: int,
) -> Engine:
    """Prepares a model, which already holds its first weights, for a strategy.

    Args:
        module: The model, on the host, in fp32.
        optimizers: Over the module's parameters; ZeRO takes one.
        runtime: This process.
        parallelism: The strategy.
        precision: Number format of the matrix products.
        gradient_clip: Largest global gradient norm, 0 for none.
        micro_batch: Rows of one forward pass.

    Raises:
        UserError: If the strategy cannot do what is asked.
    """
    check_precision(precision, runtime.device)
    if runtime.exchange.degree > 1:
        assert isinstance(module, LanguageModel)
        module.share_rows(runtime.exchange)
    if parallelism.zero_stage:
        from lsp.parallel.zero import ZeroEngine

        require(
            len(optimizers) == 1 and type(optimizers[0]).__name__ == "AdamW",
            f"parallelism={parallelism.strategy} shards flattened weights, which only "
            "optimizer=adamw can update; use parallelism=single or ddp with this optimizer",
        )
        return ZeroEngine(
            module,
            optimizers[0],
            runtime,
            parallelism,
            precision,
            gradient_clip=gradient_clip,
            micro_batch=micro_batch,
        )
    from lsp.parallel.plain import PlainEngine

    return PlainEngine(module, optimizers, runtime, precision, gradient_clip)
