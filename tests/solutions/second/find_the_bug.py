# ==== wrong: the scale is repaired, the mask is still applied after the softmax, so rows do not sum to 1
# says: Mask after the softmax. The mask is multiplied in
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    return weights @ value

# ==== wrong: the mask is repaired, the scale is still the root of the number of keys
# says: The root is taken of another size, of the
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: masked scores are set to 0 before the softmax, which is not a weight of 0
# says: Masked scores become 0, or a number so small
import math


def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    scores = scores.masked_fill(~mask, 0.0)
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== wrong: two: the polarity of the mask is swapped in an added -10000, and a large masked score survives it
# says:
import torch


def find_the_bug(query, key, value, mask):
    d = query.shape[-1]
    scores = torch.matmul(query, key.transpose(-2, -1)) / d ** 0.5
    scores = scores + mask.to(scores.dtype) * -10000.0
    return torch.matmul(torch.softmax(scores, dim=-1), value)

# ==== wrong: two: the scale is the number of queries' root instead of the width's, and the weights are masked after the softmax without repair
# says: Mask after the softmax. The mask is multiplied in
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / query.shape[-2] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights * mask
    return weights @ value

# ==== wrong: weights are masked after the softmax and divided by their sum, which gives 0/0 when a masked score is far larger
# says: The weights are masked after the softmax and divided
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill(~mask, 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ value

# ==== right: the two lines repaired
def find_the_bug(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)
    return weights @ value

# ==== right: einsum with the exponentials by hand
import torch


def find_the_bug(query, key, value, mask):
    s = torch.einsum("bhqd,bhkd->bhqk", query * query.shape[-1] ** -0.5, key)
    s = torch.where(mask, s, -torch.inf)
    e = torch.exp(s - s.amax(-1, keepdim=True).detach())
    return torch.einsum("bhqk,bhkd->bhqd", e, value) / e.sum(-1, keepdim=True)
