# ==== wrong: only the shape is checked
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 3, 4, 8)
    k = torch.randn(2, 3, 5, 8)
    v = torch.randn(2, 3, 5, 8)
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    mask[:, :, :, -1] = False
    out = attention(q, k, v, mask)
    assert out.shape == (2, 3, 4, 8), "wrong shape"

# ==== wrong: the mask is True everywhere, so a wrong or forgotten mask is not seen
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    gen = torch.Generator().manual_seed(1)
    q = torch.randn(2, 2, 3, 4, generator=gen)
    k = torch.randn(2, 2, 6, 4, generator=gen)
    v = torch.randn(2, 2, 6, 4, generator=gen)
    mask = torch.ones(2, 1, 3, 6).bool()
    expected = (q @ k.transpose(-2, -1) / 2.0).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, mask), expected)

# ==== wrong: returns True or False and raises nothing
# says: Your test returns its verdict, such as [False], and never fails: nobody
import torch


def catch_the_bug(attention):
    torch.manual_seed(3)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[..., 0] = True
    scores = (q @ k.mT / 8**0.5).masked_fill(~mask, float("-inf"))
    return torch.allclose(attention(q, k, v, mask), scores.softmax(-1) @ v, atol=1e-5)

# ==== wrong: bit by bit equality (torch.equal), right functions written otherwise are rejected
# says: Your test fails a correct attention, the one written with loops. Is
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(3, 2, 6, 16)
    k = torch.randn(3, 2, 9, 16)
    v = torch.randn(3, 2, 9, 16)
    mask = torch.rand(3, 1, 6, 9) > 0.5
    mask[:, :, :, 0] = True
    scores = q @ k.transpose(-1, -2) / 16**0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    want = scores.softmax(dim=-1) @ v
    assert torch.equal(attention(q, k, v, mask), want)

# ==== wrong: only that forbidden keys have no influence is tested, not what the allowed ones do (a missing or wrong scale passes)
# says: Your test passes a broken attention: not scaled. The scores are not
import torch


def catch_the_bug(attention):
    g = torch.Generator().manual_seed(5)
    q = torch.randn(2, 2, 4, 8, generator=g)
    k = torch.randn(2, 2, 6, 8, generator=g)
    v = torch.randn(2, 2, 6, 8, generator=g)
    mask = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    mask[0, :, :, 4:] = False
    mask[1, :, :, :1] = False
    before = attention(q.clone(), k.clone(), v.clone(), mask.clone())
    k2, v2 = k.clone(), v.clone()
    k2[0, :, 4:] += 3.0
    v2[0, :, 4:] += 3.0
    k2[1, :, :1] += 3.0
    v2[1, :, :1] += 3.0
    after = attention(q.clone(), k2, v2, mask.clone())
    assert torch.allclose(before, after, atol=1e-5), "a forbidden key changed the output"

# ==== wrong: as many queries as keys as numbers in a vector, so a scale by the number of keys (or queries) is not seen
# says: Your test passes a broken attention: fill of -15. Masked scores are
import torch


def catch_the_bug(attention):
    torch.manual_seed(11)
    n = 6
    query, key, value = (torch.randn(2, 2, n, n) for _ in range(3))
    mask = torch.tril(torch.ones(n, n, dtype=torch.bool)).expand(2, 1, n, n).clone()
    mask[1, :, :, 0] = False
    mask[1, :, 0, 1] = True
    s = torch.einsum("bhid,bhjd->bhij", query, key) / n**0.5
    ref = torch.where(mask, s, torch.tensor(-1e9)).softmax(-1) @ value
    out = attention(query, key, value, mask)
    assert (out - ref).abs().max() < 1e-4

# ==== wrong: one row and one head only, mistakes between the rows or heads are not seen
# says: Your test passes a broken attention: mask of the first sequence for
import torch


def catch_the_bug(attention):
    torch.manual_seed(2)
    q = torch.randn(1, 1, 3, 4)
    k = torch.randn(1, 1, 5, 4)
    v = torch.randn(1, 1, 5, 4)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 0, 1]], dtype=torch.bool)
    want = torch.zeros(3, 4)
    for i in range(3):
        s = (k[0, 0] @ q[0, 0, i] / 2)[mask[i]]
        want[i] = s.softmax(0) @ v[0, 0][mask[i]]
    got = attention(q, k, v, mask[None, None])
    assert torch.allclose(got[0, 0], want, atol=1e-5), "output differs"

