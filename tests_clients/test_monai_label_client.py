"""MONAI Label's own client, that of 3D Slicer's module, unmodified, against `sam-med2d serve` with the small model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from app_client import Running
from monailabel.client.client import MONAILabelClient, MONAILabelClientException
from nilearn.datasets import load_mni152_template
from serve_client import serving

from sam_med2d.commands import segment_volume
from sam_med2d.inference.models import SMALL

TOKEN = "aWordOfTheTests"
CLICK, OFF = [50, 58, 4], [5, 5, 4]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """8 axial slices of 2 mm around the ventricles."""
    head = np.asarray(load_mni152_template(resolution=2).dataobj, np.float32)
    path = tmp_path_factory.mktemp("studies") / "head.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray((head.transpose(2, 1, 0)[40:48] * 1000).astype(np.int16)), str(path))
    return path


@pytest.fixture(scope="module")
def server(scan, tmp_path_factory) -> Iterator[Running]:
    flags = ("--token", TOKEN, "--seconds", "600", "--studies", str(scan.parent), "--labels", "head")
    with serving(tmp_path_factory.mktemp("serve"), *flags) as one:
        yield one
    assert "Traceback" not in one.output, one.output


@pytest.fixture
def client(server, tmp_path) -> MONAILabelClient:
    """Logged in as its program does it."""
    one = MONAILabelClient(server.address, str(tmp_path), "a person")
    assert one.auth_enabled()
    one.update_auth(one.auth_token("anybody", TOKEN))
    assert one.auth_valid_token()
    return one


def by_command(folder: Path, scan: Path, *flags: object) -> np.ndarray:
    words = ["--input", scan, "--output", folder / "labels.nrrd", "--sam_checkpoint", SMALL, *flags]
    segment_volume.main([*map(str, words), "--device", "cpu"])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labels.nrrd")))


def test_a_session_as_slicer_has_it(client, scan, tmp_path) -> None:
    told = client.info()
    (model,) = told["models"]
    assert told["models"][model]["type"] == "deepgrow" and told["labels"] == ["background", "head"]
    key = client.create_session(str(scan))["session_id"]
    assert client.get_session(key)["image"] == "head.nrrd"
    asked = {"label": "head", "result_extension": ".nrrd", "result_dtype": "uint8"}
    clicks = {"foreground": [CLICK], "background": [OFF]}
    path, params = client.infer(model, "head", {**asked, **clicks}, session_id=key)
    found = sitk.GetArrayFromImage(sitk.ReadImage(path))
    assert params["label_names"] == {"head": 1} and found.any()
    assert np.array_equal(found, by_command(tmp_path, scan, "--point", *CLICK, "--background", *OFF))
    path, _ = client.infer(model, "head", {**asked, "roi": [8, 91, 6, 111, 4, 4]}, session_id=key)
    boxed = sitk.GetArrayFromImage(sitk.ReadImage(path))
    assert boxed.any() and np.array_equal(boxed, by_command(tmp_path, scan, "--box", 8, 6, 4, 92, 112, 5))
    client.remove_session(key)
    with pytest.raises(MONAILabelClientException):
        client.get_session(key)


def test_images_by_name_and_labels_that_are_handed_in(client, scan, tmp_path) -> None:
    path, _ = client.infer("sam-med2d", "head", {"foreground": [CLICK]})
    found = sitk.GetArrayFromImage(sitk.ReadImage(path))
    assert np.array_equal(found, by_command(tmp_path, scan, "--point", *CLICK)) and found.any()
    assert client.save_label("head", path, params={"label_info": []}) == {"image": "head", "label": "head"}
    assert client.datastore()["objects"]["head"]["labels"].keys() == {"final"}
    again = client.download_label("head", "final")
    assert Path(again).read_bytes() == Path(path).read_bytes()
    assert client.upload_image(str(scan), "another") == {"image": "another"}
    with pytest.raises(MONAILabelClientException) as error:
        client.infer("sam-med2d", "nobody", {"foreground": [CLICK]})
    assert "no image 'nobody'" in error.value.msg
