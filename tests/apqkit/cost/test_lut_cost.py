from dataclasses import replace

import numpy as np
import pytest

from apqkit.cost.interpolation import fit_interpolator
from apqkit.cost.kernels import EDGES, conversion_keys, kernel_table
from apqkit.cost.keys import KEY_COLUMNS, column, key_of, key_text
from apqkit.cost.lut import LookupTable
from apqkit.cost.lut_cost import LutCost, plain_keys, wanted_keys
from apqkit.errors import CostError
from apqkit.formats import format_code
from apqkit.testing import check_cost_model
from apqkit.types import OPS, CostModel

BLOCK = 16
HEADER = {"device": "toy", "units": "ms", "runtime_rules": "onnxruntime", "fp32_block": "16"}
PLAIN = {"device": "toy", "units": "ms"}


def runnable_of(table):
    """The same networks with formats that have kernels."""

    def swapped(codes, narrow):
        return np.where(codes == format_code(narrow), format_code("int8"), codes)

    return replace(
        table,
        weight_format=swapped(table.weight_format, "fp8_e4m3"),
        activation_format=swapped(table.activation_format, "fp4_e2m1"),
    )


@pytest.fixture(scope="module")
def runnable(tiny_networks):
    return runnable_of(tiny_networks)


def figures_of(keys, header, *, energy=False):
    """Rows that follow the size of their tensors, a little disturbed."""
    rng = np.random.default_rng(0)
    pixels = column(keys, "in_height") * column(keys, "in_width")
    size = pixels * column(keys, "in_channels") * np.maximum(column(keys, "kernel"), 1)
    latency = 1e-5 * size**0.8 * rng.uniform(0.9, 1.1, len(keys))
    energies = {"energy_mj": latency * rng.uniform(2, 3, len(keys))} if energy else {}
    count = np.full(len(keys), 60)
    return LookupTable(header, keys, latency, latency * 0.9, latency * 1.2, count, **energies)


@pytest.fixture(scope="module")
def complete(runnable):
    """A table with every kernel and conversion of the networks, energies included."""
    return figures_of(wanted_keys(runnable, block=BLOCK).keys, HEADER, energy=True)


def without(table, *gone):
    """The table without some keys."""
    lost = {tuple(key.tolist()) for key in gone}
    return table.take(np.array([tuple(key) not in lost for key in table.keys.tolist()]))


def priced_by_hand(networks, table, *, edges=True, free=("input",)):
    """(n, L) latency, energy and variance in plain loops: kernels, then what they read."""
    kernels = kernel_table(networks, block=BLOCK)
    rows = {tuple(key): row for row, key in enumerate(table.keys.tolist())}
    figures = np.stack([table.latency_ms, table.energy_mj, table.spread_ms**2])
    found = np.zeros((3, *networks.op.shape))
    for candidate in range(len(networks)):
        for layer in networks.take(slice(candidate, candidate + 1)).layers():
            at = (candidate, layer.row)
            if layer.op not in free and not kernels.inside[at]:
                found[:, *at] += figures[:, rows[tuple(kernels.keys[at].tolist())]]
            for edge in range(len(EDGES)):
                for _ in range(int(kernels.conversions[at][edge]) if edges else 0):
                    key = conversion_keys(kernels.shapes[at], edge)
                    found[:, *at] += figures[:, rows[tuple(key.tolist())]]
    return found


