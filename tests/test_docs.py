"""What README, docs and CONTRIBUTING name is there: paths, links, commands, flags, imports. The README's commands run.

A code block without a language holds commands, line by line; one with `text` holds anything else.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import pytest
import torch

import sam_med2d
from sam_med2d.commands import COMMANDS
from sam_med2d.evaluation import metrics
from segment_anything import sam_model_registry
from segment_anything.checkpoint import read_weights
from tests.conftest import ROOT
from tests.test_house import FLOORS

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WEIGHTS = ROOT / "pretrain_model/vit_t_phantoms.safetensors"

# What a reader has or gets, and the repository has not.
FOREIGN_WEIGHTS = ("pretrain_model/sam_vit_b_01ec64.pth", "pretrain_model/sam-med2d_b.pth")
READERS = (
    r"/path/to/\S+",
    r"(\.\./)*(workdir|data|cache|sam-med2d_b)\b\S*",
    r"(scan|sheet)\.png|images/|prompts\.(csv|json)|ct\.nii\.gz|dicom_folder/|labels\.nii\.gz|\.\./data_demo",
)
READERS_DATA = ("data.md", "first_day.md")  # whose commands name the folders of the sources that they read, or make
FOREIGN_FLAGS = {"--nproc_per_node", "--logdir", "--out", "--help", "--version"}  # --out: of zip
GONE = {"CHANGELOG.md": r"requirements-\w+\.txt|metrics\.py"}  # what a page names because it is no more

# ---------------------------------------------------------------- pages


class Block(NamedTuple):
    language: str
    text: str


class Command(NamedTuple):
    """words: of one command, without variables before it; folder: where a `cd` has led to."""

    words: tuple[str, ...]
    folder: Path


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*one) for one in found]


def prose_of(page: Path) -> str:
    return re.sub(r"^ *```\w*\n.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[Command]:
    commands = []
    for block in blocks_of(page):
        if block.language:
            continue
        folder, waiting = ROOT, ""
        for line in block.text.replace("\\\n", " ").splitlines():
            waiting += line + "\n"
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            waiting = ""
            for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
                own = [word for i, word in enumerate(shlex.split(part)) if i or not re.fullmatch(r"[A-Z_]+=.*", word)]
                if own[:1] == ["cd"]:
                    folder = folder / own[1]
                elif own:
                    commands.append(Command(tuple(own), folder))
        assert not waiting, f"{page.name}: a quotation has no end: {waiting}"
    return commands


ON_PAGES = [(page, command) for page in PAGES for command in commands_of(page)]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_command = pytest.mark.parametrize(
    "page, command", ON_PAGES, ids=[f"{page.name}-{' '.join(command.words)[:60]}" for page, command in ON_PAGES]
)


def script_and_words(command: Command) -> tuple[str, list[str]] | None:
    """("train.py", its words), ("sam-med2d predict", its words); None for a command that is not this project's."""
    first, *rest = command.words
    if first == "sam-med2d" and not rest[0].startswith("-"):
        return f"sam-med2d {rest[0]}", rest[1:]
    if first == "torchrun":
        place = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        return rest[place], rest[place + 1 :]
    if Path(first).name in ("python", "python3") and not rest[0].startswith("-"):
        return str((command.folder / rest[0]).relative_to(ROOT)), rest[1:]
    return None


# ---------------------------------------------------------------- parsers


