"""The Dockerfile without Docker: what it copies is there, and what it starts is understood."""

import json
import re
import shlex
from importlib import import_module

import pytest

from sam_med2d.commands import COMMANDS
from tests.conftest import ROOT
from tests.test_docs import tomllib

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def arguments(word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in LINES if line.startswith(f"{word} ")]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in arguments("COPY") if "--from" not in line for source in shlex.split(line)[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in kept)


def test_what_the_package_is_built_from_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"][0]}
    needed |= {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert needed <= set(" ".join(arguments("COPY")).split())
    (extras,) = re.findall(r"/source\[(.+?)\]", "\n".join(LINES))
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    assert re.search("^torch==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)


def test_it_starts_the_server_for_a_plain_user() -> None:
    (entry,), (command,) = arguments("ENTRYPOINT"), arguments("CMD")
    program, (name, *flags) = json.loads(entry), json.loads(command)
    assert program == ["sam-med2d"] and name in COMMANDS
    pytest.importorskip("starlette")
    args = import_module(COMMANDS[name][0]).parse_args(flags)
    assert args.host == "0.0.0.0" and [str(args.port)] == arguments("EXPOSE")
    user = next(number for number, line in enumerate(LINES) if line.startswith("USER "))
    assert user < LINES.index(f"ENTRYPOINT {entry}") and "root" not in LINES[user]
