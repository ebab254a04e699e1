"""Exported files in ONNX Runtime and OpenVINO, behind the interface of the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

for module in ("onnx", "onnxruntime"):
    pytest.importorskip(module, reason=f'{module} is not installed: pip install -e ".[deploy]"')

from sam_med2d.errors import UsageError
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph, RefinementGraph
from sam_med2d.export.onnx_files import describe, save, trace_decoder, trace_encoder, trace_refinement
from sam_med2d.export.parity import PROMPT_KINDS, prompts_of
from sam_med2d.inference.backends import BACKENDS, CHOOSING, REFINED, open_runtime, open_session
from segment_anything import ObjectPrompt, Sam, SamPredictor, best_of
from segment_anything.frames import SAM_MED2D
from segment_anything.modeling import ImageEncoder, MaskDecoder, PromptEncoder, Refinement
from segment_anything.zoom import Crop
from tests.segment_anything.test_model import assert_near, randomise


def small(image_size: int = 96, adapters: bool = True) -> Sam:
    """Two blocks, one with windows (cut by the edge of the map beyond 224 px), one global."""
    encoder = ImageEncoder(image_size, 32, 2, 2, (1,), adapters)
    prompts = PromptEncoder(256, (image_size // 16,) * 2, (image_size, image_size))
    return randomise(Sam(encoder, prompts, MaskDecoder(transformer_dim=256), frame=SAM_MED2D)).eval()


@pytest.fixture(scope="module")
def model() -> Sam:
    return small()


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save(trace_encoder(EncoderGraph(model), 17), folder / "encoder.onnx")
    save(trace_encoder(EncoderGraph(model, batch=None), 17), folder / "encoder_any.onnx")
    save(trace_encoder(EncoderGraph(model, preprocess=True), 17), folder / "encoder_geometry.onnx")
    save(trace_decoder(DecoderGraph(model), 17), folder / "decoder.onnx")
    save(trace_decoder(DecoderGraph(model, single_mask=True), 17), folder / "decoder_best.onnx")
    return folder


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason='openvino is not installed: pip install -e ".[deploy]"')
    return request.param


@torch.inference_mode()
@pytest.mark.parametrize("encoder", ["encoder", "encoder_any"])
def test_several_images_are_encoded_as_by_the_model(model, files, backend, encoder):
    runtime = open_runtime(backend, files / f"{encoder}.onnx", files / "decoder.onnx", threads=1)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    content = torch.tensor([[0, 0, 96, 96], [10, 20, 60, 50], [0, 1, 96, 94]])
    assert_near(runtime.encode(images, content), model.encode(images, content))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 8])
def test_every_kind_of_prompt_and_output(model, files, backend, rows):
    runtime = open_runtime(backend, files / "encoder.onnx", files / "decoder.onnx", threads=1)
    embeddings = torch.randn(1, 256, 6, 6).expand(rows, -1, -1, -1)
    for kind in PROMPT_KINDS:
        prompts = prompts_of(kind, rows, 96)
        for multimask in (True, False, None):
            for got, want in zip(
                runtime.predict(embeddings, prompts, multimask), model.predict(embeddings, prompts, multimask)
            ):
                assert got.shape == want.shape
                assert_near(got, want)


@torch.inference_mode()
def test_the_file_of_the_best_mask_gives_the_best_and_nothing_else(model, files, backend):
    runtime = open_runtime(backend, files / "encoder.onnx", files / "decoder_best.onnx", threads=1)
    embeddings, prompts = torch.randn(4, 256, 6, 6), prompts_of("points", 4, 96)
    for got, want in zip(
        best_of(runtime.predict(embeddings, prompts, True)), best_of(model.predict(embeddings, prompts, True))
    ):
        assert_near(got, want)
    with pytest.raises(UsageError, match="return-single-mask"):
        runtime.predict(embeddings, prompts, False)


def test_the_predictor_works_on_it_unchanged(model, files, backend):
    image = np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8)
    found = []
    for one in (model, open_runtime(backend, files / "encoder.onnx", files / "decoder.onnx", threads=1)):
        predictor = SamPredictor(one)
        predictor.set_image(image)
        first = predictor.predict([[30, 40]], [1], return_logits=True)
        found.append(
            (
                *first,
                *predictor.predict(box=[[5, 5, 60, 60], [20, 10, 120, 69]], return_logits=True),
                *predictor.predict([[30, 40], [90, 20]], [1, 0], mask_input=first.low_res[0], return_logits=True),
            )
        )
    for got, want in zip(*found):
        assert got.shape == want.shape and np.abs(got - want).max() < 1e-4


@torch.inference_mode()
def test_clients_get_the_eager_answer_with_and_without_an_absent_point_of_their_own(model, files, backend):
    """SAM's clients append (0, 0) with label -1 to points without a box, SAM-Med2D's do not."""
    session = open_session(backend, files / "decoder.onnx", 1)
    embeddings, prompts = torch.randn(1, 256, 6, 6), prompts_of("points", 1, 96)
    want = model.predict(embeddings, prompts, None)
    feeds = {
        "image_embeddings": embeddings.numpy(),
        "mask_input": np.zeros((1, 1, 24, 24), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([50, 40], np.float32),
    }
    points, labels = prompts.points.numpy(), prompts.labels.float().numpy()
    for appended in (0, 1):
        found = session(
            feeds
            | {
                "point_coords": np.pad(points, ((0, 0), (0, appended), (0, 0))),
                "point_labels": np.pad(labels, ((0, 0), (0, appended)), constant_values=-1),
            }
        )
        assert np.abs(found["low_res_masks"] - want.logits.numpy()).max() < 1e-4
        assert found["masks"].shape == (1, 4, 50, 40)


def test_openvino_in_bfloat16_is_near(model, files):
    pytest.importorskip("openvino", reason='openvino is not installed: pip install -e ".[deploy]"')
    runtime = open_runtime("openvino", files / "encoder.onnx", files / "decoder.onnx", threads=1, precision="bfloat16")
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert (runtime.encode(images) - model.encode(images)).abs().max() < 0.2


def test_files_that_do_not_fit_end_in_a_message(files, backend, tmp_path):
    with pytest.raises(UsageError, match="not found"):
        open_runtime(backend, files / "missing.onnx", files / "decoder.onnx")
    with pytest.raises(UsageError, match="no encoder"):
        open_runtime(backend, files / "decoder.onnx", files / "decoder.onnx")
    with pytest.raises(UsageError, match="inputs of a decoder"):
        open_runtime(backend, files / "encoder.onnx", files / "encoder.onnx")
    with pytest.raises(UsageError, match="use-preprocess"):
        open_runtime(backend, files / "encoder_geometry.onnx", files / "decoder.onnx")
    other = small(64)
    save(trace_decoder(DecoderGraph(other), 17), tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="64 px"):
        open_runtime(backend, files / "encoder.onnx", tmp_path / "other.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"not a graph")
    with pytest.raises(UsageError, match="cannot be opened"):
        open_runtime(backend, tmp_path / "damaged.onnx", files / "decoder.onnx")


def test_onnxruntime_has_no_other_precision(files):
    with pytest.raises(UsageError, match="openvino"):
        open_session("onnxruntime", files / "encoder.onnx", precision="bfloat16")


# ---------------------------------------------------------------- a refinement network


@pytest.fixture(scope="module")
def refining() -> Sam:
    base = small()
    model = Sam(base.image_encoder, base.prompt_encoder, base.mask_decoder, refinement=Refinement(channels=(8, 8, 8)))
    randomise(model).refinement.will_learn()
    return model.eval()


@pytest.fixture(scope="module")
def three(refining, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    save(trace_encoder(EncoderGraph(refining), 17), folder / "encoder.onnx")
    decoder = trace_decoder(DecoderGraph(refining), 17)
    describe(decoder, **{REFINED: True, CHOOSING: 1})
    save(decoder, folder / "decoder.onnx")
    save(trace_refinement(RefinementGraph(refining), 17), folder / "refinement.onnx")
    return folder


def test_a_refinement_network_answers_as_in_the_model(refining, three, backend):
    files = (three / f"{name}.onnx" for name in ("encoder", "decoder", "refinement"))
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)  # whose pixels are the frame's
    predictors = [SamPredictor(model, zoom="never") for model in (refining, open_runtime(backend, *files, threads=1))]
    for predictor in predictors:
        predictor.set_image(image)
    first = [predictor.predict([[30, 20], [60, 50]], [1, 0], return_logits=True) for predictor in predictors]
    assert_near(*(torch.from_numpy(found.masks) for found in first))
    assert (first[1].masks[:, 20, 30] > 0).all() and (first[1].masks[:, 50, 60] < 0).all()
    low_res = first[0].low_res[0]
    again = [
        predictor.predict(
            [[[30, 20]], [[60, 50]]],
            [[1], [0]],
            [[5, 5, 40, 40], [30, 30, 80, 60]],
            mask_input=np.stack([low_res, low_res])[:, None],
            return_logits=True,
        )
        for predictor in predictors
    ]
    assert_near(*(torch.from_numpy(found.masks) for found in again))
    places = [[30, 20], [60, 50], [10, 80], [80, 15], [45, 45]]
    late = [
        predictor.predict(places, [1, 0, 1, 0, 1], mask_input=low_res[None], return_logits=True, best=True)
        for predictor in predictors
    ]
    assert_near(*(torch.from_numpy(found.masks) for found in late))
    refining.refinement.settling.zero_()
    unsettled = predictors[0].predict(places, [1, 0, 1, 0, 1], mask_input=low_res[None], return_logits=True, best=True)
    refining.refinement.will_learn()
    assert np.abs(unsettled.masks - late[1].masks).max() > 0.01
    plain = SamPredictor(open_runtime(backend, three / "encoder.onnx", three / "decoder.onnx", threads=1))
    plain.set_image(image)
    assert np.abs(plain.predict([[30, 20]], [1], return_logits=True).masks - first[0].masks).max() > 0.01


def test_a_refinement_network_answers_as_in_the_model_looking_closer(refining, three, backend, monkeypatch):
    monkeypatch.setattr("segment_anything.closer.grown", lambda *_: None)  # random answers lie at every edge
    files = (three / f"{name}.onnx" for name in ("encoder", "decoder", "refinement"))
    image = np.random.default_rng(0).integers(0, 256, (140, 220, 3), dtype=np.uint8)
    asked = [
        [ObjectPrompt(box=np.array([70, 40, 110, 66], np.float32))],
        [ObjectPrompt(np.array([[30.0, 20], [190, 120]], np.float32), np.array([1, 0]))],
        [ObjectPrompt(np.array([[90.0, 50]], np.float32), np.array([1]), np.array([70, 40, 110, 66], np.float32))] * 2,
    ]
    answers = []
    for model in (refining, open_runtime(backend, *files, threads=1)):
        predictor = SamPredictor(model)
        predictor.set_image(image, encode=False)
        found = [(predictor.predict_objects(objects, return_logits=True), predictor.crops) for objects in asked]
        box, crops = found[0]
        again = ObjectPrompt(*asked[2][0][:3], box.low_res[0, box.iou[0].argmax()])  # one more click, fed back
        found.append((predictor.predict_objects([again], return_logits=True, best=True), predictor.crops))
        assert crops == predictor.crops == [Crop(60, 34, 60, 39)]
        answers.append(found)
    for (want, there), (got, crops) in zip(*answers):
        assert crops == there
        for one, other in zip(got, want):
            assert one.shape == other.shape
            assert_near(torch.from_numpy(one), torch.from_numpy(other))


def test_files_of_which_only_some_have_the_part(files, three, capsys):
    with pytest.raises(UsageError, match="is of a model without a refinement network"):
        open_runtime("onnxruntime", files / "encoder.onnx", files / "decoder.onnx", three / "refinement.onnx")
    open_runtime("onnxruntime", three / "encoder.onnx", three / "decoder.onnx")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "which is left out; name its file with --refinement_model" in said
    with pytest.raises(UsageError, match="has not the inputs of a refinement network"):
        open_runtime("onnxruntime", three / "encoder.onnx", three / "decoder.onnx", three / "decoder.onnx")
