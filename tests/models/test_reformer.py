"""The Reformer as a whole: execution modes, documents, seeds, lengths, precision."""

import pytest
import torch

from lsp.core.batch import positions_from_segments
from lsp.core.errors import UserError
from lsp.models.memory import MemoryConfig
from lsp.models.reformer import Reformer
from lsp.models.reformer_config import ReformerConfig
from lsp.models.registry import ARCHITECTURES, get

torch.set_num_threads(1)

LENGTH, VOCABULARY = 64, 31


def _model(memory: MemoryConfig | None = None, **changes) -> Reformer:
    values = {
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
        "num_attention_heads": 3,
        "hidden_size": 16,
        "feed_forward_size": 24,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "axial_pos_shape": [4, 16],
        "axial_pos_embds_dim": [4, 12],
        "vocab_size": VOCABULARY,
        "num_buckets": 8,
        "num_hashes": 2,
        "initializer_range": 0.1,
        "is_decoder": True,
        "hidden_dropout_prob": 0.1,
        "local_attention_probs_dropout_prob": 0.1,
        "lsh_attention_probs_dropout_prob": 0.1,
    }
    torch.manual_seed(0)
    return Reformer(ReformerConfig(**{**values, **changes}), memory)


def _tokens(rows: int = 2, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (2, rows, length))
    return tokens[0], tokens[1]


def _gradients(model: Reformer, *batch, seed: int = 7, **options):
    model.zero_grad()
    model.begin_micro_batch(seed)
    loss, count = model(*batch, **options)
    (loss / count).backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def _assert_close(grads, want, tolerance: float) -> None:
    for name in want:
        error = (grads[name] - want[name]).norm() / want[name].norm().clamp_min(1e-12)
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("residual", ["reversible", "recomputed"])
def test_twelve_layers_with_dropout_have_the_gradients_of_plain_autograd(residual: str):
    layers = ["local", "lsh"] * 6
    options = {"feed_forward_tiles": 3, "head_tiles": 5, "attention_groups": 2}
    model = _model(MemoryConfig(residual, **options), attn_layers=layers)
    plain = _model(MemoryConfig("stored", **options), attn_layers=layers)
    loss, grads = _gradients(model, *_tokens())
    want_loss, want = _gradients(plain, *_tokens())
    torch.testing.assert_close(loss, want_loss)
    _assert_close(grads, want, 1e-5)


