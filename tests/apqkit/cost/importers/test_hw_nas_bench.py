import json

import pytest

from apqkit.cost.importers import import_table
from apqkit.cost.keys import key_text
from apqkit.errors import CostError

BLOCK = "ConvBlock_H32_W32_Cin24_Cout24_exp6_kernel3_stride1_group1"
# Names as hw_nas_bench_api/hw_nas_bench_api.py of github.com/GATECH-EIC/HW-NAS-Bench forms them;
# the figures are made up.
TABLE = {
    "ConvNorm_H32_W32_Cin3_Cout16_kernel3_stride1_group1": 1.25,
    BLOCK: 2.5,
    "ConvBlock_H32_W32_Cin24_Cout32_exp1_kernel5_stride2_group1": 0.75,
    "ConvBlock_H32_W32_Cin24_Cout32_exp1_kernel5_stride2_group2": 0.5,
    "Skip_H32_W32_Cin24_Cout32_stride2": 0.125,
    "Skip_H32_W32_Cin24_Cout24_stride1": 0.01,
    "Skip_H16_W16_Cin32_Cout32_stride1": 0.0,
    "ConvNorm_H4_W4_Cin352_Cout1504_kernel1_stride1_group1": -1,
    "AvgP_H4_W4_Cin1504_Cout1504_kernel4_stride1": 0.0625,
    "FC_Cin1504_Cout100": 3e-4,
}
FP32 = "weight_format fp32 activation_format fp32"


@pytest.fixture
def file(tmp_path):
    def write(table):
        path = tmp_path / "table.json"
        path.write_text(json.dumps(table))
        return path

    return write


def imported(path):
    return import_table("hw-nas-bench", path, {"device": "pixel3"})


def refused(path):
    with pytest.raises(CostError) as caught:
        imported(path)
    return str(caught.value)


def test_operations_are_read(file):
    table = imported(file(TABLE))
    found = {key_text(k): ms for k, ms in zip(table.keys, table.latency_ms, strict=True)}
    assert found == {
        "conv in_channels 3 out_channels 16 kernel 3 stride 1 groups 1 in_height 32 in_width 32 "
        + FP32: 1.25,
        "inverted_residual in_channels 24 hidden_channels 144 out_channels 24 kernel 3 stride 1 "
        "groups 144 in_height 32 in_width 32 activation relu residual 1 " + FP32: 2.5,
        "inverted_residual in_channels 24 hidden_channels 24 out_channels 32 kernel 5 stride 2 "
        "groups 24 in_height 32 in_width 32 activation relu " + FP32: 0.75,
        "conv in_channels 24 out_channels 32 kernel 1 stride 2 groups 1 in_height 32 in_width 32 "
        + FP32: 0.125,
        "global_pool in_channels 1504 out_channels 1504 stride 1 groups 1 in_height 4 in_width 4 "
        "activation_format fp32": 0.0625,
        "linear in_channels 1504 out_channels 100 kernel 1 stride 1 groups 1 in_height 1 "
        "in_width 1 " + FP32: 3e-4,
    }  # fmt: skip


def test_what_is_left_out_is_counted(file):
    header = imported(file(TABLE)).header
    assert header["left_out"] == "1 not available, 2 without work, 1 grouped pointwise"
    assert header["free_ops"] == "input add"
    header = imported(file({BLOCK: 1.0})).header
    assert header["left_out"] == "0 not available, 0 without work, 0 grouped pointwise"
    header = imported(file({BLOCK: 1.0, "FC_Cin15_Cout100": 1e-7})).header
    assert header["left_out"] == "0 not available, 1 without work, 0 grouped pointwise"


@pytest.mark.parametrize(
    "name",
    [
        "Block_H32_W32_Cin24_Cout24_exp6_kernel3_stride1_group1",
        BLOCK.removesuffix("_group1"),
        BLOCK.replace("exp6", "exp_6"),
        BLOCK.replace("H32", "H0"),
        BLOCK + "_more1",
        "FC",
        "",
    ],
)
def test_names_of_another_grammar_are_refused(name, file):
    path = file({name: 1.0})
    assert refused(path) == (
        f"{path}, {name!r}: expected one of ConvNorm_H_W_Cin_Cout_kernel_stride_group, "
        f"ConvBlock_H_W_Cin_Cout_exp_kernel_stride_group, Skip_H_W_Cin_Cout_stride, "
        f"AvgP_H_W_Cin_Cout_kernel_stride, FC_Cin_Cout, each letter with its number"
    )


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (BLOCK, -2, "latency must be a positive number, got -2"),
        (BLOCK, -0.5, "latency must be a positive number, got -0.5"),
        (BLOCK, "1.0.0", "latency must be a positive number, got '1.0.0'"),
        (BLOCK, True, "latency must be a positive number, got True"),
        (BLOCK, False, "latency must be a positive number, got False"),
        (BLOCK, None, "latency must be a positive number, got None"),
        (BLOCK, [1.0], "latency must be a positive number, got [1.0]"),
        (BLOCK.replace("kernel3", "kernel4"), 1.0, "the kernel must be odd, got 4"),
        (
            "ConvNorm_H8_W8_Cin3_Cout16_kernel2_stride1_group1",
            1.0,
            "the kernel must be odd, got 2",
        ),
        (
            "ConvNorm_H8_W8_Cin3_Cout16_kernel3_stride1_group2",
            1.0,
            "2 groups do not divide the channels",
        ),
        (
            "AvgP_H4_W4_Cin15_Cout15_kernel2_stride1",
            1.0,
            "an average of whole maps is expected",
        ),
        (
            "AvgP_H4_W4_Cin15_Cout16_kernel4_stride1",
            1.0,
            "an average of whole maps is expected",
        ),
    ],
)
def test_operations_that_cannot_be_are_refused(name, value, fault, file):
    path = file({name: value})
    assert refused(path) == f"{path}, {name!r}: {fault}"


def test_files_that_are_no_table_are_refused(file, tmp_path):
    path = file([1.0])
    assert refused(path) == f"{path} must hold a JSON object, got list"
    path = tmp_path / "twice.json"
    path.write_text(f'{{"{BLOCK}": 1, "{BLOCK}": 2}}')
    assert refused(path) == f"{path} names {BLOCK!r} twice"
    path = file({BLOCK: -1})
    assert refused(path) == f"{path} holds no layer that can be imported"
    skip = "Skip_H8_W8_Cin16_Cout24_stride1"
    same = "ConvNorm_H8_W8_Cin16_Cout24_kernel1_stride1_group1"
    path = file({skip: 1.0, same: 1.0})
    assert refused(path) == f"{path} holds a layer twice: {skip!r} and {same!r}"
