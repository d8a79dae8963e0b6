"""What must hold of a whole model: subjects, how they are made ready, and the checks.

A model is asked with tokens alone, and judged by its outputs at real tokens. What must not matter
is changed (padding, neighbours, the future) and the outputs must stay: to the bit where shapes
stay equal, and else within a ten-thousandth of how strongly they react to other tokens. What must
matter is changed too, for a model that sees nothing leaks nothing.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minitransformer.checks.subject import (
    Subject,
    as_dtype,
    differs,
    expect,
    needs,
    one_of,
    size,
)
from minitransformer.checks.suite import check
from minitransformer.masks import causal_mask, padding_mask

TORCH, HF = "https://github.com/pytorch/pytorch/", "https://github.com/huggingface/transformers/"
NAN = float("nan")

# How many real tokens each row has. The first is what encoders and decoders read, and the source;
# the second is the target. Unsorted, and no two sizes alike.
LENGTHS = ((2, 7, 5, 1), (4, 1, 6, 3))
BATCH = len(LENGTHS[0])
EXTRA = (0, 1, 3, 9)  # padding beyond that of the longest row

Stream = tuple[Tensor, Tensor]  # token ids (B,T), and their attention_mask (B,T) int64


# ---- subjects ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderSubject(Subject):
    """An encoder `fn(input_ids, attention_mask) -> hidden states or logits (B,T,X)`.

    It may return a tensor, a tuple that begins with it, or an object or mapping with `logits` or
    `last_hidden_state`. An nn.Module is never touched: a copy of it is checked, without dropout,
    and its parameter gradients too; of any other function the outputs alone are. What it may
    declare:

    takes         "ids", or "embeddings": floats (B,T,d_model), as torch.nn.TransformerEncoder
    d_model       the width of these
    vocab_size    ids are below it
    pad_id        the id that stands at padding, and nowhere else
    mask_means    "attend": 1 is a real token; "ignore": True is padding
    mask_values   "int", "bool", or "additive" (0 at real tokens, -inf at padding)
    sides         where padding may stand: ("right", "left")
    holes         padding may stand between tokens too
    documents     attention_mask may number packed documents: 1 1 2 2 2 0
    max_length    the longest sequence that it takes, padding included; at least 8
    returns       "tokens": (B,T,X); "sequence", of an encoder that pools: (B,X)
    dtypes        those it promises to work in; the first but for float32 is the ordinary one
    device        where it is checked
    redraw        parameters are drawn anew, and large: with the small ones that a model begins
                  with, a wrong mask moves its outputs by less than one would notice
    """

    bank: ClassVar[str] = "encoder"
    arguments: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    comparable: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    takes: str = "ids"
    d_model: int = 16
    vocab_size: int = 11
    pad_id: int = 0
    mask_means: str = "attend"
    mask_values: str = "int"
    sides: tuple[str, ...] = ("right", "left")
    holes: bool = False
    documents: bool = False
    max_length: int = 16
    returns: str = "tokens"
    dtypes: tuple[str | torch.dtype, ...] = ("float32", "bfloat16", "float16")
    device: str | torch.device = "cpu"
    redraw: bool = True

    def __post_init__(self):
        super().__post_init__()
        one_of("takes", self.takes, ("ids", "embeddings"))
        one_of("mask_means", self.mask_means, ("attend", "ignore"))
        one_of("mask_values", self.mask_values, ("bool", "int", "additive"))
        one_of("returns", self.returns, ("tokens", "sequence"))
        for name in ("sides", "dtypes"):
            value = getattr(self, name)
            if isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a tuple such as ('right',), got {value!r}")
        for side in self.sides:
            one_of("sides", side, ("right", "left"))
        longest = max(map(max, LENGTHS)) + 1
        for name, least in {"vocab_size": 5, "d_model": 1, "max_length": longest}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.takes == "ids" and not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"pad_id must be in [0, {self.vocab_size}), got {self.pad_id}")
        if self.documents and (self.mask_means, self.mask_values) != ("attend", "int"):
            raise ValueError("documents are numbers: they need mask_values='int', 'attend'")
        if self.returns == "sequence" and self.bank != "encoder":
            raise ValueError("returns='sequence' is for encoders: others give logits of each token")
        object.__setattr__(self, "dtypes", tuple(as_dtype(dtype) for dtype in self.dtypes))

    @property
    def dtype(self) -> torch.dtype:
        """What ordinary users compute in: float32 where it is promised."""
        return torch.float32 if torch.float32 in self.dtypes else as_dtype(self.dtypes[0])

    @property
    def streams(self) -> int:
        """How many sequences it reads: one, or a source and a target."""
        return len(self.arguments) // 2

    def stand_in(self, other: Subject) -> Subject:
        """Called as it wishes, but asked only what this subject is asked."""
        promised = ("sides", "holes", "documents", "returns", "dtypes", "device")
        shared = {name: getattr(self, name) for name in promised}
        return replace(other, **shared)

    def present(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """An attention_mask with its polarity and values, a tensor of its own."""
        if self.mask_values == "additive":
            return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, float("-inf"))
        mask = mask.clone() if self.mask_means == "attend" else (mask == 0).long()
        return mask.bool() if self.mask_values == "bool" else mask


@dataclass(frozen=True)
class DecoderSubject(EncoderSubject):
    """A decoder-only model `fn(input_ids, attention_mask) -> logits (B,T,V)`, causal.

    It may declare what an EncoderSubject may.
    """

    bank: ClassVar[str] = "decoder"
    causal: ClassVar[bool] = True


@dataclass(frozen=True)
class EncoderDecoderSubject(EncoderSubject):
    """A model `fn(source_ids, source_mask, target_ids, target_mask) -> logits (B,T,V)`.

    The target is causal. It may declare what an EncoderSubject may; `documents`: document n of the
    target is the one that belongs to document n of the source.
    """

    bank: ClassVar[str] = "encoder-decoder"
    arguments: ClassVar[tuple[str, ...]] = (
        "source_ids",
        "source_mask",
        "target_ids",
        "target_mask",
    )
    causal: ClassVar[bool] = True


# ---- making a subject ready ----------------------------------------------------------------------


class Ready:
    """The subject as a check calls it: a copy of its own, in eval mode, without dropout."""

    def __init__(self, subject: EncoderSubject, dtype: torch.dtype | None = None):
        self.subject, self.dtype = subject, dtype or subject.dtype
        self.fn = subject.fn
        if isinstance(self.fn, nn.Module):
            self.fn = copy.deepcopy(self.fn).to(subject.device, self.dtype).eval()
            without_dropout(self.fn)
            if subject.redraw:
                draw_large(self.fn)
        table = torch.randn(subject.vocab_size, subject.d_model, generator=seeded(2))
        self.table = table.to(subject.device, self.dtype)

    @property
    def module(self) -> nn.Module:
        needs(isinstance(self.fn, nn.Module), "it is not an nn.Module")
        return self.fn

    def __call__(self, *streams: Stream, change: Callable | None = None) -> Tensor:
        """The output (B,T,X), or (B,1,X) where it is pooled, with its graph.

        `change(i, embedding)` replaces the token embeddings (B,T,d) of stream i.
        """
        subject, arguments = self.subject, []
        for i, (ids, mask) in enumerate(streams):
            if subject.takes == "embeddings":
                tokens = self.table[ids]
                tokens = tokens if change is None else change(i, tokens).clone()
            else:
                tokens = ids.clone()
            arguments += [tokens, subject.present(mask, self.dtype)]
        if subject.takes == "embeddings" or change is None:
            output = self.fn(*arguments)
        else:
            output = self._with_embeddings(streams, arguments, change)
        return self._answer(output, streams[-1][0].shape)

    def real(self, *streams: Stream, change: Callable | None = None) -> Tensor:
        """The outputs that count, (N,X): those at real tokens, row by row, wherever they stand."""
        return self(*streams, change=change)[self.counts(streams)].detach()

    def counts(self, streams: Iterable[Stream]) -> Tensor:
        """(B,T) or, where it is pooled, (B,1) bool: which outputs count."""
        *_, (_, mask) = streams
        pooled = self.subject.returns == "sequence"
        return mask.any(dim=1, keepdim=True) if pooled else mask != 0

    def gradients(self, *streams: Stream, change: Callable | None = None) -> dict[str, Tensor]:
        """Parameter gradients of a fixed random projection of the outputs that count.

        Not of their squares: after a norm these sum to a constant.
        """
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        needs(named, "it has no parameters to train")
        loss = self.projection(*streams, change=change)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {n: g for n, g in zip(named, found, strict=True) if g is not None}

    def can_train(self) -> bool:
        """Put it in training mode, if it has one in which the same call gives the same twice."""
        if not isinstance(self.fn, nn.Module):
            return False
        self.fn.train()
        streams = batch_of(self.subject, "full")
        return torch.equal(self.real(*streams), self.real(*streams))

    def projection(self, *streams: Stream, change: Callable | None = None) -> Tensor:
        output = self(*streams, change=change)[self.counts(streams)]
        needs(output.requires_grad, "no gradient flows through it")
        return (output * torch.randn(output.shape, generator=seeded(5)).to(output)).sum()

    def _with_embeddings(self, streams, arguments: list[Tensor], change: Callable) -> Any:
        """The call, with the answer of each nn.Embedding that is asked for the ids changed."""
        met = set()

        def swap(_, inputs, output):
            for i, (ids, mask) in enumerate(streams):
                asked = inputs[0]
                if not asked.shape == output.shape[:-1] == ids.shape:
                    continue  # BART's positions are looked up with the ids, for their shape
                if torch.equal(asked[mask != 0], ids[mask != 0]):
                    met.add(i)
                    return change(i, output)
            return None

        tables = [part for part in self.module.modules() if isinstance(part, nn.Embedding)]
        hooks = [table.register_forward_hook(swap) for table in tables]
        try:
            output = self.fn(*arguments)
        finally:
            for hook in hooks:
                hook.remove()
        needs(len(met) == len(streams), "no nn.Embedding in it looks up the token ids")
        return output

    def _answer(self, returned: Any, shape: torch.Size) -> Tensor:
        """The tensor, whichever of the usual ways it was returned."""
        found = returned
        for name in ("logits", "last_hidden_state"):
            if isinstance(returned, Mapping) and name in returned:
                found = returned[name]
                break
            if isinstance(getattr(returned, name, None), Tensor):
                found = getattr(returned, name)
                break
        if isinstance(found, tuple | list) and found:
            found = found[0]
        kind = "None" if returned is None else f"a {type(returned).__name__}"
        expect(
            isinstance(found, Tensor) and found.is_floating_point(),
            f"It returned {kind} where a tensor of floats, a tuple that begins with one, or an "
            "object with `logits` or `last_hidden_state` was expected.",
        )
        pooled = self.subject.returns == "sequence"
        wanted = shape[:1] if pooled else shape
        expect(
            found.ndim == len(wanted) + 1 and found.shape[:-1] == wanted,
            f"It returned an output of shape {tuple(found.shape)} where "
            f"({', '.join(map(str, wanted))}, width) was expected.",
        )
        return found.unsqueeze(1) if pooled else found


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_large(module: nn.Module) -> None:
    """Parameters so large that any change of a mask moves every output, biases and gains too.

    In wide layers smaller, for a softmax of huge scores looks at one key alone.
    """
    generator = seeded(1)
    with torch.no_grad():
        for parameter in module.parameters():
            std = min(0.3, 1.2 * parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else 0.3
            drawn = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn.to(parameter))
        for part in module.modules():
            if "norm" in type(part).__name__.lower():
                for name, parameter in part.named_parameters(recurse=False):
                    if "bias" not in name:  # a gain is around 1
                        parameter += 1.0


def without_dropout(module: nn.Module) -> None:
    """Every probability of dropout becomes 0, those kept as plain numbers too."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)


