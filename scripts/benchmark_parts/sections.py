"""What is measured. Each function is a section of the report and its docstring the text above it.

A section returns groups: entrants that were compared with each other, each with its seconds, and
what else there is to say about it. A group is plain data, as it stands in the files of raw numbers.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import minitransformer as mt
from benchmark_parts import peers
from benchmark_parts.measure import Bench, Run, median, name_of, where_time_goes
from benchmark_parts.peers import Builder, Ours, Size, initialize
from minitransformer.data import Batch, PairBatch
from minitransformer.inference.generation import stream_tokens
from minitransformer.inference.prepacked import prepack
from minitransformer.kernels import attention_kernel
from minitransformer.kernels.sdpa import SdpaMask

FIRST_WORD, MASK = 5, 3  # smaller ids are special tokens
Group = dict[str, Any]


# ---- data --------------------------------------------------------------------------------------


def ragged_lengths(count: int, longest: int, full: float) -> list[int]:
    """Long-tailed (log-normal) lengths that fill a share of a batch whose rows are `longest`.

    One is as long as the rows, if there is room for it.
    """
    wanted = full * count * longest
    shape = torch.randn(count, generator=torch.Generator().manual_seed(0)).mul(0.7).exp()
    if wanted > longest + count:
        shape[0] = math.inf
    low, high = 0.0, float(longest) * 100
    for _ in range(60):  # the scale, by bisection
        middle = (low + high) / 2
        lengths = (shape * middle).clamp(1, longest).round()
        low, high = (middle, high) if lengths.sum() < wanted else (low, middle)
    return lengths.int().tolist()


def documents(lengths: Sequence[int], vocab_size: int, seed: int) -> list[list[int]]:
    """Random words, the frequent ones as frequent as in a language (Zipf): something to learn."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1.0 / torch.arange(1, vocab_size - FIRST_WORD + 1)
    words = torch.multinomial(frequency, sum(lengths), replacement=True, generator=generator)
    return [part.tolist() for part in (words + FIRST_WORD).split(list(lengths))]


def causal_batches(lengths: Sequence[int], seed: int) -> tuple[Batch, Batch]:
    """The same documents packed, in rows as long as the longest, and padded."""
    rows = documents(lengths, Size.vocab_size, seed)
    batches = mt.pack(rows), mt.pad(rows)
    packed, padded = (
        Batch(b.input_ids, b.attention_mask, mt.next_token_labels(b.input_ids, b.attention_mask))
        for b in batches
    )
    return packed, padded


def masked_batches(lengths: Sequence[int], seed: int) -> tuple[Batch, Batch]:
    """The same, with the same 15 % of the words hidden."""
    whole = mt.pad(documents(lengths, Size.vocab_size, seed))
    generator = torch.Generator().manual_seed(seed)
    ids, labels = mt.mask_tokens(
        whole.input_ids,
        whole.attention_mask,
        MASK,
        Size.vocab_size,
        range(FIRST_WORD),
        generator=generator,
    )
    rows, row_labels = (
        [row[:n].tolist() for row, n in zip(x, lengths, strict=True)] for x in (ids, labels)
    )
    return mt.pack(rows, labels=row_labels), mt.pad(rows, labels=row_labels)


def masked_lengths(quick: bool) -> list[int]:
    return ragged_lengths(8 if quick else 32, Size.max_length, 0.5)


def pair_batches(count: int, seed: int) -> tuple[PairBatch, PairBatch]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(10, 61, (2, count), generator=generator).tolist()
    sources, targets = (documents(n, Size.vocab_size, 2 * seed + i) for i, n in enumerate(lengths))
    return mt.pack_pairs(sources, targets, None, 1, 2), mt.pad_pairs(sources, targets, 1, 2)


# ---- training ----------------------------------------------------------------------------------

AnyBatch = Batch | PairBatch
PACKED, PADDED = 0, 1  # where the two layouts stand in what the functions above return
BOTH = {"ours, packed": PACKED, "ours, padded": PADDED}


