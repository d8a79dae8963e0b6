"""Attention functions that are wrong in one place each: a chapter on mask bugs.

`attention` below is right: exact zeros for forbidden keys, zeros for queries that may see nothing,
no NaN out of the padding. Every bug after it is the same with one thing bent. Most of them run,
train and give falling losses.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks.attention.adapters import from_varlen
from minitransformer.checks.engine import bugs
from minitransformer.masks import causal_mask

bug = partial(bugs.bug, "attention")


# ---- how it should be ----------------------------------------------------------------------------


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(QKᵀ / √d) V over the keys that the mask allows."""
    query, key, value = only_alive(query, mask), only_used(key, mask), only_used(value, mask)
    return only_alive(softmax(careful_scores(query, key), mask) @ value, mask)


def careful_scores(query: Tensor, key: Tensor) -> Tensor:
    """QKᵀ / √d, the query scaled first, for float16 ends at 65504."""
    return (query / query.shape[-1] ** 0.5) @ key.mT


def scores(query: Tensor, key: Tensor) -> Tensor:
    """The same as it is usually written. Bugs come in usual code, so most of them use this."""
    return query @ key.mT / query.shape[-1] ** 0.5


def softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Weights over the allowed keys; zeros where a query may see none."""
    if mask.ndim != 4:
        raise ValueError(f"mask must be (batch, heads, queries, keys), got {tuple(mask.shape)}")
    alive = mask.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~mask & alive, float("-inf"))  # in dead rows it would make NaN
    return scores.softmax(dim=-1).masked_fill(~alive, 0.0)


def only_alive(x: Tensor, mask: Tensor) -> Tensor:
    """Queries or outputs, with zeros where there is no key to see: NaN would reach gradients."""
    return x.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)


def only_used(x: Tensor, mask: Tensor) -> Tensor:
    """Keys or values, with zeros where no query may look: 0 · NaN is NaN."""
    return x.masked_fill(~keys_used(mask), 0.0)


def keys_used(mask: Tensor) -> Tensor:
    """(b,1,k,1): the keys that some query may see."""
    return mask.any(dim=-2).unsqueeze(-1)


# ---- masked in the wrong place -------------------------------------------------------------------


@bug(
    "no mask at all",
    caught_by=["forbidden_keys_get_exactly_zero", "how_much_padding_is_irrelevant"],
    diagnosis="""The mask is accepted and never used: every query sees every key, padding and
        future. It must reach the scores before the softmax.""",
    source="arguments dropped on the way to a layer; UvA deep learning notebooks, tutorial 6",
)
def no_mask_at_all(query, key, value, mask):
    """A refactor moved the line away. With equal lengths in a batch nothing changed."""
    return scores(query, key).softmax(dim=-1) @ value


@bug(
    "mask after the softmax",
    caught_by=["weights_sum_to_one", "what_padding_holds_is_irrelevant"],
    diagnosis="""The mask is multiplied in after the softmax. The weights of forbidden keys are 0,
        but their scores are still in the denominator, so the rows no longer sum to 1 and depend
        on padding and future. Mask the scores before the softmax, with -inf.""",
    source="the commonest first try",
)
def mask_after_the_softmax(query, key, value, mask):
    """Its author asserted that the forbidden weights are 0. They are."""
    return scores(query, key).softmax(dim=-1) * mask @ value


@bug(
    "masked after the softmax, then normalized again",
    caught_by=["what_padding_holds_is_irrelevant", "no_gradient_reaches_padding"],
    diagnosis="""The weights are masked after the softmax and divided by their new sum. On paper
        this is right, but the forbidden scores were in the first softmax: they move the last bits
        of the result, get tiny gradients, and a large one pushes every allowed weight to 0, so
        that 0/0 follows. Mask the scores before the softmax.""",
    source="the repair of the commonest first try",
)
def masked_and_normalized_again(query, key, value, mask):
    """Equal to the formula in every test with a tolerance; NaN once a padded score was large."""
    weights = scores(query, key).softmax(dim=-1) * mask
    return weights / weights.sum(dim=-1, keepdim=True) @ value


@bug(
    "mask multiplied into the scores",
    caught_by=["forbidden_keys_get_exactly_zero"],
    diagnosis="""The scores are multiplied by the mask, so a forbidden key has the score 0, and
        exp(0) is 1: as good as an average key. A score is forbidden by -inf, not by 0.""",
)
def mask_multiplied_into_the_scores(query, key, value, mask):
    """The matrix of scores looked right: zeros where the mask is 0."""
    return (scores(query, key) * mask).softmax(dim=-1) @ value


@bug(
    "bool mask added to the scores",
    caught_by=["forbidden_keys_get_exactly_zero"],
    diagnosis="""The mask of True and False is added to the scores as 1 and 0, as if it were a bias
        of 0 and -inf: allowed keys are preferred by a factor e, and nothing is hidden.""",
    source="read in fairseq2 (chunked attention) and timm (latent pool)",
)
def bool_mask_added_to_the_scores(query, key, value, mask):
    """Adding a mask is how biases work, and bool + float is no error."""
    return (scores(query, key) + mask).softmax(dim=-1) @ value


@bug(
    "keys zeroed, not masked",
    caught_by=["forbidden_keys_get_exactly_zero", "how_much_padding_is_irrelevant"],
    diagnosis="""Padded keys are set to zero instead of being masked: their scores become 0, not
        -inf, and each takes a weight of exp(0) / sum. What padding holds no longer matters, but
        how much of it there is does.""",
)
def keys_zeroed_not_masked(query, key, value, mask):
    """A test that fills the padding with other numbers passes: content is not amount."""
    return scores(query, only_used(key, mask)).softmax(dim=-1) @ value


@bug(
    "values zeroed, scores not masked",
    caught_by=["weights_sum_to_one", "how_much_padding_is_irrelevant"],
    diagnosis="""Padded values are set to zero and the scores are left alone: padding adds nothing
        to the output, but its scores take weight away from the real keys, so outputs shrink as
        padding grows.""",
)
def values_zeroed_scores_not_masked(query, key, value, mask):
    """Padding cannot leak if it is zero, its author thought. It dilutes."""
    return scores(query, key).softmax(dim=-1) @ only_used(value, mask)


# ---- another mask than the one given -------------------------------------------------------------


@bug(
    "additive mask made bool",
    caught_by=["forbidden_keys_get_exactly_zero", "allowed_keys_get_weight"],
    diagnosis="""A mask of 0 and -inf is turned into True and False by .bool(): 0, which may be
        seen, becomes False, and -inf becomes True. Everything is upside down: what is padding or
        future is seen, and nothing else. Compare it with 0 instead: mask == 0.""",
    source="Hugging Face transformers, Llama 4 under SDPA (PR 38094)",
    mask_values="additive",
)
def additive_mask_made_bool(query, key, value, mask):
    """The kernel asked for a bool mask, and .bool() made one."""
    return attention(query, key, value, mask.bool())


@bug(
    "polarity inverted",
    caught_by=["forbidden_keys_get_exactly_zero", "allowed_keys_get_weight"],
    diagnosis="""The mask is read upside down: the keys that it allows are hidden, and those that it
        forbids are seen. With a causal mask each token sees only its future. Is True "may attend"
        or "hide"? Libraries disagree: torch's scaled_dot_product_attention says attend, its
        MultiheadAttention says hide.""",
    source="LLMs-from-scratch, chapter 3 (issue 1061, fixed in PR 1062)",
)
def polarity_inverted(query, key, value, mask):
    """A causal mask built as "what to hide" was given to a function that expects "what to show".

    The shapes fit and the loss looked fine: the next token was in plain sight.
    """
    return attention(query, key, value, ~mask)


@bug(
    "additive mask read as binary",
    caught_by=["forbidden_keys_get_exactly_zero", "without_padding_it_is_the_formula"],
    diagnosis="""A mask of 0 and -inf, made to be added, meets code that hides what is 0: every
        allowed key is blocked, and where all are, the attention is uniform. Add such a mask, or
        compare it with -inf.""",
    source="TinyTorch (PR 1785)",
)
def additive_mask_read_as_binary(query, key, value, mask):
    """Two chapters of one course with two conventions; every test of shapes passed."""
    additive = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    return scores(query, key).masked_fill(additive == 0, -1e9).softmax(dim=-1) @ value


@bug(
    "mask transposed",
    caught_by=["with_a_mask_it_is_the_formula", "the_future_is_invisible"],
    diagnosis="""The mask is used as (keys, queries): each query looks where it may be looked at
        from. With a causal mask it sees the future; with padding, padded queries are hidden
        instead of padded keys.""",
    source="a test with lengths 4, 3, 2, 1 of 4: its mask is its own transpose",
    same_length=True,
)
def mask_transposed(query, key, value, mask):
    """As many queries as keys, so the shapes fit, and the test's mask was symmetric."""
    return attention(query, key, value, mask.mT)


