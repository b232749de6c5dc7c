import json
from dataclasses import replace

import numpy as np
import pytest

from apqkit.config import SpaceConfig
from apqkit.cost.builder import host_header
from apqkit.cost.lut import make_table
from apqkit.cost.lut_cost import LutCost, wanted_keys
from apqkit.errors import CostError
from apqkit.report import LutCheck, check_lut, draw_lut_check, write_lut_check
from apqkit.report.lut_check import _undisturbed
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions
from apqkit.types import SilentProgress

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def space():
    options = MobileNetOptions(stages=(StageOptions(width=8, depth=2),), hidden_choices=2, head=16)
    config = SpaceConfig(
        weight_formats=("int8", "fp32"),
        activation_formats=("int8", "fp32"),
        first_last_formats=("int8",),
    )
    return MobileNetSpace(config, options, SHAPE, 10)


@pytest.fixture(scope="module")
def networks(space):
    return space.network(draw_uniform(space, 6, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def table(networks):
    """Synthetic prices: what is compared is known."""
    header = host_header(4)
    keys = wanted_keys(networks, block=int(header["fp32_block"])).keys
    return make_table(header, keys, np.linspace(0.001, 0.01, len(keys)))


@pytest.fixture(scope="module")
def check(table, networks, space):
    return check_lut(table, networks, space.supernet(0).train(), SHAPE, progress=SilentProgress())


def known_check():
    return LutCheck(
        measured_ms=np.array([1.0, 2.0, 4.0, 8.0]),
        p10_ms=np.array([0.9, 1.9, 3.9, 7.9]),
        p90_ms=np.array([1.1, 2.1, 4.1, 8.1]),
        repeat_ms=np.array([[1.0, 2.0, 4.0, 8.0], [1.0, 2.2, 4.0, 8.0]]),
        priced_ms=np.array([1.1, 1.8, 4.4, 8.0]),
        error_ms=np.array([0.2, 0.11, 0.21, 0.1]),
        additive_ms=np.array([0.5, 1.5, 1.0, 4.0]),
    )


def test_whole_networks_are_timed_beside_their_prices(check, table, networks):
    assert np.array_equal(check.priced_ms, LutCost(table).cost(networks)["latency_ms"])
    bare = LutCost(table, edges=False).cost(networks)["latency_ms"]
    assert np.array_equal(check.additive_ms, bare)
    assert (check.additive_ms < check.priced_ms).all()
    assert (check.p10_ms <= check.measured_ms).all()
    assert (check.measured_ms <= check.p90_ms).all()
    assert (check.measured_ms > 0.005).all()  # six layers of batch 4 take that at least
    assert np.abs(check.repeat_ms / check.measured_ms - 1.0).max() < 0.5


def test_rounds_that_other_work_disturbed_do_not_count():
    rounds = np.array([[1.0, 1.1], [3.0, 3.2], [1.2, 1.1]])
    assert _undisturbed(rounds).tolist() == [1.0, 1.1, 1.2, 1.1]


def test_figures_follow_their_definitions():
    figures = known_check().figures()
    assert figures["with edges"] == pytest.approx(
        {
            "mape": 0.075,
            "bias": 0.025,
            "tau": 1.0,
            "within_1_error": 0.5,
            "within_2_errors": 1.0,
        }
    )
    # 5 of 6 pairs of the additive prices stand in the right order, one is turned round
    assert figures["without edges"]["tau"] == pytest.approx(4 / 6)
    assert figures["without edges"]["bias"] == pytest.approx(-0.5)
    assert figures["repeat"] == pytest.approx({"mape": 0.025, "bias": 0.025, "tau": 1.0})


def test_the_picture_shows_both_ways_to_price():
    axes = draw_lut_check(known_check()).axes[0]
    labels = [each.get_text() for each in axes.get_legend().get_texts()]
    assert labels == [
        "layers alone: MAPE 50.0%, tau 0.67",
        "with conversions: MAPE 7.5%, tau 1.00",
    ]
    assert axes.get_xlabel() == "measured (ms)"
    assert axes.get_title() == "4 whole networks; measured twice, tau 1.00"


def test_a_check_is_written_as_table_figures_and_picture(tmp_path):
    paths = write_lut_check(known_check(), tmp_path)
    assert [each.name for each in paths] == ["networks.csv", "check.json", "scatter.png"]
    assert paths[0].read_text().splitlines()[:2] == [
        "measured_ms,p10_ms,p90_ms,priced_ms,error_ms,additive_ms",
        "1.0,0.9,1.1,1.1,0.2,0.5",
    ]
    found = json.loads(paths[1].read_text())
    assert found["networks"] == 4
    assert found["repeat"]["mape"] == pytest.approx(0.025)
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_two_networks_say_nothing(table, networks, space):
    with pytest.raises(CostError) as caught:
        check_lut(table, networks.take(slice(0, 2)), space, SHAPE, progress=SilentProgress())
    assert str(caught.value) == "a check needs at least 3 networks, got 2"


def test_networks_without_a_price_are_refused(table, networks, space):
    wrong = networks.with_formats("fp8_e4m3", None)
    with pytest.raises(CostError) as caught:
        check_lut(table, wrong, space, SHAPE, progress=SilentProgress())
    assert str(caught.value) == (
        "a network to be checked has a format that the table's device cannot run"
    )


def test_a_table_of_openvino_is_checked_in_openvino(networks, space):
    pytest.importorskip("openvino")
    header = host_header(4, "openvino")
    keys = wanted_keys(networks, block=0, runtime="openvino").keys
    table = make_table(header, keys, np.full(len(keys), 0.001))
    few = networks.take(slice(0, 3))
    found = check_lut(table, few, space.supernet(0).train(), SHAPE, progress=SilentProgress())
    assert (found.measured_ms > 0.005).all()
    assert replace(found).figures().keys() == {"with edges", "without edges", "repeat"}
