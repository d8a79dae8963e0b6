# ==== wrong: the logits are always read at the last place, which is padding when the row is padded on the right
# says: What comes next is read at the last column,
import torch
from torch import Tensor


def greedy_decode(model, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, eos_id: int) -> list[Tensor]:
    batch = input_ids.shape[0]
    done = [False] * batch
    new = [[] for _ in range(batch)]
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        token = logits[:, -1].argmax(dim=-1)
        for b in range(batch):
            if not done[b]:
                new[b].append(int(token[b]))
                done[b] = int(token[b]) == eos_id
        if all(done):
            break
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(token)[:, None]], dim=1)
    return [torch.tensor(t, dtype=torch.int64) for t in new]

# ==== wrong: the last token is looked for at attention_mask.sum() - 1, wrong with padding on the left or holes
# says: The number of real tokens is taken for the
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    B = input_ids.size(0)
    rows = torch.arange(B)
    finished = torch.zeros(B, dtype=torch.bool)
    outputs = [[] for _ in range(B)]
    last = attention_mask.sum(dim=1) - 1
    for step in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        nxt = logits[rows, last].argmax(-1)
        for i in range(B):
            if not finished[i]:
                outputs[i].append(nxt[i])
        finished = finished | (nxt == eos_id)
        if finished.all():
            break
        input_ids = torch.cat((input_ids, nxt.unsqueeze(1)), 1)
        attention_mask = torch.cat((attention_mask, torch.ones(B, 1, dtype=torch.int64)), 1)
        last = torch.full((B,), input_ids.size(1) - 1)
    return [torch.stack(o) if o else torch.zeros(0, dtype=torch.int64) for o in outputs]

# ==== wrong: eos_id is left out of the answer
# says: The end is cut off. eos_id belongs to the
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    results = []
    for ids, mask in zip(input_ids, attention_mask):
        text = ids[mask.bool()].unsqueeze(0)
        prompt = text.shape[1]
        for _ in range(max_new_tokens):
            logits = model(text, torch.ones_like(text))
            best = logits[0, -1].argmax()
            if best == eos_id:
                break
            text = torch.cat([text, best.view(1, 1)], dim=1)
        results.append(text[0, prompt:])
    return results

# ==== wrong: rows go on after their own end until all rows have ended, nothing is cut
# says: Rows are continued behind their end. Remember which have
import torch
from torch import Tensor


def last_real(mask: Tensor) -> Tensor:
    place = torch.arange(mask.shape[1])
    return (place * (mask > 0)).argmax(dim=1)


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    ids, mask = input_ids, attention_mask
    new = torch.zeros(ids.shape[0], 0, dtype=torch.int64)
    ended = torch.zeros(ids.shape[0], dtype=torch.bool)
    while new.shape[1] < max_new_tokens and not ended.all():
        logits = model(ids, mask)
        step = logits[torch.arange(len(ids)), last_real(mask)].argmax(-1, keepdim=True)
        new = torch.cat([new, step], 1)
        ids = torch.cat([ids, step], 1)
        mask = torch.cat([mask, torch.ones_like(step)], 1)
        ended |= step[:, 0] == eos_id
    return list(new)

# ==== wrong: all rows stop as soon as the first row has ended
# says: All rows stop as soon as one of them
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    n = input_ids.shape[0]
    answers = [[] for _ in range(n)]
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        length = input_ids.shape[1]
        last = length - 1 - attention_mask.flip(1).ne(0).int().argmax(1)
        token = torch.stack([logits[i, last[i]].argmax() for i in range(n)])
        for i in range(n):
            answers[i].append(token[i].item())
        if (token == eos_id).any():
            break
        input_ids = torch.cat([input_ids, token.reshape(n, 1)], dim=-1)
        attention_mask = torch.cat([attention_mask, torch.ones(n, 1, dtype=torch.int64)], dim=-1)
    return [torch.tensor(a, dtype=torch.int64) for a in answers]

