import math

import numpy as np
import pytest
import torch
from torch import nn

import predictors.zerocost.epe_nas
from predictors.zerocost import ProxyError, ProxySession


def epe_nas(net, batch):
    return ProxySession(net, batch).compute(["epe_nas"])["epe_nas"]


def class_sums(net, images, labels):
    inputs = images.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(net(inputs).sum(), inputs)
    rows = gradients.flatten(1).numpy()
    sums = []
    for label in sorted(set(labels.tolist())):
        members = [row for row, each in zip(rows, labels.tolist(), strict=True) if each == label]
        if len(members) > 1:
            matrix = np.corrcoef(members)
            sums.append(sum(math.log(abs(r) + 1e-5) for row in matrix for r in row))
    return sums


LABELS = [
    [0, 1, 2, 0, 1, 2, 0, 1],
    [2, 2, 2, 2, 2, 2, 2, 2],
    [0, 1, 0, 1, 2, 0, 1, 0],  # 2 stands alone
]


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_equals_the_plain_formula(net, batch, labels) -> None:
    labels = torch.tensor(labels)
    expected = sum(abs(each) for each in class_sums(net, batch[0], labels))
    score = epe_nas(net, (batch[0], labels))
    assert score.value == pytest.approx(expected, rel=1e-8)
    assert score.layers == {}


def test_many_classes_are_compared_with_one_another(net, batch, monkeypatch) -> None:
    monkeypatch.setattr(predictors.zerocost.epe_nas, "_MANY_CLASSES", 2)
    labels = torch.tensor(LABELS[0])
    sums = class_sums(net, batch[0], labels)
    expected = sum(abs(one - other) for one in sums for other in sums) / len(sums)
    assert epe_nas(net, (batch[0], labels)).value == pytest.approx(expected, rel=1e-8)


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_needs_a_class_with_two_samples(conv_net, batch) -> None:
    assert error_of(lambda: epe_nas(conv_net, (batch[0], torch.arange(8)))) == (
        "epe_nas needs a class with 2 samples or more, and every label is single"
    )


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (torch.zeros(8), "torch.float32 of shape (8,)"),
        (torch.zeros(8, 3, dtype=torch.long), "torch.int64 of shape (8, 3)"),
    ],
)
def test_needs_classes(conv_net, batch, labels, got) -> None:
    assert error_of(lambda: epe_nas(conv_net, (batch[0], labels))) == (
        f"epe_nas needs one whole number a sample as its class, got {got}"
    )


def test_names_the_class_of_a_constant_gradient(batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(98, 3)).double()
    images = batch[0].clone()
    images[3] = -1.0
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    assert error_of(lambda: epe_nas(net, (images, labels))) == (
        "epe_nas is not defined: an input gradient of class 1 is constant"
    )
