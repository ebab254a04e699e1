"""--tune decoder encodes each image once in a whole run, and learns the same whatever its cache held."""

from pathlib import Path

import pytest
import torch

import train
from sam_med2d.data import slots
from sam_med2d.data.embedding_cache import EMBEDDINGS
from sam_med2d.training.embeddings import RememberedEncoder
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoder
from tests.training.helpers import Killed, differences, fit, kill_after, saved

FLAGS = ["--tune", "decoder", "--epochs", 2, "--iter_point", 1, "--mask_num", 1]
IMAGES = 6  # of validated, whose train and val splits have the same images


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many images went through the encoder, a number a pass."""
    counted: list[int] = []
    forward = ImageEncoder.forward

    def counting(self, images: torch.Tensor) -> torch.Tensor:
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(ImageEncoder, "forward", counting)
    return counted


def cache_of(work: Path) -> Path:
    (folder,) = (work / "cache").glob("embeddings-*")
    return folder


def test_each_image_once(validated: Path, work: Path, passes: list[int], capsys) -> None:
    """Validation and pictures after each epoch included; the next run with these weights encodes nothing."""
    fit(validated, work, *FLAGS)
    assert passes == [1] * IMAGES
    assert "the encoder runs once an image: embeddings of 12 of 12 image(s)" in capsys.readouterr().out
    first = saved(work)
    assert first["flags"]["embeddings"] == "float16"
    fit(validated, work, *FLAGS, "--overwrite")
    assert passes == [1] * IMAGES and differences(first, saved(work)) == []
    fit(validated, work, *FLAGS, "--overwrite", "--embeddings", "again", "--epochs", 1)
    assert sum(passes) > 3 * IMAGES


def test_what_is_learned_does_not_depend_on_the_cache(validated: Path, work: Path, tmp_path: Path, monkeypatch) -> None:
    """Cold and warm; interrupted and resumed with half-written slots; where nothing can be kept."""
    fit(validated, work, *FLAGS)
    whole = saved(work)
    other = tmp_path / "other"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(train.RunState, "save_last", patch, 1)
        fit(validated, other, *FLAGS, "--save_every", 2)
    path = cache_of(other) / EMBEDDINGS
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(bytes(b if i // 5000 % 2 else 0 for i, b in enumerate(content)))
    fit(validated, other, *FLAGS, "--save_every", 2, "--resume")
    assert differences(whole, saved(other)) == []

    nowhere = tmp_path / "file"
    nowhere.touch()
    fit(validated, tmp_path / "third", *FLAGS, "--cache", nowhere)
    assert differences(whole, saved(tmp_path / "third")) == []


def test_embeddings_are_those_of_the_encoder() -> None:
    """To the last bit of float16, repeated images and an empty batch too."""
    model = sam_model_registry["mini"](image_size=64, encoder_adapter=False)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)[[0, 1, 0, 2]]
    content = torch.tensor([[0, 0, 64, 64], [4, 0, 56, 64], [0, 0, 64, 64], [0, 0, 64, 64]])
    with torch.no_grad():
        expected = torch.cat([model.encode(images[i : i + 1], content[i : i + 1]) for i in range(4)]).half().float()
    model.remembered = RememberedEncoder(model, None, torch.float16)
    assert torch.equal(model.encode(images, content), expected) and model.remembered.encoded == 3
    assert model.encode(images[:0], content[:0]).shape == (0, 64, 4, 4)


@pytest.mark.parametrize(
    ("words", "embeddings"),
    [
        (["--tune", "decoder"], "float16"),
        (["--encoder_adapter", "False", "--embeddings", "bfloat16"], "bfloat16"),
        (["--tune", "lora", "--lora_targets", "decoder"], "float16"),
        (["--tune", "lora"], "again"),
        (["--tune", "decoder", "--augment"], "again"),
        ([], "again"),
    ],
)
def test_where_it_is_possible(words: list[str], embeddings: str) -> None:
    assert train.parse_args(words).embeddings == embeddings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--embeddings", "float16"], "the encoder learns with --tune adapters"),
        (["--tune", "decoder", "--augment", "--embeddings", "float16"], "--augment varies the images"),
    ],
)
def test_where_it_is_not(words: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(words)
    assert said in capsys.readouterr().err


def test_the_header_is_what_it_was() -> None:
    assert slots.HEADER == 4096  # packed caches of earlier versions open
