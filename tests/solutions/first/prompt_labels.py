# ==== wrong: no shift, each answer token is its own label
# says: Each label is the token at its own place,
def prompt_labels(rows, prompt_lengths):
    out = []
    for row, n in zip(rows, prompt_lengths):
        out.append([-100] * n + row[n:])
    return out

# ==== wrong: off by one, the last token of the prompt does not learn the first of the answer
# says: The first token of the answer is not learned.
def prompt_labels(rows, prompt_lengths):
    labels = []
    for row, p in zip(rows, prompt_lengths):
        shifted = row[1:] + [-100]
        for i in range(min(p, len(shifted))):
            shifted[i] = -100
        labels.append(shifted[: len(row)])
    return labels

# ==== wrong: with a prompt of length 0 the row comes out unshifted and one too long
# says: Without a prompt there is a label too many,
def prompt_labels(rows: list[list[int]], prompt_lengths: list[int]) -> list[list[int]]:
    return [[-100] * (p - 1) + row[p:] + [-100] for row, p in zip(rows, prompt_lengths)]

# ==== wrong: the prompt is learned too, only the last position is -100
# says: The prompt is learned too: these are the labels
def prompt_labels(rows, prompt_lengths):
    result = []
    for row in rows:
        if row:
            result.append(row[1:] + [-100])
        else:
            result.append([])
    return result

# ==== wrong: one too short, the -100 of the last token is missing
# says: The labels are one short of the row: the
def prompt_labels(rows, prompt_lengths):
    all_labels = []
    for ids, length in zip(rows, prompt_lengths):
        current = []
        for t in range(1, len(ids)):
            current.append(ids[t] if t >= length else -100)
        all_labels.append(current)
    return all_labels

# ==== wrong: off by one the other way, the last token of the prompt is learned too
# says: One token of the prompt too many is learned,
def prompt_labels(rows, prompt_lengths):
    out = []
    for row, p in zip(rows, prompt_lengths):
        lab = [-100] * len(row)
        for t in range(len(row) - 1):
            if t >= p - 2:
                lab[t] = row[t + 1]
        out.append(lab)
    return out

# ==== wrong: changes the caller's rows in place
# says: it was changed in place
def prompt_labels(rows, prompt_lengths):
    for row, p in zip(rows, prompt_lengths):
        for t in range(len(row)):
            if t + 1 < len(row) and t + 1 >= p:
                row[t] = row[t + 1]
            else:
                row[t] = -100
    return rows

# ==== wrong: the first row's prompt length is used for all rows
# says: One prompt length is used for all rows. Each
def prompt_labels(rows, prompt_lengths):
    p = prompt_lengths[0] if prompt_lengths else 0
    return [[row[t + 1] if t + 1 < len(row) and t + 1 >= p else -100 for t in range(len(row))] for row in rows]

# ==== wrong: the last token gets the row's first token as label (wrapped around)
# says: The last place of a row has a label,
def prompt_labels(rows, prompt_lengths):
    result = []
    for row, p in zip(rows, prompt_lengths):
        n = len(row)
        result.append([row[(t + 1) % n] if t >= p - 1 else -100 for t in range(n)])
    return result

# ==== wrong: question and answer are confused, the prompt is learned and the answer is -100
# says: The prompt is learned and the answer is not:
def prompt_labels(rows, prompt_lengths):
    out = []
    for tokens, k in zip(rows, prompt_lengths):
        labels = []
        for i in range(len(tokens)):
            if i + 1 < k:
                labels.append(tokens[i + 1])
            else:
                labels.append(-100)
        out.append(labels)
    return out

# ==== wrong: 0 instead of -100
# says: What is not to be learned has another label
def prompt_labels(rows, prompt_lengths):
    out = []
    for row, p in zip(rows, prompt_lengths):
        lab = [0 for _ in row]
        for t, tok in enumerate(row):
            if t >= p and t > 0:
                lab[t - 1] = tok
        out.append(lab)
    return out

# ==== wrong: shifted in the wrong direction, the label is the previous token
# says: Each label is the token before its place. The
def prompt_labels(rows, prompt_lengths):
    labels = []
    for row, p in zip(rows, prompt_lengths):
        masked = [-100 if i < p else tok for i, tok in enumerate(row)]
        labels.append(([-100] + masked)[: len(row)])
    return labels

