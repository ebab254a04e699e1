"""Label Studio's backend for models, as its interactive pre-annotation asks it, at ADDRESS/label-studio.

    GET  /label-studio/health
    POST /label-studio/setup        -> {"model_version": ...}
    POST /label-studio/predict      {"tasks": [{"data": {"image": ...}}], "label_config": XML,
                                     "params": {"context": {"result": [...]}}} -> {"results": [...]}
    POST /label-studio/webhook      of annotations that were saved, which nothing here learns from

A context has key points and rectangles in per cent of the picture; all of them are of one object, which comes back as a
brush. The picture is a data URI in the task, or is asked of the Label Studio that `--label_studio` names, and of no
other address, with the key in the environment's LABEL_STUDIO_API_KEY.
"""

import os
import secrets
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sam_med2d import __version__
from sam_med2d.app.server import Lane, answering
from sam_med2d.errors import DataError
from sam_med2d.serve.pictures import MOST_PROMPTS, Asked, Pictures, bytes_of, find, json_of
from sam_med2d.serve.service import Service

PREFIX = "/label-studio"
KEY = "LABEL_STUDIO_API_KEY"
VERSION = f"sam-med2d {__version__}"
LONGEST_CONFIG = 1 << 16  # bytes of XML
PATIENCE = 30.0  # seconds that Label Studio may take to give a picture
LENGTHS = (3, 6, 10, 16)  # bits in which the length of a run is said


class Config(NamedTuple):
    """Of a project: where its picture is in a task, and the brush that a mask becomes. labels: of the brush."""

    picture: str
    brush: str
    target: str
    labels: list[str]


class LabelStudio:
    """The routes, over one service."""

    def __init__(self, service: Service, pictures: Pictures, lane: Lane, address: str | None) -> None:
        """address: of the Label Studio whose pictures are asked for, or None."""
        self._service, self._pictures, self._lane, self._address = service, pictures, lane, address

    def routes(self) -> list[Route]:
        posts = {"setup": self._setup, "predict": self._predict, "webhook": self._webhook}
        return [
            Route(f"{PREFIX}/health", answering(self._health, "detail"), methods=["GET"]),
            *(Route(f"{PREFIX}/{name}", answering(to, "detail"), methods=["POST"]) for name, to in posts.items()),
        ]

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "UP", "model_class": "SAM-Med2D"})

    async def _setup(self, request: Request) -> Response:
        await json_of(request, self._pictures.most_bytes)
        return JSONResponse({"model_version": VERSION})

    async def _webhook(self, request: Request) -> Response:
        await json_of(request, self._pictures.most_bytes)
        return JSONResponse({})

    async def _predict(self, request: Request) -> Response:
        values = await json_of(request, self._pictures.most_bytes)
        tasks = values.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
            raise DataError(f"tasks must be a list of tasks, not {tasks!r:.40}")
        drawn = _drawn(values.get("params"))
        if not drawn:
            return JSONResponse({"results": [_prediction([], 0.0) for _ in tasks], "model_version": VERSION})
        if len(tasks) != 1:
            raise DataError(f"a drawing is of one task, and there are {len(tasks)}")
        config, (task,) = config_of(values.get("label_config")), tasks
        result = await self._lane.run(lambda: self._answer(config, task, drawn))
        return JSONResponse({"results": [result], "model_version": VERSION})

    def _answer(self, config: Config, task: dict[str, Any], drawn: list[dict[str, Any]]) -> dict[str, Any]:
        data = task.get("data")
        picture = self._pictures.read(self._bytes_of(data.get(config.picture) if isinstance(data, dict) else None))
        height, width = picture.shape[:2]
        asked, label = asked_of(drawn, width, height)
        if asked.box is None and 1 not in asked.labels:
            return _prediction([], 0.0)
        found = find(self._service, picture, asked)
        region = {
            "id": secrets.token_hex(5),
            "from_name": config.brush,
            "to_name": config.target,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": run_lengths(found.mask),
                "brushlabels": [label if label in config.labels else config.labels[0]],
            },
            "score": round(found.iou, 4),
        }
        return _prediction([region], round(found.iou, 4))

    def _bytes_of(self, said: object) -> bytes:
        """Of a picture, as a task names it. Raises DataError."""
        if isinstance(said, str) and said.startswith("data:"):
            return bytes_of(said, "the picture")
        if not isinstance(said, str) or not said:
            raise DataError("the task has no picture where the project's configuration says that it is")
        if not self._address:
            raise DataError("the picture is on a Label Studio: start the server with --label_studio and its address")
        where = urljoin(self._address, said)
        if urlsplit(where)[:2] != urlsplit(self._address)[:2]:
            raise DataError(f"pictures are asked of {self._address} alone, and this one lies elsewhere: {where:.80}")
        asked = urllib.request.Request(where, headers={"Authorization": f"Token {os.environ.get(KEY, '')}"})
        try:
            with urllib.request.build_opener(_Stays).open(asked, timeout=PATIENCE) as answer:
                return answer.read(self._pictures.most_bytes + 1)  # one more is refused
        except (urllib.error.URLError, OSError) as error:
            raise DataError(f"{where:.80}: Label Studio does not give the picture ({error}); is {KEY} set?") from error


