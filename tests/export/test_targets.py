"""Files for other tools: what is in them, what they answer, and what they refuse. tests_clients/ has the tools."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sam_med2d.commands import export as command
from sam_med2d.errors import UsageError
from sam_med2d.export import weight_targets
from sam_med2d.export.frame1024 import OUTSIDE, PADDED, WHOLE, Encoder1024, StretchedDecoder1024, View, extent
from sam_med2d.export.graph_targets import write_sam1024, write_x_anylabeling
from sam_med2d.export.job import Job
from sam_med2d.export.parity import difference
from sam_med2d.export.targets import TARGETS, export
from sam_med2d.export.weight_targets import isats_name, write_isat, write_sam_pth, write_transformers
from segment_anything import Sam, SamPredictor, sam_model_registry
from segment_anything.checkpoint import open_weights
from segment_anything.frames import SAM, SAM_MED2D
from segment_anything.geometry import Stretch
from tests.conftest import ROOT
from tests.inference.test_backends import small
from tests.segment_anything.test_model import randomise

IMAGE = ROOT / "data_demo/images/mni152_axial_094.png"


def plain(frame: str = SAM_MED2D, **flags) -> Sam:
    return randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=False, frame=frame, **flags))


def tiny(frame: str = SAM_MED2D) -> Sam:
    model = small(96, adapters=frame == SAM_MED2D)
    model.frame = frame
    return model


def job(model: Sam, folder: Path, **more) -> Job:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Job(model.eval().requires_grad_(False), folder, "mine", [image], **more)


# ---------------------------------------------------------------- the 1024 px frame


@pytest.mark.parametrize("height, width", [(181, 258), (512, 512), (40, 70), (2000, 1300)])
def test_prompts_go_where_the_predictor_puts_them(height, width) -> None:
    """Through what clients make of them, of whole and half pixels, into the model's frame."""
    decoder = StretchedDecoder1024(small(96))
    content = torch.tensor([height, width]) * (1024 / max(height, width)) + 0.5
    scale = content.floor() / torch.tensor([height, width])
    view = View(torch.tensor([height, width]), scale, content.floor())
    draw = np.random.default_rng(0)
    places = np.floor(draw.random((200, 2)) * [width, height] * 2) / 2
    theirs = torch.from_numpy(places * scale.flip(0).numpy()).float()[None]
    points = decoder.coordinates(theirs, torch.ones(1, 200), view)[0]
    edges = decoder.coordinates(theirs, torch.full((1, 200), 2.0), view)[0]
    for axis, side in enumerate((width, height)):
        stretch = Stretch(side, 96)
        np.testing.assert_allclose(points[:, axis], stretch.points_to_frame(places[:, axis]), atol=0.02)
        np.testing.assert_allclose(edges[:, axis], stretch.edges_to_frame(places[:, axis]), atol=0.02)


def test_masks_come_back_as_from_the_predictor_and_stop_where_the_picture_stops() -> None:
    decoder = StretchedDecoder1024(small(96))
    frame = torch.randn(1, 1, 96, 96)
    scale = torch.tensor([1024 / 258, 1024 / 258])
    masks, theirs = decoder.masks(frame, View(torch.tensor([181, 258]), scale, torch.tensor([181.0, 258]) * scale))
    from segment_anything.geometry import back

    torch.testing.assert_close(masks, back(frame, (181, 258)), atol=1e-4, rtol=0)
    assert theirs.shape == (1, 1, 256, 256)
    # AnyLabeling's canvas is larger than the picture in it
    masks, _ = decoder.masks(frame, View(torch.tensor([684, 1024]), torch.ones(2), torch.tensor([684.0, 700])))
    assert (masks[..., 700:] == OUTSIDE).all() and (masks[..., :700] > OUTSIDE).all()


def test_the_encoder_sees_where_a_picture_ends() -> None:
    values = torch.zeros(3, 1024, 1024)
    values[:, :300, :1024] = 0.1
    values[:, 299, 5:] = 0
    assert [side.item() for side in extent(values)] == [300, 1024]
    values[:, 299] = 0
    assert extent(values)[0].item() == 299
    embedding = Encoder1024(small(96))(values[None])
    assert embedding.shape == (1, 256, 64, 64) and embedding[0, :2, 63, 63].tolist() == [299, 1024]
    assert not embedding[:, :, 6:, 6:63].any() and embedding[:, :, :6, :6].any()


