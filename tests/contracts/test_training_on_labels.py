"""What training on labels is made of: layer-wise rates, LARS, schedules, mixing, freezing, shares of labels, and heads
of dense tasks, each against another computation of the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from mim_core import randomness
from mim_core.data.labelled import LabelledSource, share_of
from mim_core.data.source import DataSource, Labelled
from mim_core.errors import MimError
from mim_core.evaluation.representation import cka, rank_me, uniformity
from mim_core.interop.importers import build
from mim_core.methods.classifier import shares_of, top_share
from mim_core.methods.layers import layer_of, layer_scale
from mim_core.methods.mixing import Mix, draw_mix, mixed, mixed_labels
from mim_core.parts.neck import FourLevels, SimplePyramid
from mim_core.parts.upernet import IGNORED, FcnHead, UperNet, pixel_loss
from mim_core.recipes.config import Part, TrainConfig
from mim_core.training.lars import Lars
from mim_core.training.learning_rate import learning_rate
from mim_core.training.optimizer import make_optimizer, set_rate
from timm.models import create_model
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

TRAIN = TrainConfig(batch_size=8, lr_batch=8, weight_decay=0.05, base_lr=0.1, warmup_epochs=0.0, epochs=10.0)


def classifier(**options):
    encoder = {"width": 16, "depth": 4, "heads": 2, **options.pop("encoder", {})}
    return build(
        tokenizer=Part.of("core:patch", modality="image", size=(8, 8), patch=(4, 4), channels=3),
        encoder=Part.of("core:vit", **encoder),
        method=Part.of("core:classifier", classes=3, **options),
    )


def batch(rows=4):
    torch.manual_seed(0)
    key = torch.arange(rows)
    return {"image": torch.randn(rows, 3, 8, 8), "label": torch.arange(rows) % 3, "key": key}


# ---- rates -----------------------------------------------------------------------------------------------------------


def test_layers_are_those_of_timm():
    model = create_model("vit_tiny_patch16_224", depth=3, num_classes=5, global_pool="avg", fc_norm=True)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in param_groups_layer_decay(model, layer_decay=0.65, weight_decay=0.05):
        for parameter in group["params"]:
            assert layer_scale(names[id(parameter)], 3, 0.65) == pytest.approx(group["lr_scale"]), names[id(parameter)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tokenizer.proj.weight", 0),
        ("encoder.cls_token", 0),
        ("encoder.position.table", 0),
        ("encoder.blocks.0.norm1.weight", 1),
        ("encoder.blocks.11.mlp.fc2.bias", 12),
        ("encoder.norm.weight", 13),
        ("fc_norm.weight", 13),
        ("head.0.weight", 13),
        ("decoder.blocks.0.norm1.weight", 13),
        ("backbone.net.blocks.3.residual.conv1.weight", 13),
    ],
)
def test_layer_of(name, layer):
    assert layer_of(name, 12) == layer


def test_rates_fall_from_head_to_input():
    method = classifier()
    optimizer = make_optimizer(method, replace(TRAIN, layer_decay=0.5), torch.device("cpu"))
    set_rate(optimizer, 1.0)
    names = {id(p): name for name, p in method.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["head.0.weight"] == 1.0
    assert rates["encoder.blocks.3.attn.qkv.weight"] == 0.5
    assert rates["encoder.blocks.0.attn.qkv.weight"] == rates["encoder.blocks.0.attn.qkv.bias"] == 0.5**4
    assert rates["tokenizer.proj.weight"] == 0.5**5
    assert len(rates) == len(list(method.parameters()))


def test_rates_by_layer_need_blocks():
    method = classifier()
    method.encoder.blocks = nn.Identity()
    with pytest.raises(MimError, match="layer-decay"):
        make_optimizer(method, replace(TRAIN, layer_decay=0.5), torch.device("cpu"))


def test_positions_have_no_decay_where_tokens_have_none():
    method = classifier(encoder={"position": "learned"})
    for tokens in (True, False):
        optimizer = make_optimizer(method, replace(TRAIN, decay_tokens=tokens), torch.device("cpu"))
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays[id(method.encoder.position.table)] == (0.05 if tokens else 0.0)
        assert decays[id(method.head[0].weight)] == 0.05


def test_lars_by_hand():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    optimizer = Lars([{"params": [weight], "weight_decay": 0.1}, {"params": [bias]}], lr=0.5)
    kept, buffers = [weight.detach().clone(), bias.detach().clone()], [torch.zeros(3, 4), torch.zeros(3)]
    for _ in range(3):
        grads = [torch.randn(3, 4), torch.randn(3)]
        weight.grad, bias.grad = grads[0].clone(), grads[1].clone()
        optimizer.step()
        first = grads[0] + 0.1 * kept[0]
        changes = [first * 0.001 * kept[0].norm() / first.norm(), grads[1]]
        buffers = [0.9 * buffer + change for buffer, change in zip(buffers, changes, strict=True)]
        kept = [value - 0.5 * buffer for value, buffer in zip(kept, buffers, strict=True)]
    assert torch.allclose(weight, kept[0], atol=1e-6)
    assert torch.allclose(bias, kept[1], atol=1e-6)


def test_lars_leaves_an_update_out():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([weight], lr=0.5)
    weight.grad = torch.full((2, 2), torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))
    assert float(optimizer.state[weight]["step"]) == 0


def test_lars_without_weights_or_gradient():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Lars([weight], lr=1.0)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight, -torch.ones(2, 2))  # the ratio is 1


def test_a_table_of_rates_has_its_peak_twice():
    train = TrainConfig(batch_size=1, lr_batch=1, base_lr=1.0, epochs=4.0, warmup_epochs=2.0, schedule="table")
    rates = [learning_rate(step, 3, train) for step in range(12)]
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[6] == 1.0
    assert rates[-1] > 0


# ---- mixing ----------------------------------------------------------------------------------------------------------


def test_a_box_is_taken_from_the_partner():
    values = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    mix = Mix(0.3, (1, 3, 0, 4))
    found = mixed(values, mix)
    assert mix.left((4, 4)) == 0.5
    assert torch.equal(found[0, 0], torch.tensor([[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]))
    assert torch.equal(mixed_labels(torch.tensor([0, 2]), 3, 0.5)[0], torch.tensor([0.5, 0, 0.5]))


def test_shares_are_drawn_and_repeat():
    drawn = [draw_mix(key, 0.8, 1.0, 1.0, (32, 24)) for key in range(400)]
    again = [draw_mix(key, 0.8, 1.0, 1.0, (32, 24)) for key in range(400)]
    assert drawn == again
    boxes = [mix for mix in drawn if mix.box is not None]
    assert 140 < len(boxes) < 260
    assert all(0 <= b.box[0] <= b.box[1] <= 32 and 0 <= b.box[2] <= b.box[3] <= 24 for b in boxes)
    shares = torch.tensor([mix.share for mix in drawn])
    assert 0.4 < float(shares.mean()) < 0.6
    assert sum(draw_mix(key, 0.8, 0.0, 0.25, (8, 8)) is None for key in range(400)) > 250


def test_a_mixed_batch_has_soft_answers_in_training_alone():
    method = classifier(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    method.train()
    prepared = method.prepare(batch())
    assert prepared.answers.shape == (4, 3)
    assert torch.allclose(prepared.answers.sum(dim=1), torch.ones(4))
    outcome = method(prepared)
    log = outcome.prediction.log_softmax(dim=1)
    smooth = prepared.answers * 0.9 + 0.1 / 3
    assert torch.allclose(outcome.loss, -(smooth * log).sum(dim=1).mean(), atol=1e-6)
    assert method.eval().prepare(batch()).answers.dtype == torch.int64


def test_weights_of_classes_go_by_the_shares():
    method = classifier(mixup=1.0, class_weights=(1.0, 2.0, 4.0)).train()
    prepared = method.prepare(batch())
    outcome = method(prepared)
    each = F.cross_entropy(outcome.prediction, prepared.answers, reduction="none")
    weight = prepared.answers @ torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(outcome.loss, (each * weight).mean())


def test_points_are_not_mixed():
    with pytest.raises(MimError, match="mixup and cutmix at 0"):
        build(
            tokenizer=Part.of("pointcloud:groups", points=32, groups=4, size=4, hidden=(4, 4, 8)),
            encoder=Part.of("core:vit", width=16, depth=1, heads=2, position="coordinates"),
            method=Part.of("core:classifier", classes=3, mixup=0.8),
        )


# ---- heads and freezing ----------------------------------------------------------------------------------------------


def test_frozen_blocks_stay():
    method = classifier(freeze=2)
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("tokenizer.", "encoder.blocks.0.", "encoder.blocks.1.")) for name in trained)
    assert "encoder.cls_token" not in trained
    assert {"encoder.blocks.2.norm1.weight", "encoder.norm.weight", "head.0.weight"} <= trained
    probe = classifier(freeze=-1, head="probe", pool="prefix")
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {"head.1.weight", "head.1.bias"}
    with pytest.raises(MimError, match="4 blocks"):
        classifier(freeze=9)


def test_a_norm_behind_the_pool():
    method = classifier(norm="pooled").eval()
    sample = batch()
    tokens = method.encoded(method.prepare(sample)).tokens
    wanted = method.head(method.fc_norm(tokens.mean(dim=1)))
    assert torch.allclose(method(method.prepare(sample)).prediction, wanted, atol=1e-6)
    assert isinstance(method.encoder.norm, nn.Identity)
    assert method.replaces == ("encoder.norm.",)
    without = classifier(norm="pooled", encoder={"final_norm": False})  # as weights that were fine-tuned so have it
    assert isinstance(without.fc_norm, nn.LayerNorm)
    assert without.replaces == ()
    with pytest.raises(MimError, match="for one pooled vector"):
        classifier(norm="pooled", pool="mean-max")


def test_the_class_token_has_a_position():
    method = classifier(pool="prefix", encoder={"class_position": True, "position": "learned"})
    plain = classifier(pool="prefix", encoder={"position": "learned"})
    plain.load_state_dict(method.state_dict(), strict=False)
    sample = batch()
    assert torch.equal(method(method.prepare(sample)).prediction, plain(plain.prepare(sample)).prediction)
    with torch.no_grad():
        method.encoder.prefix_position.add_(0.5)
        plain.encoder.cls_token.add_(0.5)
    one, other = (m(m.prepare(sample)).prediction for m in (method, plain))
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.equal(method.encoder.timm_weights()["pos_embed"][:, :1], method.encoder.prefix_position)


def test_scores_of_views():
    logits = torch.tensor([[[4.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]]])
    assert int(shares_of(logits).mean(dim=1).argmax()) == 1
    assert int(logits.mean(dim=1).argmax()) == 0
    assert top_share(torch.tensor([[0.1, 0.5, 0.4]]), torch.tensor([2]), 1) == 0.0
    assert top_share(torch.tensor([[0.1, 0.5, 0.4]]), torch.tensor([2]), 2) == 1.0


# ---- a share of the labels -------------------------------------------------------------------------------------------


class Counted(torch.utils.data.Dataset):
    """Items that are their own numbers."""

    def __init__(self, count):
        self.count = count

    def __getitem__(self, index):
        return range(self.count)[index]


class Numbers(DataSource):
    """Items that are numbers, with three uneven classes."""

    @dataclass(frozen=True)
    class Config:
        labels: float = 0.0

    def labelled(self, split):
        labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
        names = tuple(f"{i}.png" for i in range(100))
        return Labelled(split, labels, ("a", "b", "c"), Counted(100), names=names)

    def read_labelled(self, index, key):
        return {"x": torch.tensor([float(index), float(key % 7)]), "label": self.labelled("train").labels[index]}

    def files_of(self, split="pretrain"):
        return ((f"{i}.png",) for i in range(100))


def source(amount, repeats=1):
    return LabelledSource(Numbers(Numbers.Config(amount), {"x": (2,)}), repeats)


@pytest.mark.parametrize(("amount", "counts"), [(0, [60, 30, 10]), (20, [12, 6, 2]), (0.1, [6, 3, 1]), (3, [1, 1, 1])])
def test_a_share_keeps_the_classes(amount, counts):
    found = source(amount)
    assert found.labelled("train").labels.bincount().tolist() == counts
    assert len(found) == sum(counts)
    assert len(source(amount).labelled("test").labels) == 100
    for index in range(len(found)):
        own = found.read(index, 3)
        assert own["label"] == found.split.labels[index]
        assert found.name_of(index) == f"{int(own['x'][0])}.png" == list(found.files_of())[index][0]
        assert found.split.items[index] == int(own["x"][0])


def test_a_smaller_share_is_part_of_a_larger():
    small, large = ({source(n).name_of(i) for i in range(n)} for n in (10, 40))
    assert small < large
    assert small == {source(10).name_of(i) for i in range(10)}


@pytest.mark.parametrize("amount", [-1, 101, 2.5, 2])
def test_shares_that_cannot_be(amount):
    with pytest.raises(MimError, match=r"--data\.labels"):
        source(amount)


def test_views_of_chosen_samples():
    labels = torch.tensor([0, 0, 1, 1])
    split = Labelled("train", labels, ("a", "b"), Counted(12), views=3, names=("p", "q", "r", "s"))
    found, chosen = share_of(split, 2)
    items = [found.items[number] for number in range(6)]
    assert items == [3 * int(c) + view for c in chosen for view in range(3)]


def test_repeats_are_samples_of_their_own():
    found = source(0, repeats=3)
    item = found.read(5, 11)
    assert item["x"].shape == (3, 2)
    assert len({float(row[1]) for row in item["x"]}) > 1  # each is read by a key of its own
    sample = {name: torch.stack([value, value]) for name, value in item.items()}
    sample |= {"index": torch.tensor([5, 6]), "key": torch.tensor([11, 12])}
    done = found.finish(sample)
    assert done["x"].shape == (6, 2)
    assert done["index"].tolist() == [5, 5, 5, 6, 6, 6]
    assert len(done["key"].unique()) == 6
    assert torch.equal(done["key"][:3], randomness.bits(torch.tensor([11]), "repeats", 3)[0])
    assert found.finish({"x": torch.zeros(2, 2)})["x"].shape == (2, 2)


# ---- dense tasks -----------------------------------------------------------------------------------------------------


def test_pixels_without_a_class_do_not_count():
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0] = IGNORED
    assert torch.allclose(pixel_loss(logits, labels), F.cross_entropy(logits[1:], labels[1:]), atol=1e-6)
    assert float(pixel_loss(logits, torch.full_like(labels, IGNORED))) == 0.0


def test_sizes_of_levels():
    x = torch.randn(2, 16, 4, 6)
    levels = SimplePyramid(16, 8)(x)
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "p2": (8, 16, 24),
        "p3": (8, 8, 12),
        "p4": (8, 4, 6),
        "p5": (8, 2, 3),
        "p6": (8, 1, 2),
    }
    for patch, first in ((16, 16), (8, 8)):
        maps = FourLevels(16, patch)([x] * 4)
        assert [level.shape[2] for level in maps] == [first, first // 2, first // 4, first // 8]
        assert UperNet([16] * 4, 5, 8)(maps).shape == (2, 5, first, first * 3 // 2)
        assert FcnHead(16, 5, 8)(maps[2]).shape[1] == 5
    with pytest.raises(ValueError, match="16 or 8"):
        FourLevels(16, 14)


def test_what_features_look_like():
    torch.manual_seed(0)
    features = torch.randn(50, 8)
    turned = features @ torch.linalg.qr(torch.randn(8, 8)).Q
    assert cka(features, 3 * turned + 1) == pytest.approx(1.0, abs=1e-6)
    assert cka(features, torch.randn(50, 8)) > abs(cka(features, torch.randn(50, 8), debiased=True))
    assert rank_me(torch.eye(5)) == pytest.approx(5.0, rel=1e-5)
    assert rank_me(torch.ones(6, 4)) == pytest.approx(1.0, rel=1e-4)
    near = F.normalize(torch.ones(9, 4) + 0.01 * torch.randn(9, 4), dim=1)
    assert uniformity(near) > uniformity(F.normalize(torch.randn(9, 4), dim=1))
