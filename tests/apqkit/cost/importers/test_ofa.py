import pytest

from apqkit.cost.importers import import_table
from apqkit.cost.keys import key_text
from apqkit.errors import CostError

# Excerpts of tutorial/checkpoints/latency_table@note10/160_lookup_table.yaml of
# github.com/mit-han-lab/once-for-all, and of pixel_trim.yaml of ProxylessNAS' latency tools.
NOTE10 = """\
AvgPool2D-input:5x5x1152-output:1x1x1152:
  count: 491
  mean: 0.008482688391038698
  std: 0.0006733248071883371
Conv-input:160x160x3-output:80x80x24:
  count: 498
  mean: 0.495562248995984
  std: 0.010239557348882489
Conv_1-input:5x5x192-output:5x5x1152:
  count: 498
  mean: 0.4456807228915663
  std: 0.021099412568183217
Conv_2-input:1x1x1152-output:1x1x1536:
  count: 498
  mean: 0.7474116465863454
  std: 0.09968561638146704
Logits-input:1x1x1536-output:1000:
  count: 499
  mean: 0.656440881763527
  std: 0.07729654276272765
expanded_conv-input:10x10x136-output:5x5x192-expand:544-kernel:7-stride:2-idskip:0-se:1-hs:1:
  count: 48
  mean: 0.928375
  std: 0.0282655746153043
expanded_conv-input:80x80x24-output:80x80x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0:
  count: 499
  mean: 0.8487194388777555
  std: 0.021209080439092955
"""
PIXEL = """\
Conv-input:224x224x3-output:112x112x32:
  count: 949
  mean: 4.397037934668071
  var: 0.1562765530967112
Conv_1-input:7x7x320-output:7x7x1280:
  count: 949
  mean: 6.28499578503688
  var: 0.43429750694010927
Logits-input:7x7x1280-output:1000:
  count: 949
  mean: 0.9348261327713382
  var: 0.1500926595152672
expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0:
  count: 154
  mean: 6.978000000000001
  var: 0.09233606040950651
"""
BLOCK = "expanded_conv-input:8x8x16-output:4x4x24-expand:3-kernel:5-stride:2-idskip:0"
CHANNELS = {"device": "Note10", "expand": "channels"}
RATIO = {"device": "Pixel", "expand": "ratio"}


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return path

    return write


def refused(path, options=RATIO):
    with pytest.raises(CostError) as caught:
        import_table("ofa", path, options)
    return str(caught.value)


def named(table):
    return {key_text(key): ms for key, ms in zip(table.keys, table.latency_ms, strict=True)}


def test_a_table_of_once_for_all_is_read(file):
    table = import_table("ofa", file(NOTE10), CHANNELS)
    fp32 = "weight_format fp32 activation_format fp32"
    assert named(table) == {
        "global_pool in_channels 1152 out_channels 1152 stride 1 groups 1 in_height 5 in_width 5 "
        "activation_format fp32": 0.008482688391038698,
        "conv in_channels 3 out_channels 24 kernel 3 stride 2 groups 1 in_height 160 in_width 160 "
        + fp32: 0.495562248995984,
        "conv in_channels 192 out_channels 1152 kernel 1 stride 1 groups 1 in_height 5 in_width 5 "
        + fp32: 0.4456807228915663,
        "conv in_channels 1152 out_channels 1536 kernel 1 stride 1 groups 1 in_height 1 "
        "in_width 1 " + fp32: 0.7474116465863454,
        "linear in_channels 1536 out_channels 1000 kernel 1 stride 1 groups 1 in_height 1 "
        "in_width 1 " + fp32: 0.656440881763527,
        "inverted_residual in_channels 136 hidden_channels 544 out_channels 192 kernel 7 stride 2 "
        "groups 544 in_height 10 in_width 10 activation h_swish squeeze_excite 1 "
        + fp32: 0.928375,
        "inverted_residual in_channels 24 hidden_channels 24 out_channels 24 kernel 3 stride 1 "
        "groups 24 in_height 80 in_width 80 activation relu residual 1 "
        + fp32: 0.8487194388777555,
    }  # fmt: skip
    assert table.count.tolist() == [491, 498, 498, 498, 499, 48, 499]
    assert table.spread_ms[5] == pytest.approx(0.0282655746153043)
    assert table.header["free_ops"] == "input add"


