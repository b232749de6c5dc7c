"""Draws subnets, measures them and keeps the samples: one JSON line each, appended and flushed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from apqkit.data import ImageSet
from apqkit.errors import RunError
from apqkit.formats import format_named
from apqkit.run import append_line, read_lines
from apqkit.spaces.base import picks_of_values
from apqkit.spaces.draws import draw_hierarchical
from apqkit.training.evaluate import accuracy_parts, calibrated_subnet, evaluate
from apqkit.types import (
    BoolArray,
    Choice,
    FloatArray,
    IntArray,
    Layer,
    Progress,
    Sample,
    Space,
    Supernet,
)

__all__ = [
    "SubnetMeasurer",
    "collect_samples",
    "draw_stratified",
    "layer_formats",
    "pack_correct",
    "paired_noise",
    "same_architecture",
    "sample_picks",
    "unpack_correct",
]

_POOL_FACTOR = 20  # candidates drawn for each one that stratification keeps
_SAMPLE = TypeAdapter(Sample)

Kind = Literal["fp32", "mixed"]


@dataclass(frozen=True)
class SubnetMeasurer:
    """Measures subnets of one trained supernet on one set of images.

    Attributes:
        supernet: Trained.
        calibration_images: (batch, channels, height, width); the same for every subnet.
        images: What accuracy is measured on.
    """

    supernet: Supernet
    calibration_images: Tensor
    images: ImageSet

    def measure(self, layers: Sequence[Layer]) -> BoolArray:
        """(images,) True where the subnet, calibrated afresh, classifies rightly."""
        return evaluate(
            calibrated_subnet(self.supernet, layers, self.calibration_images), self.images
        )


def draw_stratified(
    space: Space,
    count: int,
    cost: Callable[[IntArray], FloatArray],
    rng: np.random.Generator,
    *,
    kind: Kind = "mixed",
    without: IntArray | None = None,
) -> IntArray:
    """(count, k) distinct candidates, drawn hierarchically and spread evenly over log cost.

    Args:
        space: The search space.
        count: How many; fewer come back only if the space has fewer distinct candidates.
        cost: (n, k) picks to (n,) positive costs.
        rng: Source of all draws.
        kind: For fp32, candidates that differ in formats alone are the same.
        without: (m, k) candidates whose architectures are left out, if enough others remain.
    """
    drawn = draw_hierarchical(space, count * _POOL_FACTOR, rng)
    if kind == "fp32":
        drawn[:, [dim.role == "quant" for dim in space.dims]] = 0
    pool = np.unique(drawn, axis=0)
    if without is not None:
        others = pool[~same_architecture(space, pool, without)]
        pool = others if len(others) >= count else pool
    position = np.log(np.maximum(cost(pool), np.finfo(float).tiny))
    low, high = np.quantile(position, [0.01, 0.99])
    targets = rng.permutation(low + (high - low) * (np.arange(count) + rng.random(count)) / count)
    free = np.ones(len(pool), dtype=bool)
    chosen = []
    for target in targets[: len(pool)]:
        distance = np.where(free, np.abs(position - target), np.inf)
        chosen.append(int(distance.argmin()))
        free[chosen[-1]] = False
    return pool[chosen]


def same_architecture(space: Space, picks: IntArray, others: IntArray) -> BoolArray:
    """(n,) True where a candidate (n, k) has the architecture of one of the others (m, k)."""
    columns = [index for index, dim in enumerate(space.dims) if dim.role != "quant"]
    both = np.concatenate([others[:, columns], picks[:, columns]])
    group = np.unique(both, axis=0, return_inverse=True)[1]
    return np.isin(group[len(others) :], group[: len(others)])


def collect_samples(
    path: Path,
    kind: Kind,
    picks: IntArray,
    space: Space,
    measurer: SubnetMeasurer,
    *,
    seed: int,
    progress: Progress,
) -> list[Sample]:
    """Measures candidates that a file does not hold yet and returns all of them, in order.

    Args:
        path: The file of JSON lines; what it holds is kept.
        kind: fp32 samples ignore formats.
        picks: (n, k) the candidates, the same on every call.
        space: Whose candidates they are.
        measurer: Measures one subnet.
        seed: Of the draw, recorded with each sample.
        progress: Shows one step a sample.

    Raises:
        RunError: The file is damaged or holds other candidates.
    """
    cure = "use --redo samples"
    described = describe_for(kind, space, picks)
    samples = [sample_of_json(row, path, cure) for row in read_lines(path, cure)]
    for number, (sample, values) in enumerate(zip(samples, described, strict=False), start=1):
        if dict(sample.picks) != values:
            raise RunError(f"{path} holds other candidates from line {number} on; {cure}")
    table = space.network(picks)
    table = table.in_fp32() if kind == "fp32" else table
    with progress.task(f"samples, {kind}", len(picks)) as advance:
        advance(min(len(samples), len(picks)))
        for index in range(len(samples), len(picks)):
            started = time.perf_counter()
            layers = table.layers(index)
            correct = measurer.measure(layers)
            sample = Sample(
                kind=kind,
                picks=described[index],
                accuracy=float(correct.mean()),
                parts=accuracy_parts(correct, measurer.images),
                formats=layer_formats(layers),
                correct=pack_correct(correct),
                origin="stratified",
                seed=seed,
                seconds=round(time.perf_counter() - started, 4),
            )
            append_line(path, sample.as_json())
            samples.append(sample)
            advance(1)
    return samples[: len(picks)]


def describe_for(kind: Kind, space: Space, picks: IntArray) -> list[dict[str, Choice]]:
    """Returns each candidate by value; for fp32 samples without the precision dims."""
    described = space.describe(picks)
    if kind == "mixed":
        return described
    quant = {dim.name for dim in space.dims if dim.role == "quant"}
    return [{name: v for name, v in each.items() if name not in quant} for each in described]


def sample_picks(space: Space, samples: Sequence[Sample]) -> IntArray:
    """(n, k) the samples' picks in canonical form; precision dims of fp32 samples read 0."""
    if not samples:
        return np.zeros((0, len(space.dims)), dtype=np.int64)
    rows = [picks_of_values(space.dims, sample.picks) for sample in samples]
    return space.repair(np.concatenate(rows))


