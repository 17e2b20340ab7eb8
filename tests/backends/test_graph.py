"""Graphs: every shape that a lever makes, in every runtime; refusals; no traces of the exporter."""

import logging
import warnings

import onnx
import pytest
import torch
from torch import nn

from anyvit.backends import backend_named
from anyvit.backends.graph import Probabilities, onnx_graph, onnx_program, quiet, why_not_exported
from anyvit.errors import ModelError
from anyvit.models import create_model
from anyvit.scaling.shrink import LEVERS
from tests.backends.shapes import IMAGES, names, shaped, vit


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in names()])
def shape(request):
    return shaped(request.param)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_levers_make_answers_alike(shape, name):
    """At a batch size that the graph was not made of, too: token reduction and groups included."""
    runner = backend_named(name).prepare(shape, {}, IMAGES)
    with torch.inference_mode():
        expected = shape(IMAGES).softmax(1)
    assert expected.std() > 0.01
    torch.testing.assert_close(runner(IMAGES), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(runner(IMAGES[:3]), expected[:3], atol=1e-4, rtol=0)


def test_every_lever_is_among_the_shapes():
    assert {name.split()[0] for name in names()} == {"elastic", *(lever.name for lever in LEVERS)}


@pytest.mark.slow
def test_views_make_the_graph_of_their_copy():
    """No weights of the larger model stay in it, and nothing is stacked when it runs."""
    model = create_model("hydravit_tiny_patch2_8", num_classes=5).eval()
    view, copy = onnx_graph(model.subnetwork(1), IMAGES), onnx_graph(model.extract(1), IMAGES)
    made_of = [[node.op_type for node in onnx.load_from_string(graph).graph.node] for graph in (view, copy)]
    assert made_of[0] == made_of[1]
    assert len(view) < 1.1 * len(copy)


def test_a_graph_is_made_once_and_leaves_the_model_as_it_is():
    model = vit().train()
    graph = onnx_graph(model, IMAGES)
    assert onnx_graph(model, IMAGES[:1]) is graph
    assert all(module.training for module in model.modules())
    assert b"site-packages" not in graph


def test_refusals_are_known_without_trying():
    assert why_not_exported(vit()) is None
    assert why_not_exported(vit().to("meta")) == "it has no weights (they are on the meta device)"
    assert why_not_exported(vit().double()) == (
        "its weights are float64, and graphs are made from float32: use model.float()"
    )


class CountsItsImages(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5] * len(x)


class Branches(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]


@pytest.mark.slow
def test_what_cannot_be_exported_says_so_on_one_line():
    with pytest.raises(ModelError, match="for batches of 2 alone"):
        onnx_program(Probabilities(CountsItsImages()).eval(), IMAGES[:2])
    for name, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        with pytest.raises(ModelError, match=rf"^Branches does not run in {title}: .+") as caught:
            backend_named(name).prepare(Branches(), {}, IMAGES)
        assert "\n" not in str(caught.value)


def chatter():
    print("progress")
    logging.warning("Please consider")
    warnings.warn("deprecated", stacklevel=1)
    raise ZeroDivisionError


def test_quiet_gives_everything_back(capsys, caplog):
    root = logging.getLogger()
    before = list(root.handlers), root.manager.disable, list(warnings.filters)
    with pytest.raises(ZeroDivisionError), quiet():
        chatter()
    assert (list(root.handlers), root.manager.disable, list(warnings.filters)) == before
    assert capsys.readouterr().out == ""
    assert not caplog.records
