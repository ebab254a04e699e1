"""How the model learns: which parameters move at which rate, along which schedule, in which precision.

learner = Learner(model, lr=1e-4, schedule=Schedule("cosine", epochs=15, steps_an_epoch=1000))
learner.set_rate(step)
with learner.autocast():
    loss = ...
learner.step(loss)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam_med2d.device import amp_dtype
from sam_med2d.training.groups import parameter_groups
from segment_anything import Sam


class Schedule(NamedTuple):
    """How the learning rate changes along a run; a function of the place in the run, so there is no state to save.

    kind: "multistep" halves it at each of `milestones` (epochs), "cosine" brings it to zero at the end, None keeps it.
    warmup: steps (batches) over which it rises linearly from zero.
    """

    kind: str | None = None
    epochs: int = 1
    steps_an_epoch: int = 1
    milestones: tuple[int, ...] = ()
    warmup: int = 0

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by in step `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.kind == "multistep":
            return warmup * 0.5 ** sum(step // self.steps_an_epoch >= milestone for milestone in self.milestones)
        if self.kind == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * self.steps_an_epoch)))
        return warmup


class Learner:
    """Adam over what is trained of a model, with its rates, its schedule, its precision and its gradient scaler."""

    def __init__(
        self,
        model: Sam,
        *,
        lr: float,
        adapter_lr: float | None = None,
        adapter_norm_lr: float | None = None,
        refine_lr: float | None = None,
        layer_decay: float = 1.0,
        schedule: Schedule = Schedule(),  # noqa: B008 (a NamedTuple cannot change)
        use_amp: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        """Parameters that require a gradient are trained.

        adapter_lr, adapter_norm_lr, refine_lr, layer_decay: see `groups.parameter_groups`.
        use_amp: bfloat16, or float16 with a gradient scaler where the device has no bfloat16.
        clip_norm: the largest norm that the gradient of a step may have; None: any.
        """
        self.device = model.device
        self.lr = lr
        self.schedule = schedule
        self.use_amp = use_amp
        self.clip_norm = clip_norm
        groups = parameter_groups(model, lr, adapter_lr, adapter_norm_lr, refine_lr, layer_decay)
        self.optimizer = torch.optim.Adam(groups, lr=lr, fused=self.device.type in ("cpu", "cuda"))
        half_floats = use_amp and amp_dtype(self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half_floats)

    def set_rate(self, step: int) -> float:
        """Make the learning rate that of a step. -> the rate of what has no rate of its own."""
        rate = self.lr * self.schedule.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def autocast(self) -> torch.autocast:
        """The context in which the model runs."""
        return torch.autocast(self.device.type, amp_dtype(self.device), enabled=self.use_amp)

    def step(self, loss: Tensor) -> None:
        """One step of the optimizer towards a smaller loss, a scalar."""
        self.scaler.scale(loss).backward()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # to None, not zero: Adam would go on moving the adapters in rounds that do not reach them
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments and the scaler go on where they were; rates are those of this run, not of the one that was saved."""
        scales = [group["lr_scale"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, scale in zip(self.optimizer.param_groups, scales):
            group["lr_scale"] = scale
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
