"""Muon: orthogonal steps for matrices, AdamW for the rest, none after a loss that is no number."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from minitransformer import Config, EncoderDecoder
from minitransformer.training.loop import Settings, Training, parameter_groups, train
from minitransformer.training.muon import RATE, Muon, orthogonalize
from minitransformer.training.run import Run
from minitransformer.training.saver import files_of, restore
from minitransformer.training.tasks import DataOptions, PairsTask

SHAPES = [(8, 8), (8, 24), (24, 8), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_have_singular_values_of_about_one_and_the_same_directions(shape):
    matrices = torch.randn(3, *shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalize(matrices, steps=8) @ right.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    assert (diagonal > 0.6).all()
    assert (diagonal < 1.3).all()
    assert values.max() / values.min() > 1 or min(shape) == 1


def test_matrices_in_a_batch_are_as_alone():
    matrices = torch.randn(4, 6, 10, dtype=torch.float64)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone, rtol=0, atol=1e-12)
    assert orthogonalize(torch.zeros(1, 3, 4)).eq(0).all()


def optimizer_and_parameters(**options):
    torch.manual_seed(0)
    matrix, other = (nn.Parameter(torch.randn(6, 4)) for _ in range(2))
    groups = [{"params": [matrix], "orthogonal": True, "weight_decay": 0.1}, {"params": [other]}]
    for parameter in (matrix, other):
        parameter.grad = torch.randn_like(parameter)
    return Muon(groups, lr=0.1, **options), matrix, other


def test_a_step_is_that_of_the_formula_and_others_are_adamws():
    optimizer, matrix, other = optimizer_and_parameters()
    twin = nn.Parameter(other.detach().clone())
    twin.grad = other.grad.clone()
    before, gradient = matrix.detach().clone(), matrix.grad.clone()
    optimizer.step()
    torch.optim.AdamW([twin], lr=0.1).step()
    assert other.equal(twin)
    momentum = 0.05 * gradient
    nesterov = gradient + 0.95 * (momentum - gradient)
    wanted = before * (1 - 0.1 * 0.1) - 0.1 * (6 / 4) ** 0.5 * orthogonalize(nesterov[None])[0]
    torch.testing.assert_close(matrix.detach(), wanted)
    torch.testing.assert_close(optimizer.state[matrix]["momentum"], momentum)
    assert optimizer.state[matrix]["step"] == optimizer.state[other]["step"] == 1


def test_torchs_own_steps_are_alike():
    """Which rounds to bfloat16 on the way."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    optimizer, matrix, _ = optimizer_and_parameters()
    twin = nn.Parameter(matrix.detach().clone())
    theirs = torch.optim.Muon([twin], lr=0.1, weight_decay=0.1, momentum=0.95)
    for _ in range(5):
        gradient = torch.randn_like(matrix)
        matrix.grad, twin.grad = gradient, gradient.clone()
        optimizer.step()
        theirs.step()
    torch.testing.assert_close(matrix, twin, rtol=0, atol=0.1)
    assert (matrix - twin).norm() < 0.05 * (matrix - torch.randn_like(matrix)).norm()


def test_after_a_loss_that_was_no_number_nothing_changes():
    optimizer, matrix, other = optimizer_and_parameters(fused=True)
    optimizer.step()
    before = copy.deepcopy([matrix, other, optimizer.state[matrix]["momentum"]])
    matrix.grad.fill_(float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = [matrix, other, optimizer.state[matrix]["momentum"]]
    assert optimizer.state[matrix]["step"] == 1
    assert all(map(torch.equal, before, after))


def test_only_the_matrices_of_the_layers_are_made_orthogonal():
    config = Config(40, d_model=16, num_layers=2, num_heads=2, style="bert", num_segments=2)
    model = EncoderDecoder(config)
    *others, inner = parameter_groups(model, 0.1, muon=True)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in inner["params"]}
    assert all("layers." in name and name.endswith("weight") for name in found)
    assert len(found) == 2 * 6 + 2 * 10
    assert sum(len(group["params"]) for group in [*others, inner]) == len(names)
    assert inner["weight_decay"] * RATE == pytest.approx(0.1)


def test_training_with_it_lowers_the_loss(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    torch.manual_seed(0)
    model = EncoderDecoder(Config(len(task.vocabulary), d_model=16, num_layers=1, num_heads=2))
    training = Training(model, Settings(steps=30, batch_size=16, warmup=5, optimizer="muon"))
    losses = [training.step(training.batch(task, step))[0].item() for step in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    rates = {group.get("orthogonal"): group["lr"] for group in training.optimizer.param_groups}
    assert rates[True] == pytest.approx(RATE * rates[False])


def test_a_training_goes_on_to_the_same_bits(pairs):
    task = PairsTask(DataOptions(pairs), 64)
    settings = Settings(steps=6, batch_size=4, warmup=2, save_every=3, optimizer="muon")

    def new_training():
        torch.manual_seed(0)
        config = Config(len(task.vocabulary), d_model=16, num_layers=1, num_heads=2)
        training = Training(EncoderDecoder(config), settings)
        return training, Run("pairs", training.model, task.vocabulary)

    training, run = new_training()
    saved = {}
    train(training, task, lambda t: saved.setdefault(len(t.history), files_of(run, t)), quiet=True)
    again, _ = new_training()
    run = Run.from_files(saved[3], Path("saved"))
    again = Training(run.model, settings)
    again.history = run.history
    restore(again, saved[3])
    train(again, task, quiet=True)
    assert all(map(torch.equal, training.model.parameters(), again.model.parameters()))


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adamw, muon, got 'sgd'"):
        Settings(optimizer="sgd")