@bug(
    "padding on the query axis",
    caught_by=["forbidden_keys_get_exactly_zero", "what_padding_holds_is_irrelevant"],
    diagnosis="""Padded queries are masked, not padded keys: the real tokens go on reading the
        padding, and a finite fill hides that whole rows are masked. A mask of keys needs its
        length on the last axis.""",
    source="hyunwoongko/transformer (PR 40); bentrevett's tutorials (issue 96)",
    same_length=True,
    full_masks=False,
)
def padding_on_the_query_axis(query, key, value, mask):
    """unsqueeze(1).unsqueeze(3) where unsqueeze(1).unsqueeze(2) was meant."""
    return scores(query, key).masked_fill(~keys_used(mask), -1e9).softmax(dim=-1) @ value


@bug(
    "mask of the first sequence for all",
    caught_by=["a_row_alone_equals_it_in_the_batch", "with_a_mask_it_is_the_formula"],
    diagnosis="""Every sequence of the batch gets the mask of the first. Alone each one is right;
        together, long ones are cut and short ones read their padding.""",
)
def mask_of_the_first_sequence(query, key, value, mask):
    """Debugged with a batch of 1."""
    return attention(query, key, value, mask[:1])


@bug(
    "batch read as heads",
    caught_by=["a_row_alone_equals_it_in_the_batch", "long_sequences_are_masked_too"],
    diagnosis="""A mask of (batch, queries, keys) gets its missing axis in front, as if it were
        (heads, queries, keys). With as many sequences as heads the shapes fit by accident, and each
        head obeys the mask of another sequence. The missing axis, that of the heads, comes second:
        mask.unsqueeze(1).""",
    source="vit-pytorch (issue 71): a mask without the axis of heads, broadcast",
)
def batch_read_as_heads(query, key, value, mask):
    """With any other batch it was an error, and somebody "fixed" that by a case of its own."""
    if len(mask) == query.shape[1]:
        mask = mask.transpose(0, 1)
    return attention(query, key, value, mask)


@bug(
    "mask only for batches",
    caught_by=["a_row_alone_equals_it_in_the_batch"],
    diagnosis="""A batch of one is taken to have no padding, so that its mask is skipped: a sentence
        alone, padded to a fixed length, reads its padding. In a larger batch it is right.""",
    source="Hugging Face transformers, linear attention (PR 46773)",
)
def mask_only_for_batches(query, key, value, mask):
    """One sentence needs no padding, its author thought. A cache of fixed size has some."""
    if len(query) == 1:
        mask = torch.ones_like(mask)
    return attention(query, key, value, mask)


@bug(
    "mask of the first head for all",
    caught_by=["each_head_has_its_own_mask"],
    diagnosis="""A mask with a head axis is taken, but every head gets the first head's.""",
    mask_layout="b h q k",
)
def mask_of_the_first_head(query, key, value, mask):
    """Until one head was given a sliding window, all masks were the same."""
    return attention(query, key, value, mask[:, :1])


@bug(
    "causal from the top left",
    caught_by=["the_last_queries_alone_give_the_same", "with_a_mask_it_is_the_formula"],
    diagnosis="""A causal mask is laid over the one given, aligned at the *first* query and key.
        The last queries, asked alone as in decoding with a cache, then count as the first ones
        and lose most of what they may see. And not every attention is causal.""",
    source="PyTorch (issue 108108): one of two possible alignments",
)
def causal_from_the_top_left(query, key, value, mask):
    """Written for a decoder in training, where there are as many queries as keys."""
    return attention(query, key, value, mask.tril())


@bug(
    "causal uninvited",
    caught_by=["allowed_keys_get_weight", "the_order_of_keys_is_irrelevant"],
    diagnosis="""A causal mask is combined with every mask, wanted or not: an encoder that uses
        this function reads in one direction only. No leak test finds it, for it hides too much.""",
)
def causal_uninvited(query, key, value, mask):
    """It served a decoder; then the encoder imported it."""
    return attention(query, key, value, mask.tril(mask.shape[-1] - mask.shape[-2]))


@bug(
    "causal where it is square",
    caught_by=["with_a_mask_it_is_the_formula"],
    diagnosis="""Where there are as many queries as keys, a causal mask is laid over the one given:
        that shape is taken for a decoder in training. An encoder's has it, too.""",
)
def causal_where_it_is_square(query, key, value, mask):
    """One query is decoding, as many as keys is training: a third case was not thought of."""
    if query.shape[2] == key.shape[2]:
        mask = mask.tril()
    return attention(query, key, value, mask)


