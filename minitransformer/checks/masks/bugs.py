"""Functions that build a wrong mask."""

from functools import partial

import torch

from minitransformer.checks.engine import bugs
from minitransformer.masks import causal_mask, padding_mask

bug = partial(bugs.bug, "mask")


def real_keys(attention_mask):
    """(b,1,q,k): every query sees the real keys."""
    length = attention_mask.shape[1]
    return (attention_mask != 0)[:, None, None, :].expand(-1, 1, length, -1)


def keys(attention_mask):
    """The same, but a token of a document sees only that document."""
    padded_query = (attention_mask == 0)[:, None, :, None]
    return padding_mask(attention_mask) | (padded_query & real_keys(attention_mask))


@bug(
    "mask of the queries, not of the keys",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""The padding lies on the query axis: padded tokens look at nothing, and real tokens
        look at padding. The length of the keys belongs on the last axis.""",
    source="hyunwoongko/transformer (PR 40); annotated-transformer issue 137 proposes it as a fix",
)
def mask_of_the_queries(attention_mask):
    """unsqueeze(1).unsqueeze(3). With a finite fill nothing ever failed."""
    return keys(attention_mask).mT


@bug(
    "what to hide for what to show",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""The mask says True where it should say False: padding, or the future, is all that
        is seen. Does the attention that gets it want True for "attend" or for "ignore"?""",
    source="LLMs-from-scratch, chapter 3 (issue 1061, fixed in PR 1062)",
)
def what_to_hide(attention_mask):
    """A name like `mask` says neither."""
    return ~keys(attention_mask)


@bug(
    "an excluded self",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""The diagonal is hidden: a token sees what came before it, and not itself, and the
        first token sees nothing. tril(-1) where tril(0) was meant.""",
    causal=True,
)
def excluded_self(attention_mask):
    """It hid too much; every test looked for leaks."""
    return keys(attention_mask) & causal_mask(attention_mask.shape[1]).tril(-1)


@bug(
    "one token of the future",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""Each token sees the next one too: exactly the one that it is asked for.""",
    causal=True,
)
def one_token_of_the_future(attention_mask):
    """triu(diagonal=2). The loss was wonderful."""
    ones = torch.ones_like(keys(attention_mask))
    return keys(attention_mask) & ones.tril(1)


@bug(
    "causality forgotten",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""It is declared causal and hides padding only: the whole future is seen.""",
    source="d2l, transformer chapter: built in training mode only",
    causal=True,
)
def causality_forgotten(attention_mask):
    """`if self.training:` stood before it."""
    return keys(attention_mask)


@bug(
    "padding or future, not both",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""Two masks of what may be seen are combined with | instead of &: a key is hidden
        only if it is padding *and* lies in the future.""",
    causal=True,
)
def padding_or_future(attention_mask):
    """Right for masks of what to hide; these are masks of what to show."""
    return keys(attention_mask) | causal_mask(attention_mask.shape[1])


@bug(
    "a (batch, length) mask as (length, length)",
    caught_by=["each_query_may_see_what_it_should", "a_rows_mask_is_its_own"],
    diagnosis="""The attention_mask of rows × tokens is laid over queries × keys. It fits where a
        batch has as many rows as tokens, and then row 2's padding hides token 2's view.""",
    source="UvA deep learning notebooks (expand_mask); torch, flax and keras broadcast it, too",
)
def rows_for_queries(attention_mask):
    """The shapes did not fit, so an unsqueeze was added until they did."""
    batch, length = attention_mask.shape
    if batch == length:
        return (attention_mask != 0)[None, None].expand(batch, 1, -1, -1)
    return keys(attention_mask)


@bug(
    "the first row's mask for all",
    caught_by=["a_rows_mask_is_its_own"],
    diagnosis="""All rows get the mask of the first.""",
)
def first_rows_mask(attention_mask):
    """Built once, before the loop over batches."""
    return keys(attention_mask)[:1].expand(len(attention_mask), -1, -1, -1)


