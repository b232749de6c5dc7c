import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apqkit.elastic.supernet import ElasticSupernet
from apqkit.errors import RunError, TrainingError
from apqkit.spaces.base import largest_picks, smallest_picks
from apqkit.training.checkpoint import load_tensors
from apqkit.training.evaluate import calibrated_subnet, evaluate
from apqkit.training.supernet import train_supernet
from apqkit.types import SilentProgress

STEPS = 3  # 96 images in batches of 32


def fp32_layers(space, picks):
    return space.network(picks).in_fp32().layers()


@pytest.fixture(scope="module")
def largest(space):
    return fp32_layers(space, largest_picks(space.dims))


@pytest.fixture(scope="module")
def smallest(space):
    return fp32_layers(space, smallest_picks(space.dims))


@pytest.fixture
def train(space, splits):
    def run(config, *, supernet=None, directory=None, progress=None):
        supernet = supernet or space.supernet(config.seed)
        history = train_supernet(
            supernet,
            space,
            splits,
            config,
            directory=directory,
            progress=progress or SilentProgress(),
        )
        return supernet, history

    return run


@pytest.fixture
def steps(monkeypatch):
    """For every step of the optimiser the subnets that ran before it, and gradients they left."""
    taken, waiting = [], []
    select, step = ElasticSupernet.select, torch.optim.AdamW.step

    def selecting(self, layers):
        waiting.append(list(layers))
        select(self, layers)

    def stepping(self, *arguments, **options):
        gradients = [
            None if each.grad is None else each.grad.clone()
            for group in self.param_groups
            for each in group["params"]
        ]
        taken.append((tuple(waiting), gradients))
        waiting.clear()
        return step(self, *arguments, **options)

    monkeypatch.setattr(ElasticSupernet, "select", selecting)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    return taken


@pytest.fixture(scope="module")
def straight(space, splits, make_config):
    """A supernet trained without a break, and its history."""
    config = make_config()
    supernet = space.supernet(config.seed)
    history = train_supernet(
        supernet, space, splits, config, directory=None, progress=SilentProgress()
    )
    return supernet, history


def formats_of(layers):
    """Formats of the rows between first and last, where the space has a choice."""
    inner = [each for each in layers if each.name not in ("input", "stem", "classifier")]
    weights = {each.weight_format for each in inner if each.weight_format}
    return weights, {each.activation_format for each in inner if each.op == "conv"}


def test_fp32_steps_run_the_largest_the_smallest_and_random_subnets(
    train, steps, make_config, largest, smallest
):
    train(make_config(supernet={"quantized_epochs": 0, "random_subnets": 3}))
    assert len(steps) == 3 * STEPS
    drawn = []
    for subnets, _ in steps:
        first, second, *others = subnets
        assert first == largest
        assert second == smallest
        assert len(others) == 3
        drawn += others
    assert all(formats_of(each)[1] == {"fp32"} for each in drawn)
    assert len({tuple(each) for each in drawn}) > len(drawn) // 2


def test_quantized_steps_run_mixed_subnets_and_a_uniform_one(
    train, steps, make_config, largest, smallest
):
    train(make_config())
    quantized = [subnets for subnets, _ in steps[3 * STEPS :]]
    assert len(quantized) == 2 * STEPS
    mixed = set()
    for first, second, *others, uniform in quantized:
        assert first == largest
        assert second == smallest
        assert len(others) == 2
        weights, activations = formats_of(uniform)
        assert len(weights - {"int8"}) <= 1  # depthwise weights keep int8
        assert len(activations) == 1
        mixed |= {len(formats_of(each)[1]) for each in others}
        for each in others:
            assert "fp32" not in formats_of(each)[0] | formats_of(each)[1]
    assert 2 in mixed


def test_the_smallest_joins_every_so_many_steps(train, steps, make_config, smallest):
    settings = {"smallest_every": 2, "quantized_epochs": 0}
    _, history = train(make_config(supernet=settings))
    joined = [smallest in subnets[1:2] for subnets, _ in steps]
    assert joined == [number % 2 == 0 for number in range(3 * STEPS)]  # across epochs of 3 steps
    assert all("smallest" in epoch.losses for epoch in history)


def test_the_largest_trains_alone_during_the_warm_up(train, steps, make_config, largest):
    settings = {"warmup_share": 0.5, "quantized_epochs": 1}
    _, history = train(make_config(supernet=settings))
    alone = [len(subnets) == 1 for subnets, _ in steps]
    assert alone == [True] * 5 + [False] * 7  # 0.5 of 9 steps; the quantized phase has none
    assert all(subnets[0] == largest for subnets, _ in steps)
    assert set(history[0].losses) == {"largest"}
    assert set(history[1].losses) == {"largest", "smallest", "random"}


