"""The model on a CPU without PyTorch, against eager float32: one image encoded, one click decoded.

The baseline is PyTorch with the adapters as convolutions, as a GPU runs them; PyTorch itself is faster on a CPU, where
they are matrix products, and stands beside it.

    python scripts/benchmark.py deploy --sam_checkpoint pretrain_model/sam-med2d_b.pth --threads 2

Exports what it needs into --folder, where the next run finds it; int8 is calibrated on --data_path, whose test split
gives its Dice.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from timing import by_convolutions, compare

from sam_med2d.export.command import images_of
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph
from sam_med2d.export.onnx_files import placed, save, trace_decoder, trace_encoder
from sam_med2d.export.parity import dice_table, encoder_inputs
from sam_med2d.export.quantize import quantize
from sam_med2d.inference.backends import OnnxRuntimeSession, RuntimeSam, open_runtime
from sam_med2d.inference.models import add_model_flags, add_threads_flag, load_model
from segment_anything import Prompts, Sam

CONTENDERS = {  # name: backend, file, precision
    "ONNX Runtime float32": ("onnxruntime", "encoder.onnx", "float32"),
    "ONNX Runtime int8": ("onnxruntime", "encoder.int8.onnx", "float32"),
    "OpenVINO float32": ("openvino", "encoder.onnx", "float32"),
    "OpenVINO bfloat16": ("openvino", "encoder.onnx", "bfloat16"),
    "OpenVINO int8": ("openvino", "encoder.int8.onnx", "float32"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.set_defaults(device="cpu")
    add_threads_flag(parser, default=2)
    # fmt: off
    parser.add_argument("--rounds", type=int, default=9,
        help="Number of rounds that are measured. Default: %(default)s.")
    parser.add_argument("--folder", type=Path, default=Path("workdir/benchmark_deploy"),
        help="Folder of the exported files, which are kept. Default: %(default)s.")
    parser.add_argument("--data_path", type=Path, default=Path("data_demo"),
        help="Folder of the pictures. Default: %(default)s.")
    parser.add_argument("--calibration_images", type=int, default=16,
        help="Number of images that the ranges of int8 files are taken from. Default: %(default)s.")
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS], default=[*CONTENDERS],
        help="The contenders to measure, each of which takes some GB with ViT-B. Default: all.")
    # fmt: on


def export(model: Sam, args: argparse.Namespace) -> None:
    """What is not in the folder yet."""
    wanted = {CONTENDERS[name][1] for name in args.only} | {"encoder.onnx"}
    missing = [name for name in wanted if not (args.folder / name).exists()]
    if missing:
        proto = trace_encoder(EncoderGraph(model), 17)
        if "encoder.onnx" in missing:
            with placed(args.folder / "encoder.onnx") as path:
                save(proto, path)
        if "encoder.int8.onnx" in missing:
            session = OnnxRuntimeSession(args.folder / "encoder.onnx", args.threads)
            images = images_of(args.data_path, "train", args.calibration_images)
            with placed(args.folder / "encoder.int8.onnx") as path:
                save(quantize(proto, iter([encoder_inputs(model, session, image) for image in images])), path)
    if not (args.folder / "decoder.onnx").exists():
        with placed(args.folder / "decoder.onnx") as path:
            save(trace_decoder(DecoderGraph(model), 17), path)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    model = load_model(args).eval()
    export(model, args)
    runtimes: dict[str, RuntimeSam] = {
        name: open_runtime(
            backend, args.folder / file, args.folder / "decoder.onnx", threads=args.threads, precision=precision
        )
        for name, (backend, file, precision) in CONTENDERS.items()
        if name in args.only
    }
    models: dict[str, Sam] = {"PyTorch eager float32": model, **runtimes}
    size = model.image_size
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = model.encode(images)
    print(f"one image of {size} px, {args.threads} threads, median of {args.rounds}")
    compare(
        {
            "PyTorch eager float32, convolutions": by_convolutions(lambda: model.encode(images)),
            **{name: lambda one=one: one.encode(images) for name, one in models.items()},
        },
        args.rounds,
    )
    for name, one in runtimes.items():
        print(f"{name:44} largest difference of the embedding {(one.encode(images) - expected).abs().max():.1e}")

    click = Prompts(points=torch.tensor([[[size / 2, size / 3]]]), labels=torch.tensor([[1]]))
    print("one click on an encoded image")
    compare(
        {
            name: lambda one=one: one.predict(expected, click, True)
            for name, one in models.items()
            if name in ("PyTorch eager float32", "ONNX Runtime float32", "OpenVINO float32")
        },
        5 * args.rounds,
    )
    dice_table(models, args.data_path, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
