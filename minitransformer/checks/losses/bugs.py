"""Losses that count what they should ignore, or forget what they should count."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from minitransformer.checks.engine import bugs
from minitransformer.loss import cross_entropy

bug = partial(bugs.bug, "loss")


def each(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] at every position, (B,T); 0 where the label is -100."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape).to(torch.promote_types(logits.dtype, torch.float32))


def count(labels: Tensor) -> Tensor:
    return (labels != -100).sum()


@bug(
    "mean over positions",
    caught_by=["it_is_the_mean_over_the_labels_that_count", "how_much_is_ignored_is_irrelevant"],
    diagnosis="""The sum is right, but it is divided by the number of positions, padding included.
        Two pads added to two tokens halve the loss, and with it the learning rate of short
        sentences. Divide by the number of labels that count.""",
    source="gordicaleksa/pytorch-original-transformer (batchmean over batch · length)",
)
def mean_over_positions(logits, labels):
    """Training worked. Only its speed depended on how the batches happened to be padded."""
    return each(logits, labels).mean()


@bug(
    "sum instead of mean",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""The losses are summed and not divided: a batch with more tokens takes a longer
        step.""",
)
def sum_instead_of_mean(logits, labels):
    """reduction="sum", left over from an experiment with accumulation."""
    return each(logits, labels).sum()


@bug(
    "mean of the rows' means",
    caught_by=["it_is_the_mean_over_the_labels_that_count", "gradients_of_the_loss_are_right"],
    diagnosis="""Each row is averaged, then the averages are: a token of a short row counts more
        than one of a long row. Sum everything, and divide once.""",
    source="gradient accumulation and data parallel in many trainers; transformers PR 34191",
)
def mean_of_the_rows_means(logits, labels):
    """Equal to the right loss as long as all rows were equally long, as in the test."""
    rows = each(logits, labels).sum(dim=1)
    return (rows / (labels != -100).sum(dim=1).clamp(min=1)).mean()


@bug(
    "micro-batches averaged by themselves",
    caught_by=["micro_batches_add_up"],
    diagnosis="""The number of labels of the whole batch is taken and not used: each micro-batch is
        divided by its own. On ragged batches the accumulated gradient was off by 92 %, while
        every single loss looked right.""",
    source="transformers PR 34191; nanochat and litgpt fine-tuning",
    num_labels_flag="num_labels",
)
def micro_batches_averaged(logits, labels, num_labels=None):
    """Four accumulation steps gave another model than one batch four times as large."""
    return cross_entropy(logits, labels)


@bug(
    "padding id ignored instead of -100",
    caught_by=["class_zero_counts_as_any_other"],
    diagnosis="""Labels of 0 are ignored, since 0 is the id of padding: but it is a class as well,
        and -100 says what to ignore.""",
    source="ignore_index=pad_id in many tutorials; transformers issue 23530 is its twin",
)
def padding_id_ignored(logits, labels):
    """With pad = eos the model never learned to stop."""
    losses = each(logits, labels).masked_fill(labels == 0, 0.0)
    return losses.sum() / ((labels != -100) & (labels != 0)).sum().clamp(min=1)


@bug(
    "-100 clamped to class 0",
    caught_by=["what_is_predicted_at_ignored_labels_is_irrelevant"],
    diagnosis="""The labels are clamped to valid classes before the mask is made of them, so that
        -100 becomes 0 and padding is trained to be class 0.""",
    source="an index error, fixed; PyTorch issue 75181",
)
def clamped_to_class_zero(logits, labels):
    """gather(-100) raised, clamp(min=0) did not."""
    return each(logits, labels.clamp(min=0)).mean()


@bug(
    "shifted once more",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""The labels are shifted a second time: data and loss both do it, so each position
        is taught the token after the next.""",
    source="who shifts? transformers PR 44642; a double shift in PR 47395",
)
def shifted_once_more(logits, labels):
    """The loss fell more slowly, and generated text skipped every other word."""
    losses = each(logits[:, :-1], labels[:, 1:])
    return losses.sum() / count(labels[:, 1:]).clamp(min=1)


@bug(
    "not shifted at all",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""The loss is declared to shift and does not: each position is asked for the token
        that it has just read, and copying is easy.""",
    source="training scripts that changed from one library's convention to another's",
    shifts=True,
)
def not_shifted_at_all(logits, labels):
    """Loss 0.0004 after one epoch, and nothing but repetition in generation."""
    return each(logits, labels).sum() / count(labels).clamp(min=1)