class Trainer:
    """Called, it makes one training step with the next batch. No step sees the first batch."""

    def __init__(
        self,
        build: Builder,
        size: Size,
        batches: Sequence[AnyBatch],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.model = initialize(build(size)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        there = [batch.to(device) for batch in batches]
        if isinstance(self.model, Ours):  # labels stay on the CPU, as in `training.loop`
            there = [
                replace(new, labels=old.labels) for new, old in zip(there, batches, strict=True)
            ]
        self.held_out, *training = there
        self.batches = cycle(training)
        half = dtype != torch.float32
        self.autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=half)

    def __call__(self) -> None:
        with self.autocast():
            loss = self.model.loss(next(self.batches))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        with self.autocast():
            return self.model.loss(self.held_out).item()


def compare_training(
    bench: Bench,
    title: str,
    ours: Builder,
    theirs: Mapping[str, Builder],
    size: Size,
    batches: Sequence[tuple[AnyBatch, AnyBatch]],
    *,
    layouts: Mapping[str, int] = BOTH,
    dtype: torch.dtype = torch.float32,
    flop: float | None = None,
    warm_up: int = 3,
) -> Group:
    """One group: ours, in the `layouts` named, and theirs, padded. `flop`: what a step needs."""
    entrants = {name: (ours, layout) for name, layout in layouts.items()}
    entrants |= {name: (build, PADDED) for name, build in theirs.items()}
    trainers, absent = {}, {}
    for name, (build, layout) in entrants.items():
        try:
            laid_out = [pair[layout] for pair in batches]
            trainer = Trainer(build, size, laid_out, dtype, bench.device)
            trainer()  # one step of the warm-up: what fails costs the others nothing
        except ImportError as error:
            absent[name] = f"{error.name} is not installed"
        except Exception as error:
            absent[name] = _said(error)
        else:
            trainers[name] = trainer
    found = bench.compare(title, trainers, warm_up=1 if bench.quick else warm_up - 1)
    masks = [tensor for name, tensor in batches[1][PADDED].items() if name.endswith("mask")]
    tokens = sum(int((mask != 0).sum()) for mask in masks)
    group: Group = {"title": title, "baseline": next(iter(theirs)), "rows": [], "absent": absent}
    for name, trainer in trainers.items():
        row = {"name": name, **found[name], "tokens": tokens, "loss": trainer.held_out_loss()}
        row["parameters"] = sum(p.numel() for p in trainer.model.parameters())
        if flop is not None:
            reached = flop / median(row["seconds"]) / 1e9
            row["ceiling"] = reached / bench.ceiling[name_of(dtype)]
        group["rows"].append(row)
    group["profile"] = where_time_goes(next(iter(trainers.values())), bench.device)
    return group


def _said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def needed_flop(size: Size, lengths: Sequence[int], labels: int, causal: bool) -> float:
    """Operations of a step, forward and twice that backward, that no implementation can leave out.

    A multiplication and an addition for each weight and real token, for each entry of the mask
    that is True and number of the query (once for the score, once for the value), and for each
    weight of the projection and label.
    """
    weights = size.num_layers * (4 * size.d_model**2 + 2 * size.d_model * size.d_ff)
    seen = sum(n * (n + 1) / 2 if causal else n**2 for n in lengths)
    attention = 2 * size.num_layers * size.d_model * seen
    projection = size.d_model * size.vocab_size * labels
    return 3 * 2 * (weights * sum(lengths) + attention + projection)


def masked_language_model(bench: Bench) -> Iterator[Group]:
    """An encoder of 4 layers, width 256, 8 heads, vocabulary 8,000, learns to fill in 15 % of the
    words: 32 documents of 1 to 256 tokens, long-tailed, so that half of a padded batch is padding.
    Forward, backward and AdamW's step. Ours is given the documents packed, as our users would,
    and once padded; the others are given padded batches and their own masks."""
    size = Size()
    lengths = masked_lengths(bench.quick)
    batches = [masked_batches(lengths, seed) for seed in range(4)]
    labels = int((batches[1][PADDED].labels != -100).sum())
    flop = needed_flop(size, lengths, labels, causal=False)
    for dtype in bench.dtypes:
        title = f"masked language model, ragged, {name_of(dtype)}"
        ours, theirs = peers.our_encoder, peers.ENCODERS
        yield compare_training(bench, title, ours, theirs, size, batches, dtype=dtype, flop=flop)


def causal_language_model(bench: Bench) -> Iterator[Group]:
    """A decoder of 6 layers, width 256, 8 heads, vocabulary 8,000, predicts the next token of 16
    documents: all of 256 tokens, where nothing can be saved but what is in the future, and
    ragged, where half of a padded batch is padding. Theirs need no mask for padding on the right,
    which lies in the future of every token; those of transformers are given it all the same, as
    their users do."""
    size = Size(num_layers=6)
    full, ragged = [size.max_length] * 16, ragged_lengths(16, size.max_length, 0.5)
    work = {"dense": (full, {"ours": PADDED}), "ragged": (ragged, BOTH)}
    if bench.quick:
        del work["dense"]
    for name, (lengths, layouts) in work.items():
        batches = [causal_batches(lengths, seed) for seed in range(4)]
        flop = needed_flop(size, lengths, sum(lengths) - len(lengths), causal=True)
        for dtype in bench.dtypes:
            yield compare_training(
                bench,
                f"causal language model, {name}, {name_of(dtype)}",
                peers.our_decoder,
                peers.DECODERS,
                size,
                batches,
                layouts=layouts,
                dtype=dtype,
                flop=flop,
            )


def encoder_decoder(bench: Bench) -> Iterator[Group]:
    """Pairs, with padding on both sides. First 64 of 10 to 60 tokens each, 3 + 3 layers, width
    256, 8 heads, vocabulary 8,000; then the main job's dates, 128 of about 20 and 10 characters,
    1 + 1 layers, width 96, 4 heads. The 2017 style; tokens count on both sides."""
    ours, theirs = peers.our_encoder_decoder, peers.ENCODER_DECODERS
    size, count = Size(num_layers=3), 16 if bench.quick else 64
    batches = [pair_batches(count, seed) for seed in range(4)]
    for dtype in bench.dtypes:
        title = f"pairs of 10 to 60 tokens, {name_of(dtype)}"
        yield compare_training(bench, title, ours, theirs, size, batches, dtype=dtype)
    title = "the main job's dates, float32"
    if find_spec("babel") is None:
        yield {"title": title, "rows": [], "absent": {"all": "babel is not installed"}}
        return
    size, dates = date_batches(9)
    yield compare_training(bench, title, ours, theirs, size, dates)


def date_batches(count: int) -> tuple[Size, list[tuple[PairBatch, PairBatch]]]:
    """The main job's model, and batches packed and padded."""
    from minitransformer.training.tasks import DatesTask

    task = DatesTask()
    dates = [
        (task.batch(0, step, 128, packed=True), task.batch(0, step, 128, packed=False))
        for step in range(count)
    ]
    return Size(len(task.vocabulary), d_model=96, num_layers=1, num_heads=4, max_length=64), dates


# ---- generation --------------------------------------------------------------------------------


def generation(bench: Bench) -> Iterator[Group]:
    """16 ragged prompts of 8 to 64 tokens, 128 new ones for each and once 48, greedy, with a cache;
    6 layers, width 512, random weights, the same on both sides. Where tokens differ, two of them
    were equally likely up to rounding, and what follows follows from that."""
    for family in ("GPT-2", "Llama"):
        title = f"generation, {family}"
        try:
            theirs, ours, batch = generators(bench, family)
        except ImportError as error:
            yield {"title": title, "rows": [], "absent": {"all": f"{error.name} is not installed"}}
            continue
        for new in (16,) if bench.quick else (128, 48):
            named = title if new != 48 else f"{title}, 48 tokens"
            yield compare_generation(bench, named, theirs, ours, batch, new)


def generators(bench: Bench, family: str) -> tuple[nn.Module, mt.DecoderOnly, Batch]:
    """Theirs, ours with the same weights, and prompts."""
    theirs = _generator(family, *((2, 256) if bench.quick else (6, 512)))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = mt.load_pretrained(folder).to(bench.device)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 65, (16,), generator=generator).tolist()
    prompts = documents(lengths, Size.vocab_size, 0)
    batch = mt.pad(prompts, side="left").to(bench.device)  # the side that theirs takes
    return theirs.to(bench.device), ours, batch


