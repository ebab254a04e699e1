"""What a predictor does for objects that are looked at closer: in which crop, when in another one, and the way back.

A box is looked at in a crop around it. Clicks alone do not say how large the object is: they are asked of the whole
picture and of crops around the first of them, each with half the sides of the one before, and the answer is taken that
fits into its crop and is the surest (see `_Look.worth`); where it is small in its crop, it is looked at once more in a
crop around it. A further click, which comes with the mask of before, is asked
in the crop that this was seen in, and elsewhere only where the answer contradicts a click. Where the answer reaches the
edge of its crop, the crop grows until it does not, or is the whole picture: nothing is cut off.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .modeling import ABSENT, FOREGROUND, Seen
from .modeling.sam import SHAKE
from .zoom import MOST_LOOKS, Crop, Zoom, around_click, box_of, crop_around, grown, with_points

if TYPE_CHECKING:
    from .predictor import Asked, Masks, ObjectPrompt, SamPredictor

OUTSIDE = -8.0  # the logit of pixels beyond the crop: probability 0.0003
LOOSE = 2.0  # times as long as it needs to be in both directions: such a crop is left for a closer one
KEPT_BYTES = 2**26  # of the features of crops: 256 of them at 256 px; as many of answers


class Answered(NamedTuple):
    """What was answered in a crop of a picture. low_res: (S/4, S/4) logits of the crop; size: of the picture."""

    crop: Crop
    low_res: np.ndarray
    size: tuple[int, int]


class _Look(NamedTuple):
    """One object in one crop. found: a row of full-size logits of the crop; wider: where it reaches beyond, a crop that
    has more of it; agreement: the share of the clicks that the answer agrees with."""

    crop: Crop
    found: "Masks"
    wider: Crop | None
    agreement: float

    @property
    def fits(self) -> bool:
        return self.agreement == 1 and self.wider is None

    @property
    def worth(self) -> tuple[float, bool, float]:
        """To choose by: agreement first, then whether it fits into the crop, then predicted IoU times stability."""
        best = self.found.iou[0].argmax()
        logits = self.found.masks[0, best]
        stable = (logits > SHAKE).sum() / max(1, (logits > -SHAKE).sum())
        return self.agreement, self.wider is None, float(max(self.found.iou[0, best], 0) * stable)


class Kept:
    """What a predictor keeps: features of crops of its picture, and answers that it may be handed back as masks.

    It knows nothing of the predictor: a circle would leave pictures in memory until Python looks for circles.
    """

    def __init__(self) -> None:
        self.features: OrderedDict[Crop, Seen] = OrderedDict()
        self.answers: OrderedDict[bytes, Answered] = OrderedDict()

    def keep(self, crop: Crop, seen: Seen) -> None:
        """The features of a crop, as the newest, within KEPT_BYTES."""
        self.features[crop] = seen
        _drop_oldest(self.features, self.feature_bytes)

    def keep_answer(self, digest: bytes, answer: Answered) -> None:
        """An answer, by the digest of the mask that it was handed out as, within KEPT_BYTES."""
        self.answers[digest] = answer
        _drop_oldest(self.answers, self.answer_bytes)

    @property
    def feature_bytes(self) -> int:
        return sum(one.nbytes for one in self.features.values())

    @property
    def answer_bytes(self) -> int:
        return sum(one.low_res.nbytes for one in self.answers.values())

    def forget(self) -> None:
        """The picture and its crops. Answers are kept: the mask of one slice goes on to the next."""
        self.features.clear()


class Closer:
    """One prediction of a predictor, for objects that may be looked at closer."""

    def __init__(self, predictor: "SamPredictor", zoom: Zoom, kept: Kept) -> None:
        self.predictor, self.zoom = predictor, zoom
        self._kept = kept

    @property
    def size(self) -> tuple[int, int]:
        assert self.predictor.original_size is not None, "predict checks that an image is set"
        return self.predictor.original_size

    def predict(
        self, objects: Sequence["ObjectPrompt"], return_logits: bool, asked: "Asked"
    ) -> "tuple[Masks, list[Crop]]":
        """N objects, whose prompts were checked -> as `SamPredictor.predict_objects`, and what was looked at."""
        if any(all(part is None for part in prompt) for prompt in objects):
            return self.predictor.predict_whole(objects, return_logits, asked), []  # which refuses them
        crops = [self._start(prompt) for prompt in objects]
        at_once = [i for i, crop in enumerate(crops) if crop == self._whole and not self._may_be_small(objects[i])]
        if len(at_once) == len(objects):
            return asked.chosen(self.predictor.predict_whole(objects, return_logits, asked)), crops
        rows: dict[int, Masks] = {}
        if at_once:
            found = self.predictor.predict_whole([objects[i] for i in at_once], return_logits, asked)
            rows = {i: type(found)(*(part[row : row + 1] for part in found)) for row, i in enumerate(at_once)}
        for i, prompt in enumerate(objects):
            if i not in rows:
                look = self._look(prompt, crops[i], asked)
                chosen = look._replace(found=asked.inside(look.crop).chosen(look.found))
                rows[i], crops[i] = self._put_back(chosen, return_logits), look.crop
        return type(rows[0])(*(np.concatenate(values) for values in zip(*(rows[i] for i in range(len(rows)))))), crops

    # ---------------------------------------------------------------- where to look

    @property
    def _whole(self) -> Crop:
        return Crop.whole(self.size)

    def _may_be_small(self, prompt: "ObjectPrompt") -> bool:
        """Whether clicks are to be asked at several scales, if need be."""
        readable = prompt.mask is None or self.predictor.can_read(prompt.mask)
        return prompt.box is None and readable and len(clicks_on(prompt)) > 0

    def _start(self, prompt: "ObjectPrompt") -> Crop:
        """The crop that a prompt asks for; the whole picture where it does not say, or the object is not small."""
        if prompt.mask is not None and not self.predictor.can_read(prompt.mask):
            return self._whole  # which says what is wrong with it
        clicks = clicks_on(prompt)
        seen = None if prompt.mask is None else self._recall(prompt.mask)
        if prompt.box is not None:
            box = with_points(prompt.box, clicks)
            if not self.zoom.wants(box, self.size):
                return self._whole
            return seen.crop if seen and seen.crop.holds(box) else crop_around(box, self.zoom.box_context, self.size)
        if prompt.mask is None:
            return self._whole
        around = box_of(self._of_picture(seen, prompt.mask) > 0, clicks)
        if around is None or not self.zoom.wants(around, self.size):
            return self._whole
        wanted = crop_around(around, self.zoom.context, self.size)
        return seen.crop if seen and seen.crop.holds(around) and not _is_loose(seen.crop, wanted) else wanted

    def _look(self, prompt: "ObjectPrompt", crop: Crop, asked: "Asked") -> _Look:
        """One object in this crop, or in another one that suits it better."""
        look = None
        if prompt.box is not None or prompt.mask is not None:
            look = self._look_at(prompt, crop, asked)
        if look is None or (self._may_be_small(prompt) and not look.fits):
            looks = [] if look is None else [look]
            looks += [self._look_at(prompt, at, asked) for at in self._scales(prompt) if not look or at != crop]
            look = max(looks, key=lambda one: one.worth)  # the first, which is the widest, of those that are alike
            if closer := self._closer_than(look, prompt):
                near = self._until_it_fits(self._look_at(prompt, closer, asked), prompt, asked)
                is_nearer = near.crop.width * near.crop.height < look.crop.width * look.crop.height
                look = near if is_nearer and near.worth[:2] >= look.worth[:2] else look
        return self._until_it_fits(look, prompt, asked)

    def _until_it_fits(self, look: _Look, prompt: "ObjectPrompt", asked: "Asked") -> _Look:
        """Further out, as long as the answer reaches beyond its crop."""
        for _ in range(MOST_LOOKS):
            if look.wider is None:
                return look
            look = self._look_at(prompt, look.wider, asked)
        return self._look_at(prompt, self._whole, asked)

    def _scales(self, prompt: "ObjectPrompt") -> Iterator[Crop]:
        """The whole picture, and crops around the first click on the object that hold the others too."""
        clicks = clicks_on(prompt)
        yield self._whole
        for crop in around_click(clicks[0], self.size):
            if crop.holds(with_points(np.concatenate([clicks[0], clicks[0] + 1]), clicks)):
                yield crop

    def _closer_than(self, look: _Look, prompt: "ObjectPrompt") -> Crop | None:
        """A crop around an answer to clicks that is small in its own crop."""
        mask = look.found.masks[0, look.found.iou[0].argmax()] > self.predictor.mask_threshold
        corner = np.array([look.crop.left, look.crop.top])
        box = box_of(mask, clicks_on(prompt) - corner)
        if box is None:
            return None
        wanted = crop_around(box + np.tile(corner, 2), self.zoom.context, self.size)
        return wanted if _is_loose(look.crop, wanted) else None

    def _look_at(self, prompt: "ObjectPrompt", crop: Crop, asked: "Asked") -> _Look:
        if crop == self._whole:
            inside, found = prompt, self.predictor.predict_whole([prompt], True, asked)
        else:
            inside = self._inside(prompt, crop)
            found = self._at(crop).predict_whole([inside], True, asked.inside(crop))
        mask = found.masks[0, found.iou[0].argmax()] > self.predictor.mask_threshold
        return _Look(crop, found, grown(crop, mask, self.size), _agreement(mask, inside))

    # ---------------------------------------------------------------- into a crop, and back

    def _at(self, crop: Crop) -> "SamPredictor":
        """A predictor whose picture is the crop, encoded where it was not yet."""
        assert self.predictor.picture is not None, "predict checks that there is one"
        if crop not in self._kept.features:
            self._kept.keep(crop, self.predictor.encode(self.predictor.picture[crop.pixels]))
        self._kept.features.move_to_end(crop)
        return self.predictor.of_crop(self._kept.features[crop], crop)

    def _inside(self, prompt: "ObjectPrompt", crop: Crop) -> "ObjectPrompt":
        """A prompt in pixels of the crop. Clicks off the object that lie beyond it are left out: all there is off."""
        points, labels, box = prompt.points, prompt.labels, prompt.box
        if points is not None and labels is not None:
            points = points - np.array([crop.left, crop.top], np.float32)
            there = ((points >= 0) & (points <= (crop.width, crop.height))).all(axis=1)
            points, labels = (points[there], labels[there]) if there.any() else (None, None)
        if box is not None:
            x0, y0, x1, y1 = crop.box
            box = np.clip(box, (x0, y0, x0, y0), (x1, y1, x1, y1)) - (x0, y0, x0, y0)
            box = box.astype(np.float32)
        return prompt._replace(points=points, labels=labels, box=box, mask=self._mask_inside(prompt.mask, crop))

    def _mask_inside(self, mask: np.ndarray | None, crop: Crop) -> np.ndarray | None:
        if mask is None:
            return None
        seen = self._recall(mask)
        if seen and seen.crop == crop:
            return seen.low_res
        return self._at(crop).shrunk(np.ascontiguousarray(self._of_picture(seen, mask)[crop.pixels]))

    def _of_picture(self, seen: Answered | None, mask: np.ndarray) -> np.ndarray:
        """A mask as it was handed in, or what it stands for -> (H, W) float32 logits of the picture."""
        at = self.predictor if seen is None else self._at(seen.crop)
        logits = torch.from_numpy(mask if seen is None else seen.low_res)[None, None].to(self.predictor.device)
        inside = at.upscale(logits)[0, 0].cpu().numpy()
        return inside if seen is None else self._placed(inside, seen.crop)

    def _placed(self, inside: np.ndarray, crop: Crop) -> np.ndarray:
        """Values of a crop (..., h, w) in the picture (..., H, W)."""
        values = np.full((*inside.shape[:-2], *self.size), OUTSIDE, np.float32)
        rows, columns = crop.pixels
        values[..., rows, columns] = inside
        return values

    def _put_back(self, look: _Look, return_logits: bool) -> "Masks":
        """Answers of a crop as answers of the picture."""
        found, crop = look.found, look.crop
        if crop != self._whole:
            logits = self._placed(found.masks, crop)
            low_res = np.stack([self.predictor.shrunk(one) for one in logits[0]])[None]
            for whole, own in zip(low_res[0], found.low_res[0]):
                self._kept.keep_answer(_digest(whole), Answered(crop, own, self.size))
            found = found._replace(masks=logits, low_res=low_res)
        return found if return_logits else found._replace(masks=found.masks > self.predictor.mask_threshold)

    def _recall(self, mask: np.ndarray) -> Answered | None:
        """What a mask that is handed in stands for, where it was answered by this predictor for such a picture."""
        seen = self._kept.answers.get(_digest(mask))
        return seen if seen and seen.size == self.size else None


def clicks_on(prompt: "ObjectPrompt") -> np.ndarray:
    """The clicks on the object: (P, 2), P may be 0."""
    if prompt.points is None or prompt.labels is None:
        return np.zeros((0, 2), np.float32)
    return prompt.points[prompt.labels == FOREGROUND]


def _agreement(mask: np.ndarray, prompt: "ObjectPrompt") -> float:
    """The share of clicks that a mask agrees with; 1 where there are none. mask: (H, W) bool, of the prompt's place."""
    if prompt.points is None or prompt.labels is None or not (given := prompt.labels != ABSENT).any():
        return 1.0
    x, y = (np.clip(prompt.points[given, axis].astype(int), 0, mask.shape[1 - axis] - 1) for axis in (0, 1))
    return float((mask[y, x] == (prompt.labels[given] == FOREGROUND)).mean())


def _is_loose(crop: Crop, wanted: Crop) -> bool:
    return crop.width >= LOOSE * wanted.width and crop.height >= LOOSE * wanted.height


def _digest(mask: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(mask, np.float32).tobytes(), digest_size=16).digest()


def _drop_oldest(kept: OrderedDict, held: int) -> None:
    """One a call: as many come in. held: bytes."""
    if held > KEPT_BYTES and len(kept) > 1:
        kept.popitem(last=False)
