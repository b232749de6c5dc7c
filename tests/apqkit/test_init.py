import statistics
import subprocess
import sys
import time

import pytest

import apqkit

HEAVY = ("torch", "numpy", "pandas", "sklearn", "scipy", "optuna", "onnx", "matplotlib", "xgboost")


def loaded_by(lines):
    """Which heavy packages a fresh process has loaded after some lines."""
    asked = f"import sys\n{lines}\nprint([each for each in {HEAVY!r} if each in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_every_name_of_the_root_is_there():
    for name in apqkit.__all__:
        assert getattr(apqkit, name) is not None, name
    assert set(apqkit.__all__) == set(apqkit._HOMES)
    assert len(set(apqkit.__all__)) == len(apqkit.__all__) <= 25


@pytest.mark.parametrize("name", apqkit.__all__)
def test_a_name_is_the_one_of_its_home(name):
    home = sys.modules.get(apqkit._HOMES[name])
    value = getattr(apqkit, name)
    home = home or sys.modules[apqkit._HOMES[name]]
    assert value is getattr(home, name)
    assert name in home.__all__


def test_completion_sees_the_names():
    assert dir(apqkit) == sorted([*apqkit.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as caught:
        apqkit.run_serch  # noqa: B018
    assert str(caught.value) == "module 'apqkit' has no attribute 'run_serch'"


def test_importing_loads_nothing_heavy():
    assert loaded_by("import apqkit") == "[]"


def test_formats_and_configurations_load_no_torch():
    """NumPy is all that they may load."""
    loaded = loaded_by(
        "import apqkit, apqkit.types\n"
        "apqkit.FORMATS, apqkit.load_config('smoke'), apqkit.ApqkitError"
    )
    assert loaded in ("[]", "['numpy']")


def test_help_loads_nothing_heavy():
    lines = "from apqkit.cli import _run\nassert _run(['--help']) == 0"
    assert loaded_by(lines) == "[]"


def test_help_answers_at_once():
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "apqkit", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.4
