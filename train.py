"""Fine-tune SAM with adapters on a JSON-indexed data set, with a simulated annotator.

    python train.py --sam_checkpoint small --epochs 1 --run_name try   # a minute on a CPU, on the data in data_demo/
    python train.py --sam_checkpoint pretrain_model/sam_vit_b_01ec64.pth --data_path data_demo
    python train.py --encoder_adapter False --run_name ft-sam   # decoder side only: the paper's FT-SAM
    python train.py --tune lora --run_name lora                 # pairs that merge into SAM's own weights
    python train.py --resume                                    # go on where this run stopped

Leaves {work_dir}/models/{run_name}/last.pth (all that --resume needs) and best.pth (weights alone), and TensorBoard
logs in {work_dir}/logs/{run_name}. Every random draw is a function of --seed and of the place in the run (epoch,
image, step), so a resumed run needs no random state: it draws what the uninterrupted one would have drawn.
"""

import argparse
import math
import os
import shlex
from contextlib import nullcontext
from pathlib import Path

import torch

from sam_med2d.cli import Parser, add_flag, check_numbers, ending_in_one_line
from sam_med2d.data.batch import Batch
from sam_med2d.data.datasets import TrainingDataset, train_loader
from sam_med2d.data.embedding_cache import PRECISIONS
from sam_med2d.data.index import Index
from sam_med2d.data.samplers import KINDS as BALANCE_KINDS
from sam_med2d.data.windows import window_of
from sam_med2d.device import best_device, seed_everything
from sam_med2d.distributed import Processes, join_processes
from sam_med2d.errors import UsageError
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.outputs import check_no_input, run_folder
from sam_med2d.ownership import check_writable, owned
from sam_med2d.prompts.modes import DEFAULT_MODES, mode_name, parse_modes
from sam_med2d.stopping import Request, Stopped, at_a_good_moment, raising_stopped
from sam_med2d.training.averaging import Average
from sam_med2d.training.boards import Boards, boards_of
from sam_med2d.training.embeddings import AGAIN, remember_embeddings
from sam_med2d.training.epoch import train_epoch
from sam_med2d.training.learner import ALONE, Learner, Schedule
from sam_med2d.training.monitor import draw_panels, panel_of, validate, validation_loader
from sam_med2d.training.own_parts import MetricNames, OwnAugmentation, load_loss, load_metrics
from sam_med2d.training.published import RECIPES, pooled_objective
from sam_med2d.training.rounds import Recipe
from sam_med2d.training.start import DEFAULT_CHECKPOINT, build_model, check_tuning, settle_model, teacher_of
from sam_med2d.training.state import Progress, RunState, SavedRun, images_a_step, models_folder, room_for_checkpoints
from segment_anything import Sam, sam_model_registry
from segment_anything.frames import FRAMES
from segment_anything.modeling.lora import TARGETS
from segment_anything.modeling.tuning import TUNE

AMP_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PATIENCE = 1800  # seconds that a process waits for the others


