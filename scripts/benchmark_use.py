"""What people wait for: everything mode, a volume, the start of a command, a click in the app and in tools that ask
the server; for scripts/benchmark.py everything, volume, start, app and serve.

Beside each stands what it cannot do without: the encoder's passes, or Python with PyTorch.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from app_client import ROOT, Page, running
from serve_client import Client, serving
from timing import Contender, Megabytes, Sheet
from torch import Tensor

from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.memory import keep_freed_memory
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.propagation import Rule, Slices, propagate
from segment_anything import (
    FOREGROUND,
    ObjectPrompt,
    Prompts,
    Sam,
    SamAutomaticMaskGenerator,
    SamPredictor,
    sam_model_registry,
)

PICTURE = ROOT / "data_demo" / "images" / "mni152_axial_094.png"
SIDE = 16  # clicks along each side of the grid of everything mode
SURE = 0.36  # of the masks of the shipped weights, on the picture above, at the threshold that the help proposes
ENDLESS = Rule(least_iou=-9, least_area=1, shrink=0, grow=1e9, least_contrast=-1e9)  # whatever the model answers


def small(device: torch.device) -> Sam:
    with contextlib.redirect_stdout(io.StringIO()):
        return open_model(SMALL, device=str(device)).for_inference()


# ---------------------------------------------------------------- everything mode


def everything(args: argparse.Namespace, sheet: Sheet) -> None:
    """A grid of clicks on one picture, with the shipped weights, and with random ones of which as many masks are taken
    for sure."""
    keep_freed_memory()
    picture = cv2.imread(str(PICTURE))
    other = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=True).to(sheet.device)
    contenders: dict[str, Contender] = {}
    for name, model in ((SMALL, small(sheet.device)), (args.model_type, other.for_inference())):
        own = f"{name}, {model.image_size} px"
        predictor = SamPredictor(model)
        least = 0.2 if name == SMALL else threshold(model, picture)
        generator = SamAutomaticMaskGenerator(
            model, SIDE, pred_iou_thresh=least, stability_score_thresh=0.1, output_mode="coco_rle"
        )
        contenders[f"{own}: encoder alone"] = Contender(lambda p=predictor: p.set_image(picture, "BGR"), items=1)
        contenders[f"{own}: {SIDE} clicks a side"] = Contender(
            lambda g=generator: g.generate(picture, "BGR"), items=SIDE**2
        )
    print(f"\neverything: a picture of {picture.shape[1]} x {picture.shape[0]}, {SIDE**2} clicks")
    sheet.compare("everything", contenders)


def threshold(model: Sam, picture: np.ndarray) -> float:
    """Of the predicted IoU: the share SURE of the masks on this picture is above it."""
    generator = SamAutomaticMaskGenerator(model, SIDE, pred_iou_thresh=-1e9, stability_score_thresh=0)
    generator.predictor.set_image(picture, "BGR")
    points = torch.from_numpy(generator.point_grids[0] * model.image_size).float().to(model.device)
    with torch.no_grad():
        _, iou = model.predict_sure(generator.predictor.seen().embeddings, clicks_at(points), 1e9)
    return float(torch.quantile(iou.flatten(), 1 - SURE))


def clicks_at(points: Tensor) -> Prompts:
    """points: (N, 2), each of an object of its own."""
    return Prompts(points[:, None], torch.full((len(points), 1), FOREGROUND, device=points.device))


# ---------------------------------------------------------------- a volume


def phantom(slices: int, side: int = 256) -> np.ndarray:
    """(Z, Y, X) float32: an object of changing width through all slices, and noise."""
    z, y, x = np.mgrid[0:slices, 0:side, 0:side].astype(np.float32)
    inside = (y - 120) ** 2 / 45**2 + (x - 130) ** 2 / (40 + 10 * np.sin(z / 9)) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 6, z.shape)
    return (40 + 30 * x / side + 120 * inside + noise).clip(0, 255).astype(np.float32)


def volume(args: argparse.Namespace, sheet: Sheet) -> None:
    """One object through all slices, with the shipped weights."""
    model, scan = small(sheet.device), phantom(args.slices)
    middle = args.slices // 2

    def follow(zoom: str) -> int:
        sliced = Slices(SamPredictor(model, zoom=zoom), scan, 0, Intensity(by_volume=True))
        prompt = ObjectPrompt(box=np.array([85, 72, 176, 168], np.float32))
        found = propagate(sliced, {middle: prompt}, ENDLESS)
        sliced.assemble(found.slices)
        return len(found.slices)

    def passes() -> None:
        predictor = SamPredictor(model)
        for number in range(args.slices):
            predictor.set_image(scan[number].astype(np.uint8))

    seen = follow("auto")
    print(f"\nvolume: {args.slices} slices of {scan.shape[2]} x {scan.shape[1]}, of which one object has {seen}")
    ways = {"looked at closer": "auto", "whole slices": "never"}
    contenders = {"encoder passes alone, one by one": Contender(passes, items=args.slices)}
    for name, zoom in ways.items():
        contenders[f"one object, {name}"] = Contender(lambda zoom=zoom: follow(zoom), items=args.slices)
    sheet.compare("volume", contenders)


# ---------------------------------------------------------------- starts


def start(args: argparse.Namespace, sheet: Sheet) -> None:
    """From the start of a command to the first mask on the disk: time, and the memory of the process at most."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--input", str(PICTURE), "--box", "20", "20", "150", "180", "--output", folder]
        words += ["--sam_checkpoint", SMALL, "--device", str(sheet.device)]
        codes = {
            "Python and PyTorch alone": "import torch",
            "sam-med2d predict, the shipped weights": command(*words),
            "sam-med2d predict --help": command("--help"),
        }
        print("\nstart: a process each")
        sheet.compare("start", {name: Contender(lambda code=code: ended(code)) for name, code in codes.items()})