# ==== wrong: NaN slips through, because NaN > 1e-4 is False
# says: Your test passes a broken attention: fill of -15. Masked scores are
import torch


def catch_the_bug(attention):
    torch.manual_seed(4)
    for scale in (1.0, 60.0):
        q = torch.randn(2, 3, 5, 8) * scale
        k = torch.randn(2, 3, 7, 8)
        v = torch.randn(2, 3, 7, 8)
        mask = torch.rand(2, 1, 5, 7) < 0.6
        mask[..., 2] = True
        s = (q.double() @ k.double().mT / 8**0.5).masked_fill(~mask, -torch.inf)
        want = (s.softmax(-1) @ v.double()).float()
        diff = (attention(q, k, v, mask) - want).abs()
        if (diff > 1e-3).any():
            raise AssertionError(f"differs by {diff.max()}")

# ==== wrong: values of 1 only, it tests that the weights add up to 1 but not which weights they are
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 5, 8)
    v = torch.ones(2, 2, 5, 8)
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, :, 3:] = False
    out = attention(q, k, v, mask)
    torch.testing.assert_close(out, torch.ones(2, 2, 4, 8))

# ==== wrong: depends on chance: no seed, and a row of the random mask may hold no True, then right functions give NaN and are rejected
# says: Your test fails a correct attention, the one written with plain torch.
import torch


def catch_the_bug(attention):
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 3, 8)
    v = torch.randn(2, 2, 3, 8)
    mask = torch.rand(2, 1, 4, 3) > 0.5
    scores = q @ k.transpose(-2, -1) / 8**0.5
    scores[~mask.expand_as(scores)] = float("-inf")
    expected = scores.softmax(-1) @ v
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-5)

# ==== wrong: assert with a tuple in brackets, which is always true
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 6, 8)
    v = torch.randn(2, 2, 6, 8)
    mask = torch.rand(2, 1, 4, 6) > 0.3
    mask[..., 0] = True
    w = (q @ k.mT / 8**0.5).masked_fill(~mask, -1e9).softmax(-1)
    ok = torch.allclose(attention(q, k, v, mask), w @ v, atol=1e-5)
    assert (ok, "attention is wrong")

# ==== wrong: the test's own reference forgets the scale, so all right functions are rejected
# says: Your test fails a correct attention, the one written with plain torch.
import torch


def reference(q, k, v, mask):
    scores = q @ k.transpose(-2, -1)
    return scores.masked_fill(~mask, -1e9).softmax(dim=-1) @ v


def catch_the_bug(attention):
    torch.manual_seed(6)
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    mask = torch.rand(2, 1, 4, 6) > 0.4
    mask[..., 1] = True
    torch.testing.assert_close(attention(q, k, v, mask), reference(q, k, v, mask))

# ==== wrong: two mistakes: the verdict is returned instead of raised, and the mask is True everywhere
# says: Your test returns its verdict, such as ['right'], and never fails: nobody
import torch


def catch_the_bug(attention):
    q, k, v = (torch.arange(n, dtype=torch.float32).sin().view(1, 2, -1, 4) for n in (24, 40, 40))
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    want = torch.softmax(q @ k.transpose(2, 3) / 4**0.5, -1) @ v
    if torch.allclose(attention(q, k, v, mask), want, atol=1e-5):
        return "right"
    return "wrong"

# ==== wrong: two mistakes: one row and one head only, and as many keys as numbers in a vector
# says: Your test passes a broken attention: mask of the first sequence for
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(1, 1, 4, 4)
    k = torch.randn(1, 1, 4, 4)
    v = torch.randn(1, 1, 4, 4)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    expected = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, float("-inf")).softmax(-1) @ v
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-6)

