"""The command `sam-med2d NAME ...`, which the doors scripts/NAME.py run as well.

A command is a module with `main(argv)`. It is imported when it is asked for: the list of commands needs no torch.
"""

import gc
import sys
from importlib import import_module
from types import ModuleType

from sam_med2d import __version__
from sam_med2d.cli import ending_in_one_line

COMMANDS = {  # name: the module whose main() it is, and what it does
    "predict": ("sam_med2d.commands.predict", "segment images from boxes, clicks and masks"),
    "amg": ("sam_med2d.commands.amg", "find all masks of images, without prompts"),
    "segment-volume": ("sam_med2d.commands.segment_volume", "segment a whole scan from prompts on a few slices"),
    "app": ("sam_med2d.app.start", "segment in the browser"),
    "serve": ("sam_med2d.serve.start", "a server for napari, 3D Slicer and other tools"),
    "make-index": ("sam_med2d.commands.make_index", "turn scans, label maps, masks or annotations into training data"),
    "check-index": ("sam_med2d.commands.check_index", "check every file of a data folder"),
    "pack-dataset": ("sam_med2d.commands.pack_dataset", "fill the cache of a data folder ahead of training"),
    "compare-runs": ("sam_med2d.commands.compare_runs", "compare finished test runs, with intervals and tests"),
    "convert-checkpoint": ("sam_med2d.commands.convert_checkpoint", "turn a checkpoint into a small file of weights"),
    "mix-weights": ("sam_med2d.commands.mix_weights", "mix fine-tuned weights with those that training started from"),
    "export": ("sam_med2d.commands.export", "write files with which other tools open a model"),
    "export-encoder": ("sam_med2d.commands.export_encoder", "export the image encoder to ONNX"),
    "export-decoder": ("sam_med2d.commands.export_decoder", "export the prompt encoder and mask decoder to ONNX"),
}
USAGE = "usage: sam-med2d COMMAND ...      sam-med2d COMMAND --help      sam-med2d --version"


def main() -> None:
    """The console command: a name, and that command's own flags."""
    name, *flags = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"sam-med2d {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"sam-med2d {name}", *flags]  # where argparse finds the name that usage lines show
        run(name)
    else:
        print(f"{USAGE}\nerror: there is no command {name}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)


def run(name: str, argv: list[str] | None = None) -> None:
    """Run one command with `argv`, or with the flags that the process was started with."""
    with ending_in_one_line():
        imported(COMMANDS[name][0]).main(argv)


def imported(name: str) -> ModuleType:
    """A module, imported without searching for garbage: a tenth of the time that PyTorch takes to load goes into
    looking through its functions and classes over and over, of which none is ever dropped.
    """
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()  # nor are they looked through later
        gc.enable()


def help_text() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([USAGE, "", "Promptable segmentation of 2D medical images.", "", "commands:", *lines])