@pytest.mark.parametrize("residual", ["reversible", "recomputed", "stored"])
def test_a_step_with_a_given_seed_leaves_the_global_generator_alone(residual: str):
    model, batch = _model(MemoryConfig(residual)), _tokens()
    before = torch.get_rng_state()
    _gradients(model, *batch)
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_without_a_seed_draws_one_number():
    model, batch = _model(), _tokens()
    torch.manual_seed(5)
    first, _ = model(*batch)
    first.backward()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randint(2**62, ())
    assert torch.equal(after, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(model(*batch)[0], first)


def test_dropout_and_hashes_are_a_function_of_the_seed():
    model, batch = _model(), _tokens()
    losses = {seed: _gradients(model, *batch, seed=seed)[0].item() for seed in (1, 2)}
    assert _gradients(model, *batch, seed=1)[0].item() == losses[1]
    assert losses[1] != losses[2]


def test_hashes_differ_between_steps_only_without_a_hash_seed():
    none = {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}
    none["lsh_attention_probs_dropout_prob"] = 0.0
    batch = _tokens()
    for hash_seed, kinds in ((None, 2), (3, 1)):
        model = _model(hash_seed=hash_seed, attn_layers=["lsh"], num_hashes=1, **none)
        assert len({_gradients(model, *batch, seed=s)[0].item() for s in (1, 2)}) == kinds


def test_evaluation_is_deterministic_and_has_no_dropout():
    model, (ids, labels) = _model().eval(), _tokens()
    before = torch.get_rng_state()
    assert torch.equal(model.logits(ids), model.logits(ids))
    assert torch.equal(before, torch.get_rng_state())
    loss, count = model(ids, labels)
    want = torch.nn.functional.cross_entropy(
        model.logits(ids).flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss, want)
    assert count == ids.numel()


@pytest.mark.parametrize("tiles", [2, 7, 64])
def test_tiles_and_groups_compute_the_same(tiles: int):
    dropless = {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}
    dropless["lsh_attention_probs_dropout_prob"] = 0.0
    want_loss, want = _gradients(_model(**dropless), *_tokens())
    memory = MemoryConfig(feed_forward_tiles=tiles, head_tiles=tiles, attention_groups=tiles)
    loss, grads = _gradients(_model(memory, **dropless), *_tokens())
    torch.testing.assert_close(loss, want_loss)
    _assert_close(grads, want, 1e-5)


def test_published_chunk_sizes_are_honoured():
    model = _model(chunk_size_feed_forward=10, chunk_size_lm_head=7)
    x = torch.zeros(2, LENGTH, 16)
    assert len(model.reformer.encoder.layers[0].feed_forward.tiles(x)) == 7
    assert model._head_tiles(x) == 10


def test_tiles_of_a_head_are_no_shorter_than_its_vectors():
    """However large the vocabulary: each tile reads the whole weight."""
    memory = MemoryConfig()
    assert memory.head_tiles_for(2, 4096, 256, 50_000, "cpu") == 32
    assert memory.head_tiles_for(1, 4096, 256, 256, "cpu") == 2  # 2 MB each
    assert MemoryConfig(head_tiles=300).head_tiles_for(1, 4096, 256, 256, "cpu") == 300


def test_tiles_follow_the_budget():
    model = _model(MemoryConfig(tile_megabytes=1), feed_forward_size=1024)
    branch = model.reformer.encoder.layers[0].feed_forward
    assert len(branch.tiles(torch.zeros(1, 2048, 16))) == 8
    assert len(branch.tiles(torch.zeros(1, 64, 16))) == 1


SEGMENTS = torch.tensor([[1] * 16 + [2] * 24 + [3] * 16 + [0] * 8, [1] * 20 + [2] * 30 + [0] * 14])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("layers", [["local"] * 2, ["lsh"] * 2, ["local", "lsh"] * 2], ids=str)
def test_packed_documents_do_not_see_each_other(layers: list[str], causal: bool):
    model = _model(attn_layers=layers, is_decoder=causal).eval()
    ids, labels = _tokens()
    positions = positions_from_segments(SEGMENTS)
    labels = labels.masked_fill(SEGMENTS == 0, -100)

    def run(ids: torch.Tensor, keep: torch.Tensor):
        _, grads = _gradients(model, ids, labels.where(keep, -100), SEGMENTS, positions)
        return model.logits(ids, SEGMENTS, positions).detach(), grads

    for number in (1, 2, 3):
        changed = number == SEGMENTS
        other = ids.where(~changed, (ids + 5) % VOCABULARY)
        rest = ~changed & (SEGMENTS != 0)
        logits, grads = run(ids, rest)
        other_logits, other_grads = run(other, rest)
        torch.testing.assert_close(logits[rest], other_logits[rest], rtol=0, atol=1e-6)
        assert not torch.allclose(logits[changed], other_logits[changed], atol=1e-3)
        _assert_close(other_grads, grads, 1e-6)


def test_positions_restart_with_every_document():
    model = _model(attn_layers=["local"]).eval()
    ids, _ = _tokens(rows=1)
    ids[:, 32:] = ids[:, :32]
    segments = torch.tensor([[1] * 32 + [2] * 32])
    logits = model.logits(ids, segments, positions_from_segments(segments))
    torch.testing.assert_close(logits[:, :32], logits[:, 32:], rtol=0, atol=1e-6)


def test_padding_changes_nothing():
    model = _model().eval()
    ids, _ = _tokens()
    segments = torch.ones_like(ids)
    segments[:, 40:] = 0
    other = ids.where(segments == 1, 3)
    torch.testing.assert_close(
        model.logits(ids, segments)[:, :40], model.logits(other, segments)[:, :40]
    )


@pytest.mark.parametrize("residual", ["reversible", "recomputed", "stored"])
def test_bf16_autocast(residual: str):
    model, batch = _model(MemoryConfig(residual), attn_layers=["local", "lsh"] * 3), _tokens()
    want_loss, want = _gradients(model, *batch)
    model.zero_grad()
    model.begin_micro_batch(7)
    with torch.autocast("cpu", torch.bfloat16):
        loss, count = model(*batch)
    (loss / count).backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), want_loss, rtol=2e-2, atol=0)
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    expected = torch.cat([g.flatten() for g in want.values()])
    assert torch.nn.functional.cosine_similarity(got, expected, dim=0) > 0.98


def test_weights_in_bf16():
    model, batch = _model(MemoryConfig("reversible")).bfloat16(), _tokens()
    loss, grads = _gradients(model, *batch)
    assert loss.isfinite()
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads.values())


def test_drift_is_reported():
    model = _model(MemoryConfig(measure_drift=True), attn_layers=["local", "lsh"] * 3)
    _gradients(model, *_tokens())
    assert 0 < model.reversible_drift() < 1e-5
    assert _model().reversible_drift() is None


def test_automatic_buckets_are_saved_in_the_config():
    model = _model(num_buckets=None)
    _gradients(model, *_tokens())
    assert model.config.num_buckets == 16
    assert model.config.to_dict()["num_buckets"] == 16


@pytest.mark.parametrize(
    ("length", "message"), [(60, "use 56 or 64"), (72, "64 positions")], ids=["chunks", "positions"]
)
def test_training_lengths_that_do_not_fit_are_refused(length: int, message: str):
    with pytest.raises(UserError, match=message):
        _model()(*_tokens(length=length))


def test_num_hashes_must_be_positive():
    with pytest.raises(UserError, match="num_hashes=0"):
        _model()(*_tokens(), num_hashes=0)


def test_flops_follow_weights_and_attended_keys():
    model = _model(attn_layers=["local"])
    learned = sum(p.numel() for n, p in model.named_parameters() if "embeddings" not in n)
    assert model.flops_per_token(64) == 6 * learned + 12 * 16 * 24
    lsh = _model(attn_layers=["lsh"], num_hashes=4)
    learned = sum(p.numel() for n, p in lsh.named_parameters() if "embeddings" not in n)
    assert lsh.flops_per_token(64) == 6 * learned + 12 * 4 * 16 * 24


def test_registry():
    assert get("reformer") is ARCHITECTURES["reformer"]
    assert isinstance(get("reformer").build(_model().config), Reformer)
    with pytest.raises(UserError, match="did you mean 'reformer'"):
        get("reformr")