def compare_generation(
    bench: Bench, title: str, theirs: Any, ours: mt.DecoderOnly, batch: Batch, new: int
) -> Group:
    ids, mask = batch.input_ids, batch.attention_mask

    def with_theirs(cache: str) -> Tensor:
        options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        return theirs.generate(
            ids, attention_mask=mask, cache_implementation=cache, eos_token_id=None, **options
        )[:, ids.shape[1] :]

    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: torch.stack(mt.generate(ours, ids, mask, new)),
        "transformers, dynamic cache": lambda: with_theirs("dynamic"),
        "transformers, static cache": lambda: with_theirs("static"),
    }
    wanted = runs["ours"]()
    same = {n: (wanted == run()).double().mean().item() for n, run in runs.items()}
    found = bench.compare(title, runs)
    about = {"parameters": sum(p.numel() for p in ours.parameters()), "tokens": wanted.numel()}
    rows = [{"name": n, **found[n], **about, "same_tokens": same[n]} for n in runs]
    return {"title": title, "baseline": "transformers, dynamic cache", "rows": rows}


def _generator(family: str, layers: int, width: int) -> nn.Module:
    import transformers

    common = {"vocab_size": Size.vocab_size, "max_position_embeddings": 256}
    common |= {"bos_token_id": None, "eos_token_id": None}
    if family == "GPT-2":
        config = transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=8, **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=1376,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            **common,
        )
        model = transformers.LlamaForCausalLM(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # larger than at the start of a training, so that tokens vary
            nn.init.normal_(parameter, std=0.06)
    return model.eval()


# ---- attention ---------------------------------------------------------------------------------

HEADS, WIDTH, WINDOW = 8, 64, 128
SDPA = "SDPA, mask"


def attention(bench: Bench) -> Iterator[Group]:
    """Attention alone: batch 8, 8 heads of width 64. *causal*: the past; *half padded*: rows of
    long-tailed lengths; *nearly alike*: rows up to 3 tokens short; *packed*: four documents in each
    row; *window*: the last 128 tokens. SDPA is given the same boolean mask, and its flag instead
    where one says the same. What depends on the mask alone and serves all layers of a model, our
    plan and FlexAttention's block mask, is made before. bfloat16 on CUDA, else float32; differences
    from SDPA are at real queries. A difference of 0 says that ours is the same kernel: what is
    missing from 1.00 is then our call of it, what is read for NaN, or noise."""
    lengths = (512,) if bench.quick else (128, 512, 1024, 2048)
    if bench.device.type == "cuda":
        lengths += (4096,)  # on a CPU the next section has it
    work = dict.fromkeys(("none", "causal", "half padded", "nearly alike", "packed"), lengths)
    work["window"] = tuple(sorted({*lengths, 2 * WINDOW}))
    if bench.quick:
        del work["none"], work["window"]
    for backward in (True,) if bench.quick else (False, True):
        for name, length in [(mask, length) for mask in work for length in work[mask]]:
            causal, window = name in ("causal", "window"), WINDOW if name == "window" else None
            group = compare_attention(
                bench,
                f"{name}, length {length}",
                documents_seen(name, length),
                causal,
                window,
                backward,
            )
            group["table"] = "forward and backward" if backward else "forward"
            group["row"] = {"mask": name, "length": length, "True": group["share"]}
            yield group


def documents_seen(name: str, length: int) -> Tensor:
    """attention_mask (8, length) of the work so named."""
    if name == "half padded":
        return _padded(8, length, 0.5)
    if name == "nearly alike":
        return (torch.arange(length) < length - torch.arange(8).unsqueeze(1) % 4).long()
    tokens = torch.ones(8, length, dtype=torch.int64)
    if name == "packed":
        cuts = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
        cuts = (cuts * length).long().sort(dim=1).values
        tokens += (cuts[:, :, None] <= torch.arange(length)).sum(dim=1)
    return tokens


def compare_attention(
    bench: Bench,
    title: str,
    attention_mask: Tensor,
    causal: bool = False,
    window: int | None = None,
    backward: bool = True,
) -> Group:
    """One group: who attends within the documents of attention_mask (B,T), as the rest says."""
    attention_mask = attention_mask.to(bench.device)
    length = attention_mask.shape[1]
    mask = mt.padding_mask(attention_mask)
    if causal:
        mask = mask & mt.causal_mask(length, device=bench.device)
    if window is not None:
        mask = mask & ~torch.ones_like(mask).tril(-window)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    query, key, value = (
        torch.randn(len(mask), HEADS, length, WIDTH, generator=generator)
        .to(bench.device, dtype)
        .requires_grad_(backward)
        for _ in range(3)
    )
    real = attention_mask != 0

    def run(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        output = f(*inputs)
        if backward:
            torch.autograd.grad(output, inputs, torch.ones_like(output))
        return output.detach()

    formulas: dict[str, Callable[..., Tensor]] = {
        "ours": _our_attention("auto", mask, query),
        SDPA: lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=mask),
    }
    if bench.device.type == "cuda":
        formulas["ours, triton"] = _our_attention("triton", mask, query)
        formulas["ours, varlen"] = _our_attention("varlen", mask, query)
        for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            formulas[f"SDPA, {backend.name.lower()}"] = _sdpa_by(backend, mask)
    if window is None and attention_mask.eq(1).all():
        formulas["SDPA, flag"] = lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=causal)
    if not bench.quick:
        formulas["FlexAttention"] = _flex_attention(attention_mask, causal, window)
    runs: dict[str, Run] = {
        name: lambda f=f: run(f, (query, key, value)) for name, f in formulas.items()
    }
    if bench.device.type == "cuda":
        unpadded = [
            x.detach().transpose(1, 2)[real].requires_grad_(backward) for x in (query, key, value)
        ]
        flash = _varlen_attention(attention_mask, causal, window)
        runs["varlen flash"] = lambda: run(flash, unpadded)

    outputs, absent = {}, {}
    for name, one in list(runs.items()):
        try:
            output = one()
        except Exception as error:  # not here, or not on this device; the others are measured
            absent[name] = _said(error)
            del runs[name]
            continue
        outputs[name] = output.transpose(1, 2)[real] if output.ndim == 4 else output
    found = bench.compare(title, runs, share=0.2)
    for name, output in outputs.items():
        found[name]["difference"] = (output - outputs[SDPA]).abs().max().item()
    rows = [{"name": name, **numbers} for name, numbers in found.items()]
    share = mask.double().mean().item()
    return {"title": title, "baseline": SDPA, "rows": rows, "absent": absent, "share": share}