class _Stays(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else."""

    def redirect_request(self, *told: object) -> None:
        return None


def config_of(text: object) -> Config:
    """A project's configuration. Raises DataError: no XML, no picture, no brush."""
    if not isinstance(text, str) or len(text) > LONGEST_CONFIG or "<!" in text:
        raise DataError("label_config must be the XML of a project, without declarations of its own")
    try:
        tags = [*ElementTree.fromstring(text).iter()]
    except ElementTree.ParseError as error:
        raise DataError(f"label_config is not XML ({error})") from error
    pictures = {tag.get("name", ""): tag.get("value", "") for tag in tags if tag.tag == "Image"}
    for tag in tags:
        labels = [one.get("value", "") for one in tag if one.tag == "Label"]
        target = tag.get("toName", "")
        if tag.tag == "BrushLabels" and labels and target in pictures:
            return Config(pictures[target].removeprefix("$"), tag.get("name", ""), target, labels)
    raise DataError("the project has no BrushLabels on an Image, which a mask could become; add them to its labels")


def _drawn(params: object) -> list[dict[str, Any]]:
    """What a person has drawn; nothing where tasks are asked for without. Raises DataError."""
    context = params.get("context") if isinstance(params, dict) else None
    if not context:
        return []
    drawn = context.get("result") if isinstance(context, dict) else None
    if not isinstance(drawn, list) or len(drawn) > MOST_PROMPTS or not all(isinstance(one, dict) for one in drawn):
        raise DataError(f"context must have a result, a list of at most {MOST_PROMPTS} regions, not {drawn!r:.40}")
    return drawn


def asked_of(drawn: list[dict[str, Any]], width: int, height: int) -> tuple[Asked, str]:
    """Regions in per cent -> prompts in pixels, and what the object is called. Raises DataError."""
    points, signs, box, label = [], [], None, ""
    for region in drawn:
        kind, value = region.get("type"), region.get("value")
        if kind not in ("keypointlabels", "rectanglelabels"):
            continue  # a brush that was drawn before, or what is of another tool
        if not isinstance(value, dict):
            raise DataError(f"the value of a region must be an object, not {value!r:.40}")
        x, y = (_share(value, name) for name in ("x", "y"))
        names = value.get(kind)
        if isinstance(names, list) and names and isinstance(names[0], str):
            label = names[0]
        if kind == "keypointlabels":
            points.append([float(min(int(x * width), width - 1)), float(min(int(y * height), height - 1))])
            signs.append(0 if region.get("is_positive") in (False, 0) else 1)
        elif box is not None:
            raise DataError("there are two rectangles, and all regions are of one object: draw one")
        else:
            right, bottom = (min(1.0, x + _share(value, "width")), min(1.0, y + _share(value, "height")))
            box = [x * width, y * height, right * width, bottom * height]
    return Asked(points, signs, box), label


def _share(value: dict[str, Any], name: str) -> float:
    number = value.get(name)
    if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= 100:
        return number / 100
    raise DataError(f"{name} of a region must be from 0 to 100, per cent of the picture, not {number!r:.40}")


def run_lengths(mask: np.ndarray) -> list[int]:
    """(H, W) bool -> bytes of Label Studio's brush: four channels of 8 bits a pixel, all 0 or all 255.

    A head: the number of values (32 bits), bits of a value - 1 (5), bits of four kinds of lengths - 1 (4 each). Then
    for each run a 1, its kind of length (2), its length - 1, and its value.
    """
    flat = mask.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts, ends = [0, *edges.tolist()], [*edges.tolist(), flat.size]
    bits = [f"{4 * flat.size:032b}{7:05b}", *(f"{length - 1:04b}" for length in LENGTHS)]
    for start, end in zip(starts, ends):
        word, left = "1" * 8 if flat[start] else "0" * 8, 4 * (end - start)
        while left:
            run = min(left, 1 << LENGTHS[-1])
            kind = next(number for number, length in enumerate(LENGTHS) if run <= 1 << length)
            bits.append(f"1{kind:02b}{run - 1:0{LENGTHS[kind]}b}{word}")
            left -= run
    text = np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")
    return np.packbits(text).tolist()


def _prediction(result: list[dict[str, Any]], score: float) -> dict[str, Any]:
    return {"result": result, "score": score, "model_version": VERSION}
