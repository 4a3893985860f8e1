"""The tiled loss equals cross-entropy over the whole, and no (L × V) tensor exists."""

import pytest
import torch
import torch.nn.functional as F

from lsp.models.layers.losses import LanguageModelHead, tiled_loss
from tests.models.largest_tensor import LargestTensor

DIM, VOCABULARY, LENGTH = 8, 50, 22


def _case(seed: int = 0):
    torch.manual_seed(seed)
    head = LanguageModelHead(DIM, VOCABULARY)
    hidden = torch.randn(2, LENGTH, DIM, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (2, LENGTH))
    labels[0, :7] = -100
    return head, hidden, labels


def _tiled(head, hidden, labels, tiles):
    return tiled_loss(
        lambda h, y, _: head(h, y)[0], [hidden], labels, tiles, list(head.parameters())
    )


@pytest.mark.parametrize("tiles", [1, 2, 5, 22, 50])
@pytest.mark.parametrize("scale", [1.0, 65536.0], ids=["plain", "loss_scaling"])
def test_equals_cross_entropy(tiles: int, scale: float):
    head, hidden, labels = _case()
    loss, count = _tiled(head, hidden, labels, tiles)
    (loss / count * scale).backward()
    got = [hidden.grad, head.weight.grad, head.bias.grad]
    hidden.grad = None
    head.zero_grad()
    want = F.cross_entropy(
        F.linear(hidden, head.weight, head.bias).flatten(0, 1), labels.flatten(), reduction="sum"
    )
    (want / count * scale).backward()
    assert loss.dtype == torch.float32
    assert count.dtype == torch.int64
    assert count == 2 * LENGTH - 7
    torch.testing.assert_close(loss, want)
    for a, b in zip(got, [hidden.grad, head.weight.grad, head.bias.grad], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * scale)


def test_two_inputs_accumulation_and_one_hook_call_each():
    head, hidden, labels = _case()
    fired = []
    head.weight.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    other = torch.randn_like(hidden).requires_grad_()
    for _ in range(2):
        loss, _ = tiled_loss(
            lambda a, b, y, _: head(a * b, y)[0], [hidden, other], labels, 4, head.parameters()
        )
        loss.backward()
    assert len(fired) == 2
    got = [hidden.grad / 2, other.grad / 2, head.weight.grad / 2]
    want = torch.autograd.grad(head(hidden * other, labels)[0], [hidden, other, head.weight])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_gradients_are_computed_under_no_grad():
    head, hidden, labels = _case()
    with torch.no_grad(), LargestTensor() as recorded:
        loss, _ = _tiled(head, hidden, labels, 11)
    assert not loss.requires_grad
    assert recorded.largest < LENGTH * VOCABULARY
    torch.testing.assert_close(loss, head(hidden, labels)[0].detach())


def test_no_tensor_of_length_times_vocabulary():
    head, hidden, labels = _case()
    with LargestTensor() as recorded:
        _tiled(head, hidden, labels, 11)[0].backward()
    assert recorded.largest == max(2 * 2 * VOCABULARY, VOCABULARY * DIM, 2 * LENGTH * DIM)


def test_nothing_to_predict_gives_zero_loss_and_zero_gradients():
    head, hidden, labels = _case()
    loss, count = _tiled(head, hidden, torch.full_like(labels, -100), 3)
    loss.backward()
    assert loss == 0
    assert count == 0
    assert head.weight.grad.abs().max() == 0
    assert hidden.grad.abs().max() == 0


def test_bf16_autocast_sums_in_fp32():
    head, hidden, labels = _case()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = _tiled(head, hidden, labels, 5)
    loss.backward()
    want = head(hidden, labels)[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=1e-2, atol=0)
    grad = torch.autograd.grad(want, head.weight)[0]
    assert (head.weight.grad - grad).norm() / grad.norm() < 2e-2


def test_a_second_backward_is_refused():
    head, hidden, labels = _case()
    loss, _ = _tiled(head, hidden, labels, 3)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()