@pytest.mark.parametrize("edges", [True, False])
def test_networks_cost_their_kernels_and_their_conversions(runnable, complete, edges):
    model: CostModel = LutCost(complete, edges=edges)
    latency, energy, variance = priced_by_hand(runnable, complete, edges=edges)
    terms = model.layer_terms(runnable)
    np.testing.assert_allclose(terms["latency_ms"], latency)
    np.testing.assert_allclose(terms["energy_mj"], energy)
    np.testing.assert_allclose(terms["variance"], variance)
    assert (terms["error_ms"] == 0).all()
    assert (latency[~runnable.active] == 0).all()
    costs = model.cost(runnable)
    np.testing.assert_allclose(costs["latency_ms"], latency.sum(axis=1))
    np.testing.assert_allclose(costs["energy_mj"], energy.sum(axis=1))
    expected = np.sqrt(variance.sum(axis=1) + (0.04 * latency.sum(axis=1)) ** 2)
    np.testing.assert_allclose(costs["latency_error_ms"], expected)
    assert model.coverage.estimated == model.coverage.error == model.coverage.left_out_error == {}


def test_conversions_cost_something(runnable, complete):
    with_edges = LutCost(complete).cost(runnable)["latency_ms"]
    without_edges = LutCost(complete, edges=False).cost(runnable)["latency_ms"]
    assert (with_edges > without_edges).all()


def test_the_metrics_follow_from_sums_of_the_terms(runnable, complete):
    model = LutCost(complete)
    sums = {name: each.sum(axis=1) for name, each in model.layer_terms(runnable).items()}
    costs = model.cost(runnable)
    assert set(costs) == set(model.metrics) == {"latency_ms", "energy_mj", "latency_error_ms"}
    for name, values in model.totals(sums).items():
        assert np.array_equal(values, costs[name])


@pytest.mark.parametrize("gone", [0, 40])
def test_it_is_a_sound_cost_model(runnable, complete, gone):
    check_cost_model(LutCost(complete.take(np.arange(gone, len(complete)))), runnable)


def test_energy_is_a_metric_only_where_every_row_knows_it(runnable, complete):
    known = complete.energy_mj.copy()
    known[3] = np.nan
    model = LutCost(replace(complete, energy_mj=known))
    assert model.metrics == ("latency_ms", "latency_error_ms")
    assert set(model.cost(runnable)) == {"latency_ms", "latency_error_ms"}
    assert set(model.layer_terms(runnable)) == {"latency_ms", "variance", "error_ms"}


def test_free_ops_cost_their_conversions_alone(runnable, complete):
    free = ("input", "add", "pool")
    table = replace(complete, header={**HEADER, "free_ops": " ".join(free)})
    terms = LutCost(table).layer_terms(runnable)
    expected, _, _ = priced_by_hand(runnable, complete, free=free)
    np.testing.assert_allclose(terms["latency_ms"], expected)
    adds = runnable.op == OPS.index("add")
    assert (terms["latency_ms"][adds] == 0).any()
    assert (terms["latency_ms"][adds] > 0).any()


def test_free_ops_need_no_rows(runnable, complete):
    rows = column(complete.keys, "op") != OPS.index("add")
    table = replace(complete, header={**HEADER, "free_ops": "input add"}).take(rows)
    model = LutCost(table)
    assert np.isfinite(model.cost(runnable)["latency_ms"]).all()
    assert model.coverage.estimated == {}


def test_head_and_tail_are_paid_once_a_network(runnable, complete):
    extra = figures_of(np.stack([key_of("head", {}), key_of("tail", {})]), HEADER)
    extra = replace(
        extra, latency_ms=np.array([5.0, 0.5]), p10_ms=np.array([5.0, 0.4]),
        p90_ms=np.array([5.0, 0.6]), energy_mj=np.array([1.0, 2.0]),
    )  # fmt: skip
    plain, whole = LutCost(complete).cost(runnable), LutCost(complete.joined(extra)).cost(runnable)
    np.testing.assert_allclose(whole["latency_ms"] - plain["latency_ms"], 5.5)
    np.testing.assert_allclose(whole["energy_mj"] - plain["energy_mj"], 3.0)
    assert (whole["latency_error_ms"] > plain["latency_error_ms"]).all()