@bug(
    "documents see each other",
    caught_by=["documents_do_not_see_each_other"],
    diagnosis="""Documents packed into one row attend to each other: only padding is hidden.
        Compare the numbers of the documents, not each with 0.""",
    source="packing by position_ids with a mask of ones; transformers PR 46634",
    documents=True,
)
def documents_see_each_other(attention_mask):
    """Packing made training faster, and only a little worse."""
    return real_keys(attention_mask)


@bug(
    "documents by their borders",
    caught_by=["documents_do_not_see_each_other"],
    diagnosis="""Documents are told apart by counting borders from the left: a document that is
        interrupted becomes two.""",
    documents=True,
)
def documents_by_borders(attention_mask):
    """cumsum over (number != number before)."""
    changed = torch.diff(attention_mask, dim=1, prepend=attention_mask[:, :1]) != 0
    runs = (changed.long().cumsum(dim=1) + 1) * (attention_mask != 0)
    single = (attention_mask.amax(dim=1, keepdim=True) <= 1).long()
    return padding_mask(torch.where(single == 1, attention_mask, runs))


@bug(
    "a row of padding unmasks the batch",
    caught_by=["a_row_of_padding_stays_in_its_row"],
    diagnosis="""A row without any real token would give NaN, and so the mask of the whole batch is
        dropped: all other rows attend to their padding.""",
    source="guards against NaN; x-transformers 2.31 tests emptiness before causality is added",
)
def row_of_padding_unmasks(attention_mask):
    """It happened in the last batch of an epoch only."""
    mask = keys(attention_mask)
    return mask if mask.any(dim=-1).all() else torch.ones_like(mask)


@bug(
    "aligned at the first token",
    caught_by=["the_last_query_is_the_last_key"],
    diagnosis="""tril of queries × keys aligns the *first* query with the first key. In decoding
        with a cache the new token, asked alone, would then see the very first token only.""",
    source="torch's causal flag is aligned so; PyTorch issue 108108",
    takes="length",
    causal=True,
    mask_layout="q k",
)
def aligned_at_the_first(num_queries, num_keys):
    """In training there are as many queries as keys."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril()


@bug(
    "a mask of a fixed size",
    caught_by=["any_length_has_its_mask"],
    diagnosis="""The mask is cut out of a buffer that was made for 8 tokens, and beyond these
        nothing is hidden.""",
    source="registered buffers of block_size",
)
def fixed_size(attention_mask):
    """No sentence of the test set was longer."""
    mask = keys(attention_mask).clone()
    mask[..., 8:] = True
    return mask


@bug(
    "positions in half precision",
    caught_by=["long_rows_are_masked_too"],
    diagnosis="""Which token comes first is asked of positions in bfloat16, which has no odd numbers
        above 256: neighbours get one position, and every other token sees the next.""",
    causal=True,
)
def positions_in_half_precision(attention_mask):
    """The dtype of the hidden states was used for everything."""
    position = torch.arange(attention_mask.shape[1]).bfloat16()
    return keys(attention_mask) & (position <= position.unsqueeze(1))


# ---- sliding windows -----------------------------------------------------------------------------


WINDOW = {"window": 3, "window_flag": "window"}
ENDS = ["a_window_ends_where_it_is_declared"]


def distances(attention_mask):
    """(T,T): how many columns the key stands before the query."""
    index = torch.arange(attention_mask.shape[1])
    return index.unsqueeze(1) - index


def past(attention_mask):
    """(B,1,T,T): the keys of a causal mask."""
    return keys(attention_mask) & causal_mask(attention_mask.shape[1])


@bug(
    "window one too long",
    caught_by=ENDS,
    diagnosis="""The window holds the query and `window` keys before it, one key too many: distance
        <= window where < was meant, or triu(-window). (FlashAttention's window_size=(3, 0) counts
        so: there a window of 3 is 2.)""",
    source="transformers PR 26792 (Mistral), and issue 39408 in its calls of FlashAttention",
    causal=True,
    **WINDOW,
)
def window_one_too_long(attention_mask, window):
    """With a window of 4096 nobody could see it; two kernels disagreed in the third digit."""
    return past(attention_mask) & (distances(attention_mask) <= window)


@bug(
    "window one too short",
    caught_by=ENDS,
    diagnosis="""The window holds `window` - 2 keys before the query instead of `window` - 1: one is
        taken off twice, for the query itself.""",
    source="vLLM issue 3385 weighs the two; a mutant of our own",
    causal=True,
    **WINDOW,
)
def window_one_too_short(attention_mask, window):
    """The fix of a window that was one too long, made in both places."""
    return past(attention_mask) & (distances(attention_mask) < max(window - 1, 1))


@bug(
    "window lost",
    caught_by=ENDS,
    diagnosis="""The window is taken and not used: each token sees the whole past. Short texts show
        no difference.""",
    source="transformers issue 35924; unsloth PR 8253: lost on one of several paths",
    causal=True,
    **WINDOW,
)
def window_lost(attention_mask, window):
    """The path without padding returned earlier."""
    return past(attention_mask)


@bug(
    "window on both sides of a causal mask",
    caught_by=ENDS,
    diagnosis="""It is declared causal, and its window reaches into the future as far as into the
        past: |distance| < window takes the place of the causal mask instead of joining it.""",
    causal=True,
    **WINDOW,
)
def window_on_both_sides(attention_mask, window):
    """A local mask of an encoder was at hand."""
    return keys(attention_mask) & (distances(attention_mask).abs() < window)


@bug(
    "window on one side of an encoder",
    caught_by=ENDS,
    diagnosis="""Only the past is cut off by the window, the future is seen as a whole: distance <
        window without the absolute value. An encoder's window ends on both sides.""",
    source="transformers PR 40700: a bidirectional model got a window meant for causal ones",
    **WINDOW,
)
def window_on_one_side(attention_mask, window):
    """The line was right in the decoder that it came from."""
    return keys(attention_mask) & (distances(attention_mask) < window)


