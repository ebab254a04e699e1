"""What is installed: the command, where things are found, and whose segment_anything and whose commit they are."""

import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import sam_med2d
from sam_med2d import provenance
from sam_med2d.commands import COMMANDS
from sam_med2d.inference.models import SMALL, open_model, small_weights, weights_file
from tests.conftest import ROOT

HEAVY = ("torch", "cv2", "numpy", "pandas", "scipy", "segment_anything")
LIGHT = ("sam_med2d.cli", "sam_med2d.packages", "sam_med2d.commands", "sam_med2d.__main__", "sam_med2d.seeds")


def python(*words: str, folder: Path = ROOT, path: Path = ROOT, **more) -> subprocess.CompletedProcess:
    """A Python with `path` before the installed packages."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path), "HOME": str(folder)} | more,
    )


def command(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return python("-m", "sam_med2d", *words, folder=folder)


# ---------------------------------------------------------------- the command


def test_the_list_of_commands_loads_nothing_heavy():
    code = f"import sys, sam_med2d.commands as c; c.help_text(); print([m for m in {HEAVY} if m in sys.modules])"
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr


SLOW = ("pandas", "matplotlib", "scipy", "albumentations", "pydicom", "SimpleITK", "nibabel", "onnx", "onnxruntime")
SLOW += ("openvino", "transformers", "starlette", "torch._dynamo", "torch._inductor", "sympy")


def test_from_its_start_to_a_mask_predict_loads_only_what_it_needs(tmp_path):
    """And the garbage collector, which rests while modules are imported, is at work again."""
    words = ["--input", "data_demo/images/mni152_axial_094.png", "--box", "20", "20", "150", "180"]
    words += ["--sam_checkpoint", SMALL, "--output", str(tmp_path)]
    code = f"""
import gc, sys
from sam_med2d.commands import run
run("predict", {words!r})
print([module for module in {SLOW!r} if module in sys.modules], gc.isenabled())
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1:] == ["[] True"], done.stderr
    assert (tmp_path / "annotations.json").exists()


