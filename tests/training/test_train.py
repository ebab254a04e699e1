"""train.py: what moves and what stays, resuming, what stops a run, what a run leaves behind."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import test as scoring
import train
from sam_med2d import drawing
from sam_med2d.data.batch import Batch
from sam_med2d.training import epoch, monitor, rounds
from sam_med2d.training.learner import Learner
from sam_med2d.training.rounds import train_batch
from sam_med2d.training.state import RunState
from segment_anything import Sam, flops, sam_model_registry
from segment_anything.checkpoint import save_weights
from segment_anything.sizes import SIZES
from segment_anything.weight_files import save_checkpoint
from tests.conftest import fails
from tests.training.helpers import (
    FLAGS,
    RUN,
    SIZE,
    SPOILED,
    WITH_MINI,
    Killed,
    board_of,
    differences,
    fit,
    kill_after,
    make_data,
    saved,
    truncated_image,
    write,
    write_index,
)

# ---------------------------------------------------------------- one batch


def objects(seed: int = 0) -> Batch:
    """Two images with four objects each."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(8, 1, SIZE, SIZE, dtype=torch.bool)
    for i in range(8):
        y, x = torch.randint(2, 30, (2,), generator=generator).tolist()
        masks[i, 0, y : y + 12 + i, x : x + 20] = True
    return Batch(
        images=torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        content=torch.tensor([[0, 0, SIZE, SIZE]] * 2),
        masks=masks,
        image_index=torch.tensor([0] * 4 + [1] * 4),
        image_names=["a", "b"],
        mask_names=[str(i) for i in range(8)],
        original_sizes=[(SIZE, SIZE)] * 2,
        original_masks=None,
        skipped=[],
    )


class Trainer:
    """A fresh vit_t with its optimizer, and the tensors it started from."""

    def __init__(self, *flags: str, adapter_gain: float | None = None) -> None:
        torch.manual_seed(0)
        self.args = train.parse_args(["--model_type", "vit_t", "--image_size", str(SIZE), "--iter_point", "3", *flags])
        self.model: Sam = train.sam_model_registry["vit_t"](image_size=SIZE, encoder_adapter=self.args.encoder_adapter)
        self.model.train()
        for adapter in self.model.image_encoder.adapters() if adapter_gain else []:
            torch.nn.init.constant_(adapter.norm.weight, adapter_gain)
        self.model.train_for("adapters")
        self.learner = Learner(self.model, lr=1e-4)
        self.start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.steps = 0

    def batch(self, batch: Batch | None = None) -> dict[str, torch.Tensor]:
        recipe = train.recipe_of(self.args)
        scalars = train_batch(self.model, [batch or objects(self.steps)], self.learner, recipe, self.steps)
        self.steps += 1
        return scalars

    def moved(self) -> set[str]:
        return {name for name, tensor in self.model.state_dict().items() if not torch.equal(tensor, self.start[name])}

    def meant(self) -> set[str]:
        """By name: adapters, prompt encoder and mask decoder, but for the fixed matrix of the positions."""
        return {
            name
            for name in self.start
            if (".Adapter." in name or not name.startswith("image_encoder.")) and not name.endswith("gaussian_matrix")
        }


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("multimask", [True, False])
def test_one_batch_moves_all_that_is_trained_and_nothing_else(adapter: bool, multimask: bool) -> None:
    """Adapters start at 0.1 here: a no-op one has gradients for its last norm alone, see the next test."""
    trainer = Trainer("--encoder_adapter", str(adapter), "--multimask", str(multimask), adapter_gain=0.1)
    trainer.batch()
    assert any(".Adapter." in name for name in trainer.meant()) == adapter
    assert trainer.moved() == trainer.meant()
    decoder = "mask_decoder."
    for table in ("mask_tokens.weight", "iou_prediction_head.layers.2.weight", "iou_prediction_head.layers.2.bias"):
        change = (trainer.model.state_dict()[decoder + table] - trainer.start[decoder + table]).abs()
        assert (change.reshape(4, -1).amax(dim=1) > 0).all(), table  # each of the four outputs


