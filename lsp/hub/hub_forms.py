"""The architectures that `transformers` has: their own classes, names and config."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch

from lsp.core.errors import UserError
from lsp.core.objectives import DECODER, NEXT_TOKEN
from lsp.hub.form import SHORT, PublishedForm
from lsp.models.hub import keys
from lsp.models.hub.adapter import HubModel
from lsp.models.hub.config import HubConfig
from lsp.models.interface import LanguageModel

PREFIX = "model."
"""Of published names in ours; what lacks it is a part that `transformers` does not have."""

AUTO_CLASSES = (
    ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES"),
    ("AutoModel", "MODEL_MAPPING_NAMES"),
)
"""What opens a folder by its `config.json`, the most telling first."""

TOKEN_SCORES = ("logits", "prediction_logits")
OUTPUTS = {"ElectraForPreTraining": "logits", "SplinterForPreTraining": "start_logits"}
"""What published classes call what they answer for each position, where the name is not usual."""
NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path")
"""Keys that say where and by what a config was written."""
LABELS = 1
"""Of a class that tells tokens apart; where there are others, they mean nothing here."""
INCOMPARABLE = {
    "mra": "attention of the published class is a CUDA kernel, and zeros where that is missing, as "
    "on the CPU that compares"
}
"""What plain `transformers` cannot compute there."""
ASK_FOR_MASK = frozenset({"visual_bert"})
"""Those that cannot be called without an attention mask."""


def form_of(config: HubConfig) -> PublishedForm:
    """The published form of a model with a settled config."""
    assert config.objective is not None
    name = config.row.heads[config.objective]
    published = class_of(config)
    encoder_decoder = config.row.kind == "encoder_decoder"
    generates = published.can_generate() and (config.objective in NEXT_TOKEN or encoder_decoder)
    return PublishedForm(
        architecture="hub",
        model_type=type_of(config),
        title=keys.config_class(type_of(config)).__name__.removesuffix("Config"),
        auto_class=auto_class_of(config),
        model_class=name,
        pipeline=_pipeline(config),
        generates=generates,
        keeps_logits="logits_to_keep" in inspect.signature(published.forward).parameters,
        config_class=HubConfig,
        published_config=_published_config,
        ignored_keys=frozenset(),
        to_published=_to_published,
        from_published=_from_published,
        some_logits=_some_logits,
        tied=lambda settled: tuple(skeleton_of(settled).all_tied_weights_keys),
        stored=_stored,
        inputs=_inputs,
        output=_output(config),
        short_length=_short_length,
        special_ids=_special_ids,
        remark=_remark,
        opening={} if has_head(config) else {"add_pooling_layer": False},
        incomparable=INCOMPARABLE.get(type_of(config), ""),
    )


def type_of(config: HubConfig) -> str:
    """The published name of an architecture."""
    assert config.model_type is not None
    return config.model_type


def class_of(config: HubConfig) -> Any:
    """The published class of a model."""
    import transformers

    return getattr(transformers, config.row.heads[config.objective or ""])


def auto_class_of(config: HubConfig) -> str:
    """What opens a folder as that class, or the class itself where nothing does."""
    from transformers.models.auto import modeling_auto

    name, kind = class_of(config).__name__, config.row.config or type_of(config)
    for auto, mapping in AUTO_CLASSES:
        found = getattr(modeling_auto, mapping).get(kind)
        if found == name:
            return auto
    return str(name)


def skeleton_of(config: HubConfig) -> Any:
    """The published model without its weights: names, shapes, and what is tied."""
    published = keys.make_config(type_of(config), config.settled)
    if config.objective == "replaced_token":
        published.num_labels = LABELS
    with torch.device("meta"):
        return class_of(config)(published)


def _published_config(config: HubConfig, form: PublishedForm) -> dict[str, Any]:
    made = skeleton_of(config).config  # some complete it as they are made
    made.architectures = [form.model_class]
    made.dtype = "float32"
    values: dict[str, Any] = json.loads(json.dumps(made.to_dict()))
    for part in values.values():
        if isinstance(part, dict) and "dtype" in part:  # of the parts of the model
            part["dtype"] = values["dtype"]
    if len(values["id2label"]) != LABELS:
        del values["id2label"], values["label2id"]
    return {key: value for key, value in values.items() if key not in NOT_OF_THE_MODEL}


def _to_published(
    weights: Mapping[str, torch.Tensor], config: HubConfig
) -> dict[str, torch.Tensor]:
    # The body alone has names of its own, without that of the body.
    prefix = PREFIX if has_head(config) else f"{PREFIX}{class_of(config).base_model_prefix}."
    return {
        name.removeprefix(prefix): weight.detach()
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def _from_published(
    weights: Mapping[str, torch.Tensor], config: HubConfig
) -> dict[str, torch.Tensor]:
    return {f"{_prefix(config)}{name}": weight for name, weight in weights.items()}


def _prefix(config: HubConfig) -> str:
    """What stands before published names: a body without a published head is inside one."""
    return PREFIX if has_head(config) else f"{PREFIX}{class_of(config).base_model_prefix}."


def _stored(weights: dict[str, torch.Tensor], config: HubConfig) -> dict[str, torch.Tensor]:
    """As checkpoints of it are published, such as the experts of a mixture one by one."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(skeleton_of(config), weights)
    return {name: weight.contiguous() for name, weight in found.items()}


