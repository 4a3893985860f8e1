"""What is known of each architecture of `transformers`, by its published `model_type`.

Plain facts, without an import of `transformers`; what can be read off a config or a model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lsp.core.errors import UserError, unknown_choice


@dataclass(frozen=True, kw_only=True)
class HubRow:
    """One architecture.

    Attributes:
        model_type: Its published name.
        heads: The published class for each objective it can be trained with, that of its paper
            first; a body alone where there is none (`own_heads.py`).
        kind: `decoder`, `encoder` or `encoder_decoder`.
        causal: What makes it predict the next token without seeing it: `always`, the name of a
            key that does (`is_decoder`, `causal`, `attn_type`), or empty where nothing does.
        segments: How documents in a row are kept apart: `mask4d`, a mask over pairs of positions;
            `interface`, the same through transformers' attention interface; `documents`, one by
            one; empty, not at all.
        shares: Whether processes can share the positions of a row.
        positions: Key of its number of positions; empty where any length will do.
        decoder_positions: The same for its decoder, where that is another.
        table: Whether that is the length of a table beyond which it fails, or, as with rotary
            positions, only says what the model was made for.
        first_position: `pad` where the first token has the position after that of padding, which
            takes as many rows of the table.
        spare_positions: Positions that it needs after those of a row.
        config: transformers' `model_type`, where that is another name.
        body: Path of the module whose hidden states the head reads, beside the usual.
        cost: Of attention in the length L of a row.
        layers: Paths within the body of its layers, where transformers cannot recompute them.
        extra_ids: Ids that it needs beyond the vocabulary.
        ignored: Keys that are read from files and change nothing.
        feed_forward: Name, in its owner, of the modules or of the method that go through positions
            one by one; empty where there is none of its own.
        settings: Keys that have to have these values here.
        causal_settings: Keys that have to have these values to predict the next token.
        start: Special token that texts of its decoder have to begin with, where not any will do.
        cache: What the published body calls its argument for what it remembers of a text; empty
            where that is not what it makes of the text when it reads it again.
        leak: How its published code lets a position see later ones that it should not; empty where
            it does not.
        note: What else is to be known.
    """

    model_type: str
    heads: Mapping[str, str]
    kind: str
    causal: str = ""
    segments: str = ""
    shares: bool = False
    positions: str = "max_position_embeddings"
    decoder_positions: str = ""
    table: bool = True
    first_position: str = ""
    spare_positions: int = 0
    config: str = ""
    body: str = ""
    cost: str = "L²"
    layers: tuple[str, ...] = ()
    extra_ids: int = 0
    ignored: tuple[str, ...] = ()
    feed_forward: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    causal_settings: Mapping[str, object] = field(default_factory=dict)
    start: str = ""
    cache: str = "past_key_values"
    leak: str = ""
    note: str = ""

    @property
    def objectives(self) -> tuple[str, ...]:
        """What it can be trained with, the objective of its paper first."""
        return tuple(self.heads)


NATIVE = {
    "reformer": "reformer",
    "transfo-xl": "transformer_xl",
    "mega": "mega",
    "nezha": "nezha",
}
"""What is written here instead: the value of `architecture=` by the published name."""

INTERFACE, MASK, ONE_BY_ONE = "interface", "mask4d", "documents"
NEXT_SENTENCE, SENTENCE_ORDER = "next_sentence", "sentence_order"
DECODED = ("span_corruption", "denoising", "gap_sentences", "translation")
"""What every decoder beside an encoder can be trained for."""


def _decoder(model_type: str, head: str, **facts: object) -> HubRow:
    heads = {"causal": head, "fill_in_the_middle": head}
    values: dict[str, object] = {
        "model_type": model_type,
        "heads": heads,
        "kind": "decoder",
        "causal": "always",
        "feed_forward": "mlp",
    }
    values |= {"shares": facts.get("segments") == INTERFACE}
    return HubRow(**(values | facts))  # type: ignore[arg-type]


def _encoder(
    model_type: str,
    masked: str,
    decoder: str = "",
    *,
    pairs: str = "",
    first: str = "masked",
    **facts: object,
) -> HubRow:
    """An encoder; with the class that is its decoder, and the one that judges pairs of texts."""
    heads = {"masked": masked}
    if pairs:
        heads |= {NEXT_SENTENCE: pairs, SENTENCE_ORDER: pairs}
    if decoder:
        heads |= {"causal": decoder, "fill_in_the_middle": decoder}
    heads = {first: heads[first]} | heads
    values: dict[str, object] = {"model_type": model_type, "heads": heads, "kind": "encoder"}
    values |= {"causal": "is_decoder"} if decoder else {}
    values |= {"feed_forward": "feed_forward_chunk"}
    values |= {"shares": facts.get("segments") == INTERFACE}
    return HubRow(**(values | facts))  # type: ignore[arg-type]


def _encoder_decoder(model_type: str, head: str, first: str, **facts: object) -> HubRow:
    heads = dict.fromkeys((first, *DECODED), head)
    values: dict[str, object] = {
        "model_type": model_type,
        "heads": heads,
        "kind": "encoder_decoder",
    }
    return HubRow(**(values | facts))  # type: ignore[arg-type]


PAD = {"first_position": "pad"}
_MPT_IGNORED = (
    "expansion_ratio", "resid_pdrop", "emb_pdrop", "learned_pos_emb", "init_device", "logit_scale",
    "no_bias", "embedding_fraction", "norm_type",
)  # fmt: skip
ROTARY = {"table": False}
_STREAMS_LEAK = (
    "as published, its relative positions show the decoder's first tokens a little of later ones"
)

_ROWS = (
    _encoder(
        "albert",
        "AlbertForMaskedLM",
        pairs="AlbertForPreTraining",
        first=SENTENCE_ORDER,
        segments=INTERFACE,
        layers=("encoder.albert_layer_groups",),
        feed_forward="ff_chunk",
    ),
    _encoder_decoder("bart", "BartForConditionalGeneration", "denoising", segments=INTERFACE),
    _encoder(
        "bert",
        "BertForMaskedLM",
        "BertLMHeadModel",
        pairs="BertForPreTraining",
        first=NEXT_SENTENCE,
        segments=INTERFACE,
    ),
    _decoder(
        "bert-generation",
        "BertGenerationDecoder",
        causal="is_decoder",
        segments=INTERFACE,
        feed_forward="feed_forward_chunk",
    ),
    _encoder(
        "big_bird",
        "BigBirdForMaskedLM",
        "BigBirdForCausalLM",
        pairs="BigBirdForPreTraining",
        segments=ONE_BY_ONE,
        cost="L·block_size",
        causal_settings={"attention_type": "original_full"},
        note="rows longer than (5 + 2·num_random_blocks)·block_size; causal with full attention",
    ),
    _encoder_decoder(
        "bigbird_pegasus",
        "BigBirdPegasusForConditionalGeneration",
        "gap_sentences",
        segments=ONE_BY_ONE,
        cost="L·block_size",
        note="rows longer than (5 + 2·num_random_blocks)·block_size",
    ),
    _decoder(
        "biogpt",
        "BioGptForCausalLM",
        segments=INTERFACE,
        ignored=("layer_norm_eps",),
        feed_forward="",
    ),
    _encoder_decoder(
        "blenderbot", "BlenderbotForConditionalGeneration", "translation", segments=INTERFACE
    ),
    _encoder_decoder(
        "blenderbot-small",
        "BlenderbotSmallForConditionalGeneration",
        "translation",
        segments=INTERFACE,
    ),
    _decoder("bloom", "BloomForCausalLM", segments=MASK, positions=""),
    _encoder(
        "camembert", "CamembertForMaskedLM", "CamembertForCausalLM", **PAD, segments=INTERFACE
    ),
    _decoder("code_llama", "LlamaForCausalLM", config="llama", **ROTARY, segments=INTERFACE),
    _decoder("codegen", "CodeGenForCausalLM", positions="n_positions", segments=MASK),
    _decoder("cohere", "CohereForCausalLM", **ROTARY, segments=INTERFACE),
    _decoder(
        "ctrl",
        "CTRLLMHeadModel",
        positions="n_positions",
        segments=INTERFACE,
        layers=("h",),
        feed_forward="ffn",
    ),
    _encoder(
        "data2vec-text",
        "Data2VecTextForMaskedLM",
        "Data2VecTextForCausalLM",
        **PAD,
        segments=INTERFACE,
    ),
    _encoder(
        "deberta",
        "DebertaForMaskedLM",
        segments=MASK,
        settings={"legacy": True},
        feed_forward="",
    ),
    HubRow(
        model_type="deberta-v2",
        heads={
            "masked": "DebertaV2ForMaskedLM",
            "replaced_token": "DebertaV2ForTokenClassification",
        },
        kind="encoder",
        segments=MASK,
        settings={"legacy": True},
    ),
    _encoder(
        "distilbert",
        "DistilBertForMaskedLM",
        segments=INTERFACE,
        feed_forward="ffn",
    ),
    HubRow(
        model_type="electra",
        heads={
            "replaced_token": "ElectraForPreTraining",
            "masked": "ElectraForMaskedLM",
            "causal": "ElectraForCausalLM",
            "fill_in_the_middle": "ElectraForCausalLM",
        },
        kind="encoder",
        causal="is_decoder",
        segments=INTERFACE,
        shares=True,
        feed_forward="feed_forward_chunk",
    ),
    _encoder(
        "ernie",
        "ErnieForMaskedLM",
        "ErnieForCausalLM",
        pairs="ErnieForPreTraining",
        first=NEXT_SENTENCE,
        segments=INTERFACE,
    ),
    _decoder("falcon", "FalconForCausalLM", **ROTARY, segments=MASK),
    HubRow(
        model_type="flaubert",
        heads={
            "masked": "FlaubertWithLMHeadModel",
            "causal": "FlaubertWithLMHeadModel",
            "fill_in_the_middle": "FlaubertWithLMHeadModel",
        },
        kind="encoder",
        causal="causal",
        segments=MASK,
        layers=("attentions", "ffns"),
        feed_forward="ffns",
        cache="cache",
    ),
    _encoder(
        "fnet",
        "FNetForMaskedLM",
        pairs="FNetForPreTraining",
        first=NEXT_SENTENCE,
        segments=ONE_BY_ONE,
        cost="L·log L",
        note="mixes by Fourier transforms, without attention",
    ),
    _decoder("gemma", "GemmaForCausalLM", **ROTARY, segments=INTERFACE),
    _decoder(
        "git",
        "GitForCausalLM",
        segments=MASK,
        note="text alone, without images",
        feed_forward="feed_forward_chunk",
    ),
    _decoder("gpt-sw3", "GPT2LMHeadModel", positions="n_positions", segments=INTERFACE),
    _decoder("gpt2", "GPT2LMHeadModel", positions="n_positions", segments=INTERFACE),
    _decoder("gpt_bigcode", "GPTBigCodeForCausalLM", positions="n_positions", segments=INTERFACE),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", **ROTARY, segments=INTERFACE),
    _decoder(
        "gpt_neox_japanese",
        "GPTNeoXJapaneseForCausalLM",
        **ROTARY,
        segments=MASK,
        layers=("layers",),
    ),
    _decoder("gptj", "GPTJForCausalLM", positions="n_positions", segments=MASK),
    _encoder(
        "ibert",
        "IBertForMaskedLM",
        **PAD,
        segments=MASK,
        layers=("encoder.layer",),
        feed_forward="",
    ),
    _decoder(
        "imagegpt",
        "ImageGPTForCausalImageModeling",
        positions="n_positions",
        segments=MASK,
        extra_ids=1,
        note="its last id, which nothing predicts, begins a published image",
    ),
    _encoder(
        "layoutlm",
        "LayoutLMForMaskedLM",
        segments=INTERFACE,
        shares=False,
        note="text alone: boxes are 0",
    ),
    _encoder_decoder(
        "led",
        "LEDForConditionalGeneration",
        "denoising",
        positions="max_encoder_position_embeddings",
        decoder_positions="max_decoder_position_embeddings",
        segments=ONE_BY_ONE,
        cost="L·attention_window",
    ),
    _decoder("llama", "LlamaForCausalLM", **ROTARY, segments=INTERFACE),
    _encoder(
        "longformer",
        "LongformerForMaskedLM",
        **PAD,
        segments=ONE_BY_ONE,
        cost="L·attention_window",
        note="as published; architecture=longformer is ours",
        feed_forward="ff_chunk",
    ),
    _encoder_decoder(
        "longt5",
        "LongT5ForConditionalGeneration",
        "gap_sentences",
        positions="",
        body="decoder",
        segments=ONE_BY_ONE,
        cost="L·local_radius",
        feed_forward="DenseReluDense",
    ),
    _encoder("luke", "LukeForMaskedLM", **PAD, segments=MASK, note="text alone, without entities"),
    _encoder_decoder(
        "m2m_100",
        "M2M100ForConditionalGeneration",
        "translation",
        table=False,
        segments=INTERFACE,
        start="eos",  # its positions are counted from the first token that is no padding
    ),
    _decoder(
        "mamba",
        "MambaForCausalLM",
        positions="",
        segments=ONE_BY_ONE,
        cost="L",
        feed_forward="",
        cache="cache_params",
    ),
    _encoder_decoder("marian", "MarianMTModel", "translation", segments=INTERFACE),
    _encoder(
        "markuplm",
        "MarkupLMModel",
        **PAD,
        segments=INTERFACE,
        shares=False,
        layers=("encoder.layer",),
        note="text alone, without paths; the head is put together from published parts",
    ),
    _encoder_decoder("mbart", "MBartForConditionalGeneration", "denoising", segments=INTERFACE),
    _encoder(
        "megatron-bert",
        "MegatronBertForMaskedLM",
        "MegatronBertForCausalLM",
        pairs="MegatronBertForPreTraining",
        first=SENTENCE_ORDER,
        segments=MASK,
    ),
    _decoder(
        "mixtral",
        "MixtralForCausalLM",
        **ROTARY,
        segments=INTERFACE,
        shares=False,
        note="with its router's loss",
        feed_forward="",
    ),
    _encoder(
        "mobilebert",
        "MobileBertForMaskedLM",
        pairs="MobileBertForPreTraining",
        first=NEXT_SENTENCE,
        segments=INTERFACE,
        shares=False,
        feed_forward="",
    ),
    _encoder(
        "mpnet",
        "MPNetForMaskedLM",
        **PAD,
        segments=MASK,
        layers=("encoder.layer",),
        settings={"pad_token_id": 1},
        note="token 1 counts as padding where transformers is given no positions",
        feed_forward="",
    ),
    _decoder(
        "mpt",
        "MptForCausalLM",
        positions="max_seq_len",
        segments=MASK,
        ignored=_MPT_IGNORED,
        feed_forward="ffn",
    ),
    _encoder(
        "mra",
        "MraForMaskedLM",
        segments=ONE_BY_ONE,
        cost="L·block_per_row",
        note="rows of a multiple of 32; its attention, published as a CUDA kernel, is ours",
    ),
    _encoder_decoder("mvp", "MvpForConditionalGeneration", "translation", segments=MASK),
    _encoder_decoder(
        "nllb-moe",
        "NllbMoeForConditionalGeneration",
        "translation",
        table=False,
        segments=INTERFACE,
        settings={"expert_capacity": 2**30, "moe_eval_capacity_token_fraction": -1.0},
        start="eos",  # as M2M's
        note="with its router's loss; in transformers 5 two of its experts do all the work",
    ),
    _encoder(
        "nystromformer",
        "NystromformerForMaskedLM",
        pairs="NystromformerForMaskedLM",
        first=SENTENCE_ORDER,
        segments=ONE_BY_ONE,
        cost="L·num_landmarks",
        note="rows of one length, a multiple of num_landmarks",
    ),
    _decoder(
        "openai-gpt",
        "OpenAIGPTLMHeadModel",
        positions="n_positions",
        segments=MASK,
        layers=("h",),
        cache="",
    ),
    _decoder(
        "opt",
        "OPTForCausalLM",
        body="model.decoder",
        segments=INTERFACE,
        feed_forward="",
    ),
    _encoder_decoder(
        "pegasus", "PegasusForConditionalGeneration", "gap_sentences", segments=INTERFACE
    ),
    _encoder_decoder(
        "pegasus_x",
        "PegasusXForConditionalGeneration",
        "gap_sentences",
        table=False,
        segments=ONE_BY_ONE,
        cost="L·block_size",
    ),
    _decoder("persimmon", "PersimmonForCausalLM", **ROTARY, segments=INTERFACE),
    _decoder("phi", "PhiForCausalLM", **ROTARY, segments=INTERFACE),
    _encoder_decoder("plbart", "PLBartForConditionalGeneration", "denoising", segments=INTERFACE),
    HubRow(
        model_type="prophetnet",
        heads=dict.fromkeys(("future_ngram", *DECODED), "ProphetNetForConditionalGeneration"),
        kind="encoder_decoder",
        leak=_STREAMS_LEAK,
        first_position="pad",
        spare_positions=1,
        feed_forward="feed_forward",
        cache="",  # which would leave out what leaks
    ),
    _decoder("qwen2", "Qwen2ForCausalLM", **ROTARY, segments=INTERFACE),
    _encoder("rembert", "RemBertForMaskedLM", "RemBertForCausalLM", segments=MASK),
    _encoder("roberta", "RobertaForMaskedLM", "RobertaForCausalLM", **PAD, segments=INTERFACE),
    _encoder(
        "roberta-prelayernorm",
        "RobertaPreLayerNormForMaskedLM",
        "RobertaPreLayerNormForCausalLM",
        **PAD,
        segments=INTERFACE,
    ),
    _encoder(
        "roc_bert",
        "RoCBertForMaskedLM",
        "RoCBertForCausalLM",
        segments=INTERFACE,
        note="tokens alone, without shapes and pronunciation",
    ),
    _encoder("roformer", "RoFormerForMaskedLM", "RoFormerForCausalLM", segments=MASK),
    _decoder(
        "rwkv",
        "RwkvForCausalLM",
        positions="",
        segments=ONE_BY_ONE,
        cost="L",
        settings={"rescale_every": 0},
        feed_forward="",
        cache="state",
    ),
    HubRow(
        model_type="splinter",
        heads={"recurring_span": "SplinterForPreTraining"},
        kind="encoder",
        segments=INTERFACE,
        feed_forward="feed_forward_chunk",
    ),
    _encoder(
        "squeezebert",
        "SqueezeBertForMaskedLM",
        pairs="SqueezeBertForMaskedLM",
        first=SENTENCE_ORDER,
        segments=MASK,
        layers=("encoder.layers",),
        feed_forward="",
    ),
    _decoder("stablelm", "StableLmForCausalLM", **ROTARY, segments=INTERFACE),
    _decoder("starcoder2", "Starcoder2ForCausalLM", **ROTARY, segments=INTERFACE),
    _encoder_decoder(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        "span_corruption",
        positions="",
        body="decoder",
        segments=MASK,
        note="with its router's loss",
        cache="",  # whose experts have room for so many tokens of a whole text
    ),
    _encoder_decoder(
        "t5",
        "T5ForConditionalGeneration",
        "span_corruption",
        positions="",
        body="decoder",
        segments=INTERFACE,
        feed_forward="DenseReluDense",
    ),
    _encoder(
        "visual_bert",
        "VisualBertForPreTraining",
        pairs="VisualBertForPreTraining",
        segments=MASK,
        note="text alone, without images",
    ),
    _decoder(
        "xglm",
        "XGLMForCausalLM",
        table=False,
        segments=MASK,
        feed_forward="",
    ),
    HubRow(
        model_type="xlm",
        heads={
            "masked": "XLMWithLMHeadModel",
            "causal": "XLMWithLMHeadModel",
            "fill_in_the_middle": "XLMWithLMHeadModel",
        },
        kind="encoder",
        causal="causal",
        segments=MASK,
        layers=("attentions", "ffns"),
        feed_forward="ffns",
        cache="cache",
    ),
    HubRow(
        model_type="xlm-prophetnet",
        heads=dict.fromkeys(("future_ngram", *DECODED), "ProphetNetForConditionalGeneration"),
        kind="encoder_decoder",
        leak=_STREAMS_LEAK,
        first_position="pad",
        spare_positions=1,
        config="prophetnet",
        feed_forward="feed_forward",
        cache="",
    ),
    _encoder(
        "xlm-roberta", "XLMRobertaForMaskedLM", "XLMRobertaForCausalLM", **PAD, segments=INTERFACE
    ),
    _encoder(
        "xlm-roberta-xl",
        "XLMRobertaXLForMaskedLM",
        "XLMRobertaXLForCausalLM",
        **PAD,
        segments=INTERFACE,
    ),
    HubRow(
        model_type="xlnet",
        heads={
            "permutation": "XLNetLMHeadModel",
            "causal": "XLNetLMHeadModel",
            "fill_in_the_middle": "XLNetLMHeadModel",
        },
        kind="decoder",
        causal="attn_type",
        segments=MASK,
        positions="",
        layers=("layer",),
        cache="mems",
    ),
    _encoder(
        "yoso",
        "YosoForMaskedLM",
        pairs="YosoForMaskedLM",
        first=SENTENCE_ORDER,
        segments=ONE_BY_ONE,
        settings={"use_expectation": True},
        note="by expectation, without hashing, whose CUDA kernel is not at hand",
    ),
)

ROWS: dict[str, HubRow] = {row.model_type: row for row in _ROWS}


def row_of(model_type: str) -> HubRow:
    """The row of a published name.

    Raises:
        UserError: There is none; the message has the nearest name and all of them.
    """
    if model_type in NATIVE:
        raise UserError(
            f"model_type={model_type} is written here: use architecture={NATIVE[model_type]}"
        )
    if model_type not in ROWS:
        raise unknown_choice("model_type", model_type, ROWS)
    return ROWS[model_type]
