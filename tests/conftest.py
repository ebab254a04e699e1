"""What all tests share."""

import locale
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, which keeps to itself."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    quiet = ("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
    with (
        playwright.sync_playwright() as control,
        control.chromium.launch(executable_path=chromium, args=flags) as started,
    ):
        yield started


def fails(call: Callable[[], object]) -> str:
    """The message with which a command ends, which must be one line for people."""
    with pytest.raises(SystemExit) as end:
        call()
    message = str(end.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


@contextmanager
def file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in a new folder. size: as mount takes it, such as 64k. Skips where nobody may mount."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode:
        pytest.skip("this user cannot mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
