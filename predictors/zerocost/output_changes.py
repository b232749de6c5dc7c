"""How far the outputs move when one layer's weights are quantized.

Letters: b samples, L layers, F formats.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from predictors.zerocost.arrays import fixed
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.layer_statistics import LayerStatistics, OutputChanges
from predictors.zerocost.passes import named_weights, run_model
from predictors.zerocost.session import ProxySession
from predictors.zerocost.untouched import untouched
from predictors.zerocost.weight_errors import sqnr_db

__all__ = ["output_divergence", "with_output_changes"]


def with_output_changes(
    session: ProxySession,
    statistics: LayerStatistics,
    *,
    progress: Callable[[int], None] | None = None,
) -> LayerStatistics:
    """Returns the statistics with ``outputs``: L * F forward passes, and one before.

    Every pass starts from the model as it is and from the same seed, so that only the weights of
    one layer differ. Labels are not read.

    Args:
        session: Model, inputs, formats and seed; those of the statistics.
        statistics: Of the same session.
        progress: Called with 1 after each pass of a layer and format.

    Raises:
        ProxyError: The session has other formats or lacks a layer, outputs are no scores of
            classes, or are not finite or all 0 before any quantization.
    """
    _check_session(session, statistics)
    changes = np.empty((2, len(statistics.layers), len(statistics.formats)))
    with torch.inference_mode(False), torch.no_grad():
        with untouched(session.model, seed=session.seed):
            before = run_model(session.model, session.inputs).double()
        _check_outputs(before)
        for row, layer in enumerate(statistics.layers):
            for column, name in enumerate(statistics.formats):
                after = _outputs(session, layer, session.quantize[name])
                changes[:, row, column] = _changes(before, after)
                if progress is not None:
                    progress(1)
    outputs = OutputChanges(kl=fixed(changes[0]), sqnr_db=fixed(changes[1]))
    return replace(statistics, outputs=outputs)


def output_divergence(before: Tensor, after: Tensor) -> float:
    """Returns the mean over samples of KL(p || q) in nats, p and q the softmax over axis 1.

    Args:
        before: (b, classes, ...) float64 outputs that make p.
        after: Of the same shape; they make q.
    """
    expected, found = (each.log_softmax(1) for each in (before, after))
    return float((expected.exp() * (expected - found)).sum(1).mean())


def _outputs(session: ProxySession, layer: str, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns float64 outputs with the weights of one layer quantized."""
    model = session.model
    with untouched(model, seed=session.seed):  # on its own: a format may draw random numbers
        quantized = quantize(named_weights(model)[layer].detach().clone())
    with untouched(model, seed=session.seed):
        outputs: Tensor = functional_call(model, {layer: quantized}, (session.inputs.clone(),))
    return outputs.double()


def _changes(before: Tensor, after: Tensor) -> tuple[float, float]:
    noise = float((before - after).square().sum())
    return output_divergence(before, after), sqnr_db(float(before.square().sum()), noise)


def _check_session(session: ProxySession, statistics: LayerStatistics) -> None:
    if tuple(session.quantize) != statistics.formats:
        raise ProxyError(
            f"the session must have the formats of the statistics, {list(statistics.formats)}, "
            f"got {list(session.quantize)}"
        )
    weights = named_weights(session.model)
    for layer in statistics.layers:
        if layer not in weights:
            raise ProxyError(f"the model has no weight {layer!r}, and the statistics have")


def _check_outputs(before: Tensor) -> None:
    if before.dim() < 2:
        raise ProxyError(
            f"outputs must have shape (samples, classes, ...), got {tuple(before.shape)}"
        )
    if not bool(torch.isfinite(before).all()):
        raise ProxyError("the outputs of the model are not finite")
    if not bool(before.any()):
        raise ProxyError("all outputs of the model are 0: there is no ratio to noise")
