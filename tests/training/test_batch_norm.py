"""Batch norms of two ranks see the whole batch: outputs, gradients, running statistics are those of one."""

import copy

import torch
from torch import nn
from worlds import in_world

from misfm import world
from misfm.models import create
from misfm.training.batch_norm import share_batch_norms

PCTNET = {"channels": (4, 6, 8, 8, 8), "num_heads": (2, 2, 2), "depths": (1, 1, 1), "dropout": 0.0}


def trained(model, x, share):
    """Outputs of a second pass, gradients averaged over ranks, and buffers."""
    model = copy.deepcopy(model).double()  # in which what one would see of a fault is not rounding
    share_batch_norms(model)
    x = x[share].double().requires_grad_()
    model(x)
    y = model(x)
    loss = world.total(
        (y * torch.linspace(-1, 2, y[0].numel(), dtype=y.dtype).view(y[0].shape)).square().sum()
    )
    loss.backward()
    gradients = [world.total(parameter.grad) / world.size() for parameter in model.parameters()]
    return y.detach(), x.grad / world.size(), gradients, dict(model.named_buffers())


def of_my_share(models):
    return [trained(model, x, world.share(len(x))) for model, x in models]


def cases():
    """Norms with a large mean, batches that ranks share evenly or not, and a whole network."""
    torch.manual_seed(5)
    for kind, momentum, shape in [
        (nn.BatchNorm1d, 0.1, (4, 3, 7)),
        (nn.BatchNorm1d, 0.1, (5, 3)),
        (nn.BatchNorm2d, 0.1, (2, 3, 7, 5)),
        (nn.BatchNorm3d, None, (3, 3, 4, 5, 6)),
    ]:
        norm = kind(3, momentum=momentum)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        scale = torch.tensor([0.5, 1, 20]).view(3, *[1] * (len(shape) - 2))
        yield norm, 100 + torch.randn(shape) * scale
    yield nn.BatchNorm3d(2, affine=False, track_running_stats=False), torch.randn(2, 2, 3, 3, 3)
    model = create("pctnet", num_classes=2, patch_size=(16, 32, 32), **PCTNET).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.train()  # the others would draw what to drop
    yield model, torch.randn(4, 1, 16, 32, 32)


def test_two_ranks_normalise_as_one():
    models = list(cases())
    for (model, x), *found in zip(models, *in_world(of_my_share, 2, models), strict=True):
        y, towards_x, gradients, buffers = trained(model, x, slice(None))
        outputs, towards_inputs, theirs, statistics = zip(*found, strict=True)
        expected = [(torch.cat(outputs), y), (torch.cat(towards_inputs), towards_x)]
        for rank in (0, 1):
            expected += zip(theirs[rank], gradients, strict=True)
            expected += [(statistics[rank][name], buffer) for name, buffer in buffers.items()]
        for other, ours in expected:
            assert (other - ours).double().norm() <= 1e-8 * (1 + ours.double().norm()), type(model)


def test_names_stay_and_one_process_computes_what_it_did():
    norm, x = nn.BatchNorm3d(2), torch.randn(2, 2, 3, 3, 3)
    shared = copy.deepcopy(norm)
    share_batch_norms(shared)
    assert isinstance(shared, nn.BatchNorm3d)
    assert list(shared.state_dict()) == list(norm.state_dict())
    assert torch.equal(shared(x), norm(x))
    assert torch.equal(shared.running_var, norm.running_var)