# ---- inputs --------------------------------------------------------------------------------------


def sentences(subject: EncoderSubject, stream: int) -> Tensor:
    """(B,T) ids, real tokens all of them."""
    usable = [i for i in range(subject.vocab_size) if i != subject.pad_id]
    shape = (BATCH, max(LENGTHS[stream]))
    chosen = torch.randint(len(usable), shape, generator=seeded(3 + stream))
    return torch.tensor(usable)[chosen].to(subject.device)


def others(subject: EncoderSubject, ids: Tensor, step: int = 1) -> Tensor:
    """Another token for each, and never the padding's id."""
    usable = [i for i in range(subject.vocab_size) if i != subject.pad_id]
    rank = torch.zeros(subject.vocab_size, dtype=torch.long, device=ids.device)
    rank[usable] = torch.arange(len(usable), device=ids.device)
    return torch.tensor(usable, device=ids.device)[(rank[ids] + step) % len(usable)]


def laid_out(subject: EncoderSubject, stream: int, where: str, extra: int = 0) -> Stream:
    """Ids and attention_mask of the rows, with so many columns more than the longest needs.

    where: "full" (every row as long as the longest), padding on the "right" or the "left",
    "holes" in between, or "packed": each row two documents and, at the end, padding.
    """
    rows = sentences(subject, stream)
    if where == "full":
        return rows, torch.ones_like(rows)
    length = rows.shape[1] + extra
    ids = torch.full((BATCH, length), subject.pad_id, device=rows.device)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(LENGTHS[stream]):
        columns = {
            "right": torch.arange(count),
            "packed": torch.arange(rows.shape[1] - 1),
            "left": torch.arange(length - count, length),
            "holes": torch.randperm(length, generator=seeded(row))[:count].sort().values,
        }[where].to(rows.device)
        ids[row, columns] = rows[row, : len(columns)]
        mask[row, columns] = 1
        if where == "packed":
            mask[row, columns[2 + row % 2 :]] = 2
    return ids, mask


