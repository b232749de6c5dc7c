import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.assembly import assemble
from predictors.zerocost.hessian import HessianEffort
from predictors.zerocost.layer_statistics import layer_statistics
from predictors.zerocost.output_changes import with_output_changes
from predictors.zerocost.sensitivities import SENSITIVITIES

BITS = {"coarse": 2.0, "fine": 6.0}
ACTIVATION_BITS = {"coarse": 4.0, "fine": 8.0}
EFFORT = HessianEffort(most_vectors=8, most_iterations=30)


def rounded(steps):
    def function(x):
        return torch.round(steps * x) / steps

    return function


FORMATS = {"coarse": rounded(2.0), "fine": rounded(32.0)}


@pytest.fixture
def session(conv_net, batch):
    return ProxySession(conv_net, batch, quantize=FORMATS)


@pytest.fixture
def statistics(session):
    found = layer_statistics(
        session,
        bits=BITS,
        activation_bits=ACTIVATION_BITS,
        hessian=EFFORT,
        proxies=["synflow", "snip"],
    )
    return with_output_changes(session, found)


class Plain:
    """The definitions once more, on numbers that a plain pass of the model gives."""

    def __init__(self, model, batch, statistics) -> None:
        layers = [module for module in model if isinstance(module, nn.Conv2d | nn.Linear)]
        outputs = []
        hooks = [
            each.register_forward_hook(lambda module, x, y: outputs.append(y.detach().clone()))
            for each in layers
        ]
        loss = F.cross_entropy(model(batch[0].clone()), batch[1])
        for hook in hooks:
            hook.remove()
        self.outputs = [each.flatten(1).numpy() for each in outputs]
        gradients = torch.autograd.grad(loss, [each.weight for each in layers])
        self.gradients = [each.numpy().ravel() for each in gradients]
        self.weights = [each.weight.detach().numpy().ravel() for each in layers]
        self.shapes = [tuple(each.weight.shape) for each in layers]
        self.statistics = statistics

    def each(self, rule) -> np.ndarray:
        """rule(layer, weights, errors, bits, activation bits) for each layer and format."""
        table = []
        for layer, weight in enumerate(self.weights):
            row = []
            for name, steps in (("coarse", 2.0), ("fine", 32.0)):
                error = np.round(weight * steps) / steps - weight
                row.append(rule(layer, weight, error, BITS[name], ACTIVATION_BITS[name]))
            table.append(row)
        return np.array(table)

    def mean_trace(self, layer) -> float:
        draws = self.statistics.hessian.trace_draws[:, layer]
        return float(np.nanmean(draws)) / len(self.weights[layer])

    def cka(self, one, other) -> float:
        features = [self.outputs[each] - self.outputs[each].mean(0) for each in (one, other)]
        cross = np.linalg.norm(features[0].T @ features[1]) ** 2
        norms = [np.linalg.norm(each.T @ each) for each in features]
        return float(cross / math.prod(norms))

    def suffix_mean(self, layer) -> float:
        count = len(self.weights)
        weights = [
            math.exp(-sum(self.cka(each, other) for other in range(count) if other != each))
            for each in range(layer, count)
        ]
        return sum(weights) / len(weights)

    def share(self, layer) -> float:
        flows = [math.exp(each) for each in self.statistics.proxies["synflow"]]
        return flows[layer] / sum(flows)

    def macs(self, layer) -> float:
        places = (7 * 7, 3 * 3, 1)
        return places[layer] * math.prod(self.shapes[layer])

    def entropy(self, layer, bits, activation_bits) -> float:
        deviations = {2.0: 1.7388228634059972, 6.0: 4.010403138505318}
        inner = {4.0: 4.528190206368193, 8.0: 5.008326400438906}
        fan_in = math.prod(self.shapes[layer][1:])
        product = deviations[bits] * inner[activation_bits] / 5.0
        return math.log(product * math.sqrt(fan_in))


