"""Fine-tune SAM with adapters on a JSON-indexed data set, with a simulated annotator.

    python train.py --sam_checkpoint small --epochs 1 --run_name try   # a minute on a CPU, on the data in data_demo/
    python train.py --sam_checkpoint pretrain_model/sam_vit_b_01ec64.pth --data_path data_demo
    python train.py --encoder_adapter False --run_name ft-sam   # decoder side only: the paper's FT-SAM
    python train.py --resume                                    # go on where this run stopped

Leaves {work_dir}/models/{run_name}/last.pth (all that --resume needs) and best.pth (weights alone), and TensorBoard
logs in {work_dir}/logs/{run_name}. Every random draw is a function of --seed and of the place in the run (epoch,
image, step), so a resumed run needs no random state: it draws what the uninterrupted one would have drawn.
"""

import argparse
import math
import os
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sam_med2d.cli import add_flag, check_numbers, ending_in_one_line
from sam_med2d.data.batch import collate
from sam_med2d.data.datasets import TrainingDataset, scoring_sample, train_loader
from sam_med2d.data.samplers import KINDS as BALANCE_KINDS
from sam_med2d.device import best_device, seed_everything
from sam_med2d.errors import DataError, UsageError
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.inference.models import Plan, plan_model
from sam_med2d.outputs import check_no_input, run_folder
from sam_med2d.ownership import check_writable, owned
from sam_med2d.prompts.modes import DEFAULT_MODES, mode_name, parse_mode
from sam_med2d.stopping import Request, Stopped, at_a_good_moment, raising_stopped
from sam_med2d.training.learner import Learner, Schedule
from sam_med2d.training.monitor import PANEL_IMAGES, Window, check_finite, draw_panels, validate, validation_loader
from sam_med2d.training.rounds import Recipe, train_batch
from sam_med2d.training.state import Progress, RunState, SavedRun, models_folder, room_for_checkpoints
from segment_anything import Sam, sam_model_registry
from segment_anything.checkpoint import Architecture, CheckpointError
from segment_anything.frames import FRAMES, SAM_MED2D

DEFAULT_CHECKPOINT = "pretrain_model/sam_vit_b.pth"
FROM_SCRATCH = "none"  # says as a checkpoint: random weights
NEW_TYPE, NEW_SIZE = "vit_b", 256  # of a model from scratch, and pixels
SAMS_SIZE = 1024  # pixels, of SAM's own files


