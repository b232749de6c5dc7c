import pytest


@pytest.fixture(scope="session")
def data_file(public_data):
    """A file of the public data; tests skip where it is missing and say where it comes from."""

    def find(name, source):
        path = public_data / name
        if not path.exists():
            pytest.skip(f"needs {name} ({source})")
        return path

    return find
