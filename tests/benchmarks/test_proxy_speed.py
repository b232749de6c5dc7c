import copy
import math

import pytest
import torch
from proxy_speed import PLAIN, Network, agreement, measured, ratios, ways


@pytest.fixture
def small():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield Network(stem=4, cells=1), torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 5])


def test_the_network_has_the_size_of_those_in_nas_bench_201():
    assert sum(each.numel() for each in Network().parameters()) == 1_531_546


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_way_leaves_values_as_they_are(small, name):
    network, images, labels = small
    weights = {key: each.clone() for key, each in network.named_parameters()}
    assert math.isfinite(PLAIN[name](network, images, labels))
    for key, each in network.named_parameters():
        assert each.dtype == torch.float32
        assert torch.equal(each, weights[key])


def test_both_ways_agree_in_float64(small):
    network, images, labels = small
    before = copy.deepcopy(network.state_dict())
    differences = agreement(network, images, labels)["float64"]
    assert differences.keys() == PLAIN.keys()
    assert all(each <= 1e-8 for each in differences.values())
    for name, each in network.named_parameters():
        assert torch.equal(each, before[name])


def test_every_way_is_timed_in_every_repeat(small):
    seconds = measured(ways(*small), repeats=2)
    assert all(len(each) == 2 and min(each) > 0.0 for each in seconds.values())
    found = ratios(seconds)
    for each in found.values():
        assert 0.0 < each["least"] <= each["median"] <= each["largest"]


def test_ratios_compare_sums_of_measures_with_one_session():
    seconds = {name: [1.0, 2.0, 3.0] for name in PLAIN}
    seconds["session, eight"] = [2.0, 2.0, 2.0]
    seconds["session, four"] = [1.0, 1.0, 1.0]
    seconds["session, without grasp"] = [3.0, 3.0, 3.0]
    seconds["forward and backward"] = [2.0, 3.0, 4.0]
    assert [each["median"] for each in ratios(seconds).values()] == [8.0, 8.0, 1.0]