def parse_args(argv: list[str] | None = None, saved: SavedRun | None = None) -> argparse.Namespace:
    """saved: the run to go on with, whose flags stand for those that nobody gives."""
    parser = Parser(description=__doc__)
    # a flag in as few lines as it needs, so that the script can be read at one go
    # fmt: off
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir",
        help="Everything is written below this folder. Default: %(default)s.")
    group.add_argument("--run_name", default="sam-med2d",
        help="Name of the run: its files lie in models/NAME and logs/NAME of --work_dir. Default: %(default)s.")
    group.add_argument("--resume", nargs="?", const="last", metavar="CHECKPOINT",
        help="Go on from this last.pth, with the flags of its run unless others are given; without a path, from the "
             "last.pth of this --run_name; auto: from that one where it is there, and start anew where not.")
    add_flag(group, "--overwrite", False, "Start anew where a run of this name has left its last.pth.")
    group.add_argument("--seed", type=int, default=0,
        help="Every random draw is a function of this number and of the place in the run. Default: %(default)s.")
    group.add_argument("--device",
        help="Where the model runs, such as cuda, cuda:1, mps or cpu. Default: the best there is.")
    group.add_argument("--save_every", type=int, default=1000, metavar="STEPS",
        help="Save last.pth after so many batches within an epoch too; 0 saves after whole epochs alone. Default: "
             "%(default)s.")
    group.add_argument("--save_minutes", type=float, default=30, metavar="MINUTES",
        help="Save last.pth also when so much time has passed since it was saved; 0: not by the clock. Default: "
             "%(default)s.")
    group.add_argument("--keep_last", type=int, default=0, metavar="EPOCHS",
        help="Keep the states after so many of the last epochs as epoch_N.pth, each a file for --resume. Default: "
             "%(default)s.")
    group.add_argument("--log_every", type=int, default=10, metavar="STEPS",
        help="Write scalars for TensorBoard after so many batches. Default: %(default)s.")
    group.add_argument("--wandb", nargs="?", const="sam-med2d", metavar="PROJECT",
        help="Tell Weights & Biases too what TensorBoard is told, in this project; WANDB_MODE=offline keeps it here.")
    add_flag(group, "--count_flops", False,
        "Say, and log, how many parameters the model has and how many floating-point operations a picture and an "
        "answer take.")

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo",
        help="Folder of the data, with image2label_train.json and, for validation, image2label_val.json. Default: "
             "%(default)s.")
    group.add_argument("--image_size", type=int,
        help="Side of the square frame that the model sees, in pixels, a multiple of 32. Default: what the weights "
             "were trained at, but 256 for SAM's own files, of 1024, and from scratch.")
    group.add_argument("--batch_size", type=int, default=2,
        help="Number of images in a batch of each process. Default: %(default)s.")
    group.add_argument("--accumulate", type=int, default=1, metavar="BATCHES",
        help="Number of batches of each process whose gradients every step of the optimizer adds up, as if they were "
             "one large batch, in the memory of one. Default: %(default)s.")
    group.add_argument("--mask_num", type=int, default=5,
        help="Number of masks drawn from each image of a batch, with replacement. Default: %(default)s.")
    group.add_argument("--num_workers", type=int, default=min(4, (os.cpu_count() or 1) - 1),
        help="Number of processes that read data ahead of the model. Default: %(default)s.")
    add_flag(group, "--augment", False,
        "Vary the training images: flips, small rotations and scalings, contrast, noise.")
    group.add_argument("--augment_with", metavar="MODULE:FUNCTION",
        help="Vary the training images by a function of your own, after --augment if that is on; docs/training.md has "
             "an example.")
    group.add_argument("--balance", choices=BALANCE_KINDS,
        help="Give each data set, or each class, the same share of every epoch, whatever its size.")
    group.add_argument("--max_bad_samples", type=int, default=0, metavar="IMAGES",
        help="Leave out training images that cannot be read, or a mask of which cannot, and name them; end where "
             "there are more than so many. Default: %(default)s.")
    group.add_argument("--replay", nargs="*", metavar="DATA",
        help="Show pictures of other kinds too, so that the model does not forget them: folders of other data, or "
             "phantoms, which are drawn; none shows no others. Default: phantoms, but none with --recipe paper and "
             "where the encoder learns nothing (--tune decoder), whose embeddings are kept.")
    group.add_argument("--replay_share", type=float, default=0.2, metavar="SHARE",
        help="Number of pictures of --replay for each of --data_path; an epoch takes so much longer. Default: "
             "%(default)s.")
    group.add_argument("--pull", type=float, default=0.0, metavar="WEIGHT",
        help="On the pictures of --replay, keep to what the weights that training starts from answer: the weight of "
             "the distance in the loss, such as 1. Default: 0, which asks nothing of them.")
    group.add_argument("--zoom_share", type=float, default=0.0, metavar="SHARE",
        help="Share of the training images that are crops around one of their objects, at scales drawn log-uniformly "
             "up to the whole picture, as the predictor looks at small objects. Default: %(default)s.")
    group.add_argument("--cache", metavar="DIR",
        help="Keep images and masks in this folder, decoded and resized, for the epochs and runs that follow; at "
             "256 px an image takes 64 KB if grey, a mask 8 KB.")
    group.add_argument("--embeddings", choices=[*PRECISIONS, AGAIN],
        help="Where the encoder learns nothing (--tune decoder) and --augment is off: keep the embedding of each "
             "image, of 16 bits a number, so that the encoder runs once an image in the whole run; again: it runs for "
             "every batch. They lie in the folder of --cache, else in cache/ of --work_dir. Default: float16 where "
             "that is possible.")
    group.add_argument("--embeddings_gb", type=float, default=10, metavar="GB",
        help="What embeddings may take on the disk; 128 KB an image at 256 px. Default: %(default)s.")

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", choices=[*sam_model_registry],
        help="Size of the model. Default: what the weights are; vit_b from scratch.")
    group.add_argument("--sam_checkpoint", default=DEFAULT_CHECKPOINT,
        help="Weights of SAM or SAM-Med2D to start from; small: those of this package; none: random weights. "
             "Default: %(default)s.")
    group.add_argument("--tune", choices=[*TUNE],
        help="What is trained beside the prompt encoder and the mask decoder: the adapters; nothing (decoder), the "
             "paper's FT-SAM; LoRA pairs, which can be merged into SAM's own weights; all. Default: adapters.")
    group.add_argument("--tune_blocks", nargs=2, metavar=("last", "N"),
        help="Of the encoder, train only what is in its last N blocks: last 4. Default: in all blocks.")
    add_flag(group, "--encoder_adapter", None,
        "Put an adapter into every block of the encoder; False: none, and unless --tune says otherwise the decoder "
        "side alone is trained. Default: True for --tune adapters, else what the weights have.")
    group.add_argument("--lora_rank", type=int, default=8, metavar="R",
        help="Width of each LoRA pair. Default: %(default)s.")
    group.add_argument("--lora_alpha", type=float, default=16, metavar="A",
        help="What a LoRA pair adds is scaled by this number over --lora_rank. Default: %(default)s.")
    group.add_argument("--lora_targets", nargs="+", default=["qkv", "proj"], choices=[*TARGETS],
        help="Which linear layers get a LoRA pair: the encoder's qkv, proj and mlp, and the attention of the mask "
             "decoder, whose own weights then stay as they are. Default: qkv proj.")
    group.add_argument("--frame", choices=FRAMES,
        help="How pictures reach the model: sam-med2d is BGR, stretched, nearest neighbour; sam is RGB, longest side, "
             "padded, bilinear, for weights that tools made for SAM shall open. Default: that of SAM-Med2D's weights "
             "and of what this project trained, as they say; sam-med2d for SAM's own and from scratch.")
    add_flag(group, "--refine", None,
        "Train a refinement network too, which reads clicks as maps and answers at the full size of the frame; False: "
        "leave that of the file out. Default: what the file has.")
    # fmt: on
    add_learning_flags(parser)
    if saved:
        parser.set_defaults(**saved.flags_to_go_on_with(parser))
    args = parser.parse_args(argv)
    if args.resume in ("last", "auto"):
        own = models_folder(args) / "last.pth"
        args.resume = str(own) if args.resume == "last" or own.exists() else None
    check_flags(parser, args)
    args.modes = parse_modes(args.prompt_modes)
    return args


