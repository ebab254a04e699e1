"""The image encoder: a plain ViT with windowed attention (ViTDet; SAM paper, section 3) and, in SAM-Med2D,
an adapter beside the MLP of every block (SAM-Med2D paper, section 3.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .common import LayerNorm2d, MLPBlock
from .lora import product_of
from .products import Linear, Packed, linear, pack

PATCH_SIZE = 16
EMBEDDING_CHANNELS = 256
WINDOW_SIZE = 14
BIASES_AT_ONCE = 2**22  # of an image or window, 16 MB: all at once they are 800 MB for 12 heads at 1024 px
PIXELS_A_CHANNEL = (
    2  # up to so many, adapters on a CPU are faster as matrix products (docs/performance.md, "The encoder")
)


class Adapter(nn.Module):
    """A channel gate, then a spatial path at half resolution, around a residual.

    x: (B, H, W, C) -> (B, H, W, C). H and W must be even.

    The last LayerNorm starts at zero, so a fresh adapter adds nothing and SAM with new adapters is SAM.
    """

    packed_down: Packed | None = None
    packed_up: Packed | None = None

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(
            Linear(channels, hidden, bias=False),
            nn.ReLU(),
            Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        gated = (x * self.channel(x.mean(dim=(1, 2), keepdim=True))).permute(0, 3, 1, 2)
        few_pixels = gated[:, 0].numel() <= PIXELS_A_CHANNEL * x.shape[-1]
        # a traced graph has to hold the convolutions: exporters to ONNX do not know `fold`
        products = x.device.type == "cpu" and not torch.jit.is_tracing() and few_pixels
        spatial = self._spatial_products(gated) if products else self.spatial(gated)
        return self.norm(x + spatial.permute(0, 2, 3, 1))

    def convolutions(self) -> tuple[nn.Conv2d, nn.ConvTranspose2d]:
        """The two of the spatial path: down by 2, and up again."""
        down, _, up, _ = self.spatial
        assert isinstance(down, nn.Conv2d) and isinstance(up, nn.ConvTranspose2d)
        return down, up

    def pack(self) -> None:
        """The weights of `_spatial_products`, for answers alone: see `Packed`."""
        down, up = self.convolutions()
        self.packed_down, self.packed_up = pack(_down_matrix(down.weight)), pack(_up_matrix(up.weight))

    def _spatial_products(self, x: Tensor) -> Tensor:
        """`spatial` as two matrix products. (B, C, H, W) -> the same shape.

        On a CPU a convolution first rearranges its weights; for a few pixels that takes longer than the arithmetic.
        """
        down, up = self.convolutions()
        size = x.shape[2:]
        neighbours = F.unfold(x, 3, padding=1, stride=2)  # B, 9 C, HW / 4
        small = linear(neighbours.transpose(1, 2), _down_matrix(down.weight), packed=self.packed_down).relu()
        spread = linear(small, _up_matrix(up.weight), packed=self.packed_up).transpose(1, 2)  # B, 16 C, HW / 4
        return F.fold(spread, size, 4, padding=1, stride=2).relu()


def _down_matrix(weight: Tensor) -> Tensor:
    """Of a convolution, (out, in, k, k) -> (out, in k k)."""
    return weight.flatten(1)


def _up_matrix(weight: Tensor) -> Tensor:
    """Of a transposed convolution, (in, out, k, k) -> (out k k, in)."""
    return weight.flatten(1).t()


class Attention(nn.Module):
    """Multi-head attention over a map or its windows, with decomposed relative positions (MViTv2, eq. 4).

    x: (B, H, W, C) -> (B, H, W, C).

    window: the side of the windows in tokens, 0 for global attention. The reference pads the map with zeros to
    whole windows, so that a padded token's q, k and v are the bias of `qkv`. Here only real tokens go through
    the linear layers and ask; the padding is filled with that bias, and is only asked: the same numbers for a third
    of the work. So windows that the edge of the map cuts off are computed apart from whole ones.
    """

    def __init__(self, channels: int, heads: int, window: int, map_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        side = window or map_size
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, channels // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, channels // heads))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        side_h, side_w = (self.window, self.window) if self.window else (height, width)
        qkv = product_of(self.qkv, x)  # without its bias, which padded tokens have too
        rows = [
            _joined([self._attended(part, side_h, side_w) for part in _whole_and_rest(strip, 2, side_w)], 2)
            for strip in _whole_and_rest(qkv, 1, side_h)
        ]
        return self.proj(_joined(rows, 1))

    def _attended(self, qkv: Tensor, side_h: int, side_w: int) -> Tensor:
        """qkv: (B, h, w, 3 C) of windows that are whole, or all cut off alike -> (B, h, w, C)."""
        batch, height, width, _ = qkv.shape
        query_h, query_w = min(side_h, height), min(side_w, width)  # padded tokens are asked nothing
        qkv = F.pad(qkv, (0, 0, 0, -width % side_w, 0, -height % side_h)) + self.qkv.bias.to(qkv.dtype)
        windows = qkv.unflatten(1, (-1, side_h)).unflatten(3, (-1, side_w))  # B, nH, sh, nW, sw, 3 C
        n_h, n_w = windows.shape[1], windows.shape[3]
        q, k, v = windows.unflatten(-1, (3, self.heads, -1)).permute(5, 0, 1, 3, 6, 2, 4, 7).unbind(0)
        q = q[..., :query_h, :query_w, :].reshape(batch * n_h * n_w, self.heads, query_h, query_w, -1)
        k, v = (keys.reshape(batch * n_h * n_w, self.heads, side_h * side_w, -1) for keys in (k, v))
        rows = max(1, BIASES_AT_ONCE // (self.heads * query_w * side_h * side_w))
        parts = []
        for first in range(0, query_h, rows):
            asking = q[:, :, first : first + rows]
            bias = self.position_bias(asking, side_h, side_w, first)
            parts.append(F.scaled_dot_product_attention(asking.flatten(2, 3), k, v, attn_mask=bias))
        attended = _joined(parts, 2).view(batch, n_h, n_w, self.heads, query_h, query_w, -1)
        return attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1)

    def position_bias(self, q: Tensor, side_h: int, side_w: int, first: int = 0) -> Tensor:
        """q: (B, heads, qh, qw, d), unscaled, its rows from `first` on -> (B, heads, qh * qw, side_h * side_w)."""
        table_h = _relative_table(self.rel_pos_h, first + q.shape[2], side_h)[first:].to(q.dtype)
        table_w = _relative_table(self.rel_pos_w, q.shape[3], side_w).to(q.dtype)
        bias_h = torch.einsum("bnhwd,hkd->bnhwk", q, table_h)
        bias_w = torch.einsum("bnhwd,wkd->bnhwk", q, table_w)
        return (bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)).flatten(4, 5).flatten(2, 3)


def _whole_and_rest(x: Tensor, dim: int, side: int) -> tuple[Tensor, ...]:
    """Cut a map behind its last whole window."""
    length = x.shape[dim]
    whole = length - length % side
    return x.split([whole, length - whole], dim) if 0 < whole < length else (x,)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """The reverse of `_whole_and_rest`; a part alone, as of global attention, is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _relative_table(rel_pos: Tensor, queries: int, keys: int) -> Tensor:
    """rel_pos: (2 * keys - 1, d), entry i + keys - 1 for a query i tokens after its key -> (queries, keys, d)."""
    offset = torch.arange(queries, device=rel_pos.device)[:, None] - torch.arange(keys, device=rel_pos.device)[None]
    return rel_pos[offset + keys - 1]


