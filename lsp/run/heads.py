"""Fine-tuning from Python: a trained run, an export or a published model, under a head.

from lsp.run.heads import load_head, save_head

model = load_head("checkpoints/long", "sequence_classification", num_labels=3).train()
loss = model(input_ids, attention_mask, labels=labels).loss
...
save_head(model, "exported/classifier", tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsp.hub.heads import changed, labels_of, open_head, save_head
from lsp.models.heads.models import HeadedModel
from lsp.models.heads.registry import build_head
from lsp.models.heads.weights import from_published
from lsp.models.memory import MemoryConfig
from lsp.run.load import load_run

__all__ = ["load_head", "save_head"]

RUN_FILE = "config.yaml"
"""What tells a run from a published folder."""


def load_head(
    source: str | Path,
    task: str,
    *,
    num_labels: int | None = None,
    problem_type: str | None = None,
    id2label: Mapping[int, str] | None = None,
    memory: MemoryConfig | None = None,
    checkpoint: str = "latest",
    fresh_head: bool = False,
    **changes: Any,
) -> HeadedModel:
    """A model under a head, in evaluation mode, fp32, on the host.

    A head that the source has is loaded, whatever it has not is drawn by the config's
    `initializer_range`, from torch's generator; `fresh` of the model names those weights.

    Args:
        source: Folder of a run, folder of an export or a published model, or the name of a Hub
            repository.
        task: `causal_lm`, `masked_lm`, `sequence_classification`, `question_answering`,
            `multiple_choice` or `token_classification`; which of them there are depends on the
            architecture.
        num_labels: How many labels are told apart; None for those of the source, else 2.
        problem_type: See `Labels`.
        id2label: Names of the labels.
        memory: How memory is traded for time; None for a run's own.
        checkpoint: Of a run: `latest`, `best` or the number of a step.
        fresh_head: Whether to begin with a fresh head although the source has one.
        changes: Fields of the architecture's config, such as `hidden_dropout_prob=0.1` or
            `is_decoder=False`.

    Raises:
        UserError: There is no such model, or it cannot have this head.
    """
    labels = {"num_labels": num_labels, "problem_type": problem_type, "id2label": id2label}
    if not (Path(source) / RUN_FILE).is_file():
        return open_head(
            source, task, labels=labels, memory=memory, fresh_head=fresh_head, changes=changes
        )
    run = load_run(source, checkpoint)
    model = build_head(
        changed(run.config.architecture, changes),
        task,
        labels=labels_of({}, task, labels),
        memory=memory or run.config.memory,
    )
    weights = {
        model.reader.published_name(name): weight for name, weight in run.model.state_dict().items()
    }
    state, model.fresh = from_published(weights, model, fresh_head=fresh_head)
    model.load_state_dict(state)
    return model.eval()
