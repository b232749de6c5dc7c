from dataclasses import replace

import pytest


@pytest.mark.parametrize(
    ("objectives", "axis"),
    [
        ({"accuracy": "max", "size_kib": "min"}, "size_kib"),
        ({"bops": "min", "accuracy": "max", "size_kib": "min"}, "bops"),
        ({"accuracy": "max"}, "latency_ms"),
    ],
)
def test_the_front_is_drawn_over_the_first_objective_beside_accuracy(objectives, axis, data):
    changed = replace(data, front=replace(data.front, objectives=objectives))
    assert changed.cost_axis == axis
