# ==== wrong: every name that ends in "attn.bias" is left out, so c_attn.bias is lost too
# says:
def load_weights(names, stored, tensors, renames):
    result = {}
    for name, t in zip(stored, tensors):
        if name.endswith("attn.bias") or name.endswith("attn.masked_bias"):
            continue
        if ".c_" in name and name.endswith(".weight"):
            t = t.T
        if "c_attn" in name:
            parts = [(name.replace("c_attn", w), p) for w, p in zip(["query", "key", "value"], t.chunk(3, dim=0))]
        else:
            parts = [(name, t)]
        for n, p in parts:
            for old, new in renames:
                n = n.replace(old, new)
            result[n] = p
    missing = [n for n in names if n not in result]
    left = [n for n in result if n not in names]
    if missing or left:
        raise KeyError(f"missing {missing}, left over {left}")
    return [result[n] for n in names]

# ==== wrong: every matrix is transposed, the embeddings too
# says: Embeddings are transposed too. They are stored as torch
def load_weights(names, stored, tensors, renames):
    def rename(n):
        for old, new in renames:
            n = n.replace(old, new)
        return n

    found = {}
    for n, t in zip(stored, tensors):
        if n.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if t.dim() == 2:
            t = t.t()
        if "c_attn" in n:
            size = t.shape[0] // 3
            for j, which in enumerate(("query", "key", "value")):
                found[rename(n.replace("c_attn", which))] = t[j * size:(j + 1) * size]
        else:
            found[rename(n)] = t
    wrong = set(names) ^ set(found)
    if wrong:
        raise KeyError(", ".join(sorted(wrong)))
    return [found[n] for n in names]

# ==== wrong: what is left over raises nothing, only what is missing does
# says: Nobody takes lm_head.weight, and there was no KeyError.
import torch


def load_weights(names, stored, tensors, renames):
    params = {}
    for key, tensor in zip(stored, tensors):
        if key.endswith(".attn.bias") or key.endswith(".attn.masked_bias"):
            continue
        if ".c_" in key and key.endswith(".weight"):
            tensor = tensor.transpose(0, 1)
        pieces = {key: tensor}
        if "c_attn" in key:
            q, k, v = torch.tensor_split(tensor, 3, dim=0)
            pieces = {key.replace("c_attn", "query"): q, key.replace("c_attn", "key"): k, key.replace("c_attn", "value"): v}
        for nm, val in pieces.items():
            for a, b in renames:
                nm = nm.replace(a, b)
            params[nm] = val
    out = []
    for n in names:
        if n not in params:
            raise KeyError("missing: " + ", ".join(m for m in names if m not in params))
        out.append(params[n])
    return out

# ==== wrong: two: c_attn is cut along the inputs instead of the outputs (after the transpose), and only the first pair that fits renames
# says: The weight of c_attn is cut along its inputs.
def load_weights(names, stored, tensors, renames):
    got = {}
    for name, t in zip(stored, tensors):
        if name.endswith(".attn.bias") or name.endswith(".attn.masked_bias"):
            continue
        if ".c_" in name and name.endswith(".weight"):
            t = t.T
        todo = []
        if "c_attn" in name:
            q, k, v = t.chunk(3, dim=-1)
            todo = [(name.replace("c_attn", "query"), q), (name.replace("c_attn", "key"), k), (name.replace("c_attn", "value"), v)]
        else:
            todo.append((name, t))
        for n, x in todo:
            for old, new in renames:
                if old in n:
                    n = n.replace(old, new)
                    break
            got[n] = x
    missing = [n for n in names if n not in got]
    extra = [n for n in got if n not in names]
    if missing or extra:
        raise KeyError(f"missing: {missing}; unexpected: {extra}")
    return [got[n] for n in names]

# ==== wrong: two: the weights of the linear layers are not transposed except c_attn, and the order is that of the checkpoint instead of names
# says: Not every linear layer is transposed: there are c_attn
def load_weights(names, stored, tensors, renames):
    new_names, new_tensors = [], []
    for n, t in zip(stored, tensors):
        if n.endswith(".attn.bias") or n.endswith(".attn.masked_bias"):
            continue
        if "c_attn" in n:
            if t.ndim == 2:
                t = t.T
            d = t.shape[0] // 3
            new_names += [n.replace("c_attn", s) for s in ("query", "key", "value")]
            new_tensors += list(t.split(d))
        else:
            new_names.append(n)
            new_tensors.append(t)
    for old, new in renames:
        new_names = [n.replace(old, new) for n in new_names]
    missing = set(names) - set(new_names)
    unused = set(new_names) - set(names)
    if missing or unused:
        raise KeyError(f"{missing} missing, {unused} unused")
    return new_tensors

# ==== wrong: all tensors are made float32, their dtype is lost
# says: The tensors come back with another dtype than they
import torch


def load_weights(names, stored, tensors, renames):
    table = {}

    def put(n, t):
        for old, new in renames:
            n = n.replace(old, new)
        table[n] = t.to(torch.float32).contiguous()

    for n, t in zip(stored, tensors):
        if n.endswith(".attn.bias") or n.endswith(".attn.masked_bias"):
            continue
        if ".c_" in n and n.endswith(".weight"):
            t = t.T
        if "c_attn" not in n:
            put(n, t)
        else:
            for part, piece in zip("query key value".split(), t.chunk(3)):
                put(n.replace("c_attn", part), piece)
    bad = [n for n in names if n not in table] + [n for n in table if n not in names]
    if bad:
        raise KeyError(str(bad))
    return [table[n] for n in names]

# ==== right: a dictionary, popped name by name
def load_weights(names, stored, tensors, renames):
    ours = {}
    for name, tensor in zip(stored, tensors):
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        if "c_attn" in name:
            pairs = [(name.replace("c_attn", w), c) for w, c in zip(("query", "key", "value"), tensor.chunk(3))]
        else:
            pairs = [(name, tensor)]
        for n, t in pairs:
            for old, new in renames:
                n = n.replace(old, new)
            ours[n] = t
    missing = [n for n in names if n not in ours]
    left = [n for n in ours if n not in names]
    if missing or left:
        raise KeyError(f"missing: {missing}, left over: {left}")
    return [ours.pop(n) for n in names]

# ==== right: a generator of pairs
from functools import reduce


def load_weights(names, stored, tensors, renames):
    def pairs():
        for n, t in zip(stored, tensors):
            tail = n.rsplit(".", 2)
            if len(tail) == 3 and tail[1] == "attn" and tail[2] in ("bias", "masked_bias"):
                continue
            if ".c_" in n and n.endswith(".weight"):
                t = t.transpose(0, 1)
            if "c_attn" in n:
                third = t.shape[0] // 3
                for j, w in enumerate(["query", "key", "value"]):
                    yield n.replace("c_attn", w), t.narrow(0, j * third, third)
            else:
                yield n, t

    final = {reduce(lambda s, r: s.replace(*r), renames, n): t for n, t in pairs()}
    if set(final) != set(names):
        raise KeyError(" ".join(["missing:", *sorted(set(names) - set(final)), "left:", *sorted(set(final) - set(names))]))
    return [final[n] for n in names]