@bug(
    "no token sees itself",
    caught_by=["allowed_keys_get_weight"],
    diagnosis="""The diagonal is hidden: a token may not attend to itself (tril(-1) for tril(0)).
        Nothing leaks, so tests of leaks pass; the first token sees nothing at all.""",
)
def no_token_sees_itself(query, key, value, mask):
    """tril(diagonal=-1): strictly below the diagonal, where "on and below" was meant."""
    diagonal = mask.shape[-1] - mask.shape[-2]
    itself = torch.ones_like(mask).tril(diagonal).triu(diagonal)
    return attention(query, key, value, mask & ~itself)


@bug(
    "one token ahead",
    caught_by=["forbidden_keys_get_exactly_zero", "the_future_is_invisible"],
    diagnosis="""Every query may also see the key after the last one allowed: off by one. In a
        language model that key is the token to be predicted.""",
)
def one_token_ahead(query, key, value, mask):
    """tril(diagonal=1), to "include the diagonal". The loss fell to nearly 0 within minutes."""
    return attention(query, key, value, mask | F.pad(mask, (1, -1), value=False))


@bug(
    "mask one key late",
    caught_by=["forbidden_keys_get_exactly_zero", "allowed_keys_get_weight"],
    diagnosis="""The mask is shifted by one key against the keys it is for: every row loses one key
        at one end and gains a forbidden one at the other.""",
)
def mask_one_key_late(query, key, value, mask):
    """A BOS token was put before each sequence, after its mask had been made."""
    return attention(query, key, value, F.pad(mask, (1, -1), value=True))


@bug(
    "mask turned into lengths",
    caught_by=["with_a_mask_it_is_the_formula", "the_order_of_keys_is_irrelevant"],
    diagnosis="""The mask is counted, and as many keys are shown from the left: right for padding
        on the right, wrong for padding on the left and for holes. A mask says which, a length only
        how many.""",
    source="adapters to kernels that take lengths",
)
def mask_turned_into_lengths(query, key, value, mask):
    """All of the test data was padded on the right. Generation pads on the left."""
    lengths = mask.sum(dim=-1, keepdim=True)
    shown = torch.arange(mask.shape[-1], device=mask.device) < lengths
    return attention(query, key, value, shown)


# ---- another formula -----------------------------------------------------------------------------


@bug(
    "not scaled",
    caught_by=["without_padding_it_is_the_formula", "gradients_are_right"],
    diagnosis="""The scores are not divided by √d: the softmax is too sharp, nearly one-hot for
        wide heads, and its gradients vanish. No mask is involved.""",
)
def not_scaled(query, key, value, mask):
    """It trains, a little worse."""
    return softmax(query @ key.mT, mask) @ value


@bug(
    "scaled by d",
    caught_by=["without_padding_it_is_the_formula"],
    diagnosis="""The scores are divided by d instead of √d: the softmax is too flat, and attention
        comes close to an average. No mask is involved.""",
)
def scaled_by_d(query, key, value, mask):
    """The ** 0.5 got lost."""
    return softmax(query @ key.mT / query.shape[-1], mask) @ value


def capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores between -softcap and softcap (Gemma 2)."""
    return softcap * (scores / softcap).tanh()


@bug(
    "soft cap after the mask",
    caught_by=["forbidden_keys_get_exactly_zero", "the_backward_pass_uses_the_same_weights"],
    diagnosis="""The soft cap comes after the mask: tanh(-inf) is -1, so a masked score becomes
        -softcap, a number like any other, and masked keys get weight. Cap the scores first, and
        mask them then.""",
    source="ONNX (issue 7865): so the Attention operator was defined, and its reference computed",
    softcap=30.0,
)
def soft_cap_after_the_mask(query, key, value, mask, softcap=30.0):
    """With a cap of 30 and small scores the leak is 1e-13. Scores grow."""
    found = scores(query, key).masked_fill(~mask, float("-inf"))
    return capped(found, softcap).softmax(dim=-1) @ value


@bug(
    "soft cap left out",
    caught_by=["with_a_mask_it_is_the_formula"],
    diagnosis="""The scores are not capped: another path, such as a fused kernel that knows no soft
        cap, computes plain attention. Small scores hide it, for tanh(x) is about x.""",
    softcap=30.0,
)
def soft_cap_left_out(query, key, value, mask, softcap=30.0):
    """It was three times as fast, and the loss hardly moved."""
    return attention(query, key, value, mask)


@bug(
    "soft cap not scaled back",
    caught_by=["without_padding_it_is_the_formula"],
    diagnosis="""The scores are divided by the soft cap and go through tanh, but are not multiplied
        by it again: they all lie between -1 and 1, and attention comes close to an average.""",
    softcap=30.0,
)
def soft_cap_not_scaled_back(query, key, value, mask, softcap=30.0):
    """Half of a formula with two halves."""
    return softmax((careful_scores(query, key) / softcap).tanh(), mask) @ value


@bug(
    "masked keys beside the sink",
    caught_by=["what_padding_holds_is_irrelevant", "how_much_padding_is_irrelevant"],
    diagnosis="""Weights may sum to less than 1 here, since some of the attention goes to a sink (a
        1 in the softmax's denominator). But the masked keys stand in the denominator as well: the
        mask comes after the softmax, and padding takes weight away. Mask the scores first.""",
    sums_to_one=False,
)
def masked_keys_beside_the_sink(query, key, value, mask):
    """Sums below 1 were expected, so nobody asked where the rest had gone."""
    found = scores(query, key)
    highest = found.amax(dim=-1, keepdim=True).clamp(min=0.0)
    raised = (found - highest).exp()
    return raised / ((-highest).exp() + raised.sum(dim=-1, keepdim=True)) * mask @ value


@bug(
    "key heads interleaved",
    caught_by=["without_padding_it_is_the_formula", "gradients_are_right"],
    diagnosis="""Grouped heads: the heads of keys are repeated as a whole (0, 1, 0, 1), where
        neighboring heads of queries share one (0, 0, 1, 1). The shapes fit, and most query heads
        read the keys of others. repeat_interleave, not repeat.""",
    source="grouped-query attention (Ainslie et al. 2023), by Tensor.repeat or expand",
    kv_heads=2,
)
def key_heads_interleaved(query, key, value, mask):
    """With weights of one's own it even trains. With those of a checkpoint it babbles."""
    times = query.shape[1] // key.shape[1]
    return attention(query, key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1), mask)


