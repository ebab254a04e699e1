"""Weight files of others: names, nesting, damage, sizes; what is refused says what it is."""

import argparse
import copy
import datetime
import gzip
import io
import json
import pathlib
import pickle
import tarfile
import zipfile
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from segment_anything.build_sam import build_sam
from segment_anything.checkpoint import CheckpointError, load_checkpoint
from segment_anything.sizes import SIZES, Size
from segment_anything.weight_files import DIGEST, is_finite, open_weights, read_checkpoint, read_weights, save_weights

MINI = Size(channels=32, depth=4, heads=2, global_blocks=(1, 3))
ENCODER = {"image_encoder.pos_embed": torch.arange(8.0).reshape(1, 2, 2, 2), "mask_decoder.a.weight": torch.ones(300)}


@pytest.fixture(scope="module", autouse=True)
def mini_is_registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "mini", MINI)
        yield


def saved(content: object, path: Path, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def refusal(path: Path, read: Callable = read_weights) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "sam.", "net.", "model.module.sam.", "_orig_mod.module.net.x."]
)
@pytest.mark.parametrize(
    "keys",
    [(), ("model",), ("state_dict",), ("model_state_dict",), ("ema",), ("model_state",), ("checkpoint", "net"), ("x",)],
)
def test_prefixes_and_nesting(prefix: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    content: dict = {prefix + name: tensor for name, tensor in ENCODER.items()}
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    assert_same(read_weights(saved(content, tmp_path / "w.pth")), ENCODER)


def test_wrappers_within_names(tmp_path: Path) -> None:
    """A compiled or distributed encoder alone, and the moving average of PyTorch, which counts its models."""
    names = {
        "image_encoder._orig_mod.pos_embed": "image_encoder.pos_embed",
        "image_encoder._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.norm1.weight": "image_encoder.blocks.0."
        "norm1.weight",
        "n_averaged": "n_averaged",
    }
    path = saved({name: torch.full((1, 2, 2, 2), 3.0) for name in names}, tmp_path / "w.pth")
    assert [*read_weights(path)] == [*names.values()]


def test_the_model_is_taken_and_its_average_named(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in ENCODER.items()}
    file = open_weights(saved({"ema": average, "model": ENCODER}, tmp_path / "w.pth"))
    assert_same(file.tensors, ENCODER)
    assert file.notes == ["found under 'model', beside 'ema'"]


def test_two_models_of_one_rank_are_refused(tmp_path: Path) -> None:
    message = refusal(saved({"first": ENCODER, "second": ENCODER}, tmp_path / "w.pth"))
    assert "more than one model" in message and "'first'" in message and "'second'" in message
    both = {f"{which}.{name}": tensor for which in ("student", "other") for name, tensor in ENCODER.items()}
    message = refusal(saved(both, tmp_path / "w.pth"))
    assert "'other' and 'student'" in message


def test_what_has_no_prefix_stays_unexpected(tmp_path: Path) -> None:
    """A criterion beside the model is not read as one of its tensors."""
    names = {f"model.{name}": tensor for name, tensor in ENCODER.items()} | {"criterion.weight": torch.ones(2)}
    assert [*read_weights(saved({"state_dict": names}, tmp_path / "w.ckpt"))] == [*ENCODER, "criterion.weight"]


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin", ""])
def test_the_header_decides_and_not_the_ending(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{ending}"
    assert_same(read_weights(saved(ENCODER, path)), ENCODER)
    save_file(ENCODER, path)
    assert_same(read_weights(path), ENCODER)


def hugging_face_model() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    vision = transformers.SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        mlp_dim=128,
        global_attn_indexes=[1, 3],
    )
    prompts = transformers.SamPromptEncoderConfig(image_size=64)
    config = transformers.SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict())
    model = transformers.SamModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05, generator=generator)
        model.shared_image_embedding.positional_embedding.normal_(0, 1, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["save_pretrained", "state dict", "within another model"])
