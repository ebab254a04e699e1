"""MONAI Label over real sockets: images that are sent and images by name, clicks and boxes, each form of an answer."""

import json
import os
import shutil
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

pytest.importorskip("blosc2", reason='blosc2 is not installed: pip install -e ".[serve]"')

from sam_med2d.commands import segment_volume
from sam_med2d.inference.models import SMALL, open_model
from sam_med2d.serve.start import parse_args
from segment_anything import SamPredictor
from tests.conftest import ROOT
from tests.serve.serving import Running, blobs, serving_here

SERIES = Path(get_testdata_file("CT_small.dcm", download=False)).parent / "dicomdirtests/98892001/CT5N"
UID = str(pydicom.dcmread(min(SERIES.iterdir()), stop_before_pixels=True).SeriesInstanceUID)
PICTURE = ROOT / "data_demo/images/mni152_axial_094.png"
VOLUME = next(blobs())
MARK = "a-boundary"
SAGITTAL = (0.0, 0, -1, 1, 0, 0, 0, -1, 0)  # the third axis of the file runs from right to left


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    image = sitk.GetImageFromArray(VOLUME.astype(np.int16))
    sitk.WriteImage(image, str(folder / "ball.nrrd"))
    image.SetDirection(SAGITTAL)
    image.SetSpacing((1, 1, 2.5))
    sitk.WriteImage(image, str(folder / "sagittal.nii.gz"))
    shutil.copy(PICTURE, folder / "picture.png")
    shutil.copytree(SERIES, folder / "ct")
    os.symlink(PICTURE, folder / "elsewhere.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def server(studies) -> Iterator[Running]:
    flags = ("--labels", "liver", "spleen", "--max_upload", "1", "--max_voxels", "100000")
    with serving_here("--studies", str(studies), *flags, "--allow_origin", "http://viewer:3000") as one:
        yield one


def form(**parts: object) -> bytes:
    """Fields, and files as (name, bytes)."""
    body = b""
    for name, value in parts.items():
        for one in value if isinstance(value, list) else [value]:
            file = f'; filename="{one[0]}"' if isinstance(one, tuple) else ""
            data = one[1] if isinstance(one, tuple) else one if isinstance(one, bytes) else json.dumps(one).encode()
            body += f'--{MARK}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return body + f"--{MARK}--\r\n".encode()


def ask(server: Running, method: str, path: str, body: bytes | None = None, **headers: str):
    kind = {"Content_Type": f"multipart/form-data; boundary={MARK}"} if body is not None else {}
    status, told, content = server.ask(method, path, body, **kind, **headers)
    said = json.loads(content) if told.get("content-type", "").startswith("application/json") else None
    return SimpleNamespace(status=status, headers=told, content=content, json=said)


def infer(server: Running, where: str, **params: object):
    answer = ask(server, "POST", f"/infer/sam-med2d?{where}", form(params=params))
    assert answer.status == 200, answer.content
    return answer


def mask_of(answer, tmp_path: Path, ending: str = ".nii.gz") -> sitk.Image:
    (tmp_path / f"mask{ending}").write_bytes(answer.content)
    return sitk.ReadImage(str(tmp_path / f"mask{ending}"))


def by_command(studies: Path, tmp_path: Path, name: str, *flags: object) -> sitk.Image:
    words = ["--input", studies / name, "--output", tmp_path / "wanted.nrrd", "--sam_checkpoint", SMALL, *flags]
    segment_volume.main([*map(str, words), "--device", "cpu"])
    return sitk.ReadImage(str(tmp_path / "wanted.nrrd"))


def same(found: sitk.Image, wanted: sitk.Image) -> bool:
    assert sitk.GetArrayFromImage(wanted).any()
    assert np.allclose(found.GetDirection(), wanted.GetDirection()) and found.GetSize() == wanted.GetSize()
    return np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted))


