"""What must hold of a function that writes text with a model.

The suite brings the model, a small one with large parameters, whose next token depends on every
real token before it. What greedy decoding must write is found with it one prompt at a time, with
no padding anywhere, and compared token by token.
"""

from collections.abc import Iterator
from functools import partial

import torch

from minitransformer.checks.engine.between_calls import Answers, asked_inside_inference_mode
from minitransformer.checks.engine.check import at_most, check, expect, needs
from minitransformer.checks.generators.cases import (
    DISTANCE,
    END,
    EOS,
    EXTRA,
    NEW,
    PAD,
    PROMPTS,
    compare,
    the_model,
    wanted,
)
from minitransformer.checks.generators.subject import GeneratorSubject

core = partial(check, "generator", "core")
robust = partial(check, "generator", "robust")

HF = "https://github.com/huggingface/transformers/"


# ---- core: which tokens --------------------------------------------------------------------------


@core(measures=DISTANCE)
def each_token_is_the_likeliest(subject: GeneratorSubject) -> Iterator[float]:
    """One prompt without padding is continued with the likeliest token, time after time."""
    asks = "No padding is involved: is the last position read, after everything written so far?"
    for prompt in PROMPTS:
        yield compare(subject([prompt]), wanted([prompt]), "Alone and without padding", asks)


@core(
    measures=DISTANCE,
    mirrors=(HF + "issues/3021", "https://github.com/OpenNMT/OpenNMT-py/issues/137"),
)
def prompts_padded_on_the_left_give_what_they_give_alone(
    subject: GeneratorSubject,
) -> Iterator[float]:
    """Prompts of different lengths, padded on the left, are each continued as alone."""
    needs("left" in subject.sides, "it does not take padding on the left")
    asks = "Does the mask reach the model at every step, and do positions count real tokens?"
    yield compare(subject(PROMPTS, "left"), wanted(PROMPTS), "With padding on the left", asks)


@core(measures=DISTANCE, mirrors=HF + "issues/18478")
def prompts_padded_on_the_right_give_what_they_give_alone(
    subject: GeneratorSubject,
) -> Iterator[float]:
    """Prompts of different lengths, padded on the right, are each continued as alone."""
    needs("right" in subject.sides, "it does not take padding on the right")
    asks = "Which column are the next token's logits read from?"
    yield compare(subject(PROMPTS, "right"), wanted(PROMPTS), "With padding on the right", asks)


@core(measures=DISTANCE)
def how_much_padding_makes_no_other_text(subject: GeneratorSubject) -> Iterator[float]:
    """1, 3 or 6 more columns of padding change no token."""
    right, asks = subject(PROMPTS), "Is there a mask at every step?"
    for side in subject.sides:
        for extra in EXTRA:
            when = f"With {extra} more columns of padding on the {side}"
            yield compare(subject(PROMPTS, side, extra), right, when, asks)


@core(measures=DISTANCE, mirrors=HF + "issues/25455")
def neighbours_make_no_other_text(subject: GeneratorSubject) -> Iterator[float]:
    """A prompt is continued the same first or last in a batch, and beside other prompts."""
    right, asks = subject(PROMPTS), "Is anything computed for one row and used for all?"
    for order in ((3, 1, 0, 2), (2, 3), (1, 1, 0)):
        found = subject([PROMPTS[i] for i in order])
        when = f"With prompts {order} in this order"
        yield compare(found, [right[i] for i in order], when, asks)


@core(measures=DISTANCE, mirrors=(HF + "issues/23530", HF + "issues/26357"))
def a_prompt_may_hold_the_id_of_padding(subject: GeneratorSubject) -> Iterator[float]:
    """A real token of the prompt counts, though it has the id of padding, as an end may."""
    prompts = ((10, PAD, 6), (9, PAD, 3, 10, PAD), (PAD, 2, 10, 1))
    asks = "Is padding told by its id, or by the attention_mask?"
    for side in subject.sides:
        when = f"With real tokens of the id {PAD}, padded on the {side},"
        yield compare(subject(prompts, side), wanted(prompts), when, asks)


# ---- core: how many tokens -----------------------------------------------------------------------


@core(measures="tokens too many or too few")
def it_writes_as_many_tokens_as_it_is_asked_for(subject: GeneratorSubject) -> Iterator[float]:
    """Without an end each row gets max_new_tokens new tokens, however long its prompt is."""
    for new in (1, 4, NEW):
        lengths = [len(row) for row in subject(PROMPTS, new=new)]
        yield at_most(
            0.0,
            float(sum(abs(length - new) for length in lengths)),
            f"Asked for {new} new tokens it wrote {lengths}. Is the prompt counted too?",
        )


