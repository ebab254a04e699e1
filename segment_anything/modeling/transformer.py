"""The two-way transformer of the mask decoder (SAM paper, appendix A, "Lightweight mask decoder").

A handful of tokens meets hundreds of places of the image. Where nothing is learned, attention between the two is
therefore computed around the tokens: what a projection of the image would be multiplied by is multiplied by the
projection's weight first, (x W) q = x (W q), and no keys, queries or values of the image come to be. With 7 tokens and
8 heads that is 56 columns in place of 128 each time, and the numbers are the same but for their rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import MLPBlock
from .products import Linear, is_recorded, may_be_shortened


class Attention(nn.Module):
    """Multi-head attention whose inner width is `embedding_dim / downsample_rate`. q: (N, Q, C), k, v: (N, K, C)."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.embedding_dim, self.num_heads = embedding_dim, num_heads
        self.internal_dim = embedding_dim // downsample_rate
        self.q_proj = Linear(embedding_dim, self.internal_dim)
        self.k_proj = Linear(embedding_dim, self.internal_dim)
        self.v_proj = Linear(embedding_dim, self.internal_dim)
        self.out_proj = Linear(self.internal_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(_attended(q, k, v).transpose(1, 2).flatten(2))

    def of_tokens(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`forward`, by which tokens (N, T, C) ask the image: keys, values (N, K, C), or (1, K, C) of all."""
        rows, count = tokens.shape[:2]
        if (
            not is_recorded() and len(keys) < rows
        ):  # one image: its keys and values are projected once, for the tokens of all objects
            return self(tokens.reshape(1, rows * count, -1), keys, values).view(rows, count, -1)
        if not self._is_short(tokens):
            return self(tokens, keys, values)
        q = self._heads(self.q_proj(tokens)) * (self.internal_dim // self.num_heads) ** -0.5
        # attention adds up to 1 over the values' bias; a key's adds the same to all scores of a token
        bias = self._by_object(q @ self.k_proj.bias.view(self.num_heads, -1, 1), rows)
        of_keys = self._by_object(q @ self._of_heads(self.k_proj), rows)
        scores = torch.baddbmm(bias, of_keys, keys.transpose(1, 2))
        seen = self._by_head(scores.softmax(dim=2) @ values, rows)  # heads, N T, C
        attended = (seen @ self._of_heads(self.v_proj).transpose(1, 2)).transpose(0, 1).reshape(rows, count, -1)
        return self.out_proj(attended + self.v_proj.bias)

    def of_image(self, image: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`forward`, by which the image asks tokens, and the sum of image and answer.

        image, queries: (N, Q, C), or (1, Q, C) of all; keys, values: (N, T, C) -> (N, Q, C).
        """
        rows, count = keys.shape[:2]
        if not self._is_short(keys):
            return image + self(queries.expand(rows, -1, -1), keys, values)
        k = self._heads(self.k_proj(keys)) * (self.internal_dim // self.num_heads) ** -0.5  # heads, N T, d
        if len(queries) < rows:
            scores = self._by_object(k @ self._heads(self.q_proj(queries)).transpose(1, 2), rows)
        else:
            bias = self.q_proj.bias.view(self.num_heads, -1, 1)
            scores = torch.baddbmm(
                self._by_object(k @ bias, rows),
                self._by_object(k @ self._of_heads(self.q_proj), rows),
                queries.transpose(1, 2),
            )  # N, heads T, Q
        shares = scores.view(rows, self.num_heads, count, -1).softmax(dim=2).flatten(1, 2)
        into = self.out_proj.weight.view(self.embedding_dim, self.num_heads, -1).permute(1, 2, 0)  # heads, d, C
        said = self._by_object(self._heads(self.v_proj(values)) @ into, rows)  # N, heads T, C
        said = said + self.out_proj.bias / self.num_heads  # the shares of each head add up to 1
        return torch.baddbmm(image, shares.transpose(1, 2), said)

    def _is_short(self, tokens: Tensor) -> bool:
        """Whether `of_tokens` and `of_image` go around the tokens (N, T, C): they are few, and nothing forbids it."""
        layers = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        plain = all(type(layer) is Linear for layer in layers)  # none has a LoRA pair
        if not plain or not may_be_shortened(tokens):
            return False  # without a look at the sizes, which a graph leaves open
        return 0 < self.num_heads * tokens.shape[1] < self.internal_dim and len(tokens) > 0

    def _heads(self, projected: Tensor) -> Tensor:
        """(N, T, heads d) -> (heads, N T, d)."""
        return projected.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

    def _of_heads(self, projection: Linear) -> Tensor:
        """Its weight, (heads, d, C)."""
        return projection.weight.view(self.num_heads, -1, self.embedding_dim)

    def _by_object(self, values: Tensor, rows: int) -> Tensor:
        """(heads, N T, X) -> (N, heads T, X)."""
        return values.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)

    def _by_head(self, values: Tensor, rows: int) -> Tensor:
        """(N, heads T, X) -> (heads, N T, X)."""
        return values.view(rows, self.num_heads, -1, values.shape[-1]).transpose(0, 1).flatten(1, 2)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, heads, Q, d), (N, heads, K, d) twice -> (N, heads, Q, d).

    On a CPU the way back takes four times as long in bfloat16 as in float32, so what is learned is learned in that.
    """
    if q.device.type != "cpu" or q.dtype == torch.float32 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves, then to the image, pass an MLP, and the image attends to the tokens."""

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
    ) -> None:
        """skip_first_layer_pe: of the first block, whose tokens are still their own positions."""
        super().__init__()
        self.skip_first_layer_pe = skip_first_layer_pe
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, attention_downsample_rate)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, activation)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, attention_downsample_rate)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """tokens, token_pe: (N, T, C); image: (N, HW, C), or (1, HW, C) of all; image_pe: (1 or N, HW, C).

        -> tokens (N, T, C), image (N, HW, C).
        """
        if self.skip_first_layer_pe:  # no residual, and no positions to add
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)

        placed_image = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.of_tokens(tokens + token_pe, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(self.cross_attn_image_to_token.of_image(image, placed_image, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(
                embedding_dim, num_heads, mlp_dim, activation, attention_downsample_rate, skip_first_layer_pe=i == 0
            )
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, attention_downsample_rate)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image: (N, C, H, W), or (1, C, H, W) of all objects; image_pe: (1 or N, C, H, W); tokens: (N, T, C), which
        are their own positions. -> tokens (N, T, C), image (N, HW, C)."""
        image = image.flatten(2).transpose(1, 2)
        image_pe = image_pe.flatten(2).transpose(1, 2)
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image.of_tokens(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
