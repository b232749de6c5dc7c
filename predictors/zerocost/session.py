"""One model, one batch, many proxies.  Letters: b samples."""

import difflib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.passes import Need, Passes
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

    Args:
        model: The network to score; it returns one tensor.
        batch: Inputs (b, ...) and labels (b, ...), on the device of the model. Labels may be None
            if no proxy needs them.
        loss: Maps outputs and labels to a scalar.
        reference: The full-precision twin of a quantized model. ``sqnr`` compares with it, and
            ``synflow``, which runs in float64, is computed on it instead of on the model.
        quantize: Format name to a function that returns a tensor as the format holds it. Kept for
            proxies that quantize weights themselves; none of the present ones reads it.
        seed: Seed of each pass, 0 or more, so that a score does not depend on what ran before.

    Raises:
        ProxyError: The model has no parameters, or the batch is empty or of two lengths.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: tuple[Tensor, Tensor | None],
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.cross_entropy,
        reference: nn.Module | None = None,
        quantize: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        seed: int = 0,
    ) -> None:
        inputs, labels = batch
        _check_batch(inputs, labels)
        if next(model.parameters(), None) is None:
            raise ProxyError("the model has no parameters")
        self.model = model
        self.inputs = inputs
        self.labels = labels
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
        passes = self._passes(proxies)
        with torch.inference_mode(False):  # inside of it no pass could go backward
            return {proxy.name: self._score(proxy, passes) for proxy in proxies}

    def _passes(self, proxies: Iterable[Proxy]) -> Passes:
        planned: frozenset[Need] = frozenset().union(*(each.needs for each in proxies))
        recorders = dict.fromkeys(each.recorder for each in proxies if each.recorder is not None)
        return Passes(
            model=self.model,
            inputs=self.inputs,
            labels=self.labels,
            loss=self.loss,
            reference=self.reference,
            quantize=self.quantize,
            seed=self.seed,
            planned=planned,
            recorders=tuple(recorders),
        )

    def _score(self, proxy: Proxy, passes: Passes) -> ProxyScore:
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


def _check_batch(inputs: Tensor, labels: Tensor | None) -> None:
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
