"""Attention on a GPU, written in Triton: what the mask does not show is never loaded.

Queries × keys are cut into square tiles. The mask is read once, into a map that says which tiles
hold any True, and each program below walks its own list of these. The scores of a tile live in
registers and are gone with it: the softmax is put together tile by tile, and the backward pass
makes the weights anew from their logsumexp, so that memory grows with queries + keys (Dao 2023,
"FlashAttention-2", arXiv:2307.08691, algorithms 1 and 2). The map costs a copy of the mask.

A kernel is one program run many times side by side. Where CUDA speaks of threads, it speaks of
tiles (Tillet et al. 2019, "Triton: An Intermediate Language and Compiler for Tiled Neural Network
Computations"). What is a `tl.constexpr` is known when the kernel is compiled.
"""

from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from minitransformer.kernels.kernel import Kernel

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Triton is missing: pip install triton") from error
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):  # kernels take no named tuples
    raise ImportError(f"Triton {triton.__version__} is too old: torch 2.7 or later brings 3.3")

WIDEST = 128  # tiles of wider heads do not fit into the fast memory of a processor
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


class TileMap(NamedTuple):
    """A mask (B or 1, H or 1, Q, K) cut into tiles of i queries × j keys: the work there is."""

    tiles: Tensor  # (b h q k i j): the mask, False beyond its edges, each tile in one piece
    alive: Tensor  # (b h (q i)): queries that see a key
    used: Tensor  # (b h (k j)): keys that a query sees
    keys: Tensor  # (b h q k): for each tile of queries its key tiles, first those all visible,
    key_ends: Tensor  # (b h q 3): keys[ends[0]:ends[1]], then the partial, keys[ends[1]:ends[2]]
    queries: Tensor  # (b h k q) and
    query_ends: Tensor  # (b h k 3): for each tile of keys the tiles of queries, in the same way
    row_step: int  # from the mask of one row of the batch to that of the next; 0: they share it
    head_step: int
    query_tiles: int
    key_tiles: int


def tile_map(mask: Tensor, size: int) -> TileMap:
    """Read the mask, on its own device: nothing here waits for a GPU.

    >>> tile_map(torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(), 2).key_ends
    tensor([[[[0, 0, 1],
              [0, 1, 2]]]], dtype=torch.int32)
    """
    queries, keys = mask.shape[2:]
    given, shape = mask, (*mask.shape[:2], queries + -queries % size, keys + -keys % size)
    mask = mask.new_zeros(shape)  # F.pad refuses a mask without keys in torch 2.6
    mask[:, :, :queries, :keys] = given
    tiles = rearrange(mask, "b h (q i) (k j) -> b h q k i j", i=size, j=size).contiguous()
    seen = tiles.any(dim=(-1, -2)).int() + tiles.all(dim=(-1, -2)).int()  # 1 in part, 2 whole
    lists = []
    for shown in (seen, seen.mT):
        order = shown.argsort(dim=-1, descending=True, stable=True)
        ends = torch.stack([(shown > least).sum(dim=-1) for least in (2, 1, 0)], dim=-1)
        lists += [order.int().contiguous(), ends.int()]
    batch, heads, *tiled = seen.shape
    steps = heads if batch > 1 else 0, 1 if heads > 1 else 0
    return TileMap(tiles, mask.any(dim=-1), mask.any(dim=-2), *lists, *steps, *tiled)


class Heads(NamedTuple):
    """A tensor (batch, heads, length, width) as a kernel sees it: an address and how to step.

    `unit` is what the compiler knows of alignment: it loads 16 bytes at once only where it can see
    that rows begin at multiples of them. Of a number it sees no more than whether 16 divides it,
    and 24, a head's width and so a step, is none of these.
    """

    pointer: Tensor
    strides: tuple[int, ...]  # of batch, heads and length, in units; of width, in numbers
    unit: tl.constexpr
    width: tl.constexpr
    padded: tl.constexpr  # the width of its tiles: a power of two, as all of Triton's


def _heads(x: Tensor) -> Heads:
    return Heads(x, *_layout(x.shape[-1], x.stride()))


