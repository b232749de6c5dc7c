"""The devices that latency can be asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apqkit.config import CostConfig, SpaceConfig
from apqkit.cost.bitfusion import (
    BITFUSION_ARRAYS,
    CAPABILITY,
    BitFusionArray,
    BitFusionCost,
)
from apqkit.cost.builder import MEASURED_FILE, build_lut
from apqkit.cost.capability import ONNXRUNTIME_CPU, Capability, offered_natively
from apqkit.cost.kernels import ONNX_RUNTIME, OPENVINO
from apqkit.cost.lut import read_lut, write_lut
from apqkit.cost.lut_cost import LutCost
from apqkit.cost.roofline import ROOFLINES, Chip, RooflineCost, capability
from apqkit.errors import CostError
from apqkit.registry import did_you_mean
from apqkit.run import write_atomically
from apqkit.types import AdditiveCost, LayerTable, Progress

__all__ = ["DEVICES", "Device", "device_model", "find_device", "native_space"]


@dataclass(frozen=True)
class Device:
    """A place where latency comes from.

    Attributes:
        says: What its figures are, for reports.
        prepare: (networks, settings, file, progress) -> None; writes the table of their layers.
        load: (batch, file) -> cost model; ``file`` is what ``prepare`` wrote.
        has_table: Whether that file is a look-up table, and not a record of a simulation.
        capability: Which formats it computes natively; None where that is not known.
    """

    says: str
    prepare: Callable[[LayerTable, CostConfig, Path, Progress], None]
    load: Callable[[int, Path], AdditiveCost]
    has_table: bool = False
    capability: Capability | None = None


def _roofline(chip: Chip) -> Device:
    def prepare(
        networks: LayerTable, settings: CostConfig, file: Path, progress: Progress
    ) -> None:
        del networks, progress
        write_atomically(file, RooflineCost(chip, batch=settings.batch).data_sheet())

    says = f"roofline of {chip.name}, nothing measured; figures: {chip.source}"
    return Device(
        says,
        prepare,
        lambda batch, file: RooflineCost(chip, batch=batch),
        capability=capability(chip),
    )


def _simulator(array: BitFusionArray, says: str) -> Device:
    def prepare(
        networks: LayerTable, settings: CostConfig, file: Path, progress: Progress
    ) -> None:
        with progress.task("cost, simulating layers", 1) as advance:
            model = BitFusionCost(array, batch=settings.batch)
            model.cost(networks)
            write_atomically(file, model.priced_rows().to_csv(index=False, lineterminator="\n"))
            advance(1)

    return Device(
        says,
        prepare,
        lambda batch, file: BitFusionCost(array, batch=batch),
        capability=CAPABILITY,
    )


def _host(runtime: str, says: str) -> Device:
    def prepare(
        networks: LayerTable, settings: CostConfig, file: Path, progress: Progress
    ) -> None:
        table = build_lut(
            networks,
            batch=settings.batch,
            budget_s=settings.budget_s,
            runtime=runtime,
            progress=progress,
        )
        write_lut(file, table)

    return Device(says, prepare, _load_table, has_table=True, capability=ONNXRUNTIME_CPU)


def _load_table(batch: int, file: Path) -> AdditiveCost:
    table = read_lut(file)
    if table.header.get("batch") != str(batch):
        raise CostError(
            f"{file} was measured at batch {table.header.get('batch')}, "
            f"cost.batch asks for {batch}"
        )
    return LutCost(table)


def _table_device(source: Path) -> Device:
    def prepare(
        networks: LayerTable, settings: CostConfig, file: Path, progress: Progress
    ) -> None:
        del networks, progress
        _load_table(settings.batch, source)
        write_atomically(file, source.read_bytes())

    header = read_lut(source).header
    facts = [header[name] for name in ("device", "processor", "runtime") if name in header]
    says = f"table {source.name} of {', '.join(facts)}"
    return Device(says, prepare, _load_table, has_table=True)


_SIMULATED = (
    "simulated systolic array {}: fp8 is priced as int8, fp4 as int4; "
    "depthwise layers run as dense groups; adds and pools are free"
)

DEVICES: dict[str, Device] = {
    "host": _host(ONNX_RUNTIME, "this machine in ONNX Runtime, one thread"),
    "host-openvino": _host(OPENVINO, "this machine in OpenVINO, one thread, fp32 kept fp32"),
    **{
        name: _simulator(array, _SIMULATED.format(name))
        for name, array in BITFUSION_ARRAYS.items()
    },
    **{name: _roofline(chip) for name, chip in ROOFLINES.items()},
}
"""Devices by the name that ``cost.device`` takes; it also takes the path of a table (CSV)."""


def find_device(name: str) -> Device:
    """Returns the device of that name, or the one that a table or a measured folder describes.

    Raises:
        CostError: There is neither.
    """
    if name in DEVICES:
        return DEVICES[name]
    path = Path(name)
    if path.is_dir():
        path = path / MEASURED_FILE
        if not path.is_file():
            raise CostError(f"{name} holds no {MEASURED_FILE}: run measure.py there on the device")
        return _table_device(path)
    if path.suffix == ".csv":
        if not path.is_file():
            raise CostError(f"cost.device {name!r} is no file")
        return _table_device(path)
    hint = did_you_mean(name, DEVICES)
    raise CostError(
        f"no device named {name!r}{hint}; there are: {', '.join(sorted(DEVICES))}, "
        f"the path of a table (.csv) or of a folder that a device measured"
    )


def device_model(name: str, *, batch: int, table_path: Path) -> AdditiveCost:
    """Returns the cost model of a device.

    Args:
        name: A device, or the path of a table.
        batch: Images that are computed together.
        table_path: What the device's ``prepare`` wrote.
    """
    return find_device(name).load(batch, table_path)


def native_space(space: SpaceConfig, device: str) -> SpaceConfig:
    """Returns a space that offers what a device computes natively, of what it offered.

    Raises:
        CostError: It is not known what the device computes natively, or nothing is left.
    """
    known = find_device(device).capability
    if known is None:
        raise CostError(f"cost.native_only: it is not known what {device!r} computes natively")
    weights, activations = offered_natively(known, space.weight_formats, space.activation_formats)
    outer, _ = offered_natively(known, space.first_last_formats, space.first_last_formats)
    changed = {
        "weight_formats": weights,
        "activation_formats": activations,
        "first_last_formats": outer,
    }
    return space.model_copy(update=changed)
