"""What all tests share."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the scripts and modules at the top are not an installed package


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded outputs and demo data beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder
