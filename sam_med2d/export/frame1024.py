"""A 1024 px frame around any model: graphs that open wherever SAM's own do, without another weight.

Clients of SAM scale a picture until its longer side is 1024, pad it at the right and below, expect an embedding of
64 x 64 cells, and speak of places in that frame. Here the encoder's graph brings their frame into the model's own and
leaves its smaller embedding in the upper left of the 64 x 64; the decoder's graph takes their coordinates and
256 x 256 masks there and back.

A model in SAM-Med2D's frame sees the picture alone, stretched. Where the picture ends, the encoder reads off the
padding, which is zero to the last digit as no normalised pixel is, and tells the decoder in a cell that no smaller
embedding needs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_med2d.errors import UsageError
from sam_med2d.export.graphs import DecoderGraph, EncoderGraph
from sam_med2d.export.places import Back, up_to
from segment_anything import Sam
from segment_anything.frames import SAM, SAMS_SIZE
from segment_anything.modeling.prompt_encoder import TOP_LEFT

GRID = SAMS_SIZE // 16  # cells of the embedding that clients expect
LOW_RES = SAMS_SIZE // 4  # pixels of the masks that they feed back
PADDED, WHOLE = "x", "input_image"  # what the encoder's input is called, and so what it is
SEEN = 0.5  # of their pixels, behind the edge of a pixel of the model: a source pixel's middle in pictures of 1024 px
OUTSIDE = -32.0  # the logit of what lies beyond the picture


class Encoder1024(nn.Module):
    """Their frame -> image_embeddings (1, 256, 64, 64).

    x            (1, 3, 1024, 1024) float, RGB, normalised, zeros at the right and below
    input_image  (h, w, 3) float, RGB, 0..255, sides up to 1024: what is black to the edge at the right or below counts
                 as padding for a model in SAM-Med2D's frame, as AnyLabeling pads so
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    resize: Tensor

    def __init__(self, model: Sam, reads: str = PADDED) -> None:
        """reads: PADDED or WHOLE. Raises UsageError: the model does not fit into the frame."""
        super().__init__()
        check_fits(model)
        self.encoder = EncoderGraph(model, rgb=True)
        self.reads, self.stretched, self.image_size = reads, model.frame != SAM, model.image_size
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        rows = torch.eye(SAMS_SIZE)[None, None]  # of the resized frame, as sums of rows of theirs
        size = (self.image_size, SAMS_SIZE)
        self.register_buffer("resize", F.interpolate(rows, size, mode="bilinear", antialias=True)[0, 0])

    def forward(self, image: Tensor) -> Tensor:
        if self.reads == WHOLE:
            values = image.permute(2, 0, 1)
            height, width = extent(values)
            values = (values - self.pixel_mean) / self.pixel_std
        else:
            values = image[0]
            height, width = extent(values)
        if self.stretched:
            pixels = torch.arange(self.image_size) / self.image_size
            rows, columns = (pixels * side + SEEN for side in (height, width))
            values = resampled(values, rows, columns)
        else:
            if self.reads == WHOLE:
                values = F.pad(values, (0, SAMS_SIZE, 0, SAMS_SIZE))[:, :SAMS_SIZE, :SAMS_SIZE]
            if self.image_size != SAMS_SIZE:
                values = self.resize @ values @ self.resize.T
        embedding = self.encoder(values[None])
        free = GRID - embedding.shape[-1]
        embedding = F.pad(embedding, (0, free, 0, free))
        if self.stretched:
            ends = torch.stack([height, width]).reshape(1, 2, 1, 1)
            embedding = embedding + F.pad(ends, (GRID - 1, 0, GRID - 1, 0, 0, embedding.shape[1] - 2))
        return embedding


class View(NamedTuple):
    """What a decoder knows of the picture: size, (2,) int64, its height and width; scale, (2,), pixels of the 1024 px
    frame that one of its pixels is wide; ends, (2,), where it ends in the frame.
    """

    size: Tensor
    scale: Tensor
    ends: Tensor


