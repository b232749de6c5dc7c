import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apqkit.config import DataConfig
from apqkit.data.images import ImageSet
from apqkit.errors import RunError, TrainingError
from apqkit.training.checkpoint import load_tensors, save_tensors
from apqkit.training.loop import Checkpoint, Epoch, Recipe, train
from apqkit.types import SilentProgress

CALM = DataConfig(augment_shift=0)
LIVELY = DataConfig(augment_shift=1, augment_noise=0.2, augment_flip=True)


def image_set(count=20):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, 4, 4)).astype(np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)  # tells which image it is
    return ImageSet.of(pixels, rng.integers(0, 3, count))


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        return net.to(memory_format=torch.channels_last)


def recipe_of(net, **changes):
    """Plain cross-entropy, except where told otherwise."""

    def begin_epoch(epoch, rng, steps):
        def accumulate(images, labels, step):
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            return {"labels": loss.item()}

        return accumulate

    settings = {
        "phase": "fp32", "label": "toy", "stream": 7, "epochs": 3, "batch_size": 6,
        "learning_rate": 1e-2, "rate_key": "toy.learning_rate", "weight_decay": 1e-2,
        "clip_norm": 2.0, "begin_epoch": begin_epoch,
    }  # fmt: skip
    return Recipe(**{**settings, **changes})


