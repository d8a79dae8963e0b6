# ==== wrong: only the padding of the keys is considered, padded queries still see keys
# says: Only padded keys are hidden: a padded query still
from torch import Tensor


def cross_mask(query_mask: Tensor, key_mask: Tensor) -> Tensor:
    b, t = query_mask.shape
    s = key_mask.shape[1]
    return key_mask.bool()[:, None, None, :].expand(b, 1, t, s)

# ==== wrong: the axes are swapped, keys down and queries across: (batch, 1, sources, targets)
# says: Queries and keys have changed places: the rows of
import torch


def cross_mask(query_mask, key_mask):
    m = torch.einsum("bt,bs->bst", query_mask, key_mask)
    return m.unsqueeze(1).bool()

# ==== wrong: causal as well, a target sees only sources up to its own position
# says: The mask is causal. Nothing of the source is
def cross_mask(query_mask, key_mask):
    q = query_mask.bool()[:, None, :, None]
    k = key_mask.bool()[:, None, None, :]
    return (q & k).tril()

# ==== wrong: query and key are compared with ==, so a padded query sees the padded keys
# says: What is compared are the two numbers of a
def cross_mask(query_mask, key_mask):
    same = query_mask.unsqueeze(-1) == key_mask.unsqueeze(-2)
    return same.unsqueeze(1)

# ==== wrong: two mistakes: the axis for the heads is missing, and "or" instead of "and"
# says: A pair is allowed as soon as the query
import torch


def cross_mask(query_mask, key_mask):
    return torch.logical_or(query_mask[:, :, None], key_mask[:, None, :])

# ==== wrong: two mistakes: inverted (True = padding), and only the keys are looked at
# says, in part wrongly: Only padded keys are hidden: a padded query still
import torch


def cross_mask(query_mask, key_mask):
    out = torch.zeros(query_mask.shape[0], 1, query_mask.shape[1], key_mask.shape[1], dtype=torch.bool)
    for b in range(out.shape[0]):
        for s in range(out.shape[3]):
            if key_mask[b, s] == 0:
                out[b, 0, :, s] = True
    return out

# ==== right: broadcasting
def cross_mask(query_mask, key_mask):
    return query_mask[:, None, :, None].bool() & key_mask[:, None, None, :].bool()

# ==== right: matrix product
import torch


def cross_mask(query_mask, key_mask):
    product = torch.bmm(query_mask.double().unsqueeze(2), key_mask.double().unsqueeze(1))
    return (product > 0.5).unsqueeze(1)
