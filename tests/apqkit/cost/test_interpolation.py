import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from apqkit.cost import interpolation
from apqkit.cost.interpolation import fit_interpolator, key_features
from apqkit.cost.keys import key_of


def conv(inputs, outputs, side=8, kernel=3, **changes):
    columns = {
        "in_channels": inputs, "out_channels": outputs, "kernel": kernel, "stride": 1,
        "groups": 1, "in_height": side, "in_width": side, "weight_format": "int8",
        "activation_format": "int8", "output_format": "int8",
    }  # fmt: skip
    return key_of("conv", {name: int(v) if not isinstance(v, str) else v
                           for name, v in (columns | changes).items()})  # fmt: skip


def drawn(count, seed=0):
    """Convolutions of 4 to 256 channels on maps of 4 to 32 pixels."""
    rng = np.random.default_rng(seed)
    channels = np.exp(rng.uniform(np.log(4), np.log(256), (count, 2))).astype(int)
    sides = rng.integers(4, 33, count)
    return np.stack([conv(i, o, side) for (i, o), side in zip(channels, sides, strict=True)])


def power_law(keys):
    """ms, a little less than in proportion to arithmetic."""
    inputs, outputs, side = keys[:, 1], keys[:, 3], keys[:, 7]
    return 2e-6 * (inputs * outputs) ** 0.9 * side**1.8


def noisy(keys, share, seed=0):
    return power_law(keys) * np.exp(np.random.default_rng(seed).normal(0, share, len(keys)))


@pytest.fixture(scope="module")
def fitted():
    keys = drawn(60)
    latency = noisy(keys, 0.05)
    return keys, latency, fit_interpolator(keys, latency)


def left_out(keys, latency, process, row):
    """The relative error of a row's estimate by a process that never saw it."""
    features = process._scaler.transform(key_features(keys))
    target = np.log(latency) - process._mean
    others = np.arange(len(keys)) != row
    regressor = GaussianProcessRegressor(process._process.kernel_, alpha=1e-8, optimizer=None)
    regressor.fit(features[others], target[others])
    estimate = regressor.predict(features[row : row + 1])[0]
    return np.expm1(np.abs(estimate - target[row]))


def test_every_row_is_left_out_once(fitted):
    keys, latency, process = fitted
    expected = [left_out(keys, latency, process, row) for row in range(len(keys))]
    np.testing.assert_allclose(process.left_out_error, expected, rtol=1e-6, atol=1e-9)
    assert 0.01 < np.median(process.left_out_error) < 0.2


def test_rows_beyond_those_that_parameters_are_fitted_on_count_too(monkeypatch):
    monkeypatch.setattr(interpolation, "_FITTED_ON", 20)
    keys = drawn(50)
    latency = noisy(keys, 0.02)
    process = fit_interpolator(keys, latency)
    assert len(process._process.X_train_) == 50
    for row in (0, 17, 49):
        expected = left_out(keys, latency, process, row)
        assert process.left_out_error[row] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_power_law_is_met_within_a_per_cent():
    keys, asked = drawn(120), drawn(200, seed=1)
    estimate, error = fit_interpolator(keys, power_law(keys)).predict(asked)
    exact = power_law(asked)
    inside = (asked[:, [1, 3]] > 8).all(axis=1) & (asked[:, [1, 3]] < 128).all(axis=1)
    assert inside.sum() > 50
    wrong = np.abs(estimate / exact - 1)
    assert np.median(wrong) < 0.002
    assert wrong[inside].max() < 0.01
    assert (error < 0.1).all()


def test_estimates_of_known_rows_are_near_what_was_measured(fitted):
    keys, latency, process = fitted
    estimate, error = process.predict(keys)
    assert np.abs(np.log(estimate / latency)).max() < 0.2
    assert (error > 0).all()


def test_errors_are_as_large_as_they_are_said_to_be():
    keys, asked = drawn(80), drawn(300, seed=1)
    estimate, error = fit_interpolator(keys, noisy(keys, 0.1)).predict(asked)
    standardized = np.log(estimate / noisy(asked, 0.1, seed=1)) / np.log1p(error)
    assert 0.7 < np.sqrt(np.mean(standardized**2)) < 1.4