class Block(nn.Module):
    """x + attention(norm1(x)), then y = norm2(x): x + mlp(y) + Adapter(y). x: (B, H, W, C)."""

    def __init__(self, channels: int, heads: int, window: int, map_size: int, adapter: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, window, map_size)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLPBlock(channels, 4 * channels)
        self.Adapter = Adapter(channels) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        x = x + self.mlp(y)
        return x if self.Adapter is None else x + self.Adapter(y)


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, S / 16, S / 16, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Normalised images (B, 3, S, S) float -> embeddings (B, C', S / 16, S / 16), where C' is 256 in every SAM.

    global_blocks: the indexes of the blocks that attend globally; the others attend in 14 x 14 windows.
    image_size: S, a multiple of 32 (the adapters halve the map of 16-pixel patches).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        depth: int,
        heads: int,
        global_blocks: tuple[int, ...],
        adapter: bool,
        embedding: int = EMBEDDING_CHANNELS,
    ) -> None:
        super().__init__()
        if image_size % (2 * PATCH_SIZE):
            raise ValueError(f"image_size {image_size} is not a multiple of {2 * PATCH_SIZE}")
        self.img_size = image_size
        self.checkpointing = False  # True: in training each block keeps its input alone, and runs again backwards
        map_size = image_size // PATCH_SIZE
        self.patch_embed = PatchEmbed(channels)
        self.pos_embed = nn.Parameter(torch.zeros(1, map_size, map_size, channels))
        self.blocks = nn.ModuleList(
            Block(channels, heads, 0 if i in global_blocks else WINDOW_SIZE, map_size, adapter) for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(channels, embedding, kernel_size=1, bias=False),
            LayerNorm2d(embedding),
            nn.Conv2d(embedding, embedding, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(embedding),
        )

    def adapters(self) -> list[Adapter]:
        return [layer for layer in (block.Adapter for block in self.blocks) if isinstance(layer, Adapter)]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (3, self.img_size, self.img_size):
            raise ValueError(f"expected images (B, 3, {self.img_size}, {self.img_size}), got {tuple(x.shape)}")
        precision = self.pos_embed.dtype  # float32, or what `Sam.for_inference` made of it
        x = self.patch_embed(x.to(precision)) + self.pos_embed
        again = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        embeddings = self.neck(x.permute(0, 3, 1, 2))
        return embeddings if precision == torch.float32 else embeddings.float()


class ImageEncoderViT(ImageEncoder):
    """`ImageEncoder` with the arguments of SAM's own class of this name, of which these models have one value each.

    adapter_train: an adapter in every block, as SAM-Med2D's class calls it. out_chans: channels of the embeddings.
    Raises ValueError: an argument with a value that no SAM has.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = PATCH_SIZE,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        out_chans: int = EMBEDDING_CHANNELS,
        qkv_bias: bool = True,
        norm_layer: Callable[..., nn.Module] | None = None,
        act_layer: type[nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        window_size: int = WINDOW_SIZE,
        global_attn_indexes: tuple[int, ...] = (),
        adapter_train: bool = False,
    ) -> None:
        """norm_layer: taken for LayerNorm with an epsilon of 1e-6; rel_pos_zero_init: they always start at zero."""
        fixed = {
            "patch_size": (patch_size, PATCH_SIZE),
            "in_chans": (in_chans, 3),
            "mlp_ratio": (mlp_ratio, 4),
            "qkv_bias": (qkv_bias, True),
            "act_layer": (act_layer, nn.GELU),
            "use_abs_pos": (use_abs_pos, True),
            "use_rel_pos": (use_rel_pos, True),
            "window_size": (window_size, WINDOW_SIZE),
        }
        other = [f"{name} {given}, not {ours}" for name, (given, ours) in fixed.items() if given != ours]
        if other:
            raise ValueError(f"an image encoder that SAM has not: {'; '.join(other)}")
        super().__init__(img_size, embed_dim, depth, num_heads, tuple(global_attn_indexes), adapter_train, out_chans)


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """A map (B, H, W, C) -> its windows (B * windows, window_size, window_size, C), and its height and width with the
    zeros at the right and below that made them whole."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    windows = x.unflatten(1, (-1, window_size)).unflatten(3, (-1, window_size)).transpose(2, 3)
    return windows.flatten(0, 2), (x.shape[1], x.shape[2])


def window_unpartition(windows: Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """The reverse of `window_partition`: windows and the two sizes, with padding and without -> (B, H, W, C)."""
    rows, columns = pad_hw[0] // window_size, pad_hw[1] // window_size
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : hw[0], : hw[1]]
