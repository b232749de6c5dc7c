import pytest
import torch
import torch.nn.functional as F

from predictors.zerocost import ProxySession


def test_equals_the_plain_formula(conv_net, batch) -> None:
    images, labels = batch
    F.cross_entropy(conv_net(images.clone()), labels).backward()
    expected = {
        name: float((each.grad**2).sum() ** 0.5)
        for name, each in conv_net.named_parameters()
        if each.dim() >= 2
    }
    conv_net.zero_grad()

    score = ProxySession(conv_net, batch).compute(["grad_norm"])["grad_norm"]

    assert score.layers == pytest.approx(expected, rel=1e-9)
    assert list(score.layers) == ["0.weight", "3.weight", "8.weight"]
    assert score.value == pytest.approx(sum(expected.values()), rel=1e-9)


def test_takes_another_loss_and_scales_with_it(conv_net, batch) -> None:
    def twice(outputs, labels):
        return 2 * F.cross_entropy(outputs, labels)

    once = ProxySession(conv_net, batch).compute(["grad_norm"])["grad_norm"]
    doubled = ProxySession(conv_net, batch, loss=twice).compute(["grad_norm"])["grad_norm"]
    assert doubled.value == pytest.approx(2 * once.value, rel=1e-9)


def test_frozen_weights_do_not_count(conv_net, batch) -> None:
    conv_net[3].weight.requires_grad_(False)
    score = ProxySession(conv_net, batch).compute(["grad_norm"])["grad_norm"]
    assert list(score.layers) == ["0.weight", "8.weight"]


def test_reaches_the_weights_of_an_unknown_quantized_layer(quant_net, batch32) -> None:
    images, labels = batch32
    score = ProxySession(quant_net, batch32).compute(["grad_norm"])["grad_norm"]
    F.cross_entropy(quant_net(images), labels).backward()
    assert list(score.layers) == ["0.weight", "1.weight", "4.weight"]
    for name, value in score.layers.items():
        gradient = quant_net.get_parameter(name).grad
        assert value == pytest.approx(float(torch.linalg.vector_norm(gradient)), rel=1e-5)
