import re

import pytest

from apqkit.cost.importers.blocks import BLOCK, SHAPES, block_key, map_key, numbers
from apqkit.cost.keys import key_text
from apqkit.errors import CostError

NAME = "-input:28x30x40-output:14x15x80-expand:6-kernel:5-stride:2-idskip:0"


def block(**changes):
    return {**numbers(re.fullmatch(BLOCK, NAME)), **changes}


def test_names_are_taken_apart():
    assert block() == {
        "in_height": 28, "in_width": 30, "in_channels": 40,
        "out_height": 14, "out_width": 15, "out_channels": 80,
        "expand": 6, "kernel": 5, "stride": 2, "residual": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        NAME.replace("28x", "0x"),
        NAME.replace("40-", "040-"),
        NAME.replace("idskip:0", "idskip:2"),
        NAME.replace("kernel:5", "kernel:-5"),
        NAME.replace("expand:6", "expand:6.0"),
        NAME.replace("x40", ""),
        NAME + "-se:0",
        NAME.replace("28", "٢٨"),
        NAME.replace("28", "2" * 10),
    ],
)
def test_names_of_another_grammar_do_not_match(name):
    assert re.fullmatch(BLOCK, name, re.ASCII) is None


def test_a_block_is_keyed_as_a_whole():
    key = block_key(block(squeeze_excite=1), "file", hidden_channels=240, activation="h_swish")
    assert key_text(key) == (
        "inverted_residual in_channels 40 hidden_channels 240 out_channels 80 kernel 5 stride 2 "
        "groups 240 in_height 28 in_width 30 activation h_swish squeeze_excite 1 "
        "weight_format fp32 activation_format fp32"
    )
    same = block(stride=1, out_height=28, out_width=30, out_channels=40, residual=1)
    key = block_key(same, "file", hidden_channels=240, activation="none")
    assert key_text(key) == (
        "inverted_residual in_channels 40 hidden_channels 240 out_channels 40 kernel 5 stride 1 "
        "groups 240 in_height 28 in_width 30 residual 1 weight_format fp32 activation_format fp32"
    )


def test_odd_maps_round_up():
    shapes = numbers(re.fullmatch(SHAPES, "-input:25x25x40-output:13x13x80"))
    assert key_text(map_key(shapes, "file", kernel=3, stride=2)) == (
        "conv in_channels 40 out_channels 80 kernel 3 stride 2 groups 1 in_height 25 in_width 25 "
        "weight_format fp32 activation_format fp32"
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"out_height": 13}, "at stride 2 the output must be 14x15, got 13x15"),
        ({"stride": 1}, "at stride 1 the output must be 28x30, got 14x15"),
        ({"kernel": 4}, "the kernel must be odd, got 4"),
        ({"residual": 1}, "idskip 1 needs stride 1 and as many channels out as in"),
        (
            {"residual": 1, "stride": 1, "out_height": 28, "out_width": 30},
            "idskip 1 needs stride 1 and as many channels out as in",
        ),
    ],
)
def test_blocks_that_cannot_be_are_refused(changes, fault):
    with pytest.raises(CostError) as caught:
        block_key(block(**changes), "file, 'A'", hidden_channels=240, activation="none")
    assert str(caught.value) == f"file, 'A': {fault}"
