"""What is exported: modules of the same numbers as `Sam`, with the inputs and outputs that ONNX clients know.

Two layers are rewritten, because runtimes on a CPU gain by it: attention (0.9 of the encoder's time in ONNX Runtime)
and the adapter, whose convolutions become matrix products, which every runtime also has in int8 (there is no int8
transposed convolution in ONNX Runtime). `exporting.py` compares with the eager model before a file is written.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_med2d.errors import UsageError
from sam_med2d.export.places import Back, Places, length, up_to
from segment_anything import ABSENT, MULTIPLE, Prediction, Sam, best_of
from segment_anything.frames import SAM, mask_prompt
from segment_anything.modeling.image_encoder import Adapter, Attention, Block, ImageEncoder
from segment_anything.modeling.image_encoder import _relative_table as relative_table
from segment_anything.modeling.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from segment_anything.modeling.refinement import marks_of
from segment_anything.utils.onnx import stability_of


class AttentionGraph(nn.Module):
    """`Attention` for a map of known size. x: (B, H, W, C) -> (B, H, W, C).

    - Only real tokens ask. Windows that the map's edge cuts are a group of their own, so that at 16 x 16 tokens
      256 queries are computed and not 784.
    - Relative positions join the product of queries and keys: q is extended by its products with the tables, k by
      a constant that picks the row's and the column's, and no bias of queries x keys is ever built.
    - The scale is in the weights of q.
    """

    table_h: Tensor
    table_w: Tensor
    picks: Tensor

    def __init__(self, attention: Attention, map_size: int, batch: int | None) -> None:
        super().__init__()
        self.heads, self.map_size, self.batch = attention.heads, map_size, batch
        self.side = attention.window or map_size
        weight, bias = attention.qkv.weight.detach(), attention.qkv.bias.detach()
        channels = weight.shape[1]
        scale = (channels // self.heads) ** -0.5
        self.q_weight = nn.Parameter((weight[:channels] * scale).T.contiguous())
        self.q_bias = nn.Parameter(bias[:channels] * scale)
        self.kv_weight = nn.Parameter(weight[channels:].T.contiguous())
        self.kv_bias = nn.Parameter(bias[channels:].clone())
        self.proj = attention.proj
        for axis in "hw":  # (d, keys) for each query; the reference does not scale q here, so the scale is taken out
            table = relative_table(getattr(attention, f"rel_pos_{axis}").detach(), min(self.side, map_size), self.side)
            self.register_buffer(f"table_{axis}", (table / scale).transpose(1, 2).contiguous())
        row_and_column = torch.eye(self.side)
        self.register_buffer(
            "picks",
            torch.cat([row_and_column.repeat_interleave(self.side, 0), row_and_column.repeat(self.side, 1)], dim=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = x @ self.q_weight + self.q_bias
        kv = x @ self.kv_weight
        padding = -self.map_size % self.side
        if padding:
            kv = F.pad(kv, (0, 0, 0, padding, 0, padding))
        kv = kv + self.kv_bias  # after the padding, which has it too
        whole, rest = divmod(self.map_size, self.side)
        spans = [(0, whole, self.side)] * bool(whole) + [(whole, 1, rest)] * bool(rest)  # first window, windows, side
        strips = [torch.cat([self._windows(q, kv, *rows, *columns) for columns in spans], dim=2) for rows in spans]
        return self.proj(torch.cat(strips, dim=1))

    def _windows(
        self, q: Tensor, kv: Tensor, row: int, rows: int, height: int, column: int, columns: int, width: int
    ) -> Tensor:
        """rows x columns windows from (row, column) on, of height x width queries each -> their part of the map."""
        batch = self.batch or q.shape[0]
        side, heads, channels = self.side, self.heads, q.shape[-1]
        top, left = row * side, column * side
        q = q[:, top : top + rows * height, left : left + columns * width]
        q = q.reshape(batch, rows, height, columns, width, heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
        q = q.reshape(batch * rows * columns, heads, height, width, -1)
        kv = kv[:, top : top + rows * side, left : left + columns * side]
        kv = kv.reshape(batch, rows, side, columns, side, 2, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        k, v = kv.reshape(2, batch * rows * columns, heads, side * side, -1).unbind(0)

        by_row = q @ self.table_h[:height]
        by_column = (q.transpose(2, 3) @ self.table_w[:width]).transpose(2, 3)
        q = torch.cat([q, by_row, by_column], dim=-1).flatten(2, 3)
        k = torch.cat([k, self.picks.expand(batch * rows * columns, heads, -1, -1)], dim=-1)
        attended = (q @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        attended = attended.reshape(batch, rows, columns, heads, height, width, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return attended.reshape(batch, rows * height, columns * width, channels)


class AdapterGraph(nn.Module):
    """`Adapter` with its convolutions as products of gathered neighbourhoods and a weight matrix. (B, H, W, C).

    The transposed convolution (4 x 4, stride 2) is four 2 x 2 convolutions, one for each parity of output row and
    column. (The products of `Adapter` itself end in a `fold`, which opset 17 has not, and whose sums int8 would round.)
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.channel, self.norm = adapter.channel, adapter.norm
        down, up = (layer.weight.detach() for layer in adapter.convolutions())  # (out, in, 3, 3), (in, out, 4, 4)
        self.down = nn.Parameter(down.permute(2, 3, 1, 0).reshape(-1, down.shape[0]).contiguous())
        taps = ([3, 1], [2, 0])  # of the kernel, that meet input i - 1 and i (even outputs), or i and i + 1 (odd ones)
        self.up = nn.ParameterList(
            up[:, :, rows][:, :, :, columns].permute(2, 3, 0, 1).reshape(-1, up.shape[1]).contiguous()
            for rows in taps
            for columns in taps
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        gated = F.pad(x * self.channel(x.mean(dim=(1, 2), keepdim=True)), (0, 0, 1, 0, 1, 0))
        near = [gated[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for i in range(3) for j in range(3)]
        # the ReLU after the padding: directly behind the product it keeps ONNX Runtime from computing that in int8
        small = F.pad(torch.cat(near, dim=-1) @ self.down, (0, 0, 1, 1, 1, 1)).relu()
        h, w = height // 2, width // 2
        parities = []
        for number, weight in enumerate(self.up):
            top, left = divmod(number, 2)
            near = [small[:, i : i + h, j : j + w] for i in (top, top + 1) for j in (left, left + 1)]
            parities.append(torch.cat(near, dim=-1) @ weight)
        up = torch.stack(parities).reshape(2, 2, -1, h, w, channels).permute(2, 3, 0, 4, 1, 5)
        return self.norm(x + up.reshape(-1, height, width, channels).relu())


class EncoderGraph(nn.Module):
    """input_image -> image_embeddings (B, 256, S/16, S/16).

    input_image: (B, 3, S, S) float, normalised, BGR; RGB for a model in SAM's frame. With `preprocess`: (H, W, 3)
    float, one BGR image of any size with values 0..255; stretching (nearest neighbour) and normalisation are then part
    of the graph.
    batch: a fixed B, which runtimes plan for, or None for any.
    rgb: input_image is RGB, normalised in that order, for clients that know no other, whatever the model reads.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: Sam, *, preprocess: bool = False, batch: int | None = 1, rgb: bool = False) -> None:
        super().__init__()
        if preprocess and model.frame == SAM:
            raise UsageError("--use-preprocess is for models in SAM-Med2D's frame; this one is in SAM's: leave it out")
        encoder: ImageEncoder = model.image_encoder
        self.image_size, self.preprocess, self.batch = model.image_size, preprocess, batch
        self.turned = rgb and model.image_format == "BGR"
        self.patch_embed, self.pos_embed, self.neck = encoder.patch_embed, encoder.pos_embed, encoder.neck
        self.blocks = nn.ModuleList(self._block(block) for block in encoder.blocks if isinstance(block, Block))
        self.places = Places(model.image_size) if preprocess else None
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())

    def _block(self, block: Block) -> Block:
        rewritten = copy.copy(block)  # a block of the same weights; the model keeps its own layers
        rewritten._modules = dict(block._modules)
        layers = rewritten._modules
        layers["attn"] = AttentionGraph(block.attn, self.image_size // 16, self.batch)
        layers["Adapter"] = None if block.Adapter is None else AdapterGraph(block.Adapter)
        return rewritten

    def forward(self, input_image: Tensor) -> Tensor:
        x = self._preprocessed(input_image) if self.preprocess else input_image
        if self.turned:  # each place of the three has its own mean and deviation, whichever colour stands there
            x = ((x * self.pixel_std + self.pixel_mean).flip(1) - self.pixel_mean) / self.pixel_std
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

    def _preprocessed(self, image: Tensor) -> Tensor:
        assert self.places is not None, "a graph with `preprocess` has it"
        # sides as tensors, which both exporters keep variable
        rows, columns = (self.places(torch.arange(side)[-1] + 1) for side in image.shape[:2])
        stretched = image[rows][:, columns]
        return ((stretched.permute(2, 0, 1) - self.pixel_mean) / self.pixel_std).unsqueeze(0)


class DecoderGraph(nn.Module):
    """Prompt encoder, mask decoder and upscaling, for N objects.

    image_embeddings  (N or 1, 256, S/16, S/16); one row serves all objects
    point_coords      (N, P, 2) xy in the S x S frame
    point_labels      (N, P) float: 1 foreground, 0 background, -1 absent, 2 and 3 the corners of a box
    mask_input        (N or 1, 1, S/4, S/4), probabilities; logits with `logits_in`
    has_mask_input    (N or 1,) float: 1 where mask_input counts
    orig_im_size      (2,) float: height and width of the masks that come out
    -> masks (N, K, H, W) and low_res_masks (N, K, S/4, S/4), logits; iou_predictions (N, K)

    K is 4, SAM's single mask first; with `single_mask` 1, the best of the other three by predicted IoU, as the eager
    model is used. Where objects have points but no box, the eager model appends one absent point. So does the graph,
    unless the last point of all objects is absent already: clients of SAM send it, clients of SAM-Med2D do not. Behind
    the corners of a box, where clients send it too, it is dropped.

    stability_score: in place of the predicted IoU. extra_metrics: five outputs, see `output_names`.
    longest_side: for clients that scaled the longest side to S and padded at the right and the bottom.
    logits_in: the sigmoid of mask_input is taken inside, for clients that feed low_res_masks back as they are, as those
    of SAM do.
    paper: masks are enlarged by the original's mapping. It has no part in `longest_side`, whose clients resize by
    pixels' centres.
    A model in SAM's frame always has longest_side and logits_in, and reads the logits as they are.
    """

    image_pe: Tensor

    def __init__(
        self,
        model: Sam,
        *,
        single_mask: bool = False,
        stability_score: bool = False,
        extra_metrics: bool = False,
        longest_side: bool = False,
        logits_in: bool = False,
        paper: bool = False,
    ) -> None:
        super().__init__()
        self.prompt_encoder = model.prompt_encoder
        self.mask_decoder = model.mask_decoder
        self.image_size = model.image_size
        self.single_mask, self.stability_score = single_mask, stability_score
        self.frame = model.frame
        self.extra_metrics, self.longest_side = extra_metrics, longest_side or self.frame == SAM
        self.logits_in, self.paper = logits_in or self.frame == SAM, paper
        self.back = None if paper or self.longest_side else Back(model.image_size)
        self.register_buffer("image_pe", model.prompt_encoder.get_dense_pe().detach().clone())

    @property
    def output_names(self) -> list[str]:
        extra = ["stability_scores", "areas"] if self.extra_metrics else []
        return ["masks", "iou_predictions", *extra, "low_res_masks"]

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        low_res, scores = self.answer(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
        masks = self._upscale(low_res, orig_im_size)
        extra = (stability_of(masks), (masks > 0).sum(dim=(-2, -1)).float()) if self.extra_metrics else ()
        return masks, scores, *extra, low_res

    def answer(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All but the upscaling: low_res_masks (N, K, S/4, S/4), iou_predictions (N, K)."""
        rows = point_coords.shape[0]
        if self.logits_in:
            mask_input = mask_prompt(self.frame, mask_input)
        dense = torch.where(
            for_each(rows, has_mask_input).reshape(-1, 1, 1, 1) > 0.5,
            for_each(rows, self.prompt_encoder.mask_downscaling(mask_input)),
            self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        )
        low_res, scores = self.mask_decoder.predict_masks(
            for_each(rows, image_embeddings), self.image_pe, self._tokens(point_coords, point_labels), dense
        )
        if self.stability_score:
            scores = stability_of(low_res)
        if self.single_mask:
            low_res, scores = best_of(Prediction(low_res[:, MULTIPLE], scores[:, MULTIPLE]))
        return low_res, scores

    def _tokens(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        rows, points = labels.shape
        # sums, and a first label that is absent, because there are objects without any point
        boxes = (labels >= TOP_LEFT).sum()
        last = torch.cat([labels.new_full((rows, 1), ABSENT), labels], dim=1)[:, -1]
        wanted = ((boxes == 0) & ((last != ABSENT).sum() > 0)).reshape(1)  # whether an absent point is appended
        padded = (boxes > 0) & ((last != ABSENT).sum() == 0)  # behind a box clients append it too; the model has none
        number = torch.arange(points + 1)
        kept = ((number < points - 1) | ((number == points - 1) & ~padded) | ((number == points) & wanted)).nonzero()
        kept = kept.reshape(-1)
        coordinates = torch.cat([coordinates, coordinates.new_zeros(rows, 1, 2)], dim=1).index_select(1, kept)
        labels = torch.cat([labels, labels.new_full((rows, 1), ABSENT)], dim=1).index_select(1, kept)
        return self.prompt_encoder._embed_points(coordinates, labels)

    def _upscale(self, low_res: Tensor, size: Tensor) -> Tensor:
        frame = (self.image_size, self.image_size)
        masks = F.interpolate(low_res, size=frame, mode="bilinear", align_corners=False)
        if self.longest_side:
            content = (size * (self.image_size / size.max()) + 0.5).floor().long()
            masks = masks.index_select(-2, up_to(content[0])).index_select(-1, up_to(content[1]))
        height, width = size.long()
        if self.back is not None:
            return self.back(masks, height, width)
        return F.interpolate(masks, size=(length(height), length(width)), mode="bilinear", align_corners=False)


class RefinementGraph(nn.Module):
    """The refinement network, for one answer of each of N objects.

    input_image     (N or 1, 3, S, S) as the encoder reads it: normalised, BGR
    low_res_masks   (N, 1, S/4, S/4), the decoder's logits
    point_coords, point_labels, mask_input, has_mask_input: as the decoder reads them; mask_input holds probabilities
    strokes         (N or 1, 2, S, S) float, 1 where a person drew on the object, and on the background
    -> refined_masks (N, 1, S, S), logits

    The picture is looked at in every answer: that costs less than to hand over what was seen of it.
    """

    def __init__(self, model: Sam) -> None:
        super().__init__()
        assert model.refinement is not None, "asked of a model that has the part"
        self.refinement, self.image_size = model.refinement, model.image_size

    def forward(
        self,
        input_image: Tensor,
        low_res_masks: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        strokes: Tensor,
    ) -> Tensor:
        rows = low_res_masks.shape[0]
        corners = [
            (point_coords * (point_labels == corner)[..., None]).sum(dim=1) for corner in (TOP_LEFT, BOTTOM_RIGHT)
        ]
        marks = marks_of(
            self.image_size,
            rows,
            low_res_masks.device,
            point_coords,
            point_labels,
            torch.cat(corners, dim=1),  # of an object without a box an area of nothing, which is no mark
            for_each(rows, strokes) > 0.5,
        )
        earlier = for_each(rows, mask_input * (has_mask_input.reshape(-1, 1, 1, 1) > 0))
        details = for_each(rows, self.refinement.look(input_image))
        return self.refinement(details, low_res_masks, earlier, marks)


def for_each(rows: int, values: Tensor) -> Tensor:
    """(rows or 1, ...) -> (rows, ...). By an index, because `expand` asks which of the two it is."""
    return values.index_select(0, torch.arange(rows).clamp(max=values.shape[0] - 1))


def approximate_gelu(model: nn.Module) -> None:
    """Replace the exact GELU by its tanh approximation, for runtimes without a fast erf."""
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