def test_what_tools_ask_first(server):
    told = ask(server, "GET", "/info/").json
    assert told["labels"] == ["background", "liver", "spleen"] and {"name", "version", "strategies"} <= told.keys()
    assert told["models"]["sam-med2d"]["type"] == "deepgrow" and told["models"]["sam-med2d"]["dimension"] == 3
    assert told["datastore"] == {"total": 4, "completed": 0, "label_tags": {}}
    objects = ask(server, "GET", "/datastore/?output=all").json["objects"]
    assert objects.keys() == {"ball", "sagittal", "picture", UID} and objects["sagittal"]["image"]["ext"] == ".nii.gz"
    assert ask(server, "GET", "/datastore/image?image=picture").content == PICTURE.read_bytes()
    assert ask(server, "GET", "/auth/").json == {"enabled": False}


@pytest.mark.parametrize("name, axis", [("ball.nrrd", "z"), ("sagittal.nii.gz", "x")])
def test_clicks_and_boxes_are_answered_as_by_segment_volume(server, studies, tmp_path, name, axis):
    where = f"image={name.partition('.')[0]}&output=image"
    clicks = infer(server, where, foreground=[[30, 20, 4]], background=[[5, 40, 4]], label="liver")
    flags = ("--axis", axis, "--point", 30, 20, 4, "--background", 5, 40, 4)
    assert same(mask_of(clicks, tmp_path), by_command(studies, tmp_path, name, *flags))
    rough = infer(server, where, roi=[40, 20, 10, 30, 2, 6])  # corners in any order
    assert same(
        mask_of(rough, tmp_path), by_command(studies, tmp_path, name, "--axis", axis, "--box", 20, 10, 2, 41, 31, 7)
    )
    flat = infer(server, where, roi=[20, 10, 41, 31], slice=4)
    wanted = by_command(studies, tmp_path, name, "--axis", axis, "--box", 20, 10, 4, 41, 31, 5)
    assert same(mask_of(flat, tmp_path), wanted)


def test_a_session_from_an_upload_to_its_end(server, studies, tmp_path):
    made = ask(server, "PUT", "/session/", form(files=("scan.nrrd", (studies / "ball.nrrd").read_bytes()))).json
    key = made["session_id"]
    assert ask(server, "GET", f"/session/{key}").json["image"] == made["session_info"]["image"] == "scan.nrrd"
    asked = {"foreground": [[30, 20, 4]], "label": "spleen", "result_extension": ".nrrd", "result_dtype": "uint16"}
    image = infer(server, f"session_id={key}&output=image", **asked, result_compress=False)
    mask = mask_of(image, tmp_path, ".nrrd")
    assert mask.GetPixelIDValue() == sitk.sitkUInt16 and b"encoding: raw" in image.content
    assert same(sitk.Cast(mask, sitk.sitkUInt8), by_command(studies, tmp_path, "ball.nrrd", "--point", 30, 20, 4))
    both = infer(server, f"session_id={key}", **asked)
    head = f"Content-Type: {both.headers['content-type']}\r\n\r\n".encode()
    parts = {
        one.get_param("name", header="content-disposition"): one
        for one in BytesParser().parsebytes(head + both.content).get_payload()
    }
    told = json.loads(parts["params"].get_payload())
    assert told["label_names"] == {"spleen": 1} and parts["image"].get_filename() == "sam-med2d.nrrd"
    middle = np.argwhere(sitk.GetArrayFromImage(mask)).mean(axis=0)[::-1].round()
    assert told["centroids"] == {"spleen": ["1", *(str(int(place)) for place in middle)]}
    only = infer(server, f"session_id={key}&output=json", **asked).json
    assert only["label_names"] == told["label_names"] and only["centroids"] == told["centroids"]
    assert ask(server, "DELETE", f"/session/{key}").status == 200
    for method in ("GET", "DELETE"):
        assert ask(server, method, f"/session/{key}").status == 404
    assert ask(server, "POST", f"/infer/sam-med2d?session_id={key}", form(params=asked)).status == 404


