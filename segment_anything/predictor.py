"""One image at a time, numpy in, numpy out.

    predictor = SamPredictor(model)
    predictor.set_image(image)                                              # encoded once
    masks, iou, low_res = predictor.predict(box=[30, 40, 120, 150])         # three guesses
    masks, iou, low_res = predictor.predict([[60, 80]], [1], mask_input=low_res[iou.argmax()])
    masks, iou, low_res = predictor.predict(box=[[30, 40, 120, 150], [5, 5, 50, 60]])     # one row an object

Conventions:
  - Coordinates are pixels of the image as it was given to `set_image`, x before y; boxes are x0 y0 x1 y1 with x1 and
    y1 one past the last pixel. `predict_torch` alone takes coordinates of the S x S frame that the model sees.
  - The frame is the model's (`frames.py`). In SAM-Med2D's the image is stretched to S x S with nearest neighbour; in
    SAM's its longest side becomes S, bilinear, and everything is as in SAM's own predictor.
  - What the model says of a pixel of the frame comes back to the pixel that it saw there (`geometry.py`).
    `SamPredictor(model, protocol="paper")` maps masks, clicks and boxes as the original does, which lies (s - 1) / 2
    pixels aside, s being the image's side over S; `SammedPredictor` always does.
  - An object that is small in the picture is looked at closer: a crop around it is encoded in the frame, and what the
    model says of it put back (`zoom.py`, `closer.py`). `crops` says what was looked at; `zoom="never"` looks at whole
    pictures alone. Crops are kept, so that a further click costs no encoding. `low_res` is of the whole picture all the
    same; handed back to the predictor that answered it, it stands for what was seen in the crop.
  - `mask_input` is what an earlier `predict` returned as `low_res`: logits. Their sigmoid, which SAM-Med2D's weights
    were trained on, is taken inside. (`SammedPredictor` takes probabilities too, as its callers hand them in.)
  - A point or a side of a box that lies less than a pixel outside the image, as detectors hand them in, is taken to the
    edge; anything further outside is refused.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .closer import Closer, Kept
from .drawings import clicks_of_scribbles, region_of_lasso
from .errors import ImageError, PromptError
from .frames import CONFIDENT, SAM, SAM_MED2D, mask_prompt
from .geometry import EXACT, Stretch, back, is_paper, stretch
from .images import to_bgr
from .modeling import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    Prediction,
    Prompts,
    Sam,
    Seen,
    Segmenter,
    answer,
    look,
    low_resolution,
    sure_answers,
)
from .utils.transforms import ResizeLongestSide
from .zoom import AUTO, NEVER, Crop, Zoom

__all__ = ["CONFIDENT", "Masks", "ObjectPrompt", "SamPredictor", "Segmenter", "StretchToSquare"]

PIXELS_AT_ONCE = 2**26  # of full-size logits that are held at a time, 256 MB


class ObjectPrompt(NamedTuple):
    """What is said of one object, in pixels of the image: points, a box, a mask, or several of these.

    points: (P, 2) and labels: (P,), 1 foreground, 0 background, -1 absent
    box: (4,) x0 y0 x1 y1
    mask: (S/4, S/4) as `mask_input`
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | None = None
    mask: np.ndarray | None = None


class Masks(NamedTuple):
    """masks: (N, K, H, W) bool, or float32 logits where those were asked for; iou: (N, K) float32, the IoU that the
    model expects of each; low_res: (N, K, S/4, S/4) float32 logits, the `mask_input` of a next prediction."""

    masks: np.ndarray
    iou: np.ndarray
    low_res: np.ndarray


class Likeness(NamedTuple):
    """A mask that an answer is to resemble, as that of the slice beside: (H, W) bool of a picture, or of a crop, with
    so many more pixels beyond it."""

    mask: np.ndarray
    beyond: int = 0

    def inside(self, crop: Crop) -> "Likeness":
        mask = self.mask[crop.pixels]
        return Likeness(mask, self.beyond + int(self.mask.sum() - mask.sum()))

    def of(self, masks: np.ndarray) -> np.ndarray:
        """IoU. masks: (..., H, W) bool -> (...)."""
        both = (masks & self.mask).sum(axis=(-2, -1))
        return both / np.maximum((masks | self.mask).sum(axis=(-2, -1)) + self.beyond, 1)

    def chosen(self, found: Masks) -> Masks:
        """Of one object's answers with logits (1, K, H, W) the one with the highest predicted IoU (0 where it is
        below) times IoU with the mask: (1, 1, H, W)."""
        scores = found.iou[0].clip(0) * self.of(found.masks[0] > SamPredictor.mask_threshold)
        best = int(scores.argmax())
        return Masks(*(part[:, best : best + 1] for part in found))


