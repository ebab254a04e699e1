"""What each --tune takes, and what keeping embeddings saves, for scripts/benchmark.py tuning.

A round is one pass over some training images, which are in memory, without validation.
"""

import argparse
import contextlib
import io
import tempfile

import torch
from timing import add_step_flags, compare

import train
from sam_med2d.data.batch import collate
from sam_med2d.data.datasets import TrainingDataset
from sam_med2d.device import best_device
from sam_med2d.training.embeddings import AGAIN, remember_embeddings
from sam_med2d.training.rounds import train_batch
from segment_anything.modeling.tuning import TUNE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_step_flags(parser, rounds=3)
    parser.add_argument(
        "--images", type=int, default=8, help="Number of the training images that a round takes. Default: %(default)s."
    )
    parser.add_argument("--device", help="Where the model runs. Default: the best there is.")
    parser.add_argument(
        "--tune",
        nargs="*",
        default=[],
        choices=[*TUNE],
        help="Measure these --tune of train.py too, beside the decoder side alone.",
    )


def run(args: argparse.Namespace) -> None:
    device = best_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "decoder side alone (FT-SAM), encoder for every batch": epoch_of(args, device, folder, "decoder", AGAIN),
            "the same, embeddings kept (float16)": epoch_of(args, device, folder, "decoder", "float16"),
        }
        contenders |= {f"--tune {tune}": epoch_of(args, device, folder, tune, AGAIN) for tune in args.tune}
        print(
            f"{args.model_type}, {args.image_size} px, batch {args.batch_size}, {args.mask_num} masks an image, "
            f"{args.iter_point + 1} rounds, {device}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
            f"median of {args.rounds} passes over {args.images} images"
        )
        medians = compare(contenders, args.rounds, device)
    for name, value in medians.items():
        print(f"{name:54} {1000 * args.images / value:7.2f} images/s")


def epoch_of(args: argparse.Namespace, device: torch.device, folder: str, tune: str, embeddings: str):
    """-> a pass over some of the training images, as train.py makes it."""
    words = [
        *("--sam_checkpoint", "none", "--model_type", args.model_type, "--image_size", args.image_size),
        *("--tune", tune, "--embeddings", embeddings, "--work_dir", folder, "--iter_point", args.iter_point),
    ]
    flags = train.parse_args([*map(str, words)])
    with contextlib.redirect_stdout(io.StringIO()):
        model = train.build_model(train.settle_model(flags), flags).to(device)
        remember_embeddings(model, flags, args.images)
    learner = train.learner_of(flags, model, 1)
    dataset = TrainingDataset(args.data_path, args.image_size, "train", args.mask_num)
    chosen = [dataset[0, i] for i in range(args.images)]  # read once: reading is another benchmark's
    batches = [collate(chosen[i : i + args.batch_size]) for i in range(0, args.images, args.batch_size)]

    def once() -> None:
        model.train()
        for step, batch in enumerate(batches):
            train_batch(model, [batch], learner, train.recipe_of(flags), step)

    return once