class Decoder1024(nn.Module):
    """The decoder's graph in their frame, for N objects, around a model in SAM's frame; see `decoder_1024`.

    image_embeddings  (1, 256, 64, 64) of `Encoder1024`
    point_coords      (N, P, 2) xy in the 1024 px frame
    point_labels      (N, P) float, as `DecoderGraph` reads them; a padding point behind a box is dropped
    mask_input        (N or 1, 1, 256, 256), logits of the frame; has_mask_input (N or 1,), above 0.5 where it counts
    orig_im_size      (2,) float: height and width of the picture
    -> masks (N, 1, H, W), iou_predictions (N, 1), low_res_masks (N, 1, 256, 256) of the frame
    """

    output_names = ("masks", "iou_predictions", "low_res_masks")

    def __init__(self, model: Sam, padded: bool = True) -> None:
        """padded: whether clients pad the shorter side; if not, they stretch it. Raises UsageError: the model does not
        fit into the frame.
        """
        super().__init__()
        check_fits(model)
        self.padded = padded
        self.decoder = DecoderGraph(model, single_mask=True, logits_in=True, paper=True)
        self.image_size = model.image_size

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        side, grid = self.image_size, self.image_size // 16
        content = torch.full_like(orig_im_size, float(SAMS_SIZE))
        if self.padded:
            content = (orig_im_size * (SAMS_SIZE / orig_im_size.max()) + 0.5).floor()  # as clients round it
        view = View(orig_im_size.long(), content / orig_im_size, image_embeddings[0, :2, -1, -1])
        low_res, scores = self.decoder.answer(
            image_embeddings[:, :, :grid, :grid],
            self.coordinates(point_coords, point_labels, view),
            point_labels,
            self.earlier(mask_input, view),
            has_mask_input,
        )
        frame = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
        masks, theirs = self.masks(frame, view)
        return masks, scores, theirs

    def coordinates(self, coordinates: Tensor, labels: Tensor, view: View) -> Tensor:
        """(N, P, 2) of their frame -> of the model's; SAM scales indexes of pixels and corners of boxes alike."""
        return coordinates * (self.image_size / SAMS_SIZE)

    def earlier(self, masks: Tensor, view: View) -> Tensor:
        """Their mask prompt -> (N or 1, 1, S/4, S/4)."""
        rows = middles(self.image_size // 4, SAMS_SIZE / self.image_size)
        return resampled(masks, rows, rows)

    def masks(self, frame: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Logits (N, 1, S, S) -> those of the picture (N, 1, H, W), and of their frame (N, 1, 256, 256)."""
        share = self.image_size / SAMS_SIZE
        rows, columns = (middles(n, scale * share) for n, scale in zip(view.size, view.scale))
        cells = middles(LOW_RES, 4 * share)
        return resampled(frame, rows, columns), resampled(frame, cells, cells)


class StretchedDecoder1024(Decoder1024):
    """The same around a model in SAM-Med2D's frame: all ways are those of `segment_anything.geometry`, the exact one.

    Only a box that is narrower than a pixel of the model's frame keeps no width here.
    """

    def __init__(self, model: Sam, padded: bool = True) -> None:
        super().__init__(model, padded)
        self.back = Back(model.image_size)

    def _shown(self, view: View) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of y and x: the side that the model saw, in pixels of the picture, () int64; the place of each pixel of its
        frame there, (S,) int64; and the scale."""
        for scale, end in zip(view.scale, view.ends):
            side = (end / scale).round().long().clamp(min=1)
            yield side, self.back.places(side), scale

    def coordinates(self, coordinates: Tensor, labels: Tensor, view: View) -> Tensor:
        corner, found = labels >= TOP_LEFT, []
        for values, (_, places, scale) in zip(coordinates.flip(-1).unbind(-1), self._shown(view)):
            here = values / scale
            found.append(torch.where(corner, self._edges(here, places), self._points(here, places)))
        return torch.stack(found[::-1], dim=-1)

    def _edges(self, edges: Tensor, places: Tensor) -> Tensor:
        """As `Stretch.edges_to_frame`."""
        whole = (edges + 1e-3).floor()
        low, high = ((places < (whole + more)[..., None]).sum(dim=-1) for more in (0, 1))
        return low + (edges - whole).clamp(min=0) * (high - low)

    def _points(self, points: Tensor, places: Tensor) -> Tensor:
        """As `Stretch.points_to_frame`."""
        points = torch.minimum(points.clamp(min=0), places[-1].float())
        last = (places <= (points + 1e-3)[..., None]).sum(dim=-1) - 1  # of the frame pixels that show what lies there
        ahead = (last + 1).clamp(max=self.image_size - 1)
        here, after = (places.index_select(0, at.reshape(-1)).reshape(at.shape) for at in (last, ahead))
        first, beyond = (places < here[..., None]).sum(dim=-1), (places <= after[..., None]).sum(dim=-1) - 1
        middle, next_middle = (first + last) / 2, (ahead + beyond) / 2
        return middle + (points - here).clamp(min=0) / (after - here).clamp(min=1) * (next_middle - middle)

    def earlier(self, masks: Tensor, view: View) -> Tensor:
        before = 4 * torch.arange(self.image_size // 4) + 1  # the middle of each four pixels lies behind it
        axes = []
        for _, places, scale in self._shown(view):
            here = (places.index_select(0, before) + places.index_select(0, before + 1)) / 2
            axes.append((here + 0.5) * scale / 4 - 0.5)
        return resampled(masks, *axes)

    def masks(self, frame: Tensor, view: View) -> tuple[Tensor, Tensor]:
        (height, _, down), (width, _, across) = self._shown(view)
        shown = self.back(frame, height, width)
        rows, columns = (up_to(side) for side in view.size)
        masks = shown.index_select(-2, rows.clamp(max=height - 1)).index_select(-1, columns.clamp(max=width - 1))
        masks = torch.where((rows < height)[:, None] & (columns < width), masks, OUTSIDE)
        return masks, resampled(shown, middles(LOW_RES, 4 / down), middles(LOW_RES, 4 / across))


def decoder_1024(model: Sam, padded: bool = True) -> Decoder1024:
    """The graph for the frame of a model. padded: as of `Decoder1024`. Raises UsageError: the model does not fit."""
    return (Decoder1024 if model.frame == SAM else StretchedDecoder1024)(model, padded)


def check_fits(model: Sam) -> None:
    """Raises UsageError: a model that needs all 64 x 64 cells, or more, and says elsewhere where pictures end."""
    most = SAMS_SIZE if model.frame == SAM else SAMS_SIZE - 32
    if model.image_size > most:
        raise UsageError(
            f"--image_size {model.image_size}: the target sam1024 holds models of up to {most} px in this frame; take "
            "--target onnx"
        )


def extent(values: Tensor) -> tuple[Tensor, Tensor]:
    """(C, h, w) -> () float each: the height and width up to the last row and column that are not zero throughout."""
    height, width = (_last((values.abs().amax(dim=dims) > 0).float()) for dims in ((0, 2), (0, 1)))
    return height, width


def _last(used: Tensor) -> Tensor:
    """(n,) of 0 and 1 -> () float: how many up to the last 1, at least 1."""
    return (torch.ones_like(used).cumsum(0) * used).max().clamp(min=1)


def middles(count: Tensor | int, step: Tensor | float) -> Tensor:
    """The middles of `count` pixels that are `step` source pixels wide, as indexes of source pixels: (count,) float."""
    numbers = up_to(count) if isinstance(count, Tensor) else torch.arange(count)
    return (numbers + 0.5) * step - 0.5


def resampled(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., h, w) at fractions of indexes, (H,) and (W,), linear between neighbours -> (..., H, W)."""
    return _at(_at(values, rows).transpose(-2, -1), columns).transpose(-2, -1)


def _at(values: Tensor, rows: Tensor) -> Tensor:
    last = torch.tensor(values.shape[-2] - 1.0)
    rows = torch.minimum(rows.clamp(min=0), last)
    low = rows.floor()
    first, second = (values.index_select(-2, at.long()) for at in (low, torch.minimum(low + 1, last)))
    return first + (second - first) * (rows - low)[:, None]