@bug(
    "shifted across rows",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""The batch is flattened before it is shifted, so the last position of each row is
        taught the first token of the next row.""",
    shifts=True,
)
def shifted_across_rows(logits, labels):
    """One label in each row was wrong; nobody reads single labels."""
    return F.cross_entropy(logits.flatten(0, 1)[:-1].float(), labels.flatten()[1:])


@bug(
    "labels counted before the shift",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""The labels are counted before they are shifted: the first token of each row is
        nobody's label and is counted, so short rows make the loss too small.""",
    source="the number of items in a batch, in trainers; transformers PR 46204",
    shifts=True,
)
def counted_before_the_shift(logits, labels):
    """Off by one in each row: with rows of a thousand tokens nobody can see it."""
    return each(logits[:, :-1], labels[:, 1:]).sum() / count(labels).clamp(min=1)


@bug(
    "a batch with an empty row is skipped",
    caught_by=["a_row_without_labels_changes_nothing"],
    diagnosis="""Where a row has no label the loss of the whole batch is 0, as a guard against NaN:
        the other rows are not learned from.""",
    source="guards against NaN; one row without labels gave NaN in a mean of rows' means",
)
def skipped_batch(logits, labels):
    """The loss was 0 now and then, which pleased everyone."""
    empty = (labels == -100).all(dim=1).any()
    return cross_entropy(logits, labels) * (~empty | (labels == -100).all())


# ---- label smoothing -----------------------------------------------------------------------------


SMOOTHING = {"label_smoothing": 0.1, "smoothing_flag": "label_smoothing"}


def uniform(logits: Tensor) -> Tensor:
    """-log softmax(logits), the mean over the classes: (B,T), at ignored labels too."""
    log = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -log.mean(dim=-1)


@bug(
    "smoothing counts ignored labels",
    caught_by=[
        "it_is_the_mean_over_the_labels_that_count",
        "what_is_predicted_at_ignored_labels_is_irrelevant",
    ],
    diagnosis="""The uniform part of label smoothing is summed at ignored positions too: it needs no
        label, so nothing reminds it of -100. Mask both parts.""",
    source="torch.nn.functional.cross_entropy before 1.12 (PyTorch issue 73205)",
    **SMOOTHING,
)
def smoothing_counts_ignored(logits, labels, label_smoothing):
    """The labels were masked, and the smoothing has none."""
    total = torch.lerp(each(logits, labels), uniform(logits), label_smoothing).sum()
    return total / count(labels) if count(labels) else total * 0.0


@bug(
    "a smoothed loss averaged over padding",
    caught_by=["it_is_the_mean_over_the_labels_that_count", "how_much_is_ignored_is_irrelevant"],
    diagnosis="""The smoothed loss is 0 at ignored labels, and divided by the number of all
        positions, padding included: the more padding, the smaller the loss.""",
    source="label smoothing in examples of transformers (PR 5919; issue 7546)",
    **SMOOTHING,
)
def smoothed_over_padding(logits, labels, label_smoothing):
    """masked_fill(padding, 0.0).mean()."""
    losses = torch.lerp(each(logits, labels), uniform(logits), label_smoothing)
    return losses.masked_fill(labels == -100, 0.0).mean()


@bug(
    "label smoothing left out",
    caught_by=["it_is_the_mean_over_the_labels_that_count"],
    diagnosis="""Label smoothing is declared, and the loss is the plain cross-entropy: the argument
        is taken and not used.""",
    **SMOOTHING,
)
def smoothing_left_out(logits, labels, label_smoothing):
    """A loss of its own replaced the library's, and kept its signature."""
    return cross_entropy(logits, labels)


# ---- what is left behind -------------------------------------------------------------------------


@bug(
    "labels filled in place",
    caught_by=["logits_and_labels_are_left_alone"],
    diagnosis="""The caller's labels are overwritten: whoever counts them afterwards, for accuracy
        or for the next micro-batch, counts others.""",
    source="masked_fill_ where masked_fill was meant",
)
def labels_filled_in_place(logits, labels):
    """The accuracy was computed after the loss, and was surprisingly high."""
    wanted = labels != -100
    labels.masked_fill_(~wanted, 0)
    losses = each(logits, labels).masked_fill(~wanted, 0.0)
    return losses.sum() / wanted.sum().clamp(min=1)


