"""What is checked in each of several processes that share an HSViT: run by tests.processes."""

import itertools
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from anyvit.deploy.reference import load_reference
from anyvit.models.hsvit import HSViT, checkpoint_filter_fn
from anyvit.scaling.spread import collectives
from anyvit.scaling.spread.parallel import parallelize
from anyvit.training.ranks import count, joined, rank
from tests.golden.handlers.hsvit import CONFIG
from tests.golden.vectors import Golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LIMIT = 0.01


def tiny(**changes):
    torch.manual_seed(0)
    shape = {"img_size": 8, "kernels": (6, 12), "pools": (2, 1), "num_groups": 4, "embed_dim": 8, "num_heads": 2}
    return HSViT(**{**shape, "num_classes": 3, "drop_rate": 0.0, **changes})


def spread(model, trunk="boards", rows=1):
    return parallelize(model, init_device_mesh("cpu", (rows, count() // rows)), trunk=trunk)


def step(network, images, labels, clip):
    """Logits, loss and the norm of the gradient, clipped."""
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return logits.detach(), loss.detach(), clip(LIMIT)


def check_step(model, images, labels, trunk, rows):
    """One step of `model`, alone and spread: the same logits, loss, clipped gradients and statistics."""
    module = spread(model, trunk, rows)
    own = slice(module.data_rank * len(images) // rows, (module.data_rank + 1) * len(images) // rows)
    logits, loss, norm = step(module, images[own], labels[own], module.clip_gradients)
    gradients = {name: p.grad for name, p in module.part.named_parameters() if p.grad is not None}
    found = module.gather(gradients), module.gather(module.part.state_dict())
    loss = module.average({"loss": float(loss)})["loss"]
    alone = model.part(model.groups)
    expected = step(alone, images, labels, lambda limit: torch.nn.utils.clip_grad_norm_(alone.parameters(), limit))
    torch.testing.assert_close(torch.tensor(loss), expected[1], **CLOSE)
    torch.testing.assert_close(norm, expected[2], **CLOSE)
    if trunk == "boards" or module.place == 0:
        torch.testing.assert_close(logits, expected[0][own], **CLOSE)
    if rank() == 0:
        torch.testing.assert_close(found[0], {n: p.grad for n, p in alone.named_parameters() if p.grad is not None})
        torch.testing.assert_close(found[1], alone.state_dict(), **CLOSE)
        return {name: gradient * (expected[2] + 1e-6) / LIMIT for name, gradient in found[0].items()}, logits, loss
    return None


def placements():
    sizes = [rows for rows in (1, 2) if count() % rows == 0]
    return [(trunk, rows) for trunk, rows in itertools.product(("boards", "hub"), sizes)]


def steps():
    """Models of every kind, in every placement that this number of processes allows."""
    with joined():
        images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 2, 1, 0])
        dist.broadcast(images, 0)
        for trunk, rows in placements():
            for changes in ({}, {"vote": "logits"}, {"num_groups": 6}):
                check_step(tiny(**changes).train(), images, labels, trunk, rows)
            raw = tiny(kernels=(12,), kernel_sizes=(0,), pools=(1,), img_size=8, embed_dim=64)
            check_step(raw.train(), images, labels, trunk, rows)
            check_step(tiny(group_drop_rate=0.5).eval(), images, labels, trunk, rows)


def golden(*files):
    """Golden files, in every placement."""
    with joined():
        for file in files:
            vectors = Golden.read(Path(file))
            for trunk, rows in placements():
                if "labels" in vectors.inputs:
                    check_golden(vectors, trunk, rows)


def check_golden(vectors, trunk, rows):
    config = {key: vectors.config[key] for key in CONFIG & vectors.config.keys()}
    model = load_reference("hsvit", vectors.weights, config).train(vectors.kind == "train_step")
    found = check_step(model, vectors.inputs["x"], vectors.inputs["labels"], trunk, rows)
    if found is None:
        return
    gradients, logits, loss = found
    torch.testing.assert_close(logits, vectors.tensors["out/logits"][: len(logits)], **CLOSE)
    torch.testing.assert_close(torch.tensor(loss), vectors.tensors["out/loss"], **CLOSE)
    expected, asked = (renamed(vectors, model, make) for make in (lambda gradient: gradient, torch.ones_like))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient * asked[name], expected[name], **CLOSE)


def renamed(vectors, model, make):
    """Expected gradients under our names; zero where the file has none."""
    given = vectors.under("out/grad")
    reference = {
        name: make(given[name]) if name in given else torch.zeros_like(tensor)
        for name, tensor in vectors.weights.items()
    }
    return checkpoint_filter_fn(reference, model)


def votes():
    """Groups that are left out of a vote are the same in the whole row, and others in another row."""
    with joined():
        model = tiny(group_drop_rate=0.5).train()
        alone = model.part(model.groups)
        images = torch.ones(6, 3, 8, 8)
        torch.manual_seed(7)
        expected = alone(images)
        module = spread(model)
        torch.manual_seed(7)
        torch.testing.assert_close(module(images), expected, **CLOSE)


def tokens_apart():
    """Processes of a row drop other tokens, though they begin with one seed."""
    with joined():
        model = tiny(drop_rate=0.5).train()
        module = spread(model)
        torch.manual_seed(7)
        module(torch.ones(2, 3, 8, 8))
        drawn = [torch.zeros(1) for _ in range(count())]
        dist.all_gather(drawn, torch.rand(1))
        assert len({float(each) for each in drawn}) == count()


def payload():
    """What travels for an image is what the formulas say."""
    with joined():
        model = tiny(num_groups=12 // 3).train()
        T, D = model.tokens_per_group, model.embed_dim
        images, sent = torch.ones(5, 3, 8, 8), []
        isend = collectives.dist.isend
        collectives.dist.isend = lambda tensor, **where: sent.append(tensor.nbytes) or isend(tensor, **where)
        module = spread(model, "hub")
        module(images).sum().backward()
        mine = sum(module.sizes[1:]) if module.place == 0 else module.sizes[module.place]
        down, up = 4 * mine * T * D * 5, 4 * mine * D * 5
        assert sent == [4 * g * T * D * 5 for g in module.sizes[1:]] + [4 * g * D * 5 for g in module.sizes[1:]] or (
            module.place and sent == [up, down]
        )


def states():
    """The whole is put together of its parts as it was, and the parts are cut out of it again."""
    with joined():
        model = tiny()
        for trunk, rows in placements():
            module = spread(model, trunk, rows)
            whole = module.gather(module.part.state_dict())
            if rank() == 0:
                torch.testing.assert_close(whole, dict(model.state_dict()), rtol=0, atol=0)
            cut = module.cut(model.state_dict())
            torch.testing.assert_close(cut, dict(module.part.state_dict()), rtol=0, atol=0)
