"""Conformance checks for authors of plug-ins: being in a table means passing its check.

Each raises AssertionError with a sentence that says what does not hold, and returns nothing.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from apqkit.errors import CalibrationError
from apqkit.formats import NumberFormat, format_named
from apqkit.quant.calibration import calibrate
from apqkit.quant.layers import QuantConv, QuantLinear
from apqkit.quant.quantize import fake_quantize
from apqkit.search.problem import Problem, SearchSettings
from apqkit.search.strategies import Known, Propose
from apqkit.spaces.base import picks_of_values
from apqkit.spaces.draws import draw_uniform
from apqkit.types import CostModel, FloatArray, IntArray, LayerTable, Space

__all__ = [
    "check_cost_model",
    "check_dims",
    "check_format",
    "check_space",
    "check_strategy",
    "count_macs",
]


def check_space(space: Space, images: Tensor, *, seed: int = 0, candidates: int = 6) -> None:
    """Checks a search space.

    Canonical form is idempotent; description and picks agree; the table's MACs are those of the
    extracted network; ``select`` and ``extract`` compute the same.

    Args:
        space: The space.
        images: (batch, channels, height, width) in 0..1.
        seed: Of the candidates and the supernet.
        candidates: How many are tried.
    """
    images = images.contiguous(memory_format=torch.channels_last)  # as networks are fed
    picks = draw_uniform(space, candidates, np.random.default_rng(seed))
    _require(
        bool((space.repair(space.repair(picks)) == space.repair(picks)).all()),
        "repair is not idempotent",
    )
    for row, values in zip(picks, space.describe(picks), strict=True):
        _require(
            bool((picks_of_values(space.dims, values)[0] == row).all()),
            f"describe loses what picks say: {values}",
        )
    supernet = space.supernet(seed).train()
    table = space.network(picks)
    for index in range(candidates):
        layers = table.layers(index)
        supernet.select(layers)  # type: ignore[operator]
        extracted: nn.Module = supernet.extract(layers).train()  # type: ignore[operator]
        with torch.no_grad():
            _require(
                torch.allclose(supernet(images), extracted(images), rtol=1e-5, atol=1e-6),
                f"select and extract differ for candidate {index}",
            )
        calibrate(extracted, images)
        counted = count_macs(extracted, images[:1])
        stated = int(table.macs[index].sum())
        _require(
            counted == stated,
            f"the table of candidate {index} states {stated} MACs, its network makes {counted}",
        )


def check_dims(
    space: Space,
    features: Callable[[IntArray], FloatArray],
    costs: Callable[[IntArray], dict[str, FloatArray]],
    images: Tensor,
    *,
    seed: int = 0,
    candidates: int = 2,
) -> None:
    """Checks that every score depends on every active dim, and on no inactive one.

    Each active dim of random candidates is moved over its choices: predictor input, network table
    and supernet output must change with each (the output by more than rounding does), and some
    cost with at least one. Moving an inactive dim must change nothing.

    Args:
        space: The space.
        features: (n, k) picks to (n, d) predictor input.
        costs: (n, k) picks to costs by metric.
        images: (batch, channels, height, width) in 0..1.
        seed: Of the candidates and the supernet.
        candidates: How many are tried.
    """
    supernet = space.supernet(seed).train()

    def output(picks: IntArray) -> Tensor:
        supernet.select(space.network(picks).layers())  # type: ignore[operator]
        with torch.no_grad():
            logits: Tensor = supernet(images)
            return logits

    for row in draw_uniform(space, candidates, np.random.default_rng(seed)):
        active = space.active(row[None])[0]
        before = output(row[None])
        for column, dim in enumerate(space.dims):
            others = [each for each in range(len(dim.choices)) if each != row[column]]
            moved = np.repeat(row[None], len(others), axis=0)
            moved[:, column] = others
            if not active[column]:
                _require(
                    bool((space.repair(moved) == row).all()), f"inactive {dim.name} leaves a trace"
                )
                continue
            _check_active(space, dim.name, row[None], moved, features, costs)
            for picks in moved:
                _require(
                    not torch.allclose(before, output(picks[None]), rtol=1e-4, atol=1e-6),
                    f"{dim.name} does not change the supernet's output",
                )


def _check_active(
    space: Space,
    name: str,
    row: IntArray,
    moved: IntArray,
    features: Callable[[IntArray], FloatArray],
    costs: Callable[[IntArray], dict[str, FloatArray]],
) -> None:
    own, others = features(row), features(moved)
    _require(bool((own != others).any(axis=1).all()), f"{name} does not change predictor input")
    layers = space.network(row).layers()
    table = space.network(moved)
    _require(
        all(table.layers(index) != layers for index in range(len(moved))),
        f"{name} does not change the network table",
    )
    before, after = costs(row), costs(moved)
    _require(
        any(bool((after[metric] != before[metric]).any()) for metric in before),
        f"{name} changes no cost",
    )


def check_format(name: str, *, seed: int = 0) -> None:
    """Checks a number format through its fake quantizer.

    Quantizing twice changes nothing; zero stays zero; what is not finite is refused; there are at
    most 2^bits values (in a block of a block format); order is kept and the largest value is the
    one that the format states, where values share one scale.

    Args:
        name: The format.
        seed: Of the values tried.
    """
    number_format = format_named(name)
    if number_format.is_fp32:
        return
    scale = torch.tensor(0.25) if number_format.is_scaled else None
    reach = 8.0 if scale is None else 2.0 * float(number_format.max_value) * float(scale)
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(625, 32, generator=generator) - 0.5) * 2 * reach
    once = fake_quantize(values, number_format, scale=scale)
    twice = fake_quantize(once, number_format, scale=scale)
    _require(torch.equal(once, twice), f"{name}: quantizing twice changes values")
    zero = fake_quantize(torch.zeros(1), number_format, scale=scale)
    _require(float(zero) == 0.0, f"{name}: zero becomes {float(zero)}")
    for value in (float("nan"), float("inf")):
        _require(_refuses(value, number_format, scale), f"{name}: {value} is not refused")
    together = once[:1, : number_format.block_size] if number_format.block_size else once
    levels = len(together.unique())
    _require(
        levels <= 2**number_format.bits, f"{name}: {levels} values in {number_format.bits} bits"
    )
    if scale is None:
        return
    order = once.flatten()[values.flatten().argsort()]
    _require(bool((order.diff() >= 0).all()), f"{name}: order is not kept")
    top = float(once.max())
    expected = float(number_format.max_value) * float(scale)
    _require(top == expected, f"{name}: the largest value is {top}, not {expected}")


def _refuses(value: float, number_format: NumberFormat, scale: Tensor | None) -> bool:
    try:
        fake_quantize(torch.tensor([value]), number_format, scale=scale)
    except CalibrationError:
        return True
    return False


def check_cost_model(model: CostModel, table: LayerTable, *, seed: int = 0) -> None:
    """Checks a cost model on some networks.

    Every metric has one figure a candidate, positive or NaN, and the order of candidates does not
    matter.

    Args:
        model: The cost model.
        table: At least two networks.
        seed: Of the order tried.
    """
    costs = model.cost(table)
    _require(set(costs) == set(model.metrics), f"metrics {model.metrics} but costs {set(costs)}")
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = model.cost(table.take(order))
    for metric, values in costs.items():
        _require(values.shape == (len(table),), f"{metric} has shape {values.shape}")
        _require(bool(((values > 0) | np.isnan(values)).all()), f"{metric} is not always positive")
        _require(
            np.allclose(values[order], shuffled[metric], equal_nan=True, rtol=1e-12),
            f"{metric} depends on the order of candidates",
        )


def check_strategy(propose: Propose, space: Space, *, seed: int = 0) -> None:
    """Checks a search strategy on a toy problem: many MACs are accurate, few are fast.

    It proposes canonical, distinct candidates that are new, the same for the same seed, and within
    limits that random candidates meet.

    Args:
        propose: The strategy.
        space: Where it searches.
        seed: Of its draws.
    """
    drawn = draw_uniform(space, 64, np.random.default_rng(seed))
    limit = float(np.median(space.network(drawn).macs.sum(axis=1)))

    def score(picks: IntArray) -> dict[str, FloatArray]:
        macs = space.network(picks).macs.sum(axis=1).astype(np.float64)
        return {"accuracy": macs / (macs + limit), "macs": macs}

    objectives = {"accuracy": "max", "macs": "min"}
    settings = SearchSettings(population=24, generations=6)
    problem = Problem(space, score, objectives, {"macs": limit}, settings)
    known = Known(drawn, *problem.judged(drawn))
    first, second = (propose(problem, known, 8, np.random.default_rng(seed)) for _ in range(2))
    _require(np.array_equal(first.picks, second.picks), "the same seed proposes other candidates")
    _require(len(first.origins) == len(first.picks), "not every candidate has an origin")
    _require(bool((space.repair(first.picks) == first.picks).all()), "a proposal is not canonical")
    everyone = np.concatenate([np.unique(drawn, axis=0), first.picks])
    _require(len(np.unique(everyone, axis=0)) == len(everyone), "a proposal is not new")
    _require(bool((problem.judged(first.picks)[1] <= 0).all()), "a proposal exceeds the limit")


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Returns the multiply-accumulates that a network of quantized layers makes for one batch.

    They are counted at the layers themselves while the network runs.
    """
    counted = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del inputs
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counted.append(output.numel() // output.shape[1] * weight.numel())

    layers = [each for each in model.modules() if isinstance(each, QuantConv | QuantLinear)]
    computes = {layer: layer.compute for layer in layers}
    try:
        for layer in layers:
            layer.compute = _counting(layer, computes[layer], count)  # type: ignore[method-assign]
        with torch.no_grad():
            model(images)
    finally:
        for layer in layers:
            del layer.compute
    return sum(counted)


def _counting(
    layer: nn.Module,
    compute: Callable[..., Tensor],
    count: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
) -> Callable[..., Tensor]:
    def counted(*inputs: Tensor) -> Tensor:
        output = compute(*inputs)
        count(layer, inputs, output)
        return output

    return counted


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)
