"""A model made ready to be checked: a copy without dropout, its parameters large."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minitransformer.checks.engine.check import expect, max_abs, needs
from minitransformer.checks.models.cases import Stream, batch_of, others, seeded
from minitransformer.checks.models.subject import LENGTHS, EncoderSubject


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
        return self.answer(output, streams[-1][0].shape)

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

    def answer(self, returned: Any, shape: torch.Size) -> Tensor:
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


def difference(found: Tensor, wanted: Tensor) -> Tensor:
    """found - wanted, in double; 0 where they are equal, an Inf too."""
    return (found.double() - wanted.double()).masked_fill(found == wanted, 0.0)


def reaction(ready: Ready, streams: list[Stream]) -> float:
    """How far other tokens move the outputs: the yardstick for what must not move them."""
    changed = [(others(ready.subject, ids), mask) for ids, mask in streams]
    return max_abs(ready.real(*changed) - ready.real(*streams))


def tolerance(ready: Ready, streams: list[Stream]) -> float:
    """A ten-thousandth of the reaction to other tokens; not below what rounding does."""
    rounding = 32 * torch.finfo(ready.dtype).eps * max_abs(ready.real(*streams))
    real = reaction(ready, streams)
    return max(1e-4 * real, rounding) if real == real else rounding
