"""RePaViT's variants have the published sizes, learn, and are read in the reference's layout, merged or not."""

import onnxruntime
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from anyvit.costs.counts import count_macs, count_params
from anyvit.deploy.reference import load_reference
from anyvit.errors import ModelError, SettingError
from anyvit.models import create_model
from anyvit.models.layers.channel_idle import idle_mlps, idle_share, merged
from anyvit.models.repavit import RePaPoolFormer, RePaSwin, RePaViT, idle_ratios
from tests.models.test_channel_idle import trained

PUBLISHED = {  # by model and idle ratio: million parameters, and GMACs with and without attention; trained, merged
    ("repavit_tiny_patch16_224", 0.75): (5.736, 3.494, 1.254, 0.818, 1.075, 0.639),
    ("repavit_tiny_patch16_224", 0.5): (5.736, 4.381, 1.254, 0.992, 1.075, 0.813),
    ("repavit_small_patch16_224", 0.75): (22.088, 13.181, 4.599, 2.856, 4.241, 2.498),
    ("repavit_small_patch16_224", 0.5): (22.088, 16.724, 4.599, 3.553, 4.241, 3.195),
    ("repavit_base_patch16_224", 0.75): (86.642, 51.133, 17.564, 10.592, 16.849, 9.877),
    ("repavit_large_patch16_224", 0.75): (304.524, 178.376, 61.555, 36.766, 59.647, 34.859),
    ("repavit_huge_patch16_224", 0.75): (632.528, 369.852, 127.315, 75.673, 124.136, 72.493),
}
SWIN = {"tiny": (28.3, 17.5, 4.4, 2.6), "small": (49.7, 29.9, 8.6, 5.1), "base": (87.9, 52.8, 15.2, 9.0)}


def forms(name, **arguments):
    """Trained and merged, without memory."""
    with torch.device("meta"):
        model = create_model(name, **arguments).eval()
        return model, merged(model)


def heavy(names):
    """Models of many layers take seconds to count."""
    return [
        pytest.param(*name, marks=pytest.mark.slow) if {"large", "huge"} & {*name[0].split("_")} else name
        for name in names
    ]


@pytest.mark.parametrize(("name", "idle_ratio"), heavy(PUBLISHED))
def test_parameters_and_macs_are_the_published_ones(name, idle_ratio):
    pair = forms(name, idle_ratio=idle_ratio)
    attention = 2 * 197**2 * pair[0].embed_dim * len(pair[0].blocks)  # its two products, which the paper does not see
    macs = [count_macs(model, 224) for model in pair]
    figures = [
        *(count_params(model) / 1e6 for model in pair),
        *(count / 1e9 for count in macs),
        *((count - attention) / 1e9 for count in macs),
    ]
    assert [round(figure, 3) for figure in figures] == list(PUBLISHED[name, idle_ratio])


@pytest.mark.parametrize(("idle_ratio", "million"), [(0.25, 79.463), (0.5, 65.298), (1, 36.968)])
def test_parameters_by_idle_ratio(idle_ratio, million):
    _, smaller = forms("repavit_base_patch16_224", idle_ratio=idle_ratio)
    assert round(count_params(smaller) / 1e6, 3) == million


@pytest.mark.parametrize(
    "size", ["tiny", pytest.param("small", marks=pytest.mark.slow), pytest.param("base", marks=pytest.mark.slow)]
)
def test_swin_has_the_published_sizes(size):
    pair = forms(f"repaswin_{size}_patch4_window7_224")
    figures = [*(count_params(model) / 1e6 for model in pair), *(linear_macs(model) / 1e9 for model in pair)]
    assert figures == pytest.approx(SWIN[size], abs=0.1)