def parse_args(argv: list[str] | None = None, saved: SavedRun | None = None) -> argparse.Namespace:
    """saved: the run to go on with, whose flags stand for those that nobody gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # a flag in as few lines as it needs, so that the script can be read at one go
    # fmt: off
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir",
        help="Everything is written below this folder. Default: %(default)s.")
    group.add_argument("--run_name", default="sam-med2d",
        help="Name of the run: its files lie in models/NAME and logs/NAME of --work_dir. Default: %(default)s.")
    group.add_argument("--resume", nargs="?", const="last", metavar="CHECKPOINT",
        help="Go on from this last.pth, with the flags of its run unless others are given; without a path, from the "
             "last.pth of this --run_name.")
    add_flag(group, "--overwrite", False, "Start anew where a run of this name has left its last.pth.")
    group.add_argument("--seed", type=int, default=0,
        help="Every random draw is a function of this number and of the place in the run. Default: %(default)s.")
    group.add_argument("--device",
        help="Where the model runs, such as cuda, cuda:1, mps or cpu. Default: the best there is.")
    group.add_argument("--save_every", type=int, default=1000, metavar="STEPS",
        help="Save last.pth after so many batches within an epoch too; 0 saves after whole epochs alone. Default: "
             "%(default)s.")
    group.add_argument("--log_every", type=int, default=10, metavar="STEPS",
        help="Write scalars for TensorBoard after so many batches. Default: %(default)s.")

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo",
        help="Folder of the data, with image2label_train.json and, for validation, image2label_val.json. Default: "
             "%(default)s.")
    group.add_argument("--image_size", type=int,
        help="Side of the square frame that the model sees, in pixels, a multiple of 32. Default: what the weights "
             "were trained at, but 256 for SAM's own files, of 1024, and from scratch.")
    group.add_argument("--batch_size", type=int, default=2, help="Number of images in a batch. Default: %(default)s.")
    group.add_argument("--mask_num", type=int, default=5,
        help="Number of masks drawn from each image of a batch, with replacement. Default: %(default)s.")
    group.add_argument("--num_workers", type=int, default=min(4, (os.cpu_count() or 1) - 1),
        help="Number of processes that read data ahead of the model. Default: %(default)s.")
    add_flag(group, "--augment", False,
        "Vary the training images: flips, small rotations and scalings, contrast, noise.")
    group.add_argument("--balance", choices=BALANCE_KINDS,
        help="Give each data set, or each class, the same share of every epoch, whatever its size.")
    group.add_argument("--cache", metavar="DIR",
        help="Keep images and masks in this folder, decoded and resized, for the epochs and runs that follow; at "
             "256 px an image takes 64 KB if grey, a mask 8 KB.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", choices=[*sam_model_registry],
        help="Size of the model. Default: what the weights are; vit_b from scratch.")
    group.add_argument("--sam_checkpoint", default=DEFAULT_CHECKPOINT,
        help="Weights of SAM or SAM-Med2D to start from; small: those of this package; none: random weights. "
             "Default: %(default)s.")
    add_flag(group, "--encoder_adapter", True,
        "Put an adapter into every block of the encoder, the only part of it that is trained; False: train the "
        "decoder side alone, the paper's FT-SAM.")

    group.add_argument("--frame", choices=FRAMES,
        help="How pictures reach the model: sam-med2d is BGR, stretched, nearest neighbour; sam is RGB, longest side, "
             "padded, bilinear, for weights that tools made for SAM shall open. Default: that of SAM-Med2D's weights "
             "and of what this project trained, as they say; sam-med2d for SAM's own and from scratch.")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=int, default=15,
        help="Number of passes over the training images. Default: %(default)s.")
    group.add_argument("--lr", type=float, default=1e-4, help="Learning rate of Adam. Default: %(default)s.")
    group.add_argument("--adapter_lr", type=float,
        help="Learning rate of the adapters, which learn once a batch while the decoder learns in every round. "
             "Default: --lr.")
    group.add_argument("--adapter_norm_lr", type=float,
        help="Learning rate of the last LayerNorm of each adapter, which scales what a new adapter adds, from "
             "nothing; in short runs 20 times --adapter_lr helps. Default: --adapter_lr.")
    group.add_argument("--lr_scheduler", choices=["multistep", "cosine"],
        type=lambda name: name.lower().removesuffix("lr"),
        help="How the learning rate changes: multistep (or MultiStepLR) halves it at each of --milestones, cosine "
             "brings it to zero at the end. Default: it stays.")
    group.add_argument("--milestones", type=int, nargs="+", default=[5, 10], metavar="EPOCH",
        help="Epochs after which --lr_scheduler multistep halves the learning rate. Default: 5 10.")
    group.add_argument("--warmup", type=int, default=0, metavar="STEPS",
        help="Number of batches over which the learning rate rises linearly from zero. Default: %(default)s.")
    group.add_argument("--clip_norm", type=float, metavar="NORM",
        help="Scale a gradient down to this norm where it is larger. Default: gradients are not clipped.")
    add_flag(group, "--use_amp", False, "Train in mixed precision: bfloat16 where the device has it, else float16.")

    group = parser.add_argument_group("interaction")
    group.add_argument("--iter_point", type=int, default=8,
        help="Number of corrections that follow the first prompt of a batch. Default: %(default)s.")
    group.add_argument("--point_list", type=int, nargs="+", default=[1, 3, 5, 9],
        help="Numbers of clicks; each correction draws one of these. Default: 1 3 5 9.")
    add_flag(group, "--keep_clicks", False,
        "Let the clicks of a correction join those before them, as test.py asks them (a starting box is not kept). "
        "By default they replace them, which is the paper's recipe.")
    group.add_argument("--box_shift", type=int, default=5, metavar="PIXELS",
        help="Move each starting box by up to so many pixels of the frame, and by at most half its short side; 5 "
             "suits 256 px. Default: %(default)s.")
    add_flag(group, "--multimask", True,
        "Let corrections follow the best of outputs 1 to 3; False: output 0. All four are trained either way.")

    group = parser.add_argument_group("validation, where image2label_val.json or label2image_val.json exists")
    group.add_argument("--metrics", nargs="+", default=["iou", "dice"], choices=[*METRICS],
        help="Metrics of the validation that TensorBoard shows. Default: iou dice.")
    group.add_argument("--validate_every", type=int, default=1, metavar="EPOCHS",
        help="Validate, and draw pictures, after so many epochs and after the last. Default: %(default)s.")
    group.add_argument("--prompt_modes", nargs="+", type=mode_name, default=[*DEFAULT_MODES],
        help="Prompt modes of the validation, named as for test.py; best.pth is the epoch with the best mean Dice "
             "of them. Default: %(default)s.")
    # fmt: on
    if saved:
        parser.set_defaults(**saved.flags_to_go_on_with(parser))
    args = parser.parse_args(argv)
    if args.resume == "last":
        args.resume = str(models_folder(args) / "last.pth")
    check_numbers(
        parser,
        args,
        positive=("epochs", "batch_size", "mask_num", "image_size", "log_every", "validate_every"),
        not_negative=("iter_point", "box_shift", "seed", "save_every", "num_workers", "warmup"),
    )
    if min(args.point_list) < 1:
        parser.error("each of --point_list must be at least 1")
    for name in ("lr", "adapter_lr", "adapter_norm_lr", "clip_norm"):
        rate = getattr(args, name)
        if rate is not None and not 0 < rate < math.inf:
            parser.error(f"--{name} must be above 0, not {rate}")
    args.modes = [parse_mode(name) for name in args.prompt_modes]
    return args


def recipe_of(args: argparse.Namespace) -> Recipe:
    return Recipe(
        corrections=args.iter_point,
        click_counts=tuple(args.point_list),
        keep_clicks=args.keep_clicks,
        box_shift=args.box_shift,
        multimask=args.multimask,
        seed=args.seed,
    )


def learner_of(args: argparse.Namespace, model: Sam, steps_an_epoch: int) -> Learner:
    return Learner(
        model,
        lr=args.lr,
        adapter_lr=args.adapter_lr,
        adapter_norm_lr=args.adapter_norm_lr,
        schedule=Schedule(args.lr_scheduler, args.epochs, steps_an_epoch, tuple(args.milestones), args.warmup),
        use_amp=args.use_amp,
        clip_norm=args.clip_norm,
    )


@ending_in_one_line(kept="a checkpoint that was saved before is whole")
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    folder = models_folder(args)
    with owned(folder, "train.py"):
        saved = None
        if args.resume:
            saved = SavedRun(args.resume)
            args = parse_args(argv, saved)
        elif (folder / "last.pth").exists() and not args.overwrite:
            raise UsageError(
                f"{folder / 'last.pth'} is there already: go on with --resume, choose another "
                "--run_name, or start anew with --overwrite"
            )
        else:  # the weights of the run that is started over may be what it starts from
            check_no_input([folder / "last.pth", folder / "best.pth"], [args.sam_checkpoint])
        run(args, saved)


def run(args: argparse.Namespace, saved: SavedRun | None) -> None:
    """saved: the run to go on with."""
    device = best_device(args.device)
    seed_everything(args.seed)

    # everything that can be known to be wrong is found before any training
    plan = None if saved else settle_model(args)
    args.frame = args.frame or SAM_MED2D  # of a saved run that is older than any other frame
    dataset = TrainingDataset(
        args.data_path,
        args.image_size,
        "train",
        args.mask_num,
        args.augment,
        args.seed,
        args.cache,
        args.balance,
        args.frame,
    )
    loader = train_loader(dataset, args.batch_size, args.num_workers, args.seed)
    validation = validation_loader(args)
    shown = range(min(PANEL_IMAGES, len(dataset)))
    panel = collate([scoring_sample(dataset.index, i, args.image_size, args.frame) for i in shown])
    if dataset.index.images_without_masks:
        print(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")
    if dataset.balance:
        print(f"each of {len(dataset.balance.groups)} groups ({args.balance}) has the same share of every epoch")
    model = (plan.build() if plan else new_model(args)).to(device)
    del plan
    trained = model.train_for("adapters")
    print(
        f"trained: {sum(p.numel() for p in trained) / 1e6:.2f} M of "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters "
        f"({'adapters, ' if model.image_encoder.adapters() else ''}prompt encoder, mask decoder)"
    )

    progress = Progress(steps_an_epoch=math.ceil(len(dataset) / args.batch_size))
    state = RunState(args, model, learner_of(args, model, progress.steps_an_epoch), progress)
    if saved:
        state.restore(saved, defaults=vars(parse_args([])))

    logs = run_folder(Path(args.work_dir) / "logs", args.run_name)
    check_writable(logs)
    check_writable(state.folder, room_for_checkpoints(model, state.folder))
    if not saved:
        state.start()
    with (
        SummaryWriter(str(logs), purge_step=progress.step + 1 if saved else None) as board,
        at_a_good_moment() as stop,
    ):
        del saved
        for epoch in range(progress.epoch, args.epochs):
            start = progress.step - epoch * progress.steps_an_epoch
            loader.batch_sampler.set_epoch(epoch, start)
            train_epoch(state, loader, recipe_of(args), board, stop)
            if stop:
                state.save_last()
                stop.stop(kept(state))
            measured = None if validation else {}
            try:
                with raising_stopped():  # what is measured can be measured again
                    if (epoch + 1) % args.validate_every == 0 or epoch + 1 == args.epochs:
                        measured = validate(model, validation, args, board, progress.step) if validation else {}
                        draw_panels(model, panel, dataset.index, args, board, progress.step)
            except BaseException as error:  # a broken validation image must not cost the epoch
                state.save_last()
                if isinstance(error, Stopped):
                    error.saved = kept(state)
                raise
            progress.end_epoch(measured)
            state.save()
            if stop and progress.epoch < args.epochs:
                stop.stop(kept(state))
    if not progress.best_name:
        print(f"no epoch was validated; the weights are in {state.folder / 'last.pth'}")
    else:
        print(
            f"best {progress.best_name} {progress.best:.4f} in epoch {progress.best_epoch}: {state.folder / 'best.pth'}"
        )


def kept(state: RunState) -> str:
    return f"step {state.progress.step} is in {state.folder / 'last.pth'}; go on with --resume"


def settle_model(args: argparse.Namespace) -> Plan | None:
    """Read the weights to start from, if any; the flags of the model become what it will be.

    Raises CheckpointError, UsageError.
    """
    if args.sam_checkpoint.lower() == FROM_SCRATCH:
        args.model_type = args.model_type or NEW_TYPE
        args.image_size = args.image_size or NEW_SIZE
        args.frame = args.frame or SAM_MED2D
        return None
    if args.sam_checkpoint == DEFAULT_CHECKPOINT and not Path(DEFAULT_CHECKPOINT).exists():
        raise CheckpointError(
            f"{DEFAULT_CHECKPOINT}: not found. Download SAM's ViT-B (sam_vit_b_01ec64.pth, from the Segment Anything "
            "repository's model checkpoints) or SAM-Med2D's weights (sam-med2d_b.pth, from its repository) and name "
            "the file with --sam_checkpoint; --sam_checkpoint none trains from scratch"
        )
    plan = plan_model(
        args.sam_checkpoint,
        model_type=args.model_type,
        image_size=args.image_size,
        encoder_adapter=args.encoder_adapter,
        frame=args.frame,
        usual_size=training_size,
        may_add_adapters=True,
        training=True,
    )
    plan.warn()
    args.model_type, args.image_size, args.frame = plan.model_type, plan.image_size, plan.frame
    return plan


def training_size(found: Architecture) -> int:
    """What a file was trained at; but SAM's own, of 1024 pixels, are fine-tuned at 256, as SAM-Med2D was."""
    sams_own = found.image_size == SAMS_SIZE and not found.adapters
    return NEW_SIZE if sams_own else found.image_size