def _our_attention(name: str, mask: Tensor, query: Tensor) -> Callable[..., Tensor]:
    """The mask is prepared at the first call, once for all layers, as in a model."""

    @cache
    def prepared():
        kernel = attention_kernel(name)
        assert kernel is not None  # only the reference has none
        plan = kernel.prepare(mask, query, HEADS)
        if name == "varlen" and isinstance(plan.plan, SdpaMask):
            raise RuntimeError("varlen leaves this mask to SDPA")
        return kernel, plan

    def attend(*qkv: Tensor) -> Tensor:
        kernel, plan = prepared()
        return kernel(*qkv, plan)[0]

    return attend


def _sdpa_by(backend: SDPBackend, mask: Tensor) -> Callable[..., Tensor]:
    """SDPA by one of its kernels; a RuntimeError where that has none for these tensors."""

    def attend(*qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*qkv, attn_mask=mask)

    return attend


def _flex_attention(attention_mask: Tensor, causal: bool, window: int | None):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()  # else it gives up after some masks and runs without compiling
    one_document = bool(attention_mask.eq(1).all())

    def seen(batch, head, query, key):
        allowed = query >= key if causal else query >= 0
        if window is not None:
            allowed = allowed & (query - key < window)
        if not one_document:
            document = attention_mask[batch, query]
            allowed = allowed & (document == attention_mask[batch, key]) & (document != 0)
        return allowed

    batch, length = attention_mask.shape
    block_mask = None
    if causal or not one_document:
        sizes = (batch, None, length, length)
        block_mask = create_block_mask(seen, *sizes, device=attention_mask.device)
    compiled = torch.compile(flex_attention)
    return lambda *qkv: compiled(*qkv, block_mask=block_mask)


