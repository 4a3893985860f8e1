"""Transformer-XL: its memory, its documents, and the ways to run it that give the same."""

import pytest
import torch

from lsp.core.errors import UserError
from lsp.models.layers.chunks import documents
from lsp.models.memory import MemoryConfig
from lsp.models.transformer_xl import TransformerXL
from lsp.models.transformer_xl_config import TransformerXLConfig, resolve

LENGTH, VOCABULARY = 20, 50
WAYS = {
    "recomputed": MemoryConfig("recomputed"),
    "in tiles": MemoryConfig("recomputed", feed_forward_tiles=3, tile_megabytes=0.001),
    "stored": MemoryConfig("stored"),
}


def config(**changes):
    values = {
        "vocab_size": VOCABULARY, "cutoffs": [10, 30], "d_model": 16, "d_embed": 16, "n_head": 2,
        "d_head": 8, "d_inner": 24, "div_val": 2, "n_layer": 3, "mem_len": 12, "clamp_len": 9,
        "same_length": False, "dropout": 0.0, "init_std": 0.2, "proj_init_std": 0.2,
        "tgt_len": LENGTH,
    }  # fmt: skip
    return TransformerXLConfig(**values | changes)


def build(memory=None, **changes):
    torch.manual_seed(0)
    return TransformerXL(config(**changes), memory)


def text(rows=2, length=LENGTH):
    torch.manual_seed(1)
    return torch.randint(0, VOCABULARY, (rows, length))