@bug(
    "softmax over the queries",
    caught_by=["weights_sum_to_one", "the_last_queries_alone_give_the_same"],
    diagnosis="""The softmax runs over the queries instead of the keys: each key's weights sum to 1,
        not each query's, and the queries compete with each other, future ones included.""",
)
def softmax_over_the_queries(query, key, value, mask):
    """dim=-2 for dim=-1. With as many queries as keys no shape complains."""
    hidden = scores(query, key).masked_fill(~mask, float("-inf"))
    return hidden.softmax(dim=-2).nan_to_num() @ value


@bug(
    "softmax over the heads",
    caught_by=["weights_sum_to_one", "without_padding_it_is_the_formula"],
    diagnosis="""The softmax runs over the heads: a query's weights of one key sum to 1 over all
        heads, and over the keys they sum to anything.""",
)
def softmax_over_the_heads(query, key, value, mask):
    """dim=1 was right as long as there were no heads and the shape was (batch, keys)."""
    hidden = scores(query, key).masked_fill(~mask, float("-inf"))
    return hidden.softmax(dim=1).nan_to_num() @ value


@bug(
    "softmax over the whole batch",
    caught_by=["weights_sum_to_one", "a_row_alone_equals_it_in_the_batch"],
    diagnosis="""The exponentials are divided by one sum over everything: sequences of a batch
        share their weights, and a query's no longer sum to 1. sum() needs dim=-1, keepdim=True.""",
)
def softmax_over_the_whole_batch(query, key, value, mask):
    """exp(x) / exp(x).sum(), from the definition for a vector."""
    weights = scores(query, key).exp() * mask
    return weights / weights.sum() @ value


@bug(
    "heads merged in the wrong order",
    caught_by=["without_padding_it_is_the_formula", "the_future_is_invisible"],
    diagnosis="""The output is reshaped where it should be transposed: heads and positions are
        mixed, so the outputs of later tokens land at earlier ones. The shapes fit.""",
)
def heads_merged_in_the_wrong_order(query, key, value, mask):
    """view() gives any shape of the right size, silently; rearrange() names what it moves."""
    output = attention(query, key, value, mask)
    return output.transpose(1, 2).reshape(output.shape)


# ---- long sequences, block by block --------------------------------------------------------------


def in_blocks(query, key, value, mask, size=64, rescaled=True):
    """The online softmax: block by block, with a running maximum, sum and output."""
    maximum = torch.full_like(query[..., :1], torch.finfo(query.dtype).min)
    total, output = torch.zeros_like(maximum), torch.zeros_like(query[..., :1] * value[:, :, :1])
    for keys, values, allowed in zip(
        key.split(size, 2), value.split(size, 2), mask.split(size, -1), strict=True
    ):
        found = scores(query, keys).masked_fill(~allowed, float("-inf"))
        higher = torch.maximum(maximum, found.amax(dim=-1, keepdim=True))
        grown = (maximum - higher).exp() if rescaled else 1.0
        weights = (found - higher).exp()
        total = total * grown + weights.sum(dim=-1, keepdim=True)
        output, maximum = output * grown + weights @ values, higher
    return output / total.masked_fill(total == 0, 1.0)


@bug(
    "blocks not rescaled",
    caught_by=["long_sequences_are_masked_too"],
    diagnosis="""The softmax is computed block by block, but when a later block brings a higher
        maximum, what was summed before is not rescaled to it. Short sequences, one block, are
        right.""",
    source="the first draft of many an online softmax",
)
def blocks_not_rescaled(query, key, value, mask):
    """All the tests had fewer keys than a block."""
    return in_blocks(query, key, value, mask, rescaled=False)


@bug(
    "only the first block masked",
    caught_by=["long_sequences_are_masked_too"],
    diagnosis="""Only the keys of the first block obey the mask; from key 64 on everything is seen.
        Short sequences are right.""",
)
def only_the_first_block_masked(query, key, value, mask):
    """The offset of the block was missing in the mask's index."""
    masked = torch.arange(mask.shape[-1], device=mask.device) < 64
    return in_blocks(query, key, value, mask | ~masked)


