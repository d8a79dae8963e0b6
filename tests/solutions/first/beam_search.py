# ==== wrong: greedy, num_beams is ignored
# says: This is greedy: after each step only the best
def beam_search(next_log_probs, num_beams: int, length: int) -> tuple[list[int], float]:
    tokens: list[int] = []
    total = 0.0
    for _ in range(length):
        log_probs = next_log_probs(tokens)
        best = int(log_probs.argmax())
        total += float(log_probs[best])
        tokens = tokens + [best]
    return tokens, total

# ==== wrong: only the first step branches, after it every beam goes on greedily
# says: After the first step each beam goes on alone,
import torch


def beam_search(next_log_probs, num_beams, length):
    if length == 0:
        return [], 0.0
    first = next_log_probs([])
    top = torch.topk(first, min(num_beams, len(first)))
    beams = [([i], s) for s, i in zip(top.values.tolist(), top.indices.tolist())]
    for _ in range(length - 1):
        grown = []
        for tokens, score in beams:
            lp = next_log_probs(tokens)
            i = int(lp.argmax())
            grown.append((tokens + [i], score + float(lp[i])))
        beams = grown
    best = max(beams, key=lambda b: b[1])
    return best[0], best[1]

# ==== wrong: each beam keeps its own num_beams continuations, nothing is pruned over all beams
# says: Each beam keeps its own num_beams best continuations, so
import torch


def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        new_beams = []
        for tokens, score in beams:
            log_probs = next_log_probs(tokens)
            k = min(num_beams, log_probs.shape[0])
            values, indices = log_probs.topk(k)
            for v, i in zip(values, indices):
                new_beams.append((tokens + [i.item()], score + v.item()))
        beams = new_beams
    return max(beams, key=lambda pair: pair[1])

# ==== wrong: texts are ranked by their last token's log-probability only, the sum is forgotten
# says: A text is judged by its last token alone.
def beam_search(next_log_probs, num_beams, length):
    beams = [(0.0, [])]
    for _ in range(length):
        candidates = []
        for _, tokens in beams:
            for token, lp in enumerate(next_log_probs(tokens).tolist()):
                candidates.append((lp, tokens + [token]))
        candidates.sort(key=lambda c: -c[0])
        beams = candidates[:num_beams]
    score, tokens = beams[0]
    return tokens, score

# ==== wrong: log-probabilities are multiplied instead of added
# says: Log-probabilities are multiplied. Multiplied are probabilities; their logarithms are
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 1.0)]
    for _ in range(length):
        pool = [
            (seq + [t], score * lp)
            for seq, score in beams
            for t, lp in enumerate(next_log_probs(seq).tolist())
        ]
        pool.sort(key=lambda x: x[1], reverse=True)
        beams = pool[:num_beams]
    return beams[0]

# ==== wrong: the beams start as num_beams copies of the empty text, so they stay equal and it is greedy search
# says: This is greedy: after each step only the best
def beam_search(next_log_probs, num_beams, length):
    seqs = [[] for _ in range(num_beams)]
    scores = [0.0] * num_beams
    for _ in range(length):
        options = []
        for s, seq in zip(scores, seqs):
            logp = next_log_probs(seq)
            for tok in range(len(logp)):
                options.append((s + logp[tok].item(), seq, tok))
        options = sorted(options, key=lambda o: o[0], reverse=True)[:num_beams]
        scores = [o[0] for o in options]
        seqs = [o[1] + [o[2]] for o in options]
    return seqs[0], scores[0]

# ==== wrong: sorted upwards, the worst texts are kept
# says: The worst texts are kept: the largest log-probability is
def beam_search(next_log_probs, num_beams, length):
    hypotheses = [([], 0.0)]
    for step in range(length):
        expanded = []
        for text, logp in hypotheses:
            dist = next_log_probs(text)
            for v in range(dist.shape[-1]):
                expanded.append((text + [v], logp + float(dist[v])))
        expanded.sort(key=lambda h: h[1])
        hypotheses = expanded[:num_beams]
    return hypotheses[0]

# ==== wrong: the score is divided by the length (mean log-probability instead of the sum)
# says: The log-probability is divided by the length of the
import heapq


