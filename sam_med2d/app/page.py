"""Segment in the browser: clicks and boxes on a picture, a DICOM file or the slices of a volume.

    sam-med2d app                                                       # the small model that comes with the package
    sam-med2d app --sam_checkpoint pretrain_model/sam-med2d_b.pth
    sam-med2d app --backend openvino --precision bfloat16 --encoder_model b.encoder.onnx --decoder_model b.decoder.onnx

In a clone, `python app.py ...` is the same.

Left click: on the object. Right click: off the object. Drag: a box. Listens on this machine alone (127.0.0.1); nothing is sent
anywhere, and uploads are deleted as soon as they are read. `--host 0.0.0.0` opens it to the network you are in.
"""

import argparse
import html
import os
import tempfile
from pathlib import Path

from sam_med2d.cli import ending_in_one_line
from sam_med2d.drawing import colour_of
from sam_med2d.errors import DataError, UsageError, UserError
from sam_med2d.image_files import ENDINGS
from sam_med2d.inference.models import SMALL, WITH, WITHOUT, add_backend_flags, add_model_flags, models_of
from sam_med2d.inference.session import VOLUMES, AnnotationSession
from segment_anything.predictor import Segmenter

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: no telemetry

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr

EXAMPLES = Path("data_demo/images")  # in the current folder, where that is a clone

DRAG = 4  # CSS pixels; a shorter drag is a click

SCRIPT = """
let start = null;
const frame = () => element.querySelector('.picture');
const at = (event) => {
    const box = frame().getBoundingClientRect(), limit = (v, most) => Math.min(Math.max(v, 0), most);
    return [limit((event.clientX - box.left) / box.width, 1) * frame().dataset.width,
            limit((event.clientY - box.top) / box.height, 1) * frame().dataset.height];
};
const dragged = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) > DRAG;
element.addEventListener('contextmenu', (event) => event.preventDefault());
element.addEventListener('pointerdown', (event) => {
    if (!frame() || !event.target.closest('.picture') || event.button === 1) return;
    event.preventDefault();
    start = {x: event.clientX, y: event.clientY, at: at(event), button: event.button};
});
window.addEventListener('pointermove', (event) => {
    if (!start || start.button !== 0 || !frame() || !dragged(event)) return;
    const [x, y] = at(event), [x0, y0] = start.at, band = element.querySelector('.band');
    for (const [name, value] of [['x', Math.min(x, x0)], ['y', Math.min(y, y0)],
                                 ['width', Math.abs(x - x0)], ['height', Math.abs(y - y0)]]) band.setAttribute(name, value);
});
window.addEventListener('pointerup', (event) => {
    if (!start || !frame()) { start = null; return; }
    const box = start.button === 0 && dragged(event);
    trigger('click', {start: start.at, end: box ? at(event) : null, foreground: start.button === 0});
    start = null;
});
""".replace("DRAG", str(DRAG))

STYLE = """
.picture { position: relative; width: 100%; max-width: 80vh; margin: auto; cursor: crosshair; touch-action: none; }
.picture img, .picture svg { position: absolute; inset: 0; width: 100%; height: 100%; user-select: none; }
.picture img { image-rendering: pixelated; }
.picture svg { pointer-events: none; }
.picture .band { fill: none; stroke: white; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.empty { padding: 6em 1em; text-align: center; opacity: 0.6; }
.swatch { display: inline-block; width: 0.9em; height: 0.9em; border-radius: 2px; margin-right: 0.5em; vertical-align: -0.1em; }
#objects .objects, #objects .objects tr, #objects .objects td { border: none; }
.objects { width: 100%; } .objects td { padding: 2px 6px; white-space: nowrap; }
.objects .current { font-weight: bold; }
"""


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


