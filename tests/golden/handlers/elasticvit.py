"""ElasticViT: the super-network's stages, its authors' cost and preference, the losses, the walk, the calibration."""

import json
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anyvit.deploy.reference import load_reference
from anyvit.models.elasticvit_layout import checkpoint_filter_fn
from anyvit.models.elasticvit_macs import macs
from anyvit.models.elasticvit_space import PUBLISHED, Arch
from anyvit.models.elasticvit_super import ElasticSuperViT
from anyvit.training.alpha_divergence import adaptive_divergence, alpha_divergence, sharpened
from anyvit.training.batch_norm import recalibrate
from anyvit.training.objectives.banks import Banks, BankWalk
from tests.golden.vectors import Golden, Handler

WORDS = {
    *("stage", "max_channels", "min_channels", "max_depth", "min_depth", "downsampling", "se", "res", "head_dims"),
    *("num_classes", "classifer_head_dim", "classifier_mul", "conv_ratio", "mlp_ratio", "v_scale", "qk_scale"),
    *("pre_norm", "norm", "act", "stem_channels", "stem_depths"),
}


def _build(golden: Golden) -> ElasticSuperViT:
    words = {word: golden.config[word] for word in WORDS & golden.config.keys()}
    model = load_reference("elasticvit", golden.weights, words)
    assert isinstance(model, ElasticSuperViT)
    return model


@torch.no_grad()
def _supernet(golden: Golden) -> dict[str, object]:
    model, images = _build(golden), golden.inputs["x"]
    found: dict[str, object] = {"n_params": sum(p.numel() for p in model.parameters())}
    costs = []
    for number, arch in enumerate(golden.config["archs"]):
        model.set_arch(arch)
        costs.append(macs(model.active, model.space, model.num_classes, strict_reference=True) / 1e6)
        _, (_, *maps) = model.forward_intermediates(images)
        for place, (stage, values) in enumerate(zip(model.space.stages[1:], maps, strict=True)):
            tokens = values if stage.is_conv else values.flatten(2).transpose(1, 2)
            found[f"out/arch{number}/stage{place}"] = tokens
        found[f"out/arch{number}/logits"] = logits = model(images)
        torch.testing.assert_close(model.extract()(images), logits, rtol=1e-5, atol=1e-5)
    found = {name: value for name, value in found.items() if name in golden.tensors or name == "n_params"}
    return found | {"flops_M": pytest.approx(costs, abs=1e-9)}


def _flops_and_preference(golden: Golden) -> dict[str, object]:
    config = golden.config
    minimums = tuple((1e6 * int(up_to), Arch.of(arch)) for up_to, arch in config["min_archs"].items())
    banks = Banks(PUBLISHED, (1e8,), 2e7, minimums=minimums)
    archs = [PUBLISHED.checked(arch) for arch in config["sampled_archs"]]
    assert [banks.cost_of(arch) / 1e6 for arch in archs] == pytest.approx(golden.inputs["flops_M_uniform"].tolist())
    with torch.device("meta"):
        params = sum(p.numel() for p in ElasticSuperViT().parameters())

    def scores(anchor: Arch) -> list[float]:
        return [banks.preference(arch, anchor) / 1e6 for arch in archs]

    def named(arch: list[object]) -> dict[str, object]:
        return {"arch": arch, "flops_M": pytest.approx(banks.cost_of(PUBLISHED.checked(arch)) / 1e6, abs=1e-9)}

    return {
        "out/score_vs_T1": scores(PUBLISHED.checked(config["anchor"])),
        "out/score_vs_min": scores(PUBLISHED.smallest),
        "min_arch": _plain(PUBLISHED.smallest),
        "select_min_arch": {target: _plain(banks.least(1e6 * int(target))) for target in config["select_min_arch"]},
        "named": {name: named(value["arch"]) for name, value in config["named"].items()},
        "n_params_supernet": params,
    }


def _plain(arch: Arch) -> object:
    return json.loads(json.dumps(arch))


def _losses(golden: Golden) -> dict[str, object]:
    config, target = golden.config, golden.inputs["target_probs"]
    clip, alphas = config["iw_clip"], (config["alpha_min"], config["alpha_max"])
    teachers = [golden.inputs[name] for name in sorted(golden.inputs) if name.startswith("teacher_logits")]
    taught = sharpened(teachers, config["teacher_temperature"])
    found: dict[str, object] = {"out/teacher_probs": taught}

    def with_gradient(loss, name: str, gradient: str) -> None:
        logits = golden.inputs["student_logits"].clone().requires_grad_()
        found[f"out/{name}"] = value = loss(logits)
        value.backward()
        found[f"out/{gradient}"] = logits.grad

    with_gradient(lambda logits: adaptive_divergence(logits, target, alphas, clip), "adaptive_loss", "adaptive_grad")
    with_gradient(lambda logits: F.cross_entropy(logits, taught), "soft_ce", "soft_ce_grad")
    for name in golden.under("out"):
        if match := re.fullmatch(r"fdiv_(.+)/loss", name):
            loss, term = alpha_divergence(golden.inputs["student_logits"], target, float(match[1]), clip)
            found |= {f"out/fdiv_{match[1]}/loss": loss, f"out/fdiv_{match[1]}/grad_loss": term}
    return found


def _bank_walk(golden: Golden) -> dict[str, object]:
    walk = BankWalk(golden.config["num_banks"], golden.config["python_random_seed"], int(golden.inputs["start"]))
    return {"out/bank_ids": [walk.after(moves) for moves in range(1, golden.config["steps"] + 1)]}


@torch.no_grad()
def _bn_calibration(golden: Golden) -> dict[str, object]:
    named = re.search(r"\S+\.safetensors", golden.config["weights"])
    assert named
    path = golden.path.with_name(named[0])
    if not path.exists():
        pytest.skip(f"{named[0]} is not beside it")
    model, images = _build(Golden.read(path)), golden.inputs["x"]
    model.set_arch(golden.config["arch"])
    found: dict[str, object] = {"out/logits_before": model(images)}
    recalibrate(model, golden.inputs["calib_batches"])
    found["out/logits_after"] = model(images)
    return found | {f"out/{name}": _buffer(model, name) for name in golden.under("out") if "running" in name}


def _buffer(model: ElasticSuperViT, name: str) -> Tensor:
    return model.get_buffer(next(iter(checkpoint_filter_fn({name: torch.empty(0)}))))


_COSTS = {"python_random_seed", "sampled_archs", "anchor", "min_archs"}
_LOSSES = {"alpha_min", "alpha_max", "iw_clip", "teacher_temperature"}

HANDLERS = {
    ("elasticvit", "supernet"): Handler(WORDS | {"archs"}, _supernet, {"out": 1e-4}),
    ("elasticvit", "flops_and_preference"): Handler(_COSTS, _flops_and_preference, {"out": 1e-9}),
    ("elasticvit", "losses"): Handler(_LOSSES, _losses),
    ("elasticvit", "bank_walk"): Handler({"python_random_seed", "num_banks", "steps"}, _bank_walk),
    ("elasticvit", "bn_calibration"): Handler({"arch", "weights"}, _bn_calibration, {"out": 1e-4}),
}
