"""As-ViT: the network stage by stage, both measurements, rewards, updates of the policy, and a step of growth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference
from anyvit.models.asvit import AsViT, checkpoint_filter_fn
from anyvit.models.asvit_topology import Topology
from anyvit.scaling.design.asvit import Policy, Space, last_reward
from anyvit.scaling.design.growth import built, choose, larger
from anyvit.scaling.design.training_free import (
    Measurement,
    condition,
    curve_of,
    features_of,
    length_distortion,
    ntk,
    without_norms,
)
from tests.golden.vectors import Golden, Handler

WORDS = {"arch", "img_size", "stride", "hidden", "depths"}


def _words(golden: Golden) -> dict[str, object]:
    return {word: golden.config[word] for word in WORDS & golden.config.keys()}


def _model(golden: Golden) -> dict[str, object]:
    model, images = load_reference("asvit", golden.weights, _words(golden)), golden.inputs["x"]
    assert isinstance(model, AsViT)
    with torch.no_grad():
        found = {f"out/{name}": value for name, value in _stages(model, images).items()}
    return found | {
        "n_params": count_params(model),
        "flops_reference_counter": _reference_macs(model.topology, model.img_size, model.num_classes),
        "num_classes": model.num_classes,
        "dims": [*model.topology.widths],
        "heads": [*model.topology.heads_by_stage],
        "windows": _windows(model),
    }


def _stages(model: AsViT, images: Tensor) -> dict[str, Tensor]:
    x = model.embed(images)
    found = {"patch_embed": x.flatten(1, 2)}
    for place, layer in enumerate(model.layers):
        x = layer(x)
        found[f"stage{place}_blocks"] = x.flatten(1, 2)
        x = layer.downsample(x)
        found[f"stage{place}"] = x.flatten(1, 2)
    normalized = model.forward_features(images)
    return found | {
        "feature_prenorm": features_of(model)(images),
        "pooled": normalized.mean(dim=(1, 2)),
        "logits": model(images),
    }


def _windows(model: AsViT) -> list[int]:
    grids = model.topology.grids(model.img_size, model.patch_embed.stride)
    return [grid // stage.split for grid, stage in zip(grids, model.topology.stages, strict=True)]


def _reference_macs(topology: Topology, image_size: int, num_classes: int) -> float:
    """The reference's counter adds the bias of the patches and, for both pooled features, a sum and a division."""
    with torch.device("meta"):
        model = AsViT(topology=topology, img_size=image_size, num_classes=num_classes).eval()
    grids, widths = topology.grids(image_size), topology.widths
    return float(count_macs(model, image_size) + widths[0] * grids[0] ** 2 + 2 * widths[-1] * (grids[-1] ** 2 + 1))


def _as_stored(golden: Golden) -> AsViT:
    """In float64; what the file leaves out does not count."""
    words = _words(golden)
    topology = Topology.parse(words.pop("arch")).sized(words.pop("depths"), words.pop("hidden"))
    weights = checkpoint_filter_fn(golden.weights, torch.nn.Identity())
    model = AsViT(topology=topology, num_classes=len(weights.get("head.weight", ())), **words).double().eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("norm" in name or "head" in name or "pre_logits" in name for name in missing)
    return model


def _length_distortion(golden: Golden) -> dict[str, object]:
    features = features_of(without_norms(_as_stored(golden)))
    theta, basis = golden.inputs["theta"], golden.inputs["basis"]
    shape, chunk = golden.inputs["curve_input"].shape[1:], golden.config["batch_curve"]
    points = torch.stack([theta.cos(), theta.sin()], dim=1) @ basis.T
    torch.testing.assert_close(points.view(-1, *shape), golden.inputs["curve_input"])
    assert len(theta) == golden.config["n_interp"]
    curve = curve_of(features, basis, theta, shape, second=True, chunk=chunk)
    return {
        "out/features": curve.features,
        "out/speed": curve.speed,
        "out/LE_sum": length_distortion(features, basis, theta, shape),
        "out/LG_sum": curve.gauss_length(strict_reference=True, chunk=chunk),
        "out/kappa_sum": curve.curvature(),
    }


def _ntk(golden: Golden) -> dict[str, object]:
    model, images = _as_stored(golden), golden.inputs["x"]
    kernel = ntk(model, features_of(model), images)
    names = [name for name, p in model.named_parameters() if "weight" in name]
    features_of(model)(images).sum().backward()
    used = [name for name in names if model.get_parameter(name).grad is not None]
    found = {
        "batch": len(images),
        "out/ntk": kernel,
        "out/condition": [condition(kernel)],
        "out/eigenvalues": torch.linalg.eigvalsh(kernel)[golden.tensors["out/eigenvalues"].argsort().argsort()],
        "params_used": [name for name in golden.config["params_used"] if _ours(name) in used],
    }
    assert len(used) == len(found["params_used"])
    return found