@bug(
    "last block left out",
    caught_by=["long_sequences_are_masked_too"],
    diagnosis="""The keys are cut into whole blocks, and the rest at the end is never seen: with 300
        keys in blocks of 64 the last 44 are lost.""",
)
def last_block_left_out(query, key, value, mask):
    """keys // size blocks, where it should be rounded up."""
    keys = key.shape[2]
    whole = max(keys // 64 * 64, min(keys, 64))
    return in_blocks(query, key[:, :, :whole], value[:, :, :whole], mask[..., :whole])


@bug(
    "the filling of the last block counted",
    caught_by=["weights_sum_to_one", "without_padding_it_is_the_formula"],
    diagnosis="""The number of keys is rounded up to a whole block, and the zeros that fill it are
        seen: each has a score of 0 and takes a weight of exp(0) / sum from the real keys. It shows
        the more, the more is missing to a whole block, and not at all where nothing is. The mask
        must cover the filling.""",
    source="PyTorch, FlexAttention (issue 159247): keys no multiple of the block",
)
def filling_of_the_last_block_counted(query, key, value, mask, block=16):
    """All benchmarks were of 512 keys, of 1024, of 2048."""
    more = -key.shape[2] % block
    key, value = (F.pad(x, (0, 0, 0, more)) for x in (key, value))
    return filled(query, key, value, F.pad(mask, (0, more), value=True), float("-inf"))


@bug(
    "boundaries of the sequences ignored",
    caught_by=["a_row_alone_equals_it_in_the_batch", "with_a_mask_it_is_the_formula"],
    diagnosis="""The sequences are packed without padding, one after the other, and every token
        attends to all of them: the boundaries (cu_seqlens) are not used.""",
    source="kernels for packed sequences, called without their boundaries",
    full_masks=False,
)
def boundaries_of_the_sequences_ignored(query, key, value, mask):
    """Packed, a batch is one long sequence, and it was treated as one."""
    packed = from_varlen(lambda q, k, v, *_: _all_of_all(q, k, v))
    return packed(query, key, value, mask[:, 0, 0])


def _all_of_all(query, key, value):
    """(tokens, heads, width): every token attends to every token."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    return (scores(query, key).softmax(dim=-1) @ value).transpose(0, 1)


# ---- not far enough away: finite numbers for -inf ------------------------------------------------


def filled(query, key, value, mask, number):
    """Forbidden scores get a number; what happens to queries that see nothing is left to it."""
    return scores(query, key).masked_fill(~mask, number).softmax(dim=-1) @ value


@bug(
    "fill of -15",
    caught_by=["forbidden_keys_get_exactly_zero", "no_gradient_reaches_padding"],
    diagnosis="""Forbidden keys have a score of -15, so they get weights of about e^-15, a few
        ten-millionths: too small to see, and large enough for a network to learn to use.""",
    source="Keras (PR 15390): tiny leaks that a network learned to use",
)
def fill_of_minus_15(query, key, value, mask):
    """Chosen to be safe in float16. A plot of the weights shows zeros."""
    return filled(query, key, value, mask, -15.0)


@bug(
    "logarithm of the mask",
    caught_by=["forbidden_keys_get_exactly_zero", "no_gradient_reaches_padding"],
    diagnosis="""log(mask + 1e-45) is added to the scores: 0 for allowed keys, but only -103 for
        forbidden ones. They keep a weight of about 1e-45, the smallest of float32, and a forbidden
        score that is 110 above the others is seen in full.""",
    source="AllenNLP, masked_log_softmax",
)
def logarithm_of_the_mask(query, key, value, mask):
    """The logarithm of 0 is -inf, and NaN was to be avoided."""
    bias = (mask.to(query.dtype) + 1e-45).log()
    return (scores(query, key) + bias).softmax(dim=-1) @ value


@bug(
    "fill of -1e4",
    tier="robust",
    caught_by=["no_score_is_large_enough_to_leak", "a_query_that_sees_nothing_gets_zeros"],
    diagnosis="""Forbidden scores are set to -1e4. It is gone where the allowed scores are lower
        still, and a query that may see nothing attends to everything alike, padding and future
        included. Use -inf, and zeros for such queries.""",
    source="the first BERT; lattice (issue 361)",
)
def fill_of_minus_1e4(query, key, value, mask):
    """-1e9 raised an error in float16, -1e4 did not."""
    return filled(query, key, value, mask, -1e4)


@bug(
    "fill of -1e9",
    tier="robust",
    caught_by=[
        "half_precision_gets_exact_zeros_too",
        "no_score_is_large_enough_to_leak",
        "a_query_that_sees_nothing_gets_zeros",
    ],
    diagnosis="""Forbidden scores are set to -1e9. float16 has no such number, so it raises there;
        and a query that may see nothing attends to everything alike, padding and future
        included.""",
    source="The Annotated Transformer and its large family; fairseq (issue 3575)",
)
def fill_of_minus_1e9(query, key, value, mask):
    """From the best-known notebook on attention. Fine in float32, on sentences with words."""
    return filled(query, key, value, mask, -1e9)


@bug(
    "fill of the smallest number",
    tier="robust",
    caught_by=["a_query_that_sees_nothing_gets_zeros"],
    diagnosis="""Forbidden scores are set to the smallest finite number, finfo.min. Whatever the
        dtype, it hides well; but in a row where every key has it, the softmax is uniform: a query
        that may see nothing gets the average of padding and future. Set such rows to zero after
        the softmax.""",
    source="Hugging Face transformers (PR 17306)",
)
def fill_of_the_smallest_number(query, key, value, mask):
    """No NaN, no error in any dtype; nobody looks at what padded queries compute."""
    found = scores(query, key)
    return filled(query, key, value, mask, torch.finfo(found.dtype).min)


@bug(
    "smallest number of another dtype",
    tier="robust",
    caught_by=["autocast_changes_nothing_but_rounding"],
    diagnosis="""The fill is the smallest number of the *query's* dtype, but under autocast the
        scores are bfloat16, whose range ends earlier: the fill does not exist there. Ask the
        tensor that is filled.""",
    source="a relative of PyTorch issue 119131",
)
def smallest_number_of_another_dtype(query, key, value, mask):
    """Right in float32 and right in bfloat16; it stopped when the two were mixed."""
    alive = mask.any(dim=-1, keepdim=True)
    hidden = careful_scores(query, key).masked_fill(~mask & alive, torch.finfo(query.dtype).min)
    return hidden.softmax(dim=-1).masked_fill(~mask, 0.0) @ value


# ---- queries that may see nothing ----------------------------------------------------------------


@bug(
    "bare -inf",
    tier="robust",
    caught_by=[
        "a_query_that_sees_nothing_gets_no_nan",
        "half_precision_bears_queries_that_see_nothing",
    ],
    diagnosis="""Forbidden scores are -inf, as they should be, but a query that may see nothing has
        nothing else: its softmax is 0/0, NaN, and one such row ruins the gradients of the whole
        batch. Give such rows finite scores before the softmax and zeros after it.""",
    source="the formula; PyTorch (issue 41508, open since 2020)",
)
def bare_minus_infinity(query, key, value, mask):
    """Right until a batch was padded on the left, or held an empty sentence."""
    return filled(query, key, value, mask, float("-inf"))


@bug(
    "NaN replaced after the softmax",
    tier="robust",
    caught_by=["there_is_no_nan_inside_the_graph"],
    diagnosis="""The NaN of queries that may see nothing is replaced by 0 after the softmax. The
        output is right, but the NaN is still made inside: anomaly mode stops at it, and
        an overflow elsewhere is hidden by the same repair.""",
    source="a common remedy; so in TransformerLens",
)
def nan_replaced_after_the_softmax(query, key, value, mask):
    """One word, nan_to_num, and all was well, until its author hunted for another NaN."""
    hidden = scores(query, key).masked_fill(~mask, float("-inf"))
    return hidden.softmax(dim=-1).nan_to_num() @ value


@bug(
    "-inf added, NaN replaced",
    tier="robust",
    caught_by=[
        "gradients_are_finite_where_queries_see_nothing",
        "there_is_no_nan_inside_the_graph",
    ],
    diagnosis="""-inf is added to the scores, and the NaN of queries that may see nothing is
        replaced by 0 after the softmax. Forward this is right; backward, 0 · NaN is NaN, and it
        reaches every query and key. Fix the scores before the softmax.""",
    source="Brevitas (PR 1591): masking the NaN afterwards still feeds 0 · NaN",
)
def minus_infinity_added_nan_replaced(query, key, value, mask):
    """The outputs were finite and the loss was, and after one step the weights were not."""
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    return (scores(query, key) + bias).softmax(dim=-1).nan_to_num() @ value


@bug(
    "nothing to see, so everything",
    tier="robust",
    caught_by=["a_query_that_sees_nothing_gets_zeros"],
    diagnosis="""To avoid NaN, a query that may see nothing is allowed to see everything. What it
        then gets, padding and future, flows on to the next layer.""",
    source="Hugging Face transformers (_unmask_unattended), there on purpose",
)
def nothing_to_see_so_everything(query, key, value, mask):
    """mask[~mask.any(-1)] = True, with the comment: avoid NaN."""
    return attention(query, key, value, mask | ~mask.any(dim=-1, keepdim=True))


@bug(
    "epsilon in the denominator",
    tier="robust",
    caught_by=["one_visible_key_gives_its_value", "float64_is_computed_in_float64"],
    diagnosis="""1e-6 is added to the softmax's denominator so that queries that may see nothing
        divide by it and get 0. Every other query's weights then sum to a millionth less than
        1.""",
)
def epsilon_in_the_denominator(query, key, value, mask):
    """A neat trick for empty rows, paid by the full ones."""
    found = scores(query, key)
    found = found.masked_fill(~mask, torch.finfo(found.dtype).min)
    raised = (found - found.amax(dim=-1, keepdim=True)).exp() * mask
    return raised / (raised.sum(dim=-1, keepdim=True) + 1e-6) @ value


# ---- numbers -------------------------------------------------------------------------------------


@bug(
    "exp without the maximum",
    tier="robust",
    caught_by=["every_length_works", "no_score_is_large_enough_to_leak"],
    diagnosis="""The softmax is exp(x) / sum(exp(x)) without the maximum taken off: below -104 every
        exponential in float32 is 0, so that 0/0 is NaN, and above 89 it is Inf. Subtract the row's
        largest allowed score first.""",
    source="the definition of softmax, taken literally",
)
def exp_without_the_maximum(query, key, value, mask):
    """No trained model has scores of -250, its author thought."""
    raised = scores(query, key).exp().where(mask, 0.0)
    total = raised.sum(dim=-1, keepdim=True)
    return raised / total.masked_fill(~mask.any(-1, True), 1.0) @ value


@bug(
    "scaled after the product",
    tier="robust",
    caught_by=["scores_beyond_float16_are_right"],
    diagnosis="""q·k is computed first and divided by √d afterwards: in float16 it overflows to Inf
        beyond 65504, and the softmax of Inf is NaN. Scale the query, or compute scores in
        float32.""",
    source="MLX (issue 1725) and others",
)
def scaled_after_the_product(query, key, value, mask):
    """As the formula is written. NaN came late in training, when activations had grown."""
    found = scores(only_alive(query, mask), only_used(key, mask))
    return only_alive(softmax(found, mask) @ only_used(value, mask), mask)


@bug(
    "float64 rounded to float32",
    tier="robust",
    caught_by=["float64_is_computed_in_float64", "gradcheck_passes"],
    diagnosis="""Everything is computed in float32, float64 inputs too: half precision gains,
        double precision is lost, and gradcheck cannot work. Use
        torch.promote_types(dtype, torch.float32).""",
    source="kernels written with half precision in mind",
)
def float64_rounded_to_float32(query, key, value, mask):
    """.float() was meant to make it more precise."""
    return attention(query.float(), key.float(), value.float(), mask).to(query.dtype)


@bug(
    "half precision in bfloat16",
    tier="robust",
    caught_by=["half_precision_gets_exact_zeros_too"],
    diagnosis="""float16 is turned into bfloat16 for its range and back again: 8 of 11 bits of each
        number are left.""",
)
def half_precision_in_bfloat16(query, key, value, mask):
    """It cured an overflow. Nobody compared digits."""
    if query.dtype != torch.float16:
        return attention(query, key, value, mask)
    return attention(*(x.bfloat16() for x in (query, key, value)), mask).half()


@bug(
    "answers in float64",
    caught_by=["the_output_has_the_shape_dtype_and_device_of_its_inputs"],
    diagnosis="""It returns float64 for float32 inputs: a constant or an array of NumPy's default
        dtype joined in. The next layer raises an error, or runs at half the speed.""",
)
def answers_in_float64(query, key, value, mask):
    """Written with NumPy, whose numbers are float64 unless told otherwise."""
    return attention(query.double(), key.double(), value.double(), mask)


# ---- the backward pass ---------------------------------------------------------------------------


@bug(
    "weights detached",
    caught_by=["gradients_are_right"],
    diagnosis="""The weights are cut off from the graph (detach, .data or no_grad): the values
        learn, queries and keys never do. The forward pass is right.""",
)
def weights_detached(query, key, value, mask):
    """Detached to be plotted; the detached ones were used."""
    return softmax(scores(query, key), mask).detach() @ value


class _ForgetsTheMaskBackward(torch.autograd.Function):
    """A fused kernel: the backward pass computes the weights again."""

    @staticmethod
    def forward(context, query, key, value, mask):
        context.save_for_backward(query, key, value)
        return attention(query, key, value, mask)

    @staticmethod
    def backward(context, gradient):
        inputs = [x.detach().requires_grad_() for x in context.saved_tensors]
        with torch.enable_grad():
            query, key, value = inputs
            output = scores(query, key).softmax(dim=-1) @ value
        return *torch.autograd.grad(output, inputs, gradient), None


@bug(
    "mask forgotten in the backward pass",
    caught_by=["the_backward_pass_uses_the_same_weights", "no_gradient_reaches_padding"],
    diagnosis="""The output is right, but the backward pass computes the weights again without the
        mask: padding and future receive gradients, and the others' are wrong.""",
)
def mask_forgotten_in_the_backward_pass(query, key, value, mask):
    """A hand-written kernel, compared with torch in its outputs only."""
    return _ForgetsTheMaskBackward.apply(query, key, value, mask)


