"""The run directory: manifest, stage fingerprints, lock, atomic writes.

A stage is done when the manifest says so with the inputs at hand: its part of the configuration,
the fingerprints of the stages before it and a schema number. Anything else is never reused and
never overwritten; the message names the difference and the flag that resolves it.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from apqkit.errors import RunError

__all__ = [
    "RunDirectory",
    "StageRecord",
    "append_line",
    "fingerprint_of",
    "package_versions",
    "read_lines",
    "write_atomically",
    "write_json",
]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
_LOG = "log.txt"
_SCHEMA = 2
_VERSIONED = (
    "torch",
    "numpy",
    "scikit-learn",
    "xgboost",
    "optuna",
    "pandas",
    "onnx",
    "onnxruntime",
)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one atomic step, two spaces of indent."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one JSON line and flushes it to disk: a kill loses one line at most."""
    with path.open("ab") as file:
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, cure: str) -> list[dict[str, Any]]:
    """Reads JSON lines; a last line that a kill cut short is dropped from the file.

    Args:
        path: The file; one that does not exist has no lines.
        cure: What to do about a damaged file, for the message.

    Raises:
        RunError: A whole line is no JSON object.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, newline, rest = content.rpartition(b"\n")
    if rest:
        write_atomically(path, whole + newline)
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{path} is damaged in line {number}; {cure}")
        rows.append(row)
    return rows


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Returns a short hash of plain JSON values."""
    text = json.dumps(inputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StageRecord:
    """What the manifest keeps of a stage.

    Attributes:
        inputs: Everything that the stage depends on, by dotted name.
        status: "running" or "done".
        seconds: Time of the part that finished it; what a kill cut off is not counted.
        files: SHA-256 of every file it left, by path inside the run.
    """

    inputs: dict[str, Any]
    status: Literal["running", "done"] = "running"
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)


_RECORDS = TypeAdapter(dict[str, StageRecord])


