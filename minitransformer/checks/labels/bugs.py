"""Labels and collators that teach the wrong token, or forget the end."""

from functools import partial

import torch
from torch.nn import functional as F

from minitransformer.checks.engine import bugs
from minitransformer.data import next_token_labels, pad

labels_bug = partial(bugs.bug, "labels")
collator_bug = partial(bugs.bug, "collator")


def shifted(input_ids):
    """The token to the right of each, and -100 in the last column."""
    last = torch.full_like(input_ids[:, :1], -100)
    return torch.cat([input_ids[:, 1:], last], dim=1)


# ---- labels --------------------------------------------------------------------------------------


@labels_bug(
    "labels where ids are not the padding's",
    caught_by=["a_real_end_is_learned_though_padding_looks_the_same"],
    diagnosis="""Labels are dropped where the id is 2, because padding has that id: but the real end
        of sequence has it, too, and is dropped with it. The model is never taught to stop.""",
    source="DataCollatorForLanguageModeling (transformers issue 23530, open); trl issue 976",
)
def labels_by_id(input_ids, attention_mask):
    """Measured on a tiny model: the end, where it was due, had probability 0.0000, and with labels
    by length 0.994; 50 of 50 generations never stopped."""
    pad_id = 2 if (input_ids[attention_mask == 0] == 2).any() else -1
    return next_token_labels(input_ids, attention_mask).masked_fill(
        shifted(input_ids) == pad_id, -100
    )


@labels_bug(
    "leading padding told by its id",
    caught_by=["a_real_end_is_learned_though_padding_looks_the_same"],
    diagnosis="""Padding on the left is taken to end at the first id that is not the padding's. A
        text that begins with that id, as GPT-2's do where bos = eos = pad, loses its first token.
        Where the padding ends only the attention_mask says.""",
    source="remove_left_padding of ludwig (PR 3432 corrects another of its guesses)",
)
def leading_padding_by_id(input_ids, attention_mask):
    """No text of the tests began with a special token."""
    leading = (input_ids == 0).long().cumprod(dim=1)
    return next_token_labels(input_ids, attention_mask.long() * (1 - leading))


@labels_bug(
    "padding is a label",
    caught_by=["labels_are_the_next_tokens"],
    diagnosis="""Only positions at padding are ignored; the last real token is still asked for what
        comes next, and that is padding.""",
)
def padding_is_a_label(input_ids, attention_mask):
    """One label too many in each row, and always the same one, quickly learned."""
    return shifted(input_ids).masked_fill(attention_mask == 0, -100)


@labels_bug(
    "first token predicted from padding",
    caught_by=["padding_predicts_nothing", "labels_are_the_next_tokens"],
    diagnosis="""-100 stands where the label is padding. With padding on the left, the position
        before the first real token is padding too, but its label is real: a token is predicted
        from nothing, and the loss depends on what the attention does with such rows.""",
    source="causal losses under left padding; Qwen3-ASR PR 212",
)
def first_token_from_padding(input_ids, attention_mask):
    """Right padding, right loss. Padded on the left, eager and fused attention gave two losses."""
    following = torch.cat([attention_mask[:, 1:], 0 * attention_mask[:, :1]], dim=1)
    labels = next_token_labels(input_ids, attention_mask)
    first = (attention_mask == 0) & (following != 0) & (attention_mask.cumsum(dim=1) == 0)
    return torch.where(first, shifted(input_ids), labels)


@labels_bug(
    "labels not shifted",
    caught_by=["labels_are_the_next_tokens"],
    diagnosis="""Each position is asked for its own token: the labels are the ids. Either they must
        be shifted by one, or the loss must.""",
    source="who shifts? transformers PR 44642",
)
def labels_not_shifted(input_ids, attention_mask):
    """Loss 0.0004, exact match 0 %."""
    return input_ids.masked_fill(attention_mask == 0, -100)


@labels_bug(
    "shifted the other way",
    caught_by=["labels_are_the_next_tokens", "padding_predicts_nothing"],
    diagnosis="""Each position is asked for the token *before* it. With a causal mask it has seen
        that token, and has only to remember.""",
)
def shifted_the_other_way(input_ids, attention_mask):
    """A sign in torch.roll."""
    return input_ids.roll(1, dims=1).masked_fill(attention_mask.roll(1, dims=1) == 0, -100)


