"""The exported graphs against the eager model, and the export scripts and the example as users run them."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

for module in ("onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f'{module} is not installed: pip install -e ".[deploy]"')

import onnx

from sam_med2d.commands import export_decoder, export_encoder
from sam_med2d.data.reading import read_image
from sam_med2d.errors import UsageError
from sam_med2d.export.graphs import AdapterGraph, AttentionGraph, DecoderGraph, EncoderGraph
from sam_med2d.export.onnx_files import HALF, describe, halve, placed, save, trace_decoder, trace_encoder
from sam_med2d.export.parity import decoder_differences, encoder_difference, encoder_inputs
from sam_med2d.export.places import Back
from sam_med2d.export.quantize import quantize
from sam_med2d.inference.backends import OnnxRuntimeSession, decoder_inputs, open_runtime
from segment_anything import Prompts, SamPredictor
from segment_anything.geometry import back
from segment_anything.modeling.image_encoder import Adapter, Attention
from tests.conftest import ROOT
from tests.inference.test_backends import small
from tests.segment_anything.test_model import assert_near, randomise

WEIGHTS = ROOT / "pretrain_model/vit_t_phantoms.safetensors"
IMAGES = [ROOT / f"data_demo/images/mni152_{name}.png" for name in ("axial_094", "coronal_058")]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    first, second = (read_image(str(path)) for path in IMAGES)
    return [first, second[:60, :50]]  # larger and smaller than the frame


@pytest.fixture(scope="module")
def model():
    return small(96)


# ---------------------------------------------------------------- rewritten layers


@torch.inference_mode()
@pytest.mark.parametrize("window, side", [(14, 16), (14, 8), (14, 14), (14, 30), (14, 28), (0, 6)])
@pytest.mark.parametrize("batch", [None, 2])
def test_attention_is_the_models(window, side, batch):
    attention = randomise(Attention(24, 3, window, side))
    x = torch.randn(2, side, side, 24)
    assert_near(AttentionGraph(attention, side, batch)(x), attention(x))


@torch.inference_mode()
@pytest.mark.parametrize("height, width", [(2, 2), (6, 6), (4, 10)])
def test_adapter_is_the_models(height, width):
    adapter = randomise(Adapter(16))
    x = torch.randn(3, height, width, 16)
    assert_near(AdapterGraph(adapter)(x), adapter(x))


@pytest.mark.parametrize("opset", [14, 17])
def test_other_exporters_can_take_the_encoder_as_it_is(model, opset, tmp_path):
    """A tracer sees the convolutions of the adapters, not the products that a CPU computes, which have no form in
    ONNX.
    """
    image = torch.randn(1, 3, model.image_size, model.image_size)
    torch.onnx.export(
        model.image_encoder,
        (image,),
        str(tmp_path / "plain.onnx"),
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
    )
    (got,) = OnnxRuntimeSession(tmp_path / "plain.onnx")({"x": image.numpy()}).values()
    with torch.inference_mode():
        assert_near(torch.from_numpy(got), model.image_encoder(image))


def test_the_model_keeps_its_own_layers(model):
    EncoderGraph(model)
    assert isinstance(model.image_encoder.blocks[0].attn, Attention) and isinstance(
        model.image_encoder.blocks[0].Adapter, Adapter
    )


def test_stretching_in_the_graph_picks_opencvs_pixels():
    graph = EncoderGraph(small(64), preprocess=True)
    graph.pixel_mean.zero_(), graph.pixel_std.fill_(1)
    for height in (1, 30, 63, 64, 65, 100, 127, 159, 177, 186, 189, 198, 255, 300, 511, 777):
        image = np.arange(height * (height + 9) * 3, dtype=np.float32).reshape(height, height + 9, 3)
        want = cv2.resize(image, (64, 64), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(graph._preprocessed(torch.from_numpy(image))[0].permute(1, 2, 0).numpy(), want), height


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("options", [{}, {"preprocess": True}, {"batch": None}])
def test_encoder_file_is_the_model(model, images, tmp_path, options):
    save(trace_encoder(EncoderGraph(model, **options), 17), tmp_path / "e.onnx")
    session = OnnxRuntimeSession(tmp_path / "e.onnx", 1)
    assert session.inputs == {
        "input_image": {
            "{}": (1, 3, 96, 96),
            "{'preprocess': True}": (None, None, 3),
            "{'batch': None}": (None, 3, 96, 96),
        }[str(options)]
    }
    assert encoder_difference(model, session, images) < 1e-4
    odd = np.random.default_rng(0).integers(0, 256, (186, 198, 3), dtype=np.uint8)  # where OpenCV rounds the other way
    assert encoder_difference(model, session, [odd]) < 1e-4


@pytest.mark.parametrize("opset", [14, 20])
def test_other_opsets(model, images, tmp_path, opset):
    save(trace_encoder(EncoderGraph(model), opset), tmp_path / "e.onnx")
    assert encoder_difference(model, OnnxRuntimeSession(tmp_path / "e.onnx", 1), images) < 1e-4
    graph = DecoderGraph(model, single_mask=True)
    save(trace_decoder(graph, opset), tmp_path / "d.onnx")
    found = decoder_differences(model, graph, OnnxRuntimeSession(tmp_path / "d.onnx", 1), images[:1])
    assert max(value for kind in found.values() for value in kind.values()) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"single_mask": True},
        {"single_mask": True, "stability_score": True},
        {"extra_metrics": True, "longest_side": True},
        {"logits_in": True, "paper": True},
    ],
)
def test_decoder_file_is_the_model(model, images, tmp_path, options):
    graph = DecoderGraph(model, **options)
    save(trace_decoder(graph, 17), tmp_path / "d.onnx")
    session = OnnxRuntimeSession(tmp_path / "d.onnx", 1)
    for kind, differences in decoder_differences(model, graph, session, images).items():
        for name, difference in differences.items():
            assert difference < 1e-4, (kind, name)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_exporter_that_pytorch_keeps(images, tmp_path, part):
    """With one object and eight, with and without points, from one example: nothing of it was taken for fixed."""
    pytest.importorskip("onnxscript", reason='onnxscript is not installed: pip install -e ".[deploy]"')
    model = small(64)
    if part == "encoder":
        save(trace_encoder(EncoderGraph(model, preprocess=True), exporter="dynamo"), tmp_path / "e.onnx")
        assert encoder_difference(model, OnnxRuntimeSession(tmp_path / "e.onnx", 1), images) < 1e-4
        return
    graph = DecoderGraph(model, single_mask=True)
    save(trace_decoder(graph, exporter="dynamo"), tmp_path / "d.onnx")
    found = decoder_differences(model, graph, OnnxRuntimeSession(tmp_path / "d.onnx", 1), images)
    assert {kind: max(by_output.values()) < 1e-4 for kind, by_output in found.items()} == dict.fromkeys(found, True)


def test_an_exporter_refuses_opsets_that_it_does_not_write(model):
    with pytest.raises(UsageError, match="--opset 17: must be 18 to 23 with --exporter dynamo"):
        trace_encoder(EncoderGraph(model), 17, "dynamo")


class WayBack(torch.nn.Module):
    """The end of a decoder's graph alone."""

    def __init__(self, frame: int) -> None:
        super().__init__()
        self.back = Back(frame)

    def forward(self, logits: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        return self.back(logits, *size.long())


@pytest.fixture(scope="module")
def way_back(tmp_path_factory) -> OnnxRuntimeSession:
    """logits (1, 1, 256, 256) and size -> masks, in ONNX Runtime."""
    path = tmp_path_factory.mktemp("back") / "back.onnx"
    torch.onnx.export(
        WayBack(256),
        (torch.randn(1, 1, 256, 256), torch.tensor([300.0, 400.0])),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["logits", "size"],
        output_names=["masks"],
        dynamic_axes={"masks": {2: "height", 3: "width"}},
    )
    return OnnxRuntimeSession(path, 1)


@pytest.mark.parametrize("size", [(256, 256), (1, 300), (255, 257), (186, 198), (708, 744), (1500, 31), (4500, 16)])
def test_masks_come_back_in_the_graph_as_in_the_predictor(way_back, size):
    logits = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    found = way_back({"logits": logits.numpy(), "size": np.array(size, np.float32)})["masks"]
    assert np.abs(found - back(logits, size).numpy()).max() < 1e-4


@pytest.mark.parametrize("factor", [0.75, 1, 1.5, 2, 4])
def test_a_perfect_answer_comes_back_from_the_graph(way_back, factor):
    side = round(factor * 256)
    mask = np.zeros((side, side), np.uint8)
    centre, axes = (round(0.45 * side), round(0.55 * side)), (round(0.3 * side), round(0.2 * side))
    cv2.ellipse(mask, centre, axes, 20, 0, 360, 1, -1)
    seen = cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST)
    answer = seen[None, None].astype(np.float32) * 20 - 10
    found = way_back({"logits": answer, "size": np.array([side, side], np.float32)})["masks"][0, 0] > 0
    assert 2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum()) >= 0.99
    assert np.abs(np.argwhere(found).mean(axis=0) - np.argwhere(mask).mean(axis=0)).max() < 0.25


