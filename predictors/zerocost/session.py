"""One model, one batch, many proxies.  Letters: b samples."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Batch, Need, Passes
from predictors.zerocost.proxies import PROXIES
from predictors.zerocost.proxy import Proxy, ProxyScore
from predictors.zerocost.untouched import untouched

__all__ = ["ProxySession"]


class ProxySession:
    """Scores a model on one batch, with the fewest passes for the proxies that are asked for.

    The model is any module, quantized layers included: a *weight* is a parameter with two or more
    axes, whatever the class of its layer, and counts if a gradient reaches it. The model runs in
    the mode it is in (``train`` or ``eval``, submodule by submodule), and so does the reference:
    the classic definitions use batch statistics, so give such a network in training mode; give a
    network that is frozen for evaluation in evaluation mode. Afterwards both are exactly as they
    were found (see :func:`predictors.zerocost.untouched.untouched`), errors or not.

    Images in fp32 on a CPU run with their channels last in memory, which most convolutional nets
    do faster; only roundings differ. A model that fails on such images gets them as they are.

    Args:
        model: The network to score; it takes one tensor and returns one.
        batch: Inputs (b, ...) and labels (b, ...), on the device of the model. Labels may be None
            if no proxy needs them.
        loss: Maps outputs and labels to a scalar.
        reference: The full-precision twin of a quantized model. ``sqnr`` compares with it, and
            ``synflow``, which runs in float64, is computed on it instead of on the model.
        quantize: Format name to a function that returns a tensor as the format holds it. Kept for
            proxies that quantize weights themselves; none of the present ones reads it.
        seed: Seed of each pass, 0 or more, so that a score does not depend on what ran before.
        more_batches: Further batches, for proxies that compare gradients of several.

    Raises:
        ProxyError: The model has no parameters, or a batch is empty, of two lengths, or no pair
            of tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.cross_entropy,
        reference: nn.Module | None = None,
        quantize: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        seed: int = 0,
        more_batches: Sequence[Batch] = (),
    ) -> None:
        for each in (batch, *more_batches):
            _check_batch(*each)
        if next(model.parameters(), None) is None:
            raise ProxyError("the model has no parameters")
        self.model = model
        self.inputs, self.labels = batch
        self.more_batches = tuple(more_batches)
        self.loss = loss
        self.reference = reference
        self.quantize = dict(quantize or {})
        self.seed = seed

    def compute(self, names: Iterable[str]) -> dict[str, ProxyScore]:
        """Returns the scores of these proxies, in this order.

        Each pass that one of them needs is run once; the forward pass is that of the loss where
        the loss is needed anyway.

        Args:
            names: Names in ``PROXIES``.

        Raises:
            ProxyError: A name is unknown or the names are one text, the model or the batch lacks
                what a proxy needs, or something that is not finite came up.
        """
        if isinstance(names, str):
            raise ProxyError(f"compute takes a list of names, got the text {names!r}")
        proxies = [_lookup(name) for name in dict.fromkeys(names)]
        for proxy in proxies:
            self._check_needs(proxy)
        with torch.inference_mode(False):  # inside of it no pass could go backward
            return self._scores(proxies)

    def _scores(self, proxies: Sequence[Proxy]) -> dict[str, ProxyScore]:
        if _gains_from_channels_last(self.inputs):
            try:
                return self._scores_for(proxies, torch.channels_last)
            except RuntimeError:  # such as a view across axes that are no longer neighbours
                pass
        return self._scores_for(proxies, torch.preserve_format)

    def _scores_for(
        self, proxies: Sequence[Proxy], memory_format: torch.memory_format
    ) -> dict[str, ProxyScore]:
        passes = self._passes(proxies, memory_format)
        return {proxy.name: self._score(proxy, passes) for proxy in proxies}

    def _passes(self, proxies: Iterable[Proxy], memory_format: torch.memory_format) -> Passes:
        planned: frozenset[Need] = frozenset().union(*(each.needs for each in proxies))
        recorders = dict.fromkeys(each.recorder for each in proxies if each.recorder is not None)
        return Passes(
            model=self.model,
            inputs=_in_format(self.inputs, memory_format),
            labels=self.labels,
            loss=self.loss,
            reference=self.reference,
            quantize=self.quantize,
            seed=self.seed,
            planned=planned,
            recorders=tuple(recorders),
            more_batches=tuple(
                (_in_format(inputs, memory_format), labels) for inputs, labels in self.more_batches
            ),
        )

    def _score(self, proxy: Proxy, passes: Passes) -> ProxyScore:
        score = self._undone_score(proxy, passes)
        for place, value in {"its value": score.value, **score.layers}.items():
            if not math.isfinite(value):
                raise ProxyError(f"{proxy.name} is not finite: {place} is {value}")
        return score

    def _undone_score(self, proxy: Proxy, passes: Passes) -> ProxyScore:
        if "own" not in proxy.needs:
            return proxy.score(passes)
        models = [self.model] if self.reference is None else [self.model, self.reference]
        with untouched(*models, seed=self.seed):
            return proxy.score(passes)

    def _check_needs(self, proxy: Proxy) -> None:
        if proxy.needs_labels and self.labels is None:
            raise ProxyError(f"{proxy.name} needs labels, and the batch has none")
        if "reference" in proxy.needs and self.reference is None:
            raise ProxyError(
                f"{proxy.name} needs a reference: give ProxySession(..., reference=fp32_model)"
            )
        if "batches" in proxy.needs and not self.more_batches:
            raise ProxyError(
                f"{proxy.name} compares batches: give ProxySession(..., more_batches=[...])"
            )


def _gains_from_channels_last(inputs: Tensor) -> bool:
    is_image = inputs.dim() == 4 and inputs.dtype == torch.float32
    return is_image and inputs.device.type == "cpu"


def _in_format(inputs: Tensor, memory_format: torch.memory_format) -> Tensor:
    return inputs.detach().to(memory_format=memory_format)


def _check_batch(inputs: Tensor, labels: Tensor | None) -> None:
    for name, each in (("inputs", inputs), ("labels", labels)):
        if not isinstance(each, Tensor) and not (name == "labels" and each is None):
            raise ProxyError(
                f"{name} must be one tensor, got {type(each).__name__}: give a model of several "
                "inputs or labels a wrapper that takes one"
            )
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ProxyError(f"the batch is empty: inputs have shape {tuple(inputs.shape)}")
    if labels is not None and (labels.dim() == 0 or len(labels) != len(inputs)):
        raise ProxyError(
            f"inputs and labels must be equally many, got {len(inputs)} inputs "
            f"and labels of shape {tuple(labels.shape)}"
        )


def _lookup(name: str) -> Proxy:
    if name in PROXIES:
        return PROXIES[name]
    close = difflib.get_close_matches(name, PROXIES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ProxyError(f"no proxy named {name!r}{hint}; there are: {', '.join(sorted(PROXIES))}")