# ==== wrong: the prompt is returned too, not only the new tokens
# says: The prompts are returned as well. Only the new
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    out = []
    for b in range(len(input_ids)):
        seq = input_ids[b][attention_mask[b] == 1]
        for _ in range(max_new_tokens):
            logits = model(seq[None], torch.ones_like(seq)[None])[0]
            token = torch.argmax(logits[-1])
            seq = torch.cat([seq, token[None]])
            if token.item() == eos_id:
                break
        out.append(seq)
    return out

# ==== wrong: the new tokens get a 0 in the attention_mask, the model never sees them
# says: Every step goes on from the prompt alone, so
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    batch = input_ids.shape[0]
    new = [[] for _ in range(batch)]
    alive = set(range(batch))
    for _ in range(max_new_tokens):
        if not alive:
            break
        logits = model(input_ids, attention_mask)
        column = torch.zeros(batch, 1, dtype=torch.int64)
        for b in list(alive):
            last = int(attention_mask[b].nonzero()[-1])
            column[b, 0] = logits[b, last].argmax()
            new[b].append(int(column[b, 0]))
            if new[b][-1] == eos_id:
                alive.remove(b)
        input_ids = torch.cat([input_ids, column], 1)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1))
    return [torch.tensor(x, dtype=torch.int64) for x in new]

# ==== wrong: the given attention_mask is ignored, the model gets ones and reads the padding
# says: The model is not given the attention_mask, or one
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    ids = input_ids.clone()
    n = ids.shape[0]
    where = torch.arange(ids.shape[1]).mul(attention_mask).argmax(1)
    done = torch.zeros(n, dtype=torch.bool)
    tokens = [[] for _ in range(n)]
    for k in range(max_new_tokens):
        logits = model(ids, torch.ones_like(ids))
        token = logits[torch.arange(n), where].argmax(-1)
        for i, t in enumerate(token.tolist()):
            if not done[i]:
                tokens[i].append(t)
                if t == eos_id:
                    done[i] = True
        if done.all():
            break
        ids = torch.cat([ids, token[:, None]], dim=1)
        where = torch.full((n,), ids.shape[1] - 1)
    return [torch.tensor(t).long() for t in tokens]

# ==== wrong: one token too many, max_new_tokens + 1
# says: There is one step too many or too few:
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    def one(ids, mask):
        ids, mask = ids[None], mask[None]
        made = []
        while True:
            at = mask[0].nonzero().max()
            t = model(ids, mask)[0, at].argmax().item()
            made.append(t)
            if t == eos_id or len(made) > max_new_tokens:
                return torch.tensor(made, dtype=torch.int64)
            ids = torch.cat([ids, torch.tensor([[t]])], 1)
            mask = torch.cat([mask, torch.tensor([[1]])], 1)

    return [one(i, m) for i, m in zip(input_ids, attention_mask)]

# ==== wrong: the next token is drawn at random from softmax instead of the likeliest
# says: The next token is drawn by chance. Greedy decoding
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    results = []
    for ids, mask in zip(input_ids.split(1), attention_mask.split(1)):
        new = []
        for _ in range(max_new_tokens):
            last = mask[0].nonzero()[-1, 0]
            probs = model(ids, mask)[0, last].softmax(-1)
            token = torch.multinomial(probs, 1)
            new.append(token)
            if token.item() == eos_id:
                break
            ids = torch.cat([ids, token[None]], 1)
            mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
        results.append(torch.cat(new) if new else ids.new_zeros(0))
    return results

# ==== wrong: the rows come back equally long, filled up with eos_id after their end
# says: A row that has ended is filled up to
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    B = input_ids.shape[0]
    done = torch.zeros(B, dtype=torch.bool)
    generated = []
    for _ in range(max_new_tokens):
        pos = torch.arange(input_ids.shape[1]).expand(B, -1)
        last = pos.masked_fill(attention_mask == 0, -1).max(dim=1).values
        logits = model(input_ids, attention_mask)
        picked = logits.gather(1, last.view(B, 1, 1).expand(B, 1, logits.shape[-1]))[:, 0]
        token = torch.where(done, eos_id, picked.argmax(-1))
        generated.append(token)
        done = done | (token == eos_id)
        if done.all():
            break
        input_ids = torch.cat([input_ids, token[:, None]], 1)
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(B, 1)], 1)
    if not generated:
        return [torch.zeros(0, dtype=torch.int64) for _ in range(B)]
    return [row for row in torch.stack(generated, dim=1)]