def test_a_table_of_proxylessnas_is_read(file):
    table = import_table("ofa", file(PIXEL), RATIO)
    fp32 = "weight_format fp32 activation_format fp32"
    assert named(table) == {
        "conv in_channels 3 out_channels 32 kernel 3 stride 2 groups 1 in_height 224 in_width 224 "
        + fp32: 4.397037934668071,
        "conv in_channels 320 out_channels 1280 kernel 1 stride 1 groups 1 in_height 7 in_width 7 "
        + fp32: 6.28499578503688,
        "linear in_channels 1280 out_channels 1000 kernel 1 stride 1 groups 1 in_height 7 "
        "in_width 7 " + fp32: 0.9348261327713382,
        "inverted_residual in_channels 16 hidden_channels 48 out_channels 24 kernel 5 stride 2 "
        "groups 48 in_height 112 in_width 112 activation relu6 " + fp32: 6.978000000000001,
    }  # fmt: skip
    assert table.spread_ms[0] == pytest.approx(0.1562765530967112**0.5)  # it has variances
    assert table.header["free_ops"] == "input add global_pool"  # logits average first


def test_the_meaning_of_expand_must_fit_the_table(file):
    path = file(PIXEL)
    name = PIXEL.splitlines()[-4][:-1]
    assert refused(path, {**RATIO, "expand": "channels"}) == (
        f"{path}, {name!r}: 3 hidden channels are fewer than the 16 read; take expand as 'ratio'"
    )
    path = file(NOTE10)
    name = NOTE10.splitlines()[-8][:-1]
    assert refused(path) == (f"{path}, {name!r}: 544 is no ratio; take expand as 'channels'")


@pytest.mark.parametrize(
    "name",
    [
        BLOCK.replace("expanded_conv", "mbconv"),
        BLOCK + "-se:1",
        BLOCK + "-se:1-hs:2",
        BLOCK.replace("-kernel:5", ""),
        BLOCK.replace("8x8x16", "8x8"),
        "Conv_3-input:5x5x192-output:5x5x1152",
        "Conv-input:160x160x3",
        "Logits-input:1x1x1536-output:1x1x1000",
        "Logits-input:1536-output:1000",
    ],
)
def test_names_of_another_grammar_are_refused(name, file):
    path = file(f"{name}:\n  mean: 1.0\n")
    assert refused(path) == (
        f"{path}, {name!r}: expected expanded_conv, Conv, Conv_1, Conv_2, AvgPool2D or Logits "
        f"with the shapes of input and output"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{BLOCK}:\n  count: 3\n", f", '{BLOCK}': it has no mean"),
        (f"{BLOCK}:\n  mean: 0.0\n", f", '{BLOCK}': mean must be a positive number, got 0.0"),
        (f"{BLOCK}:\n  mean: -0.5\n", f", '{BLOCK}': mean must be a positive number, got -0.5"),
        (f"{BLOCK}:\n  mean: .inf\n", ", line 2: expected 'name: number', got 'mean: .inf'"),
        (f"{BLOCK}:\n  mean: 1\n{BLOCK}:\n  mean: 1\n", f", line 3: '{BLOCK}' is there twice"),
        (
            f"{BLOCK.replace('4x4', '5x5')}:\n  mean: 1\n",
            f", '{BLOCK.replace('4x4', '5x5')}': at stride 2 the output must be 4x4, got 5x5",
        ),
        (
            "Conv-input:8x8x3-output:8x8x24:\n  mean: 1\n",
            ", 'Conv-input:8x8x3-output:8x8x24': at stride 2 the output must be 4x4, got 8x8",
        ),
        (
            "AvgPool2D-input:8x8x3-output:1x1x24:\n  mean: 1\n",
            ", 'AvgPool2D-input:8x8x3-output:1x1x24': an average of whole maps is expected",
        ),
        (
            "AvgPool2D-input:8x8x3-output:2x2x3:\n  mean: 1\n",
            ", 'AvgPool2D-input:8x8x3-output:2x2x3': an average of whole maps is expected",
        ),
        (
            "Conv_1-input:1x1x3-output:1x1x4:\n  mean: 1\n"
            "Conv_2-input:1x1x3-output:1x1x4:\n  mean: 1\n",
            " holds a layer twice: 'Conv_1-input:1x1x3-output:1x1x4' and "
            "'Conv_2-input:1x1x3-output:1x1x4'",
        ),
        ("", " holds no layer that can be imported"),
    ],
)
def test_tables_that_cannot_be_are_refused(text, fault, file):
    path = file(text)
    assert refused(path) == f"{path}{fault}"