def test_help_lists_every_command_in_one_line(tmp_path):
    for words in (["--help"], ["-h"], []):
        done = command(*words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        listed = re.findall(r"^  (\S+)  +\w.*$", done.stdout, re.MULTILINE)
        assert listed == [*COMMANDS]


def test_the_version_is_the_packages(tmp_path):
    assert command("--version", folder=tmp_path).stdout == f"sam-med2d {sam_med2d.__version__}\n"


def test_every_command_has_a_main_and_a_door():
    doors = {path.read_text() for path in (ROOT / "scripts").glob("*.py")} | {(ROOT / "app.py").read_text()}
    for name, (module, _) in COMMANDS.items():
        text = Path(find_spec(module).origin).read_text()
        assert re.search(r"^def main\(argv: list\[str\] \| None = None\)", text, re.MULTILINE), module
        assert sum(f'run("{name}")' in door for door in doors) == 1, name
        assert f"sam-med2d {name}" in text[: text.index('"""', 3)], f"the help of {name} shows no example"


def test_both_ways_of_calling_show_their_own_name_and_the_same_flags(tmp_path):
    long, door = (
        command("predict", "--help", folder=tmp_path),
        python(str(ROOT / "scripts/predict.py"), "--help", folder=tmp_path),
    )
    assert long.stdout.startswith("usage: sam-med2d predict ") and door.stdout.startswith("usage: predict.py ")
    flags = [set(re.findall(r"^  (--\w+)", done.stdout, re.MULTILINE)) for done in (long, door)]
    assert flags[0] == flags[1] and "--sam_checkpoint" in flags[0]


def test_mistakes_end_in_one_line(tmp_path):
    unknown = command("segment", folder=tmp_path)
    assert unknown.returncode == 2 and "error: there is no command segment; choose one of predict" in unknown.stderr
    nothing = command("check-index", "nowhere", folder=tmp_path)
    assert nothing.returncode == 1 and re.fullmatch(r"error: \S*nowhere: there is no such folder\n", nothing.stderr)


def test_a_command_whose_package_is_missing_names_the_extra(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "SimpleITK.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'SimpleITK'\", name='SimpleITK')\n"
    )
    for words in (["-m", "sam_med2d", "segment-volume", "--help"], [str(ROOT / "scripts/segment_volume.py"), "--help"]):
        done = python(*words, folder=tmp_path, PYTHONPATH=f"{hidden}:{ROOT}")
        wanted = (
            'error: SimpleITK is not installed: pip install "sam-med2d[data]" (in a clone: pip install -e ".[data]")\n'
        )
        assert done.returncode == 1 and done.stderr == wanted


# ---------------------------------------------------------------- what comes with the package


def test_the_small_weights_are_in_the_package_and_once_in_the_clone():
    assert small_weights().parent == Path(sam_med2d.__file__).parent / "weights" and not small_weights().is_symlink()
    assert (ROOT / "pretrain_model/vit_t_small.safetensors").resolve() == small_weights()
    assert weights_file(SMALL) == str(small_weights()) and weights_file("mine.pth") == "mine.pth"
    model = open_model(SMALL, device="cpu")
    assert model.image_size == 192 and not model.image_encoder.adapters() and model.refinement is not None


def test_both_packages_are_typed():
    assert (ROOT / "sam_med2d/py.typed").is_file() and (ROOT / "segment_anything/py.typed").is_file()


# ---------------------------------------------------------------- somebody else's segment_anything


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A folder with a package of the same name, as SAM's own distribution installs it."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "segment_anything").mkdir()
    (folder / "segment_anything/__init__.py").write_text("class SamPredictor: ...\n\nsam_model_registry = {}\n")
    return folder


def test_somebody_elses_segment_anything_is_one_line(foreign, tmp_path):
    done = python("-m", "sam_med2d", "predict", "--help", folder=tmp_path, PYTHONPATH=f"{foreign}:{ROOT}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {foreign / 'segment_anything'}: is another project's segment_anything")
    assert str(ROOT / "segment_anything") in done.stderr and "pip uninstall segment-anything" in done.stderr
    light = python("-m", "sam_med2d", "--version", folder=tmp_path, PYTHONPATH=f"{foreign}:{ROOT}")
    assert light.stdout == f"sam-med2d {sam_med2d.__version__}\n"


def test_a_door_puts_its_clone_first_and_never_meets_the_other(foreign, tmp_path):
    done = python(str(ROOT / "scripts/predict.py"), "--help", folder=tmp_path, PYTHONPATH=str(foreign))
    assert done.returncode == 0 and done.stdout.startswith("usage: predict.py"), done.stderr


def test_every_module_says_so_when_it_is_imported(foreign, tmp_path):
    """Whichever module of sam_med2d a program imports first."""
    modules = [one.name for one in pkgutil.walk_packages(sam_med2d.__path__, "sam_med2d.") if not one.ispkg]
    code = f"""
import importlib, sys
for name in {modules}:
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, type(error).__name__)
    else:
        print(name, "segment_anything" in sys.modules)
    for module in [m for m in set(sys.modules) - before if m.startswith(("sam_med2d.", "segment_anything"))]:
        del sys.modules[module]
"""
    done = python("-c", code, folder=tmp_path, PYTHONPATH=f"{foreign}:{ROOT}")
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found.keys() == set(modules)
    assert not {name: said for name, said in found.items() if said not in ("ForeignPackageError", "False")}
    assert sum(said == "ForeignPackageError" for said in found.values()) > 50  # and few need none of it
    assert all(found[name] == "False" for name in LIGHT if name in found)


def test_what_ours_lacks_is_not_blamed_on_somebody_else(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    done = python("-c", "import sam_med2d.drawing", folder=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.stderr.rstrip().endswith("ModuleNotFoundError: No module named 'torch'")


# ---------------------------------------------------------------- provenance


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """-> a function that makes provenance.py believe that it lies in a folder."""

    def place(folder: Path) -> None:
        (folder / "sam_med2d").mkdir(parents=True)
        (folder / "sam_med2d/provenance.py").write_text("# a copy\n")
        monkeypatch.setattr(provenance, "__file__", str(folder / "sam_med2d/provenance.py"))

    return place


def test_the_commit_is_that_of_a_checkout_of_this_code(tmp_path, placed):
    git(tmp_path, "init", "-q")
    placed(tmp_path)
    (tmp_path / "train.py").write_text("first\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert provenance.commit() == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "train.py").write_text("second\n")
    assert provenance.commit() == git(tmp_path, "rev-parse", "HEAD") + "+changes"


@pytest.mark.parametrize("place", ["venv/lib/python3.11/site-packages", "."])
def test_the_commit_of_somebody_elses_repository_is_not_told(place, tmp_path, placed):
    """Installed into an environment inside another repository, or unpacked into one that does not track it."""
    git(tmp_path, "init", "-q")
    (tmp_path / "notes.txt").write_text("theirs\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "theirs")
    placed(tmp_path / place)
    assert provenance.commit() is None


def test_no_git_is_no_commit(tmp_path, placed, monkeypatch):
    placed(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_versions_are_the_modules_own_and_a_missing_one_ends_nothing(monkeypatch):
    import cv2

    found = provenance.versions()
    assert found["torch"] == torch.__version__ and found["cv2"] == cv2.__version__
    assert found["sam-med2d"] == sam_med2d.__version__
    monkeypatch.setattr(provenance, "MODULES", ("torch", "no_such_module"))
    assert provenance.versions()["no_such_module"] is None


def test_a_file_that_is_gone_has_no_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    found = provenance.provenance(torch.device("cpu"), {"weights": tmp_path / "a", "data": tmp_path / "gone"})
    assert found["weights_hash"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found["data_hash"] is None
