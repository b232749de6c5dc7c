import shutil

import pytest

from apqkit.config import load_config
from apqkit.pipeline import resolved
from apqkit.pipeline.context import RunContext
from apqkit.run import RunDirectory
from apqkit.types import SilentProgress


@pytest.fixture(scope="session")
def context(smoke_run, tmp_path_factory):
    """An open copy of the finished run. Tests read it and change nothing."""
    path = shutil.copytree(smoke_run[0], tmp_path_factory.mktemp("context") / "run")
    with RunDirectory.opened(path, create=False) as run:
        yield RunContext(resolved(load_config("smoke")), run, SilentProgress())
