import numpy as np
import pytest

from apqkit.config import CostConfig, SpaceConfig
from apqkit.cost import DEVICES, device_model
from apqkit.cost.capability import native_formats, non_native, offered_natively
from apqkit.cost.roofline import ROOFLINES, Chip, RooflineCost, capability, unit_holds
from apqkit.formats import FORMATS
from apqkit.spaces.base import largest_picks
from apqkit.spaces.draws import draw_uniform
from apqkit.spaces.mobilenet import MobileNetOptions, MobileNetSpace, StageOptions
from apqkit.testing import check_cost_model

NAMES = ("int4", "int8", "fp8_e4m3", "fp4_e2m1", "bf16")


@pytest.fixture(scope="module")
def space():
    stages = (StageOptions(width=64, depth=2), StageOptions(width=128, depth=2, stride=2))
    config = SpaceConfig(weight_formats=NAMES, activation_formats=NAMES, first_last_formats=NAMES)
    options = MobileNetOptions(stages=stages, stem=32, head=128, depthwise_formats=NAMES)
    return MobileNetSpace(config, options, (3, 32, 32), 10)


@pytest.fixture(scope="module")
def largest(space):
    return space.network(largest_picks(space.dims))


def of(chip, batch=64):
    return RooflineCost(ROOFLINES[chip], batch=batch)


@pytest.mark.parametrize("chip", ROOFLINES)
def test_every_chip_is_a_sound_cost_model(chip, space):
    check_cost_model(of(chip), space.network(draw_uniform(space, 6, np.random.default_rng(0))))


