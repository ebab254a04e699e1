"""One epoch of training: batches in, steps of the learner, and what is read, said and saved on the way."""

import sys

from tqdm import tqdm

from sam_med2d.data.batch import Batch
from sam_med2d.data.vanishing import Vanished, told
from sam_med2d.errors import DataError
from sam_med2d.stopping import Request
from sam_med2d.training.boards import Boards, Waits
from sam_med2d.training.monitor import Late, Window, check_finite
from sam_med2d.training.rounds import Recipe, Share, train_batch
from sam_med2d.training.state import RunState


def train_epoch(state: RunState, loader, recipe: Recipe, board: Boards, stop: Request) -> bool:
    """The rest of the epoch that the loader was set to, or its steps until someone asks one of the processes to stop.

    -> whether someone did. All processes stop after the same step. Raises DataError where more images cannot be read
    than may be, or nothing could be learned; UsageError where a loss is not finite.
    """
    args, progress, processes = state.args, state.progress, state.processes
    state.model.train()
    empty: set[str] = set()
    vanished: dict[str, Vanished] = {}
    waits = Waits(loader)
    bar = tqdm(
        waits,
        desc=f"epoch {progress.epoch + 1}/{args.epochs}",
        unit="batch",
        dynamic_ncols=True,
        initial=progress.steps_an_epoch - len(loader),
        total=progress.steps_an_epoch,
        disable=not processes.leads,
    )
    watch = Watch(state, board, bar)
    for batch in bar:
        empty.update(set(batch.skipped) - batch.vanished.keys())
        vanished |= batch.vanished
        of_each = processes.numbers([len(batch.mask_names), len(batch.images), len(batch.bad), bool(stop)])
        rows, images, bad, stops = (list(each) for each in zip(*of_each))
        if sum(bad):
            leave_out(state, batch)
        if sum(rows):
            share = Share(sum(rows[: processes.rank]), sum(rows), all(rows))
            rate = state.learner.set_rate(progress.step)
            parts = batch.parts(args.batch_size)
            scalars = train_batch(state.model, parts, state.learner, recipe, progress.step, share)
            if state.average:
                state.average.update(progress.step)
            watch.read()
            watch.step(Late(scalars), progress.step, sum(images), rate)
        progress.step += 1
        if any(stops) or (stop and processes.count == 1):
            watch.close()
            return True
        if state.save_is_due():
            watch.read()
            state.save_last()
    watch.close()
    for name, value in waits.scalars(state.model.device).items():
        board.add_scalar(name, value, progress.step)
    left_out = processes.gather((empty, vanished))
    empty = {name for names, _ in left_out for name in names}
    vanished = {name: one for _, them in left_out for name, one in them.items()}
    if empty and processes.leads:
        print(f"skipped {len(empty)} empty mask(s), such as {min(empty)}")
    if vanished and processes.leads:
        print(f"not trained on: {told(vanished, args.image_size)}")
    if not progress.loss_count:
        what = "vanishes in the frame" if vanished else "is empty; correct the index"
        raise DataError(f"{args.data_path}: every mask of its train split {what}")
    return False


def leave_out(state: RunState, batch: Batch) -> None:
    """Count and name the images that one of the processes could not read. Raises DataError where there are too many."""
    new = sorted({line for lines in state.processes.gather(batch.bad) for line in lines} - state.bad)
    state.bad.update(new)
    for line in new if state.processes.leads else ():
        print(f"left out: {line}", file=sys.stderr)
    if len(state.bad) > state.args.max_bad_samples:
        raise DataError(
            f"{state.args.data_path}: {len(state.bad)} images cannot be read, more than --max_bad_samples "
            f"{state.args.max_bad_samples}; the last one: {new[-1]}"
        )


class Watch:
    """What a person sees of an epoch. The values of a step are read when the next one has been begun, so that nobody
    waits for the device.
    """

    def __init__(self, state: RunState, board: Boards, bar: tqdm) -> None:
        self.state, self.board, self.bar = state, board, bar
        self.window = Window()
        self.pending: tuple[Late, int, int, float] | None = None

    def step(self, values: Late, step: int, images: int, rate: float) -> None:
        """A step that was begun. images: of all processes."""
        self.pending = values, step, images, rate

    def read(self) -> None:
        """The values of the step that was begun last, if they were not read. Raises UsageError: not finite."""
        if self.pending is None:
            return
        (values, step, images, rate), self.pending = self.pending, None
        self.window.add(values.read(), images)
        check_finite(self.window.latest, step, self.state.folder)
        self.state.progress.add_loss(self.window.latest["loss/loss"])
        self.bar.set_postfix(
            loss=f"{self.window.mean('loss/loss'):.3f}",
            dice=f"{self.window.latest_dice():.3f}",
            images_per_s=f"{self.window.images_per_second():.1f}",
        )
        self.rate = rate
        if (step + 1) % self.state.args.log_every == 0:
            self._write(step + 1)

    def close(self) -> None:
        """All that is left."""
        self.read()
        if self.window.count:
            self._write(self.state.progress.step)

    def _write(self, step: int) -> None:
        self.window.write(self.board, step, self.rate)
        self.window = Window()
