"""How the model learns: which parameters move at which rate, along which schedule, in which precision.

learner = Learner(model, lr=1e-4, schedule=Schedule("cosine", epochs=15, steps_an_epoch=1000))
learner.set_rate(step)
with learner.autocast():
    loss = ...
learner.backward(loss)
learner.step()
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam_med2d.device import amp_dtype
from sam_med2d.distributed import Processes
from sam_med2d.training.groups import parameter_groups
from segment_anything import Sam

ALONE = Processes()


class Schedule(NamedTuple):
    """How the learning rate changes along a run; a function of the place in the run, so there is no state to save.

    kind: "multistep" halves it at each of `milestones` (epochs), "cosine" brings it to zero at the end, "constant" and
    None keep it.
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
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        use_amp: bool = False,
        amp_type: torch.dtype | None = None,
        clip_norm: float | None = None,
        compiled: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """Parameters that require a gradient are trained.

        adapter_lr, adapter_norm_lr, refine_lr, layer_decay: see `groups.parameter_groups`.
        optimizer: "adam", "adamw". weight_decay: of matrices and kernels, see `with_decay`.
        use_amp: mixed precision. amp_type: bfloat16, or float16 with a gradient scaler; None: bfloat16 where the
        device has it. clip_norm: the largest norm that the gradient of a step may have; None: any.
        compiled: the encoder runs compiled by torch.compile. processes: whose gradients are added up.
        """
        self.device = model.device
        self.lr = lr
        self.schedule = schedule
        self.use_amp = use_amp
        self.amp_type = amp_type or amp_dtype(self.device)
        self.clip_norm = clip_norm
        self.processes = processes
        self.encode = torch.compile(model.encode) if compiled else model.encode
        groups = parameter_groups(model, lr, adapter_lr, adapter_norm_lr, refine_lr, layer_decay)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        self.optimizer = kind(with_decay(groups, weight_decay), lr=lr, fused=self.device.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=use_amp and self.amp_type == torch.float16)
        self.scaler.scale(torch.zeros((), device=self.device))  # a process without objects scales no loss
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_rate(self, step: int) -> float:
        """Make the learning rate that of a step. -> the rate of what has no rate of its own."""
        rate = self.lr * self.schedule.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def autocast(self) -> torch.autocast:
        """The context in which the model runs."""
        return torch.autocast(self.device.type, self.amp_type, enabled=self.use_amp)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, a scalar, to those that the next step takes."""
        self.scaler.scale(loss).backward()

    def step(self) -> Tensor:
        """One step of the optimizer with the gradients of all processes. -> their norm, before they are clipped."""
        self.processes.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # to None, not zero: Adam would go on moving the adapters in rounds that do not reach them
        self.optimizer.zero_grad(set_to_none=True)
        return norm.float()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moments and the scaler go on where they were; rates are those of this run, not of the one that was saved."""
        own = [{name: group[name] for name in ("lr_scale", "weight_decay")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, own):
            group.update(settings)
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def with_decay(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """The same groups with "weight_decay". Where there is one, biases and norms, which it would only pull off their
    place, are groups of their own without.
    """
    split = []
    for group in groups:
        decayed = [p for p in group["params"] if weight_decay and p.ndim > 1]
        others = [p for p in group["params"] if not weight_decay or p.ndim < 2]
        for parameters, decay in ((decayed, weight_decay), (others, 0.0)):
            if parameters:
                split.append({**group, "params": parameters, "weight_decay": decay})
    return split