def _varlen_attention(attention_mask: Tensor, causal: bool, window: int | None):
    """Flash-attention over documents end to end, (tokens, heads, width) each; torch carries it."""
    rows = torch.arange(len(attention_mask), device=attention_mask.device)[:, None]
    documents = (rows * attention_mask.numel() + attention_mask)[attention_mask != 0]
    lengths = torch.unique_consecutive(documents, return_counts=True)[1]
    ends, longest = F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max())
    reach = (-1 if window is None else window - 1, 0 if causal else -1)

    def flash(*qkv: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(*qkv, ends, ends, longest, longest, window_size=reach)

    return flash


def _padded(batch: int, length: int, full: float) -> Tensor:
    lengths = torch.tensor(ragged_lengths(batch, length, full))
    return (torch.arange(length) < lengths[:, None]).long()


# ---- cost --------------------------------------------------------------------------------------


def cost(bench: Bench) -> Iterator[Group]:
    """How cost grows, with the share of padding and with the length: a training step as in the
    first section; attention as in the one above, 16 rows of 1,024, and 4 rows that are half
    padding. *Ideal* is a cost in proportion to what counts: real tokens for the step (what ours
    takes without padding, times their share), entries of the mask that are True for attention
    (what SDPA takes, times their share)."""
    full = (1.0, 0.5, 0.1) if bench.quick else (1.0, 0.75, 0.5, 0.25, 0.1)
    size = Size()
    theirs = {name: build for name, build in peers.ENCODERS.items() if "x-" not in name}
    without = 0.0  # seconds of ours where there is no padding
    for share in full:
        lengths = ragged_lengths(32, size.max_length, share)
        batches = [masked_batches(lengths, seed) for seed in range(3)]
        group = compare_training(
            bench,
            f"training step, {1 - share:.0%} padding",
            peers.our_encoder,
            theirs,
            size,
            batches,
            layouts={"ours": PACKED},
            warm_up=2,
        )
        without = without or median(group["rows"][0]["seconds"])
        row = {"padding": 1 - share}
        yield group | {"table": "a training step", "row": row, "ideal": without * share}
    for share in full:
        title = f"attention, {1 - share:.0%} padding"
        group = compare_attention(bench, title, _padded(16, 256 if bench.quick else 1024, share))
        row = {"padding": 1 - share, "True": group["share"]}
        yield group | {"table": "attention, length 1,024", "row": row, "ideal": _ideal(group)}
    for length in (128, 256) if bench.quick else (256, 512, 1024, 2048, 4096):
        group = compare_attention(bench, f"attention, length {length}", _padded(4, length, 0.5))
        row = {"length": length, "True": group["share"]}
        yield group | {"table": "attention, half padded", "row": row, "ideal": _ideal(group)}


def _ideal(group: Group) -> float:
    dense = next(row for row in group["rows"] if row["name"] == SDPA)
    return median(dense["seconds"]) * group["share"]


# ---- ours alone --------------------------------------------------------------------------------


def our_steps(bench: Bench) -> Iterator[tuple[str, Run]]:
    """A training step or a step of generation of each kind, for a profile."""
    work = {
        "masked language model, ragged, packed": (
            peers.our_encoder,
            Size(),
            [masked_batches(masked_lengths(bench.quick), seed)[PACKED] for seed in range(2)],
        )
    }
    pairs = [pair_batches(16 if bench.quick else 64, seed) for seed in range(2)]
    of_pairs = {"pairs of 10 to 60 tokens": (Size(num_layers=3), pairs)}
    if find_spec("babel") is not None:
        of_pairs["the main job's dates"] = date_batches(2)
    for name, (size, batches) in of_pairs.items():
        for layout, place in (("packed", PACKED), ("padded", PADDED)):
            chosen = [both[place] for both in batches]
            work[f"{name}, {layout}"] = (peers.our_encoder_decoder, size, chosen)
    for name, (build, size, batches) in work.items():
        yield f"a training step, {name}", Trainer(build, size, batches, torch.float32, bench.device)
    for family in ("GPT-2", "Llama") if find_spec("transformers") else ():
        _, ours, batch = generators(bench, family)
        steps = stream_tokens(prepack(ours), batch.input_ids, batch.attention_mask, 128)
        yield f"a step of generation, {family}, 16 rows", lambda steps=steps: next(steps)


SECTIONS: dict[str, Callable[[Bench], Iterator[Group]]] = {
    "a": masked_language_model,
    "b": causal_language_model,
    "c": encoder_decoder,
    "d": generation,
    "e": attention,
    "f": cost,
}
