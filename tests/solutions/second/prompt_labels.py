# ==== wrong: off by one, the last token of the prompt has -100, so the first token of the answer is never learned
# says: The first token of the answer is not learned.
def prompt_labels(rows: list[list[int]], prompt_lengths: list[int]) -> list[list[int]]:
    result = []
    for row, n in zip(rows, prompt_lengths):
        labels = [-100] * len(row)
        for i in range(n, len(row) - 1):
            labels[i] = row[i + 1]
        result.append(labels)
    return result

# ==== wrong: not shifted, each place has its own token as the label
# says: Each label is the token at its own place,
def prompt_labels(rows, prompt_lengths):
    return [[-100] * n + row[n:] for row, n in zip(rows, prompt_lengths)]

# ==== wrong: a prompt of length 0 gives a row that is one too long and not shifted
# says: Without a prompt there is a label too many,
def prompt_labels(rows, prompt_lengths):
    out = []
    for tokens, p in zip(rows, prompt_lengths):
        answer = tokens[p:]
        out.append([-100] * (p - 1) + answer + [-100])
    return out

# ==== wrong: the last -100 is missing, the rows of labels are one too short
# says: The labels are one short of the row: the
def prompt_labels(rows, prompt_lengths):
    labels = []
    for k in range(len(rows)):
        row = rows[k]
        cur = []
        for j in range(1, len(row)):
            if j >= prompt_lengths[k]:
                cur.append(row[j])
            else:
                cur.append(-100)
        labels.append(cur)
    return labels

# ==== wrong: two mistakes: the rows are changed in place, and the last place keeps its token instead of -100
# says: The last place of a row has a label,
def prompt_labels(rows, prompt_lengths):
    for row, n in zip(rows, prompt_lengths):
        for i in range(len(row) - 1):
            row[i] = row[i + 1] if i + 1 >= n else -100
    return rows

# ==== wrong: two mistakes: one place too early, the last token of the prompt is learned too, and the prompt length of the first row is used for all
# says: One token of the prompt too many is learned,
def prompt_labels(rows, prompt_lengths):
    n = prompt_lengths[0]
    res = []
    for r in rows:
        nxt = r[1:] + [-100]
        res.append([tok if i + 2 >= n else -100 for i, tok in enumerate(nxt)])
    return res

# ==== right: loop over places
def prompt_labels(rows, prompt_lengths):
    result = []
    for row, n in zip(rows, prompt_lengths):
        labels = [-100] * len(row)
        for i in range(len(row) - 1):
            if i + 1 >= n:
                labels[i] = row[i + 1]
        result.append(labels)
    return result

# ==== right: slices
def prompt_labels(rows, prompt_lengths):
    starts = [max(n, 1) for n in prompt_lengths]
    return [[-100] * (s - 1) + list(r[s:]) + [-100] for r, s in zip(rows, starts)]
