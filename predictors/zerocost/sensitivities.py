"""The table of sensitivities: what each layer loses, or keeps, in each format.

Letters: L layers, F formats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from predictors.zerocost.arrays import FloatArray
from predictors.zerocost.errors import ProxyError
from predictors.zerocost.hessian import HessianSpectrum
from predictors.zerocost.layer_statistics import LayerStatistics, OutputChanges
from predictors.zerocost.orthogonality import orthogonality_weights, suffix_means
from predictors.zerocost.proxy import Direction
from predictors.zerocost.quantization_entropy import quantization_entropy

__all__ = ["SENSITIVITIES", "Sensitivity"]

_HAWQ = "Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization, NeurIPS 2020"
_EMQ = "Dong et al., EMQ: Evolving Training-free Proxies, ICCV 2023 (as a baseline)"


@dataclass(frozen=True)
class Sensitivity:
    """One sensitivity: facts, and the function that computes it.

    Attributes:
        name: The name in the table ``SENSITIVITIES``.
        direction: ``up``: of two choices of formats the one with the larger sum over the layers is
            predicted better; ``down``: the one with the smaller sum.
        source: Paper, venue and year.
        convention: The formula as it is computed here.
        score: Returns (L, F) from the statistics, for :func:`predictors.zerocost.assemble`; raises
            ProxyError if they lack what it reads.
    """

    name: str
    direction: Direction
    source: str
    convention: str
    score: Callable[[LayerStatistics], FloatArray]


def _hawq_v1(statistics: LayerStatistics) -> FloatArray:
    eigenvalues = _hessian("hawq_v1", statistics).eigenvalues
    if eigenvalues is None:
        raise ProxyError(
            "hawq_v1 needs eigenvalues: give layer_statistics(..., "
            "hessian=HessianEffort(most_iterations=100))"
        )
    return eigenvalues[:, None] * statistics.errors.sum_of_squares


def _hawq_v2(statistics: LayerStatistics) -> FloatArray:
    return _mean_traces("hawq_v2", statistics)[:, None] * statistics.errors.sum_of_squares


def _hawq_v2_mean_square(statistics: LayerStatistics) -> FloatArray:
    traces = _mean_traces("hawq_v2_mean_square", statistics)
    return traces[:, None] * statistics.errors.mean_square


def _bit_trace(statistics: LayerStatistics) -> FloatArray:
    return np.outer(_mean_traces("bit_trace", statistics), _bits("bit_trace", statistics))


def _taylor(statistics: LayerStatistics) -> FloatArray:
    changes: FloatArray = np.abs(statistics.errors.gradient_products)
    return changes


def _fisher(statistics: LayerStatistics) -> FloatArray:
    return 0.5 * statistics.errors.squared_gradient_products


def _weight_sqnr(statistics: LayerStatistics) -> FloatArray:
    return statistics.errors.sqnr_db


def _weight_mse(statistics: LayerStatistics) -> FloatArray:
    return statistics.errors.mean_square


def _weight_relative_mse(statistics: LayerStatistics) -> FloatArray:
    powers = np.array(
        [float(each.double().square().sum()) for each in statistics.weights.values()]
    )
    powers[powers == 0.0] = np.nan
    ratios: FloatArray = statistics.errors.sum_of_squares / powers[:, None]
    return ratios


def _kl(statistics: LayerStatistics) -> FloatArray:
    return _outputs("kl", statistics).kl


def _output_sqnr(statistics: LayerStatistics) -> FloatArray:
    return _outputs("output_sqnr", statistics).sqnr_db


def _qe(statistics: LayerStatistics) -> FloatArray:
    bits, activation_bits = _both_bits("qe", statistics)
    fan_in = np.array([each[0].numel() for each in statistics.weights.values()], dtype=np.float64)
    return quantization_entropy(fan_in, bits, activation_bits)


def _ompq(statistics: LayerStatistics) -> FloatArray:
    bits = _bits("ompq", statistics)
    if statistics.samples < 2:
        raise ProxyError(f"ompq needs at least 2 samples, got {statistics.samples}")
    unseen = np.isnan(statistics.cka.diagonal())
    if unseen.any():
        layer = statistics.layers[int(unseen.argmax())]
        raise ProxyError(f"ompq needs what every layer returns, and saw nothing of {layer!r}")
    return np.outer(suffix_means(orthogonality_weights(statistics.cka)), bits)


def _bit_snip(statistics: LayerStatistics) -> FloatArray:
    bits = _bits("bit_snip", statistics)
    snip = [
        float((statistics.gradients[name] * weight).double().abs().sum())
        for name, weight in statistics.weights.items()
    ]
    return np.outer(snip, bits)


def _bit_synflow(statistics: LayerStatistics) -> FloatArray:
    bits = _bits("bit_synflow", statistics)
    if "synflow" not in statistics.proxies:
        raise ProxyError(
            "bit_synflow needs synflow: give layer_statistics(..., proxies=['synflow'])"
        )
    logs = statistics.proxies["synflow"]
    flows = np.nan_to_num(np.exp(logs - np.nanmax(logs)), nan=0.0)  # no logarithm: nothing flows
    return np.outer(flows / flows.sum(), bits)


def _bit_params(statistics: LayerStatistics) -> FloatArray:
    return np.outer(statistics.parameters, _bits("bit_params", statistics))


def _bit_sum(statistics: LayerStatistics) -> FloatArray:
    return np.outer(np.ones(len(statistics.layers)), _bits("bit_sum", statistics))


def _size_kib(statistics: LayerStatistics) -> FloatArray:
    return np.outer(statistics.parameters / (8.0 * 1024.0), _bits("size_kib", statistics))


def _bops(statistics: LayerStatistics) -> FloatArray:
    bits, activation_bits = _both_bits("bops", statistics)
    return np.outer(statistics.macs, bits * activation_bits)


def _hessian(name: str, statistics: LayerStatistics) -> HessianSpectrum:
    if statistics.hessian is None:
        raise ProxyError(
            f"{name} needs the Hessian: give layer_statistics(..., hessian=HessianEffort())"
        )
    return statistics.hessian


def _mean_traces(name: str, statistics: LayerStatistics) -> FloatArray:
    return _hessian(name, statistics).traces / statistics.parameters


def _outputs(name: str, statistics: LayerStatistics) -> OutputChanges:
    if statistics.outputs is None:
        raise ProxyError(
            f"{name} needs the outputs: give it with_output_changes(session, statistics)"
        )
    return statistics.outputs


def _bits(name: str, statistics: LayerStatistics) -> FloatArray:
    return _both_bits(name, statistics)[0]


def _both_bits(name: str, statistics: LayerStatistics) -> tuple[FloatArray, FloatArray]:
    if statistics.bits is None or statistics.activation_bits is None:
        raise ProxyError(
            f"{name} needs the bits of formats: give layer_statistics(..., bits={{name: bits}})"
        )
    return statistics.bits, statistics.activation_bits


_TABLE = (
    Sensitivity(
        "hawq_v1",
        "down",
        "Dong et al., HAWQ: Hessian AWare Quantization, ICCV 2019",
        "e * norm2(Q(W) - W)**2, e the eigenvalue of the layer's Hessian that is largest in "
        "magnitude, with its sign",
        _hawq_v1,
    ),
    Sensitivity(
        "hawq_v2",
        "down",
        _HAWQ,
        "mean trace * norm2(Q(W) - W)**2, the mean trace being trace(H_l) by the number of "
        "weights, with its sign",
        _hawq_v2,
    ),
    Sensitivity(
        "hawq_v2_mean_square",
        "down",
        f"{_HAWQ}; the mean square as in MQBench",
        "mean trace * mean((Q(W) - W)**2): hawq_v2 by the number of weights, which favours large "
        "layers",
        _hawq_v2_mean_square,
    ),
    Sensitivity(
        "bit_trace",
        "up",
        _EMQ,
        "mean trace * bits; not HAWQ's objective, it ignores what formats do to the weights",
        _bit_trace,
    ),
    Sensitivity(
        "taylor",
        "down",
        "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019 (the "
        "first-order expansion, for dW instead of -W)",
        "abs(sum(g * (Q(W) - W))), g the gradient of the batch's loss",
        _taylor,
    ),
    Sensitivity(
        "fisher",
        "down",
        "Theis et al., Faster gaze prediction with dense networks and Fisher pruning, 2018 (for "
        "dW instead of -W)",
        "0.5 * sum((g * (Q(W) - W))**2), g the gradient of the batch's mean loss, not of single "
        "samples",
        _fisher,
    ),
    Sensitivity(
        "weight_sqnr",
        "up",
        "Lin et al., Fixed Point Quantization of Deep Convolutional Networks, ICML 2016",
        "10 * log10(norm2(W)**2 / norm2(Q(W) - W)**2) in dB, at most 120",
        _weight_sqnr,
    ),
    Sensitivity(
        "weight_mse",
        "down",
        "Banner et al., Post training 4-bit quantization, NeurIPS 2019 (as an objective)",
        "mean((Q(W) - W)**2)",
        _weight_mse,
    ),
    Sensitivity(
        "weight_relative_mse",
        "down",
        "Lin et al., Fixed Point Quantization of Deep Convolutional Networks, ICML 2016",
        "mean((Q(W) - W)**2) / mean(W**2), whose logarithm weight_sqnr is; NaN for weights of 0",
        _weight_relative_mse,
    ),
    Sensitivity(
        "kl",
        "down",
        "Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020",
        "mean over samples of KL(p || q) in nats, p and q the softmax of the outputs before and "
        "after one layer alone is quantized",
        _kl,
    ),
    Sensitivity(
        "output_sqnr",
        "up",
        "Lin et al., Fixed Point Quantization of Deep Convolutional Networks, ICML 2016 (as a "
        "measure of quantization noise)",
        "10 * log10(sum(y**2) / sum((y - z)**2)) in dB, at most 120, y and z the outputs before "
        "and after one layer alone is quantized",
        _output_sqnr,
    ),
    Sensitivity(
        "qe",
        "up",
        "Sun et al., Entropy-Driven Mixed-Precision Quantization for Deep Network Design, "
        "NeurIPS 2022",
        "log(D(5, activation bits) * D(4, bits) * sqrt(fan-in) / 5), D the deviation of rounded "
        "Gaussian numbers of that deviation in steps; all layers weigh alike; see "
        "quantization_entropy for stages and other deviations",
        _qe,
    ),
    Sensitivity(
        "ompq",
        "up",
        "Ma et al., OMPQ: Orthogonal Mixed Precision Quantization, AAAI 2023",
        "bits * mean over the layers from this one on of exp(-gamma), gamma the sum of a layer's "
        "linear CKA with all other layers, of what they return; beta is 1",
        _ompq,
    ),
    Sensitivity(
        "bit_snip",
        "up",
        _EMQ,
        "bits * sum(abs(g * W)), g the gradient of the batch's loss",
        _bit_snip,
    ),
    Sensitivity(
        "bit_synflow",
        "up",
        _EMQ,
        "bits * the layer's share, 0..1, of the sum of synaptic flow, which itself overflows",
        _bit_synflow,
    ),
    Sensitivity(
        "bit_params",
        "up",
        _EMQ,
        "bits * number of weights: the size of the weights in bits",
        _bit_params,
    ),
    Sensitivity("bit_sum", "up", _EMQ, "bits; the sum counts every layer alike", _bit_sum),
    Sensitivity(
        "size_kib",
        "up",
        "the size of the weights (as a baseline)",
        "bits * number of weights / 8192, in KiB: bit_params in another unit",
        _size_kib,
    ),
    Sensitivity(
        "bops",
        "up",
        "Baskin et al., UNIQ, ACM Transactions on Computer Systems 2021 (as a baseline)",
        "multiplications a sample * bits * activation bits, without the width of the sums",
        _bops,
    ),
)

SENSITIVITIES: dict[str, Sensitivity] = {each.name: each for each in _TABLE}
"""All sensitivities by name; whoever adds one puts it in here."""
