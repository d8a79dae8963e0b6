"""Cross-entropy against torch's, and what it must not see."""

import pytest
import torch
from conftest import BATCH, KEYS
from torch import Tensor
from torch.nn import functional as F

from minitransformer import IGNORE_INDEX, cross_entropy

CLASSES = 5
HALF = [torch.float16, torch.bfloat16]
POISONS = [float("nan"), float("inf"), float("-inf")]


def make_batch(device="cpu", dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (BATCH, KEYS, CLASSES), and labels of which some are ignored, one whole row too."""
    logits = (3 * torch.randn(BATCH, KEYS, CLASSES, device=device)).to(dtype)
    labels = torch.randint(0, CLASSES, (BATCH, KEYS), device=device)
    labels[0, :3] = labels[1] = labels[2, -1] = IGNORE_INDEX
    return logits, labels


def value_and_gradient(loss, logits: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def torch_cross_entropy(logits: Tensor, labels: Tensor, **kwargs) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **kwargs)


# ---- the value -------------------------------------------------------------------------------


def test_loss_by_hand():
    """Odds of 3 : 1 for the right class cost log(4/3), those of 1 : 3 log(4)."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 1.0]]).log()
    loss = cross_entropy(logits, torch.tensor([0, 1, IGNORE_INDEX]))
    torch.testing.assert_close(loss, torch.tensor([4 / 3, 4.0]).log().mean())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str
)
def test_loss_and_gradient_equal_torch(device, dtype, tolerance):
    logits, labels = make_batch(device, dtype)
    ours = value_and_gradient(cross_entropy, logits, labels)
    theirs = value_and_gradient(torch_cross_entropy, logits, labels)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("ignore_index", [-1, 0, CLASSES - 1, 10**6])
def test_loss_equals_torch_for_every_ignore_index(ignore_index):
    """One of the classes too: it is then a class that is never learned."""
    logits, labels = make_batch()
    labels[labels == IGNORE_INDEX] = ignore_index
    ours = value_and_gradient(cross_entropy, logits, labels, ignore_index=ignore_index)
    theirs = value_and_gradient(torch_cross_entropy, logits, labels, ignore_index=ignore_index)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
def test_loss_takes_any_number_of_axes(shape):
    logits, labels = torch.randn(*shape, CLASSES), torch.randint(0, CLASSES, shape)
    expected = F.cross_entropy(logits.reshape(-1, CLASSES), labels.reshape(-1))
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


def test_loss_is_the_mean_over_the_labels_that_count():
    """Not over all positions, and not over rows."""
    logits, labels = make_batch()
    each = -logits.log_softmax(-1)
    costs = [
        each[b, t, labels[b, t]]
        for b in range(BATCH)
        for t in range(KEYS)
        if labels[b, t] != IGNORE_INDEX
    ]
    torch.testing.assert_close(cross_entropy(logits, labels), torch.stack(costs).mean())


def test_loss_passes_gradcheck():
    logits, labels = make_batch()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_logits_give_a_float32_loss(device, dtype):
    logits, labels = make_batch(device, dtype)
    loss, gradient = value_and_gradient(cross_entropy, logits, labels)
    wanted, wanted_gradient = value_and_gradient(torch_cross_entropy, logits.float(), labels)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient.to(dtype), atol=1e-4, rtol=1e-2)


def test_float16_logits_near_its_end_stay_finite(device):
    logits = torch.tensor([[6e4, -6e4, 0.0]], dtype=torch.float16, device=device)
    for label, cost in enumerate([0.0, 1.2e5, 6e4]):
        loss, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([label]).to(device))
        torch.testing.assert_close(loss.item(), cost)
        assert gradient.isfinite().all()


def test_float64_logits_give_a_float64_loss():
    assert cross_entropy(*make_batch(dtype=torch.float64)).dtype == torch.float64


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e30, 1e30, -1e30]])
    loss, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([0]))
    assert gradient.isfinite().all()
    assert loss.isfinite()


