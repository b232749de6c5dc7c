import re

import numpy as np
import pytest
import torch
from mq_statistics import (
    Scores,
    activation_means,
    read_scores,
    virtual_gradients,
    write_scores,
)
from torch import nn

LAYERS, FORMATS = ("0.weight", "2.weight"), ("int2", "int8")


def test_virtual_gradients_are_products_of_magnitudes():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-2.0, 3.0]]))
        model[2].weight.copy_(torch.tensor([[-5.0], [7.0]]))
    found = virtual_gradients(model, torch.zeros(4, 2), LAYERS)
    assert found["0.weight"].tolist() == [[12.0, 12.0]]
    assert found["2.weight"].tolist() == [[5.0], [5.0]]
    assert model[0].weight.tolist() == [[-2.0, 3.0]]


def test_activations_are_mean_magnitudes_of_what_enters_by_channel():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1))
    images = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    found = activation_means(model, images, LAYERS)
    for channel in range(2):
        expected = images[:, channel].abs().mean()
        torch.testing.assert_close(found["0.weight"][channel], expected)
    assert found["2.weight"].shape == (3,)
    assert not model[0]._forward_pre_hooks


def test_scores_read_as_they_were_written(tmp_path):
    path = tmp_path / "scores.csv"
    values = np.array([[1e-35, 1 / 3], [np.nan, -2.0]])
    write_scores(path, LAYERS, FORMATS, {"a": Scores(1, values), "b": Scores(-1, -values)})
    found = read_scores(path, LAYERS, FORMATS)
    assert [(name, each.sign) for name, each in found.items()] == [("a", 1), ("b", -1)]
    np.testing.assert_array_equal(found["a"].values, values)
    np.testing.assert_array_equal(found["b"].values, -values)


def test_scores_of_other_formats_or_layers_are_refused(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, LAYERS, FORMATS, {"a": Scores(1, np.ones((2, 2)))})
    other_formats = f"{path} must have scores in int2, int4, got ['int2', 'int8']"
    with pytest.raises(ValueError, match=f"^{re.escape(other_formats)}$"):
        read_scores(path, LAYERS, ("int2", "int4"))
    other_layers = f"{path}: a must have the layers 0.weight, 4.weight"
    with pytest.raises(ValueError, match=f"^{re.escape(other_layers)}$"):
        read_scores(path, ("0.weight", "4.weight"), FORMATS)