def trained(net, recipe=None, *, images=None, data=LIVELY, seed=0, checkpoint=None, progress=None):
    return train(
        net,
        recipe or recipe_of(net),
        image_set() if images is None else images,
        data,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress or SilentProgress(),
    )


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint.safetensors", "delete it")


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of every step."""
    seen = []
    step = torch.optim.AdamW.step

    def recording(self, *arguments, **options):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return seen


def watched(net, seen, **changes):
    """A recipe that notes which images each step sees."""

    def begin_epoch(epoch, rng, steps):
        seen.append([])

        def accumulate(images, labels, step):
            numbers = torch.round(images[:, 0, 0, 0] * 255).int().tolist()
            seen[-1].append((step, numbers, labels.tolist()))
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            return {"labels": loss.item()}

        return accumulate

    return recipe_of(net, begin_epoch=begin_epoch, **changes)


def test_the_same_seed_makes_the_same_weights_another_does_not(same_tensors):
    runs = []
    for seed in (3, 3, 4):
        net = network()
        history = trained(net, seed=seed)
        runs.append((history, net.state_dict()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert same_tensors(runs[0][1], runs[1][1])
    assert not same_tensors(runs[0][1], runs[2][1])


def test_global_random_numbers_are_neither_used_nor_moved(same_tensors):
    first, second = network(), network()
    trained(first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        state = torch.get_rng_state()
        trained(second)
        assert torch.equal(torch.get_rng_state(), state)
    assert same_tensors(first.state_dict(), second.state_dict())


def test_phases_with_other_streams_see_other_batches():
    seen = []
    for stream in (7, 8):
        net = network()
        trained(net, watched(net, seen, stream=stream, epochs=1), data=CALM)
    assert seen[0] != seen[1]


def test_every_epoch_sees_whole_batches_in_an_order_of_its_own():
    seen, net = [], network()
    images = image_set()
    trained(net, watched(net, seen), images=images, data=CALM)
    assert [[len(numbers) for _, numbers, _ in epoch] for epoch in seen] == [[6, 6, 6]] * 3
    assert [[step for step, _, _ in epoch] for epoch in seen] == [[0, 1, 2]] * 3
    orders = [[each for _, numbers, _ in epoch for each in numbers] for epoch in seen]
    assert all(len(set(order)) == 18 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    for _, numbers, labels in seen[0]:
        assert labels == images.labels[numbers].tolist()


def test_fewer_images_than_a_batch_make_one_step():
    seen, net = [], network()
    trained(net, watched(net, seen, batch_size=64), images=image_set(5), data=CALM)
    assert [[sorted(numbers) for _, numbers, _ in epoch] for epoch in seen] == [
        [[0, 1, 2, 3, 4]]
    ] * 3


def test_the_recipe_learns_how_many_steps_an_epoch_has():
    told, net = [], network()
    plain = recipe_of(net)

    def begin_epoch(epoch, rng, steps):
        told.append((epoch, steps))
        return plain.begin_epoch(epoch, rng, steps)

    trained(net, replace(plain, begin_epoch=begin_epoch))
    assert told == [(0, 3), (1, 3), (2, 3)]


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine(rates):
    net = network()
    trained(net, recipe_of(net, epochs=10, warmup=0.2))
    rising = [1e-2 * (i + 1) / 6 for i in range(6)]  # 0.2 of 30 steps
    falling = [1e-2 * 0.5 * (1 + math.cos(math.pi * i / 24)) for i in range(24)]
    assert rates == pytest.approx(rising + falling)
    assert min(rates) > 0


def test_a_step_is_that_of_adamw_on_the_clipped_gradient():
    net, twin = network(), network()
    images = image_set(6)
    recipe = recipe_of(net, epochs=1, clip_norm=0.05, warmup=1.0)
    trained(net, recipe, images=images, data=CALM)

    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=1e-2)
    F.cross_entropy(twin(images.images()), images.targets).backward()
    norm = torch.stack([each.grad.norm() for each in twin.parameters()]).norm()
    assert norm > 0.05
    for each in twin.parameters():
        each.grad.mul_(0.05 / norm)
    optimizer.step()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_history_holds_the_mean_of_each_loss_over_the_steps_that_have_it():
    net = network()

    def begin_epoch(epoch, rng, steps):
        def accumulate(images, labels, step):
            net(images).sum().backward()
            losses = {"largest": float(epoch * 10 + step)}
            return losses if step else {**losses, "smallest": 5.0}

        return accumulate

    history = trained(net, recipe_of(net, epochs=2, begin_epoch=begin_epoch))
    assert history == [
        Epoch("fp32", 1, {"largest": 1.0, "smallest": 5.0}),
        Epoch("fp32", 2, {"largest": 11.0, "smallest": 5.0}),
    ]


def test_training_lowers_the_loss():
    net = network()
    history = trained(net, recipe_of(net, epochs=40, learning_rate=5e-2), data=CALM)
    assert history[-1].losses["labels"] < 0.5 * history[0].losses["labels"]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_killed_training_goes_on_bit_for_bit(epochs, checkpoint, killing, same_tensors):
    progress, killed = killing
    straight, begun, resumed = network(), network(), network(seed=5)
    history = trained(straight)
    with pytest.raises(killed):
        trained(begun, checkpoint=checkpoint, progress=progress(epochs))
    assert len(load_tensors(checkpoint.path, "")[1]["losses"]) == epochs
    assert trained(resumed, checkpoint=checkpoint) == history
    assert same_tensors(straight.state_dict(), resumed.state_dict())


def test_a_kill_within_an_epoch_repeats_it_bit_for_bit(checkpoint, same_tensors):
    straight, begun, resumed = network(), network(), network(seed=5)
    history = trained(straight)
    plain = recipe_of(begun)

    def begin_epoch(epoch, rng, steps):
        accumulate = plain.begin_epoch(epoch, rng, steps)

        def dying(images, labels, step):
            if (epoch, step) == (1, 2):
                raise KeyboardInterrupt
            return accumulate(images, labels, step)

        return dying

    with pytest.raises(KeyboardInterrupt):
        trained(begun, replace(plain, begin_epoch=begin_epoch), checkpoint=checkpoint)
    assert trained(resumed, checkpoint=checkpoint) == history
    assert same_tensors(straight.state_dict(), resumed.state_dict())


def test_a_finished_training_is_only_read_back(checkpoint, same_tensors):
    net, again = network(), network(seed=5)
    history = trained(net, checkpoint=checkpoint)

    def refuse(epoch, rng, steps):
        raise AssertionError("an epoch was begun")

    assert trained(again, recipe_of(again, begin_epoch=refuse), checkpoint=checkpoint) == history
    assert same_tensors(net.state_dict(), again.state_dict())


def test_progress_counts_epochs_those_before_a_kill_included(checkpoint, killing):
    progress, killed = killing
    with pytest.raises(killed):
        trained(network(), checkpoint=checkpoint, progress=progress(2))
    seen = []

    class Counting(SilentProgress):
        @contextmanager
        def task(self, label, total):
            seen.append((label, total))
            yield seen.append

    trained(network(), checkpoint=checkpoint, progress=Counting())
    assert seen == [("toy", 3), 2, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value, checkpoint):
    net = network()

    def begin_epoch(epoch, rng, steps):
        def accumulate(images, labels, step):
            net(images).sum().backward()
            return {"largest": 1.0, "random": value if (epoch, step) == (1, 1) else 1.0}

        return accumulate

    with pytest.raises(TrainingError) as caught:
        trained(net, recipe_of(net, begin_epoch=begin_epoch), checkpoint=checkpoint)
    assert str(caught.value) == (
        f"the random loss is {value} in epoch 2 of phase fp32: "
        f"lower toy.learning_rate or supernet.clip_norm"
    )
    assert len(load_tensors(checkpoint.path, "")[1]["losses"]) == 1


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(checkpoint):
    net = network()

    def begin_epoch(epoch, rng, steps):
        def accumulate(images, labels, step):
            net(images).sum().backward()
            if (epoch, step) == (2, 2):  # the very last step: no later loss would tell
                net[3].bias.grad[0] = math.inf
            return {"labels": 1.0}

        return accumulate

    with pytest.raises(TrainingError) as caught:
        trained(net, recipe_of(net, begin_epoch=begin_epoch), checkpoint=checkpoint)
    assert str(caught.value) == (
        "the norm of the gradient is inf in epoch 3 of phase fp32: "
        "lower toy.learning_rate or supernet.clip_norm"
    )
    assert all(bool(each.isfinite().all()) for each in net.parameters())


def refusal(net, checkpoint, **changes):
    with pytest.raises(RunError) as caught:
        trained(net, recipe_of(net, **changes), checkpoint=checkpoint)
    return str(caught.value)


def test_a_checkpoint_of_another_phase_is_refused(checkpoint):
    trained(network(), checkpoint=checkpoint)
    assert refusal(network(), checkpoint, phase="quantized") == (
        f"{checkpoint.path} is no checkpoint of phase quantized; delete it"
    )


@pytest.mark.parametrize("meta", [{}, {"phase": "fp32"}, {"phase": "fp32", "losses": 3}])
def test_a_file_that_is_no_checkpoint_is_refused(checkpoint, meta):
    save_tensors(checkpoint.path, network().state_dict(), meta)
    assert refusal(network(), checkpoint) == (
        f"{checkpoint.path} is no checkpoint of phase fp32; delete it"
    )


def test_a_truncated_checkpoint_is_refused(checkpoint):
    trained(network(), checkpoint=checkpoint)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-1])
    assert refusal(network(), checkpoint) == (
        f"{checkpoint.path} is truncated or was not written by apqkit; delete it"
    )


def test_a_checkpoint_of_another_network_is_refused(checkpoint):
    trained(network(), checkpoint=checkpoint)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    assert refusal(other, checkpoint) == (
        f"{checkpoint.path} does not belong to this network: "
        f"3.weight must have shape (4, 16), got (3, 16)"
    )