def test_a_class_ruled_out_by_minus_infinity_gets_no_gradient():
    logits = torch.tensor([[1.0, float("-inf"), 1.0]])
    loss, gradient = value_and_gradient(cross_entropy, logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    assert gradient[0, 1] == 0.0
    assert gradient.isfinite().all()


# ---- what is ignored ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_gradient_at_ignored_labels_is_exactly_zero(device, dtype):
    logits, labels = make_batch(device, dtype)
    _, gradient = value_and_gradient(cross_entropy, logits, labels)
    ignored = labels == IGNORE_INDEX
    assert (gradient[ignored] == 0.0).all()
    assert (gradient[~ignored] != 0.0).any(dim=-1).all()


@pytest.mark.parametrize("poison", [1e4, *POISONS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_logits_at_ignored_labels_reach_nothing(device, dtype, poison):
    logits, labels = make_batch(device, dtype)
    poisoned = logits.masked_fill((labels == IGNORE_INDEX).unsqueeze(-1), poison)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        ours = value_and_gradient(cross_entropy, poisoned, labels)
    for got, wanted in zip(ours, value_and_gradient(cross_entropy, logits, labels), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("content", [1.0, *POISONS], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (2, 0)])
def test_nothing_to_predict_is_a_loss_of_zero_with_zero_gradient(device, shape, content):
    logits = torch.full((*shape, CLASSES), content, device=device)
    labels = torch.full(shape, IGNORE_INDEX, device=device)
    loss, gradient = value_and_gradient(cross_entropy, logits, labels)
    assert loss == 0.0
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_an_ignored_label_among_labels_of_a_single_class():
    logits = torch.randn(3, 1)
    loss = cross_entropy(logits, torch.tensor([0, IGNORE_INDEX, 0]))
    assert loss == 0.0


# ---- the number to divide by -------------------------------------------------------------------


@pytest.mark.parametrize("count", [int, torch.tensor], ids=["int", "tensor"])
def test_sums_over_shards_by_the_global_count_equal_the_full_batch(device, count):
    """One shard has no labels at all; it must add nothing, and take nothing away."""
    logits, labels = make_batch(device)
    num_labels = count((labels != IGNORE_INDEX).sum().item())
    full = value_and_gradient(cross_entropy, logits, labels)
    shards = [
        value_and_gradient(cross_entropy, *shard, num_labels=num_labels)
        for shard in zip(logits.split(1), labels.split(1), strict=True)
    ]
    losses, gradients = zip(*shards, strict=True)
    torch.testing.assert_close(sum(losses), full[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.cat(gradients), full[1], atol=1e-12, rtol=1e-12)


def test_averaging_processes_need_the_count_per_process():
    """Data parallelism averages gradients over W processes: num_labels = all labels / W."""
    logits, labels = make_batch()
    num_labels = (labels != IGNORE_INDEX).sum() / BATCH
    shards = zip(logits.split(1), labels.split(1), strict=True)
    losses = [cross_entropy(*shard, num_labels=num_labels) for shard in shards]
    torch.testing.assert_close(sum(losses) / BATCH, cross_entropy(logits, labels))


def test_less_than_one_label_per_process_is_still_divided_by():
    """One label in all of four processes: each divides by a quarter, and their mean is right."""
    logits, labels = make_batch()
    labels[:-1], labels[-1, 1:] = IGNORE_INDEX, IGNORE_INDEX
    shards = zip(logits.split(1), labels.split(1), strict=True)
    losses = [cross_entropy(*shard, num_labels=torch.tensor(1 / BATCH)) for shard in shards]
    torch.testing.assert_close(sum(losses) / BATCH, cross_entropy(logits, labels))


def test_the_mean_of_means_is_not_the_mean():
    """Why num_labels exists."""
    logits, labels = make_batch()
    shards = zip(logits.split(1), labels.split(1), strict=True)
    means = torch.stack([cross_entropy(*shard) for shard in shards])
    assert (means.mean() - cross_entropy(logits, labels)).abs() > 0.1


@pytest.mark.parametrize("num_labels", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_nothing_to_predict_anywhere_is_a_loss_of_zero(num_labels):
    """A step in which no micro-batch and no process has a label."""
    logits, labels = make_batch()
    loss, gradient = value_and_gradient(
        cross_entropy, logits, torch.full_like(labels, IGNORE_INDEX), num_labels=num_labels
    )
    assert torch.equal(gradient, torch.zeros_like(logits))
    assert loss == 0.0


# ---- misuse ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [CLASSES, -1, -101])
def test_labels_outside_the_vocabulary_are_refused(label):
    logits, labels = make_batch()
    labels[3, 2] = label
    with pytest.raises(
        ValueError, match=rf"^labels must be -100 \(ignore\) or in \[0, 5\), got {label}"
    ):
        cross_entropy(logits, labels)


def test_minus_100_is_refused_where_another_index_means_ignore():
    with pytest.raises(ValueError, match=r"-1 \(ignore\) or in \[0, 5\), got -100"):
        cross_entropy(*make_batch(), ignore_index=-1)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ((2, 3, 5), (2, 4), ValueError, r"got \(2, 3, 5\) and \(2, 4\)"),
        ((2, 3, 5), (3, 2), ValueError, r"got \(2, 3, 5\) and \(3, 2\)"),
        ((2, 5, 3), (2, 3), ValueError, r"^logits must be \(\.\.\., classes\) and labels .*, got"),
        ((6, 5), (2, 3), ValueError, r"got \(6, 5\) and \(2, 3\)"),
        ((2, 3), (1, 2), ValueError, r"got \(2, 3\) and \(1, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(torch.zeros(logits), torch.zeros(labels).long())


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_labels_of_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match=f"labels must be int64, got {dtype}"):
        cross_entropy(torch.zeros(2, 5), torch.zeros(2, dtype=dtype))


def test_integer_logits_are_refused():
    with pytest.raises(TypeError, match=r"logits must be floating point, got torch.int64"):
        cross_entropy(torch.zeros(2, 5).long(), torch.zeros(2).long())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("logits", ([[1.0]], torch.tensor([0]))), ("labels", (torch.ones(1, 2), [0]))],
)
def test_what_is_no_tensor_is_refused(name, arguments):
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got list$"):
        cross_entropy(*arguments)