# ==== wrong: two mistakes: only the shape and that there is no NaN is checked, and the inputs are drawn without a seed
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    b, h, n, m, d = 2, 4, 5, 6, 8
    out = attention(
        torch.randn(b, h, n, d),
        torch.randn(b, h, m, d),
        torch.randn(b, h, m, d),
        torch.ones(b, 1, n, m, dtype=torch.bool).tril(),
    )
    assert out.shape == (b, h, n, d)
    assert not out.isnan().any()

# ==== wrong: a query that sees nothing is tested for zeros, which is not asked for, right functions are rejected
# says: Your test fails a correct attention, the one written with plain torch.
import torch


def catch_the_bug(attention):
    torch.manual_seed(8)
    q = torch.randn(2, 2, 3, 4)
    k = torch.randn(2, 2, 5, 4)
    v = torch.randn(2, 2, 5, 4)
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1] = False
    mask[1, 0, :, 3:] = False
    s = (q @ k.mT / 2).masked_fill(~mask, -torch.inf)
    want = s.softmax(-1).nan_to_num(0.0) @ v
    out = attention(q, k, v, mask)
    assert torch.allclose(out[0, :, 1], torch.zeros(2, 4)), "dead query"
    assert torch.allclose(out, want, atol=1e-5)

# ==== wrong: only the means of the outputs are compared, with much tolerance
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(4, 4, 8, 16)
    k = torch.randn(4, 4, 12, 16)
    v = torch.randn(4, 4, 12, 16)
    mask = torch.rand(4, 1, 8, 12) > 0.3
    mask[..., 0] = True
    ref = (q @ k.mT / 4).masked_fill(~mask, -1e9).softmax(-1) @ v
    assert abs(attention(q, k, v, mask).mean() - ref.mean()) < 0.05

# ==== wrong: the AssertionError is caught in the test itself and only printed
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 7, 8)
    v = torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 4, 7) > 0.5
    mask[..., 3] = True
    expected = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    try:
        torch.testing.assert_close(attention(q, k, v, mask), expected)
    except AssertionError as error:
        print("attention is wrong:", error)

# ==== open: the expected output is computed after the call, from arguments that the function may have changed
import torch


def catch_the_bug(attention):
    g = torch.Generator().manual_seed(9)
    for big in (1.0, 50.0):
        q = torch.randn(2, 3, 4, 8, generator=g) * big
        k = torch.randn(2, 3, 6, 8, generator=g)
        v = torch.randn(2, 3, 6, 8, generator=g)
        mask = torch.rand(2, 1, 4, 6, generator=g) > 0.5
        mask[:, :, range(4), range(4)] = True
        out = attention(q, k, v, mask)
        s = q.double() @ k.double().mT / 8**0.5
        want = s.masked_fill(~mask, -torch.inf).softmax(-1) @ v.double()
        assert out.shape == want.shape and torch.allclose(out.double(), want, atol=1e-3)

# ==== wrong: the numbers are so small that all weights are equal, a wrong or missing scale is not seen
# says: Your test passes a broken attention: not scaled. The scores are not
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8) * 0.01
    k = torch.randn(2, 2, 6, 8) * 0.01
    v = torch.randn(2, 2, 6, 8)
    mask = torch.rand(2, 1, 4, 6) > 0.5
    mask[..., 0] = True
    ref = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    assert torch.allclose(attention(q, k, v, mask), ref, atol=1e-2)

# ==== wrong: only the causal mask is tried, a function that ignores the mask and is always causal passes
# says: Your test passes a broken attention: mask of the first sequence for
import torch


def catch_the_bug(attention):
    torch.manual_seed(12)
    for b, h, n, d in [(1, 1, 3, 4), (2, 3, 5, 8), (4, 2, 9, 2)]:
        q, k, v = torch.randn(3, b, h, n, d).unbind(0)
        mask = torch.ones(n, n, dtype=torch.bool).tril().repeat(b, 1, 1, 1)
        want = (q @ k.mT / d**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
        got = attention(q, k, v, mask)
        assert got.shape == want.shape, (got.shape, want.shape)
        assert torch.allclose(got, want, atol=1e-5), f"wrong for {(b, h, n, d)}"

# ==== wrong: the reference takes True for forbidden, right functions are rejected and inverted ones pass
# says: Your test fails a correct attention, the one written with plain torch.
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    mask = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    mask[..., ::2] = True
    scores = q @ k.transpose(2, 3) / 8**0.5
    expected = scores.masked_fill(mask, -1e9).softmax(-1) @ v
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-5)