@pytest.mark.parametrize("chip", ROOFLINES)
def test_a_layer_takes_as_long_as_arithmetic_or_memory(chip, largest):
    """One dense layer by hand, from the figures of the data sheet."""
    sheet, table = ROOFLINES[chip], largest.with_formats("int8", "int8")
    row = table.names.index("s1.b0.expand")
    unit = "int8" if "int8" in sheet.tera_ops else "bf16"
    width = sheet.widths[unit]
    peak = max(v for u, v in sheet.tera_ops.items() if u in ("int8", "bf16", "fp32"))
    shape = [int(getattr(table, n)[0, row]) for n in ("in_channels", "out_channels", "out_height")]
    inputs, outputs, side = shape
    padded = [-(-each // width) * width for each in (inputs, outputs)]
    arithmetic = 2 * 64 * side**2 * padded[0] * padded[1] / (peak * 1e12)
    moved = 64 * side**2 * (inputs + outputs) + inputs * outputs
    memory = moved / (sheet.bandwidth_gb_s * 1e9)
    found = of(chip).layer_latency_ms(table)[0, row]
    assert found <= max(arithmetic, memory) * 1e3 * (1 + 1e-9)
    assert found >= memory * 1e3 * (1 - 1e-9)


def test_on_tpu_v4_int8_gains_no_arithmetic_only_bytes(largest):
    model = of("tpu-v4")
    bf16, int8 = (largest.with_formats(name, name) for name in ("bf16", "int8"))
    assert np.array_equal(model.compute_ms(bf16), model.compute_ms(int8))
    convolutions = int8.macs[0] > 0
    assert (model.memory_ms(int8) < model.memory_ms(bf16))[0][convolutions].all()
    assert model.cost(int8)["latency_ms"] < model.cost(bf16)["latency_ms"]
    a100 = of("a100")
    dense = convolutions & (int8.groups[0] == 1)
    gain = a100.compute_ms(bf16)[0][dense] / a100.compute_ms(int8)[0][dense]
    assert gain.max() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("chip", "narrow", "priced_as"),
    [
        ("h100", "int4", "int8"),  # no int4 unit
        ("a100", "fp8_e4m3", "bf16"),
        ("tpu-v3", "int8", "bf16"),
        ("t4", "fp4_e2m1", "bf16"),
    ],
)
def test_formats_without_a_unit_run_in_the_next_one_that_holds_them(
    chip, narrow, priced_as, largest
):
    model = of(chip)
    found = model.compute_ms(largest.with_formats(narrow, narrow))
    assert np.array_equal(found, model.compute_ms(largest.with_formats(priced_as, priced_as)))


def test_units_hold_what_they_compute_exactly():
    held = {unit: {n for n, f in FORMATS.items() if unit_holds(unit, f)}
            for unit in ("int4", "int8", "fp8", "bf16", "fp32")}  # fmt: skip
    assert held["int4"] == {"int2", "int3", "int4", "uint2", "uint3", "uint4"}
    assert held["int8"] == {f"{s}int{b}" for s in ("", "u") for b in range(2, 9)}
    assert {"fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "fp6_e2m3", "fp6_e3m2"} <= held["fp8"]
    assert "fp8_e3m4" not in held["fp8"]  # four bits of mantissa
    assert {"bf16", "int8", "uint8", "fp8_e3m4"} <= held["bf16"]
    assert not {"int16", "fp32"} & held["bf16"]
    assert held["fp32"] == set(FORMATS)


def test_what_no_unit_holds_has_no_price(largest):
    assert np.isnan(of("tpu-v3").cost(largest.in_fp32())["latency_ms"]).all()
    assert np.isfinite(of("a100").cost(largest.in_fp32())["latency_ms"]).all()


def test_channels_fill_up_the_width_of_a_unit(largest):
    def chip(width):
        return RooflineCost(Chip("chip", {"int8": 1.0}, 1e9, {"int8": width}), batch=1)

    table = largest.with_formats("int8", "int8")
    row = table.names.index("s1.b1.project")
    inputs, outputs = int(table.in_channels[0, row]), int(table.out_channels[0, row])
    exact = chip(1).compute_ms(table)[0, row]
    assert exact == pytest.approx(2 * table.macs[0, row] / 1e12 * 1e3)
    for width in (16, 100, 512):
        padded = np.prod([-(-each // width) * width for each in (inputs, outputs)])
        assert chip(width).compute_ms(table)[0, row] == pytest.approx(
            exact * padded / (inputs * outputs)
        )


@pytest.mark.parametrize("chip", ROOFLINES)
def test_a_network_takes_the_sum_of_its_rows(chip, space):
    model, table = of(chip), space.network(draw_uniform(space, 6, np.random.default_rng(1)))
    terms = model.layer_terms(table)
    assert terms["latency_ms"].shape == table.op.shape
    sums = {name: values.sum(axis=1) for name, values in terms.items()}
    assert np.array_equal(model.totals(sums)["latency_ms"], model.cost(table)["latency_ms"])


def test_overhead_counts_once_a_layer(largest):
    table = largest.with_formats("int8", "int8")
    chips = [Chip("chip", {"int8": 1.0}, 1e3, {"int8": 1}, overhead_us=o) for o in (0.0, 5.0)]
    plain, slowed = (RooflineCost(chip, batch=1).cost(table)["latency_ms"] for chip in chips)
    layers = int((table.active & (table.op != 0)).sum())
    assert slowed - plain == pytest.approx(layers * 5e-3)


@pytest.mark.parametrize("chip", ROOFLINES)
def test_chips_are_devices(chip, space, tmp_path):
    from apqkit.types import SilentProgress

    table = space.network(draw_uniform(space, 3, np.random.default_rng(0)))
    path = tmp_path / "lut.csv"
    DEVICES[chip].prepare(table, CostConfig(device=chip, batch=8), path, SilentProgress())
    model = device_model(chip, batch=8, table_path=path)
    assert np.array_equal(
        model.cost(table)["latency_ms"], of(chip, batch=8).cost(table)["latency_ms"]
    )
    assert ROOFLINES[chip].name in DEVICES[chip].says


def test_a_core_computes_two_multiply_adds_of_its_vector_a_cycle():
    """2 units x 16 or 8 lanes x 2 operations x 2.4 GHz; int8 four times (VNNI) or twice."""
    avx512, avx2 = ROOFLINES["cpu-avx512-vnni"].tera_ops, ROOFLINES["cpu-avx2"].tera_ops
    assert avx512 == {"fp32": pytest.approx(0.1536), "int8": pytest.approx(0.6144)}
    assert avx2 == {"fp32": pytest.approx(0.0768), "int8": pytest.approx(0.1536)}


def test_on_a_core_few_bits_save_bytes_only(largest):
    model = of("cpu-avx512-vnni", batch=1)
    int4, int8, fp32 = (largest.with_formats(name, name) for name in ("int4", "int8", "fp32"))
    assert np.array_equal(model.compute_ms(int4), model.compute_ms(int8))
    assert (model.memory_ms(int4) < model.memory_ms(int8))[0][int8.macs[0] > 0].all()
    layers = int8.macs[0] > 0
    np.testing.assert_allclose(
        model.compute_ms(fp32)[0][layers], 4 * model.compute_ms(int8)[0][layers]
    )


def test_vectors_fill_up_output_channels_alone(largest):
    def chip(width, *, vector):
        return Chip("chip", {"int8": 1.0}, 1e9, {"int8": width}, vector=vector)

    table = largest.with_formats("int8", "int8")
    for name, filled in (("s1.b1.project", (1, 100)), ("s1.b1.depthwise", (100,))):
        row = table.names.index(name)
        channels = [int(getattr(table, n)[0, row]) for n in ("in_channels", "out_channels")]
        sizes = [-(-each // width) * width for each, width in zip(channels, filled, strict=False)]
        pixels = int(table.out_height[0, row] * table.out_width[0, row])
        taps = int(table.kernel[0, row]) ** 2
        found = RooflineCost(chip(100, vector=True), batch=3).compute_ms(table)[0, row]
        assert found == pytest.approx(2 * 3 * pixels * taps * np.prod(sizes) / 1e12 * 1e3)
        matrix = RooflineCost(chip(100, vector=False), batch=3).compute_ms(table)[0, row]
        assert matrix > found


@pytest.mark.parametrize(
    ("chip", "native", "others"),
    [
        ("t4", {"int4", "int8", "bf16", "fp32"}, {"int2", "int3", "fp8_e4m3", "int16"}),
        ("a100", {"int4", "int8", "bf16", "fp32"}, {"int2", "fp8_e4m3", "fp4_e2m1"}),
        ("h100", {"int8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp32"}, {"int4", "fp8_e3m4"}),
        ("tpu-v3", {"bf16"}, {"int8", "fp32"}),
        ("tpu-v4", {"bf16", "int8"}, {"int4", "fp32"}),
        ("cpu-avx512-vnni", {"int8", "fp32"}, {"int4", "bf16", "fp8_e4m3"}),
    ],
)
def test_formats_with_a_unit_of_their_own_are_native(chip, native, others):
    pairs = native_formats(capability(ROOFLINES[chip]), "linear")
    assert {(name, name) for name in native} <= pairs
    assert not others & {name for pair in pairs for name in pair}


def test_both_operands_are_native_to_one_unit(largest):
    pairs = native_formats(capability(ROOFLINES["h100"]), "conv")
    assert ("fp8_e4m3", "fp8_e5m2") in pairs
    assert ("int8", "fp8_e4m3") not in pairs
    mixed = largest.with_formats("int4", "int8")
    a100 = non_native(capability(ROOFLINES["a100"]), mixed)
    assert np.array_equal(a100, mixed.active & (mixed.weight_format >= 0))
    assert not non_native(capability(ROOFLINES["a100"]), mixed.with_formats("int8", None)).any()


def test_offered_formats_without_a_unit_are_dropped():
    offered = ("int2", "int4", "int8", "fp8_e4m3", "bf16")
    found = {
        chip: offered_natively(capability(ROOFLINES[chip]), offered, offered)[0]
        for chip in ("a100", "h100", "tpu-v3")
    }
    assert found == {
        "a100": ("int4", "int8", "bf16"),
        "h100": ("int8", "fp8_e4m3", "bf16"),
        "tpu-v3": ("bf16",),
    }