class Asked(NamedTuple):
    """Which of a model's answers are wanted: see `SamPredictor.predict_objects`."""

    multimask_output: bool
    best: bool
    like: Likeness | None

    def inside(self, crop: Crop) -> "Asked":
        """Of a crop of the picture."""
        return self if self.like is None else self._replace(like=self.like.inside(crop))

    def chosen(self, found: Masks) -> Masks:
        return found if self.like is None else self.like.chosen(found)


class _Encoded(NamedTuple):
    """seen: of the one image; original_size: (height, width)."""

    seen: Seen
    original_size: tuple[int, int]


class StretchToSquare:
    """Pictures, points and boxes of any size -> the S x S frame. Sizes are (height, width).

    SAM's tools know it as `predictor.transform`.
    """

    def __init__(self, image_size: int, protocol: str = EXACT) -> None:
        """protocol: how points and boxes go there, "exact" or "paper". Raises ValueError: it is neither."""
        self.image_size = self.target_length = image_size
        self.paper = is_paper(protocol)

    def size_in_frame(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """(S, S), of any picture."""
        return self.image_size, self.image_size

    def back(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """(N, K, S, S) of the frame -> (N, K, *original_size)."""
        return back(logits, original_size, self.paper)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, ...) -> (S, S, ...), nearest neighbour."""
        return cv2.resize(image, (self.image_size, self.image_size), interpolation=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """coords: (..., 2) xy -> float32, the same shape; the argument is left as it is."""
        coords = np.asarray(coords)
        x, y = self._axes(original_size)
        there = x.points_to_frame(coords[..., 0]), y.points_to_frame(coords[..., 1])
        return np.stack(there, axis=-1).astype(np.float32)

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
        """boxes: (..., 4) -> float32, (N, 4)."""
        corners = np.asarray(boxes).reshape(-1, 2, 2)
        x, y = self._axes(original_size)
        (x0, x1), (y0, y1) = (axis.spans_to_frame(*corners[..., k].T) for k, axis in enumerate((x, y)))
        return np.stack([x0, y0, x1, y1], axis=-1).astype(np.float32)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, int]) -> Tensor:
        if self.paper:  # in float32, as there; arrays are multiplied in float64
            height, width = original_size
            scale = [self.image_size / width, self.image_size / height]
            return coords.float() * coords.new_tensor(scale, dtype=torch.float32)
        return torch.from_numpy(self.apply_coords(coords.detach().cpu().numpy(), original_size)).to(coords.device)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, int]) -> Tensor:
        if self.paper:
            return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)
        return torch.from_numpy(self.apply_boxes(boxes.detach().cpu().numpy(), original_size)).to(boxes.device)

    def _axes(self, original_size: tuple[int, int]) -> tuple[Stretch, Stretch]:
        """Of x and of y."""
        height, width = original_size
        return stretch(width, self.image_size, self.paper), stretch(height, self.image_size, self.paper)


Transform = StretchToSquare | ResizeLongestSide


def frame_of(model: Segmenter) -> str:
    """The frame of a model, one of segment_anything.frames.FRAMES; SAM-Med2D's where it does not tell."""
    return getattr(model, "frame", SAM_MED2D)


def transform_of(model: Segmenter, protocol: str = EXACT) -> Transform:
    """Into the frame of a model and back. protocol: as of `SamPredictor`, which SAM's frame has but one of."""
    is_paper(protocol)
    if frame_of(model) == SAM:
        return ResizeLongestSide(model.image_size)
    return StretchToSquare(model.image_size, protocol)


class SamPredictor:
    """Holds one image's embedding and answers prompts on it.

    `features`, `original_size`, `input_size` and `is_image_set` can be set, as callers of SAM's predictor do who keep
    embeddings themselves; `set_embedding` does it in one call.
    """

    mask_threshold = 0.0  # of the logits
    needs_prompts = True  # False: no prompt at all is answered as well, as the model answers it

    def __init__(self, model: Segmenter, protocol: str = EXACT, zoom: Zoom | str | float | None = None) -> None:
        """protocol: "exact", or "paper", which maps masks, clicks and boxes as the original does, bit for bit.
        zoom: whether objects are looked at closer: "auto" those that are small in the picture, "always", "never", or a
            number: always, in crops whose sides are so many times those of the object's box. None: "auto", but "never"
            in SAM's frame, where answers are those of SAM's own predictor.

        Raises ValueError: one of them is none of these.
        """
        self.model = model
        self.protocol = protocol
        self.transform: Transform = transform_of(model, protocol)
        if zoom is None:
            zoom = NEVER if frame_of(model) == SAM else AUTO
        self._zoom, self._kept = Zoom.of(zoom), Kept()
        self.reset_image()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def new_size(self) -> tuple[int, int]:
        """(S, S): the frame that the model sees."""
        return self.model.image_size, self.model.image_size

    @property
    def zoom(self) -> Zoom:
        """When objects are looked at closer; may be set between predictions, to whatever `__init__` takes."""
        return self._zoom

    @zoom.setter
    def zoom(self, value: Zoom | str | float) -> None:
        self._zoom = Zoom.of(value)

    # ---------------------------------------------------------------- the image

    def reset_image(self) -> None:
        """Forget the image."""
        self._features: Tensor | None = None
        self.details: Tensor | None = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None  # of the image in the frame
        self.picture: np.ndarray | None = None
        self.crops: list[Crop] = []
        self._kept.forget()

    @property
    def features(self) -> Tensor | None:
        """(1, 256, S / 16, S / 16); who sets it alone gets answers of the decoder alone."""
        return self._features

    @features.setter
    def features(self, value: Tensor | None) -> None:
        self._features, self.details = value, None

    @property
    def is_image_set(self) -> bool:
        return self.original_size is not None

    @is_image_set.setter
    def is_image_set(self, value: bool) -> None:
        if not value:
            self.reset_image()

    def set_image(self, image: np.ndarray, image_format: str = "RGB", encode: bool = True) -> None:
        """Encode an image: (H, W), or (H, W, C) with 1, 3 or 4 channels, of which the fourth (alpha) is dropped.

        image_format: "RGB" or "BGR", the order of the channels. Anything but uint8 is scaled from its own minimum and
        maximum to 0..255, as the training data are. encode: False encodes the whole image when it is first needed,
        which is never where all objects are looked at closer. Raises ImageError.
        """
        picture = to_bgr(image, image_format)
        self.reset_image()
        self.picture, self.original_size = picture, picture.shape[:2]
        self.input_size = self.transform.size_in_frame(self.original_size)
        if encode:
            self._image()

    def encode(self, picture: np.ndarray) -> Seen:
        """What is kept of a picture (H, W, 3) uint8 BGR that is brought into the frame."""
        return self.encode_all([picture])[0]

    @torch.no_grad()
    def encode_all(self, pictures: Sequence[np.ndarray]) -> list[Seen]:
        """`encode` of pictures of one size, at once; the last digits depend on how many there are."""
        frames, places = zip(*(self.framed(picture) for picture in pictures))
        content = None if places[0] is None else torch.cat(places).to(self.device)
        seen = look(self.model, torch.cat(frames).to(self.device), content)
        return [seen.rows(slice(number, number + 1)) for number in range(len(pictures))]

    @property
    def crop_bytes(self) -> int:
        """Of the features of crops that were looked at, of the picture that is set."""
        return self._kept.feature_bytes

    @property
    def answer_bytes(self) -> int:
        """Of the answers of crops, which are kept for when they are handed back as masks."""
        return self._kept.answer_bytes

    def keep_crop(self, crop: Crop, seen: Seen) -> None:
        """Take what was seen of a crop of the picture that is set, as `encode` gave it of these pixels."""
        self._kept.keep(crop, seen)

    def framed(self, picture: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(H, W, 3) uint8 BGR -> (1, 3, S, S) uint8 as `Sam.encode` takes it, and its place there: (1, 4) int64 top,
        left, height, width, or None where it fills the frame."""
        inside = torch.from_numpy(self.transform.apply_image(picture).transpose(2, 0, 1).copy())[None]
        height, width = inside.shape[2:]
        side = self.model.image_size
        if (height, width) == (side, side):
            return inside, None
        return F.pad(inside, (0, side - width, 0, side - height)), torch.tensor([[0, 0, height, width]])

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, int]) -> None:
        """Encode an image that is in the frame already, without its padding: (1, 3, h, w), 0..255, longer side S.

        original_image_size: (height, width) before that. The colours are those of `Sam.image_format`. Raises
        ImageError: another shape, or a model that is an exported file.
        """
        shape = tuple(transformed_image.shape)
        side = self.model.image_size
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ImageError(f"image of shape {shape}; one in the frame is (1, 3, h, w) with a longer side of {side}")
        if not isinstance(self.model, Sam):
            raise ImageError("an exported model takes whole images: use set_image")
        features = self.model.image_encoder(self.model.preprocess(transformed_image.to(self.device)))
        self.set_embedding(features, original_image_size)
        self.input_size = shape[2], shape[3]

    def get_image_embedding(self) -> Tensor:
        """(1, 256, S / 16, S / 16), for tools that know no more; `seen` has all that `set_embedding` can take."""
        return self._image().seen.embeddings

    def seen(self) -> Seen:
        """What is kept of the image, for `set_embedding` of this or another predictor of the same model."""
        return self._image().seen

    def set_embedding(
        self, embedding: Seen | Tensor | np.ndarray, original_size: tuple[int, int], picture: np.ndarray | None = None
    ) -> None:
        """Take an image that was encoded earlier. original_size: its (height, width).

        embedding: what `seen` returned, or an embedding alone: then a refinement network has nothing to look at, and
        answers are those of the decoder. picture: (H, W, 3) uint8 BGR, without which nothing can be looked at closer.
        Raises ValueError: an embedding of another shape than this model's.
        """
        seen = embedding if isinstance(embedding, Seen) else Seen(torch.as_tensor(embedding))
        embedding = seen.embeddings.to(self.device)
        side = self.model.image_size // 16
        if embedding.dim() != 4 or embedding.shape[0] != 1 or tuple(embedding.shape[2:]) != (side, side):
            raise ValueError(
                f"embedding of shape {tuple(embedding.shape)}; one image of this model has (1, 256, {side}, {side})"
            )
        self.reset_image()
        self.features, self.picture = embedding, picture
        self.details = None if seen.details is None else seen.details.to(self.device)
        height, width = original_size
        self.original_size = int(height), int(width)
        self.input_size = self.transform.size_in_frame(self.original_size)

    def _image(self) -> "_Encoded":
        """What `set_image` left, encoded now where it was not yet. Raises RuntimeError where nothing was set."""
        if self.features is None and self.picture is not None:
            self.features, self.details = self.encode(self.picture)
        if self.features is None:
            raise RuntimeError("no image yet: call set_image first")
        return _Encoded(Seen(self.features, self.details), self._size())

    def _size(self) -> tuple[int, int]:
        """(height, width) of the image. Raises RuntimeError where nothing was set."""
        if self.original_size is None:
            raise RuntimeError("no image yet: call set_image first")
        return self.original_size

    # ---------------------------------------------------------------- coordinates of the original -> of the frame

    def apply_coords(
        self, coords: np.ndarray, original_size: tuple[int, int] | None = None, new_size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """coords: (..., 2) -> the same shape, for `predict_torch`. original_size: by default that of the image set.

        new_size: accepted from callers of the original; it must be the model's frame. So in the three that follow.
        """
        return self.transform.apply_coords(coords, self._sizes(original_size, new_size))

    def apply_boxes(
        self, boxes: np.ndarray, original_size: tuple[int, int] | None = None, new_size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """boxes: (N, 4) -> (N, 4)."""
        return self.transform.apply_boxes(boxes, self._sizes(original_size, new_size))

    def apply_coords_torch(
        self, coords: Tensor, original_size: tuple[int, int] | None = None, new_size: tuple[int, int] | None = None
    ) -> Tensor:
        return self.transform.apply_coords_torch(coords, self._sizes(original_size, new_size))

    def apply_boxes_torch(
        self, boxes: Tensor, original_size: tuple[int, int] | None = None, new_size: tuple[int, int] | None = None
    ) -> Tensor:
        return self.transform.apply_boxes_torch(boxes, self._sizes(original_size, new_size))

    def _sizes(self, original_size: tuple[int, int] | None, new_size: tuple[int, int] | None) -> tuple[int, int]:
        if new_size is not None and tuple(new_size) != self.new_size:
            raise ValueError(f"new_size {tuple(new_size)}: this model's frame is {self.new_size}")
        return original_size or self._size()

    # ---------------------------------------------------------------- prompts -> masks

    def predict(
        self,
        point_coords: Sequence | np.ndarray | None = None,
        point_labels: Sequence | np.ndarray | None = None,
        box: Sequence | np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        scribbles: Sequence | np.ndarray | None = None,
        scribble_labels: Sequence[int] | None = None,
        lasso: Sequence | np.ndarray | None = None,
        best: bool = False,
    ) -> Masks:
        """One object, as in SAM, or many at once.

        point_coords, point_labels: (P, 2) and (P,); for many objects (N, P, 2) and (N, P), or lists of N arrays, each
            as long as it likes. 1 foreground, 0 background, -1 absent.
        box: (4,) or (1, 4); for many objects (N, 4)
        mask_input: (S/4, S/4) or (1, S/4, S/4) logits; for many objects (N, 1, S/4, S/4)
        multimask_output: three guesses, of which the best has the highest iou, or one mask
        scribbles: strokes on one object, polylines (n, 2), each with its scribble_labels (1 on the object, as all are
            without labels, 0 on the background); or a mask (H, W), above 0 on the object, below 0 on the background.
            They are heard as five clicks along each, after point_coords.
        lasso: a rough outline of one object, (n, 2): heard as the box around it and, where there is no mask_input, as a
            mask of what it encloses
        best: of three guesses the one with the highest iou alone, K = 1: what to ask for where no other is wanted, as a
            refinement network then answers once in place of three times

        -> masks (K, H, W), iou (K,), low_res (K, S/4, S/4); for many objects each with N before it.
        Objects do not see each other: many at once give what each gives alone. Where a list may hold one object or
        several, `predict_objects` always answers with N before the rest.

        Raises PromptError, and RuntimeError where no image is set.
        """
        if scribbles is not None or lasso is not None:
            point_coords, point_labels, box, mask_input = self._with_drawings(
                (point_coords, point_labels, box, mask_input), scribbles, scribble_labels, lasso
            )
        if not self.needs_prompts and point_coords is None and box is None and mask_input is None:
            objects, many = [ObjectPrompt()], False
        else:
            objects, many = _objects_of(point_coords, point_labels, box, mask_input)
        found = self.predict_objects(objects, multimask_output, return_logits, best)
        return found if many else Masks(*(part[0] for part in found))

    def _with_drawings(self, prompts, scribbles, scribble_labels, lasso) -> tuple:
        """The first four arguments of `predict` for one object, with what was drawn. Raises PromptError."""
        point_coords, point_labels, box, mask_input = prompts
        size = self._size()
        if _depth(point_coords) == 3 or (box is not None and _depth(box) == 2 and len(box) > 1):
            raise PromptError("scribbles and a lasso are of one object: ask for each object by itself")
        if scribbles is not None:
            points, labels = clicks_of_scribbles(scribbles, scribble_labels, size)
            if point_coords is not None and point_labels is not None:
                points = np.concatenate([_floats(point_coords, "point_coords", (None, 2)), points])
                labels = np.concatenate([_labels(point_labels), labels])
            point_coords, point_labels = points, labels
        if lasso is not None:
            if box is not None:
                raise PromptError("a lasso is heard as the box around it: give one of box and lasso")
            region = region_of_lasso(lasso, size)
            y, x = np.nonzero(region)
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            mask_input = self.logits_of(region) if mask_input is None else mask_input
        return point_coords, point_labels, box, mask_input

    def predict_objects(
        self,
        objects: Sequence[ObjectPrompt],
        multimask_output: bool = True,
        return_logits: bool = False,
        best: bool = False,
        like: np.ndarray | None = None,
    ) -> Masks:
        """N objects, each with prompts of its own kind and number; best: as of `predict`. Raises PromptError,
        RuntimeError.

        like: (H, W) bool, of one object: of the three guesses the one with the highest predicted IoU times IoU with
        this mask alone, K = 1, as logits. `crops` then has of each object what was looked at.
        """
        size = self._size()
        objects = [
            self._checked(prompt, "" if len(objects) == 1 else f"object {number}: ")
            for number, prompt in enumerate(objects)
        ]
        asked = Asked(multimask_output, best, None if like is None else Likeness(like))
        return_logits = return_logits or like is not None
        if self._zoom.is_on and self.picture is not None:
            closer = Closer(self, self._zoom, self._kept)
            found, self.crops = closer.predict(objects, return_logits, asked)
            return found
        self.crops = [Crop.whole(size)] * len(objects)
        return asked.chosen(self.predict_whole(objects, return_logits, asked))

    def predict_whole(self, objects: Sequence[ObjectPrompt], return_logits: bool, asked: "Asked") -> Masks:
        """As `predict_objects`, with the whole picture in the frame and prompts that were checked, but all guesses that
        an answer is chosen from by what it is to resemble."""
        height, width = self._size()
        outputs = 3 if asked.multimask_output and not asked.best else 1
        step = max(1, PIXELS_AT_ONCE // (outputs * max(height * width, self.model.image_size**2)))
        parts: list[Masks] = []
        order: list[int] = []
        for group in _alike(objects, self.needs_prompts):
            for start in range(0, len(group), step):
                rows = group[start : start + step]
                prompts = self._stack([objects[row] for row in rows])
                if asked.like is not None:
                    found = self._predict_like(prompts, asked.like)
                else:
                    found = self.predict_torch(*prompts[:4], asked.multimask_output, return_logits, asked.best)
                parts.append(
                    Masks(
                        *(
                            part.float().cpu().numpy() if part.dtype != torch.bool else part.cpu().numpy()
                            for part in found
                        )
                    )
                )
                order += rows
        if not parts:
            raise PromptError("no object to predict: give points, a box or a mask")
        as_asked = np.argsort(order)
        return Masks(*(np.concatenate(values)[as_asked] for values in zip(*parts)))

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        best: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """N objects at once, with coordinates of the S x S frame (see `apply_coords_torch`), on the model's device.

        point_coords: (N, P, 2), point_labels: (N, P); boxes: (N, 4); mask_input: (N, 1, S/4, S/4) logits.
        -> masks (N, K, H, W) bool or logits, iou (N, K), low_res (N, K, S/4, S/4). Raises PromptError, RuntimeError.
        """
        self._image()
        prompts = Prompts(
            point_coords, point_labels, boxes, None if mask_input is None else self._probabilities(mask_input)
        )
        if self.needs_prompts or any(p is not None for p in prompts):
            _check_shapes(prompts, self.model.image_size // 4)
        found, iou = self.decode(prompts, multimask_output, best=best)
        logits = self.upscale(found)
        masks = logits if return_logits else logits > self.mask_threshold
        return masks, iou, low_resolution(found, self.model.image_size)

    @torch.no_grad()
    def _predict_like(self, prompts: Prompts, like: "Likeness") -> tuple[Tensor, Tensor, Tensor]:
        """As `predict_torch`, with the logits of one object's three guesses; those that `like` will not choose,
        whatever a refinement network made of them, are as the decoder leaves them."""

        def likeness(refined: Tensor) -> float:
            return float(like.of((self.upscale(refined)[0, 0] > self.mask_threshold).cpu().numpy()))

        masks = None if prompts.masks is None else self._probabilities(prompts.masks)
        ready = prompts._replace(masks=masks).to(self.device)
        found, iou = answer(self.model, self._image().seen, ready, True, likeness=likeness)
        return self.upscale(found), iou, low_resolution(found, self.model.image_size)

    def decode(
        self, prompts: Prompts, multimask_output: bool, *, refine: bool = True, best: bool = False
    ) -> Prediction:
        """Prompts in the S x S frame, masks as its mask prompts -> iou (N, K) and logits (N, K, S/4, S/4), or of S
        where the model has a refinement network.

        refine: False leaves the logits to the decoder; best: as of `predict`.
        """
        rows = next((len(p) for p in prompts if p is not None), 1)
        one = self._image().seen if refine else self._image().seen._replace(details=None)
        return answer(self.model, one.for_each(rows), prompts.to(self.device), multimask_output, best=best)

    def decode_sure(self, prompts: Prompts, least_iou: float) -> tuple[Tensor, Tensor]:
        """Prompts in the S x S frame -> of the decoder's three guesses those logits (M, S/4, S/4), object by object,
        whose predicted IoU is at least so much; predicted IoU of all (N, 3)."""
        rows = next((len(p) for p in prompts if p is not None), 1)
        seen = self._image().seen._replace(details=None).for_each(rows)
        return sure_answers(self.model, seen, prompts.to(self.device), least_iou)

    def upscale(self, low_res: Tensor) -> Tensor:
        """(N, K, S/4, S/4), or of S -> (N, K, H, W) float32, linear: first to the frame, then to the image."""
        return self.transform.back(self.model.upscale(low_res), self._size())

    def _probabilities(self, mask_input: Tensor) -> Tensor:
        """What the caller hands in -> what the model reads."""
        if mask_input.numel() and _are_shares(mask_input):
            raise PromptError(
                "mask_input holds values of 0 to 1 only; give the logits that predict returned as low_res, or "
                "logits_of(mask) for a mask of your own"
            )
        return mask_prompt(frame_of(self.model), mask_input)

    def can_read(self, mask_input: np.ndarray) -> bool:
        """Whether a `mask_input` (S/4, S/4) will not be refused."""
        return mask_input.shape == (self.model.image_size // 4,) * 2 and not _are_shares(mask_input)

    def logits_of(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the image (H, W), from anywhere, -> `mask_input` (S/4, S/4) for it."""
        mask = np.asarray(mask)
        size = self._size()
        if mask.shape != size:
            raise PromptError(f"mask of shape {mask.shape}; the image has {size}")
        return CONFIDENT * (2 * self.shrunk(mask.astype(bool).astype(np.float32)) - 1)

    def shrunk(self, values: np.ndarray) -> np.ndarray:
        """Numbers for each pixel of the image, (H, W) float32 -> for each of the masks in the frame, (S/4, S/4)."""
        side = self.model.image_size // 4
        if isinstance(self.transform, ResizeLongestSide):
            inside = cv2.resize(values, self.transform.size_in_frame(values.shape)[::-1], interpolation=cv2.INTER_AREA)
            seen = np.zeros(self.new_size, np.float32)
            seen[: inside.shape[0], : inside.shape[1]] = inside
        else:
            seen = values if self.transform.paper else self.transform.apply_image(values)
        return cv2.resize(seen, (side, side), interpolation=cv2.INTER_AREA)

    def of_crop(self, seen: Seen, crop: Crop) -> "SamPredictor":
        """A predictor whose picture is a crop of this one's, of which this was seen."""
        inside = _InsideCrop(self.model, self.protocol, NEVER)
        inside.set_embedding(seen, crop.size)
        return inside

    def _checked(self, prompt: ObjectPrompt, name: str) -> ObjectPrompt:
        """The prompt, with what lies less than a pixel outside the image at its edge. Raises PromptError where it lies
        further outside, or a box has no area."""
        height, width = self._size()
        prompt = _to_the_edge(prompt, width, height)
        where = f"the image of {width} x {height} pixels"
        if prompt.points is not None and prompt.labels is not None:
            given = prompt.points[prompt.labels != ABSENT]
            outside = ~((given >= 0) & (given <= (width, height))).all(axis=1)  # not a number is outside as well
            if outside.any():
                x, y = given[outside][0]
                raise PromptError(f"{name}point ({x:g}, {y:g}) lies outside {where}; x comes before y")
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            if not (x0 < x1 and y0 < y1):
                raise PromptError(
                    f"{name}box {_numbers(prompt.box)} has no area; give x0 y0 x1 y1 with x0 < x1 and y0 < y1"
                )
            if not (x0 >= 0 and x1 <= width and y0 >= 0 and y1 <= height):
                raise PromptError(f"{name}box {_numbers(prompt.box)} reaches outside {where}; clip it to the image")
        return prompt

    def _stack(self, objects: list[ObjectPrompt]) -> Prompts:
        """Objects with prompts of one kind and number -> rows in the S x S frame, on the device; masks as they came."""

        def rows(values: tuple[np.ndarray | None, ...]) -> np.ndarray | None:
            there = [value for value in values if value is not None]
            return np.stack(there) if there else None

        points, labels, boxes, masks = (rows(values) for values in zip(*objects))
        ready = (
            None if points is None else self.apply_coords(points).astype(np.float32),
            labels,
            None if boxes is None else self.apply_boxes(boxes).astype(np.float32),
            None if masks is None else masks[:, None],
        )
        return Prompts(*(None if part is None else torch.from_numpy(part).to(self.device) for part in ready))


class _InsideCrop(SamPredictor):
    """What it is handed are logits, cut out of others: they may all lie between 0 and 1."""

    def _probabilities(self, mask_input: Tensor) -> Tensor:
        return mask_prompt(frame_of(self.model), mask_input)


# ---------------------------------------------------------------- what people hand in


def _objects_of(point_coords, point_labels, box, mask_input) -> tuple[list[ObjectPrompt], bool]:
    """The arguments of `predict` -> its objects, and whether they come as many. Raises PromptError."""
    if (point_coords is None) != (point_labels is None):
        raise PromptError(
            "point_coords and point_labels come together: a label (1 foreground, 0 background) for each point"
        )
    counts: dict[str, int | None] = {}  # None: of a single object
    points = labels = boxes = masks = None
    if point_coords is not None:
        many = _depth(point_coords) == 3
        points = [_floats(p, "point_coords", (None, 2)) for p in (point_coords if many else [point_coords])]
        labels = [_labels(p) for p in (point_labels if many else [point_labels])]
        if [*map(len, points)] != [*map(len, labels)]:
            raise PromptError("point_coords and point_labels differ in number; give one label for each point")
        counts["point_coords"] = len(points) if many else None
    if box is not None:
        boxes = _floats(box, "box", (None, 4) if _depth(box) == 2 else (4,)).reshape(-1, 4)
        counts["box"] = len(boxes) if len(boxes) != 1 else None
    if mask_input is not None:
        mask = _floats(mask_input, "mask_input", (None,) * _depth(mask_input))
        if not 2 <= mask.ndim <= 4 or (mask.ndim == 4 and mask.shape[1] != 1):
            raise PromptError(f"mask_input of shape {mask.shape}; give (S/4, S/4), or (N, 1, S/4, S/4) for N objects")
        masks = mask.reshape(-1, *mask.shape[-2:])
        counts["mask_input"] = len(masks) if mask.ndim == 4 or len(masks) != 1 else None
    if not counts:
        raise PromptError("nothing to predict: give points, a box or a mask")
    many = any(count is not None for count in counts.values())
    if len({1 if count is None else count for count in counts.values()}) > 1:
        told = ", ".join(f"{name} for {count or 1}" for name, count in counts.items())
        raise PromptError(f"prompts of different numbers of objects: {told}; give one row an object")
    rows = next(len(rows) for rows in (points, boxes, masks) if rows is not None)
    clicked = [points is not None and len(points[i]) > 0 for i in range(rows)]
    return [
        ObjectPrompt(
            points[i] if points is not None and clicked[i] else None,
            labels[i] if labels is not None and clicked[i] else None,
            None if boxes is None else boxes[i],
            None if masks is None else masks[i],
        )
        for i in range(rows)
    ], many


def _to_the_edge(prompt: ObjectPrompt, width: int, height: int) -> ObjectPrompt:
    """Coordinates that lie less than a pixel outside the image, taken to its edge; others as they are."""

    def taken(values: np.ndarray) -> np.ndarray:
        edge = np.clip(values, 0, np.array([width, height], np.float32))
        return np.where(np.abs(values - edge) < 1, edge, values)

    return prompt._replace(
        points=None if prompt.points is None else taken(prompt.points),
        box=None if prompt.box is None else taken(prompt.box.reshape(2, 2)).reshape(4),
    )


def _depth(values: object) -> int:
    """How deeply arrays or lists are nested: 2 for [[x, y]]."""
    if hasattr(values, "ndim"):
        return values.ndim
    if isinstance(values, (list, tuple)):
        return 1 + max(map(_depth, values), default=0)
    return 0


def _floats(values: object, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """-> float32 of that shape, None standing for any length. An empty list fits (0, ...)."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} is not made of numbers, or not of equally long rows") from error
    if array.size == 0 and shape[0] is None:
        array = array.reshape(0, *(length or 0 for length in shape[1:]))
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape)):
        wanted = ", ".join("N" if length is None else str(length) for length in shape)
        raise PromptError(f"{name} of shape {array.shape}; it must be ({wanted}{',' * (len(shape) == 1)})")
    return array


def _labels(values: object) -> np.ndarray:
    labels = _floats(values, "point_labels", (None,))
    if not np.isin(labels, (FOREGROUND, BACKGROUND, ABSENT)).all():
        raise PromptError("point_labels must be 1 (foreground), 0 (background) or -1 (absent)")
    return labels.astype(np.int64)


def _are_shares(mask: Tensor | np.ndarray) -> bool:
    """Whether all values lie between 0 and 1, as no logits of a mask do."""
    return bool(mask.min() >= 0 and mask.max() <= 1)


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _alike(objects: Sequence[ObjectPrompt], needs_prompts: bool = True) -> Iterator[list[int]]:
    """Groups of objects with the same kinds and number of prompts.

    Absent points would make all equally long, but the model attends to those too: an object would depend on its
    company.
    """
    groups: dict[tuple, list[int]] = {}
    for row, prompt in enumerate(objects):
        kind = (None if prompt.points is None else len(prompt.points), prompt.box is None, prompt.mask is None)
        if needs_prompts and kind == (None, True, True):
            raise PromptError(f"object {row} has no prompt: give points, a box or a mask")
        groups.setdefault(kind, []).append(row)
    yield from groups.values()


def _check_shapes(prompts: Prompts, side: int) -> None:
    """Raise PromptError where rows do not fit each other or the model. side: S / 4."""
    points, labels, boxes, masks = prompts[:4]
    given = [p for p in prompts if p is not None]
    if not given:
        raise PromptError("nothing to predict: give points, boxes or a mask")
    if (points is None) != (labels is None):
        raise PromptError("point_coords and point_labels come together")
    wrong = [
        f"{name} of shape {tuple(value.shape)} instead of {want}"
        for name, value, want, right in (
            ("point_coords", points, "(N, P, 2)", lambda v: v.dim() == 3 and v.shape[2] == 2),
            ("point_labels", labels, "(N, P)", lambda v: points is not None and v.shape == points.shape[:2]),
            ("boxes", boxes, "(N, 4)", lambda v: v.dim() == 2 and v.shape[1] == 4),
            ("mask_input", masks, f"(N, 1, {side}, {side})", lambda v: v.dim() == 4 and v.shape[1:] == (1, side, side)),
        )
        if value is not None and not right(value)
    ]
    if wrong:
        raise PromptError("; ".join(wrong))
    if len({len(p) for p in given}) > 1:
        counts = sorted({len(p) for p in given})
        raise PromptError(f"prompts of different numbers of objects: {counts}; give one row an object")
