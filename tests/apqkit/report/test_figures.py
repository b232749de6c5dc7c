import io
import itertools
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from apqkit.formats import FORMATS
from apqkit.report.data import LayerView
from apqkit.report.figures import FIGURES, data_order


def drawn(name, data):
    return FIGURES[name][1](data)


def line(axes, label):
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return found


def texts(axes):
    return [each.get_text() for each in axes.texts]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_becomes_a_png_with_labelled_axes(name, data):
    figure = drawn(name, data)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert all(axes.get_xlabel() or axes.get_title() for axes in figure.axes[:1])


@pytest.mark.parametrize("name", FIGURES)
def test_figures_leave_no_global_state(name, data):
    before = dict(mpl.rcParams)
    drawn(name, data)
    assert dict(mpl.rcParams) == before


def test_the_front_shows_validation_test_prediction_and_references(data):
    axes = drawn("front", data).axes[0]
    members = data.front.members
    cheapest_first = np.argsort(members.costs["latency_ms"])
    shown = {
        "front, validation": members.accuracy,
        "front, test": members.test_accuracy,
        "front, predicted": members.predicted,
    }
    for label, values in shown.items():
        assert np.array_equal(line(axes, label).get_xdata(), sorted(members.costs["latency_ms"]))
        assert np.array_equal(line(axes, label).get_ydata(), values[cheapest_first])
    measured = axes.collections[0].get_offsets()
    assert np.array_equal(measured[:, 1], data.evaluated.accuracy)
    assert axes.get_xlabel() == "latency (ms)"
    assert "knee key1" in texts(axes)


def test_a_reference_without_a_price_is_a_level(data):
    axes = drawn("front", data).axes[0]
    level = line(axes, "largest, fp32 (no price on this device)")
    assert list(level.get_ydata()) == [data.front.references.accuracy[0]] * 2
    priced = line(axes, "smallest, int8")
    assert list(priced.get_xdata()) == [data.front.references.costs["latency_ms"][1]]


def test_formats_stand_at_their_layer_in_the_colour_of_their_bits(data):
    axes = drawn("formats", data).axes[0]
    rows = [each.get_text() for each in axes.get_yticklabels()]
    assert rows == ["stem", "s0.b0.expand", "s0.b0.add", "s1.b0.expand", "head"]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["key1", "key0"]
    halves = [each for each in axes.patches if isinstance(each, Rectangle)]
    labels = {each.get_position(): each.get_text() for each in axes.texts}
    assert labels[(-0.25, 1.0)] == "int4"
    assert labels[(0.25, 1.0)] == "fp8_e4m3"
    assert labels[(0.0, 2.0)] == "int8"  # an add has no weights
    colours = {}
    for half in halves:
        middle = (half.get_x() + half.get_width() / 2, half.get_y() + 0.5)
        bits = FORMATS[labels[middle]].bits
        assert colours.setdefault(bits, to_hex(half.get_facecolor())) == to_hex(
            half.get_facecolor()
        )
    assert len(set(colours.values())) == len(colours) == 3  # 2, 4 and 8 bits
    assert len(halves) == len(labels) == 2 * 4 - 1 + 2 * 4


def test_predictions_stand_against_measurements_with_their_intervals(data):
    axes = drawn("predicted_measured", data).axes[0]
    points = axes.collections[-1].get_offsets()
    assert np.allclose(points, np.stack([data.evaluated.predicted, data.evaluated.accuracy], 1))
    segments = np.array(axes.collections[0].get_segments())
    assert np.allclose(segments[:, 0, 0], data.evaluated.predicted_low)
    assert np.allclose(segments[:, 1, 0], data.evaluated.predicted_high)


def test_tau_stands_beside_baselines_with_rows_and_learning_curve(data):
    left, middle, right = drawn("tau", data).axes
    assert left.get_title() == "fp32: 24 rows, out of fold"
    assert middle.get_title() == "mixed: 25 rows, out of fold"
    assert [each.get_width() for each in left.patches] == [0.75, 0.5, 0.25]
    learned, *baselines = [to_hex(each.get_facecolor()) for each in left.patches]
    assert set(baselines) == {baselines[0]} != {learned}
    curves = {each.get_label(): each.lines for each in right.containers}
    assert list(curves["transferred"][0].get_ydata()) == [0.5, 0.75]
    assert list(curves["from scratch"][0].get_ydata()) == [0.25, 0.5]
    assert list(curves["transferred"][0].get_xdata()) == [6, 12]
    upper = curves["from scratch"][1][1]  # caps of the bars: mean + sd
    assert upper.get_ydata() == pytest.approx([0.45, 0.7])


def test_history_shows_what_each_round_added(data):
    left, right = drawn("search_history", data).axes
    assert list(left.lines[0].get_xdata()) == [4, 6]
    assert list(left.lines[0].get_ydata()) == [0.125, 0.375]
    assert list(line(right, "measured - predicted").get_ydata()) == [0.5, 0.0]
    assert list(line(right, "RMSE").get_ydata()) == [0.25, 0.125]


def test_costs_are_broken_down_by_layer(data):
    knee, other = drawn("cost_breakdown", data).axes
    assert [each.get_width() for each in knee.patches] == [0.125, 0.25, 0.0, 0.0625]
    assert [each.get_text() for each in knee.get_yticklabels()] == list(data.views[0].layers)
    assert knee.get_title() == "key1: 0.4375 ms"
    assert other.get_title() == "key0: 0.4375 ms"


def test_stages_show_their_seconds(data):
    axes = drawn("stage_seconds", data).axes[0]
    assert [each.get_width() for each in axes.patches] == [12.5, 3.25]
    assert texts(axes) == [" 12.5 s", " 3.2 s"]


def test_training_marks_where_formats_come_in(data):
    axes = drawn("training", data).axes[0]
    assert list(line(axes, "largest").get_ydata()) == [2.0, 1.0, 1.5]
    assert "random formats" in texts(axes)
    assert [each.get_xdata()[0] for each in axes.lines if each.get_linestyle() == "--"] == [2.5]
    only_fp32 = replace(data, history=data.history[:2])
    assert "random formats" not in texts(drawn("training", only_fp32).axes[0])


def test_samples_show_their_spread_against_the_noise(data):
    axes = drawn("sample_spread", data).axes[0]
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        f"{kind}: sd 0.125, paired noise 0.0625 (ratio 2.0)" for kind in ("fp32", "mixed")
    ]


def test_priced_latency_stands_against_measured(data):
    axes = drawn("latency", data).axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.5, 0.25]
    assert list(axes.lines[0].get_ydata()) == [0.05, 0.04]
    segments = np.array(axes.collections[0].get_segments())
    assert np.allclose(segments[:, :, 1], [[0.04, 0.07], [0.03, 0.06]])


def test_layers_of_candidates_of_other_depth_stay_in_order_of_execution():
    whole = ["stem", "s0.b0.a", "s0.b0.add", "s0.b1.a", "s1.b0.a", "s1.b1.a", "head", "classifier"]
    optional = ["s0.b0.add", "s0.b1.a", "s1.b1.a"]

    def view(layers):
        return LayerView(
            "k", layers, [""] * len(layers), [""] * len(layers), np.zeros(len(layers))
        )

    for count in range(len(optional) + 1):
        for gone in itertools.combinations(optional, count):
            rest = [each for each in optional if each not in gone]
            first = [each for each in whole if each not in gone]
            second = [each for each in whole if each not in rest]
            views = [view(first), view(second)]
            names = list(dict.fromkeys([*first, *second]))
            assert data_order(views, names) == whole, (first, second)