def add_learning_flags(parser: argparse.ArgumentParser) -> None:
    """How it learns, from whom, and how it is judged."""
    # fmt: off
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=int, default=15,
        help="Number of passes over the training images. Default: %(default)s.")
    group.add_argument("--optimizer", choices=["adam", "adamw"], type=str.lower, default="adam",
        help="How gradients become steps; both fused where the device can. Default: %(default)s.")
    group.add_argument("--lr", type=float, default=1e-4, help="Learning rate. Default: %(default)s.")
    group.add_argument("--weight_decay", type=float, default=0.0,
        help="Weight decay of matrices and kernels; biases and norms have none. For adamw 0.01 is usual. Default: "
             "%(default)s.")
    group.add_argument("--loss", metavar="MODULE:FUNCTION",
        help="Lower a loss of your own in place of 20 x focal + Dice + the error of the predicted IoU; "
             "docs/training.md has an example.")
    group.add_argument("--adapter_lr", type=float,
        help="Learning rate of adapters and LoRA pairs, which learn once a batch while the decoder learns in every "
             "round. Default: --lr.")
    group.add_argument("--adapter_norm_lr", type=float,
        help="Learning rate of the last LayerNorm of each adapter, which scales what a new adapter adds, from "
             "nothing; in short runs 20 times --adapter_lr helps. Default: --adapter_lr.")
    group.add_argument("--layer_decay", type=float, default=1.0, metavar="FACTOR",
        help="With --tune all: multiply the learning rate by this number from each block of the encoder to the one "
             "before it, such as 0.8. Default: all learn at --lr.")
    group.add_argument("--refine_lr", type=float,
        help="Learning rate of the refinement network, which starts from nothing; in short runs 10 times --lr helps. "
             "Default: --lr.")
    group.add_argument("--lr_scheduler", choices=["multistep", "cosine", "constant"],
        type=lambda name: name.lower().removesuffix("lr"),
        help="How the learning rate changes: multistep (or MultiStepLR) halves it at each of --milestones, cosine "
             "brings it to zero at the end step by step, constant keeps it. Default: it stays.")
    group.add_argument("--milestones", type=int, nargs="+", default=[5, 10], metavar="EPOCH",
        help="Epochs after which --lr_scheduler multistep halves the learning rate. Default: 5 10.")
    group.add_argument("--warmup", type=int, default=0, metavar="STEPS",
        help="Number of batches over which the learning rate rises linearly from zero. Default: %(default)s.")
    group.add_argument("--clip_norm", type=float, metavar="NORM",
        help="Scale a gradient down to this norm where it is larger. Default: gradients are not clipped.")
    add_flag(group, "--use_amp", False, "Train in mixed precision: bfloat16 where the device has it, else float16.")
    group.add_argument("--amp_type", choices=[*AMP_TYPES],
        help="What --use_amp computes in; float16 has a gradient scaler. Default: bfloat16 where the device has it, "
             "else float16.")
    add_flag(group, "--compile", False, "Compile the encoder of the training steps by torch.compile.")
    add_flag(group, "--checkpoint_encoder", False,
        "Keep of each block of the encoder its input alone, and compute the rest again backwards: less memory, more "
        "time (activation checkpointing).")
    group.add_argument("--ema", type=float, metavar="DECAY",
        help="Keep a moving average of what is trained, of which so much stays in each step, such as 0.999; it is "
             "validated beside the weights, and best.pth is the better one.")
    group.add_argument("--patience", type=int, metavar="VALIDATIONS",
        help="End when so many validations in a row were no better than the best. Default: all --epochs.")

    group = parser.add_argument_group("interaction")
    group.add_argument("--recipe", choices=RECIPES, default="ours",
        help="How to learn: ours, or as SAM-Med2D's public code does, to compare with (paper): losses pooled over a "
             "batch, of the answer with the highest predicted IoU alone, a frozen prompt encoder, adapters that start "
             "at random, one kind of first prompt for a whole batch. Other flags keep their defaults, which are the "
             "paper's. Default: %(default)s.")
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
    group.add_argument("--scribble_share", type=float, default=0.0,
        help="Share of the starts from clicks, and of the corrections, in which a stroke is drawn instead. Default: "
             "%(default)s.")
    group.add_argument("--lasso_share", type=float, default=0.0,
        help="Share of the starts from boxes in which a rough outline is drawn instead. Default: %(default)s.")
    group.add_argument("--rank_weight", type=float, default=0.0,
        help="Weight of a loss that ranks the three guesses by their true IoU. Default: %(default)s.")
    add_flag(group, "--multimask", True,
        "Let corrections follow the best of outputs 1 to 3; False: output 0. All four are trained either way.")

    group = parser.add_argument_group("validation, where image2label_val.json or label2image_val.json exists")
    group.add_argument("--metrics", nargs="+", default=["iou", "dice"], choices=MetricNames(METRICS),
        help="Metrics of the validation that TensorBoard shows; your own ones as MODULE:FUNCTION. Default: iou dice.")
    group.add_argument("--validate_every", type=int, default=1, metavar="EPOCHS",
        help="Validate, and draw pictures, after so many epochs and after the last. Default: %(default)s.")
    group.add_argument("--prompt_modes", nargs="+", type=mode_name, default=[*DEFAULT_MODES],
        help="Prompt modes of the validation, named as for test.py; best.pth is the epoch with the best mean Dice "
             "of them. Default: %(default)s.")
    # fmt: on


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the parser's message where flags make no sense."""
    positive = ("epochs", "batch_size", "accumulate", "mask_num", "image_size", "log_every", "validate_every")
    not_negative = ("iter_point", "box_shift", "seed", "save_every", "save_minutes", "keep_last", "num_workers")
    rates = ("lr", "adapter_lr", "adapter_norm_lr", "lora_alpha", "refine_lr", "clip_norm")
    check_numbers(
        parser,
        args,
        positive=(*positive, "patience"),
        not_negative=(*not_negative, "warmup", "weight_decay", "rank_weight", "max_bad_samples", "pull"),
        shares=("scribble_share", "lasso_share", "zoom_share", "ema"),
        rates=(*rates, "embeddings_gb", "replay_share"),
    )
    if min(args.point_list) < 1:
        parser.error("each of --point_list must be at least 1")
    check_tuning(parser, args)
    if args.compile and args.embeddings != AGAIN:
        parser.error(f"--compile is of the encoder, which with --embeddings {args.embeddings} runs once an image")
    if args.loss and args.rank_weight:
        parser.error("--rank_weight is a term of the loss that --loss replaces: leave one of the two out")
    if args.recipe == "paper" and (args.loss or args.rank_weight):
        parser.error("--recipe paper has a loss of its own: leave out --loss and --rank_weight")


