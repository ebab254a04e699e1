"""What all protocols of the server answer with: one model, and the rules that its answers follow."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sam_med2d.inference.shared import SharedModel
from sam_med2d.inference.windows import Shown
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.volumes.propagation import Rule, Slice, Slices, propagate
from segment_anything import ObjectPrompt, PromptError, SamPredictor
from segment_anything.zoom import AUTO

MODEL = "sam-med2d"  # as tools that ask for names of models are told


@dataclass
class Service:
    """model: shared by all clients; shown: how a scanner's values become those that the model sees.

    zoom: as of `SamPredictor`; rule: of objects that go on from slice to slice; propagate: whether they do; seconds:
    that an answer may take before the slices that are left wait for the next; axis: of arrays, that slices are cut
    across where nothing else says it, None: the coarsest one, or the first; most_voxels: of a volume.
    """

    model: SharedModel
    shown: Shown = field(default_factory=Shown)
    zoom: str = AUTO
    rule: Rule = field(default_factory=Rule)
    propagate: bool = True
    seconds: float = 30.0
    axis: int | None = None
    most_voxels: int = MOST_VOXELS

    def found(
        self, sliced: Slices, seeds: Mapping[int, ObjectPrompt], bounds: tuple[int, int] | None = None
    ) -> dict[int, Slice]:
        """An object on the slices that have prompts, and on those that it goes on to. bounds: as of `propagate`.

        Raises PromptError.
        """
        if not self.propagate:
            return {number: sliced.predict(number, prompt) for number, prompt in sorted(seeds.items())}
        first, end = bounds or (0, len(sliced))
        outside = [number for number in seeds if not first <= number < end]
        if outside:
            raise PromptError(f"slice {outside[0]} has prompts, and lies outside the box around the object in 3D")
        until = time.monotonic() + self.seconds
        return propagate(sliced, dict(seeds), self.rule, bounds, late=lambda: time.monotonic() > until).slices

    def predictor(self) -> SamPredictor:
        """A new one, for one client: it is not for several threads, but the model behind it is."""
        return SamPredictor(self.model, zoom=self.zoom)