def test_a_step_adds_gradients_of_labels_and_of_the_teachers_soft_output(
    space, splits, train, steps, make_config
):
    config = make_config(
        data={"augment_shift": 0, "augment_noise": 0.0},
        supernet={"epochs": 1, "quantized_epochs": 0, "batch_size": 96, "clip_norm": 1e9},
    )
    train(config)
    ((subnets, gradients),) = steps

    fresh = space.supernet(config.seed).train()
    images, labels = splits.train.images(), splits.train.targets
    first, *others = subnets
    fresh.select(first)
    logits = fresh(images)
    smoothed = F.one_hot(labels, 10) * 0.95 + 0.05 / 10
    loss = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    teacher = logits.softmax(dim=1).detach()
    assert len(others) == 3
    for layers in others:
        fresh.select(layers)
        loss = loss - (teacher * fresh(images).log_softmax(dim=1)).sum(dim=1).mean()
    loss.backward()
    compared = 0
    for found, parameter in zip(gradients, fresh.parameters(), strict=True):
        assert (found is None) == (parameter.grad is None)
        if found is not None:
            scale = parameter.grad.abs().max().item() + 1e-8
            torch.testing.assert_close(found, parameter.grad, rtol=0.0, atol=2e-4 * scale + 1e-6)
            compared += bool(found.any())
    assert compared > 5


def test_history_names_phases_and_losses(straight):
    _, history = straight
    assert [(epoch.phase, epoch.number) for epoch in history] == [
        ("fp32", 1), ("fp32", 2), ("fp32", 3), ("quantized", 1), ("quantized", 2),
    ]  # fmt: skip
    for epoch in history:
        assert list(epoch.losses) == ["largest", "smallest", "random"]
        assert all(np.isfinite(value) for value in epoch.losses.values())


def test_the_same_seed_makes_the_same_weights(straight, train, make_config, same_tensors):
    supernet, history = straight
    again, same_history = train(make_config())
    assert same_history == history
    assert same_tensors(again.state_dict(), supernet.state_dict())


def test_another_seed_trains_otherwise(straight, train, make_config, space, same_tensors):
    supernet, _ = straight
    other, _ = train(make_config(seed=1), supernet=space.supernet(0))
    assert not same_tensors(other.state_dict(), supernet.state_dict())


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_killed_training_goes_on_bit_for_bit(
    epochs, straight, train, make_config, killing, tmp_path, same_tensors
):
    supernet, history = straight
    progress, killed = killing
    with pytest.raises(killed):
        train(make_config(), directory=tmp_path, progress=progress(epochs))
    resumed, same_history = train(make_config(), directory=tmp_path)
    assert same_history == history
    assert same_tensors(resumed.state_dict(), supernet.state_dict())


def test_every_phase_keeps_a_checkpoint_without_code(train, make_config, tmp_path):
    train(make_config(), directory=tmp_path)
    names = ["checkpoint_fp32.safetensors", "checkpoint_quantized.safetensors"]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    for name, epochs in zip(names, (3, 2), strict=True):
        tensors, meta = load_tensors(tmp_path / name, "")
        assert len(meta["losses"]) == epochs
        assert any("|exp_avg" in each for each in tensors)


def test_a_truncated_checkpoint_names_itself_and_the_cure(train, make_config, tmp_path):
    path = tmp_path / "checkpoint_fp32.safetensors"
    path.write_bytes(b"\x10")
    with pytest.raises(RunError) as caught:
        train(make_config(), directory=tmp_path)
    assert str(caught.value) == (
        f"{path} is truncated or was not written by apqkit; delete the run or use --redo supernet"
    )


@pytest.mark.parametrize(
    ("epochs", "what", "where", "key"),
    [
        (1, "the largest loss is nan", "epoch 2 of phase fp32", "supernet.learning_rate"),
        (
            3,
            "s0.b0.expand.input holds 8192 of 8192 values that are not finite,",
            "epoch 1 of phase quantized",
            "supernet.quantized_learning_rate",
        ),
    ],
)
def test_diverging_training_names_the_rate_to_lower(
    epochs, what, where, key, train, make_config, space, poison
):
    supernet = space.supernet(0)
    with pytest.raises(TrainingError) as caught:
        train(make_config(), supernet=supernet, progress=poison(supernet, epochs))
    assert str(caught.value) == (f"{what} in {where}: lower {key} or supernet.clip_norm")


def test_training_teaches_the_digits(space, splits, train, make_config):
    config = make_config(supernet={"epochs": 60, "quantized_epochs": 0})
    supernet, history = train(config)
    assert history[-1].losses["largest"] < 0.9 * history[0].losses["largest"]
    calibration = splits.calibration_images(96).images()
    accuracies = [
        evaluate(
            calibrated_subnet(net, fp32_layers(space, largest_picks(space.dims)), calibration),
            splits.validation,
        ).mean()
        for net in (space.supernet(0), supernet)
    ]
    assert accuracies[1] > max(0.35, accuracies[0] + 0.2)
