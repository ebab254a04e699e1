"""Fine-tune SAM with adapters on a JSON-indexed data set, with a simulated annotator.

    python train.py --model_type vit_t --sam_checkpoint pretrain_model/vit_t_phantoms.safetensors \
        --image_size 128 --epochs 1 --run_name try              # a minute on a CPU, on the data in data_demo/
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
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sam_med2d import drawing
from sam_med2d.data.balance import KINDS as BALANCE_KINDS
from sam_med2d.data.datasets import (
    Batch,
    DataError,
    Index,
    TestingDataset,
    TrainingDataset,
    collate,
    scoring_sample,
    test_loader,
    train_loader,
)
from sam_med2d.evaluation.evaluate import Means, SimulatedAnnotator, evaluate
from sam_med2d.evaluation.metrics import METRICS
from sam_med2d.prompts.modes import DEFAULT_MODES, parse_mode
from sam_med2d.training.rounds import (
    Round,
    correction_prompts,
    judge,
    plan_of_corrections,
    predict_start,
    starting_prompts,
    uniform_from,
)
from sam_med2d.utils import (
    UsageError,
    add_flag,
    amp_dtype,
    best_device,
    check_numbers,
    finish,
    seed_everything,
    seed_of,
)
from segment_anything import Sam, sam_model_registry
from segment_anything.checkpoint import CheckpointError, load_checkpoint, read_checkpoint
from segment_anything.files import replacing

DEFAULT_CHECKPOINT = "pretrain_model/sam_vit_b.pth"
PANEL_IMAGES = 4  # images drawn for TensorBoard after each epoch


def parse_args(argv: list[str] | None = None, defaults: dict | None = None) -> argparse.Namespace:
    """defaults: instead of those below, where a run is resumed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("run")
    group.add_argument("--work_dir", default="workdir", help="where everything is written")
    group.add_argument("--run_name", default="sam-med2d")
    group.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="CHECKPOINT",
        help="go on from a last.pth, with the flags of its run unless others are given; "
        "without a path, from that of this run",
    )
    add_flag(group, "--overwrite", False, "start anew where a run of this name has left its last.pth")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--device", help="default: cuda, mps or cpu, the best there is")
    group.add_argument(
        "--save_every",
        type=int,
        default=1000,
        metavar="STEPS",
        help="save last.pth within epochs too, every so many batches; 0: only after each epoch",
    )
    group.add_argument(
        "--log_every", type=int, default=10, metavar="STEPS", help="of the TensorBoard scalars, in batches"
    )

    group = parser.add_argument_group("data")
    group.add_argument("--data_path", default="data_demo", help="folder with image2label_train.json")
    group.add_argument("--image_size", type=int, default=256)
    group.add_argument("--batch_size", type=int, default=2, help="images a step")
    group.add_argument("--mask_num", type=int, default=5, help="masks an image, drawn with replacement")
    group.add_argument("--num_workers", type=int, default=min(4, (os.cpu_count() or 1) - 1))
    add_flag(group, "--augment", False, "flips, small rotations and scalings, contrast, noise")
    group.add_argument(
        "--balance",
        choices=BALANCE_KINDS,
        help="give each data set, or each class, the same share of every epoch, whatever its size",
    )
    group.add_argument(
        "--cache",
        metavar="DIR",
        help="keep images and masks there, decoded and resized, for the epochs and "
        "runs that follow; at 256 px 64 KB a grey image, 8 KB a mask",
    )

    group = parser.add_argument_group("model")
    group.add_argument("--model_type", default="vit_b", choices=[*sam_model_registry])
    group.add_argument(
        "--sam_checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="any SAM or SAM-Med2D weights; none: start from random weights",
    )
    add_flag(group, "--encoder_adapter", True, "adapters in the encoder, the only part of it that is trained")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=int, default=15)
    group.add_argument("--lr", type=float, default=1e-4)
    group.add_argument("--adapter_lr", type=float, help="of the adapters, which learn once a batch; default: --lr")
    group.add_argument(
        "--adapter_norm_lr",
        type=float,
        help="of their last LayerNorm, which scales what a new adapter adds, from "
        "nothing; in short runs 20 x --adapter_lr helps; default: --adapter_lr",
    )
    group.add_argument(
        "--lr_scheduler",
        choices=["multistep", "cosine"],
        type=lambda name: name.lower().removesuffix("lr"),
        help="multistep (or MultiStepLR): halved at each of --milestones; cosine: to zero at the end; "
        "default: constant",
    )
    group.add_argument("--milestones", type=int, nargs="+", default=[5, 10], metavar="EPOCH")
    group.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="linear, in batches")
    add_flag(group, "--use_amp", False, "mixed precision")

    group = parser.add_argument_group("interaction")
    group.add_argument("--iter_point", type=int, default=8, help="corrections that follow the first prompt")
    group.add_argument(
        "--point_list", type=int, nargs="+", default=[1, 3, 5, 9], help="clicks of a correction, drawn from these"
    )
    add_flag(
        group,
        "--keep_clicks",
        False,
        "corrections keep the clicks before them, as in test.py (but not a box); by default they "
        "replace them, the paper's recipe",
    )
    group.add_argument(
        "--box_shift",
        type=int,
        default=5,
        metavar="PIXELS",
        help="boxes are moved by up to so much, and at most half their short side; 5 suits 256 px",
    )
    add_flag(
        group,
        "--multimask",
        True,
        "corrections follow the best of outputs 1 to 3; False: output 0. All four are trained",
    )

    group = parser.add_argument_group("validation, where image2label_val.json or label2image_val.json exists")
    group.add_argument("--metrics", nargs="+", default=["iou", "dice"], choices=[*METRICS])
    group.add_argument(
        "--validate_every", type=int, default=1, metavar="EPOCHS", help="and after the last; pictures too"
    )
    group.add_argument(
        "--prompt_modes", nargs="+", default=[*DEFAULT_MODES], help="as in test.py; best.pth has the best mean Dice"
    )
    parser.set_defaults(**(defaults or {}))
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
    for name in ("lr", "adapter_lr", "adapter_norm_lr"):
        rate = getattr(args, name)
        if rate is not None and not 0 < rate < math.inf:
            parser.error(f"--{name} must be above 0, not {rate}")
    try:
        args.modes = [parse_mode(name) for name in args.prompt_modes]
    except ValueError as error:
        parser.error(str(error))
    return args


