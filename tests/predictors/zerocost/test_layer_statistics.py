import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.hessian import HessianEffort
from predictors.zerocost.layer_statistics import layer_statistics
from predictors.zerocost.orthogonality import alignment, centred_gram

FORMATS = {
    "halves": lambda x: torch.round(2.0 * x) / 2.0,
    "drawing": lambda x: x + 0.1 * torch.rand_like(x),
}
BITS = {"halves": 4, "drawing": 8.0, "unused": 2}


def test_layers_are_the_weights_that_a_gradient_reaches(conv_net, batch) -> None:
    conv_net[3].weight.requires_grad_(False)
    found = layer_statistics(ProxySession(conv_net, batch, quantize=FORMATS))
    assert found.layers == ("0.weight", "8.weight")
    assert found.formats == ("halves", "drawing")
    assert found.samples == 8
    assert found.parameters.tolist() == [90.0, 12.0]
    assert found.errors.sum_of_squares.shape == (2, 2)


def test_loss_weights_and_gradients_are_those_of_a_plain_pass(conv_net, batch) -> None:
    found = layer_statistics(ProxySession(conv_net, batch))
    loss = F.cross_entropy(conv_net(batch[0].clone()), batch[1])
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for name in found.layers:
        parameter = conv_net.get_parameter(name)
        assert torch.equal(found.weights[name], parameter.detach())
        assert torch.allclose(found.gradients[name], parameter.grad, rtol=1e-9)


def test_alignment_is_that_of_what_layers_return(conv_net, batch) -> None:
    found = layer_statistics(ProxySession(conv_net, batch))
    outputs, x = [], batch[0]
    for module in conv_net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs.append(centred_gram(module(x).detach()))
        x = module(x.clone())
    assert found.cka == pytest.approx(alignment(torch.stack(outputs)), rel=1e-9)
    assert found.macs.tolist() == [7 * 7 * 5 * 2 * 9, 3 * 3 * 4 * 5 * 9, 12]


def test_statistics_outlive_a_change_of_the_model(conv_net, batch) -> None:
    found = layer_statistics(ProxySession(conv_net, batch))
    before = found.weights["8.weight"].clone()
    with torch.no_grad():
        conv_net[8].weight.zero_()
    assert torch.equal(found.weights["8.weight"], before)


def test_arrays_are_read_only(conv_net, batch) -> None:
    effort = HessianEffort(most_vectors=8, most_iterations=1)
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    found = layer_statistics(session, bits=BITS, hessian=effort, proxies=["snip"])
    parts = [found, found.inputs, found.errors, found.hessian]
    arrays = [each for part in parts for each in vars(part).values() if hasattr(each, "flags")]
    assert len(arrays) == 5 + 4 + 5 + 5
    assert not any(each.flags.writeable for each in [*arrays, *found.proxies.values()])


def test_one_pass_forward_and_one_back_is_enough(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    layer_statistics(ProxySession(conv_net, batch, quantize=FORMATS))
    assert calls == ["model", "backward"]


def test_the_hessian_adds_one_pass_and_its_vectors(conv_net, batch, counted_passes) -> None:
    calls = counted_passes(model=conv_net)
    effort = HessianEffort(fewest_vectors=3, most_vectors=3)
    found = layer_statistics(ProxySession(conv_net, batch), hessian=effort)
    assert calls == ["model", "backward", "model", *["backward"] * 4]
    assert found.hessian.trace_draws.shape == (3, 3)


def test_bits_follow_the_formats(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    found = layer_statistics(session, bits=BITS)
    assert found.bits.tolist() == found.activation_bits.tolist() == [4.0, 8.0]
    found = layer_statistics(session, bits=BITS, activation_bits={"drawing": 2, "halves": 16})
    assert found.bits.tolist() == [4.0, 8.0]
    assert found.activation_bits.tolist() == [16.0, 2.0]
    assert layer_statistics(session).bits is None


def test_proxies_give_their_layers(conv_net, batch) -> None:
    conv_net[3].weight.requires_grad_(False)
    session = ProxySession(conv_net, batch)
    found = layer_statistics(session, proxies=["synflow", "naswot"])
    synflow = session.compute(["synflow"])["synflow"].layers
    assert found.proxies["synflow"].tolist() == [synflow["0.weight"], synflow["8.weight"]]
    assert np.isnan(found.proxies["naswot"]).all()


def test_the_seed_decides_everything_that_is_drawn(dropout_net, batch32) -> None:
    def statistics(seed):
        session = ProxySession(dropout_net, batch32, quantize=FORMATS, seed=seed)
        return layer_statistics(session, hessian=HessianEffort(most_vectors=8))

    one, same, other = (statistics(seed) for seed in (1, 1, 2))
    for read in (
        lambda each: each.loss,
        lambda each: each.errors.sum_of_squares[:, 1].sum(),
        lambda each: each.hessian.traces.sum(),
    ):
        assert read(one) == read(same) != read(other)


@pytest.mark.parametrize("net", ["dropout_net", "quant_net"])
def test_the_model_is_left_as_it_was(net, batch32, request) -> None:
    model = request.getfixturevalue(net)
    gradients = [torch.randn_like(each) for each in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    formats = {**FORMATS, "overwriting": lambda x: x.mul_(0.5)}
    layer_statistics(
        ProxySession(model, batch32, quantize=formats),
        hessian=HessianEffort(most_vectors=8, most_iterations=2),
        proxies=["synflow"],
    )
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(each.requires_grad for each in model.parameters())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_works_without_grad_mode_and_in_inference_mode(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch, quantize={"halves": FORMATS["halves"]})
    expected = layer_statistics(session, hessian=HessianEffort(most_vectors=8))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = layer_statistics(session, hessian=HessianEffort(most_vectors=8))
        assert (found.hessian.traces == expected.hessian.traces).all()
        assert (found.errors.gradient_products == expected.errors.gradient_products).all()


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": {"halves": 4}}, "bits must name every format, and lacks: drawing"),
        (
            {"bits": BITS, "activation_bits": {}},
            "activation_bits must name every format, and lacks: halves, drawing",
        ),
        (
            {"bits": {**BITS, "halves": 0}},
            "bits['halves'] must be above 0 and finite, got 0",
        ),
        (
            {"activation_bits": {**BITS, "drawing": math.inf}},
            "activation_bits['drawing'] must be above 0 and finite, got inf",
        ),
    ],
)
def test_says_what_is_wrong_with_bits(conv_net, batch, arguments, message) -> None:
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    assert error_of(lambda: layer_statistics(session, **arguments)) == message


def test_says_that_labels_are_missing(conv_net, batch) -> None:
    session = ProxySession(conv_net, (batch[0], None))
    assert error_of(lambda: layer_statistics(session)) == (
        "the loss needs labels, and the batch has none"
    )