class RunDirectory:
    """One run on disk, locked against a second process while it is open.

    Open one with :meth:`opened`.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest: dict[str, Any] = self._read_manifest()
        self._started = time.monotonic()

    @classmethod
    @contextmanager
    def opened(cls, path: Path, *, create: bool) -> Iterator["RunDirectory"]:
        """Yields the run while this process holds its lock.

        Args:
            path: The directory.
            create: Make it where it does not exist; else it must be a run.

        Raises:
            RunError: The directory cannot be written, belongs to something else, is damaged, or
                another process holds its lock.
        """
        _prepare(path, create=create)
        with _locked(path):
            run = cls(path)
            if not (path / _MANIFEST).exists():
                run._write_manifest()  # first of all files: it marks the directory as a run
            yield run

    @property
    def stages(self) -> dict[str, StageRecord]:
        """Records of the stages that have been begun, by name."""
        return _RECORDS.validate_python(self._manifest["stages"])

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Adds facts about the whole run (seed, device, ...) to the manifest."""
        self._manifest["facts"] |= facts
        self._write_manifest()

    def is_done(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Returns whether a stage is finished with exactly these inputs and intact files.

        Raises:
            RunError: It was begun with other inputs, or its files are missing or changed.
        """
        record = self.stages.get(stage)
        if record is None:
            return False
        self._refuse_changes(stage, record, inputs)
        if record.status != "done":
            return False
        for name, digest in record.files.items():
            if _digest(self.path / name) != digest:
                raise RunError(
                    f"{self.path / name} is missing, truncated or edited since stage {stage} "
                    f"wrote it; use --redo {stage} to make it again"
                )
        return True

    def begin(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Records that a stage runs and returns its directory."""
        record = self.stages.get(stage)
        self._put(stage, record or StageRecord(dict(inputs)))
        self._started = time.monotonic()
        folder = self.path / stage
        folder.mkdir(exist_ok=True)
        return folder

    def finish(self, stage: str) -> None:
        """Records that a stage is done and what it left."""
        seconds = round(time.monotonic() - self._started, 2)
        record = self.stages[stage]
        self._put(stage, StageRecord(record.inputs, "done", seconds, self._digests(stage)))

    def refresh(self, stage: str) -> None:
        """Records anew what a stage left, after something was added to it on purpose."""
        record = self.stages.get(stage)
        if record is not None and record.status == "done":
            files = self._digests(stage)
            self._put(stage, StageRecord(record.inputs, "done", record.seconds, files))

    def changed_versions(self) -> dict[str, tuple[str, str]]:
        """Returns packages whose version is not that of the run's beginning: (then, now)."""
        begun = self._manifest["versions"]
        return {
            name: (begun.get(name, "unknown"), now)
            for name, now in package_versions().items()
            if begun.get(name, "unknown") != now
        }

    def redo(self, stages: Sequence[str]) -> None:
        """Deletes what stages left and forgets them.

        The last goes first, and its files before its record: a kill in between never leaves files
        that nobody knows of, or a stage that is done on top of one that is not.

        Args:
            stages: In the order in which they run.

        Raises:
            RunError: A directory cannot be deleted.
        """
        for stage in reversed(stages):
            _delete(self.path / stage)
            if self._manifest["stages"].pop(stage, None) is not None:
                self._write_manifest()

    def log(self, text: str) -> None:
        """Appends a line with the time to log.txt."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (self.path / _LOG).open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {text}\n")

    def _refuse_changes(self, stage: str, record: StageRecord, inputs: Mapping[str, Any]) -> None:
        for name in dict.fromkeys([*inputs, *record.inputs]):  # causes come before consequences
            before, now = record.inputs.get(name), inputs.get(name)
            if before != now:
                raise RunError(
                    f"{self.path} was made with {name} = {before!r}, now {now!r} (stage {stage}): "
                    f"use --redo {stage} to make it and what follows again, or another --out"
                )

    def _digests(self, stage: str) -> dict[str, str]:
        """Digest of every file of a stage, locks aside, by path inside the run."""
        files = sorted((self.path / stage).rglob("*"))
        return {
            str(each.relative_to(self.path)): _digest(each) or ""
            for each in files
            if each.is_file() and each.suffix != ".lock"
        }

    def _put(self, stage: str, record: StageRecord) -> None:
        self._manifest["stages"][stage] = asdict(record)
        self._write_manifest()

    def _write_manifest(self) -> None:
        write_json(self.path / _MANIFEST, self._manifest)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / _MANIFEST
        if not path.exists():
            return {
                "schema": _SCHEMA,
                "versions": package_versions(),
                "machine": _machine(),
                "facts": {},
                "stages": {},
            }
        try:
            manifest = dict(json.loads(path.read_text(encoding="utf-8")))
            if manifest["schema"] == _SCHEMA:
                _RECORDS.validate_python(manifest["stages"])
                for name in ("facts", "versions", "machine"):
                    manifest[name] = dict(manifest[name])
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{path} is damaged; use another --out or delete the run") from None
        if manifest["schema"] != _SCHEMA:
            raise RunError(
                f"{path} has schema {manifest['schema']!r}, this version reads {_SCHEMA}: "
                f"use another --out"
            )
        return manifest


def _prepare(path: Path, *, create: bool) -> None:
    try:
        _refuse_foreign(path, create=create)
        path.mkdir(parents=True, exist_ok=True)
        (path / _LOCK).open("ab").close()
    except OSError as fault:
        raise RunError(f"{path} cannot be written: {fault.strerror}") from None


def _refuse_foreign(path: Path, *, create: bool) -> None:
    if not path.exists():
        if not create:
            raise RunError(f"{path} is no run directory: it does not exist")
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file; a run needs a directory")
    contents = {each.name for each in path.iterdir()} - {_LOCK, f".{_MANIFEST}.tmp"}
    if _MANIFEST in contents:
        return
    if contents:
        raise RunError(
            f"{path} is not empty and holds no run of apqkit (it has {min(contents)!r}): "
            f"use another --out"
        )
    if not create:
        raise RunError(f"{path} is no run directory: it is empty")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path / _LOCK).open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "another process"
            raise RunError(
                f"{path} is in use by {holder}; wait for it or use another --out"
            ) from None
        except OSError as fault:
            raise RunError(f"{path} cannot be locked: {fault.strerror}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _delete(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as fault:
        raise RunError(f"{folder} cannot be deleted: {fault.strerror or fault}") from None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def package_versions() -> dict[str, str]:
    """Returns the versions of Python, apqkit and the packages that its results rest on."""
    names = ("apqkit", *_VERSIONED)
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return {"python": platform.python_version(), **found}


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
    }


def processor_name() -> str:
    """Returns the processor's model name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