@lru_cache(1024)  # all layers and steps of one shape share it
def _layout(width: int, steps: tuple[int, ...]) -> tuple:
    """What `Heads` says of a tensor but where it is."""
    padded = max(16, triton.next_power_of_2(width))  # 16: the least of a matrix product
    *steps, column = steps
    unit = gcd(16, *steps)
    strides = (*(step // unit for step in steps), column)
    return strides, tl.constexpr(unit), tl.constexpr(width), tl.constexpr(padded)


@triton.jit
def _places(x, batch, head, rows, wanted):
    """The addresses of some rows of a head, and which of these are both real and wanted."""
    columns = tl.arange(0, x.padded)[None, :]
    steps = batch.to(tl.int64) * x.strides[0] + head.to(tl.int64) * x.strides[1]
    starts = x.pointer + (steps + rows.to(tl.int64)[:, None] * x.strides[2]) * x.unit
    places = starts + columns * x.strides[3]
    return places, wanted[:, None] & (columns < x.width)


@triton.jit
def _load(x, batch, head, rows, wanted):
    """Rows as a tile. Zeros stand for what is not `wanted`: its memory is not even read."""
    places, real = _places(x, batch, head, rows, wanted)
    return tl.load(places, mask=real, other=0.0)


@triton.jit
def _store(x, batch, head, rows, wanted, tile):
    places, real = _places(x, batch, head, rows, wanted)
    tl.store(places, tile.to(x.pointer.dtype.element_ty), mask=real)


@triton.jit
def _some(flags, at, PARTIAL: tl.constexpr):
    """Which rows of a tile are wanted: in tiles that are visible as a whole, all."""
    wanted = tl.full(at.shape, True, tl.int1)
    if PARTIAL:
        wanted = tl.load(flags + at)
    return wanted


@triton.jit
def _product(a, b):
    """a @ b, summed in float32, and float32 itself is not rounded to TensorFloat-32."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _scores(a, b, scale, visible):
    """a @ bᵀ · scale: scaled first where the product could overflow, last where half rounds."""
    if a.dtype == tl.float32:
        scores = _product(a * scale, tl.trans(b))
    else:
        scores = _product(a, tl.trans(b)) * scale
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _here(plan, tiles, heads):
    """What this program computes: a tile of a head of a row of the batch."""
    lane, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    return tile, lane // heads, lane % heads


@triton.jit
def _plane(plan, batch, head):
    """Which of the masks in the plan this head of this row has."""
    return batch.to(tl.int64) * plan.row_step + head * plan.head_step


@triton.jit
def attention_forward(
    query, key, value, output, logsumexp, plan, heads, group, scale, SIZE: tl.constexpr
):
    """Each program: one tile of the queries of one head, against the key tiles of its list."""
    tile, batch, head = _here(plan, plan.query_tiles, heads)
    plane, at = _plane(plan, batch, head), tl.arange(0, SIZE)
    line, rows = plane * plan.query_tiles + tile, tile * SIZE + at
    alive = tl.load(plan.alive + line * SIZE + at)
    q = _load(query, batch, head, rows, alive)
    total = tl.zeros([SIZE, value.padded], tl.float32)
    weight = tl.zeros([SIZE], tl.float32)
    highest = tl.full([SIZE], LOWEST, tl.float32)  # finite, as ∞ - ∞ would be NaN
    for PARTIAL in tl.static_range(2):  # unrolled by the compiler: whole tiles need no mask
        ends = plan.key_ends + line * 3 + PARTIAL
        for n in range(tl.load(ends), tl.load(ends + 1)):
            key_tile = tl.load(plan.keys + line * plan.key_tiles + n)
            keys = key_tile * SIZE + at
            used = _some(plan.used + plane * plan.key_tiles * SIZE, keys, PARTIAL)
            spot = (line * plan.key_tiles + key_tile) * SIZE * SIZE
            visible = _some(plan.tiles + spot, at[:, None] * SIZE + at[None, :], PARTIAL)
            k = _load(key, batch, head // group, keys, used)
            v = _load(value, batch, head // group, keys, used)
            scores = _scores(q, k, scale, visible)
            new = tl.maximum(highest, tl.max(scores, 1))
            weights, fade = tl.exp(scores - new[:, None]), tl.exp(highest - new)
            weight = weight * fade + tl.sum(weights, 1)
            total = total * fade[:, None] + _product(weights.to(v.dtype), v)
            highest = new
    weight = tl.where(alive, weight, 1.0)
    _store(output, batch, head, rows, alive, total / weight[:, None])
    lane = (batch * heads + head).to(tl.int64) * plan.query_tiles * SIZE
    tl.store(logsumexp + lane + rows, highest + tl.log(weight))


@triton.jit
def attention_backward_query(
    query, key, value, output, d_output, d_query, logsumexp, delta,
    plan, heads, group, scale, SIZE: tl.constexpr,
):  # fmt: skip
    """The same walk: dQ = dS K, where dS = P ∘ (dO Vᵀ - delta), with delta = Σ O ∘ dO."""
    tile, batch, head = _here(plan, plan.query_tiles, heads)
    plane, at = _plane(plan, batch, head), tl.arange(0, SIZE)
    line, rows = plane * plan.query_tiles + tile, tile * SIZE + at
    alive = tl.load(plan.alive + line * SIZE + at)
    q = _load(query, batch, head, rows, alive)
    do = _load(d_output, batch, head, rows, alive)
    o = _load(output, batch, head, rows, alive)
    mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    lane = (batch * heads + head).to(tl.int64) * plan.query_tiles * SIZE
    tl.store(delta + lane + rows, mean)  # for the next kernel
    lse = tl.load(logsumexp + lane + rows)
    dq = tl.zeros([SIZE, query.padded], tl.float32)
    for PARTIAL in tl.static_range(2):
        ends = plan.key_ends + line * 3 + PARTIAL
        for n in range(tl.load(ends), tl.load(ends + 1)):
            key_tile = tl.load(plan.keys + line * plan.key_tiles + n)
            keys = key_tile * SIZE + at
            used = _some(plan.used + plane * plan.key_tiles * SIZE, keys, PARTIAL)
            spot = (line * plan.key_tiles + key_tile) * SIZE * SIZE
            visible = _some(plan.tiles + spot, at[:, None] * SIZE + at[None, :], PARTIAL)
            k = _load(key, batch, head // group, keys, used)
            v = _load(value, batch, head // group, keys, used)
            weights = tl.exp(_scores(q, k, scale, visible) - lse[:, None])
            d_weights = _product(do, tl.trans(v)) - mean[:, None]
            d_scores = tl.where(visible, weights * d_weights, 0.0)  # 0 · ∞ would be NaN
            dq += _product(d_scores.to(k.dtype), k)
    _store(d_query, batch, head, rows, alive, dq * scale)


@triton.jit
def attention_backward_key_value(
    query, key, value, d_output, d_key, d_value, logsumexp, delta,
    plan, heads, group, scale, SIZE: tl.constexpr,
):  # fmt: skip
    """Each program: a tile of keys, against the queries that see it: dV = Pᵀ dO, dK = dSᵀ Q."""
    tile, batch, key_head = _here(plan, plan.key_tiles, heads // group)
    at = tl.arange(0, SIZE)
    rows, ever_used = tile * SIZE + at, at < 0  # none so far
    dk = tl.zeros([SIZE, key.padded], tl.float32)
    dv = tl.zeros([SIZE, value.padded], tl.float32)
    for member in range(group):  # the query heads that share these keys
        head = key_head * group + member
        plane = _plane(plan, batch, head)
        line = plane * plan.key_tiles + tile
        lane = (batch * heads + head).to(tl.int64) * plan.query_tiles * SIZE
        used = tl.load(plan.used + line * SIZE + at)
        ever_used = ever_used | used
        k = _load(key, batch, key_head, rows, used)
        v = _load(value, batch, key_head, rows, used)
        for PARTIAL in tl.static_range(2):
            ends = plan.query_ends + line * 3 + PARTIAL
            for n in range(tl.load(ends), tl.load(ends + 1)):
                query_tile = tl.load(plan.queries + line * plan.query_tiles + n)
                queries = query_tile * SIZE + at
                alive = _some(plan.alive + plane * plan.query_tiles * SIZE, queries, PARTIAL)
                spot = plane * plan.query_tiles + query_tile
                spot = (spot * plan.key_tiles + tile) * SIZE * SIZE  # below: keys × queries
                visible = _some(plan.tiles + spot, at[None, :] * SIZE + at[:, None], PARTIAL)
                q = _load(query, batch, head, queries, alive)
                do = _load(d_output, batch, head, queries, alive)
                lse = tl.load(logsumexp + lane + queries)
                mean = tl.load(delta + lane + queries)
                weights = tl.exp(_scores(k, q, scale, visible) - lse[None, :])
                d_weights = _product(v, tl.trans(do)) - mean[None, :]
                d_scores = tl.where(visible, weights * d_weights, 0.0)
                dv += _product(weights.to(do.dtype), do)
                dk += _product(d_scores.to(q.dtype), q)
    _store(d_key, batch, key_head, rows, ever_used, dk * scale)
    _store(d_value, batch, key_head, rows, ever_used, dv)


INTERPRETED = not isinstance(attention_forward, triton.JITFunction)  # by TRITON_INTERPRET=1


class _Attention(torch.autograd.Function):
    """Only what is alive or used is written, so what is written to starts as zeros."""

    @staticmethod
    def forward(ctx, query, key, value, plan, size):
        batch, heads, length, width = query.shape
        output = value.new_zeros(batch, length, heads, value.shape[-1]).transpose(1, 2)
        logsumexp = query.new_empty(batch, heads, plan.query_tiles * size, dtype=torch.float32)
        ctx.rest = plan, heads, heads // max(key.shape[1], 1), width**-0.5, size
        with torch.cuda.device_of(query):
            attention_forward[(batch * heads * plan.query_tiles,)](
                *map(_heads, (query, key, value, output)), logsumexp, *ctx.rest, num_stages=2
            )
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):
        query, key, value, output, logsumexp = ctx.saved_tensors
        gradients = [torch.zeros_like(x) for x in (query, key, value)]
        q, k, v, o, do = map(_heads, (query, key, value, output, d_output))
        dq, dk, dv = map(_heads, gradients)
        rest, plan = (logsumexp, torch.empty_like(logsumexp), *ctx.rest), ctx.rest[0]
        row = max(q.padded.value, v.padded.value) * query.element_size()
        options = {"num_warps": backward_warps(row), "num_stages": 2}
        with torch.cuda.device_of(query):
            attention_backward_query[(len(query) * query.shape[1] * plan.query_tiles,)](
                q, k, v, o, do, dq, *rest, **options
            )
            attention_backward_key_value[(len(key) * key.shape[1] * plan.key_tiles,)](
                q, k, v, do, dk, dv, *rest, **options
            )
        return *gradients, None, None


def backward_warps(row: int) -> int:
    """How many warps share a tile whose rows have so many bytes: so many that few registers spill.

    As the size of the tiles, this follows from scripts/compiled_kernels.md and was never timed.
    """
    return 4 if row <= 128 else 8


def tile_plan(mask: Tensor, batch: int, heads: int, dtype: torch.dtype) -> TileMap:
    return tile_map(mask, 32 if dtype == torch.float32 else 64)  # as much as the registers hold


def compute(query: Tensor, key: Tensor, value: Tensor, plan: TileMap, finite: bool) -> Tensor:
    """On CUDA, in float32, float16 or bfloat16, widths up to 128, any strides.

    Only on GPUs of NVIDIA from compute capability 8.0 (A100) on: before, bfloat16 has no tensor
    cores and registers spill by thousands of bytes; for AMD's MI300X the compiler of Triton 3.9
    fails (scripts/compiled_kernels.md).
    Raises TypeError, ValueError or RuntimeError for what it cannot do, and says what can.
    """
    _check(query, key, value, plan.tiles)
    return _Attention.apply(query, key, value, plan, plan.tiles.shape[-1])


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> None:
    instead = "; use attention = tiled or fused"
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"expected float32, float16 or bfloat16, got {query.dtype}{instead}")
    if INTERPRETED and query.dtype == torch.bfloat16:  # triton issue 4972
        raise TypeError("Triton's interpreter gets bfloat16 wrong; use float32 or float16 there")
    if len({x.device for x in (query, key, value, mask)}) > 1:
        raise RuntimeError("query, key, value and mask must be on one device")
    if not query.is_cuda and not INTERPRETED:
        raise RuntimeError(
            f"Triton needs a GPU, the tensors are on {query.device}{instead}, or set "
            "TRITON_INTERPRET=1 before Python starts to run the kernels slowly on the CPU"
        )
    if query.is_cuda and (
        torch.version.hip or torch.cuda.get_device_capability(query.device) < (8, 0)
    ):
        raise RuntimeError(
            "the Triton kernels are for GPUs of NVIDIA from compute capability 8.0 on, "
            f"{query.device} is another{instead}"
        )
    widths = query.shape[3], value.shape[3]
    if not 1 <= min(widths) <= max(widths) <= WIDEST:
        raise ValueError(f"widths must be 1 to {WIDEST}, got {widths}{instead}")


triton_attention = Kernel("triton", tile_plan, compute)