def test_a_client_of_sam_feeds_logits_back(model, images, tmp_path):
    """And a predictor over the same file is told by it not to."""
    session, files = {}, {name: tmp_path / f"{name}.onnx" for name in ("e", "d", "plain")}
    save(trace_encoder(EncoderGraph(model)), files["e"])
    for name, logits_in in (("d", True), ("plain", False)):
        proto = trace_decoder(DecoderGraph(model, logits_in=logits_in))
        describe(proto, mask_input="logits" if logits_in else "probabilities")
        save(proto, files[name])
        session[name] = OnnxRuntimeSession(files[name], 1)
    predictor = SamPredictor(model)
    predictor.set_image(images[0], "BGR")
    box = [20.0, 20.0, 150.0, 180.0]
    first = predictor.predict(box=box)
    want = predictor.predict(box=box, mask_input=first.low_res[1])
    prompts = Prompts(boxes=torch.from_numpy(predictor.apply_boxes(np.array([box]))))
    feeds = decoder_inputs(predictor.get_image_embedding(), prompts, images[0].shape[:2])
    feeds |= {"mask_input": first.low_res[1][None, None], "has_mask_input": np.ones(1, np.float32)}
    assert np.abs(session["d"](feeds)["low_res_masks"][0, 1:] - want.low_res).max() < 1e-4
    assert np.abs(session["plain"](feeds)["low_res_masks"][0, 1:] - want.low_res).max() > 1e-3
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino")
        other = SamPredictor(open_runtime(backend, files["e"], files["d"], threads=1))
        other.set_image(images[0], "BGR")
        assert np.abs(other.predict(box=box, mask_input=first.low_res[1]).low_res - want.low_res).max() < 1e-3