def command(*words: str) -> str:
    """Code that runs `sam-med2d predict`."""
    return f"sys.argv = {['sam-med2d', 'predict', *words]!r}\nrunpy.run_module('sam_med2d', run_name='__main__')"


ENDING = """
import atexit, runpy, sys
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
"""


def ended(code: str) -> Megabytes:
    """Run a Python of its own -> what its memory had at most; a parent is told that of itself instead. Linux alone.

    Raises CalledProcessError where it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", ENDING + code]
    done = subprocess.run(line, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    peak = next(one for one in reversed(done.stderr.splitlines()) if one.startswith("VmHWM"))
    return Megabytes(int(peak.split()[1]) / 1000)


# ---------------------------------------------------------------- the app


def app(args: argparse.Namespace, sheet: Sheet) -> None:
    """What a person at the page waits for, over real sockets: a picture opened, a first and a further click."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), "--sam_checkpoint", SMALL, "--device", str(sheet.device)) as process,
    ):
        page = Page(process)
        page.open(PICTURE)

        def click() -> None:
            page.act(do="click", x=80, y=90, on=True)

        def first_click() -> None:
            page.act(do="reset")
            click()

        def fifth_click() -> None:
            for _ in range(4 - len(page.view()["objects"][0]["clicks"])):
                click()
            click()
            page.act(do="undo")

        print("\napp: over HTTP, one thread, the shipped weights")
        contenders = {
            "nothing but the answer of the server": lambda: page.act(do="look"),
            "a picture opened": lambda: page.open(PICTURE),
            "a first click": first_click,
            "a fifth click, taken back": fifth_click,
        }
        sheet.compare("app", {name: Contender(work, items=1) for name, work in contenders.items()})


# ---------------------------------------------------------------- the server


def serve(args: argparse.Namespace, sheet: Sheet) -> None:
    """A click in a tool that asks the server, over real sockets, with random weights of the model type.

    On a slice that was seen, of a volume of nnInteractive, without and with the looks that are closer, whose crops were
    seen too.
    """
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=True)
    scan = phantom(3, args.image_size)
    middle = args.image_size // 2
    contenders: dict[str, Contender] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch.save(model.state_dict(), folder / "random.pth")
        flags = ("--sam_checkpoint", str(folder / "random.pth"), "--device", str(sheet.device), "--propagate", "False")
        flags += ("--threads", str(torch.get_num_threads()))
        for zoom in ("never", "auto"):
            client = Client(stack.enter_context(serving(folder, *flags, "--zoom", zoom)))
            client.open(scan)

            def first_click(client: Client = client) -> None:
                client.act("/reset_interactions")
                client.click(1, middle, middle)

            def further_click(client: Client = client) -> None:
                client.click(1, middle, middle + 9)
                client.act("/undo")

            first_click()
            contenders[f"zoom {zoom}: a first click"] = Contender(first_click, items=1)
            contenders[f"zoom {zoom}: a further click, taken back"] = Contender(further_click, items=1)
        print(f"\nserver: over HTTP, {args.model_type}, {args.image_size} px, {torch.get_num_threads()} threads")
        sheet.compare("serve", contenders)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=int, default=150, help="Number of slices of the volume. Default: %(default)s.")


RUN = {"everything": everything, "volume": volume, "start": start, "app": app, "serve": serve}