def batch_of(subject: EncoderSubject, where: str, extra: int = 0, stream: int = -1) -> list[Stream]:
    """What it is called with: one stream laid out so, and the other without any padding.

    "packed" is both of them, for their documents belong together.
    """
    stream %= subject.streams
    return [
        laid_out(subject, i, where, extra)
        if i == stream or where == "packed"
        else laid_out(subject, i, "full")
        for i in range(subject.streams)
    ]


def layouts(subject: EncoderSubject) -> dict[str, str]:
    """Where it promises that padding may stand."""
    found = {f"padding on the {side}": side for side in subject.sides}
    return found | ({"padding between tokens": "holes"} if subject.holes else {})


def role(subject: EncoderSubject, stream: int) -> str:
    """ " of the source" or " of the target" where there are two."""
    return "" if subject.streams == 1 else (" of the target", " of the source")[stream + 1]


def alone(ready: Ready, stream: int = -1) -> Tensor:
    """What the rows of a padded batch must give: each by itself, without any padding."""
    stream %= ready.subject.streams
    full = batch_of(ready.subject, "full")
    outputs = []
    for row, count in enumerate(LENGTHS[stream]):
        streams = [(ids[row : row + 1], mask[row : row + 1]) for ids, mask in full]
        streams[stream] = tuple(x[:, :count] for x in streams[stream])
        outputs.append(ready.real(*streams))
    return torch.cat(outputs)


def reaction(ready: Ready, streams: list[Stream]) -> float:
    """How far other tokens move the outputs: the yardstick for what must not move them."""
    changed = [(others(ready.subject, ids), mask) for ids, mask in streams]
    return size(ready.real(*changed) - ready.real(*streams))


def tolerance(ready: Ready, streams: list[Stream]) -> float:
    """A ten-thousandth of the reaction to other tokens; not below what rounding does."""
    rounding = 32 * torch.finfo(ready.dtype).eps * size(ready.real(*streams))
    real = reaction(ready, streams)
    return max(1e-4 * real, rounding) if real == real else rounding


def models(tier: str, measures: str = "", mirrors: Iterable[str] = (), banks: str = "e d ed"):
    """A check of several kinds of model."""
    names = {"e": "encoder", "d": "decoder", "ed": "encoder-decoder"}

    def register(function: Callable) -> Callable:
        for bank in banks.split():
            check(names[bank], tier, measures, mirrors)(function)
        return function

    return register