def recipe_of(args: argparse.Namespace) -> Recipe:
    return Recipe(
        corrections=args.iter_point,
        click_counts=tuple(args.point_list),
        keep_clicks=args.keep_clicks,
        box_shift=args.box_shift,
        multimask=args.multimask,
        seed=args.seed,
        scribble_share=args.scribble_share,
        lasso_share=args.lasso_share,
        rank_weight=args.rank_weight,
        coin_a_batch=args.recipe == "paper",
        loss=pooled_objective if args.recipe == "paper" else load_loss(args.loss) if args.loss else None,
    )


def learner_of(args: argparse.Namespace, model: Sam, steps_an_epoch: int, processes: Processes = ALONE) -> Learner:
    return Learner(
        model,
        lr=args.lr,
        adapter_lr=args.adapter_lr,
        adapter_norm_lr=args.adapter_norm_lr,
        layer_decay=args.layer_decay,
        refine_lr=args.refine_lr,
        schedule=Schedule(args.lr_scheduler, args.epochs, steps_an_epoch, tuple(args.milestones), args.warmup),
        optimizer=args.optimizer,
        weight_decay=args.weight_decay,
        use_amp=args.use_amp,
        amp_type=AMP_TYPES.get(args.amp_type),
        clip_norm=args.clip_norm,
        compiled=args.compile,
        processes=processes,
    )