def build(models: dict[str, Segmenter]) -> gr.Blocks:
    examples = sorted(path.name for path in EXAMPLES.glob("*.png"))
    with gr.Blocks(title="SAM-Med2D", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        state = gr.State(None)  # an AnnotationSession for each browser tab
        with gr.Row():
            with gr.Column(scale=1, min_width=220):
                upload = gr.File(
                    label="Image, DICOM or volume", file_types=[*ENDINGS, *VOLUMES, ".gz"], elem_id="upload", height=160
                )
                example = gr.Dropdown(
                    examples, value=None, label="Examples", elem_id="example", interactive=True, visible=bool(examples)
                )
                slider = gr.Slider(0, 1, 0, step=1, label="Slice", visible=False, elem_id="slice")
                adapters = gr.Checkbox(
                    WITH in models, label="Adapters", interactive=len(models) > 1, elem_id="adapters"
                )
                gr.Markdown("Left click: on the object. Right click: off it. Drag: a box.")
            with gr.Column(scale=3, min_width=420):
                canvas = gr.HTML(AnnotationSession(models).html(), js_on_load=SCRIPT, elem_id="canvas")
            with gr.Column(scale=1, min_width=280):
                listing = gr.HTML("", elem_id="objects")
                current = gr.Dropdown(
                    ["object 1"], value="object 1", type="index", label="Object", elem_id="current", interactive=True
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
        view = [state, canvas, listing, current, name]

        def shown(session: AnnotationSession) -> list:
            names = [f"{number + 1}: {name}" for number, name in enumerate(session.objects)]
            return [
                session,
                session.html(),
                table_of(session),
                gr.update(choices=names, value=names[session.current]),
                session.objects[session.current],
            ]

        def acting(action):
            """Wrap what changes a session: bad input becomes a message, and the page shows the session again."""

            def handle(session: AnnotationSession | None, *values):
                session = session or AnnotationSession(models)
                try:
                    action(session, *values)
                except UserError as error:
                    raise gr.Error(str(error), print_exception=False) from error
                return shown(session)

            return handle

        def pointed(session: AnnotationSession | None, event: gr.EventData):
            session = session or AnnotationSession(models)
            (x, y), end = event.start, event.end
            try:
                if end is not None:
                    session.draw_box(*(float(round(value)) for value in (x, y, *end)))
                else:
                    height, width = session.scan.slices.shape[1:3]
                    session.click(float(min(int(x), width - 1)), float(min(int(y), height - 1)), event.foreground)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return shown(session)

        def opened(session: AnnotationSession | None, path: str | None, uploaded: bool):
            session = session or AnnotationSession(models)
            if path is None:  # the upload was taken away again: what is open stays
                return [*shown(session), gr.update()]
            try:
                session.open(path)
                session.predictor()  # encoded now, so that the first click is as quick as the others
            except DataError as error:
                message = str(error).replace(f"{Path(path).parent}{os.sep}", "")
                raise gr.Error(message, print_exception=False) from error
            finally:
                if uploaded:
                    Path(path).unlink(missing_ok=True)
            count = len(session.scan.slices)
            return [*shown(session), gr.update(maximum=max(count - 1, 1), value=session.slice, visible=count > 1)]

        def turned(session: AnnotationSession, number: int) -> None:
            if session.scan is not None:
                session.slice = min(int(number), len(session.scan.slices) - 1)
                session.predictor()

        def switched(session: AnnotationSession, on: bool) -> None:
            session.model = WITH if on else WITHOUT
            if session.scan is not None:
                session.predictor()

        def undone(session: AnnotationSession | None):
            session = session or AnnotationSession(models)
            session.undo()
            return [*shown(session), session.slice]

        def saved(session: AnnotationSession | None) -> list[str]:
            session = session or AnnotationSession(models)
            folder = tempfile.TemporaryDirectory()  # Gradio takes copies, which it deletes after an hour
            try:
                written = session.save(Path(folder.name))
                session.saved_in = folder  # gone with the session, or with the next files
                return [str(path) for path in written]
            except DataError as error:
                raise gr.Error(str(error), print_exception=False) from error

        def chosen(session: AnnotationSession, number: int) -> None:
            session.current = number

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        upload.upload(lambda session, path: opened(session, path, True), [state, upload], [*view, slider], **quiet)
        example.input(
            lambda session, one: opened(session, str(EXAMPLES / one), False), [state, example], [*view, slider], **quiet
        )
        canvas.click(pointed, [state], view, **quiet)
        slider.input(acting(turned), [state, slider], view, **quiet)
        adapters.input(acting(switched), [state, adapters], view, **quiet)
        current.input(acting(chosen), [state, current], view, **quiet)
        name.submit(acting(lambda session, text: session.rename(text)), [state, name], view, **quiet)
        add.click(acting(lambda session: session.add_object()), [state], view, **quiet)
        undo.click(undone, [state], [*view, slider], **quiet)
        reset.click(acting(lambda session: session.reset()), [state], view, **quiet)
        save.click(saved, [state], [files], **quiet)
    return page


def table_of(session: AnnotationSession) -> str:
    """The objects with their colours, and what the model thinks of their masks on this slice."""
    rows = []
    for number, name in enumerate(session.objects):
        b, g, r = colour_of(number)
        action = session.last(number)
        told = f"IoU {action.iou:.2f}</td><td>{int(action.mask.sum())} px" if action else "</td><td>"
        rows.append(
            f"<tr class='{'current' if number == session.current else ''}'><td><span class='swatch' "
            f"style='background: rgb({r},{g},{b})'></span>{html.escape(name)}</td><td>{told}</td></tr>"
        )
    return f"<table class='objects'>{''.join(rows)}</table>"


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
        css=STYLE,
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