def test_hugging_faces_sam_computes_the_same(kind: str, tmp_path: Path) -> None:
    """Embedding, masks and scores of transformers' SamModel, to 1e-4."""
    theirs = hugging_face_model()
    if kind == "save_pretrained":
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        prefix = "sam." if kind == "within another model" else ""
        path = saved({f"{prefix}{name}": t for name, t in theirs.state_dict().items()}, tmp_path / "pytorch_model.bin")
    ours = build_sam(model_type="mini", image_size=64, encoder_adapter=False)
    report = load_checkpoint(ours, path)
    assert "names of Hugging Face's SamModel, translated" in str(report)

    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    points, box = torch.tensor([[[20.0, 30.0], [40.0, 8.0]]]), torch.tensor([[5.0, 6.0, 50.0, 40.0]])
    with torch.no_grad():
        embedding = theirs.get_image_embeddings(image)
        torch.testing.assert_close(ours.image_encoder(image), embedding, atol=1e-4, rtol=1e-4)
        for own, other in (
            ({"points": (points, torch.tensor([[1, 0]]))}, {"input_points": points[None], "input_labels": [[[1, 0]]]}),
            ({"boxes": box}, {"input_boxes": box[None]}),
        ):
            other = {name: torch.as_tensor(value) for name, value in other.items()}
            wanted = theirs(image_embeddings=embedding, multimask_output=True, **other)
            sparse, dense = ours.prompt_encoder(**{"points": None, "boxes": None, "masks": None} | own)
            masks, iou = ours.mask_decoder(
                image_embeddings=embedding,
                image_pe=ours.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            torch.testing.assert_close(masks, wanted.pred_masks[:, 0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(iou, wanted.iou_scores[:, 0], atol=1e-4, rtol=1e-4)


def test_what_people_leave_beside_weights_is_inert(tmp_path: Path) -> None:
    """Each is read as something of no type and no content, so none of its code has run."""
    content = {
        "model": ENCODER,
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=1e-4, folder=pathlib.PurePosixPath("a/b")),
        "path": pathlib.Path("a"),
        "date": datetime.datetime(2025, 1, 2),
        "losses": deque([1.0, 2.0]),
        "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=1.0), 3).state_dict(),
        "version": torch.__version__,
    }
    path = saved(content, tmp_path / "w.pth")
    assert_same(read_weights(path), ENCODER)
    kept = read_checkpoint(path)
    assert {type(kept[name]).__name__ for name in ("best", "history", "args", "path", "date")} == {"_Unread"}
    assert not any(vars(kept[name]) for name in ("best", "history", "args", "path", "date"))


# ---------------------------------------------------------------- damage


def data_offset(path: Path, ending: str) -> int:
    """Where the content of a record of an archive begins."""
    with zipfile.ZipFile(path) as archive:
        (record,) = [record for record in archive.infolist() if record.filename.endswith(ending)]
    header = path.read_bytes()[record.header_offset : record.header_offset + 30]
    return record.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))


def spoil(path: Path, at: int, content: bytes | None = None) -> Path:
    """Overwrite bytes; without content one bit is turned."""
    whole = bytearray(path.read_bytes())
    content = bytes([whole[at] ^ 1]) if content is None else content
    assert whole[at : at + len(content)] != content
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("read", [read_weights, read_checkpoint])
def test_one_bit_of_a_tensor(read: Callable, tmp_path: Path) -> None:
    path = saved({"model": ENCODER}, tmp_path / "w.pth")
    spoil(path, data_offset(path, "data/1") + 5)
    message = refusal(path, read)
    assert "damaged" in message and "mask_decoder.a.weight differs from its checksum" in message


def test_zeroed_bytes(tmp_path: Path) -> None:
    path = saved({"model": ENCODER}, tmp_path / "w.pth")
    spoil(path, data_offset(path, "data/1") + 100, bytes(64))
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder", "/version"])
def test_one_bit_of_what_is_no_tensor(name: str, tmp_path: Path) -> None:
    path = saved({"model": ENCODER}, tmp_path / "w.pth")
    assert "damaged" in refusal(spoil(path, data_offset(path, name)))


