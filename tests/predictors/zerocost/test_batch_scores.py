import math

import numpy as np
import pytest
import torch
from torch import nn

from predictors.zerocost import ProxyError, ProxySession
from predictors.zerocost.batch_scores import score_subnets


def linear(width, labels=True):
    def make() -> ProxySession:
        torch.manual_seed(width)
        model = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        targets = torch.tensor([0, 1]) if labels else None
        return ProxySession(model, (torch.eye(3)[:2], targets))

    return make


def mismatched() -> ProxySession:
    return ProxySession(nn.Linear(7, 2), (torch.ones(2, 3), torch.tensor([0, 1])))


def unbuildable() -> ProxySession:
    raise ValueError("no such width\nof any layer")


def test_rows_are_the_scores_of_each_session() -> None:
    names = ["snip", "params"]
    found = score_subnets([linear(width) for width in (2, 5)], names)
    for row, width in zip(found.values, (2, 5), strict=True):
        scores = linear(width)().compute(names)
        assert row.tolist() == [scores[name].value for name in names]
    assert found.names == ("snip", "params")
    assert found.failures == ()


def test_a_subnet_that_fails_is_named_and_the_others_go_on() -> None:
    steps = []
    found = score_subnets(
        [linear(2), unbuildable, linear(3)], ["params", "snip"], progress=steps.append
    )
    assert np.isnan(found.values).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert found.failures == ("subnet 1: no such width",)
    assert steps == [1, 1, 1]


def test_a_proxy_that_fails_leaves_the_others_their_scores() -> None:
    found = score_subnets([linear(2, labels=False), mismatched], ["params", "snip", "l2_norm"])
    assert found.values[0].tolist() == pytest.approx(
        [14.0, math.nan, found.values[0, 2]], nan_ok=True
    )
    assert found.values[1, 0] == 16.0
    assert found.failures == (
        "subnet 0: snip: snip needs labels, and the batch has none",
        "subnet 1: snip: mat1 and mat2 shapes cannot be multiplied (2x3 and 7x2)",
    )


def test_subnets_are_made_one_at_a_time() -> None:
    made = []

    def factories():
        for width in (2, 3):
            made.append(width)
            yield linear(width)

    at_each_step = []
    score_subnets(factories(), ["params"], progress=lambda steps: at_each_step.append(len(made)))
    assert at_each_step == [1, 2]


def test_no_subnets_and_no_names() -> None:
    assert score_subnets([], ["snip", "params"]).values.shape == (0, 2)
    assert score_subnets([linear(2)], []).values.shape == (1, 0)


def test_a_mistake_in_a_factory_is_not_hidden() -> None:
    def wrong() -> ProxySession:
        raise AttributeError("typo")

    with pytest.raises(AttributeError, match="typo"):
        score_subnets([wrong], ["params"])


def error_of(function) -> str:
    with pytest.raises(ProxyError) as caught:
        function()
    return str(caught.value)


def test_says_which_names_are_wrong(monkeypatch) -> None:
    monkeypatch.setattr("predictors.zerocost.batch_scores.PROXIES", {"snip": 0, "params": 0})
    assert error_of(lambda: score_subnets([], "snip")) == (
        "names must be a list, got the text 'snip'"
    )
    assert error_of(lambda: score_subnets([], ["snap"])) == (
        "no proxy named 'snap'; there are: params, snip"
    )
    assert error_of(lambda: score_subnets([], ["snip", "params", "snip"])) == (
        "each name may stand once, got 'snip' again"
    )