def test_formats_without_a_kernel_are_not_a_number_never_zero(tiny_networks, runnable, complete):
    terms = LutCost(complete).layer_terms(tiny_networks)
    without_kernel = np.zeros(tiny_networks.op.shape, dtype=bool)
    for candidate in range(len(tiny_networks)):
        for layer in tiny_networks.take(slice(candidate, candidate + 1)).layers():
            formats = {layer.weight_format, layer.activation_format}
            without_kernel[candidate, layer.row] = bool(formats & {"fp8_e4m3", "fp4_e2m1"})
    for values in terms.values():
        assert np.array_equal(np.isnan(values), without_kernel)
    costs = LutCost(complete).cost(tiny_networks)
    for values in costs.values():
        assert np.array_equal(np.isnan(values), without_kernel.any(axis=1))


def test_formats_of_which_the_table_has_no_row_are_not_a_number(runnable, complete):
    int8_only = complete.take(column(complete.keys, "activation_format") == format_code("int8"))
    kernels = kernel_table(runnable, block=BLOCK)
    fp32 = column(kernels.keys, "activation_format") == format_code("fp32")
    fp32 &= runnable.active & (runnable.op != OPS.index("input"))
    found = LutCost(int8_only).layer_terms(runnable)["latency_ms"]
    assert fp32.any()
    assert np.array_equal(np.isnan(found), fp32)


@pytest.fixture
def misses(runnable, complete):
    """Five rows that the table loses: kernels and a conversion that networks use."""
    wanted = wanted_keys(runnable, block=BLOCK)
    most = wanted.keys[np.argsort(-wanted.uses, kind="stable")]
    is_edge = column(most, "op") >= len(OPS)
    return np.concatenate([most[~is_edge][:4], most[is_edge][:1]])


def test_rows_that_the_table_lacks_are_named_estimated_and_widen_the_error(
    runnable, complete, misses
):
    model, whole = LutCost(without(complete, *misses)), LutCost(complete)
    costs, exact = model.cost(runnable), whole.cost(runnable)
    names = [key_text(key) for key in misses]
    assert set(model.coverage.estimated) == set(model.coverage.error) == set(names)
    truth = {
        tuple(k): ms for k, ms in zip(complete.keys.tolist(), complete.latency_ms, strict=True)
    }
    for name, key in zip(names, misses, strict=True):
        estimate, error = model.coverage.estimated[name], model.coverage.error[name]
        assert estimate > 0
        assert error > 0
        assert abs(np.log(estimate / truth[tuple(key.tolist())])) < 4 * np.log1p(error)
    error_ms = model.layer_terms(runnable)["error_ms"].sum(axis=1)
    touched = error_ms > 0
    assert touched.any()
    assert (costs["latency_error_ms"] > exact["latency_error_ms"])[touched].all()
    np.testing.assert_allclose(costs["latency_ms"][~touched], exact["latency_ms"][~touched])
    # What is estimated may be wrong all in one direction: errors add up as they are.
    own = (0.04 * costs["latency_ms"]) ** 2
    variance = model.layer_terms(runnable)["variance"].sum(axis=1)
    np.testing.assert_allclose(costs["latency_error_ms"], np.sqrt(variance + own) + error_ms)


def test_an_estimate_and_its_error_come_from_the_rows_of_its_kind(runnable, complete):
    int8 = format_code("int8")
    alike = (complete.keys[:, 0] == OPS.index("conv")) & (
        complete.keys[:, [KEY_COLUMNS.index(f"{each}_format") for each in
                          ("weight", "activation", "output")]] == int8
    ).all(axis=1)  # fmt: skip
    gone = complete.keys[np.flatnonzero(alike)[0]]
    short = without(complete, gone)
    model = LutCost(short)
    model.cost(runnable)
    rows = without(complete.take(alike), gone)
    process = fit_interpolator(rows.keys, rows.latency_ms)
    latency, error = process.predict(gone[None])
    assert model.coverage.estimated == {key_text(gone): pytest.approx(latency[0])}
    assert model.coverage.error == {key_text(gone): pytest.approx(error[0])}
    kind = "conv weight_format int8 activation_format int8 output_format int8"
    median = np.median(process.left_out_error)
    assert model.coverage.left_out_error == {kind: pytest.approx(median)}


