import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.layer_statistics import layer_statistics
from predictors.zerocost.output_changes import with_output_changes


def halves(x):
    return torch.round(2.0 * x) / 2.0


def random_and_same(x):
    torch.rand(100)
    return x


FORMATS = {"halves": halves, "signs": lambda x: 0.2 * x.sign()}


def changed(model, batch, quantize=None, **settings):
    session = ProxySession(model, batch, quantize=FORMATS if quantize is None else quantize)
    return with_output_changes(session, layer_statistics(session), **settings)


def plain_changes(model, x, layer, function) -> tuple[float, float]:
    """With copies of the model, each from the same seed, in loops over samples and classes."""
    outputs = []
    for change in (None, function):
        twin = copy.deepcopy(model)
        if change is not None:
            with torch.no_grad():
                weight = twin.get_parameter(layer)
                weight.copy_(change(weight.detach().clone()))
        torch.manual_seed(0)
        outputs.append(twin(x.clone()).detach().double().tolist())
    kl = power = noise = 0.0
    for before, after in zip(*outputs, strict=True):
        sums = [sum(math.exp(each) for each in logits) for logits in (before, after)]
        for a, b in zip(before, after, strict=True):
            p, q = math.exp(a) / sums[0], math.exp(b) / sums[1]
            kl += p * math.log(p / q) / len(x)
            power += a**2
            noise += (a - b) ** 2
    return kl, 10.0 * math.log10(power / noise) if noise else 120.0


@pytest.mark.parametrize("net", ["conv_net", "dropout_net", "quant_net"])
def test_equals_copies_with_one_changed_layer(net, batch, batch32, request) -> None:
    model = request.getfixturevalue(net)
    one_batch = batch if net == "conv_net" else batch32
    statistics = changed(model, one_batch)
    for row, layer in enumerate(statistics.layers):
        for column, function in enumerate(FORMATS.values()):
            kl, sqnr = plain_changes(model, one_batch[0], layer, function)
            assert statistics.outputs.kl[row, column] == pytest.approx(kl, rel=1e-5, abs=1e-7)
            assert statistics.outputs.sqnr_db[row, column] == pytest.approx(sqnr, rel=1e-4)


def test_divergence_at_every_place_counts_once() -> None:
    model = nn.Conv2d(2, 3, 1)
    x, labels = torch.randn(4, 2, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long)
    found = changed(model, (x, labels))
    with torch.no_grad():
        before = model(x).log_softmax(1)
        after = F.conv2d(x, halves(model.weight), model.bias).log_softmax(1)
    expected = F.kl_div(after, before, reduction="none", log_target=True).sum(1).mean()
    assert found.outputs.kl[0, 0] == pytest.approx(float(expected), rel=1e-5)


def test_a_format_that_draws_random_numbers_leaves_dropout_alone(dropout_net, batch32) -> None:
    found = changed(dropout_net, batch32, {"drawing": random_and_same})
    assert found.outputs.kl == pytest.approx(np.zeros((3, 1)), abs=1e-12)
    assert (found.outputs.sqnr_db == 120.0).all()


def test_runs_one_pass_a_layer_and_format_and_one_before(conv_net, batch, counted_passes) -> None:
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    statistics = layer_statistics(session)
    calls = counted_passes(model=conv_net)
    steps = []
    with_output_changes(session, statistics, progress=steps.append)
    assert calls == ["model"] * 7
    assert steps == [1] * 6


def test_statistics_that_are_given_stay_as_they_are(conv_net, batch) -> None:
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    statistics = layer_statistics(session)
    found = with_output_changes(session, statistics)
    assert statistics.outputs is None
    assert found.errors is statistics.errors


def test_the_model_is_left_as_it_was(quant_net, batch32) -> None:
    before = copy.deepcopy(quant_net.state_dict())
    generator = torch.get_rng_state()
    changed(quant_net, batch32, {"drawing": random_and_same, "zero": torch.zero_})
    after = quant_net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(each.grad is None for each in quant_net.parameters())


def test_inputs_are_not_overwritten() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(5, 2, 4)
    before = x.clone()
    changed(model, (x, torch.zeros(5, dtype=torch.long)))
    assert torch.equal(x, before)


def test_a_format_may_write_into_the_weights_it_is_given(conv_net, batch) -> None:
    found = changed(conv_net, batch, {"new": lambda x: x.sign(), "same": lambda x: x.sign_()})
    assert (found.outputs.kl[:, 0] == found.outputs.kl[:, 1]).all()
    assert (found.outputs.kl > 0.0).all()


def test_outputs_that_are_not_finite_after_a_format_are_nan(conv_net, batch) -> None:
    found = changed(conv_net, batch, {"odd": lambda x: x * math.nan, "halves": halves}).outputs
    assert np.isnan(found.kl[:, 0]).all()
    assert np.isnan(found.sqnr_db[:, 0]).all()
    assert np.isfinite(found.kl[:, 1]).all()


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_says_that_formats_differ(conv_net, batch) -> None:
    statistics = layer_statistics(ProxySession(conv_net, batch, quantize=FORMATS))
    other = ProxySession(conv_net, batch, quantize={"halves": halves})
    assert error_of(lambda: with_output_changes(other, statistics)) == (
        "the session must have the formats of the statistics, ['halves', 'signs'], got ['halves']"
    )


def test_says_that_a_layer_is_missing(conv_net, quant_net, batch) -> None:
    statistics = layer_statistics(ProxySession(conv_net, batch))
    other = ProxySession(quant_net, batch)
    assert error_of(lambda: with_output_changes(other, statistics)) == (
        "the model has no weight '3.weight', and the statistics have"
    )


def test_says_that_outputs_are_no_classes() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    session = ProxySession(model, (torch.ones(4, 3), torch.zeros(4)), loss=F.mse_loss)
    statistics = layer_statistics(session)
    assert error_of(lambda: with_output_changes(session, statistics)) == (
        "outputs must have shape (samples, classes, ...), got (4,)"
    )


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (math.nan, "the outputs of the model are not finite"),
        (0.0, "all outputs of the model are 0: there is no ratio to noise"),
    ],
)
def test_says_what_is_wrong_with_the_outputs(conv_net, batch, factor, message) -> None:
    statistics = layer_statistics(ProxySession(conv_net, batch))
    with torch.no_grad():
        conv_net[8].weight.mul_(factor)
        conv_net[8].bias.mul_(factor)
    session = ProxySession(conv_net, batch)
    assert error_of(lambda: with_output_changes(session, statistics)) == message