# ---- core: the same twice ------------------------------------------------------------------------


@models("core", "largest change of an output", TORCH + "issues/99293")
def the_same_call_gives_the_same_twice(subject: EncoderSubject) -> float:
    """In evaluation two calls with the same inputs give the same bits."""
    ready, streams = Ready(subject), batch_of(subject, "full")
    change = size(ready.real(*streams) - ready.real(*streams))
    expect(
        not differs(change),
        f"Two calls with the same inputs differ by {change:.3g}: dropout is on. Give the module "
        "itself to be checked, or call eval() before; F.dropout needs training=self.training.",
        change,
    )
    return 0.0


# ---- core: padding -------------------------------------------------------------------------------


def _amount_is_irrelevant(subject: EncoderSubject, side: str, stream: int = -1) -> float:
    ready, largest = Ready(subject), 0.0
    wanted = alone(ready, stream)
    allowed = tolerance(ready, batch_of(subject, "full"))
    for extra in EXTRA:
        streams = batch_of(subject, side, extra, stream)
        if streams[stream][0].shape[1] > subject.max_length:
            continue
        change = size(ready.real(*streams).double() - wanted.double())
        largest = max(largest, change)
        expect(
            not differs(change, allowed),
            f"With padding on the {side}{role(subject, stream)} of up to "
            f"{int((streams[stream][1] == 0).sum(1).max())} tokens, real tokens get outputs that "
            f"differ by {change:.3g} from those of the same sentence without padding (rounding "
            f"explains {allowed:.1g}). Does every layer get the mask? Is there a mean, a norm, a "
            "convolution or a position that counts padding in?",
            change,
            attention_mask=streams[stream][1],
        )
    return largest


@models("core", "largest change of an output", HF + "issues/29029")
def padding_on_the_right_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence gives the same with any amount of padding on its right, or none."""
    needs("right" in subject.sides, "it does not promise padding on the right")
    return _amount_is_irrelevant(subject, "right")


@models(
    "core",
    "largest change of an output",
    (HF + "issues/3021", "https://github.com/unslothai/unsloth/pull/4078"),
)
def padding_on_the_left_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence gives the same with any amount of padding on its left, or none.

    For a causal model this is the test of the padding mask: padding on the right is the future.
    """
    needs("left" in subject.sides, "it does not promise padding on the left")
    return _amount_is_irrelevant(subject, "left")


@models("core", "largest change of an output")
def padding_between_tokens_is_irrelevant(subject: EncoderSubject) -> float:
    """A sentence with holes gives what its tokens give without them."""
    needs(subject.holes, "it does not promise padding between tokens")
    ready = Ready(subject)
    streams = batch_of(subject, "holes", extra=1)
    change = size(ready.real(*streams).double() - alone(ready).double())
    expect(
        not differs(change, tolerance(ready, batch_of(subject, "full"))),
        f"With padding between tokens the outputs differ by {change:.3g} from those of the tokens "
        "alone. Lengths cannot say where holes are: use the mask itself, and count positions over "
        "real tokens.",
        change,
        attention_mask=streams[-1][1],
    )
    return change


def _content_is_irrelevant(subject: EncoderSubject, dtypes: Iterable, stream: int = -1) -> float:
    for dtype in dtypes:
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            streams = batch_of(subject, where, extra=1, stream=stream)
            before = ready.real(*streams)
            for step in (1, 3):
                ids, mask = streams[stream]
                changed = list(streams)
                changed[stream] = (ids.where(mask != 0, others(subject, ids, step)), mask)
                after = ready.real(*changed)
                change = size(after.double() - before.double())
                expect(
                    torch.equal(before, after),
                    f"In {dtype} with {name}{role(subject, stream)}, other tokens at the padding "
                    f"move the outputs of real tokens by {change:.3g}, where other real tokens "
                    f"move them by {reaction(ready, streams):.3g}: the padding is read.",
                    change,
                    attention_mask=mask,
                )
    return 0.0


@models("core", "largest change of an output", HF + "issues/26869")
def what_padding_holds_is_irrelevant(subject: EncoderSubject) -> float:
    """Other token ids at padding change no bit of the outputs at real tokens."""
    return _content_is_irrelevant(subject, [subject.dtype])


@models("core", "outputs that are not there", TORCH + "issues/97111")
def the_output_is_as_long_as_the_input(subject: EncoderSubject) -> float:
    """Where every row ends in padding, the output has its columns all the same."""
    ready = Ready(subject)
    for where in subject.sides:
        streams = batch_of(subject, where, extra=1)
        ready(*streams)
        with torch.no_grad():
            ready(*streams)
    return 0.0


# ---- core: neighbours in the batch ---------------------------------------------------------------


@models("core", "largest change of an output", HF + "issues/26869")
def a_row_alone_equals_it_in_the_batch(subject: EncoderSubject) -> float:
    """Each sequence of a batch gives what it gives alone, padded as it was."""
    ready, largest = Ready(subject), 0.0
    for name, where in layouts(subject).items():
        streams = batch_of(subject, where)
        together = ready(*streams).detach()
        allowed = tolerance(ready, streams)
        for row in range(BATCH):
            single = [tuple(x[row : row + 1] for x in stream) for stream in streams]
            counts = ready.counts(single)[0]
            found = ready.real(*single)
            change = size(found.double() - together[row][counts].double())
            largest = max(largest, change)
            expect(
                not differs(change, allowed),
                f"With {name}, sequence {row} alone and in the batch differ by {change:.3g}: "
                "sequences of a batch must not know of each other. Are heads or rows split or "
                "merged in the wrong order, or statistics taken over the batch?",
                change,
            )
    return largest


