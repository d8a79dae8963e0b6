# ==== wrong: view straight to the target shape without transpose, which mixes tokens
# says: The numbers are cut straight into the final shape,
def split_heads(x, num_heads):
    batch, length, d = x.shape
    return x.reshape(batch, num_heads, length, d // num_heads)

# ==== wrong: the head axis is not moved in front of the tokens: (batch, length, heads, width)
# says: The axis of the heads still stands behind the
from einops import rearrange


def split_heads(x, num_heads):
    return rearrange(x, "b l (h w) -> b l h w", h=num_heads)

# ==== wrong: heads take every num_heads-th number (interleaved) instead of a slice in one piece
# says: A head gets every num_heads-th number of a token,
from einops import rearrange


def split_heads(x, num_heads):
    return rearrange(x, "batch length (width heads) -> batch heads length width", heads=num_heads)

# ==== wrong: the heads are stacked in front of the batch: (heads, batch, length, width)
# says: The heads stand in front of the batch: stack
import torch


def split_heads(x, num_heads):
    parts = torch.chunk(x, num_heads, dim=-1)
    return torch.stack(parts)

# ==== wrong: two mistakes: num_heads is taken for the width of a head, and the numbers are interleaved
# says, in part wrongly: The last axis is cut as it should be,
def split_heads(x, num_heads):
    b, n, d = x.size()
    heads = d // num_heads
    return x.view(b, n, num_heads, heads).permute(0, 3, 1, 2)

# ==== wrong: two mistakes: interleaved numbers instead of slices, and the head axis stays behind the tokens
# says: The axis of the heads still stands behind the
import torch


def split_heads(x, num_heads):
    pieces = []
    for h in range(num_heads):
        pieces.append(x[:, :, h::num_heads])
    return torch.stack(pieces, dim=2)

# ==== right: view and transpose
def split_heads(x, num_heads):
    b, n, d = x.shape
    return x.reshape(b, n, num_heads, d // num_heads).transpose(1, 2)

# ==== right: slices in a loop, stacked
import torch


def split_heads(x, num_heads):
    w = x.shape[-1] // num_heads
    return torch.stack([x[..., h * w:(h + 1) * w] for h in range(num_heads)], dim=1)
