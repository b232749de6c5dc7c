"""What formulas read, taken from the statistics of any network.  Letters: L layers, F formats."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.layer_inputs import LayerInputs
from predictors.zerocost.layer_statistics import LayerStatistics

__all__ = ["inputs_of"]


def inputs_of(
    statistics: LayerStatistics,
    *,
    more: Mapping[str, Mapping[str, Tensor]] | None = None,
    most_values: int = 4096,
) -> LayerInputs:
    """Returns what formulas may read about a network.

    Weights and gradients are taken as they are, and the Hessian, where it was estimated, as one
    value a layer, its trace by the number of weights. Formulas mean the same on two networks only
    if their inputs were made alike: give in ``more`` what the tables of an evolution had besides.

    Args:
        statistics: Of the network, with bits of formats.
        more: Further kinds of statistics by layer, such as activations; they replace those above.
        most_values: Of a layer, at least 1; of more, as many are taken at even distances.

    Raises:
        ProxyError: The statistics lack bits, ``more`` lacks a layer, or what
            :class:`LayerInputs` refuses.

    Example::

        statistics = layer_statistics(session, bits=bits, hessian=HessianEffort())
        program = load_program(Path("proxy.json"))
        scores = assemble(program.layer_scores(inputs_of(statistics)), format_index)
    """
    if statistics.bits is None:
        raise ProxyError(
            "formulas need the bits of formats: give layer_statistics(..., bits={name: bits})"
        )
    if most_values < 1:
        raise ProxyError(f"most_values must be 1 or more, got {most_values}")
    kinds = {"weights": statistics.weights, "gradients": statistics.gradients, **(more or {})}
    found = {
        kind: _arrays(kind, by_layer, statistics.layers, most_values)
        for kind, by_layer in kinds.items()
    }
    if statistics.hessian is not None and "hessian" not in found:
        means = statistics.hessian.traces / statistics.parameters
        found["hessian"] = tuple(np.array([mean], dtype=np.float32) for mean in means)
    return LayerInputs(
        layers=statistics.layers,
        formats=statistics.formats,
        bits=statistics.bits,
        parameters=statistics.parameters,
        errors=statistics.errors.sum_of_squares,
        statistics=found,
    )


def _arrays(
    kind: str, by_layer: Mapping[str, Tensor], layers: tuple[str, ...], most_values: int
) -> tuple[NDArray[np.float32], ...]:
    missing = [layer for layer in layers if layer not in by_layer]
    if missing:
        raise ProxyError(f"{kind} must name every layer, and lacks: {', '.join(missing)}")
    return tuple(_some_values(by_layer[layer], most_values) for layer in layers)


def _some_values(tensor: Tensor, most_values: int) -> NDArray[np.float32]:
    values = tensor.detach().flatten()
    count = min(len(values), most_values)
    places = np.linspace(0, len(values) - 1, count).round().astype(np.int64)
    chosen: NDArray[np.float32] = values[places].float().cpu().numpy()
    return chosen
