"""The prompt encoder: points, boxes and masks -> tokens and a dense map (SAM paper, section 3 and appendix A)."""

import math

import torch
from torch import Tensor, nn

from .common import LayerNorm2d
from .products import is_recorded

BACKGROUND, FOREGROUND, ABSENT = 0, 1, -1  # labels of a point
TOP_LEFT, BOTTOM_RIGHT = 2, 3  # a box is two points of these kinds


class PositionEmbeddingRandom(nn.Module):
    """Fourier features of positions in the unit square, by a fixed Gaussian matrix (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int = 64, scale: float | None = None) -> None:
        """scale: the deviation of the matrix; None or a number that is not above 0: 1."""
        super().__init__()
        deviation = scale if scale is not None and scale > 0 else 1.0
        self.register_buffer("positional_encoding_gaussian_matrix", deviation * torch.randn(2, num_pos_feats))
        self._kept: tuple[tuple[object, ...], Tensor] | None = None  # a grid, and what it was made of

    def forward(self, size: tuple[int, int]) -> Tensor:
        """The features of the cell centres of a map of (height, width): (2 * num_pos_feats, height, width).

        They are kept for the next call, as long as neither the size nor the matrix changes; do not write into them.
        """
        matrix = self.positional_encoding_gaussian_matrix
        if is_recorded() or matrix.is_inference():
            return self.grid(*size)
        made_of = (size, matrix.device, matrix.dtype, matrix.data_ptr(), matrix._version)
        if self._kept is None or self._kept[0] != made_of:
            with torch.inference_mode(False):  # or it could not be learned with afterwards
                grid = self.grid(*size)
            if type(grid) is not Tensor:  # one without values, of a mode that only counts operations
                return grid
            self._kept = made_of, grid
        return self._kept[1]

    def __getstate__(self) -> dict[str, object]:
        """Without what is kept: a copy's matrix lies elsewhere."""
        return {**self.__dict__, "_kept": None}

    def forward_with_coords(self, coords_input: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Points (..., 2) xy of an image of (height, width) -> their features (..., 2 * num_pos_feats)."""
        height, width = image_size
        return self._pe_encoding(coords_input.float() / coords_input.new_tensor([width, height], dtype=torch.float32))

    def _pe_encoding(self, xy: Tensor) -> Tensor:
        """xy: (..., 2) float in 0..1 -> (..., 2 * num_pos_feats). SAM's own export calls it by this name."""
        # float32 throughout: bfloat16 cannot tell neighbouring pixels apart
        with torch.autocast(xy.device.type, enabled=False):
            angles = (2 * xy.float() - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
            return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """As `forward`."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        xy = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self._pe_encoding(xy).permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Prompts in the frame of the input image (pixels, x then y) -> what the mask decoder reads.

    Sizes are (height, width): of the input image in pixels, and of the image embedding.
    """

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int = 16,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        channels, mask_channels = embed_dim, mask_in_chans
        self.embed_dim = embed_dim
        self.image_embedding_size, self.input_image_size = image_embedding_size, input_image_size
        self.mask_input_size = (4 * image_embedding_size[0], 4 * image_embedding_size[1])
        self.num_point_embeddings = 4
        self.pe_layer = PositionEmbeddingRandom(channels // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            activation(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            activation(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    def get_dense_pe(self) -> Tensor:
        """The positions of the image embedding: (1, C, *image_embedding_size)."""
        return self.pe_layer(self.image_embedding_size).unsqueeze(0)

    def forward(
        self, points: tuple[Tensor, Tensor] | None = None, boxes: Tensor | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """points: coordinates (N, P, 2) and labels (N, P); boxes: (N, 4) xyxy; masks: (N, 1, S/4, S/4), see
        `Sam.mask_prompt`. Any may be None; where all are, N is 1.
        -> tokens (N, T, C), dense map (N, C, *image_embedding_size)."""
        given = [p for p in (points[0] if points is not None else None, boxes, masks) if p is not None]
        rows = given[0].shape[0] if given else 1
        tokens = [self.no_mask_embed.weight.new_zeros(rows, 0, self.embed_dim, dtype=torch.float32)]
        if points is not None:
            coordinates, labels = points
            if boxes is None:  # SAM was trained with one absent point wherever there is no box
                coordinates = torch.cat([coordinates, coordinates.new_zeros(rows, 1, 2)], dim=1)
                labels = torch.cat([labels, labels.new_full((rows, 1), ABSENT)], dim=1)
            tokens.append(self._embed_points(coordinates, labels))
        if boxes is not None:
            corners = labels_of_corners(boxes)
            tokens.append(self._embed_points(boxes.reshape(-1, 2, 2), corners))
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(rows, -1, *self.image_embedding_size)
        return torch.cat(tokens, dim=1), dense

    def _embed_points(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        """coordinates: (N, P, 2), labels: (N, P) in -1..3 -> (N, P, C)."""
        centres = coordinates.float() + 0.5
        positions = self.pe_layer.forward_with_coords(centres, self.input_image_size)
        kinds = torch.cat([layer.get_parameter("weight") for layer in (self.not_a_point_embed, *self.point_embeddings)])
        kind = kinds[labels.long() + 1]
        return torch.where((labels == ABSENT).unsqueeze(-1), kind, positions + kind)


def labels_of_corners(boxes: Tensor) -> Tensor:
    """boxes: (N, 4) -> (N, 2) point labels: top left, bottom right."""
    return torch.arange(TOP_LEFT, BOTTOM_RIGHT + 1, device=boxes.device).expand(boxes.shape[0], 2)