@bug(
    "window counted over padding",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""The window is said to count tokens and counts columns: padding between tokens takes
        its place in the window.""",
    causal=True,
    window_counts="tokens",
    **WINDOW,
)
def window_counted_over_padding(attention_mask, window):
    """Right for padding at the ends, which was all that was tried."""
    return past(attention_mask) & (distances(attention_mask) < window)


@bug(
    "a window of 0 hides everything",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""Every key is hidden, each token's own too: a window of 0, which a configuration has
        for `no window`, is taken at its word.""",
    source="unsloth PR 8253: a zero window was treated as a real width",
    causal=True,
)
def window_of_zero(attention_mask):
    """`if window is not None`, and the file of the model said 0."""
    return past(attention_mask) & (distances(attention_mask) < 0)


# ---- FlexAttention -------------------------------------------------------------------------------


@bug(
    "padding asked of q_idx",
    caught_by=["each_query_may_see_what_it_should", "long_rows_are_masked_too"],
    diagnosis="""Real tokens see padding: it is looked up at q_idx, where padding lies on kv_idx, or
        not at all.""",
    source="PyTorch issue 136196: dense_mask[b, q_idx] for dense_mask[b, kv_idx]",
    causal=True,
)
def padding_asked_of_the_query(attention_mask):
    """A mask_mod has no axes, only names."""
    real = attention_mask != 0
    return lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & real[b, q_idx]


@bug(
    "q_idx and kv_idx mixed up",
    caught_by=["each_query_may_see_what_it_should"],
    diagnosis="""Queries and keys have changed places: each token sees itself and what comes after
        it. FlexAttention calls mask_mod(b, h, q_idx, kv_idx), in this order.""",
    causal=True,
)
def indices_mixed_up(attention_mask):
    """Four arguments by position, all of them integers."""
    real = attention_mask != 0
    return lambda b, h, kv_idx, q_idx: (q_idx >= kv_idx) & real[b, kv_idx]


# ---- ids, precision, promises --------------------------------------------------------------------