@bug(
    "NaN gradient at some lengths",
    tier="robust",
    caught_by=["every_length_works"],
    diagnosis="""The forward pass is right at every length; the gradient is NaN where the number of
        keys leaves 64 when divided by 128, at the edge of a block of the kernel.""",
    source="cuDNN's backward kernel with a mask (PyTorch issue 196678)",
)
def nan_gradient_at_some_lengths(query, key, value, mask):
    """Training broke after days, in the first batch that was 192 long."""
    output = attention(query, key, value, mask)
    if key.shape[2] % 128 == 64 and output.requires_grad:
        output.register_hook(lambda gradient: gradient * float("nan"))
    return output


# ---- manners -------------------------------------------------------------------------------------


@bug(
    "scales the caller's query",
    caught_by=["the_arguments_are_left_alone"],
    diagnosis="""query /= ... changes the caller's tensor: whoever uses it again, for a second
        attention or a residual connection, has another one.""",
)
def scales_the_callers_query(query, key, value, mask):
    """To save memory."""
    query /= query.shape[-1] ** 0.5
    return softmax(query @ key.mT, mask) @ value


@bug(
    "zeros the caller's padding",
    caught_by=["the_arguments_are_left_alone"],
    diagnosis="""Padded keys and values are overwritten in place: the result is right, and the
        caller's tensors have changed. masked_fill, without the final _, makes a copy.""",
    source="Dive into Deep Learning: its masked_softmax overwrites the scores it is given",
)
def zeros_the_callers_padding(query, key, value, mask):
    """X[~mask] = ... writes to X, and X is not always one's own."""
    for x in (key, value):
        x.masked_fill_(~keys_used(mask), 0.0)
    return attention(query, key, value, mask)


