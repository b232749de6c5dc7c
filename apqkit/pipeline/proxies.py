"""Zero-cost proxies of subnets as predictor columns, each candidate computed once."""

import numpy as np
from torch import Tensor

from apqkit.pipeline.context import RunContext
from apqkit.types import FloatArray, IntArray
from predictors import signed_log
from predictors.zerocost import PROXIES, ProxySession

__all__ = ["ProxyColumns"]

_BATCH = 64


class ProxyColumns:
    """Computes proxy scores of subnets, with the weights that they inherit.

    Args:
        context: The run.
        names: Proxies, in column order.
    """

    def __init__(self, context: RunContext, names: tuple[str, ...]) -> None:
        self.names = names
        self._context = context
        self._known: dict[bytes, FloatArray] = {}

    def columns(self, picks: IntArray) -> FloatArray:
        """(n, p) scores of candidates, on a logarithmic scale where they are not on one."""
        missing = {row.tobytes(): row for row in picks.astype(np.int64)}
        missing = {key: row for key, row in missing.items() if key not in self._known}
        if missing:
            batch = self._batch()
            with self._context.progress.task("proxies", len(missing)) as advance:
                for key, row in missing.items():
                    self._known[key] = self._scores(row[None], batch)
                    advance(1)
        return np.stack([self._known[row.tobytes()] for row in picks.astype(np.int64)])

    def _batch(self) -> tuple[Tensor, Tensor]:
        images = self._context.splits.calibration_images(_BATCH)
        return images.images(), images.targets

    def _scores(self, picks: IntArray, batch: tuple[Tensor, Tensor]) -> FloatArray:
        table = self._context.space.network(picks)
        supernet = self._context.supernet
        subnet, twin = (
            supernet.extract(each.layers()).train()  # type: ignore[operator]
            for each in (table, table.in_fp32())
        )
        scores = ProxySession(subnet, batch, reference=twin).compute(self.names)
        values = np.array([scores[name].value for name in self.names])
        linear = np.array([not PROXIES[name].log for name in self.names])
        return np.where(linear, signed_log(values), values)