# ==== wrong: all rows are padded to the longest one
# says: The rows of labels are padded to one length.
def prompt_labels(rows, prompt_lengths):
    longest = max((len(r) for r in rows), default=0)
    table = [[-100 for _ in range(longest)] for _ in rows]
    for i, row in enumerate(rows):
        for t in range(max(prompt_lengths[i], 1), len(row)):
            table[i][t - 1] = row[t]
    return table

# ==== wrong: two: no shift, and the first answer token is hidden too
# says: Each label is the token at its own place,
def prompt_labels(rows, prompt_lengths):
    return [[tok if i > p else -100 for i, tok in enumerate(row)] for row, p in zip(rows, prompt_lengths)]

# ==== wrong: two: the last token of the prompt does not learn, and the last -100 is missing (too short)
# says: The first token of the answer is not learned.
def prompt_labels(rows, prompt_lengths):
    def one(row, p):
        nxt = row[1:]
        return [-100 if t < p else v for t, v in enumerate(nxt)]

    return list(map(one, rows, prompt_lengths))

# ==== wrong: two: 0 instead of -100, and the prompt's own tokens are learned
# says: The prompt is learned too: these are the labels
def prompt_labels(rows, prompt_lengths):
    res = []
    i = 0
    while i < len(rows):
        r = list(rows[i])
        r.append(0)
        res.append(r[1:])
        i += 1
    return res

# ==== wrong: the prompt is cut off, the result is only as long as the answer
# says: These are the labels of the answer alone. The
def prompt_labels(rows, prompt_lengths):
    final = []
    for row, p in zip(rows, prompt_lengths):
        answer = row[p:]
        final.append(answer[1:] + [-100] if answer else [])
    return final

# ==== wrong: the last token keeps itself as label instead of -100
# says: The last place of a row has a label,
def prompt_labels(rows, prompt_lengths):
    out = []
    for row, p in zip(rows, prompt_lengths):
        lab = list(row)
        for t in range(len(row) - 1):
            lab[t] = row[t + 1] if t + 1 >= p else -100
        out.append(lab)
    return out

# ==== wrong: a tensor, padded with -100, instead of lists
# says: The labels are tensors. A list of lists of
import torch


def prompt_labels(rows, prompt_lengths):
    width = max([0] + [len(r) for r in rows])
    out = torch.full((len(rows), width), -100)
    for b, (row, p) in enumerate(zip(rows, prompt_lengths)):
        for t in range(len(row) - 1):
            if t >= p - 1:
                out[b, t] = row[t + 1]
    return out

# ==== wrong: the answer's token is looked up by value (index), repeated ids get the place of the first one
# says: A token is looked up by what it is,
def prompt_labels(rows, prompt_lengths):
    out = []
    for row, p in zip(rows, prompt_lengths):
        lab = []
        for tok in row:
            nxt = row.index(tok) + 1
            lab.append(row[nxt] if p <= nxt < len(row) else -100)
        out.append(lab)
    return out

# ==== right: comprehension with the index
def prompt_labels(rows: list[list[int]], prompt_lengths: list[int]) -> list[list[int]]:
    return [
        [row[t + 1] if p <= t + 1 < len(row) else -100 for t in range(len(row))]
        for row, p in zip(rows, prompt_lengths)
    ]

# ==== right: hide the prompt first, then shift
def prompt_labels(rows, prompt_lengths):
    result = []
    for row, p in zip(rows, prompt_lengths):
        hidden = [-100] * p + list(row[p:]) + [-100]
        result.append(hidden[1:])
    return result

# ==== right: fill a list of -100 from the answer backwards
def prompt_labels(rows, prompt_lengths):
    out = []
    for i in range(len(rows)):
        row, start = rows[i], max(prompt_lengths[i], 1)
        labels = [-100] * len(row)
        labels[start - 1 : max(len(row) - 1, 0)] = row[start:]
        out.append(labels)
    return out

# ==== right: with itertools
from itertools import chain, islice, repeat


def prompt_labels(rows, prompt_lengths):
    def labels(row, p):
        stream = chain(repeat(-100, p), islice(row, p, None), [-100])
        next(stream)
        return list(stream)

    return [labels(row, p) for row, p in zip(rows, prompt_lengths)]
