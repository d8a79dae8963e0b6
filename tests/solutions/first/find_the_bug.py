# ==== wrong: only the scale is mended, the mask still comes after softmax
# says: Mask after the softmax. The mask is multiplied in
from torch import Tensor


def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    return weights @ value

# ==== wrong: only the mask is mended, still divided by the root of the number of keys
# says: The root is taken of another size, of the
from torch import Tensor


def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: the mask comes before softmax, but the forbidden scores are set to 0
# says: Masked scores become 0, or a number so small
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, 0.0)
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: the mask is moved before softmax but without the ~, the allowed keys are forbidden
# says: The mask is used upside down: what it allows
def find_the_bug(query, key, value, mask):
    d = query.size(-1)
    scores = query @ key.transpose(-2, -1) / d**0.5
    scores = scores.masked_fill(mask, -1e9)
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: the weights are made to add up to 1 only after softmax and mask, 0 / 0 = NaN when a forbidden score is much larger
# says: The weights are masked after the softmax and divided
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ value

# ==== wrong: the mask is mended, but the scale is the width and not its root
# says: The scores are divided by d, not by its
import torch


def find_the_bug(query, key, value, mask):
    scores = torch.matmul(query, key.transpose(-2, -1)) / key.shape[-1]
    scores = torch.where(mask, scores, -torch.inf)
    return torch.softmax(scores, dim=-1) @ value

# ==== wrong: the mask is mended, but the scale is the root of the number of queries
# says: The root is taken of another size, of the
def find_the_bug(query, key, value, mask):
    scale = query.shape[-2] ** 0.5
    scores = query @ key.transpose(-2, -1) / scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ value

# ==== wrong: the mask is mended, but the scale is gone altogether
# says: The scores are not divided by √d: the softmax
import torch


def find_the_bug(query, key, value, mask):
    logits = torch.einsum("bhqd,bhkd->bhqk", query, key)
    logits = logits.masked_fill(mask.logical_not(), torch.finfo(logits.dtype).min)
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), value)

# ==== wrong: the scale is mended, but softmax runs over the queries now
# says: The softmax runs over the queries: every key hands
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, -1e9)
    weights = scores.softmax(dim=-2)
    return weights @ value

# ==== wrong: -inf is multiplied with the inverted mask, 0 * inf makes NaN everywhere
# says: Every number is NaN: 0 * inf is NaN,
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores + (1.0 - mask.float()) * float("-inf")
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: the fill value -10 is too small, forbidden keys keep a little weight
# says: Masked scores become a small negative number, so masked
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, -10.0)
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: two mistakes: handed in unchanged, both bugs are still there
# says: These are still the answers of the code that
from torch import Tensor


def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    return weights @ value

# ==== wrong: two mistakes: still divided by the root of the number of keys, and forbidden scores set to 0 before softmax
# says:
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    scores = scores * mask
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: two mistakes: the mask still comes after softmax, and the scale is the width and not its root
# says: The scores are divided by d, not by its
def find_the_bug(query, key, value, mask):
    d_k = key.shape[-1]
    scores = query @ key.transpose(-2, -1) / d_k
    weights = scores.softmax(dim=-1) * mask
    return weights @ value

# ==== wrong: two mistakes: the mask is inverted, and the scale is the number of heads
# says: The mask is used upside down: what it allows
import math


def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[1])
    scores = scores.masked_fill(mask == 1, -1e9)
    return scores.softmax(dim=-1) @ value

# ==== wrong: both bugs are mended, but the argument query is changed by a division in place
# says: it was changed in place
def find_the_bug(query, key, value, mask):
    query /= key.shape[-1] ** 0.5
    scores = query @ key.transpose(-2, -1)
    scores.masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== wrong: -inf is put in after softmax, the output is NaN or infinite
# says: -inf is put in after the softmax, where it
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, float("-inf"))
    return weights @ value

# ==== wrong: the weights are divided by the sum over the queries instead of over the keys
# says: The weights are divided by their sum over the
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1).masked_fill(~mask, 0.0)
    total = weights.sum(dim=-2, keepdim=True).clamp(min=1e-9)
    return (weights / total) @ value

# ==== wrong: the scores are multiplied with the root of the width instead of divided
# says: The scores are multiplied by the root of d.
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) * key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== wrong: divided twice by the root of the width (once query, once scores)
# says: The scores are divided by d, not by its
def find_the_bug(query, key, value, mask):
    root = key.shape[-1] ** 0.5
    q = query / root
    scores = q @ key.transpose(-2, -1) / root
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value

# ==== wrong: a second softmax over the masked weights
# says: The softmax is taken twice.
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ value

# ==== wrong: only the mask of the first batch row and head is used
# says: Every sequence, and every head, has the mask of
import torch


def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores[:, :, ~mask[0, 0]] = float("-inf")
    return scores.softmax(dim=-1) @ value

# ==== right: masked_fill with -inf before softmax, the width under the root
from torch import Tensor


def find_the_bug(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== right: einsum, float64 inside, exp by hand
import torch


def find_the_bug(query, key, value, mask):
    s = torch.einsum("bhqd,bhkd->bhqk", query.double(), key.double()) * query.shape[-1] ** -0.5
    s = torch.where(mask, s, torch.tensor(float("-inf"), dtype=s.dtype))
    e = torch.exp(s - s.max(dim=-1, keepdim=True).values)
    w = e / e.sum(-1, keepdim=True)
    return torch.einsum("bhqk,bhkd->bhqd", w, value.double()).to(query.dtype)

# ==== right: a bias of 0 and -inf made beforehand, query scaled first
import torch


def find_the_bug(query, key, value, mask):
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    bias[~mask] = -torch.inf
    scaled = query * query.new_tensor(query.size(-1)).rsqrt()
    return torch.matmul((scaled.matmul(key.mT) + bias).softmax(-1), value)

# ==== right: loops over batch, heads and queries, only the allowed keys are ever scored
import torch


def find_the_bug(query, key, value, mask):
    b, h, q, d = query.shape
    mask = mask.expand(b, h, q, key.shape[2])
    out = []
    for i in range(b):
        for j in range(h):
            for t in range(q):
                m = mask[i, j, t]
                w = (key[i, j, m] @ query[i, j, t] / d**0.5).softmax(0)
                out.append(w @ value[i, j, m])
    return torch.stack(out).reshape(b, h, q, value.shape[-1])