def linear_macs(model):
    """Of an image, without the two products of attention in each window, of 49 tokens."""
    sizes = [(56 // 2**stage, len(layer.blocks), layer.blocks[0].dim) for stage, layer in enumerate(model.layers)]
    return count_macs(model, 224) - sum(2 * 49 * side**2 * depth * width for side, depth, width in sizes)


def test_the_plain_form_is_timms_shell():
    model = create_model("repavit_tiny_patch2_8", num_classes=10)
    assert isinstance(model, VisionTransformer)
    assert model.patch_embed.proj.bias is None
    assert {block.norm1.eps for block in model.blocks} == {block.mlp.norm1.eps for block in model.blocks} == {1e-5}
    assert model.norm_pre.eps == model.norm.eps == 1e-6
    features = timm.create_model("repavit_tiny_patch2_8", features_only=True)(torch.randn(2, 3, 8, 8))
    assert [tuple(map_.shape) for map_ in features] == [(2, 64, 4, 4)] * 3


def test_linear_ratios_rise_and_spare_the_last_block():
    assert idle_ratios(0.6, "linear", 4) == pytest.approx([0.4667, 0.7333, 1.0, 0.0], abs=1e-4)
    model = create_model("repavit_tiny_patch2_8", idle_ratio=0.6, schedule="linear")
    assert [mlp.active for mlp in idle_mlps(model)] == [137, 69, 0, 256]
    with pytest.raises(SettingError, match=r"^unknown schedule 'lineal'\. Did you mean 'linear'\?"):
        RePaViT(depth=1, schedule="lineal")
    with pytest.raises(SettingError, match=r"^feature_norm must be one of batch, layer: got 'none'$"):
        RePaSwin(depths=(1,), num_heads=(1,), feature_norm="none")


def reference_of(model, **renamed):
    """Our weights of a plain ViT in the reference's layout."""
    state = {name.replace(".norm1.", ".attn.norm.") if ".mlp." not in name else name: t for name, t in model.items()}
    for old, new in renamed.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    return state


def test_reference_without_config_but_the_idle_ratio():
    model = trained(RePaViT(img_size=32, embed_dim=128, depth=2, num_heads=2, num_classes=3, idle_ratio=0.7)).float()
    images = torch.randn(2, 3, 32, 32)
    loaded = load_reference("repavit", {"model": reference_of(model.state_dict())}, {"idle_ratio": 0.7})
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(SettingError, match=r"^the weights do not tell idle_ratio, the share of idle channels: give it"):
        load_reference("repavit", reference_of(model.state_dict()))


@pytest.mark.parametrize("words", [{"feature_norm": "LayerNorm", "idle_ratio": 0.5}, {"channel_idle": False}])
def test_reference_with_layer_norm(words):
    idle_ratio = words.get("idle_ratio", 0)
    model = RePaViT(
        img_size=32, embed_dim=64, depth=1, num_heads=1, num_classes=3, idle_ratio=idle_ratio, feature_norm="layer"
    )
    state = {
        name.replace(".mlp.norm1.", ".mlp.norm."): t for name, t in reference_of(trained(model).state_dict()).items()
    }
    loaded = load_reference("repavit", state, words)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.double()(images.double()), model.double()(images.double()))
    assert idle_share(loaded) == idle_ratio


def test_our_own_weights_pass_through_the_layout(tmp_path):
    from safetensors.torch import save_file

    from anyvit.deploy.reference import load_weights

    for model in (
        RePaViT(img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=3, init_values=0.1),
        RePaSwin(img_size=32, embed_dim=12, depths=(1, 2), num_heads=(1, 2), window_size=4, num_classes=3),
        RePaPoolFormer(depths=(1, 1), dims=(12, 16), num_classes=3),
    ):
        trained(model).float()
        save_file(model.state_dict(), tmp_path / "own.safetensors")
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        assert load_weights(model, tmp_path / "own.safetensors") == ()
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"idle": 0.5}, SettingError, "config: unknown word 'idle'"),
        ({"feature_norm": "GroupNorm"}, SettingError, "feature_norm 'GroupNorm' is not supported for a vit: BatchNorm"),
        ({"idle_ratio": 2}, SettingError, "an idle ratio must be a number from 0 to 1: got 2"),
        ({"idle_ratio": 0.5, "depth": 3}, ModelError, "these weights are not those of the model described"),
    ],
)
def test_wrong_references_are_refused(words, error, message):
    state = reference_of(RePaViT(img_size=32, embed_dim=64, depth=1, num_heads=1).state_dict())
    with pytest.raises(error, match=f"^{message}"):
        load_reference("repavit", state, words)
    state.pop("pos_embed")
    with pytest.raises(ModelError, match=r"^these are not the weights of a whole vit: 'pos_embed' is missing$"):
        load_reference("repavit", state)
    with pytest.raises(ModelError, match=r"^these are no RePaViT weights: none of blocks\.0\.attn"):
        load_reference("repavit", {"head.weight": torch.zeros(2, 2)})


@pytest.mark.slow
def test_a_merged_model_exports_to_onnx(tmp_path):
    model = trained(create_model("repavit_tiny_patch2_8", num_classes=10)).float()
    images = torch.randn(2, 3, 8, 8)
    smaller = merged(model)
    torch.onnx.export(smaller, (images,), tmp_path / "merged.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "merged.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_learns_the_digits_and_keeps_what_it_learned():
    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32) / 8 - 1)[:, None].expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1400], order[1400:]
    model = create_model("repavit_tiny_patch2_8", num_classes=10)
    epochs, steps = 20, len(train) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64)[:steps]:
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        answers = [form(images[test]) for form in (model, merged(model))]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    right = [(answer.argmax(1) == labels[test]).float().mean().item() for answer in answers]

    assert right[0] == right[1] > 0.85, right
