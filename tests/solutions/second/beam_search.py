# ==== wrong: greedy: only the one best text is kept, num_beams is not used
# says: This is greedy: after each step only the best
def beam_search(next_log_probs, num_beams, length):
    text, total = [], 0.0
    for _ in range(length):
        lp = next_log_probs(text)
        best = int(lp.argmax())
        total += float(lp[best])
        text = text + [best]
    return text, total

# ==== wrong: every beam is continued by its own best token only, the beams do not compete after the first step
# says: After the first step each beam goes on alone,
import torch


def beam_search(next_log_probs, num_beams, length):
    if length == 0:
        return [], 0.0
    first = next_log_probs([])
    k = min(num_beams, len(first))
    vals, idx = first.topk(k)
    beams = [([i], v) for i, v in zip(idx.tolist(), vals.tolist())]
    for _ in range(length - 1):
        grown = []
        for toks, score in beams:
            lp = next_log_probs(toks)
            v, i = lp.max(dim=-1)
            grown.append((toks + [i.item()], score + v.item()))
        beams = grown
    return max(beams, key=lambda b: b[1])

# ==== wrong: it starts with num_beams copies of the empty text, so all beams stay alike
# says: This is greedy: after each step only the best
import torch


def beam_search(next_log_probs, num_beams, length):
    texts = [[] for _ in range(num_beams)]
    scores = [0.0] * num_beams
    for _ in range(length):
        cand = []
        for t, s in zip(texts, scores):
            for tok, lp in enumerate(next_log_probs(t).tolist()):
                cand.append((s + lp, t + [tok]))
        cand.sort(key=lambda c: c[0], reverse=True)
        cand = cand[:num_beams]
        texts = [c[1] for c in cand]
        scores = [c[0] for c in cand]
    return texts[0], scores[0]

# ==== wrong: two: only the last token is handed to next_log_probs, and the result is divided by the length
# says: next_log_probs is told the last token alone. What follows
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        options = []
        for toks, s in beams:
            lps = next_log_probs(toks[-1:])
            options += [(toks + [i], s + float(p)) for i, p in enumerate(lps)]
        beams = sorted(options, key=lambda o: -o[1])[:num_beams]
    toks, s = beams[0]
    return toks, s / max(length, 1)

# ==== wrong: two: texts are ranked by the log-probability of their last token alone, and that is returned instead of the sum
# says: A text is judged by its last token alone.
import torch


def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for step in range(length):
        new_beams = []
        for tokens, _ in beams:
            probs = next_log_probs(tokens)
            values, ids = torch.sort(probs, descending=True)
            for v, i in zip(values[:num_beams], ids[:num_beams]):
                new_beams.append((tokens + [int(i)], float(v)))
        new_beams.sort(key=lambda x: x[1], reverse=True)
        beams = new_beams[:num_beams]
    return beams[0]

# ==== wrong: topk with num_beams raises when there are fewer texts than that
# says:
import torch


def beam_search(next_log_probs, num_beams, length):
    seqs, scores = [[]], torch.zeros(1)
    for _ in range(length):
        table = torch.stack([next_log_probs(s) for s in seqs]) + scores[:, None]
        vocab = table.shape[1]
        scores, flat = table.flatten().topk(num_beams)
        seqs = [seqs[int(f) // vocab] + [int(f) % vocab] for f in flat]
    return seqs[0], float(scores[0])

# ==== right: lists and heapq
import heapq


def beam_search(next_log_probs, num_beams, length):
    beams = [(0.0, [])]
    for _ in range(length):
        all_texts = (
            (score + lp, tokens + [i])
            for score, tokens in beams
            for i, lp in enumerate(next_log_probs(list(tokens)).tolist())
        )
        beams = heapq.nlargest(num_beams, all_texts, key=lambda b: b[0])
    return beams[0][1], beams[0][0]

# ==== right: one table of all scores, flattened
import torch


def beam_search(next_log_probs, num_beams, length):
    texts = [[]]
    scores = torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        table = scores[:, None] + torch.stack([next_log_probs(t).double() for t in texts])
        scores, flat = table.reshape(-1).topk(min(num_beams, table.numel()))
        texts = [texts[i] + [t] for i, t in (divmod(f, table.shape[1]) for f in flat.tolist())]
    return texts[0], scores[0].item()