def _with_an_empty_row(streams: list[Stream], pad_id: int, stream: int = -1) -> list[Stream]:
    """One more row, of padding alone (in one stream, or in the last)."""
    longer = []
    for i, (ids, mask) in enumerate(streams):
        empty = i == stream % len(streams)
        row = torch.full_like(ids[:1], pad_id) if empty else ids[:1]
        longer.append(
            (torch.cat([ids, row]), torch.cat([mask, torch.zeros_like(row) if empty else mask[:1]]))
        )
    return longer


@models("core", "largest change of an output")
def a_row_of_padding_leaves_the_others_alone(subject: EncoderSubject) -> float:
    """A row of padding alone in the batch changes nothing for the other rows."""
    ready, largest = Ready(subject), 0.0
    streams = batch_of(subject, subject.sides[0])
    before = ready.real(*streams)
    allowed = tolerance(ready, streams)
    for stream in range(-subject.streams, 0):
        longer = _with_an_empty_row(streams, subject.pad_id, stream)
        output = ready(*longer).detach()[:BATCH]
        change = size(output[ready.counts(streams)].double() - before.double())
        largest = max(largest, change)
        expect(
            not differs(change, allowed),
            f"A row of padding alone{role(subject, stream)} moves the outputs of other rows by "
            f"{change:.3g}: a NaN that spreads, or statistics over the batch.",
            change,
        )
    return largest


# ---- core: who sees whom -------------------------------------------------------------------------


def allowed_by_the_mask(subject: EncoderSubject, streams: list[Stream], stream: int) -> Tensor:
    """(B,Q,K) bool: which outputs may depend on which tokens of a stream."""
    mask = streams[-1][1]
    if subject.returns == "sequence":
        return (mask != 0).unsqueeze(1)
    if stream % subject.streams < subject.streams - 1:
        return padding_mask(mask, streams[stream][1])[:, 0]
    own = padding_mask(mask)[:, 0]
    return own & causal_mask(mask.shape[1], device=mask.device)[0] if subject.causal else own


def dependence(
    ready: Ready, streams: list[Stream], stream: int, enough: Tensor | None = None
) -> Tensor:
    """(B,Q,K) bool: which outputs move, by a bit or more, when this token is another.

    A token becomes three others in turn, or fewer where all pairs of `enough` have moved.
    """
    before = ready(*streams).detach()
    ids, mask = streams[stream]
    columns = []
    for k in range(ids.shape[1]):
        moved = torch.zeros_like(before[..., 0], dtype=torch.bool)
        for step in (1, 2, 3):
            other = ids.clone()
            other[:, k] = others(ready.subject, ids[:, k], step)
            changed = list(streams)
            changed[stream] = (other, mask)
            moved |= (ready(*changed).detach() != before).any(-1)
            if enough is not None and not (enough[..., k] & ~moved).any():
                break
        columns.append(moved)
    return torch.stack(columns, dim=-1)


def _worst_row(wrong: Tensor) -> int:
    return int(wrong.flatten(1).sum(1).argmax())


def _all_is_seen(subject: EncoderSubject, stream: int, what: str) -> float:
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        mask = allowed_by_the_mask(subject, streams, stream)
        wanted = mask & ready.counts(streams).unsqueeze(-1)
        found = dependence(ready, streams, stream, enough=wanted)
        hidden = wanted & ~found
        row = _worst_row(hidden)
        expect(
            not hidden.any(),
            f"With {name}, {int(hidden.sum())} of {int(mask.sum())} pairs that the mask allows are "
            f"not there: {what}. A mask that hides too much passes every test for leaks.",
            float(hidden.sum()),
            mask_wanted=mask[row],
            dependence_found=found[row],
        )
    return 0.0


@models("core", "pairs wrongly hidden", "https://github.com/harvard-edge/cs249r_book/pull/1785")
def every_token_sees_what_it_may(subject: EncoderSubject) -> float:
    """Each output depends on every token that the mask allows, itself included."""
    return _all_is_seen(subject, -1, "another token there changes no bit of the output")


@models("core", "pairs that leak")
def no_token_sees_what_it_may_not(subject: EncoderSubject) -> float:
    """No output depends on a token that the mask forbids: one token at a time, to the bit."""
    ready = Ready(subject)
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where)
            mask = allowed_by_the_mask(subject, streams, stream)
            found = dependence(ready, streams, stream)
            leaks = found & ~mask & ready.counts(streams).unsqueeze(-1)
            row = _worst_row(leaks)
            expect(
                not leaks.any(),
                f"With {name}, {int(leaks.sum())} outputs depend on a token{role(subject, stream)} "
                "that they may not see: padding, or the future.",
                float(leaks.sum()),
                mask_wanted=mask[row],
                dependence_found=found[row],
            )
    return 0.0