def test_colours_reach_the_model_in_its_own_order() -> None:
    """RGB from the client, BGR for the model: red and blue of a plain picture change places."""
    model = small(96)
    image = torch.zeros(96, 96, 3) + torch.tensor([200.0, 100, 50])
    found = Encoder1024(model, WHOLE)(image)[:, :, :6, :6]
    bgr = image.flip(-1).permute(2, 0, 1)[None]
    expected = model.encode(bgr)
    assert difference(found.detach().numpy(), expected.detach().numpy()) < 1e-4


@pytest.mark.parametrize("reads, frame", [(PADDED, SAM_MED2D), (WHOLE, SAM_MED2D), (PADDED, SAM), (WHOLE, SAM)])
def test_sam1024_is_the_model_whatever_its_frame(reads, frame, tmp_path) -> None:
    """The padding point behind a box changes nothing; shapes are those that clients read."""
    client = write_sam1024(job(tiny(frame), tmp_path, reads=reads))
    assert client.encoder.inputs == {reads: (1, 3, 1024, 1024) if reads == PADDED else (None, None, 3)}
    client.set_image(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    corners, labels = np.array([[10.0, 5], [50, 30]]), np.array([2, 3])
    with_padding = client.mask(corners, labels)
    client.placed = lambda points, labels: (points * [1024 / 60, 683 / 40], labels)
    np.testing.assert_array_equal(client.mask(corners, labels), with_padding)
    assert with_padding.shape == (40, 60)
    assert (tmp_path / "mine.yaml").exists() == (reads == WHOLE)


def test_fed_back_masks_count_from_a_half_on(tmp_path) -> None:
    """osam says -1 where it has none."""
    client = write_sam1024(job(tiny(), tmp_path))
    embeddings = np.random.default_rng(0).normal(size=(1, 256, 64, 64)).astype(np.float32)
    embeddings[0, :2, 63, 63] = 683, 1024
    feeds = {
        "image_embeddings": embeddings,
        "point_coords": np.array([[[300, 200]]], np.float32),
        "point_labels": np.ones((1, 1), np.float32),
        "mask_input": np.full((1, 1, 256, 256), 5, np.float32),
        "orig_im_size": np.array([40, 60], np.float32),
    }
    answers = [client.decoder({**feeds, "has_mask_input": np.array([flag], np.float32)}) for flag in (-1, 0, 1)]
    np.testing.assert_array_equal(answers[0]["low_res_masks"], answers[1]["low_res_masks"])
    assert np.abs(answers[2]["low_res_masks"] - answers[0]["low_res_masks"]).max() > 1e-3


def test_the_command_ends_with_a_comparison(tmp_path, capsys) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/one.png").write_bytes(IMAGE.read_bytes())
    flags = ["--target", "x-anylabeling", "--sam_checkpoint", "small", "--refine", "False", "--image_size", "64"]
    flags += ["--data_path", str(tmp_path / "images")]
    command.main([*flags, "--output", str(tmp_path / "tool"), "--name", "../mine"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Dice to eager"))
    box, click = (float(part.split()[-1]) for part in line.partition("images: ")[2].split(", "))
    assert box > 0.95 and click > 0.95
    assert {path.name for path in (tmp_path / "tool").iterdir()} == {
        *("mine.encoder.onnx", "mine.decoder.onnx", "mine.yaml", "README.md")
    }
    assert f"box {box:.4f}" in (tmp_path / "tool/README.md").read_text()
    assert "input_size: 1024" in (tmp_path / "tool/mine.yaml").read_text()


# ---------------------------------------------------------------- weights


def test_transformers_opens_the_folder_and_it_comes_back(tmp_path) -> None:
    import transformers

    model = plain(SAM)
    dices = export("transformers", job(model, tmp_path))
    assert dices["click"] == 1.0
    theirs, report = transformers.SamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    processor = transformers.SamProcessor.from_pretrained(tmp_path)
    image = job(model, tmp_path).images[0][..., ::-1].copy()
    inputs = processor(image, input_boxes=[[[5, 5, 50, 30]]], return_tensors="pt")
    with torch.no_grad():
        answer = theirs(**inputs)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    assert difference(answer.pred_masks[0, 0].numpy(), predictor.predict(box=[5, 5, 50, 30]).low_res) < 5e-3
    file = open_weights(tmp_path / "model.safetensors")
    assert file.frame == SAM
    for name, tensor in model.state_dict().items():
        assert torch.equal(file.tensors[name], tensor), name
    assert len(load_file(tmp_path / "model.safetensors")) == len(file.tensors) == 314


def test_sam_pth_is_strictly_sams(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(weight_targets, "SAMS_SIZE", 96)  # 1024 takes long
    monkeypatch.setattr(weight_targets, "PLAIN", ("vit_t",))
    write_sam_pth(job(plain(), tmp_path))
    weights = torch.load(tmp_path / "sam_vit_t_mine.pth", weights_only=True)
    with torch.device("meta"):
        built = sam_model_registry["vit_t"](image_size=96, encoder_adapter=False)
    assert {name: t.shape for name, t in weights.items()} == {n: t.shape for n, t in built.state_dict().items()}
    assert "was trained in SAM-Med2D's frame" in capsys.readouterr().out


def test_isat_takes_the_file_for_a_sam_med2d(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weight_targets, "ISATS_SIZE", 64)
    monkeypatch.setattr(weight_targets, "model_type_of", lambda model: "vit_b")
    model = randomise(sam_model_registry["vit_t"](image_size=64, encoder_adapter=True))
    write_isat(job(model, tmp_path))
    content = torch.load(tmp_path / "mine_med2d.pth", weights_only=True)
    assert [*content] == ["model"] and content["model"].keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["mine", "sam-med2d_b", "sam_vit_b_01ec64", "my_sam2_med2d", "x_edge_sam"])
def test_names_that_isat_knows(name) -> None:
    """Its own rules, in their order: med2d is asked for last."""
    found = isats_name(name)
    assert "med2d" in found
    assert not [
        other for other in ("mobile_sam", "edge_sam", "sam_hq_vit", "sam_vit", "sam2", "sam3") if other in found
    ]


# ---------------------------------------------------------------- refused


def test_what_a_target_cannot_hold_is_said_in_one_line(tmp_path) -> None:
    adapters = sam_model_registry["vit_t"](image_size=64, encoder_adapter=True)
    refined = plain(SAM, refine=True)
    for write, model, words in (
        (write_sam_pth, adapters, "no place for adapters, which are layers beside SAM's; train with --tune lora"),
        (write_transformers, adapters, "take --target sam1024, onnx or isat, or leave them out"),
        *((partial(export, name), refined, "--refine False") for name in TARGETS if name != "monai"),
        (write_sam_pth, plain(), "know vit_b, vit_l, vit_h, and this model is vit_t, 64 px"),
        (write_isat, adapters, "ISAT's model is vit_b, 256 px, adapters"),
        (write_x_anylabeling, plain(SAM), "--target sam1024 --encoder_input input_image"),
        (write_sam1024, small(1024), "models of up to 992 px in this frame; take --target onnx"),
    ):
        with pytest.raises(UsageError, match=words) as error:
            write(job(model, tmp_path))
        assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--target", "cvat"], "there is no such target; choose one of onnx, x-anylabeling"),
        (["--target", "onnx", "--data_path", "nowhere"], "there is no folder nowhere"),
        (["--target", "onnx", "--sam_checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--target", "sam1024", "--sam_checkpoint", "small", "--refine", "False", "--opset", "9"], "--opset 9"),
    ],
)
def test_bad_flags_end_in_one_line(flags, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "--data_path" not in flags:
        flags = [*flags, "--data_path", str(ROOT / "data_demo")]
    with pytest.raises(SystemExit, match=words) as ended:
        command.main(flags)
    assert str(ended.value).startswith("error: ") and "\n" not in str(ended.value)


def test_every_target_is_documented() -> None:
    page = (ROOT / "docs/interop.md").read_text()
    assert [name for name in TARGETS if f"`{name}`" not in page] == []
