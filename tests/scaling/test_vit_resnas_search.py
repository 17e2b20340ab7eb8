"""The search among ViT-ResNAS's networks: it stays inside its band, never falls back, and always ends."""

import pytest
import torch

from anyvit.errors import BudgetError
from anyvit.models.vit_resnas_layout import macs, with_classes
from anyvit.models.vit_resnas_space import PUBLISHED, SHARES, Choices, space_of, stages
from anyvit.models.vit_resnas_super import ViTResNASSuper
from anyvit.scaling.design.supernet import Plan, evolve, into_band
from anyvit.scaling.design.vit_resnas import ResNASGenes, accuracy_of, band_below, genes_of

SUPER = PUBLISHED["super_tiny"]
SPACE = space_of(SUPER)
SMALL = with_classes(stages((16, 8, [(4, 32)] * 3), (24, 8, [(4, 48)] * 2)), 4)


def breadth(network_def):
    """A score that nobody has to train for: more channels early, more heads late."""
    heads = sum(place * entry[1][1] * entry[3] for place, entry in enumerate(network_def) if entry[0] == 1)
    return network_def[0][1] + 0.1 * heads


def test_the_search_stays_inside_its_band_and_never_falls_back():
    limit = round(0.37 * macs(SUPER))
    band = band_below(limit)
    plan = Plan(population=60, generations=8, parents=15, mutants=15, children=15)
    evolution = evolve(ResNASGenes(SUPER, SPACE, seed=0), band, breadth, plan)
    assert len(evolution.scores) == 60 + 8 * 30
    assert all(0.975 * limit <= macs(network_def) <= limit for network_def in evolution.scores)
    best = evolution.best_by_generation
    assert best == sorted(best)
    assert best[-1] > best[0]


def test_what_is_drawn_is_in_the_space():
    genes = ResNASGenes(SUPER, SPACE, seed=1)
    band = band_below(round(0.5 * macs(SUPER)))
    mother, father = (into_band(lambda: genes.draw(band), band, 100) for _ in range(2))
    for network_def in (mother, genes.mutate(mother), genes.cross(mother, father)):
        for gene, choices in zip(genes_of(network_def), SPACE, strict=True):
            assert all(gene[name] in getattr(choices, name) for name in gene if name != "layer")
            assert choices.layer or gene.get("layer", 1)
    child = genes_of(genes.cross(mother, father))
    for gene, *parents in zip(child, genes_of(mother), genes_of(father), strict=True):
        assert all(gene[name] in [parent[name] for parent in parents] for name in gene if name != "layer")


def test_an_absent_block_takes_along_the_next_ones_of_its_stage_that_may_go():
    space = tuple(
        Choices(choices.width, choices.attn, choices.mlp, () if index in (1, 5) or not choices.mlp else (16, 0))
        for index, choices in enumerate(space_of(SMALL))
    )
    genes = genes_of(SMALL)
    genes[2]["layer"] = 0
    exists = [entry[3] for entry in ResNASGenes(SMALL, space).network_of(genes) if entry[0] == 1]
    assert exists == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("share", [2.0, 0.01])
def test_what_cannot_be_reached_ends_with_what_is_nearest(share):
    band, genes = band_below(round(share * macs(SUPER))), ResNASGenes(SUPER, SPACE)
    with pytest.raises(BudgetError, match=r"^none of 3 subnetworks has .* MACs: the nearest has"):
        evolve(genes, band, breadth, Plan(population=2, attempts=3))


def test_a_band_that_few_draws_reach_is_reached_from_the_largest_network():
    band = band_below(macs(SUPER))
    genes = ResNASGenes(SUPER, SPACE)
    assert into_band(lambda: genes.draw(band), band, 50)


def test_a_network_of_one_width_is_drawn_too():
    narrow = ((0, 16), (2, 16, 4))
    genes = ResNASGenes(narrow, space_of(narrow))
    band = band_below(macs(((0, 14), (2, 14, 4)), 56), 56)
    assert into_band(lambda: genes.draw(band), band, 50) == ((0, 14), (2, 14, 4))


def test_the_accuracy_of_a_network_cut_out():
    torch.manual_seed(0)
    supernet = ViTResNASSuper(network_def=SMALL, img_size=28).eval()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    images = torch.randn(12, 3, 28, 28)
    part = ResNASGenes(SMALL, supernet.space, seed=3).mutate(SMALL)
    labels = supernet.extract(part)(images).argmax(1)
    batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    assert accuracy_of(supernet, part, batches) == 1
    assert accuracy_of(supernet, part, [(images, (labels + 1) % 4)]) == 0
    accuracy_of(supernet, part, batches, calibration=[images])
    torch.testing.assert_close(supernet.state_dict(), before, rtol=0, atol=0)


def test_the_published_space_of_the_small_and_medium_networks():
    space = space_of(PUBLISHED["super_small"], SHARES["small"])
    for name in ("small", "medium"):
        for entry, gene in zip(PUBLISHED[name], genes_of(PUBLISHED[name]), strict=True):
            stage = [choices for choices in space if bool(choices.mlp) == (entry[0] == 1)]
            assert all(any(size in getattr(c, key) for c in stage) for key, size in gene.items() if key != "layer")
