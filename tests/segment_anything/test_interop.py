"""What projects that import SAM's package use, and the frames: against transformers' SamModel, or by SAM's formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segment_anything import (
    CheckpointError,
    PromptError,
    SamAutomaticMaskGenerator,
    SammedPredictor,
    SamPredictor,
    sam_model_registry,
)
from segment_anything.checkpoint import save_weights
from segment_anything.frames import SAM, SAM_MED2D
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PositionEmbeddingRandom,
    PromptEncoder,
    Sam,
    TwoWayAttentionBlock,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from segment_anything.utils.amg import (
    area_from_rle,
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
    coco_encode_rle,
    is_box_near_crop_edge,
    mask_to_rle_pytorch,
    remove_small_regions,
    rle_to_mask,
)
from segment_anything.utils.onnx import SamOnnxModel
from segment_anything.utils.transforms import ResizeLongestSide
from tests.segment_anything.test_model import randomise

SIDE, HEIGHT, WIDTH = 64, 40, 70  # 70 x 40 becomes 64 x 37
BOX = np.array([10, 5, 60, 35])


def build(frame: str = SAM, **flags) -> Sam:
    return randomise(sam_model_registry["vit_t"](image_size=SIDE, encoder_adapter=False, frame=frame, **flags))


@pytest.fixture(scope="module")
def model() -> Sam:
    return build()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


@pytest.fixture
def predictor(model, image) -> SamPredictor:
    predictor = SamPredictor(model)
    predictor.set_image(image)
    return predictor


def by_hand(model: Sam, image: np.ndarray, box: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM's inference of a box, written out: RGB, longest side, bilinear, zeros after normalisation."""
    height, width = int(HEIGHT * SIDE / WIDTH + 0.5), SIDE
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    values = torch.from_numpy(resized).permute(2, 0, 1).float()
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    frame = torch.zeros(1, 3, SIDE, SIDE)
    frame[0, :, :height, :width] = (values - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        scale = torch.tensor([width / WIDTH, height / HEIGHT] * 2)
        sparse, dense = model.prompt_encoder(boxes=torch.from_numpy(box).float()[None] * scale)
        low_res, _ = model.mask_decoder(
            model.image_encoder(frame), model.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
    masks = F.interpolate(low_res, (SIDE, SIDE), mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(masks, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0], low_res[0]


# ---------------------------------------------------------------- SAM's frame


def test_predictor_in_sams_frame_does_what_sam_does(model, image, predictor) -> None:
    logits, low_res = by_hand(model, image, BOX)
    found = predictor.predict(box=BOX, return_logits=True)
    np.testing.assert_allclose(found.low_res, low_res, atol=1e-4)
    np.testing.assert_allclose(found.masks, logits, atol=1e-4)
    assert predictor.input_size == (37, 64) and predictor.original_size == (HEIGHT, WIDTH)
    assert predictor.transform.target_length == SIDE and isinstance(predictor.transform, ResizeLongestSide)


def test_bgr_is_turned_and_the_other_frame_answers_otherwise(image, predictor) -> None:
    expected = predictor.predict(box=BOX).low_res
    predictor.set_image(image[..., ::-1], "BGR")
    np.testing.assert_allclose(predictor.predict(box=BOX).low_res, expected, atol=1e-6)
    other = SamPredictor(build(SAM_MED2D))
    other.set_image(image)
    assert np.abs(other.predict(box=BOX).low_res - expected).max() > 0.01


def test_logits_are_fed_back_as_they_are(model, predictor) -> None:
    low_res = predictor.predict(box=BOX).low_res
    again = predictor.predict(box=BOX, mask_input=low_res[:1], multimask_output=False)
    with torch.no_grad():
        sparse, dense = model.prompt_encoder(
            boxes=torch.from_numpy(predictor.apply_boxes(BOX)).float(), masks=torch.from_numpy(low_res[:1])[None]
        )
        expected, _ = model.mask_decoder(
            predictor.features, model.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
        )
    np.testing.assert_allclose(again.low_res, expected[0], atol=1e-5)


def test_transformers_sam_agrees_through_its_processor(model, image, predictor) -> None:
    """An independent SAM of the same numbers, fed by its own processor."""
    from transformers import SamImageProcessor

    processor = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    frame, content = predictor.framed(np.ascontiguousarray(image[..., ::-1]))
    ours = model.prepared(frame, content)
    assert (theirs - ours).abs().max() < 0.05  # its resize may round a grey value otherwise


def test_forward_takes_a_list_of_dictionaries(model, image, predictor) -> None:
    resized = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)
    box = torch.from_numpy(predictor.apply_boxes(BOX)).float()
    points = torch.tensor([[[20.0, 10.0]], [[40.0, 30.0]]])
    first, second = model(
        [
            {"image": resized, "original_size": (HEIGHT, WIDTH), "boxes": box},
            {
                "image": resized,
                "original_size": (HEIGHT, WIDTH),
                "point_coords": points,
                "point_labels": torch.ones(2, 1),
            },
        ],
        multimask_output=True,
    )
    expected = predictor.predict(box=BOX)
    np.testing.assert_array_equal(first["masks"][0], expected.masks)
    np.testing.assert_allclose(first["low_res_logits"][0], expected.low_res, atol=1e-5)
    assert second["masks"].shape == (2, 3, HEIGHT, WIDTH) and second["iou_predictions"].shape == (2, 3)


def test_callers_that_keep_embeddings(model, image, predictor) -> None:
    """As micro-sam and label tools do: the attributes are set one by one."""
    expected = predictor.predict(box=BOX)
    other = SamPredictor(model)
    other.features, other.original_size, other.input_size = predictor.features, (HEIGHT, WIDTH), (37, 64)
    other.is_image_set = True
    np.testing.assert_array_equal(other.predict(box=BOX).masks, expected.masks)
    other.reset_image()
    assert not other.is_image_set
    other.set_torch_image(
        torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None], (HEIGHT, WIDTH)
    )
    np.testing.assert_allclose(other.predict(box=BOX).low_res, expected.low_res, atol=1e-5)


def test_one_embedding_serves_many_prompts(model, predictor) -> None:
    boxes = torch.tensor([[10.0, 5, 50, 30], [0, 0, 20, 20], [5, 5, 60, 36]])
    sparse, dense = model.prompt_encoder(boxes=boxes)
    pe = model.prompt_encoder.get_dense_pe()
    with torch.no_grad():
        many = model.mask_decoder(predictor.features, pe, sparse, dense, multimask_output=False)[0]
        single = model.mask_decoder(predictor.features, pe, sparse[1:2], dense[1:2], multimask_output=False)[0]
    torch.testing.assert_close(many[1:2], single, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- models as others build them


def test_the_registry_builds_what_the_file_is(tmp_path, image, model) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(model.state_dict(), path, metadata={"frame": SAM})
    for opened in (
        sam_model_registry["vit_t"](checkpoint=str(path)),
        sam_model_registry["vit_t"](str(path)),
        sam_model_registry["vit_t"](path),
    ):
        assert (opened.image_size, opened.frame, opened.image_encoder.adapters()) == (SIDE, SAM, [])
        for name, tensor in model.state_dict().items():
            assert torch.equal(opened.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match="vit_t"):
        sam_model_registry["vit_b"](checkpoint=str(path))


def test_a_file_without_a_frame_is_judged_by_its_kind(tmp_path) -> None:
    for size, adapters, frame in ((1024, False, SAM), (64, False, SAM_MED2D), (64, True, SAM_MED2D)):
        path = tmp_path / f"{size}{adapters}.pth"
        with torch.device("meta"):
            built = sam_model_registry["vit_t"](image_size=size, encoder_adapter=adapters)
        torch.save({name: torch.zeros(tensor.shape) for name, tensor in built.state_dict().items()}, path)
        assert sam_model_registry["vit_t"](checkpoint=path).frame == frame


def test_plain_sam_takes_sams_weights_strictly() -> None:
    with torch.device("meta"):
        plain = sam_model_registry["vit_b"]()
    assert plain.image_size == 1024 and plain.frame == SAM and not plain.image_encoder.adapters()
    assert plain.image_format == "RGB" and plain.mask_threshold == 0.0
    assert len(plain.state_dict()) == 314  # SAM's ViT-B
    encoder, decoder = plain.prompt_encoder, plain.mask_decoder
    assert (encoder.embed_dim, encoder.image_embedding_size) == (256, (64, 64))
    assert (encoder.input_image_size, encoder.mask_input_size) == ((1024, 1024), (256, 256))
    assert (decoder.num_mask_tokens, decoder.transformer_dim) == (4, 256)


def test_models_can_be_put_together_with_sams_arguments(model) -> None:
    own = Sam(
        image_encoder=ImageEncoderViT(
            depth=12,
            embed_dim=192,
            img_size=SIDE,
            mlp_ratio=4,
            num_heads=3,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[2, 5, 8, 11],
            window_size=14,
            out_chans=256,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(4, 4), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    own.load_state_dict(model.state_dict(), strict=True)
    assert own.frame == SAM
    assert isinstance(model.image_encoder, ImageEncoderViT)
    assert isinstance(model.mask_decoder.transformer.layers[0], TwoWayAttentionBlock)
    assert isinstance(model.prompt_encoder.pe_layer, PositionEmbeddingRandom)
    with pytest.raises(ValueError, match="patch_size 8, not 16"):
        ImageEncoderViT(patch_size=8)


def test_windows_there_and_back() -> None:
    x = torch.randn(2, 5, 7, 3)
    windows, padded = window_partition(x, 4)
    assert windows.shape == (8, 4, 4, 3) and padded == (8, 8)
    assert torch.equal(windows[0], x[0, :4, :4]) and torch.equal(windows[1, :, :3], x[0, :4, 4:])
    assert torch.equal(window_unpartition(windows, 4, padded, (5, 7)), x)


# ---------------------------------------------------------------- utils


def test_helpers_of_everything_mode() -> None:
    mask = torch.zeros(2, 8, 10, dtype=torch.bool)
    mask[0, 2:5, 3:9] = True
    assert batched_mask_to_box(mask).tolist() == [[3, 2, 8, 4], [0, 0, 0, 0]]
    rle = mask_to_rle_pytorch(mask)[0]
    assert area_from_rle(rle) == 18 and (rle_to_mask(rle) == mask[0].numpy()).all()
    assert isinstance(coco_encode_rle(rle)["counts"], str)
    np.testing.assert_allclose(build_point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]]])
    assert calculate_stability_score(logits, 0.0, 1.0).tolist() == pytest.approx([1 / 3])
    near = is_box_near_crop_edge(
        torch.tensor([[0, 50, 40, 90], [40, 40, 60, 60]]), [100, 0, 200, 100], [0, 0, 300, 100]
    )
    assert near.tolist() == [True, False]
    holed = mask[0].numpy().copy()
    holed[3, 5] = False
    filled, changed = remove_small_regions(holed, 2, "holes")
    assert changed and (filled == mask[0].numpy()).all()


def test_onnx_module_answers_as_the_predictor(model, predictor) -> None:
    graph = SamOnnxModel(model, return_single_mask=False)
    corners = torch.from_numpy(predictor.apply_boxes(BOX)).float().reshape(1, 2, 2)
    masks, iou, low_res = graph(
        predictor.features,
        corners,
        torch.tensor([[2.0, 3.0]]),
        torch.zeros(1, 1, SIDE // 4, SIDE // 4),
        torch.zeros(1),
        torch.tensor([float(HEIGHT), float(WIDTH)]),
    )
    expected = predictor.predict(box=BOX, return_logits=True)
    np.testing.assert_allclose(masks[0, 1:], expected.masks, atol=1e-4)
    np.testing.assert_allclose(iou[0, 1:], expected.iou, atol=1e-5)
    assert low_res.shape == (1, 4, SIDE // 4, SIDE // 4)


def test_everything_mode_runs_in_sams_frame(model, image) -> None:
    generator = SamAutomaticMaskGenerator(model, points_per_side=3, pred_iou_thresh=-9, stability_score_thresh=0.0)
    for found in generator.generate(image):
        assert found["segmentation"].shape == (HEIGHT, WIDTH) and found["segmentation"].sum() == found["area"]


# ---------------------------------------------------------------- callers' habits


def test_less_than_a_pixel_outside_is_taken_to_the_edge(predictor) -> None:
    inside = predictor.predict(box=[0, 5, WIDTH, 35])
    np.testing.assert_array_equal(predictor.predict(box=[-0.4, 5, WIDTH + 0.7, 35]).masks, inside.masks)
    with pytest.raises(PromptError, match="reaches outside"):
        predictor.predict(box=[-1, 5, 30, 35])


def test_sammed_predictor_answers_what_the_original_answers(image) -> None:
    model = build(SAM_MED2D)
    sammed = SammedPredictor(model)
    sammed.set_image(image)
    for box in ([-1, -1, WIDTH + 3, HEIGHT + 2], [10, 5, 10, 30]):
        masks, iou, low_res = sammed.predict(box=np.array(box))
        assert masks.shape == (1, HEIGHT, WIDTH) and masks.dtype == np.float32 and set(np.unique(masks)) <= {0.0, 1.0}
        assert (masks * 255).max() <= 255 and iou.shape == (1,)
    none = sammed.predict(None, None)
    assert none.masks.shape == (1, HEIGHT, WIDTH) and np.isfinite(none.low_res).all()
    logits = sammed.predict(box=BOX, mask_input=low_res)  # as callers of SAM do; the original takes them as they are
    probabilities = sammed.predict(box=BOX, mask_input=1 / (1 + np.exp(-low_res)))
    assert np.isfinite(logits.low_res).all() and np.abs(logits.low_res - probabilities.low_res).max() > 0
