"""Generators that write something else to prompts in a batch than to each alone.

`Greedy` is right: every line that padding or an end has to do with is a method of its own, and
each bug overrides one. All of them write fluent text.
"""

from functools import partial

import torch
from torch import Tensor

from minitransformer.checks.engine import bugs
from minitransformer.models import DecoderOnly

bug = partial(bugs.bug, "generator", eos_flag="eos_id")

ALONE = "each_token_is_the_likeliest"
LEFT = "prompts_padded_on_the_left_give_what_they_give_alone"
RIGHT = "prompts_padded_on_the_right_give_what_they_give_alone"
HOW_MUCH = "how_much_padding_makes_no_other_text"
NEIGHBOURS = "neighbours_make_no_other_text"
OWN_END = "each_row_stops_at_its_own_end"


# ---- how it should be ----------------------------------------------------------------------------


class Greedy:
    """The likeliest token of each row, time after time, until the row's own end."""

    @torch.no_grad()
    def __call__(
        self,
        model: DecoderOnly,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        eos_id: int | None = None,
    ) -> list[Tensor]:
        before = model.training
        self.prepare(model)
        rows = self.write(model, input_ids, attention_mask, max_new_tokens, eos_id)
        self.restore(model, before)
        return rows

    def write(self, model, ids, mask, new: int, eos_id: int | None) -> list[Tensor]:
        ids, mask = self.start(ids, mask)
        prompt, going = ids.shape[1], torch.ones_like(ids[:, 0], dtype=torch.bool)
        for _ in range(self.steps(prompt, new)):
            token = self.choose(self.next_logits(model, ids, mask))
            ids = torch.cat((ids, token.unsqueeze(1)), dim=1)
            mask = torch.cat((mask, self.real(going).unsqueeze(1)), dim=1)
            if self.has_end(eos_id):
                going = self.still_going(going, token, eos_id)
                if self.over(going):
                    break
        return self.rows(ids[:, prompt:], mask[:, prompt:], eos_id)

    def prepare(self, model) -> None:
        model.eval()

    def restore(self, model, before: bool) -> None:
        model.train(before)

    def start(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the model reads at first."""
        return ids, mask

    def steps(self, prompt: int, new: int) -> int:
        return new

    def next_logits(self, model, ids: Tensor, mask: Tensor) -> Tensor:
        logits = model(ids, mask)
        return logits[torch.arange(len(ids)), self.last(mask)]

    def last(self, mask: Tensor) -> Tensor:
        """The column of each row's last real token."""
        columns = torch.arange(mask.shape[1]).expand_as(mask)
        return columns.masked_fill(mask == 0, -1).amax(dim=1)

    def choose(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def real(self, going: Tensor) -> Tensor:
        """What the mask says of the newest tokens."""
        return going.long()

    def has_end(self, eos_id: int | None) -> bool:
        return eos_id is not None

    def still_going(self, going: Tensor, token: Tensor, eos_id: int | None) -> Tensor:
        return going & (token != eos_id)

    def over(self, going: Tensor) -> bool:
        return not going.any()

    def rows(self, new: Tensor, real: Tensor, eos_id: int | None) -> list[Tensor]:
        return [row[keep != 0] for row, keep in zip(new, real, strict=True)]


# ---- what the model reads ------------------------------------------------------------------------


@bug(
    "newest token only",
    caught_by=[ALONE, LEFT, RIGHT],
    diagnosis="""From the second step on the model is given the newest token alone, as if it had a
        cache of the others: each token has position 0 and follows upon nothing. Give it all tokens,
        or their keys, values and the right position.""",
    source="Dive into Deep Learning, predict_step of the transformer chapter: all positions are 0",
)
class NewestTokenOnly(Greedy):
    """It was fast, and the sentences began well."""

    def start(self, ids, mask):
        self.prompt = ids.shape[1]
        return ids, mask

    def next_logits(self, model, ids, mask):
        if ids.shape[1] == self.prompt:
            return super().next_logits(model, ids, mask)
        newest = ids[:, -1:]
        return model(newest, torch.ones_like(newest))[:, -1]


@bug(
    "the last column is read",
    caught_by=[RIGHT, HOW_MUCH],
    diagnosis="""The next token is read from the last column, which is padding in the shorter rows
        where it stands on the right: they are continued from nothing. Read each row at its last
        real token, or pad prompts on the left.""",
    source="the reason for the warning of transformers about right padding in generate",
)
class LastColumn(Greedy):
    """logits[:, -1], as in every tutorial for one prompt."""

    def last(self, mask):
        return torch.full_like(mask[:, 0], mask.shape[1] - 1)


@bug(
    "the first row's end is everyone's",
    caught_by=[RIGHT, NEIGHBOURS],
    diagnosis="""Where the prompt ends is computed for the first row and used for all: what the
        others write depends on which prompt comes first. Compute it row by row.""",
)
class FirstRowsEnd(Greedy):
    """Tried with one prompt, and with prompts of one length."""

    def last(self, mask):
        return super().last(mask)[:1].expand(len(mask))


@bug(
    "prompts without a mask",
    caught_by=[LEFT, RIGHT, HOW_MUCH],
    diagnosis="""The attention_mask does not reach the model: padding is read as text, and shifts
        the positions of what follows. Pass it at every step, longer by a column each time.""",
    source="prompts in batches without attention_mask: transformers issue 3021 and many like it",
)
class NoMask(Greedy):
    """One prompt alone was perfect; in batches the shorter ones came out strange."""

    def start(self, ids, mask):
        return ids, torch.ones_like(mask)


@bug(
    "the mask does not grow",
    caught_by=[ALONE, LEFT],
    diagnosis="""The mask is that of the prompt, and new tokens are filled up as padding: the model
        never reads what it wrote, and repeats itself. Each new token adds a 1 to its row.""",
)
class MaskDoesNotGrow(Greedy):
    """The same word, again and again: it was put down to the small model."""

    def real(self, going):
        return torch.zeros_like(going, dtype=torch.long)

    def rows(self, new, real, eos_id):
        return list(new)


@bug(
    "prompts whose mask is made from ids",
    caught_by=["a_prompt_may_hold_the_id_of_padding"],
    diagnosis="""The mask of the prompt is made by `ids != pad_id`, whatever mask was given: a real
        token with the id of padding, such as the end of a turn where pad = eos, is hidden.""",
    source="transformers issue 23530 and trl issue 976: pad = eos",
)
class MaskFromIds(Greedy):
    """A model with a padding token of its own never showed it. The next one had pad = eos."""

    def start(self, ids, mask):
        return ids, (ids != 0).long()


@bug(
    "it starts from padding",
    caught_by=[ALONE, LEFT, RIGHT],
    diagnosis="""The padding id is put before the first new token, as a start, though the model was
        never trained to go on from it: it begins somewhere else than training did. Start from what
        training started from.""",
    source="the annotated transformer, issue 127: decoding starts from padding, not from <s>",
)
class StartsFromPadding(Greedy):
    """zeros(1, 1), and 0 happened to be the padding."""

    def start(self, ids, mask):
        start = torch.zeros_like(ids[:, :1])
        return torch.cat((ids, start), dim=1), torch.cat((mask, start + 1), dim=1)


@bug(
    "padding overwritten in the prompt",
    caught_by=["the_prompts_are_left_alone"],
    diagnosis="""It replaces the padding of the caller's prompt in place, so that no strange id
        reaches the embedding. The text is right, and the prompt is another afterwards.""",
)
class PaddingOverwritten(Greedy):
    """Found when the prompts were cut off the text, by comparison."""

    def start(self, ids, mask):
        ids.masked_fill_(mask == 0, 1)
        return ids, mask


# ---- what is written -----------------------------------------------------------------------------


@bug(
    "drawn, not chosen",
    caught_by=[ALONE, "the_same_prompts_give_the_same_text"],
    diagnosis="""It draws the next token from the probabilities where the likeliest was asked for:
        every call writes something else, and no two evaluations agree.""",
)
class Drawn(Greedy):
    """temperature=0.0 was the default, and `temperature or 1.0` made 1 of it."""

    def choose(self, logits):
        return torch.multinomial(logits.softmax(dim=-1), 1).squeeze(1)


@bug(
    "the least likely token",
    caught_by=[ALONE],
    diagnosis="""It takes the smallest logit: a sign was lost, as of a loss that is used as a score.
        The likeliest token has the largest logit.""",
)
class LeastLikely(Greedy):
    """argmin over negative log-likelihoods is right; over logits it is the worst token."""

    def choose(self, logits):
        return logits.argmin(dim=-1)


@bug(
    "the prompt counts as written",
    caught_by=["it_writes_as_many_tokens_as_it_is_asked_for"],
    diagnosis="""The length of the padded prompt is subtracted from max_new_tokens: long prompts get
        short answers or none, and a longer neighbour shortens everyone's. max_length and
        max_new_tokens are two things.""",
    source="max_length beside max_new_tokens in transformers, a steady source of questions",
)
class PromptCounts(Greedy):
    """Answers grew shorter as the conversation went on."""

    def steps(self, prompt, new):
        return max(new - prompt, 0)


@bug(
    "always one token",
    tier="robust",
    caught_by=["no_new_tokens_are_none"],
    diagnosis="""Asked for no new token it writes one: the loop asks whether it is done only after
        the first.""",
)
class AlwaysOne(Greedy):
    """The budget of the last prompt was used up, and it went over it."""

    def steps(self, prompt, new):
        return max(new, 1)


# ---- where it ends -------------------------------------------------------------------------------


@bug(
    "one end for all",
    caught_by=["a_row_that_ends_leaves_its_neighbours_alone"],
    diagnosis="""The batch is over as soon as one row has ended: the others are cut off in the
        middle. It is over when all rows are.""",
)
class OneEndForAll(Greedy):
    """any instead of all. With a batch of one they are the same."""

    def over(self, going):
        return not going.all()


@bug(
    "on after the end",
    caught_by=[OWN_END],
    diagnosis="""It stops when all rows end at the same step, which hardly happens, and remembers no
        row that is over: what such rows write after their end is returned as text.""",
)
class OnAfterTheEnd(Greedy):
    """The scores fell with the size of the batch."""

    def still_going(self, going, token, eos_id):
        return torch.ones_like(going)


@bug(
    "the end is cut off",
    caught_by=[OWN_END],
    diagnosis="""The end token is dropped: a row that has ended cannot be told from one that ran out
        of tokens, and who scores the text misses the probability of its end.""",
)
class EndCutOff(Greedy):
    """It was not to be shown; now it is not there."""

    def rows(self, new, real, eos_id):
        rows = super().rows(new, real, eos_id)
        return [row[row != eos_id] if eos_id is not None else row for row in rows]


@bug(
    "an end of 0 is none",
    caught_by=["an_end_of_0_ends_a_row_too"],
    diagnosis="""`if eos_id:` takes the id 0 for `not given`, and rows never end. Ask whether it is
        None.""",
    source="transformers, beam search: `pad_token_id or eos_token_id` with a padding id of 0",
)
class EndOfZero(Greedy):
    """The first tokenizer had its end at 2."""

    def has_end(self, eos_id):
        return bool(eos_id)


# ---- the model around it -------------------------------------------------------------------------


@bug(
    "dropout while writing",
    tier="robust",
    caught_by=["dropout_is_off_while_it_writes"],
    diagnosis="""It writes with the model in whatever mode it is: in the middle of training dropout
        is on, and the samples look worse than the model is. Call eval() before and train() after.
        """,
)
class DropoutWhileWriting(Greedy):
    """The samples in the log of the training were poor until the last line, written after it."""

    def prepare(self, model):
        pass


@bug(
    "eval mode for good",
    tier="robust",
    caught_by=["the_model_is_left_as_it_was"],
    diagnosis="""It calls eval() and leaves it at that: training goes on without dropout after the
        first sample. Restore the mode that was found.""",
    source="a common oversight of training loops that print samples",
)
class EvalForGood(Greedy):
    """The loss fell suddenly after the first sample, and the model overfitted."""

    def restore(self, model, before):
        pass


@bug(
    "a cache made by the first text",
    tier="robust",
    caught_by=["inside_inference_mode_it_is_the_same"],
    diagnosis="""What is kept while it writes has a buffer, made when a longer text than any before
        comes. Made inside torch.inference_mode it cannot be written to afterwards: the next text
        written outside fails. Make a cache for each call.""",
    source="the error of vLLM's issue 1968, in a generator of our own",
)
class CacheOfTheFirstText(Greedy):
    """The cache of the real one held keys and values; here it holds the token ids."""

    def __init__(self):
        self.cache = torch.zeros(0, dtype=torch.int64)

    def next_logits(self, model, ids, mask):
        if self.cache.numel() < ids.numel():
            self.cache = torch.zeros(ids.numel(), dtype=torch.int64)
        self.cache[: ids.numel()] = ids.flatten().cpu()
        return super().next_logits(model, self.cache[: ids.numel()].view(ids.shape).to(ids), mask)
