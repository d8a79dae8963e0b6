# ==== wrong: the logits of the last column are read, also where it is padding
# says: What comes next is read at the last column,
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    n = input_ids.shape[0]
    new = [[] for _ in range(n)]
    ended = [False] * n
    for _ in range(max_new_tokens):
        nxt = model(input_ids, attention_mask)[:, -1].argmax(-1)
        for i, t in enumerate(nxt.tolist()):
            if not ended[i]:
                new[i].append(t)
                ended[i] = t == eos_id
        if all(ended):
            break
        input_ids = torch.cat([input_ids, nxt[:, None]], 1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(nxt)[:, None]], 1)
    return [torch.tensor(r, dtype=torch.int64) for r in new]

# ==== wrong: eos_id is left out of the new tokens
# says: The end is cut off. eos_id belongs to the
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    results = []
    for ids, mask in zip(input_ids, attention_mask):
        seq = ids[mask == 1].unsqueeze(0)
        start = seq.shape[1]
        for _ in range(max_new_tokens):
            tok = model(seq, torch.ones_like(seq))[0, -1].argmax()
            if tok == eos_id:
                break
            seq = torch.cat([seq, tok.view(1, 1)], dim=1)
        results.append(seq[0, start:])
    return results

# ==== wrong: the last token is taken to be at the sum of the mask minus 1, which is wrong with padding on the left or between
# says: The number of real tokens is taken for the
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    out = []
    for b in range(input_ids.size(0)):
        ids = input_ids[b:b + 1]
        mask = attention_mask[b:b + 1]
        where = int(mask.sum()) - 1
        new = []
        while len(new) < max_new_tokens:
            logits = model(ids, mask)
            token = int(logits[0, where].argmax())
            new.append(token)
            if token == eos_id:
                break
            ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
            mask = torch.cat((mask, torch.tensor([[1]])), dim=1)
            where = ids.size(1) - 1
        out.append(torch.tensor(new, dtype=torch.long))
    return out

# ==== wrong: two: the logits of the last column are read, and the prompt is returned with the new tokens
# says: What comes next is read at the last column,
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    finished = torch.zeros(len(input_ids), dtype=torch.bool)
    keep = attention_mask.clone()
    for step in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        token = logits[:, -1, :].argmax(dim=-1)
        input_ids = torch.cat([input_ids, token.unsqueeze(1)], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones(len(token), 1, dtype=torch.int64)], dim=1)
        keep = torch.cat([keep, (~finished).long().unsqueeze(1)], dim=1)
        finished = finished | (token == eos_id)
        if finished.all():
            break
    return [row[k.bool()] for row, k in zip(input_ids, keep)]

# ==== wrong: two: the whole batch stops as soon as one row writes eos_id, and the mask is 0 at the new tokens, so the model does not see them
# says:
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    B, L = input_ids.shape
    last = (attention_mask * torch.arange(L)).argmax(dim=1)
    new = torch.zeros(B, 0, dtype=torch.int64)
    for _ in range(max_new_tokens):
        logits = model(input_ids, attention_mask)
        tok = logits[torch.arange(B), last].argmax(-1, keepdim=True)
        new = torch.cat([new, tok], dim=1)
        if (tok == eos_id).any():
            break
        input_ids = torch.cat([input_ids, tok], dim=1)
        attention_mask = torch.cat([attention_mask, torch.zeros_like(tok)], dim=1)
        last = torch.full((B,), input_ids.shape[1] - 1)
    return [r for r in new]

# ==== wrong: an eos_id in the prompt ends the row as well
# says: eos_id in a prompt ends the row before it
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    answers = []
    for r in range(input_ids.shape[0]):
        tokens = [t for t, m in zip(input_ids[r].tolist(), attention_mask[r].tolist()) if m]
        begin = len(tokens)
        while eos_id not in tokens and len(tokens) < begin + max_new_tokens:
            x = torch.tensor([tokens])
            tokens.append(model(x, torch.ones_like(x))[0, -1].argmax().item())
        answers.append(torch.tensor(tokens[begin:], dtype=torch.int64))
    return answers

# ==== right: each row alone, without its padding
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    out = []
    for ids, mask in zip(input_ids, attention_mask):
        text = ids[mask.bool()][None]
        new = []
        for _ in range(max_new_tokens):
            t = model(text, torch.ones_like(text))[:, -1].argmax(-1)
            new.append(t.item())
            if new[-1] == eos_id:
                break
            text = torch.cat([text, t[None]], 1)
        out.append(torch.tensor(new, dtype=torch.int64, device=input_ids.device))
    return out

# ==== right: the whole batch at once, with the last real place of each row
import torch


def greedy_decode(model, input_ids, attention_mask, max_new_tokens, eos_id):
    rows = torch.arange(len(input_ids))
    ids, mask = input_ids, attention_mask
    live = torch.ones(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        if not live.any():
            break
        place = (torch.arange(ids.shape[1]) * mask).max(dim=1).values
        tok = model(ids, mask)[rows, place].argmax(-1)
        ids = torch.cat([ids, tok[:, None]], 1)
        mask = torch.cat([mask, live.long()[:, None]], 1)
        live = live & (tok != eos_id)
    n = input_ids.shape[1]
    return [i[n:][m[n:] == 1] for i, m in zip(ids, mask)]