def test_no_op_adapters_move_whole_from_the_second_batch() -> None:
    trainer = Trainer()
    trainer.batch()
    inner = {name for name in trainer.meant() if ".Adapter." in name and ".Adapter.norm." not in name}
    assert len(inner) == 4 * SIZES["vit_t"].depth
    assert trainer.moved() == trainer.meant() - inner  # behind a zero weight nothing has a gradient
    trainer.batch()
    assert trainer.moved() == trainer.meant()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_objects_start_from_boxes_and_from_clicks(count: int) -> None:
    """Whatever the number of objects in a batch, over several batches both kinds of start come up."""
    batch = objects()
    batch.masks = batch.masks[:count]
    batch.image_index = batch.image_index[:count]
    batch.mask_names = batch.mask_names[:count]
    trainer = Trainer("--iter_point", "0")
    seen = set().union(*(trainer.batch(batch) for _ in range(8 if count == 1 else 1)))
    assert {"dice/start_box", "dice/start_click"} <= seen


@pytest.mark.parametrize("keep", [False, True])
def test_corrections_replace_the_clicks_before_them_or_keep_them(keep: bool, monkeypatch) -> None:
    """Two clicks a correction; the clicks that are kept stay where they were, with an absent one for a start from a
    box.
    """
    trainer = Trainer("--iter_point", "3", "--point_list", "2", "--keep_clicks", str(keep))
    asked = []
    original = trainer.model.predict
    monkeypatch.setattr(
        trainer.model, "predict", lambda e, prompts, **kind: (asked.append(prompts), original(e, prompts, **kind))[1]
    )
    trainer.batch()
    boxes, first, second, third, alone = asked
    assert boxes.boxes is not None and first.labels.tolist() == [[1]] * 4
    assert [p.points.shape[1] for p in (second, third)] == ([3, 5] if keep else [2, 2])
    assert alone.points is None and alone.masks is not None
    if keep:
        assert torch.equal(third.points[:, :3], second.points) and torch.equal(third.labels[:, :3], second.labels)
        started = second.labels[:, 0] == 1
        assert started.sum() == 4 and (second.labels[~started, 0] == -1).all()
        assert {*map(tuple, second.points[started, 0].tolist())} == {*map(tuple, first.points[:, 0].tolist())}
        x, y = second.points[:, 0].long().unbind(1)
        assert objects(0).masks[torch.arange(8), 0, y, x][started].all()  # each on its own object


# ---------------------------------------------------------------- resuming


MOMENTS = {  # what returns last before the end, how often; the flags; the epoch and step of the checkpoint then
    "after an epoch": (RunState, "save", 1, (), (1, 3)),
    "after an epoch, before validation": (train, "validate", 1, ("--save_every", 3), (0, 3)),
    "within the second epoch": (RunState, "save_last", 2, ("--save_every", 2), (1, 4)),
    "between best.pth and last.pth": (RunState, "write", 2, ("--save_every", 2), (0, 2)),
}


WHOLE_RUN = ["--epochs", 2, "--lr_scheduler", "cosine", "--warmup", 2, "--augment"]