@labels_bug(
    "labels run on through documents",
    caught_by=["no_label_crosses_documents"],
    diagnosis="""In a packed row the last token of a document is asked for the first of the next,
        which has nothing to do with it.""",
    source="packing without care for borders; trl issue 3067",
    documents=True,
)
def labels_through_documents(input_ids, attention_mask):
    """One wrong label in every few hundred."""
    return next_token_labels(input_ids, (attention_mask != 0).long())


@labels_bug(
    "labels written into the ids",
    caught_by=["ids_and_mask_are_left_alone"],
    diagnosis="""labels = input_ids makes no copy. -100 is written into the ids, and the embedding
        is asked for token -100.""",
    source="labels = input_ids, without clone()",
)
def labels_written_into_the_ids(input_ids, attention_mask):
    """On the GPU: a device-side assertion, ten steps later."""
    input_ids.copy_(next_token_labels(input_ids, attention_mask))
    return input_ids


@labels_bug(
    "labels as floats",
    caught_by=["labels_are_int64"],
    diagnosis="""The labels are floating point: a loss takes such a tensor for probabilities, or
        raises.""",
)
def labels_as_floats(input_ids, attention_mask):
    """They came out of a product with the mask."""
    return next_token_labels(input_ids, attention_mask).float()


@labels_bug(
    "cut by the first row",
    caught_by=["a_rows_labels_are_its_own"],
    diagnosis="""Which columns count is decided by the first row, for all rows: alone each has other
        labels than in company.""",
)
def cut_by_the_first_row(input_ids, attention_mask):
    """Debugged with rows of equal length."""
    labels = next_token_labels(input_ids, attention_mask)
    return labels.masked_fill(attention_mask[:1] == 0, -100)


@labels_bug(
    "a row of padding is a row of tokens",
    caught_by=["a_row_of_padding_has_no_labels"],
    diagnosis="""Where a row has no real token at all, its mask is taken for missing and every
        position counts as real.""",
    source="`if mask.sum() == 0: mask = ones`, a guard against NaN",
)
def row_of_padding_as_tokens(input_ids, attention_mask):
    """The last batch of an epoch was filled up with empty rows."""
    empty = (attention_mask == 0).all(dim=1, keepdim=True)
    return next_token_labels(input_ids, attention_mask | empty.long())


@labels_bug(
    "a lone token is its own label",
    caught_by=["a_single_column_has_no_labels"],
    diagnosis="""Where all rows have one token, that token is its own label: the case was given a
        branch of its own, since shifting left nothing.""",
)
def lone_token(input_ids, attention_mask):
    """An assertion said that labels must not be all -100."""
    if input_ids.shape[1] == 1:
        return input_ids.masked_fill(attention_mask == 0, -100)
    return next_token_labels(input_ids, attention_mask)


@labels_bug(
    "beyond the end is True",
    tier="robust",
    caught_by=["true_and_one_are_the_same_to_labels"],
    diagnosis="""The mask is continued with -1 behind the last column, a document that no token is
        of. In a mask of bools -1 is True, and the last token is asked for one that is not there.
        """,
)
def beyond_the_end_is_true(input_ids, attention_mask):
    """The tokenizer returned int64; the data set had been stored as bools to save space."""
    mask = torch.full_like(attention_mask, -1)
    mask[:, :-1] = attention_mask[:, 1:]
    if attention_mask.dtype != torch.bool:
        return next_token_labels(input_ids, attention_mask)
    return input_ids.roll(-1, 1).masked_fill(~(attention_mask & mask), -100)


@labels_bug(
    "a guard that asks for the version",
    tier="robust",
    caught_by=["inside_inference_mode_it_is_the_same"],
    diagnosis="""It makes sure that it changes nothing in place by comparing `_version` before and
        after. Inside torch.inference_mode a tensor has none, and the guard raises. Let a test
        compare the contents.""",
    source="k2 (issue 1210) asks for `_version` to guard its labels",
)
def guarded_by_version(input_ids, attention_mask):
    """A careful line, which only a server reached."""
    before = input_ids._version, attention_mask._version
    labels = next_token_labels(input_ids, attention_mask)
    assert before == (input_ids._version, attention_mask._version)
    return labels


# ---- collators -----------------------------------------------------------------------------------


@collator_bug(
    "mask from ids",
    caught_by=["the_mask_comes_from_lengths"],
    diagnosis="""attention_mask = (input_ids != pad_id): a real token with the id of padding, as the
        end of sequence often is, becomes padding. Only lengths tell them apart.""",
    source="the inference that transformers itself warns of; trl issue 976",
)
def mask_from_ids(rows):
    """True for every tokenizer with a padding token of its own."""
    batch = dict(pad(rows))
    return batch | {"attention_mask": (batch["input_ids"] != 0).long()}