def test_the_error_grows_away_from_the_data(fitted):
    _, _, process = fitted
    sizes = [64, 512, 2048, 8192, 32768]
    _, error = process.predict(np.stack([conv(each, each) for each in sizes]))
    assert (np.diff(error) > 0).all()
    assert error[-1] > 3 * error[0]


def test_predictions_do_not_depend_on_what_is_asked_with_them(fitted):
    _, _, process = fitted
    asked = drawn(20, seed=2)
    together = np.stack(process.predict(asked))
    alone = np.stack([np.concatenate(process.predict(each[None])) for each in asked], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-7)


def test_the_same_rows_give_the_same_process(fitted):
    keys, latency, process = fitted
    again = fit_interpolator(keys, latency)
    asked = drawn(10, seed=3)
    assert np.array_equal(np.stack(again.predict(asked)), np.stack(process.predict(asked)))
    assert np.array_equal(again.left_out_error, process.left_out_error)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_few_rows_say_is_unsure(rows):
    keys = drawn(rows)
    process = fit_interpolator(keys, power_law(keys))
    estimate, error = process.predict(drawn(30, seed=1))
    assert (process.left_out_error == 1.0).all()
    assert (error >= 1.0).all()
    assert np.isfinite(error).all()
    # Estimates stay near what is known instead of following a law from three points.
    assert (estimate > power_law(keys).min() / 10).all()
    assert (estimate < power_law(keys).max() * 10).all()


def test_one_row_is_its_own_best_estimate():
    process = fit_interpolator(conv(8, 16)[None], np.array([0.25]))
    estimate, _ = process.predict(np.stack([conv(8, 16), conv(64, 64)]))
    np.testing.assert_allclose(estimate, 0.25)


def test_rows_that_all_take_as_long_are_no_trouble():
    keys = drawn(20)
    process = fit_interpolator(keys, np.full(20, 1e-5))
    estimate, error = process.predict(drawn(5, seed=1))
    np.testing.assert_allclose(estimate, 1e-5)
    assert (error > 0).all()


def test_features_are_logarithms_of_channels_pixels_arithmetic_and_traffic():
    features = np.exp(
        key_features(np.stack([conv(8, 16, side=6), conv(8, 8, groups=8, stride=2)]))
    )
    # inputs + 1, hidden + 1, outputs + 1, taps, read, written, multiply-adds, elements moved
    np.testing.assert_allclose(
        features[0, :8], [9, 1, 17, 9, 36, 36, 36 * 16 * 9 * 8, 36 * 8 + 36 * 16]
    )
    np.testing.assert_allclose(features[1, :8], [9, 1, 9, 9, 64, 16, 16 * 8 * 9, 64 * 8 + 16 * 8])
    np.testing.assert_allclose(features[:, -2:], 8)  # bits of weights and of input


def test_features_of_a_block_count_its_three_layers():
    key = key_of(
        "inverted_residual",
        {"in_channels": 8, "hidden_channels": 48, "out_channels": 16, "kernel": 3, "stride": 2,
         "in_height": 8, "in_width": 8, "activation": "relu6", "squeeze_excite": 1, "residual": 1},
    )  # fmt: skip
    features = key_features(key[None])[0]
    expand, depthwise, project = 64 * 8 * 48, 16 * 48 * 9, 16 * 48 * 16
    assert np.exp(features[6]) == pytest.approx(expand + depthwise + project)
    assert np.exp(features[7]) == pytest.approx(64 * 8 + 16 * 16 + 48 * (64 + 16))
    assert features[8:12].tolist() == [2, 1, 1, 0]  # activation, squeeze-excite, residual, signed
    assert features[12:].tolist() == [0, 0]  # no formats


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "in_height", "kernel"])
def test_features_tell_apart_rows_that_differ_in_size(name):
    keys = np.stack([conv(8, 8), conv(8, 8, **{name: 5})])
    assert (key_features(keys)[0] != key_features(keys)[1]).any()
