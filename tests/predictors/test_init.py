import subprocess
import sys

import predictors

CHECK = """
import sys
import {module}
loaded = [name for name in ("torch", "apqkit", "xgboost") if name in sys.modules]
assert not loaded, loaded
"""


def run(code):
    return subprocess.run(  # in an empty folder: nothing of the checkout is importable by chance
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


def test_importing_predictors_loads_neither_torch_nor_apqkit():
    for module in ("predictors", "predictors.testing"):
        result = run(CHECK.format(module=module))
        assert result.returncode == 0, result.stderr


def test_the_probe_notices_what_is_loaded():
    assert run("import torch\n" + CHECK.format(module="predictors")).returncode == 1


def test_every_public_name_exists_and_is_listed_once():
    assert sorted(set(predictors.__all__)) == sorted(predictors.__all__)
    assert all(hasattr(predictors, name) for name in predictors.__all__)