def _special_ids(config: HubConfig) -> dict[str, int]:
    roles = ("bos", "eos", "pad", "decoder_start")
    found = {f"{role}_token_id": config.settled.get(f"{role}_token_id") for role in roles}
    if config.row.kind != "encoder_decoder":
        del found["decoder_start_token_id"]
    return {name: number for name, number in found.items() if number is not None}


def _short_length(config: HubConfig, length: int) -> int:
    """The shortest that it can have, from a number of tokens on that every kind of block sees."""
    for candidate in sorted({min(SHORT, length), length // 4, length // 2}):
        try:
            config.check_length(candidate)
        except UserError:
            continue
        if candidate >= min(SHORT, length):
            return candidate
    return length


def _inputs(config: HubConfig, ids_BL: torch.Tensor) -> dict[str, torch.Tensor]:
    given = {"input_ids": ids_BL}
    if config.row.kind == "encoder_decoder":
        start = ids_BL.new_full((1, 1), int(config.settled["decoder_start_token_id"]))
        given["decoder_input_ids"] = torch.cat([start, ids_BL[:, :-1]], dim=1)
    if config.objective == "recurring_span":
        given["question_positions"] = torch.arange(ids_BL.shape[1])[None]
    if config.model_type in ASK_FOR_MASK:
        given["attention_mask"] = torch.ones_like(ids_BL)
    return given


@torch.no_grad()
def _some_logits(
    model: LanguageModel, ids_BL: torch.Tensor, positions_K: torch.Tensor
) -> torch.Tensor:
    """Computed as in training and evaluation, but of one document."""
    assert isinstance(model, HubModel)
    given = _inputs(model.config, ids_BL)
    if model.config.objective == "recurring_span":
        hidden_BLD = model.hidden_states(ids_BL)
        scores, _ = model.model.splinter_qass(hidden_BLD, given["question_positions"])
    elif not has_head(model.config):
        scores = model.hidden_states(ids_BL)
    elif model.config.row.kind == "encoder_decoder":
        decoder = {"decoder_input_ids": given["decoder_input_ids"]}
        scores = model.logits(ids_BL, **decoder)
    else:
        return model.lm_head(model.hidden_states(ids_BL)[:, positions_K])
    some: torch.Tensor = scores[:, positions_K]
    return some


def _output(config: HubConfig) -> str:
    """What the published class calls the scores of its positions."""
    name = config.row.heads[config.objective or ""]
    if name in OUTPUTS:
        return OUTPUTS[name]
    if name.endswith("ForPreTraining"):
        return "prediction_logits"
    return "logits" if has_head(config) else "last_hidden_state"


def has_head(config: HubConfig) -> bool:
    """Whether the published class has a head for the objective, or is the body alone."""
    return str(class_of(config).__name__) != _body_name(config)


def _body_name(config: HubConfig) -> str:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES[config.row.config or type_of(config)]
    return str(name if isinstance(name, str) else name[0])


def _pipeline(config: HubConfig) -> str:
    if config.objective in NEXT_TOKEN:
        return "text-generation"
    if config.objective in DECODER:
        return "text2text-generation"
    scores_tokens = _output(config) in TOKEN_SCORES and config.objective != "replaced_token"
    return "fill-mask" if scores_tokens else "feature-extraction"


def _remark(config: HubConfig) -> str:
    """Of a part that the published class has no place for."""
    if not has_head(config):
        return (
            f"`transformers` has no class of it for `{config.objective}`: the head that it was "
            "trained with is left out, and this is the model below it.\n"
        )
    if config.objective == "replaced_token":
        return "This is the discriminator; the generator that was trained with it is left out.\n"
    return ""