def beam_search(next_log_probs, num_beams, length):
    beams = [(0.0, [])]
    for _ in range(length):
        options = (
            (score + lp, tokens + [i])
            for score, tokens in beams
            for i, lp in enumerate(next_log_probs(tokens).tolist())
        )
        beams = heapq.nlargest(num_beams, options, key=lambda o: o[0])
    score, tokens = beams[0]
    return tokens, score / max(len(tokens), 1)

# ==== wrong: returns the probability (exp) instead of the log-probability
# says: The probability is returned. Its logarithm is wanted, the
import math


def beam_search(next_log_probs, num_beams, length):
    beams = {(): 0.0}
    for _ in range(length):
        nxt = {}
        for text, lp in beams.items():
            for i, p in enumerate(next_log_probs(list(text)).tolist()):
                nxt[text + (i,)] = lp + p
        keep = sorted(nxt, key=nxt.get, reverse=True)[:num_beams]
        beams = {k: nxt[k] for k in keep}
    best = max(beams, key=beams.get)
    return list(best), math.exp(beams[best])

# ==== wrong: the model sees only the last token, not the whole text
# says: next_log_probs is told the last token alone. What follows
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        all_next = []
        for tokens, score in beams:
            lp = next_log_probs(tokens[-1:])
            for i in range(lp.numel()):
                all_next.append((tokens + [i], score + lp[i].item()))
        all_next.sort(key=lambda t: t[1], reverse=True)
        beams = all_next[:num_beams]
    return beams[0][0], beams[0][1]

# ==== wrong: score += inside the inner loop, a candidate also carries the log-probabilities of the tokens tried before it
# says: The log-probability of the beam itself is changed while
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for step in range(length):
        nxt = []
        for tokens, score in beams:
            for token, lp in enumerate(next_log_probs(tokens)):
                score += lp.item()
                nxt.append((tokens + [token], score))
        beams = sorted(nxt, key=lambda b: b[1], reverse=True)[:num_beams]
    return beams[0]

# ==== wrong: one token too many
# says: There is one step too many or too few:
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for step in range(length + 1):
        cand = []
        for seq, s in beams:
            lp = next_log_probs(seq).tolist()
            cand += [(seq + [k], s + p) for k, p in enumerate(lp)]
        beams = sorted(cand, key=lambda c: c[1], reverse=True)[:num_beams]
    return beams[0]

# ==== wrong: two mistakes: ranked by the last step only, and the returned score is a probability
# says: A text is judged by its last token alone.
import math


def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        everything = []
        for t, _ in beams:
            for v, lp in enumerate(next_log_probs(t).tolist()):
                everything.append((t + [v], lp))
        beams = sorted(everything, key=lambda b: b[1])[-num_beams:]
    t, lp = beams[-1]
    return t, math.exp(lp)

# ==== wrong: two mistakes: the beams start as copies of the empty text, and the score is the mean
# says: This is greedy: after each step only the best
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0) for _ in range(num_beams)]
    for _ in range(length):
        new = []
        for toks, sc in beams:
            lps = next_log_probs(toks)
            for j, lp in enumerate(lps):
                new.append((toks + [j], sc + float(lp)))
        new.sort(key=lambda n: n[1], reverse=True)
        beams = new[:num_beams]
    best = max(beams, key=lambda n: n[1])
    return best[0], best[1] / length if length else 0.0

# ==== wrong: two mistakes: the log-probabilities are taken for logits (softmax instead), and one token is missing
# says: Probabilities are added. Log-probabilities are, since probabilities are multiplied.
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(1, length):
        options = []
        for tokens, score in beams:
            probs = next_log_probs(tokens).softmax(-1)
            options.extend((tokens + [i], score + p) for i, p in enumerate(probs.tolist()))
        options.sort(key=lambda o: o[1], reverse=True)
        beams = options[:num_beams]
    return beams[0]

# ==== wrong: the token lists are shared, append changes the beams that come from the same text
# says: Texts share a list: append changes it for all
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        options = []
        for tokens, score in beams:
            lp = next_log_probs(tokens)
            for i in range(lp.shape[0]):
                options.append((score + lp[i].item(), tokens, i))
        options.sort(key=lambda o: o[0], reverse=True)
        beams = []
        for score, tokens, i in options[:num_beams]:
            tokens.append(i)
            beams.append((tokens, score))
    return beams[0][0][:length], beams[0][1]