@ending_in_one_line(kept="a checkpoint that was saved before is whole")
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    processes = join_processes(args.device or best_device(None).type, PATIENCE)
    folder = models_folder(args)
    with owned(folder, "train.py") if processes.leads else nullcontext():
        processes.wait()  # nobody reads what another run may be writing
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
        args.processes = processes.count
        run(args, saved, processes)


def run(args: argparse.Namespace, saved: SavedRun | None, processes: Processes) -> None:
    """saved: the run to go on with."""
    device = best_device(args.device, processes.local_rank)
    seed_everything(args.seed)
    say = print if processes.leads else lambda *_: None

    # everything that can be known to be wrong is found before any training
    recipe = recipe_of(args)
    load_metrics(args.metrics)
    plan = None if saved else settle_model(args)
    dataset = TrainingDataset(
        *(args.data_path, args.image_size, "train", args.mask_num, args.augment, args.seed, args.cache, args.balance),
        *(args.replay, args.replay_share, OwnAugmentation(args.augment_with) if args.augment_with else None),
        frame=args.frame,
        skip_bad=args.max_bad_samples > 0,
        zoom_share=args.zoom_share,
    )
    step_images = images_a_step(vars(args))
    loader = train_loader(dataset, step_images, args.num_workers, args.seed, processes.rank, processes.count)
    validation = validation_loader(args, processes)
    panel = panel_of(dataset)
    shown_too = f" and {dataset.replayed} of {' '.join(args.replay)} (--replay)" if args.replay else ""
    say(
        f"{len(dataset.index)} training images{shown_too}, {step_images} a step: {processes.count} process(es) x "
        f"--batch_size {args.batch_size} x --accumulate {args.accumulate}"
    )
    if dataset.index.images_without_masks:
        say(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")
    if dataset.balance:
        say(f"each of {len(dataset.balance.groups)} groups ({args.balance}) has the same share of every epoch")
    model = build_model(plan, args, say).to(device)
    del plan
    if teacher := teacher_of(args):
        recipe = recipe._replace(teacher=teacher._replace(model=teacher.model.to(device)))
    model.window = window_of(dataset.index.root)  # stays with the weights, for whoever shows scans to them
    model.image_encoder.checkpointing = args.checkpoint_encoder

    progress = Progress(steps_an_epoch=math.ceil(len(dataset) / step_images))
    learner = learner_of(args, model, progress.steps_an_epoch, processes)
    average = None if args.ema is None else Average(model, args.ema)
    state = RunState(args, model, learner, progress, average, processes)
    if saved:
        state.restore(saved, defaults=vars(parse_args([])))
    processes.copy_from_the_first([*model.state_dict().values()])
    remember_embeddings(model, args, len(dataset) + (len(validation.dataset.dataset) if validation else 0), say)

    logs = run_folder(Path(args.work_dir) / "logs", args.run_name)
    if processes.leads:
        check_writable(logs)
        check_writable(state.folder, room_for_checkpoints(model, state.folder, bool(average), args.keep_last))
    if not saved:
        state.start()
    with (
        boards_of(args, logs, state, resumed=bool(saved)) if processes.leads else Boards([]) as board,
        at_a_good_moment(echoes=processes.count > 1) as stop,
    ):
        del saved
        train_epochs(state, loader, validation, (panel, dataset.index), recipe, board, stop)
    if not progress.best_name:
        say(f"no epoch was validated; the weights are in {state.folder / 'last.pth'}")
    else:
        say(
            f"best {progress.best_name} {progress.best:.4f} in epoch {progress.best_epoch}: {state.folder / 'best.pth'}"
        )
        words = ["--sam_checkpoint", state.folder / "best.pth", "--data_path", args.data_path]
        words += ["--work_dir", args.work_dir, "--run_name", args.run_name]
        say(f"score it on the test split: python test.py {shlex.join(map(str, words))}")


def train_epochs(
    state: RunState, loader, validation, panel: tuple[Batch, Index], recipe: Recipe, board: Boards, stop: Request
) -> None:
    """Those that are left, or as many as --patience has. panel: what is drawn after each, and the index it is of."""
    args, progress, processes, (batch, index) = state.args, state.progress, state.processes, panel
    for epoch in range(progress.epoch, args.epochs):
        if args.patience and progress.waited >= args.patience:
            if processes.leads:
                print(f"training ends: {progress.waited} validation(s) were no better than epoch {progress.best_epoch}")
            break
        loader.batch_sampler.set_epoch(epoch, progress.step - epoch * progress.steps_an_epoch)
        if train_epoch(state, loader, recipe, board, stop):
            state.save_last(final=True)
            stop.stop(kept(state))
        judged: tuple[dict[str, float] | None, ...] = (None if validation else {},)
        try:
            with raising_stopped():  # what is measured can be measured again
                if (epoch + 1) % args.validate_every == 0 or epoch + 1 == args.epochs:
                    judged = judge(state, validation, board)
                    if processes.leads:
                        draw_panels(state.model, batch, index, args, board, progress.step)
        except BaseException as error:  # a broken validation image must not cost the epoch
            state.save_last(final=True)
            if isinstance(error, Stopped):
                error.saved = kept(state)
            raise
        progress.end_epoch(*judged)
        board.end_epoch(progress.epoch, progress.step)
        state.save()
        if processes.any(bool(stop)) and progress.epoch < args.epochs:
            stop.stop(kept(state))


def judge(state: RunState, validation, board: Boards) -> tuple[dict[str, float], ...]:
    """The validation Dice of each prompt mode, of the weights and of their average, if there is one."""
    if not validation:
        return ({},)
    place = state.progress.step, state.processes
    measured = validate(state.model, validation, state.args, board, *place)
    if not state.average:
        return (measured,)
    with state.average.in_place():
        return measured, validate(state.model, validation, state.args, board, *place, "average")


def kept(state: RunState) -> str:
    return f"step {state.progress.step} is in {state.folder / 'last.pth'}; go on with --resume"


if __name__ == "__main__":
    main()
