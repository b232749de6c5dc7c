import json
import math
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import load_config
from apqkit.cost import NetworkCost
from apqkit.data import load_splits
from apqkit.errors import RunError
from apqkit.quant.calibration import calibrate
from apqkit.sampling import (
    SubnetMeasurer,
    collect_samples,
    describe_for,
    draw_stratified,
    layer_formats,
    pack_correct,
    paired_noise,
    same_architecture,
    sample_of_json,
    sample_picks,
    unpack_correct,
)
from apqkit.spaces import build_space
from apqkit.spaces.base import TableSpace
from apqkit.spaces.draws import draw_uniform
from apqkit.types import Dim, SilentProgress


class TinySpace(TableSpace):
    """Two dims, six candidates; the price is the first pick."""

    name = "tiny"

    def __init__(self):
        super().__init__([Dim("width.s0", (1, 2, 3), "arch"), Dim("keep.s0", (1, 2), "prune")])

    def active(self, picks):
        return np.ones(picks.shape, dtype=bool)

    def network(self, picks):
        raise NotImplementedError


@pytest.fixture(scope="module")
def splits():
    return load_splits(load_config("smoke").data, 0)


@pytest.fixture(scope="module")
def space(splits):
    config = load_config("smoke").space
    return build_space(config, splits.image_shape, splits.classes)


@pytest.fixture(scope="module")
def measurer(space, splits):
    return SubnetMeasurer(
        space.supernet(0).train(), splits.calibration_images(32).images(), splits.validation
    )


@pytest.fixture(scope="module")
def cost(space):
    return lambda picks: NetworkCost().cost(space.network(picks))["bops"].astype(float)


@pytest.fixture(scope="module")
def picks(space, cost):
    return draw_stratified(space, 6, cost, np.random.default_rng(0))


def collect(path, picks, space, measurer, kind="mixed"):
    return collect_samples(path, kind, picks, space, measurer, seed=0, progress=SilentProgress())


