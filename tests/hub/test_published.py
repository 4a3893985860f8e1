"""Config and weight names, here and in `transformers`."""

import json

import pytest
import torch
import transformers

from lsp.core.errors import UserError
from lsp.core.objectives import NEXT_TOKEN, PAIRS
from lsp.hub.published import (
    FORMS,
    config_from_published,
    form_of,
    read_published_config,
)
from lsp.models import registry
from lsp.models.longformer_config import LongformerConfig
from lsp.run.config import NATIVE
from tests.hub.tiny import tiny_config, tiny_model

GRID = {
    "causal": {},
    "masked": {"is_decoder": False, "lsh_num_chunks_after": 1},
    "local": {"attn_layers": ["local"], "num_buckets": None},
    "factors": {"num_buckets": [4, 8]},
    "learned positions": {"axial_pos_embds": False},
    "three axes": {"axial_pos_shape": [4, 4, 4], "axial_pos_embds_dim": [8, 8, 16]},
}


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID)
def test_transformers_reads_every_field_as_it_was_written(changes):
    config = tiny_config(**changes)
    form = form_of(config)
    written = json.loads(json.dumps(form.published_config(config, form)))
    read = json.loads(json.dumps(transformers.ReformerConfig.from_dict(written).to_dict()))
    assert {key: read.get(key) for key in written} == written
    assert config_from_published(written) == (config, [])


@pytest.mark.parametrize("changes", GRID.values(), ids=GRID)
def test_weight_names_and_shapes_are_those_of_the_published_class(changes):
    model = tiny_model(**changes)
    form = form_of(model.config)
    config = transformers.ReformerConfig.from_dict(form.published_config(model.config, form))
    theirs = getattr(transformers, form.model_class)(config).state_dict()
    published = form.to_published(model.state_dict(), model.config)
    assert {n: w.shape for n, w in published.items()} == {n: w.shape for n, w in theirs.items()}
    back = form.from_published(theirs, model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_every_architecture_and_objective_has_a_form():
    objectives = {
        "AutoModelForCausalLM": NEXT_TOKEN,
        "AutoModelForMaskedLM": ("masked",),
        "AutoModelForPreTraining": PAIRS,
    }
    native = [registry.get(name) for name in NATIVE]
    pairs = {(a.name, o) for a in native for o in a.objectives(a.config_class())}
    assert pairs <= {(f.architecture, o) for f in FORMS for o in objectives[f.auto_class]}
    assert {f.architecture for f in FORMS} == set(NATIVE)
    assert all(file.is_file() for form in FORMS for file in form.code)


def test_code_is_bundled_only_where_transformers_has_no_class():
    assert not form_of(LongformerConfig(global_tokens=1)).code
    for changes in ({"is_decoder": True}, {"attention_dilation": [2] * 12}):
        assert form_of(LongformerConfig(**changes)).code


def test_unsettled_buckets_are_refused():
    config = tiny_config(num_buckets=None)
    form = form_of(config)
    with pytest.raises(UserError, match=r"architecture\.num_buckets is not settled"):
        form.published_config(config, form)


def test_options_of_other_models_are_left_out_and_told():
    config, ignored = config_from_published(
        tiny_config().to_dict() | {"attention_probs_dropout_prob": 0.1, "task_specific_params": {}}
    )
    assert config == tiny_config()
    assert ignored == ["attention_probs_dropout_prob"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type=bert is not known.*reformer"),
        ({"model_type": None}, "model_type=None is not known"),
        ({"hidden_act": "sine"}, r"config\.json: hidden_act=sine"),
        ({"hidden_size": "wide"}, r"config\.json has a value of the wrong type"),
        ({"sinusoidal_pos_embds": True}, r"config\.json: sinusoidal_pos_embds=true"),
        ({"tie_word_embeddings": True}, r"config\.json: tie_word_embeddings=true cannot work"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_that_cannot_be_imported(changes, message):
    with pytest.raises(UserError, match=message):
        config_from_published(tiny_config().to_dict() | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json"),
        ("{", r"config\.json cannot be read"),
        ("[]", r"config\.json is not a JSON object"),
    ],
    ids=["missing", "damaged", "a list"],
)
def test_config_files_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_published_config(tmp_path)
