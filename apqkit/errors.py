"""The errors that apqkit raises on purpose. Each text is one line: what, where, allowed, got.

ApqkitError                 anything a user can mend; the shell prints the text and exits with 2
├── ConfigError             the configuration: unknown key, wrong type, out of range
├── UnknownNameError        a name that no table holds (format, space, data set, device, ...)
├── DataError               images or labels: missing file, broken file, wrong shape
├── FormatError             a number format that cannot do what is asked of it
├── CalibrationError        a quantized layer that cannot be frozen, or is not yet
│   └── NonFiniteError      a tensor holds NaN or infinities
├── CostError               a cost that cannot be computed for these layers
├── LimitError              a limit that no candidate can meet, with the best attainable value
├── RunError                a run directory: foreign, locked, changed, damaged
├── TrainingError           training that diverged
└── ExportError             a model that cannot be written or run
"""

__all__ = [
    "ApqkitError",
    "CalibrationError",
    "ConfigError",
    "CostError",
    "DataError",
    "ExportError",
    "FormatError",
    "LimitError",
    "NonFiniteError",
    "RunError",
    "TrainingError",
    "UnknownNameError",
]


class ApqkitError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(ApqkitError):
    """The configuration has an unknown key, a wrong type or a value out of range."""


class UnknownNameError(ApqkitError):
    """A name is in no table of its kind."""


class DataError(ApqkitError):
    """Images or labels are missing, broken or of the wrong shape."""


class FormatError(ApqkitError):
    """A number format cannot do what is asked of it."""


class CalibrationError(ApqkitError):
    """A quantized layer has no range yet, or cannot get one."""


class NonFiniteError(CalibrationError):
    """A tensor that is to be quantized holds NaN or infinities."""


class CostError(ApqkitError):
    """A cost cannot be computed for these layers."""


class LimitError(ApqkitError):
    """No candidate can meet a limit."""


class RunError(ApqkitError):
    """A run directory is foreign, locked, changed or damaged."""


class TrainingError(ApqkitError):
    """Training diverged."""


class ExportError(ApqkitError):
    """A model cannot be written or run."""