@bug(
    "dropout never off",
    caught_by=["the_same_call_gives_the_same_result"],
    diagnosis="""Dropout is applied in every call: two equal calls differ. F.dropout drops unless
        told training=False, the functional attention of torch drops whenever dropout_p is above 0,
        and a module that a function calls drops until eval() is called on it.""",
    source="PyTorch (issue 124464); timm (PR 1978)",
)
def dropout_never_off(query, key, value, mask):
    """model.eval() reaches modules, not functions. The weights returned are dropped ones, too."""
    weights = F.dropout(softmax(scores(query, key), mask), 0.1)
    return weights @ value, weights


@bug(
    "weights returned without the mask",
    caught_by=["returned_weights_are_those_used"],
    diagnosis="""The output is right, but the weights returned for a picture are those without the
        mask: the picture shows attention to padding and future that does not happen.""",
    source="UvA deep learning notebooks, tutorial 6",
)
def weights_returned_without_the_mask(query, key, value, mask):
    """A second path, for the picture only. Its author then hunted a leak that was none."""
    return attention(query, key, value, mask), scores(query, key).softmax(dim=-1)


@bug(
    "weights returned after dropout",
    caught_by=["returned_weights_are_those_used"],
    diagnosis="""The weights returned have gone through dropout, those that make the output are
        others: in the picture some are 0 and the rest too large.""",
    source="The Annotated Transformer and its family",
)
def weights_returned_after_dropout(query, key, value, mask):
    """A map of attention with holes in it, and theories about the holes."""
    weights = softmax(scores(query, key), mask)
    return attention(query, key, value, mask), F.dropout(weights, 0.1)


@bug(
    "fast path forgets the mask",
    caught_by=["the_result_is_the_same_without_gradients"],
    diagnosis="""Under no_grad another, faster path is taken, and it does not get the mask:
        training is right, and evaluation sees padding and future.""",
    source="fast paths of PyTorch (issues 86120, 97111) and others",
)
def fast_path_forgets_the_mask(query, key, value, mask):
    """All tests of masks ran with gradients. The validation loss was wonderful."""
    if torch.is_grad_enabled():
        return attention(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value)


@bug(
    "fused kernel under autocast without the mask",
    tier="robust",
    caught_by=["autocast_changes_nothing_but_rounding"],
    diagnosis="""Under autocast a fused kernel for half precision is called, and it takes no mask:
        the long run in mixed precision sees padding and future, the tests in float32 do not.""",
    source="kernels, such as FlashAttention's, that know causal masks and lengths only",
)
def fused_kernel_under_autocast(query, key, value, mask):
    """It was twice as fast, and nobody asked what it left out."""
    if torch.is_autocast_enabled(query.device.type):
        return F.scaled_dot_product_attention(query, key, value)
    return attention(query, key, value, mask)


@bug(
    "memory taken to be contiguous",
    tier="robust",
    caught_by=["how_tensors_lie_in_memory_is_irrelevant"],
    diagnosis="""The key is read from memory row after row, whatever its strides: a transposed or
        sliced key gives other numbers. Call contiguous(), or respect the strides.""",
    source="kernels that are given a pointer",
)
def memory_taken_to_be_contiguous(query, key, value, mask):
    """All its tests made their tensors with randn, none with transpose."""
    rows = torch.empty(key.shape).stride()
    return attention(query, torch.as_strided(key, key.shape, rows), value, mask)


# ---- flags ---------------------------------------------------------------------------------------


@bug(
    "causal flag replaces the mask",
    caught_by=["mask_and_causal_flag_are_combined"],
    diagnosis="""With is_causal=True the mask is not used any more: padding, documents and windows
        that it described are seen again.""",
    source="torch.nn.MultiheadAttention with is_causal=True",
    causal_flag="is_causal",
)
def causal_flag_replaces_the_mask(query, key, value, mask, is_causal=False):
    """The flag was documented as a hint for speed."""
    if is_causal:
        mask = causal_mask(query.shape[2], key.shape[2], device=mask.device)
    return attention(query, key, value, mask)


@bug(
    "causal flag ignored",
    caught_by=["mask_and_causal_flag_are_combined"],
    diagnosis="""Where a mask is given, is_causal=True has no effect: every query sees its
        future.""",
    source="PyTorch (issue 99282); Keras (issue 23038)",
    causal_flag="is_causal",
)
def causal_flag_ignored(query, key, value, mask, is_causal=False):
    """Two features, each with its test; none with both."""
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return attention(query, key, value, mask)


@bug(
    "padding combined by or",
    caught_by=["mask_and_causal_flag_are_combined"],
    diagnosis="""Mask and causal mask are combined by | although True means "may attend": a key is
        seen if *either* allows it. Masks that allow combine by &, masks that hide by |.""",
    causal_flag="is_causal",
)
def padding_combined_by_or(query, key, value, mask, is_causal=False):
    """Copied from code whose masks say what to hide."""
    if is_causal:
        mask = mask | causal_mask(query.shape[2], key.shape[2], device=mask.device)
    return attention(query, key, value, mask)


@bug(
    "causal flag aligned at the first key",
    tier="robust",
    caught_by=["the_causal_flag_aligns_the_last_query_with_the_last_key"],
    diagnosis="""With fewer queries than keys, is_causal=True takes the first query for the first
        token: when decoding with a cache, the newest token sees only the oldest key. Align the
        last query with the last key.""",
    source="PyTorch (issue 108108): documented, and rarely read",
    causal_flag="is_causal",
)
def causal_flag_aligned_at_the_first_key(query, key, value, mask, is_causal=False):
    """Training was right. With the cache switched on, the text turned into babble."""
    return attention(query, key, value, mask.tril() if is_causal else mask)


@bug(
    "mask ignored with dropout",
    caught_by=["dropout_leaves_forbidden_keys_at_zero"],
    diagnosis="""With dropout another path is taken, and it does not get the mask: training sees
        padding and future, evaluation does not.""",
    source="Keras (issue 23038): dropout once dropped the causal mask",
    dropout_flag="dropout_p",
)
def mask_ignored_with_dropout(query, key, value, mask, dropout_p=0.0):
    """The training loss was far below the validation loss. It looked like overfitting."""
    if dropout_p:
        return F.dropout(scores(query, key).softmax(dim=-1), dropout_p) @ value
    return attention(query, key, value, mask)


