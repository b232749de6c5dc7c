import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from predictors.zerocost import ProxyError, ProxySession


def zico(net, batches):
    return ProxySession(net, batches[0], more_batches=batches[1:]).compute(["zico"])["zico"]


@pytest.fixture
def batches(batch):
    images, labels = batch
    return [(images, labels), (images.flip(2) * 1.5, labels), (images.flip(3) - 0.2, labels)]


def gradients(net, batches):
    found: dict[str, list[np.ndarray]] = {}
    for images, labels in batches:
        net.zero_grad()
        F.cross_entropy(net(images.clone()), labels).backward()
        for name, each in net.named_parameters():
            if each.dim() >= 2:
                found.setdefault(name, []).append(each.grad.flatten().numpy().copy())
    net.zero_grad()
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_equals_the_plain_formula(net, batches, count) -> None:
    expected = {}
    for name, each in gradients(net, batches[:count]).items():
        total = 0.0
        for values in zip(*each, strict=True):
            mean = sum(values) / count
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / count)
            if deviation > 0.0:
                total += sum(abs(value) for value in values) / count / deviation
        expected[name] = math.log(total)

    score = zico(net, batches[:count])

    # biasless weights before a normalisation of one batch can leave differences of rounding only
    assert score.layers == pytest.approx(expected, rel=1e-6)
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-6)


def test_runs_one_pass_for_each_batch(conv_net, batches, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    session = ProxySession(conv_net, batches[0], more_batches=batches[1:])
    session.compute(["zico", "snip", "naswot"])
    assert calls == ["model", "backward"] * 3


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_needs_more_than_one_batch(conv_net, batch) -> None:
    assert error_of(lambda: zico(conv_net, [batch])) == (
        "zico compares batches: give ProxySession(..., more_batches=[...])"
    )


def test_needs_labels_of_every_batch(conv_net, batch) -> None:
    assert error_of(lambda: zico(conv_net, [batch, (batch[0], None)])) == (
        "the loss needs labels, and the batch has none"
    )


def test_says_that_the_batches_are_alike(conv_net, batch) -> None:
    assert error_of(lambda: zico(conv_net, [batch, batch])) == (
        "zico is not defined: all batches give the same gradients"
    )


def test_entries_that_do_not_change_are_left_out(batch) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(98, 3)).double()
    images, labels = batch
    images[:, 0, 0, 0] = 0.0  # the gradient of its weights is 0 in every batch
    score = zico(net, [(images, labels), (images * 2.0, labels)])
    assert math.isfinite(score.value)