# ==== wrong: the place of the last token is found once, before the loop, and never moved on
# says: Every step goes on from the prompt alone, so
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    b = torch.arange(input_ids.shape[0])
    last = (attention_mask * torch.arange(input_ids.shape[1])).argmax(dim=1)
    over = torch.zeros_like(b, dtype=torch.bool)
    out = [[] for _ in b]
    for _ in range(max_new_tokens):
        token = model(input_ids, attention_mask)[b, last].argmax(-1)
        for i in b.tolist():
            if not over[i]:
                out[i].append(token[i].item())
        over |= token.eq(eos_id)
        input_ids = torch.cat([input_ids, token[:, None]], 1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(token[:, None])], 1)
    return [torch.tensor(o, dtype=torch.int64) for o in out]

# ==== wrong: two mistakes: logits read at the last place even when that is padding, and eos_id is left out
# says: What comes next is read at the last column,
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    start = input_ids.shape[1]
    for _ in range(max_new_tokens):
        nxt = model(input_ids, attention_mask)[:, -1, :].argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, nxt], -1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(nxt)], -1)
    result = []
    for row in input_ids[:, start:]:
        ends = (row == eos_id).nonzero()
        result.append(row[: ends[0, 0]] if len(ends) else row)
    return result

# ==== wrong: two mistakes: the prompt is returned too, and rows are not cut at their own end
# says: Rows are continued behind their end. Remember which have
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    n = len(input_ids)
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        tok = []
        for i in range(n):
            j = max(k for k in range(attention_mask.shape[1]) if attention_mask[i, k])
            tok.append(logits[i, j].argmax())
        tok = torch.stack(tok).unsqueeze(1)
        input_ids = torch.cat([input_ids, tok], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones(n, 1).long()], dim=1)
        if (tok == eos_id).all():
            break
    return [ids[m == 1] for ids, m in zip(input_ids, attention_mask)]

# ==== wrong: two mistakes: stops when the first row has ended, and the last token is looked for at sum() - 1
# says: The number of real tokens is taken for the
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    batch = torch.arange(input_ids.size(0))
    answer = input_ids.new_zeros(input_ids.size(0), 0)
    for _ in range(max_new_tokens):
        last = attention_mask.sum(-1) - 1
        token = model(input_ids, attention_mask)[batch, last].argmax(-1)[:, None]
        answer = torch.cat([answer, token], 1)
        if eos_id in token:
            break
        input_ids = torch.cat([input_ids, token], 1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(token)], 1)
    return list(answer.unbind(0))

# ==== wrong: the arguments are changed, new tokens are written into the prompt's padding
# says: it was changed in place
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    result = []
    for b in range(input_ids.shape[0]):
        new = []
        ids, mask = input_ids[b : b + 1], attention_mask[b : b + 1]
        for _ in range(max_new_tokens):
            last = int(mask[0].nonzero()[-1])
            token = model(ids, mask)[0, last].argmax()
            new.append(token)
            if token == eos_id:
                break
            if last + 1 == ids.shape[1]:
                ids = torch.cat([ids, torch.zeros(1, 1, dtype=torch.int64)], dim=1)
                mask = torch.cat([mask, torch.zeros(1, 1, dtype=torch.int64)], dim=1)
            ids[0, last + 1] = token
            mask[0, last + 1] = 1
        result.append(torch.stack(new) if new else torch.zeros(0, dtype=torch.int64))
    return result