def test_every_byte_of_a_small_file_may_be_flipped(tmp_path: Path) -> None:
    """It is refused, or the tensors are those that were written."""
    whole = saved(ENCODER, tmp_path / "w.pth").read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[at] ^= 0x41
        path = tmp_path / "broken.pth"
        path.write_bytes(broken)
        try:
            got = read_weights(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert_same(got, ENCODER)
    assert refused > 200


def test_what_is_not_read_is_not_checked(tmp_path: Path) -> None:
    """The moments of an optimizer cost a test run nothing; --resume needs them, and checks them."""
    path = saved({"model": ENCODER, "moments": [torch.ones(200)]}, tmp_path / "w.pth")
    spoil(path, data_offset(path, "data/2") + 8)
    assert_same(read_weights(path), ENCODER)
    assert "moments/0 differs from its checksum" in refusal(path, read_checkpoint)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(ENCODER, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_weights(path), ENCODER)


def repacked(path: Path, content: object = None) -> Path:
    """The same archive, compressed, as people make it with a zip tool."""
    source = saved(ENCODER if content is None else content, path.with_suffix(".tmp"))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    source.unlink()
    return path


def test_a_compressed_archive_is_unpacked(tmp_path: Path) -> None:
    """PyTorch maps the compressed bytes as if they were the numbers."""
    assert_same(read_weights(repacked(tmp_path / "w.pth")), ENCODER)


def test_our_safetensors_have_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights({**ENCODER, "scalar": torch.tensor(2.0), "half": torch.ones(3).bfloat16()}, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert len(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][DIGEST]) == 64
    assert read_weights(path)["scalar"] == 2
    for at in (8 + length + 3, path.stat().st_size - 1):
        spoil(path, at)
        assert "differ from the checksum" in refusal(path)
        spoil(path, at)
    read_weights(path)


def test_safetensors_of_others_have_none(tmp_path: Path) -> None:
    save_file(ENCODER, tmp_path / "w.safetensors")
    assert_same(read_weights(tmp_path / "w.safetensors"), ENCODER)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("write", [saved, save_file])
def test_values_that_are_not_finite_are_named(
    value: float, dtype: torch.dtype, write: Callable, tmp_path: Path
) -> None:
    weights = {name: tensor.clone().to(dtype) for name, tensor in ENCODER.items()}
    weights["mask_decoder.a.weight"][7] = value
    write(weights, tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth")
    assert "NaN or infinite" in message and "mask_decoder.a.weight" in message


def test_finite() -> None:
    assert all(map(is_finite, (torch.empty(0), torch.tensor(3), torch.tensor(1e30), torch.ones(2).half() * 65504)))
    assert not is_finite(torch.tensor([1, float("nan")]).to(torch.float8_e5m2))


def test_half_precision_must_hold_the_values(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mask_decoder.a.weight has values too large for torch.float16"):
        save_weights({**ENCODER, "mask_decoder.a.weight": torch.full((3,), 1e5)}, tmp_path / "w.st", torch.float16)
    assert not (tmp_path / "w.st").exists()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(3).to_sparse(), "sparse tensor"),
        (torch.empty(10**9, device="meta"), "without values"),
        (torch.ones(3, dtype=torch.complex64), "complex"),
    ],
)
def test_tensors_without_plain_values_are_named(tensor: Tensor, said: str, tmp_path: Path) -> None:
    message = refusal(saved({**ENCODER, "mask_decoder.b": tensor}, tmp_path / "w.pth"))
    assert "mask_decoder.b" in message and said in message


def test_tables_of_length_0(tmp_path: Path) -> None:
    model = build_sam(model_type="mini", image_size=64, encoder_adapter=False)
    for name in ("image_encoder.blocks.1.attn.rel_pos_h", "image_encoder.pos_embed", "mask_decoder.iou_token.weight"):
        weights = dict(model.state_dict())
        weights[name] = weights[name][:, :0] if name.endswith("pos_embed") else weights[name][:0]
        message = refusal(saved(weights, tmp_path / "w.pth"), lambda path: load_checkpoint(model, path))
        assert name in message or "no SAM image encoder" in message