RULES = {
    "hawq_v1": lambda p: p.each(
        lambda i, w, e, b, a: p.statistics.hessian.eigenvalues[i] * (e**2).sum()
    ),
    "hawq_v2": lambda p: p.each(lambda i, w, e, b, a: p.mean_trace(i) * (e**2).sum()),
    "hawq_v2_mean_square": lambda p: p.each(lambda i, w, e, b, a: p.mean_trace(i) * (e**2).mean()),
    "bit_trace": lambda p: p.each(lambda i, w, e, b, a: p.mean_trace(i) * b),
    "taylor": lambda p: p.each(lambda i, w, e, b, a: abs((p.gradients[i] * e).sum())),
    "fisher": lambda p: p.each(lambda i, w, e, b, a: 0.5 * ((p.gradients[i] * e) ** 2).sum()),
    "weight_sqnr": lambda p: p.each(
        lambda i, w, e, b, a: 10.0 * math.log10((w**2).sum() / (e**2).sum())
    ),
    "weight_mse": lambda p: p.each(lambda i, w, e, b, a: (e**2).mean()),
    "weight_relative_mse": lambda p: p.each(lambda i, w, e, b, a: (e**2).mean() / (w**2).mean()),
    "kl": lambda p: p.statistics.outputs.kl,
    "output_sqnr": lambda p: p.statistics.outputs.sqnr_db,
    "qe": lambda p: p.each(lambda i, w, e, b, a: p.entropy(i, b, a)),
    "ompq": lambda p: p.each(lambda i, w, e, b, a: b * p.suffix_mean(i)),
    "bit_snip": lambda p: p.each(lambda i, w, e, b, a: b * abs(p.gradients[i] * w).sum()),
    "bit_synflow": lambda p: p.each(lambda i, w, e, b, a: b * p.share(i)),
    "bit_params": lambda p: p.each(lambda i, w, e, b, a: b * len(w)),
    "bit_sum": lambda p: p.each(lambda i, w, e, b, a: b),
    "size_kib": lambda p: p.each(lambda i, w, e, b, a: b * len(w) / 8 / 1024),
    "bops": lambda p: p.each(lambda i, w, e, b, a: p.macs(i) * b * a),
}


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_equals_the_plain_formula(name, conv_net, batch, statistics) -> None:
    expected = RULES[name](Plain(conv_net, batch, statistics))
    found = SENSITIVITIES[name].score(statistics)
    assert found.shape == (3, 2)
    assert found == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_entries_are_complete_and_candidates_differ_by_format(name, statistics) -> None:
    sensitivity = SENSITIVITIES[name]
    assert sensitivity.name == name
    assert sensitivity.direction in ("up", "down")
    assert sensitivity.source
    assert sensitivity.convention
    settings = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    scores = assemble(sensitivity.score(statistics), settings)
    assert (scores[1:] != scores[0]).all()


@pytest.mark.parametrize(
    "name", [name for name in SENSITIVITIES if name not in ("hawq_v1", "taylor", "bit_trace")]
)
def test_the_finer_format_is_predicted_better(name, statistics) -> None:
    """Where the sign of the curvature or a chance product does not decide."""
    sensitivity = SENSITIVITIES[name]
    positive = replace(
        statistics, hessian=replace(statistics.hessian, traces=np.array([1.0, 2.0, 3.0]))
    )
    coarse, fine = assemble(sensitivity.score(positive), np.array([[0, 0, 0], [1, 1, 1]]))
    assert (fine > coarse) == (sensitivity.direction == "up")


def test_statistics_stay_as_they_are(statistics) -> None:
    scores = {name: each.score(statistics).copy() for name, each in SENSITIVITIES.items()}
    for name in reversed(SENSITIVITIES):
        assert (SENSITIVITIES[name].score(statistics) == scores[name]).all()


def test_a_format_that_cannot_hold_a_weight_is_nan(conv_net, batch) -> None:
    formats = {"odd": lambda x: x * math.nan, **FORMATS}
    statistics = layer_statistics(ProxySession(conv_net, batch, quantize=formats))
    for name in ("weight_mse", "weight_sqnr", "weight_relative_mse", "taylor", "fisher"):
        scores = SENSITIVITIES[name].score(statistics)
        assert np.isnan(scores[:, 0]).all()
        assert np.isfinite(scores[:, 1:]).all()