def _ours(name: str) -> str:
    (ours,) = checkpoint_filter_fn({name: torch.zeros(())}, torch.nn.Identity())
    return ours


def _reward_sequence(golden: Golden) -> dict[str, object]:
    types = golden.config["reward_types"]
    assert {kind: golden.config["sign"][kind] for kind in types} == {
        kind: {"ntk": -1, "exp": 1}[kind] for kind in types
    }
    columns = (golden.inputs[name].tolist() for name in ("ntk", "exp", "bad"))
    history = [_measurement(types, *row) for row in zip(*columns, strict=True)]
    memory = golden.config["buffer_size"]
    return {"out/reward": [last_reward(history[: n + 1], memory=memory) for n in range(len(history))]}


def _measurement(types: Sequence[str], ntk: float, exp: float, bad: int) -> Measurement:
    """What was not measured is the same for all."""
    condition = (float("inf") if bad else ntk) if "ntk" in types else None
    return Measurement(exp if "exp" in types else 1.0, condition)


def _reinforce_steps(golden: Golden) -> dict[str, object]:
    space = _space(golden.config["search_space"])
    sizes = [len(choices) for choices in space.dimensions]
    policy = Policy(sizes, golden.inputs["logits0"], lr=golden.config["lr"], momentum=golden.config["ema"])
    archs, baselines, chances, logits = [], [], [], []
    for actions, reward in zip(golden.inputs["actions"].tolist(), golden.inputs["rewards"].tolist(), strict=True):
        archs.append(_short(space.topology(actions)))
        chances.append(policy.log_prob(actions).item())
        policy.update(actions, reward)
        baselines.append(policy.baseline)
        logits.append(policy.logits.detach().clone())
    return {
        "archs": archs,
        "final": _short(space.topology(policy.best())),
        "out/baseline": baselines,
        "out/log_prob": torch.tensor(chances),
        "out/logits": torch.stack(logits),
    }


def _space(choices: dict[str, Sequence[int]]) -> Space:
    def of(name: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(values) for key, values in choices.items() if key.startswith(name))

    space = Space(of("KERNEL"), of("WINDOW"), of("FFN_EXP"), *of("HEAD"))
    assert [*space.dimensions] == [tuple(values) for values in choices.values()]
    return space


def _short(topology: Topology) -> str:
    stages = [f"{stage.kernel},{stage.split},{stage.expansion}" for stage in topology.stages]
    return "|".join([*stages, str(topology.heads)])


def _grow_step(golden: Golden) -> dict[str, object]:
    costs = []
    for case in golden.config["cases"]:
        start = Topology.parse(case["arch"]).sized(case["depth"], case["hidden"])
        grown = larger(start, case["ratios"])
        counted = [(probe, _params(built(probe))) for probe in grown]
        candidates = [(probe, params) for probe, params in counted if params <= 1e6 * case["param_limit_M"]]
        assert [[probe.hidden, [*probe.depths]] for probe, _ in candidates] == case["evaluated"]
        measurements = [_measurement(case["reward_types"], **measured) for measured in case["measured"]]
        probe, params = candidates[choose(measurements, strict_reference=True)]
        assert [[*probe.depths], probe.hidden] == case["chosen"]
        assert params / 1e6 == case["params_M"]
        assert _reference_macs(built(probe), 224, 1000) / 1e9 == case["flops_G"]
        assert built(probe).hidden == golden.config["scale_width"] * probe.hidden
        costs.append(params / 1e6)
    return {"scale_width": golden.config["scale_width"], "out/params_M": costs}


def _params(topology: Topology) -> int:
    with torch.device("meta"):
        return count_params(AsViT(topology=topology))


HANDLERS = {
    ("asvit", "model"): Handler(WORDS, _model),
    ("asvit", "length_distortion"): Handler(
        WORDS | {"n_interp", "batch_curve"},
        _length_distortion,
        {"out/LE": 1e-9, "out/speed": 1e-9, "out/features": 1e-9, "out/LG": 1e-6, "out/kappa": 1e-6},
    ),
    ("asvit", "ntk"): Handler(WORDS, _ntk, {"out/ntk": 1e-10, "out/condition": 1e-6}),
    ("asvit", "reward_sequence"): Handler({"reward_types", "buffer_size", "sign"}, _reward_sequence, {"out": 1e-9}),
    ("asvit", "reinforce_steps"): Handler({"search_space", "lr", "ema", "logit_order"}, _reinforce_steps),
    ("asvit", "grow_step"): Handler({"cases"}, _grow_step, {"out": 1e-12}),
}
