"""Packed documents stay apart, no token sees the future, and what is given is checked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from lsp.core.batch import IGNORE_INDEX
from lsp.core.errors import UserError
from lsp.models.memory import MemoryConfig
from lsp.models.nezha import Nezha
from lsp.models.nezha_config import NezhaConfig, resolve
from tests.models.largest_tensor import LargestTensor
from tests.training import tiny
from tests.training.tiny import LENGTH

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    "both ways": {},
    "causal": {"is_decoder": True},
    "pairs": {"sentence_pairs": True},
}
TILED = MemoryConfig("recomputed", tile_megabytes=0.002, head_tiles=3)


def nezha(memory: MemoryConfig | None = None, **values: Any) -> Nezha:
    torch.manual_seed(0)
    return tiny.nezha(memory=memory, **{"initializer_range": 0.2} | values)


def random_ids(rows: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(4, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def loss_and_gradients(
    model: Nezha, rows: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss, _ = model(**rows)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("memory", [MemoryConfig("stored"), TILED], ids=["stored", "tiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_as_alone(kind: str, memory: MemoryConfig):
    """Values and gradients of a packed row are those of its documents one by one."""
    model = nezha(memory, **KINDS[kind]).double()
    ids, ends = random_ids(), (11, 30, 57)
    labels, segments = ids.clone(), torch.zeros_like(ids)
    types = (torch.arange(LENGTH) % 5 > 2).long()[None]
    starts = [0, *ends[:-1]]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        segments[0, start:end] = number
    labels[0, ends[-1] :] = IGNORE_INDEX
    rows = {"input_ids": ids, "labels": labels, "segment_ids": segments, "token_type_ids": types}
    if kind == "pairs":
        rows["pair_positions"] = torch.tensor([[*starts, 0]])
        rows["pair_labels"] = torch.tensor([[1, 0, 1, IGNORE_INDEX]])
    packed, packed_gradients = loss_and_gradients(model, rows)
    total, sums = 0.0, {}
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        alone = {n: rows[n][:, start:end] for n in ("input_ids", "labels", "token_type_ids")}
        if kind == "pairs":
            # The pairs of a row have the weight of all its tokens, each as much as any other.
            model.config.sentence_pairs = False
        loss, gradients = loss_and_gradients(model, alone)
        if kind == "pairs":
            model.config.sentence_pairs = True
            alone["labels"] = torch.zeros_like(alone["labels"])
            hidden = model.hidden_states(alone["input_ids"], None, None, alone["token_type_ids"])
            scores = model.pair_scores(hidden, torch.zeros(1, 1, dtype=torch.int64))[0]
            of_pair = torch.nn.functional.cross_entropy(
                scores, rows["pair_labels"][0, number, None]
            )
            of_pair = of_pair * ends[-1] / len(ends)
            model.zero_grad()
            of_pair.backward()
            loss = loss + of_pair.detach()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = gradients.get(name, 0) + parameter.grad
        total += float(loss)
        sums = {n: gradients.get(n, 0) + sums.get(n, 0) for n in packed_gradients}
    assert float(packed) == pytest.approx(total, rel=1e-6)
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, sums[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["both ways", "causal"])
def test_documents_do_not_see_each_other_nor_the_future(kind: str):
    model = nezha(**KINDS[kind]).eval()
    ids, segments = random_ids(), torch.ones(1, LENGTH, dtype=torch.int64)
    segments[0, 24:] = 2
    before, changed = model.logits(ids, segments), ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % 60 + 4
    after = model.logits(changed, segments)
    assert torch.equal(before[:, :24], after[:, :24])
    assert torch.equal(before[:, 24:40], after[:, 24:40]) is (kind == "causal")
    assert not torch.equal(before[:, 41:], after[:, 41:])


def test_padding_is_not_seen():
    model, ids = nezha().eval(), random_ids()
    segments = torch.ones_like(ids)
    segments[0, 40:] = 0
    alone = model.logits(ids[:, :40])
    torch.testing.assert_close(model.logits(ids, segments)[:, :40], alone)


def test_positions_are_relative_and_clipped():
    """A text is the same wherever it begins, and beyond the clip the order does not matter."""
    model = nezha(max_relative_position=2, num_hidden_layers=1).double().eval()
    ids = random_ids()
    swapped = ids.clone()
    swapped[0, 20], swapped[0, 30] = ids[0, 30], ids[0, 20]
    torch.testing.assert_close(model.logits(ids)[:, 0], model.logits(swapped)[:, 0])
    assert not torch.allclose(model.logits(ids)[:, 29], model.logits(swapped)[:, 29])


@pytest.mark.parametrize("residual", ["stored", "recomputed"])
def test_dropout_is_replayed(residual: str):
    """The recomputing backward drops what the forward dropped: same seed, same gradients."""
    values = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    rows = {"input_ids": random_ids(2), "labels": random_ids(2)}
    results = []
    for each in (nezha(MemoryConfig(residual), **values), nezha(MemoryConfig("stored"), **values)):
        each.begin_micro_batch(3)
        results.append(loss_and_gradients(each, rows))
    (loss, gradients), (expected, expected_gradients) = results
    assert torch.equal(loss, expected)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    state = torch.get_rng_state()
    each.begin_micro_batch(3)
    each(**rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_that_predicts_nothing_adds_nothing():
    model = nezha(**KINDS["pairs"])
    ids = random_ids(2)
    rows = {
        "input_ids": ids,
        "labels": torch.stack([ids[0], torch.full_like(ids[1], IGNORE_INDEX)]),
        "pair_positions": torch.tensor([[0, 9], [0, 9]]),
        "pair_labels": torch.tensor([[1, IGNORE_INDEX], [0, 1]]),
    }
    both, count = model(**rows)
    first, alone = model(**{name: x[:1] for name, x in rows.items()})
    torch.testing.assert_close(both, first)
    assert count == alone == LENGTH


def test_nothing_of_the_size_of_all_pairs_of_positions_exists():
    length = 1024
    model = nezha(MemoryConfig("recomputed"), max_position_embeddings=length)
    ids = random_ids(1, length)
    with LargestTensor() as seen:
        model(ids, ids)[0].backward()
    assert seen.largest < length * length


def test_each_piece_is_one_call_in_which_weights_are_gathered():
    model = nezha(TILED).eval()
    calls: Counter[str] = Counter()

    def count(name: str) -> Any:
        return lambda *_: calls.update([name])

    for number, layer in enumerate(model.nezha.encoder.layer):
        layer.attention.output.register_forward_hook(count(f"attention {number}"))
        layer.output.register_forward_hook(count(f"feed_forward {number}"))
    model.lm_head.register_forward_hook(count("the head"))
    ids = random_ids(2)
    model(ids, ids)
    plan = model.execution_plan(2, LENGTH)
    assert dict(calls) == plan
    assert all(pieces > 1 for pieces in plan.values())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"hidden_size": 770}, r"hidden_size=770 has to be a multiple of .*: use 768 or 792"),
        ({"max_relative_position": 0}, r"max_relative_position=0 has to be 1 or more"),
        ({"sentence_pairs": True, "is_decoder": True}, r"use is_decoder=false"),
        ({"sentence_pairs": True, "type_vocab_size": 1}, r"type_vocab_size=1 cannot tell two"),
        ({"pad_token_id": 40000}, r"pad_token_id=40000 is not below vocab_size=21128"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout=1.0 has to be at least 0 and below 1"),
        ({"hidden_act": "gellu"}, r"hidden_act"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        NezhaConfig(**values).validate()


def test_a_run_completes_the_config():
    given = NezhaConfig(num_hidden_layers=2)
    known = {"vocab_size": 300, "sequence_length": 96, "special_ids": {"pad": 1, "eos": 5}}
    done = resolve(given, objective="next_sentence", **known)
    assert (done.vocab_size, done.max_position_embeddings, done.pad_token_id) == (300, 96, 1)
    assert (done.sentence_pairs, done.is_decoder) == (True, False)
    assert given.vocab_size == 21128
    with pytest.raises(UserError, match="sequence_length=97 is longer than max_position_embeddin"):
        done.check_length(97)
    with pytest.raises(UserError, match=r"parallelism.sequence=2: .* look at whole rows; use 1"):
        done.check_shares(96, 2)
    causal = resolve(given, objective="causal", **known)
    assert (causal.sentence_pairs, causal.is_decoder) == (False, True)
    with pytest.raises(UserError, match=r"parallelism.sequence=5: .* use 1 or 2 or 3 or 4"):
        causal.check_shares(96, 5)
    with pytest.raises(UserError, match="sequence_length=640 is longer than max_position_embeddi"):
        resolve(
            NezhaConfig(max_position_embeddings=600),
            objective="masked",
            **known | {"sequence_length": 640},
        )


def test_reversible_is_refused():
    with pytest.raises(UserError, match=r"memory=reversible is not possible"):
        Nezha(NezhaConfig(), MemoryConfig("reversible"))