def without_seconds(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_draws_are_distinct_canonical_and_as_many_as_asked(space, cost):
    picks = draw_stratified(space, 100, cost, np.random.default_rng(1))
    assert picks.shape == (100, len(space.dims))
    assert len(np.unique(picks, axis=0)) == 100
    assert np.array_equal(space.repair(picks), picks)


def test_draws_repeat_with_their_seed(space, cost):
    first, again, other = (
        draw_stratified(space, 20, cost, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def largest_gap(costs, low, high):
    """Kolmogorov's distance of log costs to the uniform distribution between two costs."""
    shares = np.sort((np.log(costs) - np.log(low)) / (np.log(high) - np.log(low)))
    ends = np.arange(len(shares) + 1) / len(shares)
    return max(np.abs(shares - ends[1:]).max(), np.abs(shares - ends[:-1]).max())


def test_draws_spread_evenly_over_log_cost(space, cost):
    picks = draw_stratified(space, 150, cost, np.random.default_rng(2))
    plain = cost(draw_uniform(space, 4000, np.random.default_rng(2)))
    costs = cost(picks)
    low, high = costs.min(), costs.max()
    assert largest_gap(costs, low, high) < 0.1
    assert largest_gap(np.clip(plain, low, high), low, high) > 0.2


def test_draws_have_a_base_format_each(space, cost):
    """Independent slots almost never agree; hierarchical draws often do."""

    def agreeing(picks):
        described = space.describe(picks)
        formats = [[v for n, v in c.items() if n.startswith("w_format.")] for c in described]
        return np.mean([Counter(each).most_common(1)[0][1] == len(each) for each in formats])

    rng = np.random.default_rng(5)
    assert agreeing(draw_stratified(space, 150, cost, rng)) > 0.15
    assert agreeing(draw_uniform(space, 2000, rng)) < 0.05


def architectures(space, picks):
    columns = [index for index, dim in enumerate(space.dims) if dim.role != "quant"]
    return {tuple(row) for row in picks[:, columns].tolist()}


def test_fp32_draws_are_distinct_architectures(space, cost):
    rng = np.random.default_rng(6)
    picks = draw_stratified(space, 60, cost, rng, kind="fp32")
    assert len(architectures(space, picks)) == 60
    assert np.array_equal(space.repair(picks), picks)


def test_draws_can_leave_out_architectures_that_were_drawn(space, cost):
    first = draw_stratified(space, 60, cost, np.random.default_rng(7), kind="fp32")
    rng = np.random.default_rng(8)
    others = draw_stratified(space, 60, cost, rng, without=first)
    assert not architectures(space, others) & architectures(space, first)
    assert len(others) == 60


def test_where_no_other_architectures_remain_those_are_drawn_again():
    space = TinySpace()
    everything = draw_stratified(space, 50, lambda p: 1.0 + p[:, 0], np.random.default_rng(0))
    again = draw_stratified(
        space, 6, lambda p: 1.0 + p[:, 0], np.random.default_rng(0), without=everything
    )
    assert len(again) == 6


def test_architectures_are_compared_without_their_formats(space):
    picks = draw_uniform(space, 40, np.random.default_rng(9))
    quant = [dim.role == "quant" for dim in space.dims]
    others = picks[:10].copy()
    others[:, quant] = 0
    found = same_architecture(space, picks, others)
    known = architectures(space, others)
    assert found.tolist() == [bool(architectures(space, row[None]) & known) for row in picks]
    assert found[:10].all()
    assert not found.all()


def test_a_small_space_yields_all_it_has():
    space = TinySpace()
    picks = draw_stratified(space, 50, lambda picks: 1.0 + picks[:, 0], np.random.default_rng(0))
    assert sorted(map(tuple, picks.tolist())) == [(i, j) for i in range(3) for j in range(2)]


def test_costs_of_zero_do_not_spoil_the_draw():
    picks = draw_stratified(
        TinySpace(), 4, lambda picks: picks[:, 0].astype(float), np.random.default_rng(0)
    )
    assert len(np.unique(picks, axis=0)) == 4


def test_a_measurement_is_the_extracted_network_on_the_images(space, measurer, picks):
    layers = space.network(picks).layers(2)
    model = measurer.supernet.extract(layers)
    calibrate(model, measurer.calibration_images)
    with torch.no_grad():
        logits = model(measurer.images.images())
    expected = [int(row.argmax()) == int(label) for row, label in zip(
        logits, measurer.images.targets, strict=True)]  # fmt: skip
    measured = measurer.measure(layers)
    assert measured.dtype == bool
    assert measured.tolist() == expected
    assert np.array_equal(measurer.measure(layers), measured)


def test_a_line_holds_one_sample(tmp_path, space, measurer, picks):
    path = tmp_path / "mixed.jsonl"
    samples = collect(path, picks, space, measurer)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample_of_json(row, path, "") for row in rows] == samples
    images = measurer.images
    for index, (row, described) in enumerate(zip(rows, space.describe(picks), strict=True)):
        correct = measurer.measure(space.network(picks).layers(index))
        assert row["picks"] == described
        assert row["accuracy"] == correct.mean()
        assert unpack_correct([row["correct"]], len(images))[0].tolist() == correct.tolist()
        assert row["parts"] == {
            "plain": correct[~images.corrupted].mean(),
            "corrupted": correct[images.corrupted].mean(),
        }
        assert (row["kind"], row["origin"], row["seed"]) == ("mixed", "stratified", 0)
        assert row["seconds"] > 0


def test_fp32_samples_know_no_formats(tmp_path, space, measurer, picks):
    (sample, *_) = collect(tmp_path / "fp32.jsonl", picks[:2], space, measurer, kind="fp32")
    assert not [name for name in sample.picks if "format" in name]
    assert {name.split(".")[0] for name in sample.picks} == {"width", "depth", "kernel", "keep"}
    assert {part for each in sample.formats.values() for part in each.split(" x ")} == {"fp32"}
    in_fp32 = space.network(picks[:1]).in_fp32().layers()
    assert sample.accuracy == measurer.measure(in_fp32).mean()


class KilledError(Exception):
    pass


class MortalMeasurer:
    """Measures so many subnets, then dies."""

    def __init__(self, measurer, lives):
        self.measurer, self.images, self.lives = measurer, measurer.images, lives

    def measure(self, layers):
        if not self.lives:
            raise KilledError
        self.lives -= 1
        return self.measurer.measure(layers)


@pytest.mark.parametrize("torn", [0, 1, 25])
def test_a_resumed_collection_equals_an_uninterrupted_one(torn, tmp_path, space, measurer, picks):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    samples = collect(whole, picks, space, measurer)
    mortal = MortalMeasurer(measurer, 4)
    with pytest.raises(KilledError):
        collect(resumed, picks, space, mortal)
    kept = resumed.read_bytes()
    assert kept.count(b"\n") == 4
    resumed.write_bytes(kept[: len(kept) - torn])
    left = kept[: kept[: len(kept) - torn].rfind(b"\n") + 1]
    mortal = MortalMeasurer(measurer, 2 + bool(torn))  # what is there is not measured again
    again = collect(resumed, picks, space, mortal)
    assert mortal.lives == 0
    assert resumed.read_bytes().startswith(left)
    assert without_seconds(resumed) == without_seconds(whole)
    assert [each.accuracy for each in again] == [each.accuracy for each in samples]


def test_a_complete_file_is_not_touched(tmp_path, space, measurer, picks):
    path = tmp_path / "mixed.jsonl"
    samples = collect(path, picks[:3], space, measurer)
    before = path.read_bytes()
    assert collect(path, picks[:3], space, MortalMeasurer(measurer, 0)) == samples
    assert collect(path, picks[:2], space, MortalMeasurer(measurer, 0)) == samples[:2]
    assert path.read_bytes() == before


def test_progress_counts_what_was_there_before(tmp_path, space, measurer, picks):
    class Counting(SilentProgress):
        @contextmanager
        def task(self, label, total):
            said.append((label, total))
            yield said.append

    said = []
    path = tmp_path / "mixed.jsonl"
    collect(path, picks[:2], space, measurer)
    collect_samples(path, "mixed", picks[:4], space, measurer, seed=0, progress=Counting())
    assert said == [("samples, mixed", 4), 2, 1, 1]


def test_samples_of_other_candidates_are_refused(tmp_path, space, measurer, picks):
    path = tmp_path / "mixed.jsonl"
    collect(path, picks[:3], space, measurer)
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        collect(path, picks[[0, 1, 3]], space, measurer)
    assert str(caught.value) == (
        f"{path} holds other candidates from line 3 on; use --redo samples"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("correct"),
        lambda row: row.update(colour="red"),
        lambda row: row.update(accuracy="high"),
        lambda row: row.update(kind="int8"),
        lambda row: row.update(picks=[1, 2]),
    ],
)
def test_a_line_that_is_no_sample_is_refused(change, tmp_path, space, measurer, picks):
    path = tmp_path / "mixed.jsonl"
    collect(path, picks[:1], space, measurer)
    row = json.loads(path.read_text())
    change(row)
    with pytest.raises(RunError) as caught:
        sample_of_json(row, path, "use --redo samples")
    assert str(caught.value) == f"{path} holds a line that is no sample; use --redo samples"


def test_samples_give_their_picks_back(tmp_path, space, measurer, picks):
    mixed = collect(tmp_path / "mixed.jsonl", picks, space, measurer)
    fp32 = collect(tmp_path / "fp32.jsonl", picks, space, measurer, kind="fp32")
    quant = [dim.role == "quant" for dim in space.dims]
    assert np.array_equal(sample_picks(space, mixed), picks)
    assert np.array_equal(sample_picks(space, fp32), np.where(quant, 0, picks))
    assert sample_picks(space, []).shape == (0, len(space.dims))


def test_candidates_are_described_with_formats_only_where_they_count(space, picks):
    mixed = describe_for("mixed", space, picks)
    fp32 = describe_for("fp32", space, picks)
    for whole, part in zip(mixed, fp32, strict=True):
        assert part == {name: whole[name] for name in whole if "_format." not in name}


def test_layers_name_their_formats_with_the_unsigned_twin_behind_a_relu(space):
    candidate = space.repair(np.full((1, len(space.dims)), 1))
    formats = layer_formats(space.network(candidate).layers())
    assert "input" not in formats
    assert formats["stem"] == "int8 x uint8"
    assert formats["s0.b0.depthwise"] == "int8 x uint8"
    assert formats["s1.b0.expand"] == "int4 x int8"  # reads a sum that can be negative
    assert formats["s1.b0.project"] == "int4 x uint8"
    assert formats["s1.b1.add"] == "int8"
    assert formats["head"] == "int4 x int8"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=4))