# ==== wrong: twice num_beams texts are kept
# says: More beams are kept than num_beams, or fewer.
def beam_search(next_log_probs, num_beams, length):
    live = [([], 0.0)]
    for _ in range(length):
        nxt = []
        for ids, total in live:
            for i, lp in enumerate(next_log_probs(ids).tolist()):
                nxt.append((ids + [i], total + lp))
        nxt.sort(key=lambda x: x[1], reverse=True)
        live = nxt[: 2 * num_beams]
    return live[0]

# ==== wrong: topk over the flat scores, but the beam is found with // num_beams instead of // vocabulary
# says: A number that counts over beams and tokens is
import torch


def beam_search(next_log_probs, num_beams, length):
    texts, scores = [[]], torch.zeros(1)
    for _ in range(length):
        table = torch.stack([next_log_probs(t) for t in texts]) + scores[:, None]
        vocab = table.shape[1]
        scores, flat = table.flatten().topk(min(num_beams, table.numel()))
        texts = [texts[min(f // num_beams, len(texts) - 1)] + [f % vocab] for f in flat.tolist()]
    return texts[0], scores[0].item()

# ==== wrong: all beams are returned instead of the best one
# says: What is returned is another thing than the pair
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        pool = []
        for text, score in beams:
            for i, lp in enumerate(next_log_probs(text).tolist()):
                pool.append((text + [i], score + lp))
        pool.sort(key=lambda b: b[1], reverse=True)
        beams = pool[:num_beams]
    return [t for t, _ in beams], [s for _, s in beams]

# ==== wrong: a text whose last token is 0 is taken as finished and not continued
# says: A certain token ends a text here. None does:
def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        pool = []
        for text, score in beams:
            if text and text[-1] == 0:
                pool.append((text, score))
                continue
            for i, lp in enumerate(next_log_probs(text).tolist()):
                pool.append((text + [i], score + lp))
        pool.sort(key=lambda b: b[1], reverse=True)
        beams = pool[:num_beams]
    return beams[0]

# ==== wrong: topk asks for num_beams out of one text's vocabulary, an error when num_beams is larger than the vocabulary
# says:
import torch


def beam_search(next_log_probs, num_beams, length):
    beams = [([], 0.0)]
    for _ in range(length):
        candidates = []
        for tokens, score in beams:
            values, indices = torch.topk(next_log_probs(tokens), num_beams)
            for v, i in zip(values.tolist(), indices.tolist()):
                candidates.append((tokens + [i], score + v))
        candidates.sort(key=lambda c: c[1], reverse=True)
        beams = candidates[:num_beams]
    return beams[0]

# ==== right: all candidates sorted
def beam_search(next_log_probs, num_beams: int, length: int) -> tuple[list[int], float]:
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(length):
        candidates = [
            (tokens + [token], score + log_prob)
            for tokens, score in beams
            for token, log_prob in enumerate(next_log_probs(list(tokens)).tolist())
        ]
        candidates.sort(key=lambda c: c[1], reverse=True)
        beams = candidates[:num_beams]
    return beams[0]

# ==== right: tensors and topk over the flat table
import torch


def beam_search(next_log_probs, num_beams, length):
    texts = torch.zeros(1, 0, dtype=torch.int64)
    scores = torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        table = torch.stack([next_log_probs(t) for t in texts.tolist()]).double() + scores[:, None]
        scores, flat = table.flatten().topk(min(num_beams, table.numel()))
        beam, token = flat // table.shape[1], flat % table.shape[1]
        texts = torch.cat([texts[beam], token[:, None]], dim=1)
    return texts[0].tolist(), scores[0].item()

# ==== right: a heap of bounded size, and recursion over the steps
import heapq
from itertools import count


def beam_search(next_log_probs, num_beams, length):
    def grow(beams, left):
        if left == 0:
            return max(beams, key=lambda b: b[0])
        heap, tick = [], count(0, -1)
        for score, text in beams:
            for token, lp in enumerate(next_log_probs(list(text))):
                item = (score + float(lp), next(tick), text + (token,))
                (heapq.heappush if len(heap) < num_beams else heapq.heappushpop)(heap, item)
        ranked = sorted(heap, reverse=True)
        return grow([(s, t) for s, _, t in ranked], left - 1)

    score, text = grow([(0.0, ())], length)
    return list(text), score
