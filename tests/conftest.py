"""What all tests share."""

import locale
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LETTERS = locale.setlocale(locale.LC_CTYPE)  # of the machine, as it was when the tests began


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Libraries for scans set the locale of the whole process to C, and the next test could read no bar of progress."""
    locale.setlocale(locale.LC_CTYPE, LETTERS)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded outputs and demo data beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
