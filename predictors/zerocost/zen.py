"""How strongly a network with random weights reacts to small changes of its inputs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Passes, named_weights
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.running import CallNames, RunningModule

__all__ = ["REPEATS", "ZEN"]

REPEATS = 2
"""Draws of weights and inputs whose scores are averaged; each runs the model twice."""

_STEP = 0.01
_DROPOUTS = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        "feature_alpha_dropout",
    }
)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_BATCH_NORM = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)
_EPS = 1e-5


class _RandomNetwork(TorchFunctionMode):
    """Normalises with plain batch statistics, skips dropout, keeps the last map of features.

    Attributes:
        map: The last tensor (b, channels, places ...) with more than one place that a call
            returned.
        variances: For each batch normalisation, the mean over channels of its input's variance.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.map: Tensor | None = None
        self.variances: dict[str, float] = {}
        self._samples = samples
        self._running = RunningModule(model)
        self._calls = CallNames()

    def __enter__(self) -> Self:
        super().__enter__()
        self._running.start()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._running.stop()
        super().__exit__(*reason)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        function = getattr(func, "__name__", "")
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function == "batch_norm":
            given = {"eps": _EPS, **dict(zip(_BATCH_NORM, args, strict=False)), **kwargs}
            return self._kept(self._normalized(given["input"], given["eps"]))
        return self._kept(func(*args, **kwargs))

    def _kept(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor) and self._is_map(outputs):
            self.map = outputs
        return outputs

    def _normalized(self, x: Tensor, eps: float) -> Tensor:
        values = x.numel() // x.shape[1]  # a channel
        if values < 2:
            raise ProxyError(f"zen needs more than 1 value per channel, got {tuple(x.shape)}")
        outputs, _, inverse_std = torch.native_batch_norm(
            x, None, None, None, None, True, 0.0, eps
        )
        variances = (inverse_std.double() ** -2 - eps) * values / (values - 1)
        name = self._calls.fresh(self._running.name or "batch_norm")
        self.variances[name] = float(variances.mean())
        return outputs

    def _is_map(self, outputs: Tensor) -> bool:
        return (
            outputs.dim() >= 3
            and len(outputs) == self._samples
            and math.prod(outputs.shape[2:]) > 1
            and outputs.is_floating_point()
        )


def _score(passes: Passes) -> ProxyScore:
    if not passes.inputs.is_floating_point():
        raise ProxyError(f"zen needs inputs that are floating numbers, got {passes.inputs.dtype}")
    model = passes.model if passes.reference is None else passes.reference
    with torch.no_grad():
        draws = [_draw(model, passes.inputs) for _ in range(REPEATS)]
    value = math.fsum(each.value for each in draws) / REPEATS
    names = draws[0].layers
    layers = {name: math.fsum(each.layers[name] for each in draws) / REPEATS for name in names}
    return ProxyScore(value, layers)


def _draw(model: nn.Module, like: Tensor) -> ProxyScore:
    """Returns the score for one draw of weights and inputs."""
    parameters = _random_parameters(model)
    x = torch.randn_like(like)
    first = _observed(model, parameters, x)
    second = _observed(model, parameters, x + _STEP * torch.randn_like(like))
    if first.map is None or second.map is None:
        raise ProxyError("zen saw no map of features: no call returns (samples, channels, places)")
    change = float((first.map - second.map).double().abs().flatten(1).sum(1).mean())
    terms = {"the change of the last map": change, **first.variances}
    for name, term in terms.items():
        if not 0.0 < term < math.inf:
            raise ProxyError(f"zen has no logarithm: {name} is {term}")
    layers = {name: 0.5 * math.log(each) for name, each in first.variances.items()}
    return ProxyScore(math.log(change) + math.fsum(layers.values()), layers)


def _random_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns weights from N(0, 1), biases of 0, and 1 for what multiplies in normalisations."""
    drawn: dict[str, Tensor] = {
        name: torch.randn_like(each) for name, each in named_weights(model).items()
    }
    for path, module in model.named_modules():
        for name, each in module.named_parameters(recurse=False):
            full_name = f"{path}.{name}" if path else name
            if name == "bias" and each.dim() == 1:
                drawn[full_name] = torch.zeros_like(each)
            elif name == "weight" and isinstance(module, _NORMS):
                drawn[full_name] = torch.ones_like(each)
    return drawn


def _observed(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> _RandomNetwork:
    with _RandomNetwork(model, len(x)) as seen:
        functional_call(model, dict(parameters), (x,))
    return seen


ZEN = Proxy(
    name="zen",
    direction="up",
    log=True,
    needs=frozenset({"own"}),
    needs_labels=False,
    source="Lin et al., Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition, "
    "ICCV 2021",
    convention="log of the mean over samples of sum(abs(f(x) - f(x + 0.01 e))) plus the sum over "
    "batch normalisations of log(sqrt(mean over channels of the variance of their inputs)); x and "
    "e from N(0, 1) in the shape of the batch; f the last map with more than one place, all "
    "weights with 2 or more axes from N(0, 1), biases 0, batch normalisations with statistics of "
    f"their inputs, residual sums kept; mean of {REPEATS} draws; of the reference if there is "
    "one; layers: per batch normalisation its term, they sum to the value less the first term",
    score=_score,
)