def test_a_series_is_answered_as_a_dicom_seg(server, studies, tmp_path):
    """Of the folder, and sent file by file; both are what the image says."""
    sent = [(path.name, path.read_bytes()) for path in SERIES.iterdir()]
    key = ask(server, "PUT", "/session/", form(files=sent)).json["session_id"]
    for where in (f"image={UID}", f"session_id={key}"):
        asked = {"roi": [3, 3, 12, 12], "slice": 2, "label": "liver"}
        image = mask_of(infer(server, f"{where}&output=image", **asked), tmp_path)
        answer = infer(server, f"{where}&output=dicom_seg", **asked)
        assert answer.headers["content-type"] == "application/dicom"
        (tmp_path / "seg.dcm").write_bytes(answer.content)
        file = highdicom.seg.segread(tmp_path / "seg.dcm")
        assert file.get_segment_description(1).segment_label == "liver"
        volume = file.get_volume(combine_segments=True)
        found = sitk.GetImageFromArray(volume.array.astype(np.uint8))
        labels = sitk.GetArrayFromImage(image)
        for number in range(found.GetSize()[2]):  # those that are empty are not in it
            place = (volume.affine @ (number, 0, 0, 1))[:3]
            _, _, slice = image.TransformPhysicalPointToIndex(place.tolist())
            np.testing.assert_array_equal(volume.array[number], labels[slice])
        assert volume.array.sum() == labels.sum() > 0


def test_a_picture(server, tmp_path):
    predictor = SamPredictor(open_model(SMALL, device="cpu"))
    predictor.set_image(cv2.imread(str(PICTURE)), "BGR")
    wanted = predictor.predict([[90, 100], [10, 10]], [1, 0], [20, 20, 150, 180])
    asked = {"foreground": [[90, 100]], "background": [[10, 10, 0]], "roi": [20, 20, 150, 180]}
    for where, more in (("image=picture", {}), ("", {"file": ("a.png", PICTURE.read_bytes())})):
        body = form(params=asked, **more)
        answer = ask(server, "POST", f"/infer/sam-med2d?{where}&output=image", body)
        found = sitk.GetArrayFromImage(mask_of(answer, tmp_path))
        assert np.array_equal(found[0] > 0, wanted.masks[wanted.iou.argmax()])


def test_labels_are_kept_beside_earlier_ones(server, studies):
    for number, name in ((1, "ball"), (2, "ball_2")):
        sent = form(params={}, label=("mask.nrrd", b"%d" % number))
        assert ask(server, "PUT", "/datastore/label?image=ball", sent).json == {"image": "ball", "label": name}
        assert ask(server, "GET", f"/datastore/label?label={name}&tag=final").content == b"%d" % number
    assert (studies / "labels/final/ball_2.nrrd").read_bytes() == b"2"
    told = ask(server, "GET", "/datastore/").json
    assert (told["completed"], told["label_tags"]) == (1, {"final": 1})
    labels = ask(server, "GET", "/datastore/?output=all").json["objects"]["ball"]["labels"]
    assert labels == {"final": {"ext": ".nrrd", "info": {"name": "ball_2"}}}
    new = form(params={}, file=("new.nrrd", (studies / "ball.nrrd").read_bytes()))
    assert ask(server, "PUT", "/datastore/?image=new", new).json == {"image": "new"}
    assert ask(server, "PUT", "/datastore/?image=new", new).status == 409
    infer(server, "image=new&output=json", foreground=[[30, 20, 4]])
    (studies / "new.nrrd").unlink()
    shutil.rmtree(studies / "labels")