@models("core", "largest change of an output in the past", banks="d ed")
def the_future_is_invisible(subject: EncoderSubject) -> float:
    """Other tokens later on change no bit of the outputs before them, in training mode neither."""
    ready = Ready(subject)
    for training in (False, True):
        if training and not ready.can_train():
            continue
        for where in ("full", *subject.sides):
            *source, (ids, mask) = batch_of(subject, where)
            before = ready(*source, (ids, mask)).detach()
            for t in range(1, ids.shape[1]):
                later = ids.clone()
                later[:, t:] = others(subject, ids[:, t:])
                after = ready(*source, (later, mask)).detach()
                past = (mask != 0)[:, :t]
                change = size((after - before)[:, :t][past])
                expect(
                    torch.equal(after[:, :t][past], before[:, :t][past]),
                    f"In {'training' if training else 'evaluation'} mode, other tokens from "
                    f"position {t} on move earlier outputs by {change:.3g}: each token is "
                    "predicted by looking at it. Is a causal mask given to every layer, with the "
                    "diagonal in the right place, and the lower triangle allowed?",
                    change,
                )
    return 0.0


@models("core", "largest difference from the whole", banks="d ed")
def a_prefix_gives_what_it_gives_in_the_whole(subject: EncoderSubject) -> float:
    """The first t tokens alone give what they give in the whole sequence, for every t."""
    ready, largest = Ready(subject), 0.0
    for where in ("full", *subject.sides):
        *source, (ids, mask) = batch_of(subject, where)
        whole = ready(*source, (ids, mask)).detach()
        allowed = tolerance(ready, [*source, (ids, mask)])
        for t in range(1, ids.shape[1]):
            prefix = ready(*source, (ids[:, :t], mask[:, :t])).detach()
            change = size((prefix - whole[:, :t])[mask[:, :t] != 0])
            largest = max(largest, change)
            expect(
                not differs(change, allowed),
                f"The first {t} tokens alone give outputs that differ by {change:.3g} from theirs "
                "in the whole sequence: what is generated is not what was trained.",
                change,
            )
    return largest


# ---- core: source and target ---------------------------------------------------------------------


@models("core", "largest change of an output", HF + "issues/35032", banks="ed")
def padding_of_the_source_is_irrelevant(subject: EncoderSubject) -> float:
    """Any amount of padding beside the source, on either side, changes no output."""
    return max(_amount_is_irrelevant(subject, side, stream=-2) for side in subject.sides)


@models("core", "largest change of an output", HF + "pull/47946", banks="ed")
def what_the_padding_of_the_source_holds_is_irrelevant(subject: EncoderSubject) -> float:
    """Other token ids at the padding of the source change no bit of the outputs."""
    return _content_is_irrelevant(subject, [subject.dtype], stream=-2)


@models("core", "pairs wrongly hidden", banks="ed")
def every_target_token_sees_the_whole_source(subject: EncoderSubject) -> float:
    """Each output depends on every real token of its source, the last ones too."""
    return _all_is_seen(subject, -2, "another token of the source changes no bit of the output")


@models("core", "outputs moved by another row's source", banks="ed")
def the_source_of_another_row_is_irrelevant(subject: EncoderSubject) -> float:
    """Another source in one row changes no bit of the outputs of the other rows."""
    ready = Ready(subject)
    (ids, mask), target = batch_of(subject, "full")
    before = ready((ids, mask), target).detach()
    for row in range(BATCH):
        other = ids.clone()
        other[row] = others(subject, ids[row])
        moved = (ready((other, mask), target).detach() != before).any(-1)
        moved[row] = False
        rows = moved.any(-1).nonzero().flatten().tolist()
        expect(
            not moved.any(),
            f"Another source in row {row} moves the outputs of row {', '.join(map(str, rows))}: "
            "targets are answered with another row's source.",
            float(moved.sum()),
        )
    return 0.0


# ---- core: packed documents ----------------------------------------------------------------------


@models("core", "largest change of an output", HF + "pull/39194")
def packed_documents_do_not_see_each_other(subject: EncoderSubject) -> float:
    """Other tokens in one document of a row change no bit of the other document's outputs."""
    needs(subject.documents, "it does not promise packed documents")
    needs(subject.returns == "tokens", "it gives one output for each row")
    ready = Ready(subject)
    streams = batch_of(subject, "packed")
    before = ready(*streams).detach()
    for changed in (1, 2):
        other = [(ids.where(m != changed, others(subject, ids)), m) for ids, m in streams]
        after = ready(*other).detach()
        rest = streams[-1][1] == 3 - changed
        change = size((after - before)[rest])
        expect(
            torch.equal(after[rest], before[rest]),
            f"Other tokens in document {changed} move the outputs of document {3 - changed} by "
            f"{change:.3g}: documents that share a row see each other. Allow a pair only where "
            "both have the same number.",
            change,
            attention_mask=streams[-1][1],
        )
    return 0.0


@models(
    "core",
    "largest difference from the documents alone",
    "https://github.com/huggingface/trl/pull/3526",
)
def packed_documents_give_what_they_give_alone(subject: EncoderSubject) -> float:
    """Each of several documents in a row gives what it gives in a row of its own."""
    needs(subject.documents, "it does not promise packed documents")
    needs(subject.returns == "tokens", "it gives one output for each row")
    ready, largest = Ready(subject), 0.0
    streams = batch_of(subject, "packed")
    together = ready(*streams).detach()
    allowed = tolerance(ready, streams)
    for row in range(BATCH):
        for number in (1, 2):
            single = []
            for ids, mask in streams:
                chosen = ids[row, mask[row] == number].unsqueeze(0)
                single.append((chosen, torch.ones_like(chosen)))
            found = together[row, streams[-1][1][row] == number]
            change = size(ready.real(*single) - found)
            largest = max(largest, change)
            expect(
                not differs(change, allowed),
                f"Document {number} of row {row} differs by {change:.3g} from itself in a row of "
                "its own: it sees its neighbour, or its positions go on counting from it.",
                change,
                attention_mask=streams[-1][1],
            )
    return largest