# ==== wrong: raises ValueError instead of AssertionError
# says: It raised ValueError: attention is wrong (catch_the_bug 22, line 14: raise ValueError("attention
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 6, 8)
    v = torch.randn(2, 2, 6, 8)
    mask = torch.rand(2, 1, 4, 6) > 0.5
    mask[..., 5] = True
    expected = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    if not torch.allclose(attention(q, k, v, mask), expected, atol=1e-5):
        raise ValueError("attention is wrong")

# ==== wrong: the tolerance is so large that nearly everything passes
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 6, 8)
    v = torch.randn(2, 2, 6, 8)
    mask = torch.rand(2, 1, 4, 6) > 0.5
    mask[..., 5] = True
    expected = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, mask), expected, atol=2.0, rtol=1.0)

# ==== wrong: depends on chance: no seed, and a mask of few places that is often True everywhere
# says: Your test passes a broken attention: no mask at all. Masked keys
import torch


def catch_the_bug(attention):
    q = torch.randn(1, 2, 2, 4)
    k = torch.randn(1, 2, 3, 4)
    v = torch.randn(1, 2, 3, 4)
    mask = torch.rand(1, 1, 2, 3) > 0.1
    mask[..., 0] = True
    want = (q @ k.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    assert torch.allclose(attention(q, k, v, mask), want, atol=1e-4)

# ==== wrong: the mask is given as float 1 and 0, right functions stop with an error
# says: It raised TypeError: ~ (operator.invert) is only implemented on integer and Boolean-type
import torch


def catch_the_bug(attention):
    torch.manual_seed(0)
    q = torch.randn(2, 2, 4, 8)
    k = torch.randn(2, 2, 6, 8)
    v = torch.randn(2, 2, 6, 8)
    mask = torch.ones(2, 1, 4, 6)
    mask[..., 4:] = 0
    expected = (q @ k[:, :, :4].mT / 8**0.5).softmax(-1) @ v[:, :, :4]
    assert torch.allclose(attention(q, k, v, mask), expected, atol=1e-5)

# ==== right: comparison with a reference in float64 for many shapes, small and large scores
import torch


def catch_the_bug(attention) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1, 1, 1, 4), (2, 3, 4, 7, 8), (3, 2, 6, 6, 16), (2, 4, 5, 3, 2), (1, 2, 3, 9, 5)]
    for batch, heads, queries, keys, width in shapes:
        for size in (1.0, 4.0, 100.0):
            q = torch.randn(batch, heads, queries, width, generator=generator) * size
            k = torch.randn(batch, heads, keys, width, generator=generator)
            v = torch.randn(batch, heads, keys, width, generator=generator)
            mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.5
            one = torch.randint(keys, (batch, 1, queries, 1), generator=generator)
            mask = mask.scatter(-1, one, True)
            scores = q.double() @ k.double().transpose(-2, -1) / width**0.5
            expected = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v.double()
            given = [t.clone() for t in (q, k, v, mask)]
            try:
                output = attention(*given)
            except Exception as error:
                raise AssertionError(f"it stops with {error!r}") from error
            assert output.shape == expected.shape, f"shape {tuple(output.shape)}"
            assert torch.allclose(output.double(), expected, rtol=0, atol=2e-3 if size > 10 else 1e-4), "wrong numbers"
            for before, after in zip((q, k, v, mask), given):
                assert torch.equal(before, after), "an argument was changed"

# ==== right: the weights are read off with one-hot values and compared in logarithms, then two more properties
import torch


def call(attention, *arguments):
    try:
        return attention(*[a.clone() for a in arguments])
    except Exception as error:
        raise AssertionError(repr(error))


