"""What one loss pass, the Hessian and the formats say about each layer.

Letters: b samples, L layers, F formats.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.zerocost.arrays import FloatArray, fixed
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.hessian import HessianEffort, HessianSpectrum, hessian_spectrum
from predictors.zerocost.layer_recorder import InputStatistics, LayerRecorder
from predictors.zerocost.orthogonality import alignment
from predictors.zerocost.passes import Passes, loss_pass
from predictors.zerocost.session import ProxySession
from predictors.zerocost.untouched import untouched
from predictors.zerocost.weight_errors import WeightErrors, weight_errors

__all__ = ["LayerStatistics", "OutputChanges", "layer_statistics"]


@dataclass(frozen=True, eq=False)
class OutputChanges:
    """Changes of the outputs of the network, one layer in one format at a time.

    Attributes:
        kl: (L, F) mean over samples of KL(p || q) in nats, p and q being the softmax over axis 1
            of the outputs before and after.
        sqnr_db: (L, F) 10 * log10(sum(before**2) / sum((before - after)**2)) in dB, at most
            ``MAX_SQNR_DB``. Both are NaN where outputs are not finite.
    """

    kl: FloatArray
    sqnr_db: FloatArray


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the layers of one network on one batch, for any number of scores.

    A layer is a parameter with two or more axes that a gradient of the loss reaches, of a module
    of any class. Arrays are float64 and read-only.

    Attributes:
        layers: (L,) names of the weights, in the model's order.
        formats: (F,) names.
        samples: b, how many samples the batch has.
        loss: Of the batch.
        weights: By layer, a copy.
        gradients: By layer, of the loss of the batch.
        parameters: (L,) numbers of weights.
        macs: (L,) multiplications a sample, from the shapes of what the layer returned; NaN where
            that does not say, as for modules with several weights.
        inputs: What enters the layers.
        cka: (L, L) alignment of what leaves them, 0..1; NaN where that does not start with the
            batch.
        errors: What the formats do to the weights.
        bits: (F,) bits of a weight, or None.
        activation_bits: (F,) bits of an input, or None.
        hessian: Traces and top eigenvalues, or None.
        proxies: By proxy (L,) parts of the layers as the proxy gives them, NaN where it has none.
        outputs: How each layer's format changes the outputs of the network, or None; see
            :func:`predictors.zerocost.output_changes.with_output_changes`.
    """

    layers: tuple[str, ...]
    formats: tuple[str, ...]
    samples: int
    loss: float
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    parameters: FloatArray
    macs: FloatArray
    inputs: InputStatistics
    cka: FloatArray
    errors: WeightErrors
    bits: FloatArray | None
    activation_bits: FloatArray | None
    hessian: HessianSpectrum | None
    proxies: Mapping[str, FloatArray]
    outputs: OutputChanges | None = None


def layer_statistics(
    session: ProxySession,
    *,
    bits: Mapping[str, float] | None = None,
    activation_bits: Mapping[str, float] | None = None,
    hessian: HessianEffort | None = None,
    proxies: Sequence[str] = (),
) -> LayerStatistics:
    """Returns statistics of each layer; the model is left exactly as it was found.

    One forward and one backward pass, besides what the Hessian and the proxies ask for. The
    formats are those of the session's ``quantize``. A format is applied to the weights as they
    stand: on a quantized layer to those that it trains, which it would quantize itself.

    Args:
        session: Model, batch with labels, loss, formats and seed.
        bits: Format name to bits of a weight, for scores that count bits.
        activation_bits: Format name to bits of the layer's input; by default those of the weight.
        hessian: How far to estimate the Hessian; None leaves it out.
        proxies: Names in ``PROXIES`` whose parts per layer are wanted too.

    Raises:
        ProxyError: Something that :meth:`ProxySession.compute` or :func:`hessian_spectrum` would
            refuse, bits that are missing or not above 0, or a format that changes shapes.
    """
    formats = tuple(session.quantize)
    widths = _widths("bits", bits, formats)
    inner_widths = _widths("activation_bits", activation_bits, formats)
    scores = session.compute(proxies)
    passes = _passes(session)
    with torch.inference_mode(False):
        loss = passes.of(loss_pass)
        layers = tuple(loss.weights)
        weights = {name: each.clone() for name, each in loss.weights.items()}
        with untouched(session.model, seed=session.seed):  # formats may draw random numbers
            errors = weight_errors(weights, loss.gradients, session.quantize)
        spectrum = None if hessian is None else hessian_spectrum(passes, layers, hessian)
    seen = loss.forward.record(LayerRecorder)
    return LayerStatistics(
        layers=layers,
        formats=formats,
        samples=len(session.inputs),
        loss=loss.loss,
        weights=weights,
        gradients=loss.gradients,
        parameters=fixed(each.numel() for each in weights.values()),
        macs=seen.macs(layers),
        inputs=seen.inputs(layers),
        cka=fixed(alignment(seen.grams(layers))),
        errors=errors,
        bits=widths,
        activation_bits=widths if inner_widths is None else inner_widths,
        hessian=spectrum,
        proxies={name: _of_layers(each.layers, layers) for name, each in scores.items()},
    )


def _passes(session: ProxySession) -> Passes:
    return Passes(
        model=session.model,
        inputs=session.inputs,
        labels=session.labels,
        loss=session.loss,
        reference=session.reference,
        quantize=session.quantize,
        seed=session.seed,
        recorders=(LayerRecorder,),
    )


def _of_layers(parts: Mapping[str, float], layers: Iterable[str]) -> FloatArray:
    return fixed(parts.get(name, float("nan")) for name in layers)


def _widths(
    argument: str, bits: Mapping[str, float] | None, formats: Sequence[str]
) -> FloatArray | None:
    if bits is None:
        return None
    missing = [name for name in formats if name not in bits]
    if missing:
        raise ProxyError(f"{argument} must name every format, and lacks: {', '.join(missing)}")
    for name in formats:
        if not 0.0 < bits[name] < float("inf"):
            raise ProxyError(f"{argument}[{name!r}] must be above 0 and finite, got {bits[name]}")
    return fixed(bits[name] for name in formats)
