"""The adaptive and the sampled softmax against what defines them."""

import pytest
import torch
import torch.nn.functional as F

from lsp.models.layers.adaptive_softmax import AdaptiveEmbedding, AdaptiveLogSoftmax
from lsp.models.layers.losses import tiled_loss
from lsp.models.layers.sampled_softmax import LogUniformSampler, sampled_losses
from tests.models.largest_tensor import LargestTensor

VOCABULARY, WIDTH, LENGTH = 30, 16, 11
CLUSTERS = {"one": [], "three": [8, 20]}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def head(ends, div_val=1, width=WIDTH, samples=0):
    torch.manual_seed(0)
    made = AdaptiveLogSoftmax([*ends, VOCABULARY], width, WIDTH, div_val, samples)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def text(length=LENGTH):
    hidden = torch.randn(2, length, WIDTH, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (2, length))
    labels[0, :3] = -100
    return hidden, labels


@pytest.mark.parametrize("div_val", [1, 2, 4])
@pytest.mark.parametrize("ends", CLUSTERS.values(), ids=CLUSTERS)
def test_probabilities_add_up_and_give_the_loss(ends, div_val):
    made, (hidden, labels) = head(ends, div_val), text()
    log_probabilities = made(hidden)
    assert log_probabilities.shape == (2, LENGTH, VOCABULARY)
    sums = log_probabilities.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    want = F.nll_loss(log_probabilities.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(made(hidden, labels), want)


def test_is_the_adaptive_softmax_of_torch():
    made, (hidden, _) = head([8, 20], 2), text()
    twin = torch.nn.AdaptiveLogSoftmaxWithLoss(
        WIDTH, VOCABULARY, [8, 20], div_value=2.0, head_bias=True
    )
    with torch.no_grad():
        first = made.out_projs[0].weight
        twin.head.weight[:8] = made.out_layers[0].weight @ first.T
        twin.head.weight[8:] = made.cluster_weight @ first.T
        twin.head.bias[:] = torch.cat([made.out_layers[0].bias, made.cluster_bias])
        for number, tail in enumerate(twin.tail, start=1):
            tail[0].weight[:] = made.out_projs[number].weight.T
            tail[1].weight[:] = made.out_layers[number].weight
            made.out_layers[number].bias[:] = 0  # torch's has none
    torch.testing.assert_close(made(hidden).flatten(0, 1), twin.log_prob(hidden.flatten(0, 1)))


def losses_and_gradients(made, embedding, tiles):
    torch.manual_seed(1)
    hidden, labels = text()
    ids = torch.randint(0, 8, (2, LENGTH))  # of the first cluster alone
    for parameter in {*made.parameters(), *embedding.parameters()}:
        parameter.grad = None
    x = hidden + embedding(ids)
    total, _ = tiled_loss(
        lambda x, y, _: made(x, y), [x], labels, tiles, made.learned(), made.waiting()
    )
    (0.5 * total).backward()
    named = {**dict(made.named_parameters()), **dict(embedding.named_parameters())}
    return [total.detach().float(), hidden.grad, *(p.grad for p in named.values())]


@pytest.mark.parametrize("div_val", [1, 2])
@pytest.mark.parametrize("width", [WIDTH, 4], ids="width {}".format)
def test_tied_in_tiles_is_as_tied_at_once(div_val, width):
    made = head([8, 20], div_val, width)
    embedding = AdaptiveEmbedding([8, 20, VOCABULARY], width, WIDTH, div_val)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    made.tie(embedding, [False, True, True], tokens=True)
    whole = losses_and_gradients(made, embedding, 1)
    for tiles in (3, LENGTH):
        found = losses_and_gradients(made, embedding, tiles)
        torch.testing.assert_close(found[0], whole[0])  # a loss is added up in fp32
        for one, other in zip(found[1:], whole[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    # Plain autograd, through the weights themselves.
    for module in (made, embedding):
        for part in module.modules():
            part.waiting = None
    made.learned = lambda: list(made.parameters())
    made.waiting = lambda: None
    torch.manual_seed(1)
    hidden, labels = text()
    ids = torch.randint(0, 8, (2, LENGTH))
    made.zero_grad()
    embedding.zero_grad()
    x = hidden + embedding(ids)
    (0.5 * made(x, labels)).backward()
    named = {**dict(made.named_parameters()), **dict(embedding.named_parameters())}
    for one, parameter in zip(whole[2:], named.values(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_every_weight_gets_a_gradient_though_a_cluster_is_empty():
    made = head([8, 20], 2)
    embedding = AdaptiveEmbedding([8, 20, VOCABULARY], WIDTH, WIDTH, 2)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    made(embedding(ids), ids).backward()
    for parameter in [*made.parameters(), *embedding.parameters()]:
        assert parameter.grad is not None


def test_scores_of_a_tile_are_the_largest_thing():
    made = AdaptiveLogSoftmax([400, 2000], WIDTH, WIDTH, 2)
    hidden, labels = (
        torch.randn(1, 512, WIDTH, requires_grad=True),
        torch.randint(0, 2000, (1, 512)),
    )
    with LargestTensor() as watch:
        total, _ = tiled_loss(
            lambda x, y, _: made(x, y), [hidden], labels, 16, made.learned(), made.waiting()
        )
        total.backward()
    assert watch.largest <= 32 * 1600


def test_sampling_frequencies_are_those_that_are_corrected_for():
    sampler = LogUniformSampler(50, 10)
    counts = torch.zeros(50)
    for seed in range(4000):
        drawn = sampler.draw(seed)
        assert torch.equal(drawn, drawn.unique())
        counts[drawn] += 1
    torch.testing.assert_close(counts / 4000, sampler.log_q.exp().double(), rtol=0, atol=0.03)
    assert torch.equal(sampler.draw(5), sampler.draw(5))


def test_sampled_losses_are_a_softmax_over_the_target_and_what_was_drawn():
    made, (hidden, labels) = head([], samples=6), text()
    sampled = made.draw(3)
    log_q = made.sampler.log_q
    layer, rows = made.out_layers[0], hidden.flatten(0, 1)
    losses = sampled_losses(layer, rows, labels.flatten(), sampled, log_q)
    logits = F.linear(rows, layer.weight, layer.bias) - log_q
    for t, label in enumerate(labels.flatten().tolist()):
        if label == -100:
            assert losses[t] == 0
            continue
        among = torch.cat([torch.tensor([label]), sampled[sampled != label]])
        want = logits[t, among].logsumexp(0) - logits[t, label]
        torch.testing.assert_close(losses[t], want)
    torch.testing.assert_close(made(hidden, labels, sampled), losses.sum())
