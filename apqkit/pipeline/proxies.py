"""Zero-cost proxies of subnets as predictor columns, each computed once."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from apqkit.data import Splits
from apqkit.registry import lookup
from apqkit.types import FloatArray, IntArray, Layer, Progress, Space, Supernet
from predictors import signed_log
from predictors.zerocost import PROXIES, ProxySession

__all__ = ["ProxyColumns", "pointed_up"]

_BATCH = 64


class ProxyColumns:
    """Computes proxy scores of subnets, with the weights that they inherit, and remembers them.

    Args:
        space: Whose candidates they are.
        supernet: Trained.
        splits: The first training images are the batch.
        progress: Shows the subnets.
    """

    def __init__(
        self, space: Space, supernet: Supernet, splits: Splits, progress: Progress
    ) -> None:
        self._space = space
        self._supernet = supernet
        self._splits = splits
        self._progress = progress
        self._known: dict[bytes, dict[str, float]] = {}

    def columns(self, picks: IntArray, names: Sequence[str]) -> FloatArray:
        """(n, p) scores of candidates by these proxies, in logs where they are not logs already.

        Raises:
            UnknownNameError: No proxy of that name.
        """
        for name in names:
            lookup(PROXIES, name, "proxy")
        keys = [row.tobytes() for row in picks.astype(np.int64)]
        missing = {
            key: row[None]
            for key, row in zip(keys, picks, strict=True)
            if any(name not in self._known.get(key, {}) for name in names)
        }
        if missing:
            images = self._splits.calibration_images(_BATCH)
            batch = images.images(), images.targets
            with self._progress.task("proxies", len(missing)) as advance:
                for key, row in missing.items():
                    scores = self._scores(row, batch, names)
                    self._known[key] = {**self._known.get(key, {}), **scores}
                    advance(1)
        return np.array([[self._known[key][name] for name in names] for key in keys])

    def _scores(
        self, picks: IntArray, batch: tuple[Tensor, Tensor], names: Sequence[str]
    ) -> dict[str, float]:
        table = self._space.network(picks)
        subnet, twin = (self._trainable(each.layers()) for each in (table, table.in_fp32()))
        scores = ProxySession(subnet, batch, reference=twin).compute(names)
        return {
            name: score.value if PROXIES[name].log else float(signed_log(np.array(score.value)))
            for name, score in scores.items()
        }

    def _trainable(self, layers: Sequence[Layer]) -> nn.Module:
        return self._supernet.extract(layers).train()


def pointed_up(names: Sequence[str], columns: FloatArray) -> FloatArray:
    """Returns columns (n, p) of proxies with signs by which larger is better in each."""
    return columns * [1.0 if PROXIES[name].direction == "up" else -1.0 for name in names]
