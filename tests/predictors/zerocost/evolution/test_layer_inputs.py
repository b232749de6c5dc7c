from dataclasses import replace

import numpy as np
import pytest

from predictors.zerocost.errors import ProxyError
from predictors.zerocost.evolution.layer_inputs import LayerInputs


@pytest.fixture
def inputs() -> LayerInputs:
    return LayerInputs(
        layers=("stem", "head"),
        formats=("int4", "int8"),
        bits=np.array([4.0, 8.0]),
        parameters=np.array([6.0, 2.0]),
        errors=np.array([[0.5, 0.1], [0.0, 0.0]]),
        statistics={"gradients": (np.ones((2, 3)), np.array([-1.0]))},
    )


def test_keeps_copies_that_nobody_can_change() -> None:
    bits, gradients = np.array([4.0]), np.array([1.0, 2.0])
    inputs = LayerInputs(
        ("a",), ("int4",), bits, np.ones(1), np.ones((1, 1)), {"gradients": (gradients,)}
    )
    bits[0] = gradients[0] = 9.0
    assert inputs.bits.tolist() == [4.0]
    assert inputs.statistics["gradients"][0].tolist() == [1.0, 2.0]
    for array in (
        inputs.bits,
        inputs.parameters,
        inputs.errors,
        inputs.statistics["gradients"][0],
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0
    with pytest.raises(TypeError):
        inputs.statistics["weights"] = ()


def test_arrays_of_any_shape_are_flattened(inputs: LayerInputs) -> None:
    assert [each.shape for each in inputs.statistics["gradients"]] == [(6,), (1,)]


def test_names_what_there_is(inputs: LayerInputs) -> None:
    assert inputs.kinds == ("gradients", "errors", "parameters", "bits")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers must be names, one or more, got ()"),
        ({"layers": "ab"}, "layers must be names, one or more, got 'ab'"),
        ({"formats": ("int4", "int4")}, "each of formats may stand once, got 'int4' again"),
        ({"bits": np.ones(3)}, "bits must have shape (2,), got (3,)"),
        ({"bits": np.array([0.0, 8.0])}, "bits must be finite and above 0, got 0.0"),
        (
            {"parameters": np.array([1.0, np.inf])},
            "parameters must be finite and above 0, got inf",
        ),
        (
            {"errors": np.array([[0.5, -0.1], [0.0, 0.0]])},
            "errors must be finite and 0 or more, got -0.1",
        ),
        (
            {"statistics": {"grads": ()}},
            "no statistics named 'grads'; there are: weights, gradients, activations, hessian, "
            "virtual_gradients",
        ),
        (
            {"statistics": {"hessian": (np.ones(1),)}},
            "hessian must have 2 arrays (layers), got 1",
        ),
        (
            {"statistics": {"hessian": (np.ones(1), np.array([np.nan]))}},
            "hessian of 'head' must be finite values, 1 or more, got nan",
        ),
        (
            {"statistics": {"hessian": (np.array([1e300]), np.ones(1))}},
            "hessian of 'stem' must be finite values, 1 or more, got inf",
        ),
        (
            {"statistics": {"hessian": (np.ones(1), np.ones(0))}},
            "hessian of 'head' must be finite values, 1 or more, got none",
        ),
    ],
)
def test_refuses_what_formulas_could_not_read(
    inputs: LayerInputs, change: dict, message: str
) -> None:
    with pytest.raises(ProxyError) as caught:
        replace(inputs, **change)
    assert str(caught.value) == message