def test_energy_of_an_estimate_is_in_proportion_to_its_time(runnable, complete, misses):
    doubled = replace(complete, energy_mj=2.0 * complete.latency_ms)
    costs = LutCost(without(doubled, *misses)).cost(runnable)
    np.testing.assert_allclose(costs["energy_mj"], 2.0 * costs["latency_ms"])


def test_few_rows_of_a_kind_are_helped_by_rows_of_other_formats(runnable, complete):
    conv = complete.keys[:, 0] == OPS.index("conv")
    fp32 = column(complete.keys, "activation_format") == format_code("fp32")
    rows = np.flatnonzero(conv & fp32)
    assert len(rows) > 10
    lost = complete.keys[rows[3:]]
    short = without(complete, *lost)
    model = LutCost(short)
    model.cost(runnable)
    assert set(model.coverage.estimated) == {key_text(key) for key in lost}
    others = short.take(short.keys[:, 0] == OPS.index("conv"))
    latency, error = fit_interpolator(others.keys, others.latency_ms).predict(lost[:1])
    assert model.coverage.estimated[key_text(lost[0])] == pytest.approx(latency[0])
    assert model.coverage.error[key_text(lost[0])] == pytest.approx(error[0])


def test_an_op_without_any_row_is_estimated_from_all_and_said_to_be_unsure(runnable, complete):
    adds = complete.keys[:, 0] == OPS.index("add")
    model = LutCost(complete.take(~adds))
    costs = model.cost(runnable)
    lost = {key_text(key) for key in complete.keys[adds]}
    assert set(model.coverage.estimated) == lost
    assert all(error >= 1.0 for error in model.coverage.error.values())
    assert all(estimate > 0 for estimate in model.coverage.estimated.values())
    assert np.isfinite(costs["latency_ms"]).all()


def test_a_table_of_one_row_prices_everything_with_a_wide_error(runnable, complete):
    int8 = runnable.with_formats("int8", "int8")
    conv = complete.keys[:, 0] == OPS.index("conv")
    weights = column(complete.keys, "weight_format") == format_code("int8")
    table = complete.take(np.flatnonzero(conv & weights)[:1])
    terms = LutCost(table, edges=False).layer_terms(int8)
    weighted = int8.active & (int8.weight_format >= 0)
    assert (terms["latency_ms"][weighted] > 0).all()
    estimated = terms["error_ms"] > 0
    assert (terms["error_ms"][estimated] >= terms["latency_ms"][estimated] * (1 - 1e-12)).all()
    assert np.isnan(terms["latency_ms"][int8.op == OPS.index("add")]).any()


def test_prices_do_not_depend_on_what_was_priced_before(runnable, complete, misses):
    short = without(complete, *misses, *complete.keys[::9])
    at_once, in_parts = LutCost(short), LutCost(short)
    together = at_once.cost(runnable)
    order = np.random.default_rng(0).permutation(len(runnable))
    for candidate in order:
        alone = in_parts.cost(runnable.take(np.array([candidate])))
        for name, values in together.items():
            assert values[candidate] == alone[name][0]  # to the last bit
    for name in ("estimated", "error", "left_out_error"):
        assert getattr(in_parts.coverage, name) == getattr(at_once.coverage, name)


def test_pricing_again_estimates_nothing_anew(runnable, complete, misses):
    model = LutCost(without(complete, *misses))
    first, noted = model.cost(runnable), dict(model.coverage.estimated)
    again = model.cost(runnable)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert model.coverage.estimated == noted


def test_networks_without_rows_cost_nothing(runnable, complete):
    nothing = replace(runnable, active=np.zeros_like(runnable.active))
    nothing = replace(nothing, producers=np.full_like(runnable.producers, -1))
    assert (LutCost(complete).cost(nothing)["latency_ms"] == 0).all()


