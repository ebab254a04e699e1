"""The tools of others are installed in the versions that pyproject.toml and docs/interop.md name."""

import re
from importlib import metadata

import pytest

from tests.conftest import ROOT
from tests.test_docs import tomllib

PIN = re.compile(r"([\w.-]+)==([\w.]+)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALONE = (ROOT / "tests_clients/without_dependencies.txt").read_text()
NEEDED = [*PROJECT["optional-dependencies"]["clients"], *ALONE.splitlines()]
TOOLS = [line for line in NEEDED if PIN.fullmatch(line)]  # not what they need besides, which has ranges


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_is_of_the_version_that_was_checked(tool: str) -> None:
    name, version = PIN.fullmatch(tool).groups()
    assert metadata.version(name) == version
    line = next(line for line in (ROOT / "docs/interop.md").read_text().splitlines() if f"`{name}`" in line)
    assert version in line


def test_the_segment_anything_that_they_find_is_ours() -> None:
    import segment_anything

    assert (ROOT / "segment_anything/__init__.py").samefile(segment_anything.__file__)
