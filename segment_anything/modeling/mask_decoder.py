"""The mask decoder: image embedding + prompt tokens -> four masks and their predicted IoU (SAM paper, appendix A)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import LayerNorm2d
from .products import Linear, is_recorded, linear, may_be_shortened
from .transformer import TwoWayTransformer

SINGLE = slice(0, 1)  # output 0: one mask, for prompts that leave no doubt
MULTIPLE = slice(1, 4)  # outputs 1..3: three guesses, of which the one with the best predicted IoU is used
ALL = slice(0, 4)


def once(maps: Tensor) -> Tensor:
    """Maps of N objects, (N, C, h, w) -> the one map of all, (1, C, h, w), where they were expanded from it."""
    return maps if is_recorded() or maps.stride(0) else maps[:1]


def _fourfold(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2: (..., C) -> (..., 4, C'), the four pixels row by row."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # 4 C', C
    return linear(x, weight, None if layer.bias is None else layer.bias.repeat(4)).unflatten(-1, (4, -1))


def _normalised(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """A `LayerNorm2d` of what has its channels last."""
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them."""

    def __init__(self, channels: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [channels] + [hidden] * (depth - 1) + [out]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    def __init__(
        self,
        *,
        transformer_dim: int,
        transformer: nn.Module | None = None,
        num_multimask_outputs: int = 3,
        activation: type[nn.Module] = nn.GELU,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
    ) -> None:
        """transformer: by default SAM's, of two blocks and eight heads, whose MLPs are eight times as wide as it."""
        super().__init__()
        channels, outputs = transformer_dim, num_multimask_outputs + 1
        self.transformer_dim = transformer_dim
        self.num_multimask_outputs, self.num_mask_tokens = num_multimask_outputs, outputs
        self.transformer = transformer or TwoWayTransformer(2, transformer_dim, 8, 8 * transformer_dim)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(outputs, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            activation(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            activation(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8, 3) for _ in range(outputs)
        )
        self.iou_prediction_head = MLP(channels, iou_head_hidden_dim, outputs, iou_head_depth)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool | None,
    ) -> tuple[Tensor, Tensor]:
        """image_embeddings: (N, C, h, w), one for each object, or (1, C, h, w) for all; image_pe: (1 or N, C, h, w);
        sparse_prompt_embeddings: (N, T, C); dense_prompt_embeddings: (N, C, h, w).
        multimask_output: True gives outputs 1..3, False output 0, None all four in order.
        -> logits (N, K, 4h, 4w), predicted IoU (N, K)."""
        outputs = ALL if multimask_output is None else MULTIPLE if multimask_output else SINGLE
        return self.predict_masks(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, outputs
        )

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        wanted: slice = ALL,
    ) -> tuple[Tensor, Tensor]:
        """As forward, for those of the four outputs that are wanted."""
        tokens, image = self._attended(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        logits = self._logits_of(tokens, image, image_embeddings.shape[2:], wanted)
        return logits, self.iou_prediction_head(tokens[:, 0])[:, wanted]

    def predict_sure(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        least_iou: float,
    ) -> tuple[Tensor, Tensor]:
        """The three guesses as of `forward`, but only the masks whose predicted IoU is at least so much.

        -> logits (M, 4h, 4w), object by object; predicted IoU of all (N, 3).
        """
        tokens, image = self._attended(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        iou = self.iou_prediction_head(tokens[:, 0])[:, MULTIPLE]
        sure = iou >= least_iou
        some = sure.any(dim=1)
        return self._logits_of(tokens[some], image[some], image_embeddings.shape[2:], MULTIPLE)[sure[some]], iou

    def _attended(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> tokens (N, 1 + outputs + T, C), the first for the predicted IoU; image (N, hw, C)."""
        rows = sparse.shape[0]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(rows, -1, -1)
        image = once(image_embeddings) + once(dense)
        if is_recorded() or not rows:  # a traced graph has to hold every row
            image = image.expand(rows, -1, -1, -1)
        return self.transformer(image, image_pe, torch.cat([own, sparse], dim=1))

    def _logits_of(self, tokens: Tensor, image: Tensor, size: tuple[int, ...], wanted: slice) -> Tensor:
        """What `_attended` made, and the (h, w) of the image -> logits (N, K, 4h, 4w) of the outputs wanted."""
        of_outputs = tokens[:, 1 : 1 + self.num_mask_tokens].unbind(1)[wanted]
        networks = list(self.output_hypernetworks_mlps)[wanted]
        kernels = torch.stack([network(token) for network, token in zip(networks, of_outputs)], dim=1)  # N, K, C / 8
        if may_be_shortened(image):
            return self._logits_by_products(image, kernels, size)
        rows, _, channels = image.shape  # not len(image): a traced graph has to hold any number of rows
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(rows, channels, *size))
        return (kernels @ upscaled.flatten(2)).view(rows, kernels.shape[1], *upscaled.shape[-2:])

    def _logits_by_products(self, image: Tensor, kernels: Tensor, size: tuple[int, ...]) -> Tensor:
        """`output_upscaling` and the product with the kernels, the channels of every pixel side by side throughout: a
        transposed convolution whose windows do not overlap is a product that writes four pixels for one.

        image: (N, HW, C); kernels: (N, K, C / 8) -> (N, K, 4 H, 4 W).
        """
        first, norm, act, second, last_act = self.output_upscaling
        assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        x = last_act(_fourfold(second, act(_normalised(norm, _fourfold(first, image)))))  # N, HW, 4, 4, C / 8
        logits = x.flatten(1, 3) @ kernels.transpose(1, 2)
        parts = logits.view(len(image), *size, 2, 2, 2, 2, kernels.shape[1])  # N, H, W, y x of each doubling, K
        return parts.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(*kernels.shape[:2], 4 * size[0], 4 * size[1])
