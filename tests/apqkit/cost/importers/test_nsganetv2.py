import re

import numpy as np
import pandas as pd
import pytest

from apqkit.cost.importers import import_table
from apqkit.cost.interpolation import fit_interpolator
from apqkit.cost.keys import TABLE_OPS, column, key_text
from apqkit.errors import CostError

SOURCE = "github.com/mikelzc1990/nsganetv2, data/i7-8700K_lut.yaml, as CSV"
BLOCK = "MBConv-input:100x100x16-output:50x50x24-expand:3-kernel:5-stride:2-idskip:0-se:0"
# Excerpts of that file.
PUBLISHED = f"""\
{BLOCK}:
  mean: 0.7363052368164062
  var: 7.435664883814752e-08
MBConv-input:10x10x112-output:10x10x112-expand:4-kernel:7-stride:1-idskip:1-se:1:
  mean: 0.8797437194734812
  var: 0.0001938559271970064
classifier-input:1280-output:1000:
  mean: 0.029542922973632812
  var: 3.3374817576259375e-08
feature_mix_layer-input:1x1x960-output:1x1x1280:
  mean: 0.26094818115234375
  var: 3.165077941957861e-07
final_expand_layer-input:3x3x160-output:3x3x960:
  mean: 0.14400672912597656
  var: 1.660700945649296e-07
first_conv-input:100x100x3-output:50x50x16:
  mean: 0.08915901184082031
  var: 7.410562830045819e-08
"""
FP32 = "weight_format fp32 activation_format fp32"


@pytest.fixture
def file(tmp_path):
    def write(text, name="table.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def path(data_file):
    return data_file("ofa_cpu_lut/ofa_mbv3_i7_8700k_lut.csv.gz", SOURCE)


@pytest.fixture(scope="module")
def table(path):
    return import_table("nsganetv2", path)


def refused(path):
    with pytest.raises(CostError) as caught:
        import_table("nsganetv2", path)
    return str(caught.value)


def test_published_lines_are_read(file):
    table = import_table("nsganetv2", file(PUBLISHED))
    found = {key_text(k): ms for k, ms in zip(table.keys, table.latency_ms, strict=True)}
    assert found == {
        "inverted_residual in_channels 16 hidden_channels 48 out_channels 24 kernel 5 stride 2 "
        f"groups 48 in_height 100 in_width 100 {FP32}": 0.7363052368164062,
        "inverted_residual in_channels 112 hidden_channels 448 out_channels 112 kernel 7 stride 1 "
        f"groups 448 in_height 10 in_width 10 squeeze_excite 1 residual 1 {FP32}":
            0.8797437194734812,
        "linear in_channels 1280 out_channels 1000 kernel 1 stride 1 groups 1 in_height 1 "
        f"in_width 1 {FP32}": 0.029542922973632812,
        "conv in_channels 960 out_channels 1280 kernel 1 stride 1 groups 1 in_height 1 "
        f"in_width 1 {FP32}": 0.26094818115234375,
        "conv in_channels 160 out_channels 960 kernel 1 stride 1 groups 1 in_height 3 "
        f"in_width 3 {FP32}": 0.14400672912597656,
        "conv in_channels 3 out_channels 16 kernel 3 stride 2 groups 1 in_height 100 "
        f"in_width 100 {FP32}": 0.08915901184082031,
    }  # fmt: skip
    assert table.spread_ms[1] == pytest.approx(0.0001938559271970064**0.5)
    assert table.header["free_ops"] == "input add global_pool"


def test_csv_and_yaml_of_the_same_rows_are_one_table(file):
    rows = re.findall(r"(.*):\n  mean: (.*)\n  var: (.*)\n", PUBLISHED)
    text = "\n".join(["key,mean_ms,var", *map(",".join, rows), ""])
    one = import_table("nsganetv2", file(PUBLISHED))
    other = import_table("nsganetv2", file(text, "table.csv"))
    assert np.array_equal(one.keys, other.keys)
    for name in ("latency_ms", "p10_ms", "p90_ms"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "name",
    [
        BLOCK.removesuffix("-se:0"),
        BLOCK + "-hs:0",
        BLOCK.replace("MBConv", "expanded_conv"),
        "classifier-input:1x1x1280-output:1000",
        "last_conv-input:3x3x160-output:3x3x960",
    ],
)
def test_names_of_another_grammar_are_refused(name, file):
    path = file(f"{name}:\n  mean: 1.0\n")
    assert refused(path) == (
        f"{path}, {name!r}: expected MBConv, first_conv, final_expand_layer, feature_mix_layer "
        f"or classifier with the shapes of input and output"
    )


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["key,mean_ms"], " lacks the column 'var'"),
        (["key,mean_ms,var"], " holds no rows"),
        (
            ["key,mean_ms,var", f"{BLOCK},-1,0"],
            f", '{BLOCK}': mean must be a positive number, got '-1'",
        ),
        (
            ["key,mean_ms,var", f"{BLOCK},1,"],
            f", '{BLOCK}': var must be a positive number, got ''",
        ),
        (
            ["key,mean_ms,var", f"{BLOCK},1,0", f"{BLOCK},1,0"],
            f" holds a layer twice: '{BLOCK}' and '{BLOCK}'",
        ),
    ],
)
def test_broken_csv_is_refused(rows, fault, file):
    path = file("\n".join([*rows, ""]), "table.csv")
    assert refused(path) == f"{path}{fault}"


def test_the_whole_published_table_is_read(table, path):
    frame = pd.read_csv(path)
    assert len(table) == len(frame) == 4048
    assert np.array_equal(table.latency_ms, frame["mean_ms"].to_numpy())
    assert table.spread_ms == pytest.approx(np.sqrt(frame["var"]), rel=0.05, abs=1e-4)
    blocks = frame["op"] == "MBConv"
    assert np.array_equal(column(table.keys, "op") == TABLE_OPS.index("inverted_residual"), blocks)
    for name, source in (
        ("in_channels", "in_c"),
        ("in_height", "in_h"),
        ("out_channels", "out_c"),
    ):
        assert np.array_equal(column(table.keys, name), frame[source])
    hidden = (frame["in_c"] * frame["expand"]).fillna(0)
    assert np.array_equal(column(table.keys, "hidden_channels"), hidden)


def held_out(keys, seed):
    """(m,) a fifth of the distinct shapes, each with all its kernels and expansions."""
    names = ("in_channels", "out_channels", "stride", "in_height", "residual", "squeeze_excite")
    shapes = np.stack([column(keys, name) for name in names], axis=1)
    _, index = np.unique(shapes, axis=0, return_inverse=True)
    count = index.max() + 1
    return np.isin(index, np.random.default_rng(seed).permutation(count)[: count // 5])


def test_shapes_that_were_left_out_are_estimated_within_a_few_percent(table):
    blocks = table.take(column(table.keys, "op") == TABLE_OPS.index("inverted_residual"))
    out = held_out(blocks.keys, seed=0)
    assert 0.15 < out.mean() < 0.25
    process = fit_interpolator(blocks.keys[~out], blocks.latency_ms[~out])
    estimate, error = process.predict(blocks.keys[out])
    wrong = np.abs(estimate / blocks.latency_ms[out] - 1)
    assert wrong.mean() <= 0.08
    assert (wrong <= error).mean() >= 0.6  # one standard error
    assert (wrong <= 2 * error).mean() >= 0.9
