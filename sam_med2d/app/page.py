"""Segment in the browser: clicks and boxes on a picture, a DICOM file or the slices of a volume.

    sam-med2d app                                                       # the small model that comes with the package
    sam-med2d app --sam_checkpoint pretrain_model/sam-med2d_b.pth
    sam-med2d app --backend openvino --precision bfloat16 --encoder_model b.encoder.onnx --decoder_model b.decoder.onnx

In a clone, `python app.py ...` is the same.

Left click: on the object. Right click: off the object. Drag: a box. Listens on this machine alone (127.0.0.1);
nothing is sent anywhere, and uploads are deleted as soon as they are read. `--host 0.0.0.0` opens it to the network
you are in.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sam_med2d.app import handlers
from sam_med2d.cli import ending_in_one_line
from sam_med2d.errors import UsageError, UserError
from sam_med2d.image_files import ENDINGS
from sam_med2d.inference.models import SMALL, WITH, add_backend_flags, add_model_flags, models_of
from sam_med2d.inference.session import VOLUMES, AnnotationSession
from segment_anything.predictor import Segmenter

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: no telemetry

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
from gradio.components import Component

EXAMPLES = Path("data_demo/images")  # in the current folder, where that is a clone

HERE = Path(__file__).parent

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
}  # of every event: no spinner, and no public API


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.set_defaults(sam_checkpoint=SMALL)
    add_backend_flags(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=7860)
    group.add_argument(
        "--share", action="store_true", help="a public address at gradio.live: what you open leaves this machine"
    )
    group.add_argument("--max_upload", type=int, default=500, metavar="MB", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.max_upload < 1:
        parser.error("--max_upload must be at least 1")
    return args


class Controls(NamedTuple):
    """What people use, in the order of the page."""

    upload: gr.File
    example: gr.Dropdown
    slider: gr.Slider
    adapters: gr.Checkbox
    canvas: gr.HTML
    listing: gr.HTML
    current: gr.Dropdown
    name: gr.Textbox
    add: gr.Button
    undo: gr.Button
    reset: gr.Button
    save: gr.Button
    files: gr.File


def build(models: dict[str, Segmenter]) -> gr.Blocks:
    """The page, put together with Gradio. Every browser tab has a session of its own.

    What a control does is in handlers.py, what a session looks like in canvas.py, what the pointer does in canvas.js.
    models: by name, the one to start with first.
    """
    with gr.Blocks(title="SAM-Med2D", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        wire(lay_out(models), gr.State(None), models)
    return page


def lay_out(models: dict[str, Segmenter]) -> Controls:
    empty = handlers.view_of(AnnotationSession(models))
    examples = sorted(path.name for path in EXAMPLES.glob("*.png"))
    kinds = [*ENDINGS, *VOLUMES, ".gz"]
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            upload = gr.File(label="Image, DICOM or volume", file_types=kinds, elem_id="upload", height=160)
            example = gr.Dropdown(
                examples, value=None, label="Examples", elem_id="example", interactive=True, visible=bool(examples)
            )
            slider = gr.Slider(0, 1, 0, step=1, label="Slice", visible=False, elem_id="slice")
            adapters = gr.Checkbox(WITH in models, label="Adapters", interactive=len(models) > 1, elem_id="adapters")
            gr.Markdown("Left click: on the object. Right click: off it. Drag: a box.")
        with gr.Column(scale=3, min_width=420):
            script = (HERE / "canvas.js").read_text(encoding="utf-8")
            canvas = gr.HTML(empty.canvas, js_on_load=script, elem_id="canvas")
        with gr.Column(scale=1, min_width=280):
            listing = gr.HTML("", elem_id="objects")
            current = gr.Dropdown(
                empty.choices, value=empty.chosen, type="index", label="Object", elem_id="current", interactive=True
            )
            name = gr.Textbox(label="Name", elem_id="name", max_lines=1)
            with gr.Row():
                add = gr.Button("New object", elem_id="add", size="sm")
                undo = gr.Button("Undo", elem_id="undo", size="sm")
                reset = gr.Button("Reset", elem_id="reset", size="sm")
            save = gr.Button("Make files", variant="primary", elem_id="save")
            files = gr.File(
                label="Label map (PNG, NIfTI), COCO", file_count="multiple", interactive=False, elem_id="files"
            )
    return Controls(upload, example, slider, adapters, canvas, listing, current, name, add, undo, reset, save, files)


def wire(page: Controls, state: gr.State, models: dict[str, Segmenter]) -> None:
    """Say which handler each control calls, and what of the page is drawn again after it."""

    def when(event: Callable, action: Callable[..., object], *values: Component, turns: bool = False) -> None:
        """turns: whether the action may show another slice, so that the slider follows."""
        shown = [state, page.canvas, page.listing, page.current, page.name, *([page.slider] if turns else [])]
        event(acting(action, models, turns), [state, *values], shown, **QUIET)

    def pointed(session: AnnotationSession | None, gesture: gr.EventData) -> list:
        start, end, foreground = gesture.start, gesture.end, gesture.foreground
        return acting(handlers.point, models)(session, start, end, foreground)

    when(page.upload.upload, handlers.open_upload, page.upload, turns=True)
    when(page.example.input, lambda session, one: handlers.open_file(session, EXAMPLES / one), page.example, turns=True)
    page.canvas.click(pointed, [state], [state, page.canvas, page.listing, page.current, page.name], **QUIET)
    when(page.slider.input, handlers.turn_to, page.slider)
    when(page.adapters.input, handlers.use_adapters, page.adapters)
    when(page.current.input, handlers.choose, page.current)
    when(page.name.submit, AnnotationSession.rename, page.name)
    when(page.add.click, AnnotationSession.add_object)
    when(page.undo.click, AnnotationSession.undo, turns=True)
    when(page.reset.click, AnnotationSession.reset)
    page.save.click(saving(models), [state], [page.files], **QUIET)


def acting(action: Callable[..., object], models: dict[str, Segmenter], turns: bool = False) -> Callable[..., list]:
    """A function of (session, values) -> one that Gradio calls, and that returns what the page shows then.

    A tab that has no session yet gets one; bad input becomes a message.
    """

    def handle(session: AnnotationSession | None, *values: Any) -> list:
        session = session or AnnotationSession(models)
        with messages():
            action(session, *values)
        view = handlers.view_of(session)
        objects = gr.update(choices=view.choices, value=view.chosen)
        several = view.slices > 1
        slider = gr.update(maximum=max(view.slices - 1, 1), value=view.slice, visible=several)
        return [session, view.canvas, view.table, objects, view.name, *([slider] if turns else [])]

    return handle


def saving(models: dict[str, Segmenter]) -> Callable[[AnnotationSession | None], list[str]]:
    def handle(session: AnnotationSession | None) -> list[str]:
        with messages():
            return handlers.save(session or AnnotationSession(models))  # Gradio takes copies, and deletes them

    return handle


@contextmanager
def messages() -> Iterator[None]:
    """What a person can mend becomes a message on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def launch(args: argparse.Namespace, **options):
    """-> what Gradio's launch returns. Raises CheckpointError, UsageError."""
    page = build(models_of(args))
    page.queue(default_concurrency_limit=1)  # one model: people take turns
    # system fonts, because the theme's own are fetched from Google
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return page.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        max_file_size=f"{args.max_upload}mb",
        theme=theme,
        css=(HERE / "style.css").read_text(encoding="utf-8"),
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        **options,
    )


@ending_in_one_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        launch(args)
    except OSError as error:
        raise UsageError(f"port {args.port} cannot be opened ({error}); choose another --port") from error


if __name__ == "__main__":
    main()
