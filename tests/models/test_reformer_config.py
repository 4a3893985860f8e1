"""The published configuration: reading, writing, completing, refusing."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from lsp.core.errors import UserError
from lsp.models.memory import MemoryConfig
from lsp.models.reformer_config import ReformerConfig, resolve


def _resolve(config: ReformerConfig, **changes) -> ReformerConfig:
    known = {"vocab_size": 259, "sequence_length": 4096, "objective": "causal"}
    return resolve(config, **{**known, **changes})


def test_round_trip_through_the_published_form():
    config = ReformerConfig(num_buckets=[8, 16], hash_seed=3, attn_layers=["lsh", "local"])
    assert ReformerConfig.from_dict(config.to_dict()) == config


def test_bookkeeping_of_published_files_is_ignored():
    config = ReformerConfig.from_dict(
        {"model_type": "reformer", "architectures": ["X"], "torch_dtype": "float32",
         "sinusoidal_pos_embds": False, "axial_pos_shape": (64, 64), "vocab_size": 77}
    )  # fmt: skip
    assert config == ReformerConfig(vocab_size=77)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"num_bucket": 4}, "did you mean 'num_buckets'"),
        ({"model_type": "bert"}, "model_type=bert"),
        ({"sinusoidal_pos_embds": True}, "sinusoidal"),
        ({"num_buckets": 7}, "num_buckets=7"),
        ({"num_buckets": [4, 3]}, "num_buckets"),
        ({"num_buckets": []}, "num_buckets"),
        ({"num_buckets": "many"}, "num_buckets"),
        ({"num_buckets": 4.0}, "num_buckets"),
        ({"attn_layers": ["lhs"]}, "did you mean 'lsh'"),
        ({"attn_layers": []}, "attn_layers"),
        ({"hidden_act": "rellu"}, "did you mean 'relu"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ({"local_num_chunks_before": -1}, "local_num_chunks_before=-1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"hidden_size": 512}, r"use for example \[128, 384\]"),
        ({"axial_pos_shape": [4, 4, 4]}, "as many entries"),
        ({"is_decoder": True, "lsh_num_chunks_after": 1}, "lsh_num_chunks_after=1"),
        ({"pad_token_id": 320}, "vocab_size=320"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_with_what_would_work(published: dict, message: str):
    with pytest.raises(UserError, match=message):
        ReformerConfig.from_dict(published)


def test_works_as_a_structured_config():
    structured = OmegaConf.structured(ReformerConfig)
    overrides = OmegaConf.create({"num_buckets": [8, 4], "attn_layers": ["lsh"], "hash_seed": 1})
    config = OmegaConf.to_object(OmegaConf.merge(structured, overrides))
    assert config == ReformerConfig(num_buckets=[8, 4], attn_layers=["lsh"], hash_seed=1)
    memory = OmegaConf.to_object(OmegaConf.structured(MemoryConfig))
    assert memory == MemoryConfig()


def test_resolve_completes_what_is_left_out_and_does_not_modify():
    config = ReformerConfig(hidden_size=512)
    before = dataclasses.asdict(config)
    done = _resolve(config, sequence_length=16384, special_ids={"pad": 1, "eos": 5, "bos": 6})
    assert dataclasses.asdict(config) == before
    assert (done.vocab_size, done.pad_token_id, done.eos_token_id, done.bos_token_id) == (
        259, 1, 5, 6,
    )  # fmt: skip
    assert done.is_decoder
    assert done.max_position_embeddings == 16384
    assert done.axial_pos_shape == [128, 128]
    assert done.axial_pos_embds_dim == [128, 384]
    assert done.num_buckets == [16, 32]


def test_resolve_keeps_what_was_chosen():
    chosen = ReformerConfig(
        axial_pos_shape=[32, 512],
        axial_pos_embds_dim=[100, 156],
        max_position_embeddings=20000,
        vocab_size=512,
        num_buckets=64,
    )
    done = _resolve(chosen, sequence_length=16384, objective="masked")
    assert done == dataclasses.replace(chosen, is_decoder=False)


def test_buckets_are_settled_even_where_a_row_is_one_chunk():
    assert _resolve(ReformerConfig(), sequence_length=64).num_buckets == 2


def test_resolve_is_idempotent():
    done = _resolve(ReformerConfig(), sequence_length=2048)
    assert _resolve(done, sequence_length=2048) == done


@pytest.mark.parametrize(
    ("config", "known", "message"),
    [
        ({}, {"sequence_length": 4100}, "use 4096 or 4160"),
        ({"lsh_attn_chunk_length": 48}, {"sequence_length": 4096}, "use 3984|use 4032 or 4224"),
        ({"axial_pos_shape": [32, 32]}, {"sequence_length": 2048}, r"use \[32, 64\].*=1024"),
        ({"vocab_size": 100}, {}, "vocab_size=100"),
        ({"max_position_embeddings": 1000}, {}, "max_position_embeddings=1000"),
        ({"local_num_chunks_after": 1}, {}, "local_num_chunks_after=1"),
    ],
    ids=["length", "lcm", "axial_shape", "vocabulary", "positions", "after"],
)
def test_resolve_refuses_what_cannot_work(config: dict, known: dict, message: str):
    with pytest.raises(UserError, match=message):
        _resolve(ReformerConfig(**config), **known)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": "reversed"}, "did you mean 'reversible'"),
        ({"head_tiles": -1}, "head_tiles=-1"),
        ({"tile_megabytes": -1}, "tile_megabytes=-1"),
    ],
    ids=["residual", "tiles", "budget"],
)
def test_bad_memory_options_are_refused(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        MemoryConfig(**change)