def layer_formats(layers: Sequence[Layer]) -> dict[str, str]:
    """Returns for each layer its weight format and that of its input, such as ``int4 x uint8``."""
    named = {}
    for layer in layers:
        if layer.op != "input":
            source = format_named(layer.activation_format).for_sign(signed=layer.signed_input).name
            named[layer.name] = (
                f"{layer.weight_format} x {source}" if layer.weight_format else source
            )
    return named


def pack_correct(correct: BoolArray) -> str:
    """Returns a hexadecimal bit mask, first image first.

    >>> pack_correct(np.array([True, False, False, True, True]))
    '98'
    """
    return np.packbits(correct).tobytes().hex()


def unpack_correct(masks: Sequence[str], images: int) -> BoolArray:
    """(n, images) the bit masks of n samples.

    >>> unpack_correct(["98"], 5).astype(int).tolist()
    [[1, 0, 0, 1, 1]]
    """
    packed = np.array([list(bytes.fromhex(mask)) for mask in masks], dtype=np.uint8)
    return np.unpackbits(packed, axis=1, count=images).astype(bool)


def paired_noise(correct: BoolArray, base: IntArray) -> float:
    """Returns the noise that matters for ranking subnets on a fixed set of images.

    It is the standard error over base images of (accuracy of a subnet - mean accuracy of all
    subnets), averaged over subnets: what a bootstrap over base images would show. Corrupted copies
    share their base image, so they do not count as independent.

    Args:
        correct: (n, images) one row a subnet.
        base: (images,) which original each image was made from.
    """
    _, index, counts = np.unique(base, return_inverse=True, return_counts=True)
    shares = np.stack([np.bincount(index, weights=row) for row in correct]) / counts
    weighted = shares * counts / counts.mean()
    deviations = weighted - weighted.mean(axis=0)
    return float((deviations.std(axis=1, ddof=1) / np.sqrt(len(counts))).mean())


def sample_of_json(row: Mapping[str, object], path: Path, cure: str) -> Sample:
    """Returns the sample that a JSON line holds.

    Raises:
        RunError: A field is missing, of a wrong type, or one too many.
    """
    try:
        return _SAMPLE.validate_python(Sample(**row).as_json())  # type: ignore[arg-type]
    except (TypeError, ValidationError):
        raise RunError(f"{path} holds a line that is no sample; {cure}") from None