def test_bit_masks_give_back_what_was_packed(rows):
    correct = np.array(rows)
    masks = [pack_correct(row) for row in correct]
    assert all(len(mask) == 4 for mask in masks)
    assert np.array_equal(unpack_correct(masks, 11), correct)


def bootstrapped_noise(correct, base, draws=6000):
    """Standard deviation of each subnet's lead over the mean, originals drawn with copies."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(base == each) for each in np.unique(base)]
    leads = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        accuracy = correct[:, rows].mean(axis=1)
        leads.append(accuracy - accuracy.mean())
    return float(np.std(leads, axis=0).mean())


@pytest.mark.parametrize("copies", [1, 3])
def test_paired_noise_is_what_a_bootstrap_over_originals_shows(copies):
    rng = np.random.default_rng(1)
    base = np.tile(np.arange(60), copies)
    difficulty = np.tile(rng.normal(0, 1, 60), copies)
    skill = np.array([0.0, 0.3, 0.6, 0.9])[:, None]
    correct = skill + difficulty + rng.normal(0, 0.7, (4, 60 * copies)) > 0
    assert paired_noise(correct, base) == pytest.approx(
        bootstrapped_noise(correct, base), rel=0.05
    )


def test_paired_noise_by_hand():
    """Leads over the mean by original: (.5, -.5, 0) and their negatives; sd .5, over root 3."""
    correct = np.array([[True, False, True], [False, True, True]])
    assert paired_noise(correct, np.arange(3)) == pytest.approx(0.5 / math.sqrt(3))


def test_copies_of_an_image_are_no_further_evidence():
    correct = np.random.default_rng(2).random((5, 40)) < 0.7
    once = paired_noise(correct, np.arange(40))
    twice = paired_noise(np.hstack([correct, correct]), np.tile(np.arange(40), 2))
    assert twice == pytest.approx(once)


def test_images_that_all_subnets_agree_on_carry_no_noise():
    correct = np.tile(np.random.default_rng(3).random(30) < 0.5, (4, 1))
    assert paired_noise(correct, np.arange(30)) == 0.0