INFER = "/infer/sam-med2d?image=ball"
CLICK = {"foreground": [[30, 20, 4]]}
WRONG = {
    "no such model": ("POST", "/infer/deepedit?image=ball", form(params=CLICK), 404, "there is sam-med2d"),
    "no image": ("POST", "/infer/sam-med2d", form(params=CLICK), 400, "neither an image"),
    "no such image": ("POST", "/infer/sam-med2d?image=../ball", form(params=CLICK), 404, "no image"),
    "a link to elsewhere": ("GET", "/datastore/image?image=elsewhere", None, 404, "no image"),
    "no such output": ("POST", "/infer/sam-med2d?image=ball&output=mesh", form(params=CLICK), 400, "choose one of"),
    "no prompts": ("POST", INFER, form(params={"background": [[1, 2, 3]]}), 400, "no click"),
    "a click outside": ("POST", INFER, form(params={"foreground": [[1, 2, 9]]}), 400, "outside"),
    "a click of text": ("POST", INFER, form(params={"foreground": [["a"]]}), 400, "3 numbers"),
    "a flat click": ("POST", INFER, form(params={"foreground": [[1, 2]]}), 400, "3 numbers"),
    "a slice outside": ("POST", INFER, form(params={**CLICK, "slice": 9}), 400, "from 0 to 8"),
    "params of a list": ("POST", INFER, form(params=[1]), 400, "JSON object"),
    "half of params": ("POST", INFER, form(params=b'{"a'), 400, "not JSON"),
    "another ending": ("POST", INFER, form(params={**CLICK, "result_extension": "/../a"}), 400, "choose"),
    "scribbles": ("POST", INFER, form(params=CLICK, label=("a.nrrd", b"a")), 400, "a label"),
    "half a form": ("POST", INFER, form(params=CLICK)[:-30], 400, "no click"),
    "no DICOM": ("POST", "/infer/sam-med2d?image=ball&output=dicom_seg", form(params=CLICK), 400, "refers to slices"),
    "no files": ("PUT", "/session/", form(params={}), 400, "no file"),
    "no volume": ("PUT", "/session/", form(files=("a.nrrd", b"hallo")), 400, "a.nrrd"),
    "too large": ("PUT", "/session/", form(files=("a.nrrd", b"0" * 1_100_000)), 413, "1 MB"),
    "a name twice": ("PUT", "/session/", form(files=[("a", b"1"), ("a", b"2")]), 400, "that name"),
    "an archive": ("PUT", "/session/?uncompress=true", form(files=("a.zip", b"1")), 400, "not unpacked"),
    "a tag elsewhere": ("PUT", "/datastore/label?image=ball&tag=../..", form(label=("a.nrrd", b"1")), 400, "tag"),
    "a label of nothing": ("PUT", "/datastore/label?image=a", form(label=("a.nrrd", b"1")), 404, "no image"),
    "a label of text": ("PUT", "/datastore/label?image=ball", form(label=("a.txt", b"1")), 400, "a label is a volume"),
    "training": ("POST", "/train/sam-med2d", b"{}", 404, "MONAI Label"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_gets_one_line(server, studies, name):
    before = sorted(studies.rglob("*"))
    method, path, body, status, says = WRONG[name]
    answer = ask(server, method, path, body)
    assert answer.status == status and says in answer.json["detail"] and "\n" not in answer.json["detail"], answer
    assert sorted(studies.rglob("*")) == before


def test_pages_of_origins_that_were_named_may_ask(server):
    asks = {"Origin": "http://viewer:3000", "Sec_Fetch_Site": "cross-site"}
    answer = ask(server, "GET", "/info/", **asks)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "http://viewer:3000"
    assert ask(server, "OPTIONS", "/infer/sam-med2d", **asks).status == 200
    for other in ("http://viewer:3001", "null", "http://viewer:3000.evil.org"):
        refused = ask(server, "GET", "/info/", **{**asks, "Origin": other})
        assert refused.status == 403 and "access-control-allow-origin" not in refused.headers
    with pytest.raises(SystemExit):
        parse_args(["--allow_origin", "*"])


def test_a_token_is_given_as_a_password():
    with serving_here(token="aWordOfTheTests") as server:
        assert ask(server, "GET", "/auth/").json == {"enabled": True}
        assert ask(server, "GET", "/info/").status == 401
        wrong, right = (
            server.ask("POST", "/auth/token", f"username=a&password={one}".encode()) for one in ("x", "aWordOfTheTests")
        )
        told = json.loads(right[2])
        assert wrong[0] == 401 and told["token_type"] == "Bearer"
        for path in ("/info/", "/auth/token/valid", "/datastore/"):
            assert ask(server, "GET", path, Authorization=f"Bearer {told['access_token']}").status == 200
        sent = ask(
            server, "PUT", "/datastore/?image=a", form(file=("a.nrrd", b"1")), Authorization="Bearer aWordOfTheTests"
        )
        assert sent.status == 403 and "--studies" in sent.json["detail"]