VARIANTS = {
    "published": {"zero_memory": True, "memory_across_documents": True, "same_length": True},
    "dropout": {"dropout": 0.2, "dropatt": 0.2},
    "norms first, shared biases": {"pre_lnorm": True, "untie_r": False},
    "learned distances": {"attn_type": 1, "clamp_len": -1},
    "sinusoids": {"attn_type": 2},
    "learned places": {"attn_type": 3},
    "sampled softmax": {"sample_softmax": 8, "cutoffs": [], "div_val": 1, "d_embed": 8},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_run_it_gives_the_same_gradients(name):
    found = {}
    for way, memory in WAYS.items():
        # Tiles have masks of their own.
        changes = VARIANTS[name] if way != "in tiles" else VARIANTS[name] | {"dropout": 0.0}
        if way == "in tiles" and "dropout" in VARIANTS[name]:
            continue
        model = build(memory, **changes)
        model(text(), text())
        model.recall(model.remembered())
        model.begin_micro_batch(5, 2)
        total, _ = model(text().roll(1, 1), text())
        total.backward()
        found[way] = [total.detach(), *(p.grad for p in model.parameters())]
        assert all(grad is not None for grad in found[way])
    whole = found.pop("stored")
    for gradients in found.values():
        for one, other in zip(gradients, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def in_segments(model, ids, length):
    memory, parts = None, []
    for start in range(0, ids.shape[1], length):
        model.recall(memory)
        parts.append(model.logits(ids[:, start : start + length]))
        memory = model.remembered()
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize(
    "changes",
    [{}, {"clamp_len": -1, "attn_type": 1, "tgt_len": 99}, {"mem_len": 16, "same_length": True}],
    ids=["relative", "learned", "same length"],
)
def test_segment_by_segment_equals_the_whole_text(changes, length):
    model = build(**{"mem_len": 60} | changes).double().eval()
    ids = text(length=60)
    with torch.no_grad():
        whole, parts = model.logits(ids), in_segments(model, ids, length)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_a_longer_memory_in_evaluation_remembers_more():
    model, ids = build(mem_len=4).eval(), text(length=60)
    with torch.no_grad():
        whole, short = model.logits(ids), in_segments(model, ids, 20)
        model.reset_memory_length(60)
        long = in_segments(model, ids, 20)
    torch.testing.assert_close(long, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(short, whole, atol=1e-3)


def test_a_memory_is_of_one_shape_apart_from_any_graph_and_recalled_once():
    model = build()
    model(text(length=5), text(length=5))
    memory = model.remembered()
    assert {name: tuple(x.shape) for name, x in memory.items()} == {
        **{f"layer_{n}": (2, 12, 16) for n in range(3)},
        "segments": (2, 12),
    }
    assert not any(x.requires_grad for x in memory.values())
    assert memory["segments"].tolist() == [[0] * 7 + [1] * 5] * 2
    fresh = model.logits(text())
    model.recall(memory)
    assert not torch.allclose(model.logits(text()), fresh)
    assert torch.equal(model.logits(text()), fresh)
    assert build(mem_len=0).remembered() is None


@pytest.mark.parametrize("frozen", ["dec_attn", "r_net", "qkv_net", "_bias"])
def test_frozen_weights_let_gradients_through(frozen):
    found = {}
    for way, memory in WAYS.items():
        model = build(memory)
        for name, parameter in model.transformer.layers.named_parameters():
            parameter.requires_grad = frozen not in name
        model(text(), text())
        model.recall(model.remembered())
        model(text(), text())[0].backward()
        found[way] = {name: p.grad for name, p in model.named_parameters()}
    whole = found.pop("stored")
    for gradients in found.values():
        for name, grad in gradients.items():
            assert (grad is None) == (frozen in name and ".layers." in name)
            torch.testing.assert_close(grad, whole[name], rtol=1e-4, atol=1e-4)


def test_a_memory_has_no_gradient_but_its_projections_have():
    model = build(dropout=0.1)
    model(text(), text())
    memory = model.remembered()
    for x in memory.values():
        if x.is_floating_point():
            x.requires_grad_()
    model.recall(memory)
    total, _ = model(text(), text())
    total.backward()
    assert all(x.grad is None for x in memory.values())


def test_no_part_of_what_is_remembered_holds_the_whole_row():
    model = build(mem_len=2)
    model(text(), text())
    for x in model.remembered().values():
        assert x.untyped_storage().nbytes() == x.nbytes


POSITIONS = torch.stack([torch.arange(LENGTH), torch.arange(30, 30 + LENGTH)])


def test_a_document_sees_its_own_memory_alone():
    model, ids = build().eval(), text()
    model.logits(text().flip(1))
    memory = model.remembered()
    with torch.no_grad():
        fresh = model.logits(ids)
        model.recall(memory)
        # The first row begins a document, the second goes on.
        mixed = model.logits(ids, torch.ones_like(ids), POSITIONS)
        model.recall(memory)
        going_on = model.logits(ids)
    torch.testing.assert_close(mixed[0], fresh[0])
    torch.testing.assert_close(mixed[1], going_on[1])
    assert not torch.allclose(fresh[1], going_on[1])


SEGMENTS = torch.tensor([[1] * 8 + [2] * 12, [1] * 6 + [2] * 10 + [0] * 4])


def test_a_packed_document_is_as_if_it_were_alone():
    model, ids = build().eval(), text()
    with torch.no_grad():
        packed = model.logits(ids, SEGMENTS)
        torch.testing.assert_close(packed[:1, :8], model.logits(ids[:1, :8]))
        torch.testing.assert_close(packed[:1, 8:], model.logits(ids[:1, 8:]))
        torch.testing.assert_close(packed[1:, 6:16], model.logits(ids[1:, 6:16]))


def test_what_is_remembered_is_of_the_last_document():
    model, ids = build().eval(), text()
    model.logits(ids, SEGMENTS)
    memory = model.remembered()
    assert memory["segments"].tolist() == [[1] * 12, [1] * 8 + [0] * 4]
    model.recall(memory)
    next_row = torch.ones_like(ids)
    after = model.logits(ids, next_row, POSITIONS + 5)
    # The memory without the padding, and no other document.
    twin = build().eval()
    twin.logits(ids[1:, 6:16])
    twin.recall(twin.remembered())
    assert not torch.allclose(after[1:], twin.logits(ids[1:]))  # distances differ by the padding
    alone = build(mem_len=30).eval()
    alone.logits(ids[:1, 8:])
    alone.recall(alone.remembered())
    torch.testing.assert_close(after[:1], alone.logits(ids[:1]))


def test_across_documents_everything_but_padding_is_seen():
    model, ids = build(memory_across_documents=True).eval(), text()
    plain = model.logits(ids)
    packed = model.logits(ids, SEGMENTS, POSITIONS)
    torch.testing.assert_close(packed[0], plain[0])
    torch.testing.assert_close(packed[1, :16], plain[1, :16])
    memory = model.remembered()
    assert memory["segments"].tolist() == [[1] * 12, [1] * 8 + [0] * 4]
    model.recall(memory)
    begins = model.logits(ids, torch.ones_like(ids), POSITIONS - POSITIONS[:, :1])
    model.recall(memory)
    torch.testing.assert_close(begins, model.logits(ids))


def test_no_document_feels_another_bit_for_bit():
    ids, results = text(), []
    for change in (0, 1):
        model = build(dropout=0.2)
        given = ids.clone()
        given[0, :8] = (given[0, :8] + change) % VOCABULARY
        model.begin_micro_batch(3)
        total, _ = model(given, ids.masked_fill(documents(SEGMENTS) == 0, -100), SEGMENTS)
        total.backward()
        results.append((total.detach(), model.transformer.layers[0].dec_attn.r_net.weight.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_padding_gives_no_loss_and_no_gradient_to_anything():
    model, ids = build(), text(1)
    segments = torch.tensor([[1] * 14 + [0] * 6])
    labels = ids.masked_fill(segments == 0, -100)
    found = []
    for filler in (0, 7):
        total, count = model(ids.masked_fill(segments == 0, filler), labels, segments)
        assert count == 14
        model.zero_grad()
        total.backward()
        found.append([total.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_zeros_before_a_text_are_seen():
    ids = text()
    model, published = build().eval(), build(zero_memory=True).eval()
    assert not torch.allclose(model.logits(ids), published.logits(ids))
    assert published.remembered()["segments"].all()


def test_dropout_is_a_function_of_the_seed_and_of_the_row():
    model = build(dropout=0.2, dropatt=0.2)

    def loss(seed, row):
        model.begin_micro_batch(seed, row)
        return model(text(), text())[0].detach()

    assert torch.equal(loss(1, 0), loss(1, 0))
    assert not torch.equal(loss(1, 0), loss(2, 0))
    assert not torch.equal(loss(1, 0), loss(1, 2))
    state = torch.get_rng_state()
    loss(1, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawn_tokens_are_the_same_in_all_rows_of_a_step():
    model = build(**VARIANTS["sampled softmax"])
    drawn = []
    hook = model.crit.register_forward_pre_hook(lambda _, given: drawn.append(given[2]))
    for seed, row in ((1, 0), (1, 2), (2, 0)):
        model.begin_micro_batch(seed, row)
        model(text(), text())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    hook.remove()
    model.eval()
    total, _ = model(text(), text())
    exact = -model.logits(text()).gather(-1, text()[..., None]).sum()
    torch.testing.assert_close(total, exact)


def test_losses_token_by_token_add_up():
    model, ids = build().eval(), text()
    labels = ids.masked_fill(SEGMENTS == 0, -100)
    total, _ = model(ids, labels, SEGMENTS)
    losses, hits = model.token_losses(ids, labels, SEGMENTS)
    torch.testing.assert_close(losses.sum(), total.detach())
    assert hits.shape == losses.shape == (36,)


@pytest.mark.parametrize("name", ["published", "learned distances", "learned places"])
def test_gradients_by_finite_differences(name):
    changes = VARIANTS[name] | {"n_layer": 2, "mem_len": 3, "tgt_len": 4}
    model = build(**changes).double().eval()
    model.logits(text(1, 4))
    memory = model.remembered()
    targets = text(1, 4).roll(-1, 1)

    def loss():
        model.recall(memory)
        return -model.logits(text(1, 4)).gather(-1, targets[..., None]).sum()

    loss().backward()
    for parameter in model.transformer.layers[0].dec_attn.parameters():
        gradient = parameter.grad
        torch.manual_seed(3)
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                parameter += step * direction
                values.append(loss())
            parameter += 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def test_the_published_size_builds():
    with torch.device("meta"):
        model = TransformerXL(TransformerXLConfig())
    assert sum(p.numel() for p in model.parameters()) == 285_205_322
    assert model.flops_per_token(512) > 6 * 226e6


def test_a_row_beyond_the_learned_places_is_refused():
    model = build(attn_type=3)
    with pytest.raises(UserError, match=r"40 tokens is longer than the 32 positions"):
        model.logits(text(length=40))


RUN = {"vocab_size": 300, "sequence_length": 64, "objective": "causal"}


def test_a_run_completes_the_config():
    made = resolve(TransformerXLConfig(cutoffs=[], attn_type=3), **RUN, special_ids={"eos": 4})
    assert (made.vocab_size, made.cutoffs, made.tgt_len, made.eos_token_id) == (300, [], 64, 4)
    large = resolve(TransformerXLConfig(cutoffs=[]), **RUN | {"vocab_size": 267_734})
    assert large.cutoffs == [19999, 39999, 199999]


REFUSED = {
    "cutoffs": ({"cutoffs": [20000]}, r"cutoffs=\[20000\] have to rise.*vocab_size=300: use \[\]"),
    "order": ({"cutoffs": [30, 20]}, r"cutoffs=\[30, 20\] have to rise"),
    "adaptive": ({"adaptive": False, "cutoffs": [20]}, r"use cutoffs=\[\]"),
    "narrow": ({"cutoffs": [20, 40], "d_embed": 8}, "div_val=4 leaves nothing of d_embed=8"),
    "same length": ({"mem_len": 0}, "same_length=True lets a token see mem_len=0"),
    "sampled": ({"cutoffs": [20], "sample_softmax": 5}, "sample_softmax=5 estimates one softmax"),
    "projections": ({"tie_projs": [True, True]}, "an entry for each of 1 clusters"),
    "shared": ({"untie_r": False, "attn_type": 2}, "untie_r=False shares biases"),
    "places": ({"attn_type": 3, "d_head": 5}, "attn_type=3 adds n_head=16 x d_head=5"),
    "odd": ({"d_model": 7}, "d_model=7 is odd"),
    "kind": ({"attn_type": 4}, "attn_type=4 is not known"),
    "init": ({"init": "norma"}, "did you mean 'normal'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name):
    changes, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        resolve(TransformerXLConfig(**{"cutoffs": []} | changes), **RUN)


def test_a_masked_objective_is_refused():
    with pytest.raises(UserError, match="use objective=causal"):
        resolve(TransformerXLConfig(cutoffs=[]), **RUN | {"objective": "masked"})


def test_a_published_file_is_read():
    # As in the published file, with what its library notes for itself.
    published = {
        "model_type": "transfo-xl", "n_token": 267735, "ext_len": 0, "tgt_len": 128,
        "tie_weight": True, "tie_projs": [False, True, True, True], "architectures": ["X"],
    }  # fmt: skip
    made = TransformerXLConfig.from_dict(published)
    assert (made.vocab_size, made.zero_memory, made.memory_across_documents) == (267735, True, True)
    assert TransformerXLConfig.from_dict(made.to_dict()) == made
    with pytest.raises(UserError, match="did you mean 'mem_len'"):
        TransformerXLConfig.from_dict({"mem_lenn": 3})


def test_shares_are_dealt_out_by_heads():
    config().check_shares(LENGTH, 2)
    with pytest.raises(UserError, match=r"n_head=2.*use 1 or 2"):
        config().check_shares(LENGTH, 4)
