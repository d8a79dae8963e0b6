"""What must hold of a function that writes text with a model: subject and checks.

The suite brings the model, a small one with large parameters, whose next token depends on every
real token before it. What greedy decoding must write is found with it one prompt at a time, with
no padding anywhere, and compared token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from minitransformer.checks.models import draw_large
from minitransformer.checks.subject import Subject, expect, needs, one_of
from minitransformer.checks.suite import check
from minitransformer.config import Config
from minitransformer.data import pad
from minitransformer.models import DecoderOnly

VOCAB, PAD, NEW = 11, 0, 6  # NEW: how many tokens are asked for
PROMPTS = ((10, 6), (9, 3, 10, 5, 9, 4, 9), (2, 10, 1, 10), (2,))
END = 9  # of the four continuations the first and the third write it, and 0 too, at other times
EXTRA = (1, 3, 6)  # columns of padding beyond the longest prompt
HF = "https://github.com/huggingface/transformers/"

Rows = Sequence[Sequence[int]]


# ---- subject -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorSubject(Subject):
    """A greedy generator: `fn(model, input_ids, attention_mask, max_new_tokens) -> new tokens`.

    It is given a `minitransformer.DecoderOnly` of the suite's, called as model(input_ids,
    attention_mask) -> logits, and prompts (B,T). It returns a list of B tensors, the new tokens of
    each row, or one tensor (B,N), padded where rows ended early. What it may declare:

    sides            where the prompts' padding may stand: ("right", "left")
    eos_flag         the name of the argument for the id that ends a row, as "eos_id"; it may be 0
    pad_id           what stands behind the end of a row in a tensor (B,N)
    includes_prompt  the prompts as given, padding too, stand before the new tokens
    device           where it is checked
    """

    bank: ClassVar[str] = "generator"
    arguments: ClassVar[tuple[str, ...]] = (
        "model",
        "input_ids",
        "attention_mask",
        "max_new_tokens",
    )

    sides: tuple[str, ...] = ("right", "left")
    eos_flag: str = ""
    pad_id: int = PAD
    includes_prompt: bool = False
    device: str | torch.device = "cpu"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.sides, str) or not self.sides:
            raise ValueError(f"sides must be a tuple such as ('right',), got {self.sides!r}")
        for side in self.sides:
            one_of("sides", side, ("right", "left"))

    def stand_in(self, other: Subject) -> "GeneratorSubject":
        """Called as it wishes, but asked only what this subject is asked."""
        assert isinstance(other, GeneratorSubject)
        flag = other.eos_flag if self.eos_flag else ""
        return replace(other, sides=self.sides, eos_flag=flag, device=self.device)

    def __call__(
        self,
        prompts: Rows,
        side: str | None = None,
        extra: int = 0,
        new: int = NEW,
        eos: int | None = None,
        model: DecoderOnly | None = None,
    ) -> list[list[int]]:
        """The new tokens of each prompt; the end of a row, where there is one, is the last."""
        ids, mask = self.batch(prompts, side, extra)
        model = the_model(str(self.device)) if model is None else model
        flags = {} if eos is None else {self.eos_flag: eos}
        return self.read(self.call(model, ids.clone(), mask.clone(), new, **flags), ids, eos)

    def batch(self, prompts: Rows, side: str | None = None, extra: int = 0) -> tuple[Tensor, ...]:
        """input_ids and attention_mask (B,T), padded on a side with PAD."""
        longest = max(map(len, prompts)) + extra
        batch = pad(prompts, PAD, side or self.sides[0], longest).to(self.device)
        return batch.input_ids, batch.attention_mask

    def read(self, returned: Any, ids: Tensor, eos: int | None) -> list[list[int]]:
        """The rows of a list of tensors, or of one tensor without what is behind their ends."""
        rows = returned.tolist() if isinstance(returned, Tensor) else returned
        kind = "None" if returned is None else f"a {type(returned).__name__}"
        expect(
            isinstance(rows, list | tuple) and len(rows) == len(ids),
            f"It returned {kind} where {len(ids)} rows of new tokens were expected.",
        )
        rows = [row.tolist() if isinstance(row, Tensor) else row for row in rows]
        expect(
            all(isinstance(row, list) and all(type(token) is int for token in row) for row in rows),
            f"It returned {kind} whose rows are not tokens: each is a tensor of one axis, int64.",
        )
        if self.includes_prompt:
            prompts, rows = (
                [row[: ids.shape[1]] for row in rows],
                [row[ids.shape[1] :] for row in rows],
            )
            expect(prompts == ids.tolist(), "The rows do not begin with the prompts as given.")
        if isinstance(returned, Tensor) and eos is not None:
            rows = [self._without_filler(row, eos) for row in rows]
        return rows

    def _without_filler(self, row: list[int], eos: int) -> list[int]:
        """Up to its end, if only padding follows; else all of it."""
        end = row.index(eos) + 1 if eos in row else len(row)
        return row[:end] if set(row[end:]) <= {self.pad_id} else row


# ---- the model, and what it must write -----------------------------------------------------------


@cache
def the_model(device: str = "cpu", dropout: float = 0.0) -> DecoderOnly:
    """In float64, in which no two tokens are equally likely by rounding."""
    config = Config(
        VOCAB,
        d_model=16,
        num_heads=2,
        max_length=32,
        style="gpt2",
        dropout=dropout,
        attention="reference",
    )
    with torch.random.fork_rng(devices=[]):  # made once, it must not shift later draws that once
        model = DecoderOnly(config)
    draw_large(model)
    return model.to(device, torch.float64).eval()


@cache
def greedy(prompt: tuple[int, ...], new: int = NEW) -> tuple[int, ...]:
    """The likeliest token, time after time, of one prompt without padding: the definition."""
    row = list(prompt)
    for _ in range(new):
        ids = torch.tensor([row])
        with torch.no_grad():
            row.append(int(the_model()(ids, torch.ones_like(ids))[0, -1].argmax()))
    return tuple(row[len(prompt) :])


def wanted(prompts: Rows, new: int = NEW, eos: int | None = None) -> list[list[int]]:
    """What each prompt is continued with, up to its end."""
    rows = [list(greedy(tuple(prompt), new)) for prompt in prompts]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def compare(found: list[list[int]], right: list[list[int]], when: str, why: str) -> float:
    """Fail where a row differs, with what was written and what should have been."""
    wrong = [i for i, (a, b) in enumerate(zip(found, right, strict=True)) if a != b]
    if wrong:
        i = wrong[0]
        expect(
            False,
            f"{when} {len(wrong)} of {len(right)} rows are wrong: row {i} is continued with "
            f"{found[i]} where {right[i]} was expected. {why}",
            float(sum(_distance(a, b) for a, b in zip(found, right, strict=True))),
        )
    return 0.0


def _distance(a: list[int], b: list[int]) -> int:
    """Tokens that differ or that one has too many, later ones weighing more."""
    longest = max(len(a), len(b))
    a, b = (row + [-1] * (longest - len(row)) for row in (a, b))
    return sum((i + 1) * abs(x - y) for i, (x, y) in enumerate(zip(a, b, strict=True)))


DISTANCE = "distance from the right tokens"
EOS = "it declares no eos_flag"


# ---- core: which tokens --------------------------------------------------------------------------


@check("generator", "core", measures=DISTANCE)
def each_token_is_the_likeliest(subject: GeneratorSubject) -> float:
    """One prompt without padding is continued with the likeliest token, time after time."""
    why = "No padding is involved: is the last position read, after everything written so far?"
    for prompt in PROMPTS:
        compare(subject([prompt]), wanted([prompt]), "Alone and without padding", why)
    return 0.0


@check(
    "generator",
    "core",
    measures=DISTANCE,
    mirrors=(HF + "issues/3021", "https://github.com/OpenNMT/OpenNMT-py/issues/137"),
)
def prompts_padded_on_the_left_give_what_they_give_alone(subject: GeneratorSubject) -> float:
    """Prompts of different lengths, padded on the left, are each continued as alone."""
    needs("left" in subject.sides, "it does not take padding on the left")
    why = "Padding must be hidden, positions count real tokens, and the mask grows with the text."
    return compare(subject(PROMPTS, "left"), wanted(PROMPTS), "With padding on the left", why)


@check("generator", "core", measures=DISTANCE, mirrors=HF + "issues/18478")
def prompts_padded_on_the_right_give_what_they_give_alone(subject: GeneratorSubject) -> float:
    """Prompts of different lengths, padded on the right, are each continued as alone."""
    needs("right" in subject.sides, "it does not take padding on the right")
    why = "The last column is padding in short rows: read each row's logits at its last real token."
    return compare(subject(PROMPTS, "right"), wanted(PROMPTS), "With padding on the right", why)


@check("generator", "core", measures=DISTANCE)
def how_much_padding_makes_no_other_text(subject: GeneratorSubject) -> float:
    """1, 3 or 6 more columns of padding change no token."""
    right = subject(PROMPTS)
    for side in subject.sides:
        for extra in EXTRA:
            when = f"With {extra} more columns of padding on the {side}"
            compare(subject(PROMPTS, side, extra), right, when, "Is there a mask at every step?")
    return 0.0


@check("generator", "core", measures=DISTANCE, mirrors=HF + "issues/25455")
def neighbours_make_no_other_text(subject: GeneratorSubject) -> float:
    """A prompt is continued the same first or last in a batch, and beside other prompts."""
    right = subject(PROMPTS)
    for order in ((3, 1, 0, 2), (2, 3), (1, 1, 0)):
        found = subject([PROMPTS[i] for i in order])
        when, why = f"With prompts {order} in this order", "The rows of a batch are strangers."
        compare(found, [right[i] for i in order], when, why)
    return 0.0


@check(
    "generator",
    "core",
    measures=DISTANCE,
    mirrors=(HF + "issues/23530", HF + "issues/26357"),
)
def a_prompt_may_hold_the_id_of_padding(subject: GeneratorSubject) -> float:
    """A real token of the prompt counts, though it has the id of padding, as an end may."""
    prompts = ((10, PAD, 6), (9, PAD, 3, 10, PAD), (PAD, 2, 10, 1))
    why = "Padding is told by the attention_mask; `ids != pad_id` takes real tokens away."
    for side in subject.sides:
        when = f"With real tokens of the id {PAD}, padded on the {side},"
        compare(subject(prompts, side), wanted(prompts), when, why)
    return 0.0


# ---- core: how many tokens -----------------------------------------------------------------------


@check("generator", "core", measures="tokens too many or too few")
def it_writes_as_many_tokens_as_it_is_asked_for(subject: GeneratorSubject) -> float:
    """Without an end each row gets max_new_tokens new tokens, however long its prompt is."""
    for new in (1, 4, NEW):
        lengths = [len(row) for row in subject(PROMPTS, new=new)]
        off = sum(abs(length - new) for length in lengths)
        expect(
            not off,
            f"Asked for {new} new tokens it wrote {lengths}. The prompt does not count, nor does "
            "its padding, and the last token is one of them.",
            float(off),
        )
    return 0.0


@check("generator", "core", measures=DISTANCE, mirrors="https://github.com/joeynmt/joeynmt/pull/50")
def each_row_stops_at_its_own_end(subject: GeneratorSubject) -> float:
    """A row is over with its end token, which it keeps; after it nothing comes, or padding."""
    needs(subject.eos_flag, EOS)
    right = wanted(PROMPTS, eos=END)
    found = subject(PROMPTS, eos=END)
    ended = [i for i, row in enumerate(right) if row[-1] == END]
    why = "Remember which rows are over, and what they write after that is no text."
    rows = [found[i] for i in ended]
    return compare(rows, [right[i] for i in ended], f"Where {END} ends a row,", why)


@check("generator", "core", measures=DISTANCE)
def a_row_that_ends_leaves_its_neighbours_alone(subject: GeneratorSubject) -> float:
    """Rows that are not over are continued as if no other had ended."""
    needs(subject.eos_flag, EOS)
    right = wanted(PROMPTS, eos=END)
    found = subject(PROMPTS, eos=END)
    going = [i for i, row in enumerate(right) if row[-1] != END]
    why = "The batch is over when all rows are, not when one is."
    rows = [found[i] for i in going]
    return compare(rows, [right[i] for i in going], "Where their neighbours end,", why)


@check("generator", "core", measures=DISTANCE, mirrors=HF + "pull/47286")
def an_end_of_0_ends_a_row_too(subject: GeneratorSubject) -> float:
    """The end token may have the id 0."""
    needs(subject.eos_flag, EOS)
    found = subject(PROMPTS, eos=0)
    why = "`if eos_id:` takes 0 for `not given`; ask `is not None`."
    return compare(found, wanted(PROMPTS, eos=0), "Where 0 ends a row,", why)


# ---- core: manners -------------------------------------------------------------------------------


@check("generator", "core", measures="changed entries")
def the_prompts_are_left_alone(subject: GeneratorSubject) -> float:
    """input_ids and attention_mask are the same after the call as before."""
    for side in subject.sides:
        batch = subject.batch(PROMPTS, side)
        given = [x.clone() for x in batch]
        subject.call(the_model(str(subject.device)), *given, NEW)
        for name, before, after in zip(subject.arguments[1:], batch, given, strict=False):
            changed = int((before != after).sum()) if before.shape == after.shape else -1
            expect(
                not changed,
                f"It changes its {name} in place: who writes twice from one prompt, or scores what "
                "was written, has another prompt.",
                float(changed),
            )
    return 0.0


@check("generator", "core", measures=DISTANCE)
def the_same_prompts_give_the_same_text(subject: GeneratorSubject) -> float:
    """Called again it writes the same."""
    first, second = subject(PROMPTS), subject(PROMPTS)
    return compare(
        second, first, "Called a second time", "Greedy decoding draws nothing at random."
    )


# ---- robust --------------------------------------------------------------------------------------


@check("generator", "robust", measures=DISTANCE)
def dropout_is_off_while_it_writes(subject: GeneratorSubject) -> float:
    """A model in training mode writes as it does in eval mode: no dropout, and the same twice."""
    model = the_model(str(subject.device), dropout=0.5)
    right = subject(PROMPTS, model=model.eval())
    found = subject(PROMPTS, model=model.train())
    why = "Samples drawn in the middle of training are noise: call model.eval() first."
    return compare(found, right, "With a model in training mode", why)


@check("generator", "robust")
def the_model_is_left_as_it_was(subject: GeneratorSubject) -> None:
    """The model is in the mode in which it was before, and no gradient was written."""
    for training in (True, False):
        model = the_model(str(subject.device)).train(training)
        subject(PROMPTS, model=model)
        mode, others = ("training", "eval") if training else ("eval", "training")
        left = model.training == training
        model.eval()
        expect(
            left,
            f"A model that was in {mode} mode is in {others} mode afterwards: the epoch goes on "
            "without dropout, or the next evaluation has it.",
        )


@check("generator", "robust", measures="new tokens")
def no_new_tokens_are_none(subject: GeneratorSubject) -> float:
    """Asked for 0 new tokens it writes none."""
    lengths = [len(row) for row in subject(PROMPTS, new=0)]
    expect(not any(lengths), f"Asked for 0 new tokens it wrote {lengths}.", float(sum(lengths)))
    return 0.0