@cache
def module_of(script: str) -> ModuleType:
    """The module that a command or a script runs, with its parse_args and main; a door's is that of its command."""
    if script.startswith("sam-med2d "):
        return importlib.import_module(COMMANDS[script.removeprefix("sam-med2d ")][0])
    if door := re.search(r"^    run\(\"([\w-]+)\"\)$", (ROOT / script).read_text(encoding="utf-8"), re.MULTILINE):
        return module_of(f"sam-med2d {door[1]}")
    spec = importlib.util.spec_from_file_location(f"documented_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reached(BaseException):
    """Carries the parser of a script out of it."""


@cache
def flags_of(script: str, *words: str) -> frozenset[str]:
    """All flags of a script, those of its subcommands included."""

    def reach(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Reached(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", reach)
        patch.setattr(sys, "argv", [script, *words])
        with pytest.raises(Reached) as reached:
            module_of(script).parse_args()
    parsers, flags = [reached.value.args[0]], set()
    for parser in parsers:
        flags |= parser._option_string_actions.keys()
        subcommands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parsers += [one for action in subcommands for one in action.choices.values()]
    return frozenset(flags)


@cache
def all_flags() -> frozenset[str]:
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if path.name != "benchmark.py"]
    scripts = [f"scripts/{path.name}" for path in scripts if "\ndef parse_args(" in path.read_text(encoding="utf-8")]
    commands = [f"sam-med2d {name}" for name in COMMANDS]
    benchmarks = [flags_of("scripts/benchmark.py", area) for area in ("encode", "data", "deploy", "curves")]
    return frozenset.union(*map(flags_of, ["train.py", "test.py", *scripts, *commands]), *benchmarks)


# ---------------------------------------------------------------- what is named is there


@each_command
def test_a_command_is_known_and_its_words_are_parsed(page, command, monkeypatch, capsys):
    """By the parser of its own script: flags, values, what is required and what excludes what."""
    first, *rest = command.words
    assert command.folder.is_dir(), f"{page.name}: there is no folder {command.folder}"
    if found := script_and_words(command):
        script, words = found
        if not script.startswith("sam-med2d"):
            assert (ROOT / script).is_file(), f"{page.name}: there is no {script}"
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= flags_of(script, *words[:1]), f"{page.name}: {shlex.join(command.words)}"  # no abbreviations
        monkeypatch.setattr(sys, "argv", [script, *words])
        try:
            module_of(script).parse_args()
        except SystemExit as end:
            assert not end.code and "--help" in words, (
                f"{page.name}: {shlex.join(command.words)}: {capsys.readouterr().err}"
            )
    elif first == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets and all("=" in word for word in rest[1:])
    elif first == "pip":
        check_pip(rest)
    elif rest[:1] == ["-c"]:
        compile(rest[1], page.name, "exec")
    else:
        known = (("tensorboard", "--logdir"), ("pre-commit", "install"), ("sam-med2d", "--help"), ("-m", "pytest"))
        assert any(pair in zip(command.words, command.words[1:]) for pair in known)


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    options = [word for word in words[1:] if word.startswith("-")]
    (what,) = [word for word in words[1:] if not word.startswith("-")]
    if options == ["-r"]:
        assert (ROOT / what).is_file()
    elif what.startswith("."):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [extra for extra in what[1:].strip("[]").split(",") if extra]
        assert {*extras} <= project["optional-dependencies"].keys()
    else:
        assert what == "nilearn"


@each_page
def test_files_and_folders_of_commands_exist(page):
    """Or they are a reader's own, by a name that is listed above."""
    for command in commands_of(page):
        for word in command.words[1:]:
            path_like = re.fullmatch(r"[\w./-]*[\w-]/[\w./-]*|[\w-]+\.(png|pth|json|csv|nii\.gz|onnx|txt|py|md)", word)
            if not path_like or word in FOREIGN_WEIGHTS or any(re.fullmatch(own, word) for own in READERS):
                continue
            top = word.split("/")[0]
            if page.name in READERS_DATA and not (ROOT / top).exists():
                continue
            assert (command.folder / word).exists(), f"{page.name}: there is no {word} ({shlex.join(command.words)})"


@each_page
def test_paths_in_the_text_exist(page):
    for span in re.findall(r"`([^`\n]+)`", prose_of(page)):
        name = span.split()[-1] if span.startswith(("python ", "python3 ")) else span
        if re.fullmatch(GONE.get(page.name, "(?!)"), name) or name in FOREIGN_WEIGHTS or "NAME" in name:
            continue
        if re.fullmatch(r"(sam_med2d|segment_anything)(\.\w+)+", name):
            assert resolved(name), f"{page.name}: there is no {name}"
        elif re.fullmatch(r"[\w.-]+\.(py|ipynb)", name):
            places = [*ROOT.glob("*.*"), *ROOT.glob("scripts/*"), *ROOT.glob("sam_med2d/commands/*.py")]
            assert name in [path.name for path in places], f"{page.name}: there is no {name}"
        elif re.fullmatch(r"[\w.-]+/[\w./-]*", name) and (ROOT / name.split("/")[0]).exists():
            assert (ROOT / name).exists() or name.startswith("workdir/"), f"{page.name}: there is no {name}"


def resolved(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        return False
    try:
        importlib.import_module(name)
        return True
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return hasattr(importlib.import_module(module), last)


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: there is no {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]
            assert heading in slugs, f"{page.name}: {name} has no heading #{heading}"


@each_page
def test_flags_in_the_text_exist(page):
    spans = " ".join(re.findall(r"`([^`\n]+)`", prose_of(page)))
    flags = {*re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", spans)}
    unknown = flags - all_flags() - FOREIGN_FLAGS
    assert not unknown, f"{page.name}: {sorted(unknown)}"


@each_page
def test_imports_of_python_examples_exist(page):
    for block in blocks_of(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(re.sub(r"^   ", "", block.text, flags=re.MULTILINE))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names), f"{page.name}: {ast.unparse(node)}"


def test_the_floors_of_contributing_are_those_that_are_held():
    (drawn,) = [block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if block.language == "text"]
    scripts, *rooms = [{*line.split()} for line in drawn.splitlines()]
    rooms[-1].remove("segment_anything")
    assert (scripts, *rooms) == ({"train.py", "test.py", "app.py", "scripts", "sam_med2d.commands"}, *FLOORS[1:])


def test_one_version_everywhere():
    changes = re.search(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {changes[1]}\n" in citation and f'\ndate-released: "{changes[2]}"\n' in citation
    assert sam_med2d.__version__ == changes[1]


# ---------------------------------------------------------------- the README's commands run

# Added to a command, so that it takes a second and the small model.
SHORT = {
    "train.py": "--model_type vit_t --image_size 64 --epochs 1 --iter_point 1 --mask_num 1 --num_workers 0 "
    "--prompt_modes bbox",
    "test.py": "--model_type vit_t --image_size 64 --num_workers 0 --report False",
    "scripts/compare_runs.py": "--resamples 20",
    "scripts/make_index.py": "",
    "scripts/check_index.py": "--num_workers 1 --allow case",  # the demo's one brain is in all splits
    "scripts/pack_dataset.py": "--num_workers 0 --image_size 64",
    "sam-med2d predict": "--image_size 64",
    "sam-med2d amg": "--image_size 64 --points-per-side 2",
    "sam-med2d segment-volume": "",
}
# Commands that run elsewhere: by which test, or why not at all.
ELSEWHERE = {
    "make demo": None,  # minutes; its figures are those of the page
    "make test": None,  # is what runs this
    "pip install": None,  # make test and .ci/run do it
    "sam-med2d --help": None,  # .ci/run
    "tensorboard --logdir": None,  # a server of TensorBoard's
    "torchrun --nproc_per_node": "tests/test_scoring_script.py::test_two_processes_change_nothing",
    "sam-med2d app": "tests/app/test_app.py::test_upload_click_undo_box_download_in_a_browser",
    "python3 scripts/export_onnx_encoder_model.py": "tests/export/test_export.py::test_exports_end_with_a_comparison",
    "python3 scripts/export_onnx_model.py": "tests/export/test_export.py::test_exports_end_with_a_comparison",
    "python3 main.py": "tests/export/test_export.py::test_the_example_gives_the_predictors_masks",
}
IMAGES_A_SPLIT = {"train": 2, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder like the clone, with few images, and with the small model in the files of published weights."""
    folder = tmp_path_factory.mktemp("clone")
    data, weights = folder / "data_demo", folder / "pretrain_model"
    for one in (data / "images", folder / "data", weights):
        one.mkdir(parents=True)
    (data / "masks").symlink_to(ROOT / "data_demo/masks")
    (data / "metadata.csv").symlink_to(ROOT / "data_demo/metadata.csv")
    images = ["data_demo/images/mni152_axial_094.png"]
    for split, count in IMAGES_A_SPLIT.items():
        index = json.loads((ROOT / f"data_demo/image2label_{split}.json").read_text())
        kept = dict([*index.items()][:count])
        (data / f"image2label_{split}.json").write_text(json.dumps(kept))
        images += kept
    masks = json.loads((ROOT / "data_demo/label2image_test.json").read_text())
    kept = {mask: image for mask, image in masks.items() if image in images}
    (data / "label2image_test.json").write_text(json.dumps(kept))
    for image in {*images}:
        (folder / image).symlink_to(ROOT / image)
    (folder / "data/mine").symlink_to(data)

    torch.manual_seed(0)
    (weights / WEIGHTS.name).symlink_to(WEIGHTS)
    plain, adapted = (folder / name for name in FOREIGN_WEIGHTS)
    torch.save(read_weights(WEIGHTS), plain)
    model = sam_model_registry["vit_t"](image_size=128, encoder_adapter=True, checkpoint=str(WEIGHTS))
    torch.save({"model": model.state_dict()}, adapted)
    return folder


def test_the_readmes_commands_run_in_its_order(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    for command in commands_of(README):
        found = script_and_words(command)
        if " ".join(command.words[:2]) in ELSEWHERE:
            continue
        script, words = found
        words += SHORT[script].split() * ("--help" not in words) + ["--epochs", "2"] * ("--resume" in words)
        monkeypatch.setattr(sys, "argv", [script, *words])
        try:
            module_of(script).main()
        except SystemExit as end:
            assert not end.code, f"{shlex.join(command.words)}: {end.code} {capsys.readouterr().err}"
    written = "models/try/best.pth models/mine/last.pth models/ft-sam/best.pth sammed/rows.csv sammed/masks/bbox "
    written += "more/prompts.json star/results.json again/rows.csv predict/objects.csv everything ../sheet.png ../cache"
    missing = [path for path in written.split() if not (clone / "workdir" / path).exists()]
    assert not missing


def test_commands_that_run_elsewhere_do():
    used = {" ".join(command.words[:2]) for command in commands_of(README)}
    assert not ELSEWHERE.keys() - used - {"sam-med2d --help"}, "listed, and no more in the README"
    for test in filter(None, ELSEWHERE.values()):
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_the_readmes_python_runs(clone, monkeypatch):
    monkeypatch.chdir(clone)
    (example,) = [block.text for block in blocks_of(README) if block.language == "python"]
    names = {"image": cv2.imread("data_demo/images/mni152_axial_094.png")}
    exec(example.replace('"vit_b"', '"vit_t"').replace("256", "64"), names)
    height, width = names["image"].shape[:2]
    assert names["masks"].shape == (3, height, width) and names["iou"].shape == (3,)
    assert names["low_res"].shape == (3, 16, 16)


def test_the_example_of_a_metric_is_one():
    """CONTRIBUTING's: areas of 2 and 4 pixels, and two empty masks."""
    (example,) = [block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if block.language == "python"]
    names = dict(vars(metrics))
    exec(textwrap.dedent(example), names)
    predicted, truth = torch.zeros(2, 3, 3, dtype=torch.bool), torch.zeros(2, 3, 3, dtype=torch.bool)
    predicted[0, 0, :2], truth[0, 1:, 1:] = True, True
    values = names["volume_similarity"](predicted, truth, from_logits=False)
    assert values.tolist() == pytest.approx([1 - 2 / 6, 1])