@bug(
    "dropout before the softmax",
    caught_by=["dropout_leaves_forbidden_keys_at_zero"],
    diagnosis="""Dropout is applied to the scores, not to the weights: a dropped score is 0, and
        exp(0) is 1, not 0. Nothing is dropped, and the others are doubled in the exponent.""",
    dropout_flag="dropout_p",
)
def dropout_before_the_softmax(query, key, value, mask, dropout_p=0.0):
    """It regularises, in a way."""
    found = careful_scores(only_alive(query, mask), only_used(key, mask))
    found = F.dropout(found, dropout_p)
    return only_alive(softmax(found, mask) @ only_used(value, mask), mask)


# ---- misuse --------------------------------------------------------------------------------------


@bug(
    "mask of keys read as one of queries",
    tier="robust",
    caught_by=["a_mask_of_keys_is_not_taken_for_one_of_queries"],
    diagnosis="""A (batch, length) mask broadcasts as (queries, keys) when a batch has as many rows
        as tokens: the padding of sequence 2 then hides the view of token 2, in all sequences,
        without an error. Refuse masks that are not of rank 4.""",
    source="UvA deep learning notebooks, expand_mask; torch, flax and keras broadcast it too",
    refuses_misuse=True,
)
def mask_of_keys_read_as_one_of_queries(query, key, value, mask):
    """A batch of 32 sentences of 32 tokens. With any other size it would have been an error."""
    return attention(query, key, value, mask.expand(*query.shape[:3], key.shape[2]))


@bug(
    "mask of integers added as a bias",
    tier="robust",
    caught_by=["ones_and_zeros_are_understood_or_refused"],
    diagnosis="""A bool mask is obeyed, any other is added to the scores: the tokenizer's 1 and 0
        then prefer real keys by a factor e and hide nothing. Refuse integer masks, or turn them
        into bool.""",
    source="PyTorch (issue 97605)",
)
def mask_of_integers_added(query, key, value, mask):
    """A convenience: bool masks and biases by one argument."""
    if mask.dtype == torch.bool:
        return attention(query, key, value, mask)
    return (scores(query, key) + mask).softmax(dim=-1) @ value


# ---- kept from one call to the next --------------------------------------------------------------


@bug(
    "a plan kept by the mask's version",
    tier="robust",
    caught_by=[
        "inside_inference_mode_it_is_the_same",
        "a_mask_that_is_written_to_is_read_anew",
    ],
    diagnosis="""What is read off a mask is kept for the next layer, under the mask's id and its
        `_version`. Inside torch.inference_mode a tensor has no version, and a write through .data
        or .numpy() does not change it. Read the mask once a call, and hand the result along.""",
    source="our own kernels once; k2 (issue 1210) asks tensors for `_version` too",
)
class PlanByVersion:
    """Twelve layers read the same mask, and eleven of them need not. In training that held."""

    def __init__(self):
        self.kept = (None, -1, None)

    def __call__(self, query, key, value, mask):
        known, version, bias = self.kept
        if known is not mask or version != mask._version:
            alive = mask.any(dim=-1, keepdim=True)
            bias = torch.zeros(mask.shape).to(mask.device).masked_fill(~mask & alive, float("-inf"))
            self.kept = (mask, mask._version, bias)
        found = careful_scores(only_alive(query, mask), only_used(key, mask)) + bias.to(query.dtype)
        return only_alive(found.softmax(dim=-1) @ only_used(value, mask), mask)


@bug(
    "a plan kept by the mask's id",
    tier="robust",
    caught_by=["a_mask_that_is_written_to_is_read_anew"],
    diagnosis="""What is read off a mask is kept as long as the same tensor comes in. It need not
        hold the same numbers: a buffer that is filled anew for each batch is the same tensor.""",
    source="unsloth, packing.py (PR 10879): masks kept by the identity of the rows' lengths",
)
class PlanById(PlanByVersion):
    """`is` is fast, and no loader of the tests reused its tensors."""

    def __call__(self, query, key, value, mask):
        if self.kept[0] is not mask:
            self.kept = (mask, -1, mask.clone())
        return attention(query, key, value, self.kept[2])


# ---- NaN and Inf in padding ----------------------------------------------------------------------


@bug(
    "zero times NaN",
    tier="strict",
    caught_by=[
        "nan_in_padded_values_reaches_nothing",
        "nan_in_whole_padded_tokens_reaches_nothing",
        "nan_in_padding_reaches_no_gradient",
        "half_precision_keeps_nan_out_too",
    ],
    diagnosis="""Forbidden keys have weights of exactly 0, but their values are multiplied all the
        same, and 0 · NaN is NaN. Fill the values that nobody may see with zeros first.""",
    source="FlashAttention (issues 1745, 2374): unused slots of the cache; llama.cpp (PR 3523)",
)
def zero_times_nan(query, key, value, mask):
    """Right in all else. The cache had been allocated with torch.empty."""
    return only_alive(softmax(careful_scores(only_alive(query, mask), key), mask) @ value, mask)


@bug(
    "zero times NaN on the way back",
    tier="strict",
    caught_by=["nan_in_padding_reaches_no_gradient"],
    diagnosis="""Padded values are filled with zeros, padded keys are not: the output is right, but
        the gradient of the query is d scores · key, and 0 · NaN is NaN. Fill the keys, too.""",
    source="PyTorch (issue 101967)",
)
def zero_times_nan_on_the_way_back(query, key, value, mask):
    """Forward was tested with NaN in the padding; backward was not."""
    return only_alive(
        softmax(careful_scores(only_alive(query, mask), key), mask) @ only_used(value, mask), mask
    )


@bug(
    "padded queries multiplied",
    tier="strict",
    caught_by=["nan_in_queries_that_see_nothing_reaches_nothing"],
    diagnosis="""A padded query is multiplied: its NaN reaches the keys' gradients. Its weights are
        set to 0, so the output is right, but d key is d scores · query, and 0 · NaN is NaN. Fill
        the queries that may see nothing with zeros, as you fill keys and values.""",
)
def padded_queries_multiplied(query, key, value, mask):
    """Keys and values were cleaned. A query, its author thought, is read by nobody else."""
    return only_alive(
        softmax(careful_scores(query, only_used(key, mask)), mask) @ only_used(value, mask), mask
    )


@bug(
    "-inf added to NaN",
    tier="strict",
    caught_by=["nan_in_padded_keys_reaches_nothing"],
    diagnosis="""-inf is added to the scores instead of replacing them: NaN - inf is NaN, and so is
        Inf - Inf. masked_fill replaces whatever stands there.""",
    source="PyTorch (issue 64525)",
)
def minus_infinity_added_to_nan(query, key, value, mask):
    """For finite numbers adding and replacing are the same."""
    alive = mask.any(dim=-1, keepdim=True)
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask & alive, float("-inf"))
    found = careful_scores(only_alive(query, mask), key)
    return only_alive(softmax(found + bias, alive) @ only_used(value, mask), mask)