# ---- core: modes and gradients -------------------------------------------------------------------


@models("core", "largest change of an output", "https://github.com/keras-team/keras/issues/23038")
def training_without_dropout_equals_evaluation(subject: EncoderSubject) -> float:
    """With dropout at 0, train() and eval() give the same outputs."""
    ready, largest = Ready(subject), 0.0
    needs(isinstance(ready.fn, nn.Module), "it is not an nn.Module")
    needs(ready.can_train(), "it has a dropout that could not be switched off")
    ready.fn.eval()
    for where in subject.sides:
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        ready.module.train()
        found = ready.real(*streams)
        ready.module.eval()
        change = size((found - wanted).double())
        largest = max(largest, change)
        expect(
            not differs(change, tolerance(ready, streams)),
            f"In training mode the outputs differ by {change:.3g} from those in evaluation mode, "
            "though dropout is 0. Is a mask built in one mode only, or are there statistics over "
            "the batch, which count padding in?",
            change,
        )
    return largest


@models("core", "largest change of an output", (TORCH + "issues/107084", TORCH + "pull/190486"))
def without_gradients_it_is_the_same(subject: EncoderSubject) -> float:
    """Under torch.no_grad, where libraries take faster paths, the outputs are the same."""
    ready, largest = Ready(subject), 0.0
    for name, where in ({"no padding": "full"} | layouts(subject)).items():
        streams = batch_of(subject, where)
        wanted = ready.real(*streams)
        with torch.no_grad():
            found = ready.real(*streams)
        change = size((found - wanted).double())
        largest = max(largest, change)
        expect(
            not differs(change, tolerance(ready, streams)),
            f"With {name}, the outputs under no_grad differ by {change:.3g} from those with "
            "gradients: what is evaluated is not what was trained. Which fast path ignores a mask?",
            change,
        )
    return largest


@models("core", "largest change of a gradient, relative to the largest gradient")
def parameter_gradients_do_not_depend_on_padding(subject: EncoderSubject) -> float:
    """The gradient of every parameter is the same with more padding, on whichever side."""
    ready, largest = Ready(subject), 0.0
    eps = torch.finfo(ready.dtype).eps
    for stream in range(-subject.streams, 0):
        wanted = ready.gradients(*batch_of(subject, subject.sides[0], 0, stream))
        scale = max(map(size, wanted.values()))
        for side in subject.sides:
            found = ready.gradients(*batch_of(subject, side, 1, stream))
            for name in wanted.keys() & found.keys():
                # Judged by the largest: the true gradient of a key's bias, for one, is 0.
                change = size(found[name] - wanted[name]) / max(scale, 1e-30)
                largest = max(largest, change)
                expect(
                    not differs(change, 1e3 * eps),
                    f"Padding on the {side}{role(subject, stream)} changes the gradient of {name} "
                    f"by {change:.3g} of the largest gradient: how sentences were batched decides "
                    "what is learnt.",
                    change,
                )
    return largest


@models("core", "largest gradient at padding")
def no_gradient_reaches_padding(subject: EncoderSubject) -> float:
    """The gradient to the embeddings at padding is exactly 0, and to real tokens it is not."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            leaves = {}

            def as_leaf(i, x, leaves=leaves):
                leaves[i] = x.detach().requires_grad_()
                return leaves[i]

            loss = ready.projection(*streams, change=as_leaf)
            leaf = leaves[stream % subject.streams]
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
            needs(gradient is not None, "no gradient flows to its embeddings")
            leak = gradient[streams[stream][1] == 0]
            expect(
                not differs(size(leak)),
                f"With {name}{role(subject, stream)}, the embeddings at padding get a gradient of "
                f"{size(leak):.3g} instead of 0: padding is trained on.",
                size(leak),
            )
    return 0.0


@models("core", "tokens or masks changed")
def inputs_are_left_alone(subject: EncoderSubject) -> float:
    """It changes neither the tokens nor the masks that it is given."""
    ready = Ready(subject)
    arguments = []
    for ids, mask in batch_of(subject, subject.sides[0], extra=1):
        ids = others(subject, ids)  # something to overwrite at padding too
        tokens = ready.table[ids] if subject.takes == "embeddings" else ids
        arguments += [tokens, subject.present(mask, ready.dtype)]
    before = [x.clone() for x in arguments]
    ready.fn(*arguments)
    changed = [
        name
        for name, x, y in zip(subject.arguments, arguments, before, strict=True)
        if not torch.equal(x, y)
    ]
    expect(
        not changed,
        f"It changes its {' and '.join(changed)} in place: the loss, or the next layer of the "
        "caller's code, sees other tokens than were given.",
        float(len(changed)),
    )
    return 0.0


# ---- robust --------------------------------------------------------------------------------------


@models("robust", "outputs that are not finite", TORCH + "issues/103963")
def a_row_of_padding_gets_no_nan(subject: EncoderSubject) -> float:
    """A row of padding alone gets finite outputs, with gradients and without."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        longer = _with_an_empty_row(streams, subject.pad_id, stream)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                bad = ~ready(*longer)[BATCH].isfinite()
            expect(
                not bad.any(),
                f"A row of padding alone{role(subject, stream)} gets {int(bad.sum())} outputs that "
                "are NaN or Inf: a softmax over nothing but -inf is 0/0. A mean over the batch "
                "makes the whole loss NaN.",
                float(bad.sum()),
            )
    return 0.0