@bug(
    "a loss with noise",
    caught_by=["the_same_batch_gives_the_same_loss"],
    diagnosis="""The loss of the same batch is another each time: dropout or noise on the logits is
        left on where nothing should be random.""",
)
def a_loss_with_noise(logits, labels):
    """A regulariser that nobody switched off for evaluation."""
    losses = each(logits, labels).sum() / count(labels).clamp(min=1)
    return losses * (1.0 + 1e-6 * torch.rand(()))


@bug(
    "NaN for nothing to predict",
    tier="robust",
    caught_by=["nothing_to_predict_is_no_nan"],
    diagnosis="""With no label that counts, 0 is divided by 0. A micro-batch of prompts alone, or of
        padding, then turns the whole model into NaN.""",
    source="torch.nn.functional.cross_entropy (issue 70348); nanochat issue 590",
)
def nan_for_nothing_to_predict(logits, labels):
    """It happened once in 40,000 steps, in the night."""
    return each(logits, labels).sum() / count(labels)


@bug(
    "exp before log",
    tier="robust",
    caught_by=["large_logits_are_no_overflow"],
    diagnosis="""log(sum(exp(logits))) as it is written: exp of 89 is infinite in float32. Subtract
        the largest logit first, as logsumexp does.""",
    dtypes=("float32", "float64"),
)
def exp_before_log(logits, labels):
    """Right for every logit of a new model. Those of a trained one grow."""
    wanted = labels != -100
    logits, labels = logits[wanted], labels[wanted]
    normalizer = logits.exp().sum(dim=-1).log()
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (normalizer - chosen).sum() / wanted.sum().clamp(min=1)


@bug(
    "summed in half precision",
    tier="robust",
    caught_by=["half_precision_logits_are_summed_in_more"],
    diagnosis="""The loss is computed in the dtype of the logits: in bfloat16 it has three digits,
        and 600 terms are added one by one in it. Begin with logits.float().""",
    source="losses before they upcast; logits.float() stands in most of them now",
)
def summed_in_half_precision(logits, labels):
    """The curve had steps."""
    wanted = labels != -100
    losses = -logits.log_softmax(-1)[wanted].gather(-1, labels[wanted].unsqueeze(-1))
    return losses.sum() / wanted.sum().clamp(min=1)


@bug(
    "a running mean begun in an evaluation",
    tier="robust",
    caught_by=["inside_inference_mode_it_is_the_same"],
    diagnosis="""A running mean for the log begins anew with each evaluation. Begun inside
        torch.inference_mode it cannot be written to afterwards, and the next training step fails.
        Keep a number (.item()), or make the tensor once and write to it.""",
    source="torchmetrics (issue 1993), and mrdbourke/pytorch-deep-learning (issue 397)",
)
class RunningMean:
    """The loss is right. Only its log was rewritten when evaluation moved into inference mode."""

    def __init__(self):
        self.mean = torch.zeros(())

    def __call__(self, logits, labels):
        loss = cross_entropy(logits, labels)
        if loss.requires_grad:
            self.mean.lerp_(loss.detach().float().cpu(), 0.01)
        else:
            self.mean = loss.float().cpu() * 1.0
        return loss


@bug(
    "multiplied by the mask",
    tier="strict",
    caught_by=["nan_at_ignored_labels_reaches_no_loss"],
    diagnosis="""The loss is computed everywhere and multiplied by 0 where it is ignored. 0 · NaN is
        NaN: one bad logit at a padded position is enough.""",
    source="hand-written masked losses",
)
def multiplied_by_the_mask(logits, labels):
    """As long as padding was finite, this was right to the bit."""
    wanted = labels != -100
    losses = each(logits, labels.clamp(min=0)) * wanted
    return losses.sum() / wanted.sum().clamp(min=1)


@bug(
    "NaN in the backward pass only",
    tier="strict",
    caught_by=["nan_at_ignored_labels_reaches_no_gradient"],
    diagnosis="""The loss skips ignored positions, and its value is right; but the backward pass
        multiplies their softmax by 0, and a NaN there becomes a NaN in the gradient.""",
    source="torch.nn.functional.cross_entropy (issue 11551, open)",
)
def nan_in_the_backward_pass(logits, labels):
    """The loss printed in every line of the log was fine."""
    return each(logits, labels).sum() / count(labels).clamp(min=1)
