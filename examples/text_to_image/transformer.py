"""The transformer: packed latents of any sizes in, velocities out, no padding anywhere."""

from dataclasses import asdict, dataclass
from itertools import accumulate
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import gelu, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention

from stae_cli import PackedLatents

MERGE = 2  # latent positions on a side of one token
WORDS = 4096  # rows of the table of words


def merged(latents: list[Tensor]) -> PackedLatents:
    """Latents (C, h, w) to tokens of 2x2 positions each: (N, 4 C). An odd row or column is cut."""
    even = [z[:, : z.shape[1] // MERGE * MERGE, : z.shape[2] // MERGE * MERGE] for z in latents]
    return PackedLatents.pack([pixel_unshuffle(z, MERGE) for z in even])


def unmerged(packed: PackedLatents) -> list[Tensor]:
    """The inverse of `merged`."""
    return [pixel_shuffle(z, MERGE) for z in packed.unpack()]


def word_numbers(caption: str) -> list[int]:
    """Each word as a row of the table, by its hash: no vocabulary has to be kept."""
    words = "".join(c if c.isalnum() else " " for c in caption.lower()).split()
    return [crc32(word.encode()) % WORDS for word in words]


@dataclass(frozen=True)
class Layout:
    """Where each token of a pack belongs; made once per batch, used by every layer."""

    counts: list[int]  # tokens of each picture
    starts: Tensor  # (B + 1,) int32: where each picture's tokens begin
    owner: Tensor  # (N,): the picture of each token
    place: Tensor  # (N, 2): row and column in [-1, 1]
    cos: Tensor  # (N, 1, head / 2): the rotations of 2-D rotary positions
    sin: Tensor

    @classmethod
    def of(cls, sizes: tuple[tuple[int, int], ...], head: int, device: torch.device) -> "Layout":
        """The layout of pictures of these grids, for attention heads of `head` channels."""
        counts = [height * width for height, width in sizes]
        grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in sizes]
        places = [(2 * g + 1) / torch.tensor(s) - 1 for g, s in zip(grids, sizes, strict=True)]
        # Rows turn the first half of a head's channel pairs, columns the second.
        frequencies = 100.0 ** -(torch.arange(head // 4) / (head // 4))
        angles = (torch.cat(grids)[..., None] * frequencies).flatten(1)[:, None]
        parts = (
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            torch.arange(len(sizes)).repeat_interleave(torch.tensor(counts)),
            torch.cat(places),
            angles.cos(),
            angles.sin(),
        )
        return cls(counts, *(part.to(device) for part in parts))

    def rotated(self, x: Tensor) -> Tensor:
        """(N, heads, head), each pair of channels turned by its token's position."""
        one, other = x.chunk(2, dim=-1)
        turned = (one * self.cos - other * self.sin, one * self.sin + other * self.cos)
        return torch.cat(turned, dim=-1)


def attention_within(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention (N, heads, head) in which a token sees the tokens of its own picture alone."""
    if q.is_cuda:  # one kernel for all pictures; the README says why not on the CPU
        longest = max(layout.counts)
        return varlen_attn(q, k, v, layout.starts, layout.starts, longest, longest)
    pictures = zip(*(x.transpose(0, 1).split(layout.counts, dim=1) for x in (q, k, v)), strict=True)
    mixed = [scaled_dot_product_attention(*(x[None] for x in one))[0] for one in pictures]
    return torch.cat(mixed, dim=1).transpose(0, 1)


class Block(nn.Module):
    """Attention within pictures, then an MLP; both steered by the time and the caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head_norm = nn.RMSNorm(width // heads, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.offsets = nn.Parameter(torch.zeros(6 * width))

    def forward(self, x: Tensor, steering: Tensor, layout: Layout) -> Tensor:
        """Tokens (N, width) and what steers their pictures (B, 6 width)."""
        signals = (steering + self.offsets)[layout.owner].chunk(6, dim=-1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = signals
        level = self.norm(x) * (1 + scale) + shift
        q, k, v = self.qkv(level).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q, k = (layout.rotated(self.head_norm(each)).to(v.dtype) for each in (q, k))
        x = x + gate * self.out(attention_within(q, k, v, layout).flatten(1))
        level = self.norm(x) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.down(gelu(self.up(level), approximate="tanh"))


@dataclass(frozen=True)
class Size:
    """How large a transformer is; `channels` are a token's."""

    channels: int
    width: int = 256
    depth: int = 8
    heads: int = 4


class Transformer(nn.Module):
    """The velocity of flow matching: what leads from latents towards noise."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size, width = size, size.width
        self.embed = nn.Linear(size.channels + 2, width)
        self.words = nn.EmbeddingBag(WORDS, width, mode="mean")
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.steer = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, size.heads) for _ in range(size.depth))
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, size.channels)
        for layer in (self.steer[1], self.out):  # begins as the identity, with no velocity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, packed: PackedLatents, times: Tensor, captions: list[str]) -> Tensor:
        """Noisy tokens (N, channels), a time in [0, 1] and a caption per picture -> (N, channels).

        An empty caption stands for any.
        """
        device = packed.tokens.device
        layout = Layout.of(packed.sizes, self.size.width // self.size.heads, device)
        steering = self.steer(self.time(waves(times)) + self.meaning(captions, device))
        x = self.embed(torch.cat((packed.tokens, layout.place), dim=-1))
        for block in self.blocks:
            x = block(x, steering, layout)
        return self.out(self.norm(x)).float()

    def meaning(self, captions: list[str], device: torch.device) -> Tensor:
        """(B, width): the mean of each caption's words; zero where there are none."""
        bags = [word_numbers(caption) for caption in captions]
        starts = [0, *accumulate(len(bag) for bag in bags)][:-1]
        numbers = torch.tensor([number for bag in bags for number in bag], dtype=torch.long)
        return self.words(numbers.to(device), torch.tensor(starts).to(device))

    def state(self) -> dict[str, object]:
        """Everything that `restored` needs, in plain tensors and numbers."""
        return {"size": asdict(self.size), "weights": self.state_dict()}

    @classmethod
    def restored(cls, state: dict[str, object]) -> "Transformer":
        """The inverse of `state`."""
        network = cls(Size(**state["size"]))
        network.load_state_dict(state["weights"])
        return network.eval()


def waves(times: Tensor) -> Tensor:
    """Times (B,) in [0, 1] as 64 sines and cosines of rising frequency."""
    angles = 1000 * times[:, None] * 10000.0 ** -(torch.arange(32, device=times.device) / 32)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
