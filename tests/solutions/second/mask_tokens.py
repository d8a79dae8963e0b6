# ==== wrong: padding is not considered, chosen padding is masked and has labels
# says: Padding is masked, or has a label. Only real
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    labels = input_ids.clone()
    labels[~chosen] = -100
    out = input_ids.clone()
    to_mask = chosen & (fate < 0.8)
    to_random = chosen & (fate >= 0.8) & (fate < 0.9)
    out[to_mask] = mask_id
    out[to_random] = others[to_random]
    return out, labels

# ==== wrong: picked tokens that stay as they are have no label
# says: Not every picked token has a label: those that
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    picked = chosen & attention_mask.bool()
    masked = picked & (fate < 0.8)
    randomized = picked & (fate >= 0.8) & (fate < 0.9)
    ids = torch.where(masked, torch.full_like(input_ids, mask_id), input_ids)
    ids = torch.where(randomized, others, ids)
    labels = torch.where(masked | randomized, input_ids, torch.full_like(input_ids, -100))
    return ids, labels

# ==== wrong: the random tokens are written wherever fate is below 0.9, over the mask tokens too
# says: No picked token becomes mask_id: those whose fate is
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    picked = chosen & (attention_mask == 1)
    new = input_ids.masked_fill(picked & (fate < 0.8), mask_id)
    new = torch.where(picked & (fate < 0.9), others, new)
    labels = input_ids.masked_fill(~picked, -100)
    return new, labels

# ==== wrong: the bounds belong to the wrong side, <= 0.8 and <= 0.9 instead of < 0.8 and < 0.9
# says: At the boundary it decides the other way: <
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    ids = input_ids.clone()
    labels = torch.full_like(input_ids, -100)
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            if not chosen[b, t] or attention_mask[b, t] == 0:
                continue
            labels[b, t] = input_ids[b, t]
            f = fate[b, t]
            if f <= torch.tensor(0.8, dtype=fate.dtype):
                ids[b, t] = mask_id
            elif f <= torch.tensor(0.9, dtype=fate.dtype):
                ids[b, t] = others[b, t]
    return ids, labels

# ==== wrong: two mistakes: input_ids is changed in place, and the labels are taken after the change instead of the original ids
# says: The labels hold what the tokens have become, mask_id
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    sel = chosen & attention_mask.bool()
    m = sel & (fate < 0.8)
    r = sel & (fate >= 0.8) & (fate < 0.9)
    input_ids[m] = mask_id
    input_ids[r] = others[r]
    labels = torch.where(sel, input_ids, torch.tensor(-100))
    return input_ids, labels

# ==== wrong: two mistakes: real is told by id not 0 instead of attention_mask, and the last two tenths are swapped (random at 0.9 and above, kept between)
# says: The last two fates have changed places: below 0.9
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    real = input_ids.ne(0)
    pick = chosen.logical_and(real)
    noise = pick & (fate >= 0.9)
    mask = pick & (fate < 0.8)
    x = input_ids * (~(noise | mask)) + mask_id * mask + others * noise
    y = input_ids * pick + -100 * (~pick)
    return x, y

# ==== right: nested where
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    picked = chosen & (attention_mask == 1)
    mask = torch.full_like(input_ids, mask_id)
    changed = torch.where(fate < 0.8, mask, torch.where(fate < 0.9, others, input_ids))
    return torch.where(picked, changed, input_ids), input_ids.masked_fill(~picked, -100)

# ==== right: clone, others first and the mask token over it
import torch


def mask_tokens(input_ids, attention_mask, chosen, fate, others, mask_id):
    out = input_ids.clone()
    labels = torch.full_like(input_ids, -100)
    b, t = torch.nonzero(chosen & attention_mask.bool(), as_tuple=True)
    labels[b, t] = input_ids[b, t]
    f = fate[b, t]
    low = f < 0.9
    out[b[low], t[low]] = others[b[low], t[low]]
    low = f < 0.8
    out[b[low], t[low]] = mask_id
    return out, labels