@pytest.fixture(scope="module")
def whole(validated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The --work_dir of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    fit(validated, folder, *WHOLE_RUN)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_is_uninterrupted(moment: str, validated: Path, whole: Path, work: Path, monkeypatch) -> None:
    owner, function, calls, extra, place = MOMENTS[moment]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(owner, function, patch, calls)
        fit(validated, work, *WHOLE_RUN, *extra)
    progress = saved(work)["progress"]
    assert (progress["epoch"], progress["step"]) == place
    fit(validated, work, *WHOLE_RUN, *extra, "--resume")
    last = saved(whole)
    assert len(last["optimizer"]["state"]) > 100 and last["progress"]["step"] == 6
    assert differences(last, saved(work)) == []
    assert differences(saved(whole, "best.pth"), saved(work, "best.pth")) == []


def test_killed_while_writing_a_checkpoint(data: Path, work: Path, tmp_path: Path) -> None:
    """A process of its own, ended by SIGKILL while its second checkpoint is being written."""
    flags = ["vit_t" if word == "mini" else word for word in FLAGS]  # of which a checkpoint takes a while to write
    flags += ["--data_path", str(data), "--epochs", "1", "--lr_scheduler", "cosine", "--augment"]
    train.main([*flags, "--work_dir", str(work / "whole"), "--save_every", "0"])

    models = work / "parts" / "models" / RUN
    flags += ["--work_dir", str(work / "parts"), "--save_every", "1"]
    process = subprocess.Popen(
        [sys.executable, WITH_MINI, "train.py", *flags],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not ((models / "last.pth").exists() and any(models.glob(".last.pth.*"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert saved(work / "parts")["progress"]["step"] in (1, 2)  # of three

    train.main([*flags, "--resume"])
    assert differences(saved(work / "whole"), saved(work / "parts")) == []
    assert {path.name for path in models.iterdir()} == {"last.pth", "best.pth"}  # no half-written files are left


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--batch_size", 3], "--batch_size"),
        (["--image_size", 96], "--image_size 64"),
        (["--encoder_adapter", "False"], "--encoder_adapter True"),
        (["--seed", 5], "--seed 0"),
        (["--point_list", 1], "--point_list"),
        (["--keep_clicks"], "--keep_clicks False"),
        (["--augment"], "--augment False"),
        (["--box_shift", 1], "--box_shift 5"),
        (["--recipe", "paper"], "--recipe ours"),
        (["--model_type", "vit_t"], "mini"),
    ],
)
def test_resuming_another_run_is_refused(flags: list, said: str, data: Path, first_epoch: Path) -> None:
    before = contents(first_epoch)
    message = fails(lambda: fit(data, first_epoch, "--epochs", 2, "--resume", *flags))
    assert "last.pth" in message and said in message
    assert contents(first_epoch) == before


def contents(work: Path) -> dict[Path, bytes]:
    """What each file of a run's models holds."""
    return {path: path.read_bytes() for path in (work / "models" / RUN).iterdir()}


def test_resuming_what_is_no_run(data: Path, first_epoch: Path, work: Path) -> None:
    assert "last.pth" in fails(lambda: fit(data, work, "--resume"))
    best = first_epoch / "models" / RUN / "best.pth"
    message = fails(lambda: fit(data, work, "--resume", best))
    assert str(best) in message and "--sam_checkpoint" in message


def test_workers_change_nothing(data: Path, work: Path) -> None:
    for count in (0, 1, 2):
        fit(data, work / str(count), "--epochs", 1, "--augment", "--num_workers", count)
    for count in (1, 2):
        assert differences(saved(work / "0"), saved(work / str(count))) == [], count


def test_the_comparison_sees_one_bit(data: Path, first_epoch: Path, work: Path) -> None:
    """What the tests above rest on; and another seed is another run."""
    fit(data, work, "--epochs", 1, "--seed", 1)
    a, b = saved(first_epoch), saved(first_epoch)
    assert differences(a, b) == [] and differences(a, saved(work)) != []
    state = b["optimizer"]["state"][3]["exp_avg"]
    state.view(torch.int32).flatten()[0] ^= 1
    assert differences(a, b) == ["/optimizer/state/3/exp_avg"]


# ---------------------------------------------------------------- what stops a run


def nan_loss(patch: pytest.MonkeyPatch) -> None:
    original = rounds.objective
    patch.setattr(rounds, "objective", lambda *a: original(*a) | {"dice": torch.tensor(math.nan)})


def nan_weight(patch: pytest.MonkeyPatch) -> None:
    original = train_batch

    def poisoned(model, *rest):
        with torch.no_grad():
            model.mask_decoder.iou_token.weight[0, 0] = math.nan
        return original(model, *rest)

    patch.setattr(epoch, "train_batch", poisoned)


def nan_last_step(patch: pytest.MonkeyPatch) -> None:
    """The loss of every round is finite, but the last optimizer step of the epoch breaks the weights."""
    original = train_batch

    def poisoned(model, *rest):
        scalars = original(model, *rest)
        with torch.no_grad():
            model.mask_decoder.iou_token.weight[0, 0] = math.nan
        return scalars

    patch.setattr(epoch, "train_batch", poisoned)


@pytest.mark.parametrize(
    "poison, terms", [(nan_loss, "dice nan"), (nan_weight, "focal nan"), (nan_last_step, "not finite")]
)
def test_what_is_not_finite_stops_the_run_and_spares_the_checkpoint(
    poison: Callable, terms: str, data: Path, begun: Path, monkeypatch
) -> None:
    files = contents(begun)
    poison(monkeypatch)
    message = fails(lambda: fit(data, begun, "--epochs", 2, "--resume", "--save_every", 1, "--batch_size", 2))
    assert "not finite" in message and terms in message and str(begun) in message
    assert contents(begun) == files
    assert all(torch.isfinite(tensor).all() for tensor in saved(begun)["model"].values())


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_data_ends_in_one_line_naming_the_file(spoil: Callable, tmp_path: Path, work: Path) -> None:
    folder = make_data(tmp_path / "data")
    named = spoil(folder)
    assert named in fails(lambda: fit(folder, work, "--epochs", 1))
    assert not (work / "models").exists()


def test_an_error_in_a_worker_is_one_line_too(tmp_path: Path) -> None:
    """In a process of its own: with the exception still referenced, torch waits five seconds for each worker."""
    named = truncated_image(make_data(tmp_path / "data"))
    done = subprocess.run(
        [sys.executable, WITH_MINI, "train.py", *FLAGS, "--data_path", "data", "--num_workers", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.fullmatch(f"error: .*{named}: truncated.*", done.stderr.splitlines()[-1])


def test_missing_default_checkpoint_says_where_weights_come_from(
    data: Path, work: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(lambda: fit(data, work, "--sam_checkpoint", train.DEFAULT_CHECKPOINT))
    for said in (train.DEFAULT_CHECKPOINT, "sam_vit_b_01ec64.pth", "--sam_checkpoint none"):
        assert said in message


def test_weights_of_another_size(data: Path, work: Path, tmp_path: Path) -> None:
    path = tmp_path / "mini.safetensors"
    save_weights(sam_model_registry["mini"](image_size=SIZE).state_dict(), path)
    message = fails(lambda: fit(data, work, "--sam_checkpoint", path, "--model_type", "vit_t"))
    assert str(path) in message and "--model_type mini" in message
    assert "nowhere.pth" in fails(lambda: fit(data, work, "--sam_checkpoint", "nowhere.pth"))


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_ends_in_one_line(name: str, data: Path, work: Path) -> None:
    assert name in fails(lambda: fit(data, work, "--device", name))


@pytest.mark.parametrize(
    "flags",
    [
        ["--image_size", "100"],  # not a multiple of 32
        ["--iter_point", "-1"],
        ["--point_list", "3", "0"],
        ["--lr", "nan"],
        ["--lr", "0"],
        ["--batch_size", "0"],
        ["--prompt_modes", "7clicks"],
    ],
)
def test_impossible_settings_are_refused_by_name(flags: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        train.parse_args(flags)
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and (flags[0] in said or flags[1] in said)


# ---------------------------------------------------------------- empty masks


def test_empty_masks_are_skipped_and_counted(tmp_path: Path, work: Path, capsys) -> None:
    """One beside others, and one alone in its image, which leaves a batch of that image without any object."""
    folder = make_data(tmp_path / "data", images=2)
    for name, size in (("masks/1_0.png", (90, 70)), ("masks/alone.png", (50, 40))):
        write(folder / name, np.zeros(size, np.uint8))
    groups = json.loads((folder / "image2label_train.json").read_text()) | {"images/alone.png": ["masks/alone.png"]}
    write(folder / "images/alone.png", np.zeros((50, 40, 3), np.uint8))
    write_index(folder, groups, "train")
    fit(folder, work, "--epochs", 2, "--batch_size", 1, "--mask_num", 8)
    assert capsys.readouterr().out.count("skipped 2 empty mask(s), such as masks/1_0.png\n") == 2
    progress = saved(work)["progress"]
    assert progress["step"] == 6 and math.isfinite(progress["best"]) and progress["best"] > 0


def test_what_vanishes_is_named_with_the_size_that_would_show_it(tmp_path: Path, work: Path, capsys) -> None:
    folder = make_data(tmp_path / "data", ("train", "val"), images=2)
    mask = np.zeros((90, 70), np.uint8)
    mask[3, 11] = 255
    write(folder / "masks/1_0.png", mask)
    fit(folder, work, "--epochs", 1, "--mask_num", 8, "--prompt_modes", "bbox")
    said = capsys.readouterr().out
    for what in ("trained", "validated"):
        assert (
            f"not {what} on: 1 object(s) vanish in the frame of {SIZE} pixels, such as masks/1_0.png of 1 pixel(s); "
            "--image_size 96 would show all of them\n" in said
        )
    assert "empty" not in said


def test_nothing_but_empty_masks_is_an_error(tmp_path: Path, work: Path) -> None:
    folder = make_data(tmp_path / "data", images=2)
    for path in (folder / "masks").iterdir():
        write(path, np.zeros(cv2.imread(str(path)).shape[:2], np.uint8))
    assert "empty" in fails(lambda: fit(folder, work, "--epochs", 1))


# ---------------------------------------------------------------- flags


DEFAULTS = dict(  # those of the original
    work_dir="workdir",
    run_name="sam-med2d",
    epochs=15,
    batch_size=2,
    mask_num=5,
    data_path="data_demo",
    metrics=["iou", "dice"],
    lr=1e-4,
    resume=None,
    sam_checkpoint="pretrain_model/sam_vit_b.pth",
    iter_point=8,
    lr_scheduler=None,
    point_list=[1, 3, 5, 9],
    multimask=True,
    encoder_adapter=True,
    use_amp=False,
)


def test_flags_and_defaults_of_the_original() -> None:
    """But for the model's, which the file says (tests/training/test_model_flags.py)."""
    args = vars(train.parse_args([]))
    assert {name: args[name] for name in DEFAULTS} == DEFAULTS
    assert "device" in args
    spelled = {name: value for name, value in DEFAULTS.items() if value is not None} | {"device": "cpu"}
    command = [
        word
        for name, value in spelled.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]
    again = vars(train.parse_args(command))
    assert {name: again[name] for name in DEFAULTS} == DEFAULTS and again["device"] == "cpu"


@pytest.mark.parametrize(
    "name, default", [("use_amp", False), ("augment", False), ("multimask", True), ("encoder_adapter", True)]
)
def test_booleans(name: str, default: bool) -> None:
    assert getattr(train.parse_args([]), name) is default
    for words, value in (([], True), (["True"], True), (["False"], False), (["false"], False), (["0"], False)):
        assert getattr(train.parse_args([f"--{name}", *words]), name) is value
    with pytest.raises(SystemExit):
        train.parse_args([f"--{name}", "maybe"])


def test_lists_and_resume() -> None:
    args = train.parse_args(
        ["--point_list", "1", "3", "--milestones", "2", "--metrics", "dice", "--run_name", "r", "--resume"]
    )
    assert (args.point_list, args.milestones, args.metrics) == ([1, 3], [2], ["dice"])
    assert Path(args.resume) == Path("workdir/models/r/last.pth")
    assert train.parse_args(["--resume", "other.pth"]).resume == "other.pth"


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--point_list", "0"],
        ["--prompt_modes", "circle"],
        ["--lr_scheduler", "sometimes"],
        ["--model_type", "vit_x"],
    ],
)
def test_senseless_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(flags)


@pytest.mark.parametrize(
    "flags, factors",
    [
        ([], [1] * 6),
        (["--lr_scheduler", "multistep", "--milestones", "1", "2"], [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (["--lr_scheduler", "cosine"], [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]),
        (["--warmup", "4"], [0.25, 0.5, 0.75, 1, 1, 1]),
    ],
)
def test_learning_rate_over_three_epochs_of_two_batches(flags: list[str], factors: list[float]) -> None:
    args = train.parse_args(["--epochs", "3", *flags])
    learner = train.learner_of(args, Trainer().model, steps_an_epoch=2)
    assert [learner.set_rate(step) / args.lr for step in range(6)] == pytest.approx(factors)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([args.lr * factors[-1]] * 3)


# ---------------------------------------------------------------- what a run leaves behind


def points(board: EventAccumulator, tag: str) -> dict[int, float]:
    """{step: value}; a step that comes up twice is an error."""
    events = board.Scalars(tag)
    assert len({event.step for event in events}) == len(events), tag
    return {event.step: event.value for event in events}


def pictures(board: EventAccumulator, tag: str) -> dict[int, np.ndarray]:
    """{step: BGR}."""
    decode = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return {event.step: decode(event.encoded_image_string) for event in board.Images(tag)}


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour)).all(axis=-1).any())


def test_tensorboard_and_the_best_epoch(validated: Path, work: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(monitor, "PANEL_IMAGES", 4)  # as it is for people: of one the prediction may hide the truth
    fit(
        validated,
        work,
        "--count_flops",
        "--epochs",
        2,
        "--log_every",
        1,
        "--lr_scheduler",
        "cosine",
        "--prompt_modes",
        "bbox",
        "1pt",
        "--iter_point",
        3,
    )
    board = board_of(work)
    every_batch = {
        *(f"loss/{term}" for term in ("loss", "focal", "dice", "iou")),
        "dice/start_box",
        "dice/start_click",
        "dice/round_1",
        "dice/round_2",
        "dice/round_3",
        "dice/correction_clicks",
        "dice/correction_mask",
        "lr",
        "images_per_second",
        "grad/norm_start",
        "grad/norm_corrections",
    }
    every_epoch = {f"val_{metric}/{mode}" for metric in ("dice", "iou") for mode in ("bbox", "1pt")}
    of_the_epoch = {"epoch/seconds", "epoch/waiting_for_data", "epoch/memory_gb"}
    of_prompts = {"val_dice_after_click/1", "val_dice_of_swapped/1pt", "val_dice_of_swapped/bbox"}
    assert {tag for tag in board.Tags()["scalars"] if not tag.startswith("cost/")} - {
        "trained/adapters",
        "trained/prompt_encoder",
        "trained/mask_decoder",
    } == every_batch | every_epoch | of_the_epoch | of_prompts
    assert all([*points(board, tag)] == [1, 2, 3, 4, 5, 6] for tag in every_batch)
    assert all([*points(board, tag)] == [3, 6] for tag in every_epoch)

    loss, focal, dice, iou = (
        np.array([*points(board, f"loss/{term}").values()]) for term in ("loss", "focal", "dice", "iou")
    )
    assert loss == pytest.approx(20 * focal + dice + iou, rel=1e-4)
    assert [*points(board, "lr").values()] == pytest.approx(
        [1e-4 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    )
    assert all(0 <= value <= 1 for tag in every_epoch for value in points(board, tag).values())

    best = saved(work, "best.pth")
    means = {step: (points(board, "val_dice/bbox")[step] + points(board, "val_dice/1pt")[step]) / 2 for step in (3, 6)}
    assert best["validation_dice"] == pytest.approx(max(means.values()), rel=1e-5)
    assert best["epoch"] == max(means, key=means.get) / 3
    assert set(best) == {"model", "frame", "flags", "epoch", "validation_dice", "made_by"}

    told = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(told).session_start_info.hparams
    assert hparams["lr_scheduler"].string_value == "cosine" and hparams["epochs"].number_value == 2
    assert hparams["prompt_modes"].string_value == "bbox 1pt" and hparams["augment"].string_value == "False"
    experiment = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    compared = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert {"loss/loss", "val_dice/bbox", "val_dice/1pt"} <= {one.name.tag for one in compared}
    assert {one.name.tag for one in compared} <= set(board.Tags()["scalars"])

    model = sam_model_registry["mini"](image_size=SIZE)
    model.train_for("adapters")
    cost = flops.count(model)
    assert [points(board, f"cost/{name}")[0] for name in cost._fields] == pytest.approx([*cost])
    assert f"model: {cost}" in capsys.readouterr().out

    assert set(board.Tags()["images"]) == {"training_images/bbox", "training_images/3pts"}
    for tag in ("training_images/bbox", "training_images/3pts"):
        shown = pictures(board, tag)
        assert [*shown] == [3, 6]
        for picture in shown.values():
            assert picture.std() > 20 and has_colour(picture, drawing.TRUTH)
            assert has_colour(picture, drawing.CLICK[True]) == (tag == "training_images/3pts")


def test_tensorboard_goes_on_where_a_resumed_run_does(validated: Path, work: Path, monkeypatch) -> None:
    """No point is lost and none is there twice, though the first run logged a batch after its last checkpoint."""
    flags = ["--epochs", 3, "--log_every", 1]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(epoch, "train_batch", patch, 5)
        fit(validated, work, *flags)
    fit(validated, work, *flags, "--resume")
    board = board_of(work)
    assert [*points(board, "loss/loss")] == [*range(1, 10)]
    assert [*points(board, "val_dice/bbox")] == [3, 6, 9]
    assert [*pictures(board, "training_images/bbox")] == [3, 6, 9]


def test_validation_every_other_epoch_and_after_the_last(validated: Path, work: Path, monkeypatch) -> None:
    scores = iter([0.7, 0.5, 0.6])
    monkeypatch.setattr(train, "validate", lambda *_: {"bbox": next(scores)})
    fit(validated, work, "--epochs", 5, "--validate_every", 2)
    assert [*pictures(board_of(work), "training_images/bbox")] == [6, 12, 15]
    assert next(scores, None) is None and saved(work)["progress"]["epoch"] == 5
    best = saved(work, "best.pth")
    assert (best["epoch"], best["validation_dice"]) == (2, 0.7)  # and no epoch between was judged by its training loss


def test_weights_of_another_run_do_not_stand_for_one_that_was_not_validated(
    validated: Path, work: Path, monkeypatch, capsys
) -> None:
    best = work / "models" / RUN / "best.pth"
    fit(validated, work, "--epochs", 1)
    assert best.exists()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(RunState, "save", patch)
        fit(validated, work, "--epochs", 3, "--validate_every", 3, "--overwrite")
    assert saved(work)["progress"]["epoch"] == 1 and not best.exists()
    fit(validated, work, "--resume", "--epochs", 1)
    assert "no epoch was validated" in capsys.readouterr().out and not best.exists()


def test_pictures_of_other_kinds_are_shown_unless_told_otherwise() -> None:
    assert train.parse_args([]).replay == ["phantoms"] and train.parse_args(["--tune", "lora"]).replay == ["phantoms"]
    for words in ("--replay none", "--tune decoder", "--encoder_adapter False", "--recipe paper"):
        assert train.parse_args(words.split()).replay == [], words
    assert train.parse_args(["--tune", "decoder"]).embeddings == "float16"
    assert train.parse_args(["--recipe", "paper", "--replay", "phantoms"]).replay == ["phantoms"]


def test_a_run_that_is_older_than_replay_goes_on_without(begun: Path) -> None:
    path = begun / "models" / RUN / "last.pth"
    content = saved(begun)
    del content["flags"]["replay"]
    save_checkpoint(content, path)
    train.main(["--resume", str(path), "--work_dir", str(begun), "--run_name", RUN, "--epochs", "2", "--device", "cpu"])
    assert saved(begun)["progress"]["epoch"] == 2 and saved(begun)["flags"]["replay"] == []


def test_a_short_epoch_is_logged(first_epoch: Path) -> None:
    """Three batches an epoch, with the default of ten between two points."""
    assert [*points(board_of(first_epoch), "loss/loss")] == [3]


def test_best_is_the_lowest_training_loss_without_validation(data: Path, work: Path) -> None:
    fit(data, work, "--epochs", 2, "--log_every", 1, "--lr", 1e-3)
    board = board_of(work)
    assert not any(tag.startswith("val_") for tag in board.Tags()["scalars"])
    losses = np.array([*points(board, "loss/loss").values()]).reshape(2, 3).mean(axis=1)
    best = saved(work, "best.pth")
    assert best["training_loss"] == pytest.approx(losses.min(), rel=1e-5) and best["epoch"] == 1 + losses.argmin()


def test_best_is_kept_when_later_epochs_are_worse(validated: Path, work: Path, monkeypatch) -> None:
    scores = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(train, "validate", lambda *_: {"bbox": next(scores)})
    kept = []
    original = RunState.save
    monkeypatch.setattr(RunState, "save", lambda state: (original(state), kept.append(saved(work)["model"])))
    fit(validated, work, "--epochs", 3, "--lr", 1e-3)
    best = saved(work, "best.pth")
    assert (best["epoch"], best["validation_dice"]) == (2, 0.7)
    assert differences(best["model"], kept[1]) == [] and differences(best["model"], kept[2]) != []


def test_mixed_precision_trains_to_finite_full_precision_weights(data: Path, first_epoch: Path, work: Path) -> None:
    fit(data, work, "--epochs", 1, "--use_amp", True)
    mixed, full = saved(work), saved(first_epoch)
    assert {tensor.dtype for tensor in mixed["model"].values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in mixed["model"].values())
    assert mixed["progress"]["best"] != full["progress"]["best"]
    assert mixed["progress"]["best"] == pytest.approx(full["progress"]["best"], rel=0.05)


def test_training_learns(data: Path, work: Path) -> None:
    """The loss of a few objects falls, and the weights that a run leaves are those that the next one can start from."""
    fit(data, work, "--epochs", 4, "--lr", 1e-3, "--log_every", 1)
    losses = np.array([*points(board_of(work), "loss/loss").values()])
    assert losses[-3:].mean() < 0.9 * losses[:3].mean()
    fit(data, work / "next", "--epochs", 1, "--sam_checkpoint", work / "models" / RUN / "best.pth", "--log_every", 1)
    assert points(board_of(work / "next"), "loss/loss")[1] < 0.95 * losses[:3].mean()


# ---------------------------------------------------------------- one run after another


def test_a_run_does_not_overwrite_another_unasked(data: Path, begun: Path) -> None:
    before = saved(begun)
    assert "--resume" in (message := fails(lambda: fit(data, begun, "--epochs", 1))) and "--overwrite" in message
    assert not differences(before, saved(begun))
    fit(data, begun, "--epochs", 1, "--seed", 5, "--overwrite")
    assert differences(before, saved(begun))


@pytest.mark.parametrize(
    "first, then, scales",
    [
        ([], [], [1, 1, 1]),
        (["--adapter_lr", 5e-4], [], [5, 5, 1]),
        (["--adapter_lr", 5e-4, "--adapter_norm_lr", 1e-2], [], [100, 5, 1]),
        (["--adapter_norm_lr", 1e-2], ["--adapter_lr", 3e-4], [100, 3, 1]),
        ([], ["--adapter_norm_lr", 4e-4], [4, 1, 1]),
    ],
)
def test_rates_of_adapters_count_also_in_a_resumed_run(
    first: list, then: list, scales: list[int], data: Path, work: Path
) -> None:
    """Groups: last norms of adapters, the rest of adapters, the decoder side."""
    fit(data, work, "--epochs", 1, "--lr", 1e-4, *first)
    fit(data, work, "--epochs", 2, "--resume", *then)
    groups = saved(work)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-4 * scale for scale in scales])
    adapters = sum(name.endswith("Adapter.norm.weight") for name in saved(work)["model"])
    assert [len(group["params"]) for group in groups[:2]] == [2 * adapters, 4 * adapters]


def test_a_resumed_run_keeps_its_flags(data: Path, work: Path) -> None:
    fit(data, work, "--epochs", 1, "--lr", 3e-3, "--lr_scheduler", "multistep", "--milestones", 1)
    train.main(["--resume", "--work_dir", str(work), "--run_name", RUN, "--epochs", "2"])
    flags = saved(work)["flags"]
    assert (flags["lr"], flags["lr_scheduler"], flags["milestones"], flags["epochs"]) == (3e-3, "multistep", [1], 2)
    assert saved(work)["progress"]["epoch"] == 2 and saved(work)["optimizer"]["param_groups"][0]["lr"] == 1.5e-3


def test_an_epoch_outlives_a_broken_validation_image(data: Path, tmp_path: Path, work: Path) -> None:
    folder = make_data(tmp_path / "data", ("train", "val"), images=2)
    groups = json.loads((folder / "image2label_val.json").read_text())
    name, masks = groups.popitem()
    image = folder / "images/of_val.png"
    whole = (folder / name).read_bytes()
    write_index(folder, {"images/of_val.png": masks}, "val")
    image.write_bytes(whole[:-20])
    assert image.name in fails(lambda: fit(folder, work, "--epochs", 1, "--sam_checkpoint", "none"))
    image.write_bytes(whole)
    step = saved(work)["progress"]["step"]
    assert step and saved(work)["progress"]["epoch"] == 0
    fit(folder, work, "--epochs", 1, "--resume")
    assert saved(work)["progress"] | {"epoch": 1, "step": step} == saved(work)["progress"]


def test_a_refinement_network_is_trained_kept_and_used(tmp_path: Path, work: Path, capsys) -> None:
    validated = make_data(tmp_path / "data", ("train", "val", "test"), images=3)
    flags = ("--epochs", 1, "--refine", "--refine_lr", 1e-2)
    fit(validated, work, *flags)
    assert "refinement network " in capsys.readouterr().out
    for name in ("last.pth", "best.pth"):
        content = saved(work, name)
        assert content["flags"]["refine"] is True
        assert content["model"]["refinement.write.weight"].abs().sum() > 0
    assert "loss/refined" in board_of(work).Tags()["scalars"]

    fit(validated, work, "--epochs", 2, "--resume")  # a flag of the run, and its optimizer's groups
    assert saved(work)["progress"]["epoch"] == 2

    best, told = str(work / "models" / RUN / "best.pth"), {}
    for said in ([], ["--refine", "False"]):
        scoring.main(
            [
                *("--sam_checkpoint", best, "--data_path", str(validated), "--work_dir", str(work / "tests")),
                *("--run_name", f"run{len(said)}", "--num_workers", "0", "--device", "cpu", "--report", "False", *said),
            ]
        )
        told[len(said)] = (capsys.readouterr(), (work / "tests" / f"run{len(said)}" / "rows.csv").read_bytes())
    assert "left out: none" in told[0][0].out
    assert "has a refinement network, which is left out" in told[2][0].err
    assert "left out: the refinement network" in told[2][0].out
    assert told[0][1] != told[2][1]