def test_names_that_clients_know(model, tmp_path):
    save(trace_decoder(DecoderGraph(model), 17), tmp_path / "d.onnx")
    graph = onnx.load(str(tmp_path / "d.onnx")).graph
    assert [one.name for one in graph.input] == [
        "image_embeddings",
        "point_coords",
        "point_labels",
        "mask_input",
        "has_mask_input",
        "orig_im_size",
    ]
    assert [one.name for one in graph.output] == ["masks", "iou_predictions", "low_res_masks"]
    assert DecoderGraph(model, extra_metrics=True).output_names == [
        "masks",
        "iou_predictions",
        "stability_scores",
        "areas",
        "low_res_masks",
    ]


def test_extra_metrics_are_of_the_masks(model, tmp_path):
    graph = DecoderGraph(model, extra_metrics=True)
    save(trace_decoder(graph, 17), tmp_path / "d.onnx")
    session = OnnxRuntimeSession(tmp_path / "d.onnx", 1)
    found = session(
        {
            "image_embeddings": np.random.default_rng(0).normal(size=(1, 256, 6, 6)).astype(np.float32),
            "point_coords": np.full((1, 1, 2), 30, np.float32),
            "point_labels": np.ones((1, 1), np.float32),
            "mask_input": np.zeros((1, 1, 24, 24), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([40, 55], np.float32),
        }
    )
    assert np.array_equal(found["areas"], (found["masks"] > 0).sum((-2, -1)))
    stability = (found["masks"] > 1).sum((-2, -1)) / np.maximum((found["masks"] > -1).sum((-2, -1)), 1)
    assert np.abs(found["stability_scores"] - stability).max() < 1e-6


@pytest.mark.parametrize("precision", [*HALF])
def test_half_size_weights(model, images, tmp_path, precision):
    proto = trace_encoder(EncoderGraph(model), 17)
    save(proto, tmp_path / "full.onnx")
    halve(proto, precision)
    save(proto, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * (tmp_path / "full.onnx").stat().st_size
    assert 0 < encoder_difference(model, OnnxRuntimeSession(tmp_path / "half.onnx", 1), images) < 0.2


def test_int8_covers_linear_layers_and_adapters(model, images, tmp_path):
    proto = trace_encoder(EncoderGraph(model), 17)
    save(proto, tmp_path / "full.onnx")
    full = OnnxRuntimeSession(tmp_path / "full.onnx", 1)
    int8 = quantize(proto, (encoder_inputs(model, full, image) for image in images))
    save(int8, tmp_path / "int8.onnx")
    assert encoder_difference(model, OnnxRuntimeSession(tmp_path / "int8.onnx", 1), images) < 0.5
    stored = {tensor.name: tensor.data_type for tensor in int8.graph.initializer}
    for block in range(2):
        parts = [name for name in stored if f"blocks.{block}.Adapter." in name and name.endswith("_quantized")]
        assert len([p for p in parts if ".down" in p or ".up." in p]) == 5, parts
        assert all(stored[name] == onnx.TensorProto.INT8 for name in parts)


def test_a_graph_beyond_the_limit_gets_a_second_file(model, images, tmp_path):
    proto = trace_encoder(EncoderGraph(model), 17)
    with placed(tmp_path / "large.onnx") as path:
        save(proto, path, largest=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert encoder_difference(model, OnnxRuntimeSession(tmp_path / "large.onnx", 1), images) < 1e-4


def test_what_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(RuntimeError), placed(tmp_path / "m.onnx") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"] and (tmp_path / "m.onnx").read_bytes() == b"old"
    with pytest.raises(UsageError, match="ends in .onnx"), placed(tmp_path / "m.pth"):
        pass


# ---------------------------------------------------------------- commands


def run(*command: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Both files, by the commands of the README, from the weights that ship."""
    folder = tmp_path_factory.mktemp("files")
    encoder = run(
        "scripts/export_onnx_encoder_model.py",
        "--sam_checkpoint",
        WEIGHTS,
        "--output",
        folder / "t.encoder.onnx",
        "--model-type",
        "vit_t",
        "--image_size",
        "64",
        "--encoder_adapter",
        "True",
        "--quantize",
        "--calibration_images",
        "4",
    )
    assert encoder.returncode == 0, encoder.stderr
    (folder / "encoder.txt").write_text(encoder.stdout)
    decoder = run(
        "scripts/export_onnx_model.py",
        "--checkpoint",
        WEIGHTS,
        "--output",
        folder / "t.decoder.onnx",
        "--model-type",
        "vit_t",
        "--return-single-mask",
        "--opset",
        "16",
        "--image_size",
        "64",
        "--encoder_adapter",
        "True",
    )
    assert decoder.returncode == 0, decoder.stderr
    (folder / "decoder.txt").write_text(decoder.stdout)
    return folder


def test_exports_end_with_a_comparison(exported):
    encoder, decoder = (exported / "encoder.txt").read_text(), (exported / "decoder.txt").read_text()
    assert (
        "image_embeddings" in encoder
        and "largest difference" in encoder
        and "float32, eager" in encoder
        and "int8" in encoder
    )
    assert all(kind in decoder for kind in ("box", "points + mask", "low_res_masks"))
    table = {
        line.split(",")[0]: line.split()[-3:]
        for line in encoder.splitlines()
        if line.startswith(("float32, eager", "int8, ONNX"))
    }
    full, int8 = (np.array(table[name], float) for name in ("float32", "int8"))
    assert np.abs(full - int8).mean() < 1, "int8 changes the Dice of the demo's model by more than a point"


def test_the_example_gives_the_predictors_masks(exported, tmp_path):
    done = run(
        "main.py",
        "--encoder_model",
        exported / "t.encoder.onnx",
        "--decoder_model",
        exported / "t.decoder.onnx",
        "--work_dir",
        tmp_path,
        folder=ROOT / "examples/SAM-Med2D-onnxruntime",
    )
    assert done.returncode == 0, done.stderr
    from segment_anything import sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True, checkpoint=str(WEIGHTS)))
    predictor.set_image(read_image(str(IMAGES[0])), "BGR")
    point = predictor.predict([[110, 60]], [1])
    best = point.iou.argmax()
    refined = predictor.predict([[110, 60], [40, 60]], [1, 0], mask_input=point.low_res[best])
    box = predictor.predict(box=[80, 9, 150, 181])
    for name, want in (("point", point), ("refined", refined), ("box", box)):
        best = want.iou.argmax()
        line = next(line for line in done.stdout.splitlines() if line.startswith(name))
        assert f"predicted IoU {want.iou[best]:.3f}, {want.masks[best].sum()} pixels" in line
        assert (tmp_path / f"mni152_axial_094_{name}.png").stat().st_size > 1000


def test_the_example_needs_no_pytorch():
    text = (ROOT / "examples/SAM-Med2D-onnxruntime/main.py").read_text()
    assert "import torch" not in text and "segment_anything" not in text.replace("SAM-Med2D", "")


@pytest.mark.parametrize(
    "script, flags, message",
    [
        (export_decoder, ["--checkpoint", "nowhere.pth", "--output", "x.onnx"], "nowhere.pth"),
        (export_decoder, ["--checkpoint", str(WEIGHTS), "--output", "x.bin"], "ends in .onnx"),
        (
            export_encoder,
            ["--checkpoint", str(WEIGHTS), "--output", "x.onnx", "--opset", "9"],
            "--opset 9",
        ),
        (
            export_encoder,
            ["--checkpoint", str(WEIGHTS), "--output", "x.onnx", "--use-preprocess", "--quantize"],
            "int8",
        ),
        (
            export_encoder,
            ["--checkpoint", str(WEIGHTS), "--output", "x.onnx", "--data_path", "nowhere"],
            "nowhere",
        ),
    ],
)
def test_bad_input_ends_in_one_line(script, flags, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    if "--data_path" not in flags:
        flags = [*flags, "--data_path", str(ROOT / "data_demo")]
    with pytest.raises(SystemExit) as ended:
        script.main(flags)
    assert message in f"{ended.value} {capsys.readouterr().err}" and not list(tmp_path.iterdir())


def test_outside_a_clone_images_to_compare_on_must_be_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: --data_path: there is no data_demo in this folder; name a folder"):
        export_encoder.main(["--checkpoint", "small", "--output", "x.onnx"])


def test_the_example_names_a_missing_file():
    done = run("examples/SAM-Med2D-onnxruntime/main.py", "--encoder_model", "a.onnx", "--decoder_model", "b.onnx")
    assert done.returncode == 1 and done.stderr.startswith("error: b.onnx: not found")


def test_the_int8_file_has_the_name_that_the_help_says(exported, capsys):
    with pytest.raises(SystemExit):
        export_encoder.main(["--help"])
    assert "beside --output NAME.onnx as NAME.int8.onnx" in " ".join(capsys.readouterr().out.split())
    assert {"t.encoder.onnx", "t.encoder.int8.onnx"} <= {path.name for path in exported.iterdir()}
