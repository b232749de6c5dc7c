"""Cost models and the devices that latency can be asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apqkit.cost.bitfusion import BITFUSION_ARRAYS, BitFusionArray, BitFusionCost
from apqkit.cost.host import build_host_table
from apqkit.cost.lut import LutCost, read_lut, write_lut
from apqkit.cost.network import NetworkCost
from apqkit.cost.roofline import ROOFLINES, Chip, RooflineCost
from apqkit.errors import CostError
from apqkit.registry import did_you_mean
from apqkit.run import write_atomically
from apqkit.types import FloatArray, LayerTable, Progress

__all__ = [
    "DEVICES",
    "BitFusionCost",
    "Device",
    "DeviceModel",
    "LutCost",
    "NetworkCost",
    "RooflineCost",
    "device_model",
    "find_device",
]


class DeviceModel(Protocol):
    """A cost model that also prices single layers."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what it computes, units included."""

    def cost(self, table: LayerTable) -> dict[str, FloatArray]:
        """Returns ``{metric: (n,)}``; NaN where the device cannot run a candidate."""

    def layer_latency_ms(self, table: LayerTable) -> FloatArray:
        """(n, L) latency of each row."""


@dataclass(frozen=True)
class Device:
    """A place where latency comes from.

    Attributes:
        says: What its figures are, for reports.
        prepare: (networks, batch, file, progress) -> None; writes the table of their layers.
        load: (batch, file) -> cost model; ``file`` is what ``prepare`` wrote.
    """

    says: str
    prepare: Callable[[LayerTable, int, Path, Progress], None]
    load: Callable[[int, Path], DeviceModel]


def _roofline(chip: Chip) -> Device:
    def prepare(networks: LayerTable, batch: int, file: Path, progress: Progress) -> None:
        del networks, progress
        write_atomically(file, RooflineCost(chip, batch=batch).data_sheet())

    says = f"roofline of {chip.name}, nothing measured; figures: {chip.source}"
    return Device(says, prepare, lambda batch, file: RooflineCost(chip, batch=batch))


def _simulator(array: BitFusionArray, says: str) -> Device:
    def prepare(networks: LayerTable, batch: int, file: Path, progress: Progress) -> None:
        with progress.task("cost, simulating layers", 1) as advance:
            model = BitFusionCost(array, batch=batch)
            model.cost(networks)
            write_atomically(file, model.priced_rows().to_csv(index=False, lineterminator="\n"))
            advance(1)

    return Device(says, prepare, lambda batch, file: BitFusionCost(array, batch=batch))


def _prepare_host(networks: LayerTable, batch: int, file: Path, progress: Progress) -> None:
    write_lut(file, build_host_table(networks, batch=batch, progress=progress))


def _load_table(batch: int, file: Path) -> DeviceModel:
    table = read_lut(file)
    if table.header.get("batch") != str(batch):
        raise CostError(
            f"{file} was measured at batch {table.header.get('batch')}, "
            f"cost.batch asks for {batch}"
        )
    return LutCost(table)


def _table_device(source: Path) -> Device:
    def prepare(networks: LayerTable, batch: int, file: Path, progress: Progress) -> None:
        del networks, progress
        _load_table(batch, source)
        write_atomically(file, source.read_bytes())

    return Device(f"measured table {source.name}", prepare, _load_table)


_SIMULATED = (
    "simulated systolic array {}: fp8 is priced as int8, fp4 as int4; "
    "depthwise layers run as dense groups; adds and pools are free"
)

DEVICES: dict[str, Device] = {
    "host": Device("this machine in ONNX Runtime, one thread", _prepare_host, _load_table),
    **{
        name: _simulator(array, _SIMULATED.format(name))
        for name, array in BITFUSION_ARRAYS.items()
    },
    **{name: _roofline(chip) for name, chip in ROOFLINES.items()},
}
"""Devices by the name that ``cost.device`` takes; it also takes the path of a table (CSV)."""


def find_device(name: str) -> Device:
    """Returns the device of that name, or the one that a table file describes.

    Raises:
        CostError: There is neither.
    """
    if name in DEVICES:
        return DEVICES[name]
    if Path(name).suffix == ".csv":
        if not Path(name).is_file():
            raise CostError(f"cost.device {name!r} is no file")
        return _table_device(Path(name))
    hint = did_you_mean(name, DEVICES)
    raise CostError(
        f"no device named {name!r}{hint}; there are: {', '.join(sorted(DEVICES))}, "
        f"or the path of a table (.csv)"
    )


def device_model(name: str, *, batch: int, table_path: Path) -> DeviceModel:
    """Returns the cost model of a device.

    Args:
        name: A device, or the path of a table.
        batch: Images that are computed together.
        table_path: What the device's ``prepare`` wrote.
    """
    return find_device(name).load(batch, table_path)