def catch_the_bug(attention):
    g = torch.Generator().manual_seed(7)
    batch, heads, n, m, d = 3, 2, 6, 5, 9
    q = torch.randn(batch, heads, n, d, generator=g)
    k = torch.randn(batch, heads, m, d, generator=g)
    mask = torch.rand(batch, 1, n, m, generator=g) > 0.45
    mask |= torch.nn.functional.one_hot(torch.randint(m, (batch, 1, n), generator=g), m).bool()
    factor = torch.arange(1, batch * heads + 1).view(batch, heads, 1, 1).float()
    weights = call(attention, q, k, torch.eye(m, d) * factor, mask)
    assert weights.shape == (batch, heads, n, d)
    weights = weights / factor
    assert bool((weights[..., m:].abs() < 1e-6).all())
    weights = weights[..., :m]
    assert bool((weights.sum(-1) - 1).abs().lt(1e-4).all()), "weights do not add up to 1"
    assert bool(weights.masked_fill(mask, 0.0).abs().lt(1e-6).all()), "a forbidden key has weight"
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / d**0.5
    low = weights.clamp(min=1e-30).log() - scores
    low, high = low.masked_fill(~mask, torch.inf).amin(-1), low.masked_fill(~mask, -torch.inf).amax(-1)
    assert bool(((high - low) < 1e-2).all()), "the weights are not softmax of the scores"

    strong = torch.zeros(batch, heads, m, d)
    strong[..., 0] = torch.linspace(-300, 300, m)
    first = torch.zeros(batch, heads, n, d)
    first[..., 0] = d**0.5
    v = torch.randn(batch, heads, m, d, generator=g)
    turns = (torch.arange(n) + torch.arange(batch)[:, None]).remainder(m)[:, None, :, None]
    steps = torch.arange(m) <= turns
    best = turns.squeeze(-1)
    out = call(attention, first, strong, v, steps)
    index = best.expand(batch, heads, n)[..., None].expand(-1, -1, -1, d)
    assert bool(((out - v.gather(2, index)).abs() < 1e-3).all()), "large scores"

    arguments = [q, k, v, mask]
    copies = [a.clone() for a in arguments]
    try:
        attention(*copies)
    except Exception as error:
        raise AssertionError(repr(error))
    assert all(torch.equal(a, c) for a, c in zip(arguments, copies)), "an argument was changed"

# ==== right: plain loops over rows, heads and queries with the allowed keys only
import math
import random

import torch


def expected_row(query, keys, values):
    scores = [sum(a * b for a, b in zip(query, key)) / math.sqrt(len(query)) for key in keys]
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    total = sum(powers)
    return [sum(p * v[c] for p, v in zip(powers, values)) / total for c in range(len(query))]


def catch_the_bug(attention):
    rng = random.Random(42)

    def numbers(*shape, size=1.0):
        flat = [rng.gauss(0, size) for _ in range(math.prod(shape))]
        return torch.tensor(flat, dtype=torch.float32).view(shape)

    for b, h, n, m, d, size in [(2, 2, 3, 5, 4, 1), (1, 3, 5, 2, 8, 3), (3, 1, 4, 4, 6, 80), (2, 3, 7, 8, 3, 80)]:
        q, k, v = numbers(b, h, n, d, size=size), numbers(b, h, m, d), numbers(b, h, m, d)
        rows = [[[rng.random() < 0.5 for _ in range(m)] for _ in range(n)] for _ in range(b)]
        for batch_rows in rows:
            for row in batch_rows:
                row[rng.randrange(m)] = True
        mask = torch.tensor(rows)[:, None]
        originals = (q.clone(), k.clone(), v.clone(), mask.clone())
        try:
            out = attention(q, k, v, mask)
        except Exception as error:
            raise AssertionError(f"raised {error!r}")
        for was, now in zip(originals, (q, k, v, mask)):
            if not torch.equal(was, now):
                raise AssertionError("arguments must stay as they are")
        if tuple(out.shape) != (b, h, n, d):
            raise AssertionError("shape")
        for i in range(b):
            for j in range(h):
                for t in range(n):
                    seen = [s for s in range(m) if rows[i][t][s]]
                    want = expected_row(q[i, j, t].tolist(), [k[i, j, s].tolist() for s in seen], [v[i, j, s].tolist() for s in seen])
                    for x, y in zip(out[i, j, t].tolist(), want):
                        if not abs(x - y) < (2e-3 if size > 10 else 1e-4):
                            raise AssertionError(f"row {i}, head {j}, query {t}")