# ---------------------------------------------------------------- sizes


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def unpacks_to_gigabytes(path: Path) -> Path:
    """Two megabytes of a compressed archive."""
    repacked(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("w/data/9", "w") as record:
        for _ in range(2000):
            record.write(bytes(2**20))
    return path


def overlapping(path: Path) -> Path:
    """Many names for one record."""
    saved({"model": {**ENCODER, "mask_decoder.b": torch.ones(2**18)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
        for i in range(100):
            again = copy.copy(record)
            again.filename = f"w/data/x{i}"
            archive.filelist.append(again)
        archive._didModify = True
    return path


def repeated_encoding(path: Path) -> Path:
    """A megabyte, encoded a thousand times."""
    text = "x" * 2**20
    encode = __import__("_codecs").encode
    return saved({"model": ENCODER, "x": [Calls(encode, text, "utf-16") for _ in range(1000)]}, path)


BOMBS = {
    "compressed": (unpacks_to_gigabytes, "unpacks to 2.1 GB"),
    "overlapping": (overlapping, "unpacks to"),
    "an array of bytes": (lambda p: saved({"model": ENCODER, "x": Calls(bytearray, 10**10)}, p), "bytearray"),
    "a repeated string": (repeated_encoding, "repeats a long string"),
    "an expanded tensor": (
        lambda p: saved({**ENCODER, "mask_decoder.b": torch.ones(1).expand(10**6, 10**4)}, p),
        "repeat themselves",
    ),
    "one tensor under many names": (
        lambda p: saved(
            ENCODER | {f"mask_decoder.{i}": shared for shared in [torch.ones(2**18)] for i in range(50)}, p
        ),
        "repeat themselves",
    ),
    "a tensor from its size": (lambda p: saved({**ENCODER, "x": Calls(torch.Tensor, 10**5, 10**5)}, p), ""),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_that_would_fill_the_memory(kind: str, tmp_path: Path) -> None:
    write, said = BOMBS[kind]
    path = write(tmp_path / "w.pth")
    assert path.stat().st_size < 3e6
    before = resident()
    assert said in refusal(path)
    assert resident() - before < 2e8
    path.unlink()


def resident() -> float:
    """The most memory that this process has had, bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


# ---------------------------------------------------------------- what a file is


def tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    return path


def zipped_file(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sam.pth", saved(ENCODER, path.with_suffix(".x")).read_bytes())
    return path


def torchscript(path: Path) -> Path:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    return path


def write(content: bytes) -> Callable[[Path], Path]:
    return lambda path: (path.write_bytes(content), path)[1]


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "model.safetensors").touch()
    return path


OTHERS = {
    "gzip": (write(gzip.compress(b"x")), "is a gzip archive, not weights; unpack it"),
    "tar": (tar, "is a tar archive"),
    "zip of a checkpoint": (zipped_file, "is a zip archive with sam.pth in it; unpack it"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "a whole model": (lambda p: saved(torch.nn.Linear(2, 2), p), "a whole pickled model"),
    "PNG": (write(b"\x89PNG\r\n\x1a\n"), "is a PNG picture"),
    "HDF5": (write(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "GGUF": (write(b"GGUF\3\0\0\0"), "is a GGUF file"),
    "ONNX": (write(b"\x08\x08\x12\x07pytorch"), "is an ONNX file"),
    "JSON": (write(b'{"epoch": 3}'), "is JSON"),
    "an index of parts": (write(b'{"metadata": {}, "weight_map": {}}'), "is the index of a file in several parts"),
    "an answer of a server": (write(b"404: Not Found"), 'is text that begins "404: Not Found"'),
    "zeros": (write(bytes(1000)), "nothing but zeros"),
    "a pickle of protocol 4": (
        lambda p: saved({"x": {1, 2}, "model": ENCODER, "y": Calls(print)}, p, pickle_protocol=4),
        "protocol 4",
    ),
    "a pickled list": (write(pickle.dumps([1, 2], protocol=2)), "not a PyTorch checkpoint"),
    "a folder": (folder, "Is a directory; name a file in it, such as model.safetensors"),
    "cut safetensors": (write((1000).to_bytes(8, "little") + b'{"a'), "safetensors"),
    "weights of SAM 2": (lambda p: saved({"model": {"image_encoder.trunk.pos_embed": torch.ones(1)}}, p), None),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_it_is_is_said(kind: str, tmp_path: Path) -> None:
    make, said = OTHERS[kind]
    path = make(tmp_path / "w.pth")
    if said is None:
        model = build_sam(model_type="mini", image_size=64)
        assert "weights of SAM 2" in refusal(path, lambda it: load_checkpoint(model, it))
    else:
        assert said in refusal(path)


def test_ordered_dicts_and_shared_tensors_are_as_good(tmp_path: Path) -> None:
    shared = OrderedDict(ENCODER, tied=ENCODER["mask_decoder.a.weight"])
    assert_same(read_weights(saved(shared, tmp_path / "w.pth")), dict(shared))


def test_the_checksum_is_that_of_zip(tmp_path: Path) -> None:
    """What the checks above rest on: torch.save writes the CRC-32 of every tensor's bytes."""
    path = saved(ENCODER, tmp_path / "w.pth")
    with zipfile.ZipFile(path) as archive:
        records = {record.filename.rpartition("/")[2]: record.CRC for record in archive.infolist()}
    assert records["1"] == zlib.crc32(ENCODER["mask_decoder.a.weight"].numpy().tobytes())
