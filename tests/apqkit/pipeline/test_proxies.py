from contextlib import contextmanager

import numpy as np
import pytest

from apqkit.errors import UnknownNameError
from apqkit.pipeline.proxies import ProxyColumns
from apqkit.spaces.draws import draw_uniform
from apqkit.types import SilentProgress
from predictors.zerocost import PROXIES, ProxySession

NAMES = ["snip", "params", "naswot"]


class Counting(SilentProgress):
    def __init__(self):
        self.totals = []

    @contextmanager
    def task(self, label, total):
        self.totals.append((label, total))
        yield lambda steps: None


@pytest.fixture
def columns(context):
    return ProxyColumns(context.space, context.supernet, context.splits, Counting())


@pytest.fixture(scope="module")
def picks(context):
    return draw_uniform(context.space, 3, np.random.default_rng(0))


def test_columns_are_the_scores_of_the_extracted_subnets(context, columns, picks):
    found = columns.columns(picks, NAMES)
    images = context.splits.calibration_images(64)
    for candidate, row in enumerate(found):
        layers = context.space.network(picks).layers(candidate)
        subnet = context.supernet.extract(layers).train()
        scores = ProxySession(subnet, (images.images(), images.targets)).compute(NAMES)
        for name, value in zip(NAMES, row, strict=True):
            raw = scores[name].value
            tamed = raw if PROXIES[name].log else np.sign(raw) * np.log(1 + abs(raw))
            assert value == pytest.approx(tamed, rel=1e-6), name


def test_sqnr_compares_with_the_same_subnet_in_fp32(context, columns, picks):
    """Wider formats are nearer to fp32."""
    dims = context.space.dims
    wide, narrow = picks[:1].copy(), picks[:1].copy()
    for column, dim in enumerate(dims):
        if dim.role == "quant":
            wide[:, column], narrow[:, column] = dim.choices.index("int8"), 0
    values = columns.columns(np.concatenate([wide, narrow]), ["sqnr"])[:, 0]
    assert values[0] > values[1]


def test_each_score_is_computed_once(columns, picks):
    first = columns.columns(picks, ["snip"])
    again = columns.columns(picks[::-1], ["snip"])
    assert columns._progress.totals == [("proxies", 3)]
    assert np.array_equal(again, first[::-1])


def test_only_missing_candidates_and_scores_are_computed(columns, picks):
    columns.columns(picks[:2], ["snip"])
    columns.columns(picks, ["snip"])
    columns.columns(picks[:1], ["snip", "params"])
    assert columns._progress.totals == [("proxies", 2), ("proxies", 1), ("proxies", 1)]


def test_without_names_there_are_no_columns(columns, picks):
    assert columns.columns(picks, []).shape == (3, 0)
    assert columns._progress.totals == []


def test_an_unknown_proxy_is_named(columns, picks):
    with pytest.raises(UnknownNameError) as caught:
        columns.columns(picks, ["snip", "synflo"])
    assert str(caught.value) == (
        "no proxy named 'synflo' (did you mean 'synflow'?); there are: "
        "epe_nas, fisher, fisher_channel, flops, grad_norm, grasp, jacov, l2_norm, meco, naswot, "
        "naswot_mean, params, plain, snip, sqnr, swap, synflow, zen, zico"
    )


def test_computing_leaves_the_supernet_untouched(context, columns, picks):
    before = {name: value.clone() for name, value in context.supernet.state_dict().items()}
    columns.columns(picks[:1], NAMES)
    after = context.supernet.state_dict()
    assert all(np.array_equal(after[n], v, equal_nan=True) for n, v in before.items())
    assert all(each.grad is None for each in context.supernet.parameters())
