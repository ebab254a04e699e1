"""A moving average of the weights, which often judges better than the weights of any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from segment_anything import Sam


class Average:
    """An exponential moving average of what is trained of a model (Polyak and Juditsky 1992; Tarvainen and Valpola
    2017, section 3).
    """

    def __init__(self, model: Sam, decay: float) -> None:
        """decay: how much of the average stays in a step, below 1; in the first steps less does, (1 + n) / (10 + n)
        after n of them, so that the weights that a run starts from are forgotten.
        """
        self.decay = decay
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After a step of the run, counted from 0."""
        kept = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([*self.tensors.values()], [*self.trained.values()], 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the block the model has the averages for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

    def weights(self, model: Sam) -> dict[str, Tensor]:
        """The model's state dict with the averages."""
        return {**model.state_dict(), **self.tensors}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """tensors: of the names and shapes of `self.tensors`. Raises KeyError, RuntimeError."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])