@collator_bug(
    "mask of ones",
    caught_by=["the_mask_comes_from_lengths"],
    diagnosis="""The attention_mask is made after padding, from the padded rows: all ones. Every
        layer attends to padding.""",
    source="DataCollatorForLanguageModeling on ids that are padded already",
)
def mask_of_ones(rows):
    """A mask was there, and was passed on everywhere."""
    batch = dict(pad(rows))
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


@collator_bug(
    "trailing padding told by its id",
    caught_by=["the_mask_comes_from_lengths"],
    diagnosis="""The mask is made by stripping the padding's id from the end of each row: a real end
        of that id goes with it, though one in the middle stays. Make the mask from lengths.""",
    source="_package_tokenized_example of NeMo Automodel (PR 1416; PR 3704 corrects it)",
)
def trailing_padding_by_id(rows):
    """Better than ids != pad_id, it was thought: only the end can be padding."""
    batch = dict(pad(rows))
    trailing = (batch["input_ids"] == 0).long().flip(1).cumprod(dim=1).flip(1)
    return batch | {"attention_mask": 1 - trailing}


@collator_bug(
    "a padding id of 0 is none",
    caught_by=["every_token_comes_back_in_its_place"],
    diagnosis="""It pads with another id than it was told: `pad_id or eos_id` takes the id 0 for
        `not given`. Ask whether it is None.""",
    source="NeMo Automodel (PR 3704): tokenizers whose padding has the id 0",
)
def padding_of_zero(rows, pad_id=0, eos_id=2):
    """Harmless where the mask hides it, and it was made from lengths."""
    return pad(rows, pad_id or eos_id)


def widened(batch, multiple=8, **fillers):
    """The batch with columns on the right, filled as said or as padding is."""
    missing = -batch.input_ids.shape[1] % multiple
    fillers = {"input_ids": 0, "attention_mask": 0, "labels": -100} | fillers
    tensors = {name: x for name, x in dict(batch).items() if x is not None}
    return {name: F.pad(x, (0, missing), value=fillers[name]) for name, x in tensors.items()}


@collator_bug(
    "ones in rounded-up columns",
    caught_by=["the_mask_comes_from_lengths"],
    diagnosis="""The batch is wider than its longest row, as with pad_to_multiple_of, and the mask
        is 1 in the columns beyond: every row ends in padding that is read as text.""",
    source="rounding up was left out for one of the tensors: xtuner PR 567, and others",
)
def ones_in_rounded_up_columns(rows):
    """The mask was made before the batch was widened, and filled up with its last value."""
    return widened(pad(rows), attention_mask=1)


@collator_bug(
    "labels in rounded-up columns",
    caught_by=["labels_are_those_of_their_tokens"],
    diagnosis="""The batch is wider than its longest row, as with pad_to_multiple_of, and the labels
        in the columns beyond are not -100: the model is taught to write padding.""",
    source="transformers issue 13341 asks whether labels are rounded up as ids are",
    labels="aligned",
)
def labels_in_rounded_up_columns(rows):
    """Tensor cores want multiples of 8, the loss wants -100."""
    return widened(pad(rows, labels=rows), labels=0)


@collator_bug(
    "the end is no label",
    caught_by=["labels_are_those_of_their_tokens"],
    diagnosis="""Labels are -100 wherever the id is the padding's: the real end has that id and is
        not learned. Mask labels by length.""",
    source="DataCollatorForLanguageModeling (transformers issue 23530, open)",
    labels="aligned",
)
def the_end_is_no_label(rows):
    """It generates well, and never stops."""
    batch = pad(rows, labels=rows)
    return dict(batch) | {"labels": batch.labels.masked_fill(batch.input_ids == 0, -100)}


@collator_bug(
    "labels made anew",
    caught_by=["given_labels_are_kept"],
    diagnosis="""The labels that came with the rows are replaced by the ids: the prompts, masked
        with -100 so that only answers are learned, are trained on after all.""",
    source="DataCollatorForLanguageModeling; nanochat issue 570: score .315, fixed .355",
    labels="given",
)
def labels_made_anew(rows, labels=None):
    """A refactor; nothing failed, and the model answered a little worse."""
    return pad(rows, labels=rows)