@core(measures=DISTANCE, mirrors="https://github.com/joeynmt/joeynmt/pull/50")
def each_row_stops_at_its_own_end(subject: GeneratorSubject) -> Iterator[float]:
    """A row is over with its end token, which it keeps; after it nothing comes, or padding."""
    needs(subject.eos_flag, EOS)
    right = wanted(PROMPTS, eos=END)
    found = subject(PROMPTS, eos=END)
    ended = [i for i, row in enumerate(right) if row[-1] == END]
    asks = "Does a row keep its end, and nothing after it?"
    rows = [found[i] for i in ended]
    yield compare(rows, [right[i] for i in ended], f"Where {END} ends a row,", asks)


@core(measures=DISTANCE)
def a_row_that_ends_leaves_its_neighbours_alone(subject: GeneratorSubject) -> Iterator[float]:
    """Rows that are not over are continued as if no other had ended."""
    needs(subject.eos_flag, EOS)
    right = wanted(PROMPTS, eos=END)
    found = subject(PROMPTS, eos=END)
    going = [i for i, row in enumerate(right) if row[-1] != END]
    asks = "Is the batch over when one row is?"
    rows = [found[i] for i in going]
    yield compare(rows, [right[i] for i in going], "Where their neighbours end,", asks)


@core(measures=DISTANCE, mirrors=HF + "pull/47286")
def an_end_of_0_ends_a_row_too(subject: GeneratorSubject) -> Iterator[float]:
    """The end token may have the id 0."""
    needs(subject.eos_flag, EOS)
    found = subject(PROMPTS, eos=0)
    asks = "Is 0 taken for `not given`?"
    yield compare(found, wanted(PROMPTS, eos=0), "Where 0 ends a row,", asks)


# ---- core: manners -------------------------------------------------------------------------------


@core(measures="changed entries")
def the_prompts_are_left_alone(subject: GeneratorSubject) -> Iterator[float]:
    """input_ids and attention_mask are the same after the call as before."""
    for side in subject.sides:
        batch = subject.batch(PROMPTS, side)
        given = [x.clone() for x in batch]
        subject.call(the_model(str(subject.device)), *given, NEW)
        for name, before, after in zip(subject.arguments[1:], batch, given, strict=False):
            same_shape = before.shape == after.shape
            yield at_most(
                0.0,
                float((before != after).sum()) if same_shape else float("nan"),
                f"It changes its {name} in place.",
            )


@core(measures=DISTANCE)
def the_same_prompts_give_the_same_text(subject: GeneratorSubject) -> Iterator[float]:
    """Called again it writes the same."""
    first, second = subject(PROMPTS), subject(PROMPTS)
    asks = "Is anything drawn at random, or remembered?"
    yield compare(second, first, "Called a second time", asks)


# ---- robust --------------------------------------------------------------------------------------


@robust(measures=DISTANCE)
def dropout_is_off_while_it_writes(subject: GeneratorSubject) -> Iterator[float]:
    """A model in training mode writes as it does in eval mode: no dropout, and the same twice."""
    model = the_model(str(subject.device), dropout=0.5)
    right = subject(PROMPTS, model=model.eval())
    found = subject(PROMPTS, model=model.train())
    asks = "Is model.eval() called first?"
    yield compare(found, right, "With a model in training mode", asks)


@robust()
def the_model_is_left_as_it_was(subject: GeneratorSubject) -> None:
    """The model is in the mode in which it was before, and no gradient was written."""
    for training in (True, False):
        model = the_model(str(subject.device)).train(training)
        subject(PROMPTS, model=model)
        mode, others = ("training", "eval") if training else ("eval", "training")
        left = model.training == training
        model.eval()
        expect(left, f"A model that was in {mode} mode is in {others} mode afterwards.")


@robust(measures="new tokens")
def no_new_tokens_are_none(subject: GeneratorSubject) -> Iterator[float]:
    """Asked for 0 new tokens it writes none."""
    lengths = [len(row) for row in subject(PROMPTS, new=0)]
    yield at_most(0.0, float(sum(lengths)), f"Asked for 0 new tokens it wrote {lengths}.")


def _answers(subject: GeneratorSubject) -> Answers:
    """A longer text than in any other check: a buffer that grows is made here."""
    rows = subject(PROMPTS, new=12, extra=8)
    return {f"prompt {i}": torch.tensor(row) for i, row in enumerate(rows)}


def _with_its_model(subject: GeneratorSubject) -> GeneratorSubject:
    the_model(str(subject.device))  # the suite's own is made outside
    return subject


asked_inside_inference_mode("generator", _answers, prepared=_with_its_model)