def new_model(args: argparse.Namespace) -> Sam:
    return sam_model_registry[args.model_type](
        image_size=args.image_size, encoder_adapter=args.encoder_adapter, frame=args.frame
    )


def train_epoch(state: RunState, loader, recipe: Recipe, board: SummaryWriter, stop: Request) -> None:
    """The rest of the epoch that the loader was set to, or its steps until someone asks to stop."""
    args, model, learner, progress = state.args, state.model, state.learner, state.progress
    model.train()
    skipped: set[str] = set()
    window = Window()
    rate = learner.lr
    bar = tqdm(
        loader,
        desc=f"epoch {progress.epoch + 1}/{args.epochs}",
        unit="batch",
        dynamic_ncols=True,
        initial=progress.steps_an_epoch - len(loader),
        total=progress.steps_an_epoch,
    )
    for batch in bar:
        skipped.update(batch.skipped)
        if len(batch.mask_names):
            rate = learner.set_rate(progress.step)
            scalars = train_batch(model, batch.to(model.device), learner, recipe, progress.step)
            values = torch.stack([*scalars.values()]).tolist()  # the one wait for the device in a batch
            window.add(dict(zip(scalars, values)), len(batch.images))
            check_finite(window.latest, progress.step, state.folder)
            progress.add_loss(window.latest["loss/loss"])
            bar.set_postfix(
                loss=f"{window.mean('loss/loss'):.3f}",
                dice=f"{window.latest_dice():.3f}",
                images_per_s=f"{window.images_per_second():.1f}",
            )
        progress.step += 1
        if progress.step % args.log_every == 0 and window.count:
            window.write(board, progress.step, rate)
            window = Window()
        if stop:
            return
        if args.save_every and progress.step % args.save_every == 0:
            state.save_last()
    if window.count:
        window.write(board, progress.step, rate)
    if skipped:
        print(f"skipped {len(skipped)} empty mask(s), such as {min(skipped)}")
    if not progress.loss_count:
        raise DataError(f"{args.data_path}: every mask of its train split is empty; correct the index")


if __name__ == "__main__":
    main()
