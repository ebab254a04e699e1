"""What all protocols of the server answer with: one model, and the rules that its answers follow."""

from dataclasses import dataclass, field

from sam_med2d.inference.shared import SharedModel
from sam_med2d.limits import MOST_VOXELS
from sam_med2d.volumes.intensity import Intensity
from sam_med2d.volumes.propagation import Rule
from segment_anything import SamPredictor
from segment_anything.zoom import AUTO


@dataclass
class Service:
    """model: shared by all clients; intensity: from a scanner's values to those that the model sees.

    zoom: as of `SamPredictor`; rule: of objects that go on from slice to slice; propagate: whether they do; seconds:
    that an answer may take before the slices that are left wait for the next; axis: of arrays, that slices are cut
    across where nothing else says it, None: the coarsest one, or the first; most_voxels: of a volume.
    """

    model: SharedModel
    intensity: Intensity = field(default_factory=Intensity)
    zoom: str = AUTO
    rule: Rule = field(default_factory=Rule)
    propagate: bool = True
    seconds: float = 30.0
    axis: int | None = None
    most_voxels: int = MOST_VOXELS

    def predictor(self) -> SamPredictor:
        """A new one, for one client: it is not for several threads, but the model behind it is."""
        return SamPredictor(self.model, zoom=self.zoom)
