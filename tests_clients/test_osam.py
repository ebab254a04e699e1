"""osam, with which labelme segments: its own class on the files of the target sam1024."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from osam import types
from osam._models.sam import SamBase, _models

from tests_clients.conftest import answers, mean_dice


@pytest.fixture(scope="module")
def tool(exported, tmp_path_factory) -> Iterator[SamBase]:
    """Opened the way that osam opens its own: from the home folder, where files lie by their SHA-256."""
    files = exported("sam1024")
    paths = {part: Path(f"{files}.{part}.onnx") for part in ("encoder", "decoder")}
    hashes = {part: hashlib.sha256(path.read_bytes()).hexdigest() for part, path in paths.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))

        class Ours(_models.Sam):
            name = "sam:mine"
            _blobs = {  # noqa: RUF012  as osam has it
                part: types.Blob(url=path.as_uri(), hash=f"sha256:{hashes[part]}") for part, path in paths.items()
            }

        for part, blob in Ours._blobs.items():
            Path(blob.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(paths[part], blob.path)
        yield Ours()


@pytest.mark.parametrize("kind, least", [("box", 0.985), ("click", 0.98)])
def test_labelme_sees_the_predictors_masks(tool, general, organs, kind, least) -> None:
    theirs, last = [], None
    for organ in organs:
        if organ.image is not last:
            embedding = tool.encode_image(last := organ.image)
        points, labels = (organ.box.reshape(2, 2), [2, 3]) if kind == "box" else (organ.click[None], [1])
        prompt = types.Prompt(points=points.astype(np.float32), point_labels=np.array(labels))
        answer = tool.generate(types.GenerateRequest(model=tool.name, image_embedding=embedding, prompt=prompt))
        mask, found = np.zeros(organ.image.shape[:2], bool), answer.annotations[0]
        place = found.bounding_box
        mask[place.ymin : place.ymax + 1, place.xmin : place.xmax + 1] = found.mask
        theirs.append(mask)
    assert mean_dice(answers(general, organs, kind), theirs) >= least
