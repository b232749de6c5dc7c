import os
import subprocess
import sys
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--data", default=None, help="folder with the public data sets")


@pytest.fixture(scope="session")
def public_data(request):
    """The folder with public data, from --data or APQKIT_DATA; tests that need it skip without."""
    named = request.config.getoption("--data") or os.environ.get("APQKIT_DATA")
    if not named:
        pytest.skip("needs public data: name their folder by --data or APQKIT_DATA")
    return Path(named)


@pytest.fixture(scope="session")
def run_apqkit():
    """Runs the command line in a process of its own and returns what came back."""

    def run(*arguments, cwd=None, check=True):
        command = [sys.executable, "-m", "apqkit", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
        if check and done.returncode:
            raise AssertionError(f"{arguments} ended with {done.returncode}: {done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, run_apqkit):
    """A finished run of the smoke configuration: its directory and what the command printed."""
    path = tmp_path_factory.mktemp("smoke") / "run"
    return path, run_apqkit("run-search", "smoke", "--out", path)
