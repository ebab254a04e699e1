"""How commands end: a person's mistake is one line and exit status 1, a fault of the program is a traceback."""

import argparse
from importlib import import_module

import pytest

import DataLoader
import segment_anything
import utils
from sam_med2d import errors
from sam_med2d.cli import ending_in_one_line, finish
from sam_med2d.inference.models import add_backend_flags, check_backend
from sam_med2d.packages import EXTRAS, ForeignPackageError
from segment_anything import checkpoint, images, predictor, predictor_sammed
from tests.conftest import ROOT

KINDS = ("CheckpointError", "DataError", "ImageError", "PromptError", "UsageError")


def ended_with(error: BaseException) -> object:
    """The exit code of a command that raises this: a text is printed to stderr, and the exit status is 1."""

    @ending_in_one_line()
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_script_ends_with_one_line():
    with pytest.raises(SystemExit) as ended:
        finish(ValueError("file.json: not there"))
    assert ended.value.code == "error: file.json: not there"


@pytest.mark.parametrize(
    "name, words, said",
    [
        ("train", ["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        ("test", ["--prompt_modes", "circle"], "argument --prompt_modes: unknown prompt mode 'circle'"),
        ("sam_med2d.commands.predict", [], "the following arguments are required: --input"),
        ("sam_med2d.commands.make_index", ["masks", "--images"], "argument --images: expected one argument"),
        ("sam_med2d.app.start", ["--port", "x"], "argument --port: "),
    ],
)
def test_a_wrong_flag_is_said_in_one_line_and_not_below_a_list_of_all(name, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        import_module(name).parse_args(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error
    assert error.count("\n") == 1 and error.endswith("(--help lists the flags)\n") and "usage" not in error


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_person_can_mend_ends_in_one_line(kind):
    kind = getattr(errors, kind)
    assert issubclass(kind, errors.UserError) and issubclass(errors.UserError, ValueError)
    assert ended_with(kind("a.png: broken; copy it again")) == "error: a.png: broken; copy it again"


@pytest.mark.parametrize(
    "fault", [ValueError("wrong"), KeyError("a"), ModuleNotFoundError("No module named 'sam_med2d.gone'")]
)
def test_a_fault_of_the_program_passes(fault):
    @ending_in_one_line()
    def main() -> None:
        raise fault

    with pytest.raises(type(fault)) as caught:
        main()
    assert caught.value is fault


def test_a_result_passes_and_a_command_can_run_again():
    @ending_in_one_line()
    def main(number: int) -> int:
        return number

    assert [main(1), main(2)] == [1, 2]


@pytest.mark.parametrize(
    "module, line",
    [
        (
            "SimpleITK",
            'SimpleITK is not installed: pip install "sam-med2d[data]" (in a clone: pip install -e ".[data]")',
        ),
        (
            "onnxruntime.quantization",
            'onnxruntime is not installed: pip install "sam-med2d[deploy]" (in a clone: pip install -e ".[deploy]")',
        ),
    ],
)
def test_a_missing_package_of_an_extra_is_one_line(module, line):
    assert ended_with(ModuleNotFoundError(f"No module named {module!r}", name=module)) == f"error: {line}"


def test_a_part_that_a_package_lacks_is_no_missing_package():
    with pytest.raises(ImportError, match="cannot import"), ending_in_one_line():
        raise ImportError("cannot import name 'ReadImage'", name="SimpleITK")


def test_somebody_elses_package_is_one_line():
    assert ended_with(ForeignPackageError("/x: is another")) == "error: /x: is another"


def test_every_extra_of_the_table_is_declared_and_brings_its_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    with open(ROOT / "pyproject.toml", "rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    brought_as = {"PIL": "pillow", "python_multipart": "python-multipart"}
    for module, extra in EXTRAS.items():
        name = brought_as.get(module, module)
        assert any(one.partition(">")[0].partition("=")[0] == name for one in declared[extra]), (module, extra)


def test_old_places_hand_the_errors_on():
    assert utils.UsageError is errors.UsageError and DataLoader.DataError is errors.DataError
    assert segment_anything.PromptError is predictor.PromptError is predictor_sammed.PromptError is errors.PromptError
    assert segment_anything.ImageError is images.ImageError is errors.ImageError
    assert checkpoint.CheckpointError is segment_anything.CheckpointError is errors.CheckpointError


# ---------------------------------------------------------------- flags of models


def backend_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_backend_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words, backend",
    [([], "pytorch"), (["--backend", "pytorch"], "pytorch"), (["--backend", "torch"], "pytorch")]
    + [
        (["--backend", name, "--encoder_model", "e", "--decoder_model", "d"], name)
        for name in ("onnxruntime", "openvino")
    ],
)
def test_backends_have_one_name_and_the_old_one_is_taken(words, backend):
    args = backend_of(*words)
    check_backend(args)
    assert args.backend == backend


@pytest.mark.parametrize(
    "words, said",
    [
        (["--encoder_model", "e.onnx"], "say with which --backend"),
        (["--backend", "openvino", "--encoder_model", "e.onnx"], "openvino needs --encoder_model and --decoder_model"),
        (
            ["--backend", "openvino", "--encoder_model", "e.onnx", "--decoder_model", "d.onnx", "--compile"],
            "--compile is for --backend pytorch",
        ),
        (["--threads", "0"], "--threads must be at least 1, not 0"),
    ],
)
def test_backend_flags_that_contradict_each_other(words, said):
    with pytest.raises(errors.UsageError, match=said):
        check_backend(backend_of(*words))


def test_an_unknown_backend_is_refused(capsys):
    with pytest.raises(SystemExit):
        backend_of("--backend", "tensorflow")
    assert "pytorch" in capsys.readouterr().err