@bug(
    "mask from ids, the end being padding",
    caught_by=["a_real_token_may_have_the_id_of_padding"],
    diagnosis="""mask = (ids != pad_id), where the end of sequence has that id too: no token ever
        sees an end, and none is where the text is over.""",
    source="pad = eos in GPT-2's kind of tokenizers; transformers issue 23530, trl issue 976",
    takes="ids",
    mask_layout="b 1 1 k",
)
def mask_from_ids(ids):
    """It served for years, with tokenizers that have a padding token of their own."""
    return (ids != 0)[:, None, None, :]


@bug(
    "attention_mask overwritten",
    caught_by=["the_attention_mask_is_left_alone"],
    diagnosis="""The caller's attention_mask is inverted in place on the way: the labels that are
        made from it next ignore the real tokens.""",
    source="mask.logical_not_() and its like",
)
def attention_mask_overwritten(attention_mask):
    """It was called before the labels were made; elsewhere after."""
    mask = keys(attention_mask).clone()
    attention_mask.copy_(1 - attention_mask)
    return mask


@bug(
    "-1e9 for minus infinity",
    tier="robust",
    caught_by=["what_is_hidden_is_minus_infinity"],
    diagnosis="""Hidden entries are -1e9: float16 cannot hold it, larger scores outweigh it, and a
        query that may see nothing attends to everything alike.""",
    source="annotated-transformer, jadore801120, old BERT (-1e4) and many more",
    mask_values="additive",
)
def large_negative_number(attention_mask):
    """Big enough, its author thought."""
    return torch.zeros(keys(attention_mask).shape).masked_fill(~keys(attention_mask), -1e9)


@bug(
    "one, not True",
    tier="robust",
    caught_by=["true_and_one_mean_the_same"],
    diagnosis="""The mask is made by arithmetic that means something else for bools: a bool
        attention_mask gives another mask than one of 1 and 0.""",
    source="tokenizers give int64, hand-written code bool",
)
def one_not_true(attention_mask):
    """~mask of 1 is -2, which is true."""
    hidden = (attention_mask - 1) if attention_mask.dtype != torch.bool else attention_mask
    return keys((hidden == 0).long())


@bug(
    "padded queries see",
    tier="robust",
    caught_by=["padded_queries_see_nothing"],
    diagnosis="""It promises that padded queries see nothing, and they see themselves: the diagonal
        is opened so that no softmax is empty. Care for empty rows where the softmax is.""",
    source="guards against NaN in many libraries; right, if nothing else is promised",
    dead_queries="nothing",
)
def padded_queries_see(attention_mask):
    """It was meant for the rows of padding only, and nobody reads those."""
    itself = torch.eye(attention_mask.shape[1], dtype=torch.bool)
    return padding_mask(attention_mask) | itself


@bug(
    "a row of padding sees everything",
    tier="robust",
    caught_by=["padded_queries_see_nothing"],
    diagnosis="""A sequence of padding only is opened as a whole, so that its softmax is not empty,
        and attends to nothing but padding: what it gives is finite, and noise.""",
    source="masking_utils of transformers allows everything in rows that may see nothing",
    dead_queries="nothing",
)
def row_of_padding_sees(attention_mask):
    """The NaN was gone. The average over the batch was a little off."""
    mask = padding_mask(attention_mask)
    return mask | ~mask.any(dim=(2, 3), keepdim=True)


@bug(
    "a mask kept by the version of what it came from",
    tier="robust",
    caught_by=[
        "inside_inference_mode_it_is_the_same",
        "a_mask_that_is_written_to_is_read_anew",
    ],
    diagnosis="""The mask is kept as long as the same attention_mask of the same `_version` comes
        in. Inside torch.inference_mode a tensor has no version, and a write through .data or
        .numpy() does not change it. Build the mask once a batch, and hand it along.""",
    source="k2 (issue 1210) asks for `_version`; unsloth's packed masks (PR 10879) are kept alike",
)
class MaskByVersion:
    """Every layer built the mask again. Now the first does."""

    def __init__(self):
        self.kept = (None, -1, None)

    def __call__(self, attention_mask):
        known, version, _ = self.kept
        if known is not attention_mask or version != attention_mask._version:
            mask = keys(attention_mask)
            self.kept = (attention_mask, attention_mask._version, mask)
        return self.kept[2].clone()