def models_folder(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / "models" / args.run_name


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        if args.resume:
            args = parse_args(argv, defaults=flags_of_run(args.resume))
        elif (models_folder(args) / "last.pth").exists() and not args.overwrite:
            raise UsageError(
                f"{models_folder(args) / 'last.pth'} is there already: go on with --resume, choose another "
                "--run_name, or start anew with --overwrite"
            )
        run(args)
    except (DataError, CheckpointError, UsageError) as error:
        finish(error)


def run(args: argparse.Namespace) -> None:
    device = best_device(args.device)
    seed_everything(args.seed)

    # everything that can be known to be wrong is found before any training
    dataset = TrainingDataset(
        args.data_path, args.image_size, "train", args.mask_num, args.augment, args.seed, args.cache, args.balance
    )
    loader = train_loader(dataset, args.batch_size, args.num_workers, args.seed)
    validation = validation_loader(args)
    panel = collate([scoring_sample(dataset.index, i, args.image_size) for i in range(min(PANEL_IMAGES, len(dataset)))])
    if dataset.index.images_without_masks:
        print(f"{dataset.index.images_without_masks} image(s) of the index have no mask and are left out")
    if dataset.balance:
        print(f"each of {len(dataset.balance.groups)} groups ({args.balance}) has the same share of every epoch")
    model = build_model(args).to(device)
    trained = model.train_for("adapters")
    print(
        f"trained: {sum(p.numel() for p in trained) / 1e6:.2f} M of "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters "
        f"({'adapters, ' if model.image_encoder.adapters() else ''}prompt encoder, mask decoder)"
    )

    optimizer = build_optimizer(model, args)
    half_floats = args.use_amp and amp_dtype(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half_floats)
    progress = Progress(steps_an_epoch=math.ceil(len(dataset) / args.batch_size))
    if args.resume:
        progress.load(resume(args, model, optimizer, scaler), args)
    else:  # --overwrite: the weights of another run would stand there until this one is judged
        (models_folder(args) / "best.pth").unlink(missing_ok=True)

    logs = str(Path(args.work_dir) / "logs" / args.run_name)
    with SummaryWriter(logs, purge_step=progress.step + 1 if args.resume else None) as board:
        for epoch in range(progress.epoch, args.epochs):
            start = progress.step - epoch * progress.steps_an_epoch
            loader.batch_sampler.set_epoch(epoch, start)
            train_epoch(model, loader, optimizer, scaler, args, progress, board)
            measured = None if validation else {}
            try:
                if (epoch + 1) % args.validate_every == 0 or epoch + 1 == args.epochs:
                    measured = validate(model, validation, args, board, progress.step) if validation else {}
                    draw_panels(model, panel, dataset.index, args, board, progress.step)
            except BaseException:  # a broken validation image must not cost the epoch
                save_last(args, model, optimizer, scaler, progress)
                raise
            progress.end_epoch(measured)
            save(args, model, optimizer, scaler, progress)
    if not progress.best_name:
        print(f"no epoch was validated; the weights are in {models_folder(args) / 'last.pth'}")
    else:
        print(
            f"best {progress.best_name} {progress.best:.4f} in epoch {progress.best_epoch}: {models_folder(args) / 'best.pth'}"
        )


def validation_loader(args: argparse.Namespace):
    """None where the data has no index of a `val` split."""
    folder = Path(args.data_path)
    if not any((folder / f"{kind}_val.json").exists() for kind in ("image2label", "label2image")):
        return None
    return test_loader(TestingDataset(args.data_path, args.image_size, "val"), args.batch_size, args.num_workers)


def build_model(args: argparse.Namespace) -> Sam:
    from_weights = not args.resume and args.sam_checkpoint.lower() != "none"
    if from_weights and args.sam_checkpoint == DEFAULT_CHECKPOINT and not Path(DEFAULT_CHECKPOINT).exists():
        raise CheckpointError(
            f"{DEFAULT_CHECKPOINT}: not found. Download SAM's ViT-B (sam_vit_b_01ec64.pth, from the Segment Anything "
            "repository's model checkpoints) or SAM-Med2D's weights (sam-med2d_b.pth, from its repository) and name the "
            "file with --sam_checkpoint; --sam_checkpoint none trains from scratch"
        )
    model = sam_model_registry[args.model_type](image_size=args.image_size, encoder_adapter=args.encoder_adapter)
    if from_weights:
        print(load_checkpoint(model, args.sam_checkpoint))
    return model


def build_optimizer(model: Sam, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam over what is trained; a group's "lr_scale" is its share of the learning rate."""
    adapters = model.image_encoder.adapters()
    adapter_lr = args.adapter_lr or args.lr
    rates = (
        ([p for adapter in adapters for p in adapter.norm.parameters()], args.adapter_norm_lr or adapter_lr),
        ([p for adapter in adapters for p in adapter.parameters()], adapter_lr),
        (model.parameters(), args.lr),
    )
    groups, taken = [], set()
    for parameters, rate in rates:
        own = [p for p in parameters if p.requires_grad and id(p) not in taken]
        taken.update(map(id, own))
        if own:
            groups.append({"params": own, "lr_scale": rate / args.lr})
    return torch.optim.Adam(groups, lr=args.lr, fused=model.device.type in ("cpu", "cuda"))


# ---------------------------------------------------------------- one batch, one epoch


def train_batch(
    model: Sam,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    args: argparse.Namespace,
    step: int,
) -> dict[str, torch.Tensor]:
    """A start from boxes and clicks, which trains everything that is trained, then `iter_point` corrections, each
    with a step of its own for the decoder side (SAM-Med2D paper, section 3.3).

    Returns detached scalars: the loss and its terms as means over rounds, and Dice by kind of prompt and by round.
    """
    uniform = uniform_from(torch.Generator(model.device).manual_seed(seed_of(args.seed, "prompts", step)))
    draw = random.Random(seed_of(args.seed, "corrections", step))
    masks, device = batch.masks, model.device
    autocast = lambda: torch.autocast(device.type, amp_dtype(device), enabled=args.use_amp)

    def learn(round: Round) -> None:
        scaler.scale(round.losses["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        # to None, not zero: Adam would go on moving the adapters in rounds that do not reach them
        optimizer.zero_grad(set_to_none=True)

    with autocast():
        embeddings = model.encode(batch.images, batch.content)
        start = starting_prompts(masks, uniform, odd_from_box=draw.random() < 0.5, box_shift=args.box_shift)
        prediction = predict_start(model, embeddings[batch.image_index], start)
        last = judge(model, "start", prediction, masks, args.multimask)
    learn(last)
    rounds = [detached(last)]
    dice = {
        kind: last.dice[rows].mean()
        for kind, rows in (("box", start.box_rows), ("click", start.click_rows))
        if len(rows)
    }

    embeddings = embeddings.detach()[batch.image_index]
    earlier = start.clicks_of_all() if args.keep_clicks else None
    for clicks in plan_of_corrections(args.iter_point, args.point_list, draw):
        with autocast():
            prompts = correction_prompts(last, masks, clicks, uniform, earlier)
            if clicks and args.keep_clicks:
                earlier = prompts.points, prompts.labels
            prediction = model.predict(embeddings, prompts, multimask_output=None)
            last = judge(model, "clicks" if clicks else "mask", prediction, masks, args.multimask)
        learn(last)
        rounds.append(detached(last))

    scalars = {f"loss/{name}": torch.stack([r.losses[name] for r in rounds]).mean() for name in last.losses}
    scalars |= {f"dice/start_{kind}": value for kind, value in dice.items()}
    for number, round in enumerate(rounds[1:], start=1):
        scalars[f"dice/round_{number}"] = round.dice.mean()
        scalars[f"dice/correction_{round.kind}"] = round.dice.mean()
    return scalars


def detached(round: Round) -> Round:
    """Without the graph, so that the rounds of a batch do not pile up in memory."""
    return round._replace(losses={name: value.detach() for name, value in round.losses.items()})


def train_epoch(
    model: Sam, loader, optimizer, scaler, args: argparse.Namespace, progress: "Progress", board: SummaryWriter
) -> None:
    """The rest of the epoch that the loader was set to."""
    model.train()
    skipped: set[str] = set()
    window = Window()
    epoch = progress.epoch
    bar = tqdm(
        loader,
        desc=f"epoch {epoch + 1}/{args.epochs}",
        unit="batch",
        dynamic_ncols=True,
        initial=progress.steps_an_epoch - len(loader),
        total=progress.steps_an_epoch,
    )
    for batch in bar:
        skipped.update(batch.skipped)
        if len(batch.mask_names):
            rate = args.lr * lr_factor(args, progress.step, progress.steps_an_epoch)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate * parameters["lr_scale"]
            scalars = train_batch(model, batch.to(model.device), optimizer, scaler, args, progress.step)
            values = torch.stack([*scalars.values()]).tolist()  # the one wait for the device in a batch
            window.add(dict(zip(scalars, values)), len(batch.images))
            check_finite(window.latest, args, progress.step)
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
        if args.save_every and progress.step % args.save_every == 0:
            save_last(args, model, optimizer, scaler, progress)
    if window.count:
        window.write(board, progress.step, rate)
    if skipped:
        print(f"skipped {len(skipped)} empty mask(s), such as {min(skipped)}")
    if not progress.loss_count:
        raise DataError(f"{args.data_path}: every mask of its train split is empty; correct the index")


def lr_factor(args: argparse.Namespace, step: int, steps_an_epoch: int) -> float:
    """What --lr is multiplied by; a function of the place in the run, so there is no state to save."""
    warmup = min(1.0, (step + 1) / args.warmup) if args.warmup else 1.0
    if args.lr_scheduler == "multistep":
        return warmup * 0.5 ** sum(step // steps_an_epoch >= milestone for milestone in args.milestones)
    if args.lr_scheduler == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / (args.epochs * steps_an_epoch)))
    return warmup


def check_finite(scalars: dict[str, float], args: argparse.Namespace, step: int) -> None:
    terms = {name: value for name, value in scalars.items() if name.startswith("loss/")}
    if not all(map(math.isfinite, terms.values())):
        said = ", ".join(f"{name.removeprefix('loss/')} {value:g}" for name, value in terms.items())
        raise UsageError(
            f"the loss is not finite in step {step}: {said}. Nothing was saved after the last checkpoint in "
            f"{models_folder(args)}; lower --lr or switch --use_amp off, and --resume"
        )


class Window:
    """Means of the scalars since it was opened."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.count = self.images = 0
        self.opened = time.monotonic()

    def add(self, scalars: dict[str, float], images: int) -> None:
        self.latest = scalars
        self.count += 1
        self.images += images
        for name, value in scalars.items():
            self.sums[name] += value
            self.counts[name] += 1

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name]

    def latest_dice(self) -> float:
        """Of the last round."""
        rounds = [value for name, value in self.latest.items() if name.startswith(("dice/start", "dice/round"))]
        return rounds[-1]

    def images_per_second(self) -> float:
        return self.images / (time.monotonic() - self.opened)

    def write(self, board: SummaryWriter, step: int, rate: float) -> None:
        for name in self.sums:
            board.add_scalar(name, self.mean(name), step)
        board.add_scalar("lr", rate, step)
        board.add_scalar("images_per_second", self.images_per_second(), step)


# ---------------------------------------------------------------- validation and pictures


def validate(model: Sam, loader, args: argparse.Namespace, board: SummaryWriter, step: int) -> dict[str, float]:
    """-> mean Dice of each prompt mode on the val split."""
    means, skipped = Means(), []
    batches = tqdm(loader, desc="validation", unit="batch", leave=False, dynamic_ncols=True)
    for batch, scored in evaluate(
        model,
        batches,
        args.modes,
        device=model.device,
        annotator=SimulatedAnnotator(args.seed),
        multimask=args.multimask,
        use_amp=args.use_amp,
    ):
        for one in scored:
            means.add(one)
        skipped += batch.skipped
    if not means.objects:
        raise DataError(f"{args.data_path}: every mask of its val split is empty; correct or remove that index")
    for metric in args.metrics:
        for mode, value in means.of(metric).items():
            board.add_scalar(f"val_{metric}/{mode}", value, step)
    said = "  ".join(f"{mode} {value:.4f}" for mode, value in means.of("dice").items())
    print(
        f"validation Dice of {means.objects} objects: {said}" + (f"  ({len(skipped)} empty skipped)" if skipped else "")
    )
    return means.of("dice")


def draw_panels(
    model: Sam, batch: Batch, index: Index, args: argparse.Namespace, board: SummaryWriter, step: int
) -> None:
    """Some training images with predictions, truths and prompts, from a box and after three clicks."""
    for _, scored in evaluate(
        model,
        [batch],
        [parse_mode("bbox"), parse_mode("3pts")],
        device=model.device,
        annotator=SimulatedAnnotator(args.seed),
        multimask=args.multimask,
        use_amp=args.use_amp,
    ):
        for mode in ("bbox", "3pts"):
            tiles = [tile for one in scored if one.mode.name == mode for tile in drawing.tiles_of(batch, one, index)]
            if tiles:
                board.add_image(f"panel/{mode}", drawing.grid(tiles)[..., ::-1].copy(), step, dataformats="HWC")


# ---------------------------------------------------------------- checkpoints


class Progress:
    """Where the run is: `epoch`, `step` (batches since its start), the best epoch so far, the losses of this epoch."""

    def __init__(self, steps_an_epoch: int) -> None:
        self.steps_an_epoch = steps_an_epoch
        self.epoch = self.step = 0
        self.loss_sum, self.loss_count = 0.0, 0
        self.best_name, self.best, self.best_epoch = "", math.inf, 0
        self.improved = False

    def add_loss(self, loss: float) -> None:
        self.loss_sum += loss
        self.loss_count += 1

    def end_epoch(self, validation_dice: dict[str, float] | None) -> None:
        """Judge the epoch by the mean of the modes' validation Dice; by the training loss where the data has no val index
        ({}); not at all where this is not an epoch for it (None)."""
        self.epoch += 1
        name, value, better = "training loss", self.loss_sum / max(1, self.loss_count), lambda a, b: a < b
        if validation_dice:
            name, value, better = (
                "validation Dice",
                sum(validation_dice.values()) / len(validation_dice),
                lambda a, b: a > b,
            )
        self.improved = validation_dice is not None and (name != self.best_name or better(value, self.best))
        if self.improved:
            self.best_name, self.best, self.best_epoch = name, value, self.epoch
        self.loss_sum, self.loss_count = 0.0, 0

    def state(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "improved"}

    def load(self, state: dict, args: argparse.Namespace) -> None:
        if state["steps_an_epoch"] != self.steps_an_epoch:
            raise UsageError(
                f"{args.resume}: its run had {state['steps_an_epoch']} batches an epoch, this one has "
                f"{self.steps_an_epoch}; resume with the same data and --batch_size"
            )
        vars(self).update(state)
        if not (models_folder(args) / "best.pth").exists():  # the run goes on under another name
            self.best_name = ""


def resume(args: argparse.Namespace, model: Sam, optimizer, scaler) -> dict:
    """Restore a last.pth into model, optimizer and scaler. -> the state of its Progress."""
    saved = read_checkpoint(args.resume)
    if "progress" not in saved:
        raise CheckpointError(
            f"{args.resume}: holds weights but no state of a run; name a last.pth of this project, or give "
            "the weights to --sam_checkpoint"
        )
    flags = vars(parse_args([])) | saved["flags"]  # a flag that is newer than the file was at its default
    changed = [name for name in MUST_AGREE if getattr(args, name) != flags[name]]
    if changed:
        raise UsageError(
            f"{args.resume}: its run had "
            + ", ".join(f"--{name} {flags[name]}" for name in changed)
            + "; resume with the same, or start a new run from its weights with --sam_checkpoint"
        )
    print(load_checkpoint(model, args.resume))
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved["optimizer"])
    for group, scale in zip(optimizer.param_groups, scales):
        group["lr_scale"] = scale  # --lr and --adapter_lr of this run, not of the one that was saved
    if saved["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(saved["scaler"])
    return saved["progress"]


def flags_of_run(path: str) -> dict:
    """The flags that a run was started with, but for those that say where and on what it runs."""
    flags = read_checkpoint(path).get("flags", {})
    return {
        name: value
        for name, value in flags.items()
        if name not in ("resume", "overwrite", "work_dir", "run_name", "device")
    }


MUST_AGREE = (
    "model_type",
    "image_size",
    "encoder_adapter",
    "seed",
    "batch_size",
    "mask_num",
    "augment",
    "balance",
    "iter_point",
    "point_list",
    "keep_clicks",
    "box_shift",
    "multimask",
)


def save(args: argparse.Namespace, model: Sam, optimizer, scaler, progress: Progress) -> None:
    """After an epoch: last.pth, and best.pth where the epoch was the best so far."""
    if progress.improved:
        write_checkpoint(
            args,
            "best.pth",
            {
                "model": model.state_dict(),
                "flags": flags_of(args),
                "epoch": progress.best_epoch,
                progress.best_name.replace(" ", "_").lower(): progress.best,
            },
        )
    save_last(args, model, optimizer, scaler, progress)


def save_last(args: argparse.Namespace, model: Sam, optimizer, scaler, progress: Progress) -> None:
    write_checkpoint(
        args,
        "last.pth",
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "progress": progress.state(),
            "flags": flags_of(args),
        },
    )


def write_checkpoint(args: argparse.Namespace, name: str, content: dict) -> None:
    """Raises UsageError for weights that are not finite: the last step can break them without a loss that shows it."""
    broken = [name for name, tensor in content["model"].items() if not tensor.isfinite().all()]
    if broken:
        raise UsageError(
            f"{len(broken)} tensors of the model are not finite, such as {broken[0]}. Nothing was saved after the "
            f"last checkpoint in {models_folder(args)}; lower --lr or switch --use_amp off, and --resume"
        )
    with replacing(models_folder(args) / name) as temporary:
        torch.save(content, temporary)


def flags_of(args: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(args).items() if name != "modes"}


if __name__ == "__main__":
    main()