@models("robust", "gradients that are not finite", TORCH + "issues/41508")
def a_row_of_padding_gives_no_nan_gradients(subject: EncoderSubject) -> float:
    """A row of padding alone in the batch leaves every parameter gradient finite."""
    ready = Ready(subject)
    for stream in range(-subject.streams, 0):
        streams = batch_of(subject, subject.sides[0])
        found = ready.gradients(*_with_an_empty_row(streams, subject.pad_id, stream))
        bad = [name for name, gradient in found.items() if not gradient.isfinite().all()]
        expect(
            not bad,
            f"A row of padding alone{role(subject, stream)} makes the gradients of {len(bad)} of "
            f"{len(found)} parameters NaN or Inf, though the loss leaves it out: one such row "
            "ruins the model at the next step.",
            float(len(bad)),
        )
    return 0.0


def _half_dtypes(subject: EncoderSubject) -> list[torch.dtype]:
    found = [d for d in (torch.bfloat16, torch.float16) if d in subject.dtypes]
    needs(found, "it does not declare half precision")
    castable = isinstance(subject.fn, nn.Module) or subject.takes == "embeddings"
    needs(castable, "it is not an nn.Module, to be cast")
    return found


@models("robust", "outputs that are not finite", HF + "pull/17306")
def half_precision_gets_no_nan(subject: EncoderSubject) -> float:
    """In bfloat16 and float16 the outputs of real tokens are finite."""
    for dtype in _half_dtypes(subject):
        ready = Ready(subject, dtype)
        for name, where in layouts(subject).items():
            bad = ~ready.real(*batch_of(subject, where, extra=1)).isfinite()
            expect(
                not bad.any(),
                f"In {dtype} with {name}, {int(bad.sum())} outputs are NaN or Inf. Is the mask a "
                "constant that this dtype cannot hold? float16 ends at 65504.",
                float(bad.sum()),
            )
    return 0.0


@models("robust", "largest change of an output")
def half_precision_ignores_padding_too(subject: EncoderSubject) -> float:
    """In bfloat16 and float16 other tokens at padding change no bit of the outputs."""
    return max(
        _content_is_irrelevant(subject, _half_dtypes(subject), stream)
        for stream in range(-subject.streams, 0)
    )


def _filled(streams: list[Stream], fill: Callable[[Tensor], Tensor]) -> Callable:
    """A change of the embeddings: fill(embedding) at padding, the rest as it was."""
    return lambda i, x: x.where((streams[i][1] != 0).unsqueeze(-1), fill(x))


@models(
    "robust",
    "largest change of an output",
    "https://github.com/flashinfer-ai/flashinfer/issues/4267",
)
def large_numbers_in_padding_are_irrelevant(subject: EncoderSubject) -> float:
    """Embeddings of padding that are 10⁵ times larger change no bit of the outputs."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            before = ready.real(*streams)
            for factor in (1e5, -1e5):
                after = ready.real(*streams, change=_filled(streams, lambda x, f=factor: f * x))
                change = size((after - before).double())
                expect(
                    torch.equal(before, after),
                    f"With {name}{role(subject, stream)} whose embeddings are large, real outputs "
                    f"move by {change:.3g}: is a finite number added to the scores, instead of "
                    "-inf? A score can be larger.",
                    change,
                )
    return 0.0


# ---- strict --------------------------------------------------------------------------------------


@models("strict", "outputs changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_output(subject: EncoderSubject) -> float:
    """NaN or Inf in the embeddings of padding changes no bit of the outputs at real tokens."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            before = ready.real(*streams)
            for poison in (NAN, float("inf")):
                spoil = _filled(streams, lambda x, p=poison: torch.full_like(x, p))
                bad = int((ready.real(*streams, change=spoil) != before).any(-1).sum())
                expect(
                    bad == 0,
                    f"With {name}{role(subject, stream)} and {poison} in its embeddings, {bad} of "
                    f"{len(before)} real outputs change: 0 · NaN is NaN, so a weight of 0 does not "
                    "help. Fill padding with zeros before any product.",
                    float(bad),
                )
    return 0.0


@models("strict", "gradients changed", TORCH + "issues/101967")
def nan_in_padding_reaches_no_gradient(subject: EncoderSubject) -> float:
    """NaN in the embeddings of padding changes no bit of any parameter's gradient."""
    ready = Ready(subject)
    for name, where in layouts(subject).items():
        for stream in range(-subject.streams, 0):
            streams = batch_of(subject, where, 1, stream)
            wanted = ready.gradients(*streams)
            spoil = _filled(streams, lambda x: torch.full_like(x, NAN))
            found = ready.gradients(*streams, change=spoil)
            bad = [n for n in wanted if n not in found or not torch.equal(wanted[n], found[n])]
            expect(
                not bad,
                f"With {name}{role(subject, stream)} and NaN in its embeddings, the gradients of "
                f"{len(bad)} of {len(wanted)} parameters change, {bad[0] if bad else ''} for one: "
                "on the way back too, 0 · NaN is NaN.",
                float(len(bad)),
            )
    return 0.0