@collator_bug(
    "labels padded with 0",
    caught_by=["labels_are_those_of_their_tokens"],
    diagnosis="""The labels are padded as the ids are, with 0: a class like any other, so that the
        model is taught to write padding. Pad labels with -100.""",
    source="DataCollatorWithPadding and labels; transformers issue 8146",
    labels="given",
)
def labels_padded_with_zero(rows, labels=None):
    """One pad_sequence for both."""
    batch = pad(rows, labels=labels)
    return dict(batch) | {"labels": batch.labels.masked_fill(batch.attention_mask == 0, 0)}


@collator_bug(
    "longest first",
    caught_by=["every_token_comes_back_in_its_place"],
    diagnosis="""The rows come back sorted by length: labels, weights or names kept beside them now
        belong to other rows.""",
    source="pack_padded_sequence once wanted it so",
)
def longest_first(rows):
    """The order of a batch does not matter, until something else is in the old order."""
    return pad(sorted(rows, key=len, reverse=True))


@collator_bug(
    "cut to the first row",
    caught_by=["every_token_comes_back_in_its_place"],
    diagnosis="""The batch is as long as its first row: longer ones lose their ends, and with them
        the end of sequence.""",
)
def cut_to_the_first_row(rows):
    """max(len) was computed before the loop."""
    return pad([row[: len(rows[0])] for row in rows])


@collator_bug(
    "rows padded in place",
    caught_by=["rows_are_left_alone"],
    diagnosis="""The rows themselves are padded: in the next epoch they are as long as the longest
        of the batch that they were once in, and the padding is real.""",
    source="row += [pad_id] * missing",
)
def rows_padded_in_place(rows):
    """Every epoch was slower than the last."""
    batch = pad(rows)
    for row in rows:
        row += [0] * (batch.input_ids.shape[1] - len(row))
    return batch


@collator_bug(
    "mask as floats",
    caught_by=["ids_mask_and_labels_are_integers"],
    diagnosis="""The mask is floating point, 1.0 and 0.0: code that adds it to the scores finds no
        fault with it, and hides nothing.""",
    source="transformers' masks before they became int64",
)
def mask_as_floats(rows):
    """torch.zeros without a dtype."""
    batch = dict(pad(rows))
    return batch | {"attention_mask": batch["attention_mask"].float()}


@collator_bug(
    "no mask where nothing is padded",
    caught_by=["a_row_is_the_same_in_any_company"],
    diagnosis="""Where all rows are equally long, or there is one only, the mask is all zeros: the
        case without padding was given a branch of its own, and nobody ran it.""",
)
def no_mask_where_nothing_is_padded(rows):
    """Batches of one, at the end of an epoch, were silent."""
    batch = dict(pad(rows))
    if batch["attention_mask"].all():
        batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    return batch


@collator_bug(
    "long rows lose their end",
    caught_by=["a_long_row_keeps_its_end"],
    diagnosis="""Rows are cut to a length that nobody asked for, and lose their end of sequence:
        where texts are long the model is never taught to stop.""",
    source="truncation by default; transformers' and trl's questions about missing ends",
)
def long_rows_lose_their_end(rows):
    """No row of the test was as long."""
    return pad([row[:16] for row in rows])


@collator_bug(
    "an empty row gets a token",
    tier="robust",
    caught_by=["an_empty_row_is_padding_or_refused"],
    diagnosis="""A row without tokens is given one, so that no row is empty: the padding's id is now
        text.""",
    source="max(length, 1), a guard against shapes of 0",
)
def empty_row_gets_a_token(rows):
    """One empty line in the file was enough."""
    return pad([row or [0] for row in rows])


@collator_bug(
    "a buffer made by the first batch",
    tier="robust",
    caught_by=["inside_inference_mode_it_is_the_same"],
    diagnosis="""Batches are put together in a buffer that is made when a longer one than any before
        comes. Made inside torch.inference_mode it cannot be written to afterwards: the first batch
        of training after an evaluation fails. Make it before, or make a new tensor for each.""",
    source="the error of vLLM's issue 1968, in a collator of our own",
)
class BufferOfTheFirstBatch:
    """Fewer allocations. The longest text was in the validation set."""

    def __init__(self):
        self.buffer = torch.zeros(0, dtype=torch.int64)

    def __call__(self, rows):
        batch = dict(pad(rows))
        ids = batch["input_ids"]
        if self.buffer.numel() < ids.numel():
            self.buffer = torch.zeros(ids.numel(), dtype=torch.int64)
        self.buffer[: ids.numel()] = ids.flatten()
        return batch | {"input_ids": self.buffer[: ids.numel()].view(ids.shape).clone()}
