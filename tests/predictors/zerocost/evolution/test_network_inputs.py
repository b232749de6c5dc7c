from dataclasses import replace

import numpy as np
import pytest
import torch

from predictors.zerocost import HessianEffort, ProxySession, assemble
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution import BASELINES, inputs_of
from predictors.zerocost.layer_statistics import layer_statistics
from predictors.zerocost.sensitivities import SENSITIVITIES

FORMATS = {"tenths": lambda w: (w * 10).round() / 10, "halves": lambda w: (w * 2).round() / 2}
BITS = {"tenths": 5.0, "halves": 3.0}


@pytest.fixture
def statistics(conv_net, batch):
    session = ProxySession(conv_net, batch, quantize=FORMATS)
    return layer_statistics(session, bits=BITS, hessian=HessianEffort(most_vectors=8))


def test_takes_what_the_statistics_hold(statistics) -> None:
    inputs = inputs_of(statistics)
    assert (inputs.layers, inputs.formats) == (statistics.layers, ("tenths", "halves"))
    assert inputs.kinds == ("weights", "gradients", "hessian", "errors", "parameters", "bits")
    assert inputs.bits.tolist() == [5.0, 3.0]
    assert (inputs.errors == statistics.errors.sum_of_squares).all()
    for kind in ("weights", "gradients"):
        for layer, array in zip(inputs.layers, inputs.statistics[kind], strict=True):
            whole = getattr(statistics, kind)[layer].flatten().float()
            assert array.tolist() == whole.tolist()


def test_errors_times_trace_is_hawq_v2(statistics) -> None:
    scores = BASELINES["errors x trace"].layer_scores(inputs_of(statistics))
    assert scores == pytest.approx(SENSITIVITIES["hawq_v2"].score(statistics), rel=1e-6)


def test_a_program_prices_candidates_of_the_network(statistics) -> None:
    index = np.array([[0, 0, 0], [1, 1, 1]])
    scores = assemble(BASELINES["errors"].layer_scores(inputs_of(statistics)), index)
    assert 0.0 < scores[0] < scores[1]


def test_long_layers_give_values_at_even_distances(statistics) -> None:
    inputs = inputs_of(statistics, most_values=5)
    for layer, array in zip(inputs.layers, inputs.statistics["weights"], strict=True):
        whole = statistics.weights[layer].flatten().float().tolist()
        last = len(whole) - 1
        assert array.tolist() == [whole[round(last * each / 4)] for each in range(5)]


def test_more_kinds_come_from_outside_and_go_first(statistics) -> None:
    ones = {layer: torch.ones(2, 2) for layer in statistics.layers}
    inputs = inputs_of(statistics, more={"activations": ones, "hessian": ones})
    assert inputs.statistics["activations"][0].tolist() == [1.0] * 4
    assert inputs.statistics["hessian"][0].tolist() == [1.0] * 4


def test_without_a_hessian_there_is_none(statistics) -> None:
    assert "hessian" not in inputs_of(replace(statistics, hessian=None)).kinds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: inputs_of(replace(s, bits=None)),
            "formulas need the bits of formats: give layer_statistics(..., bits={name: bits})",
        ),
        (lambda s: inputs_of(s, most_values=0), "most_values must be 1 or more, got 0"),
        (
            lambda s: inputs_of(s, more={"activations": {"0.weight": torch.ones(1)}}),
            "activations must name every layer, and lacks: 3.weight, 8.weight",
        ),
    ],
)
def test_says_what_is_missing(statistics, call, message) -> None:
    with pytest.raises(ProxyError) as caught:
        call(statistics)
    assert str(caught.value) == message