def test_weights_of_0_have_no_relative_error(conv_net, batch) -> None:
    with torch.no_grad():
        conv_net[8].weight.zero_()
    formats = {"moved": lambda x: x + 0.1}
    statistics = layer_statistics(ProxySession(conv_net, batch, quantize=formats))
    scores = SENSITIVITIES["weight_relative_mse"].score(statistics)[:, 0]
    assert np.isnan(scores).tolist() == [False, False, True]


def test_layers_without_flow_have_no_share(statistics) -> None:
    parts = statistics.proxies["synflow"].copy()
    parts[1] = math.nan
    scores = SENSITIVITIES["bit_synflow"].score(replace(statistics, proxies={"synflow": parts}))
    flows = np.exp(parts)
    assert scores[:, 0] == pytest.approx(
        [2.0 * flows[0] / (flows[0] + flows[2]), 0.0, 2.0 * flows[2] / (flows[0] + flows[2])]
    )


def test_flows_beyond_float64_still_have_shares(statistics) -> None:
    parts = {"synflow": np.array([2000.0, 2000.0 + math.log(3.0), math.nan])}
    scores = SENSITIVITIES["bit_synflow"].score(replace(statistics, proxies=parts))
    assert scores[:, 0] == pytest.approx([0.5, 1.5, 0.0])


def test_works_on_quantized_layers(quant_net, batch32) -> None:
    session = ProxySession(quant_net, batch32, quantize=FORMATS)
    found = layer_statistics(session, bits=BITS, hessian=EFFORT, proxies=["synflow"])
    found = with_output_changes(session, found)
    for sensitivity in SENSITIVITIES.values():
        assert np.isfinite(sensitivity.score(found)).all()


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


@pytest.mark.parametrize("name", ["hawq_v1", "hawq_v2", "hawq_v2_mean_square", "bit_trace"])
def test_says_that_the_hessian_is_missing(name, statistics) -> None:
    bare = replace(statistics, hessian=None)
    assert error_of(lambda: SENSITIVITIES[name].score(bare)) == (
        f"{name} needs the Hessian: give layer_statistics(..., hessian=HessianEffort())"
    )


def test_says_that_eigenvalues_are_missing(statistics) -> None:
    bare = replace(statistics, hessian=replace(statistics.hessian, eigenvalues=None))
    assert error_of(lambda: SENSITIVITIES["hawq_v1"].score(bare)) == (
        "hawq_v1 needs eigenvalues: give layer_statistics(..., "
        "hessian=HessianEffort(most_iterations=100))"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("bit_trace", "qe", "ompq", "bit_snip", "bit_synflow", "bit_params", "bit_sum"),
        *("size_kib", "bops"),
    ],
)
def test_says_that_bits_are_missing(name, statistics) -> None:
    bare = replace(statistics, bits=None)
    assert error_of(lambda: SENSITIVITIES[name].score(bare)) == (
        f"{name} needs the bits of formats: give layer_statistics(..., bits={{name: bits}})"
    )


@pytest.mark.parametrize("name", ["kl", "output_sqnr"])
def test_says_that_outputs_are_missing(name, statistics) -> None:
    bare = replace(statistics, outputs=None)
    assert error_of(lambda: SENSITIVITIES[name].score(bare)) == (
        f"{name} needs the outputs: give it with_output_changes(session, statistics)"
    )


def test_says_that_synflow_is_missing(statistics) -> None:
    bare = replace(statistics, proxies={})
    assert error_of(lambda: SENSITIVITIES["bit_synflow"].score(bare)) == (
        "bit_synflow needs synflow: give layer_statistics(..., proxies=['synflow'])"
    )


def test_says_what_ompq_needs(statistics) -> None:
    score = SENSITIVITIES["ompq"].score
    cka = statistics.cka.copy()
    cka[1, :] = cka[:, 1] = math.nan
    assert error_of(lambda: score(replace(statistics, cka=cka))) == (
        "ompq needs what every layer returns, and saw nothing of '3.weight'"
    )
    assert error_of(lambda: score(replace(statistics, samples=1))) == (
        "ompq needs at least 2 samples, got 1"
    )
