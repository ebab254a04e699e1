"""The mask decoder: image embedding + prompt tokens -> four masks and their predicted IoU (SAM paper, appendix A)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .common import LayerNorm2d
from .transformer import TwoWayTransformer

SINGLE = slice(0, 1)  # output 0: one mask, for prompts that leave no doubt
MULTIPLE = slice(1, 4)  # outputs 1..3: three guesses, of which the one with the best predicted IoU is used


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them."""

    def __init__(self, channels: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [channels] + [hidden] * (depth - 1) + [out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

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
        """transformer: by default SAM's, of two blocks and eight heads."""
        super().__init__()
        channels, outputs = transformer_dim, num_multimask_outputs + 1
        self.transformer_dim = transformer_dim
        self.num_multimask_outputs, self.num_mask_tokens = num_multimask_outputs, outputs
        self.transformer = transformer or TwoWayTransformer(2, transformer_dim, 8, 2048)
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
        logits, iou = self.predict_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        if multimask_output is None:
            return logits, iou
        outputs = MULTIPLE if multimask_output else SINGLE
        return logits[:, outputs], iou[:, outputs]

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As forward, for all four outputs."""
        rows = sparse_prompt_embeddings.shape[0]
        if image_embeddings.shape[0] == 1:
            image_embeddings = image_embeddings.expand(rows, -1, -1, -1)
        channels, height, width = image_embeddings.shape[1:]
        outputs = self.mask_tokens.num_embeddings
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(rows, -1, -1)
        tokens = torch.cat([own, sparse_prompt_embeddings], dim=1)
        tokens, image = self.transformer(image_embeddings + dense_prompt_embeddings, image_pe, tokens)

        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(rows, channels, height, width))
        kernels = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )  # N, outputs, C / 8
        logits = (kernels @ upscaled.flatten(2)).view(rows, outputs, *upscaled.shape[-2:])
        return logits, self.iou_prediction_head(tokens[:, 0])