def test_a_table_that_knows_no_runtime_has_a_row_for_each_layer(tiny_networks):
    keys = np.unique(plain_keys(tiny_networks)[tiny_networks.active], axis=0)
    keys = keys[keys[:, 0] != OPS.index("input")]
    table = figures_of(keys, PLAIN)
    model = LutCost(table)
    prices = {tuple(k): ms for k, ms in zip(keys.tolist(), table.latency_ms, strict=True)}
    terms = model.layer_terms(tiny_networks)
    for candidate in range(len(tiny_networks)):
        for layer in tiny_networks.take(slice(candidate, candidate + 1)).layers():
            if layer.op == "input":
                continue
            key = key_of(
                layer.op,
                {name: getattr(layer, name) for name in
                 ("in_channels", "out_channels", "kernel", "stride", "groups", "in_height",
                  "in_width", "activation_format")}
                | {"weight_format": layer.weight_format or "none"},
            )  # fmt: skip
            price = prices[tuple(key.tolist())]
            assert terms["latency_ms"][candidate, layer.row] == price
    assert model.coverage.estimated == {}
    spread = np.sqrt(terms["variance"].sum(axis=1))  # nothing is known of sums on that device
    np.testing.assert_allclose(model.cost(tiny_networks)["latency_error_ms"], spread)
    check_cost_model(model, tiny_networks)


def test_what_networks_need_is_what_pricing_them_looks_up(runnable, complete):
    wanted = wanted_keys(runnable, block=BLOCK)
    kernels = kernel_table(runnable, block=BLOCK)
    uses = {}
    for candidate in range(len(runnable)):
        for layer in runnable.take(slice(candidate, candidate + 1)).layers():
            at = (candidate, layer.row)
            if layer.op != "input" and not kernels.inside[at]:
                key = tuple(kernels.keys[at].tolist())
                uses[key] = uses.get(key, 0) + 1
            for edge, times in enumerate(kernels.conversions[at].tolist()):
                if times:
                    key = tuple(conversion_keys(kernels.shapes[at], edge).tolist())
                    uses[key] = uses.get(key, 0) + times
    found = dict(zip(map(tuple, wanted.keys.tolist()), wanted.uses.tolist(), strict=True))
    assert found == uses
    assert len(found) == len(wanted.keys)
    for gone in (complete.keys[0], complete.keys[-1]):  # nothing in it is idle
        model = LutCost(without(complete, gone))
        model.cost(runnable)
        assert list(model.coverage.estimated) == [key_text(gone)]


def test_what_is_needed_does_not_depend_on_the_order_of_networks(runnable):
    turned = wanted_keys(runnable.take(np.arange(len(runnable))[::-1]), block=BLOCK)
    wanted = wanted_keys(runnable, block=BLOCK)
    assert np.array_equal(turned.keys, wanted.keys)
    assert np.array_equal(turned.uses, wanted.uses)


def test_networks_without_a_kernel_need_nothing(tiny_networks):
    with pytest.raises(CostError) as caught:
        wanted_keys(tiny_networks.with_formats("fp8_e4m3", "fp4_e2m1"), block=BLOCK)
    assert str(caught.value) == "there is no layer to time"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "runtime_rules",
            "tvm",
            "a table's runtime_rules must be onnxruntime or openvino, got 'tvm'",
        ),
        ("fp32_block", "-16", "a table's fp32_block must be a whole number, got '-16'"),
        ("fp32_block", "wide", "a table's fp32_block must be a whole number, got 'wide'"),
        (
            "free_ops",
            "input sum",
            "a table's free_ops must be of input, conv, linear, add, pool, global_pool, got 'sum'",
        ),
    ],
)
def test_headers_that_name_no_known_rules_are_refused(complete, name, value, message):
    with pytest.raises(CostError) as caught:
        LutCost(replace(complete, header={**HEADER, name: value}))
    assert str(caught.value) == message
