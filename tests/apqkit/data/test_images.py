import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apqkit.config import Corruptions, DataConfig
from apqkit.data.images import ImageSet, augment, corrupt, shift_images


def pixels_of(count, channels=1, height=5, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (count, channels, height, width)).astype(np.uint8)


def image_set(count=40, **shape):
    return ImageSet.of(pixels_of(count, **shape), np.arange(count) % 3)


def shifted(image, down, right):
    """One image (channels, height, width) moved by plain loops."""
    moved = np.zeros_like(image)
    channels, height, width = image.shape
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if 0 <= y - down < height and 0 <= x - right < width:
                    moved[c, y, x] = image[c, y - down, x - right]
    return moved


def all_shifts(limit):
    steps = range(-limit, limit + 1)
    return [(down, right) for down in steps for right in steps]


def shift_found(image, moved, limit):
    found = [each for each in all_shifts(limit) if np.array_equal(shifted(image, *each), moved)]
    assert len(found) == 1
    return found[0]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), channels=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5)
)
def test_shifting_equals_plain_loops(data, channels, height, width):
    count = data.draw(st.integers(1, 3))
    step = st.integers(-6, 6)
    shifts = data.draw(st.lists(st.tuples(step, step), min_size=count, max_size=count))
    images = pixels_of(count, channels, height, width)
    moved = shift_images(torch.from_numpy(images), torch.tensor(shifts)).numpy()
    expected = [shifted(image, *each) for image, each in zip(images, shifts, strict=True)]
    assert np.array_equal(moved, np.stack(expected))
    assert moved.dtype == np.uint8


def test_shifting_floats_keeps_their_values():
    images = torch.rand(3, 2, 4, 4)
    assert torch.equal(shift_images(images, torch.zeros(3, 2, dtype=torch.int64)), images)


def test_plain_images_are_their_own_base():
    images = image_set(5)
    assert len(images) == 5
    assert images.base.tolist() == [0, 1, 2, 3, 4]
    assert not images.corrupted.any()
    assert images.labels.dtype == np.int64


def test_take_keeps_pixels_labels_and_origin_together():
    images = corrupt(image_set(6), Corruptions(copies=1), 0)
    taken = images.take(np.array([7, 2, 7]))
    assert np.array_equal(taken.pixels, images.pixels[[7, 2, 7]])
    assert taken.labels.tolist() == [1, 2, 1]
    assert taken.base.tolist() == [1, 2, 1]
    assert taken.corrupted.tolist() == [True, False, True]


def test_images_are_fractions_with_channels_last_in_memory():
    images = image_set(4, channels=3)
    tensor = images.images()
    assert tensor.dtype == torch.float32
    assert tensor.shape == (4, 3, 5, 4)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(tensor.numpy(), images.pixels.astype(np.float32) / np.float32(255))
    assert torch.equal(images.images(np.array([3, 1])), tensor[[3, 1]])
    assert torch.equal(images.images(slice(1, 3)), tensor[1:3])


def test_targets_are_the_labels_as_a_tensor():
    images = image_set(4)
    assert images.targets.dtype == torch.int64
    assert images.targets.tolist() == [0, 1, 2, 0]


def test_corrupted_copies_follow_the_plain_images():
    images = image_set(7, channels=3)
    both = corrupt(images, Corruptions(copies=3), 0)
    assert len(both) == 28
    assert np.array_equal(both.pixels[:7], images.pixels)
    assert both.labels.tolist() == images.labels.tolist() * 4
    assert both.base.tolist() == list(range(7)) * 4
    assert both.corrupted.tolist() == [False] * 7 + [True] * 21
    assert both.pixels.dtype == np.uint8


@pytest.mark.parametrize("how", [Corruptions(copies=0), Corruptions(shift=0, noise=0.0, copies=2)])
def test_no_corruption_leaves_images_as_they_are(how):
    images = image_set(5)
    both = corrupt(images, how, 0)
    assert np.array_equal(both.pixels, np.concatenate([images.pixels] * (1 + how.copies)))


def test_every_shift_within_the_limit_comes_up_equally_often():
    images = image_set(200)
    both = corrupt(images, Corruptions(shift=1, noise=0.0, copies=4), 0)
    found = [
        shift_found(images.pixels[base], moved, 1)
        for base, moved in zip(both.base[200:], both.pixels[200:], strict=True)
    ]
    counts = [found.count(each) for each in all_shifts(1)]
    assert sum(counts) == 800
    assert min(counts) > 800 / 9 - 4 * np.sqrt(800 / 9)  # four standard deviations
    assert max(counts) < 800 / 9 + 4 * np.sqrt(800 / 9)


def test_noise_has_the_spread_that_was_asked_for_and_stays_in_range():
    grey = ImageSet.of(np.full((50, 1, 20, 20), 128, np.uint8), np.zeros(50, np.int64))
    noisy = corrupt(grey, Corruptions(shift=0, noise=0.1, copies=1), 3).pixels[50:].astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=1.0)
    bright = ImageSet.of(np.full((20, 1, 20, 20), 250, np.uint8), np.zeros(20, np.int64))
    clipped = corrupt(bright, Corruptions(shift=0, noise=0.2, copies=1), 3).pixels[20:]
    assert clipped.max() == 255
    assert 0.3 < (clipped == 255).mean() < 0.6  # what exceeds the range stops at its end


def test_corruptions_are_the_same_for_a_seed_and_others_for_another():
    images = image_set(6)
    once, again, other = (corrupt(images, Corruptions(), seed).pixels for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once[6:], other[6:])
    assert not np.array_equal(once[6:12], once[12:])  # nor are two copies alike


def batch_of(count=300, channels=1):
    return torch.from_numpy(pixels_of(count, channels)).float() / 255


def augmented(images, seed=0, **how):
    settings = {"augment_shift": 0, "augment_noise": 0.0, "augment_flip": False, **how}
    return augment(images, DataConfig(**settings), np.random.default_rng(seed))


def test_training_images_may_be_left_alone():
    images = batch_of(4)
    assert torch.equal(augmented(images), images)


def test_training_images_are_shifted_within_the_limit():
    images = batch_of()
    moved = augmented(images, augment_shift=1)
    found = {shift_found(a, b, 1) for a, b in zip(images.numpy(), moved.numpy(), strict=True)}
    assert found == set(all_shifts(1))


def test_half_of_the_training_images_are_mirrored_left_to_right():
    images = batch_of()
    found = augmented(images, augment_flip=True)
    mirrored, same = (
        (found == other).flatten(1).all(dim=1) for other in (images.flip(-1), images)
    )
    assert (mirrored ^ same).all()
    assert 110 < int(mirrored.sum()) < 190


def test_noise_differs_in_strength_from_image_to_image():
    images = torch.full((400, 1, 20, 20), 0.5)
    found = augmented(images, augment_noise=0.1)
    spread = (found - images).std(dim=(1, 2, 3))
    assert spread.max() < 0.1 * 1.15
    quarters = torch.histc(spread, bins=4, min=0.0, max=0.1)
    assert (quarters > 60).all()  # uniform: 100 each


def test_noise_keeps_training_images_in_range_and_their_type():
    found = augmented(batch_of(50), augment_noise=1.0)
    assert found.dtype == torch.float32
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)


def test_variations_are_drawn_from_the_generator_alone():
    images = batch_of(20, channels=3)
    before = images.clone()
    state = torch.random.get_rng_state()
    how = {"augment_shift": 1, "augment_noise": 0.2, "augment_flip": True}
    once, again, other = (augmented(images, seed, **how) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.is_contiguous(memory_format=torch.channels_last)