# ==== wrong: a row is taken to have ended when eos_id stands in its prompt
# says: eos_id in a prompt ends the row before it
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    n, prompt = input_ids.shape
    done = (input_ids == eos_id).any(dim=1)
    new = [[] for _ in range(n)]
    for _ in range(max_new_tokens):
        if done.all():
            break
        logits = model(input_ids, attention_mask)
        idx = torch.arange(input_ids.shape[1])
        last = torch.where(attention_mask > 0, idx, -1).amax(1)
        nxt = logits[torch.arange(n), last].argmax(1)
        for i in range(n):
            if not done[i]:
                new[i].append(nxt[i].item())
        input_ids = torch.cat([input_ids, nxt[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones(n, 1, dtype=torch.int64)], dim=1)
        done = done | (nxt == eos_id)
    return [torch.tensor(x, dtype=torch.int64) for x in new]

# ==== wrong: after the first step the model gets only the new token, without the text before it
# says: The model is given the newest token alone, so
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    outs = []
    for row, m in zip(input_ids, attention_mask):
        current = row[m.bool()][None]
        text = []
        for _ in range(max_new_tokens):
            current = model(current, torch.ones_like(current))[:, -1].argmax(-1, keepdim=True)
            text.append(current.item())
            if text[-1] == eos_id:
                break
        outs.append(torch.tensor(text, dtype=torch.int64))
    return outs

# ==== wrong: each row is a tensor (1, n) instead of 1-D
# says: What a row has written has an axis too
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    rows = []
    for b in range(input_ids.shape[0]):
        ids = input_ids[b, attention_mask[b] != 0].reshape(1, -1)
        n = ids.shape[1]
        for _ in range(max_new_tokens):
            token = model(ids, torch.ones_like(ids))[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], dim=1)
            if (token == eos_id).item():
                break
        rows.append(ids[:, n:])
    return rows

# ==== wrong: at least one token is written even when max_new_tokens is 0
# says: At least one token is written, though none was
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    answers = []
    for ids, mask in zip(input_ids, attention_mask):
        seq = ids[mask > 0]
        k = len(seq)
        seq = torch.cat([seq, model(seq[None], torch.ones_like(seq)[None])[0, -1:].argmax(-1)])
        while seq[-1] != eos_id and len(seq) - k < max_new_tokens:
            nxt = model(seq[None], torch.ones_like(seq)[None])[0, -1:].argmax(-1)
            seq = torch.cat([seq, nxt])
        answers.append(seq[k:])
    return answers

# ==== right: the whole batch at once, tokens appended on the right
import torch
from torch import Tensor


def greedy_decode(
    model, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, eos_id: int
) -> list[Tensor]:
    batch = input_ids.shape[0]
    rows = torch.arange(batch, device=input_ids.device)
    new: list[list[int]] = [[] for _ in range(batch)]
    done = [False] * batch
    for _ in range(max_new_tokens):
        if all(done):
            break
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(attention_mask > 0, place, -1).amax(dim=1)
        token = model(input_ids, attention_mask)[rows, last].argmax(dim=-1)
        for b, t in enumerate(token.tolist()):
            if not done[b]:
                new[b].append(t)
                done[b] = t == eos_id
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(token)[:, None]], dim=1)
    return [torch.tensor(t, dtype=torch.int64, device=input_ids.device) for t in new]

# ==== right: one row after the other, without padding
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    answers = []
    for ids, mask in zip(input_ids, attention_mask):
        text = ids[mask > 0]
        prompt = len(text)
        while len(text) - prompt < max_new_tokens:
            token = model(text[None], torch.ones_like(text)[None])[0, -1].argmax()
            text = torch.cat([text, token[None]])
            if token == eos_id:
                break
        answers.append(text[prompt:])
    return answers

# ==== wrong: by the docstring of today; else right: everything moved to the right once, then the last place is always the last token
# says: Two rows end with their first token, so there are two to
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    mask = (attention_mask > 0).long()
    order = mask.argsort(dim=1, stable=True)
    ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    start = ids.shape[1]
    for _ in range(max_new_tokens):
        token = model(ids, mask)[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    new = ids[:, start:]
    after = (new == eos_id).long().cumsum(1) - (new == eos_id).long() > 0
    return [row[~gone] for row, gone in zip(new, after)]
