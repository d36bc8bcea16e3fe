"""A configuration runs as published or ends in one clear line."""

from pathlib import Path

import pytest
import torch
import yaml

from models import build_network, find_memory
from tests.helpers import tiny
from utils.config import load_config, read_config
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted(ROOT.glob("experiments/**/config.yaml"))
MVTEC = ROOT / "experiments/MVTec-AD/config.yaml"
PLUS = ROOT / "experiments/MVTec-AD-plus/config.yaml"
MEMORY = ROOT / "experiments/custom-memory/config.yaml"
ALL_BUT_DISCRIMINATOR = yaml.safe_dump(read_config(PLUS)["net"][:3])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.parent.relative_to(ROOT / "experiments")))
def test_every_experiment_loads_and_builds(path: Path) -> None:
    class_name = "bottle" if "vis_" in str(path) else None
    config = load_config(path, ["net.backbone.kwargs.pretrained=False"], class_name=class_name)
    network = build_network(config.net)
    neck = [] if "dinomaly" in str(path) else ["neck"]
    ours = ["discriminator"] if "plus" in str(path) else []
    assert [name for name, _ in network.named_children()] == ["backbone", *neck, "reconstruction", *ours]
    if memory := find_memory(network):
        memory.fill({"bottle": torch.randn(9, memory.tokens.shape[1])}, 9, seed=0)
    data = config.get("dataset") or config.data
    height, width = data.get("crop") or data.input_size
    with torch.no_grad():
        outputs = network.eval()({"image": torch.zeros(1, 3, height, width)})
    key, planes = ("image_rec", 3) if class_name else ("pred", 1)
    assert outputs[key].shape == (1, planes, height, width)


def test_the_mvtec_experiment_has_the_published_values() -> None:
    config = load_config(MVTEC)
    assert (config.random_seed, config.dataset.input_size, config.dataset.batch_size) == (133, [224, 224], 8)
    assert config.trainer.optimizer == {"type": "AdamW", "kwargs": {"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 1e-4}}
    assert config.trainer.lr_scheduler == {"type": "StepLR", "kwargs": {"step_size": 800, "gamma": 0.1}}
    assert (config.trainer.max_epoch, config.trainer.clip_max_norm, config.trainer.val_freq_epoch) == (1000, 0.1, 10)
    backbone, neck, reconstruction = config.net
    assert (backbone.type, backbone.kwargs.outlayers) == ("models.backbones.efficientnet_b4", [1, 2, 3, 4])
    sizes = {"inplanes": [24, 32, 56, 160], "instrides": [2, 4, 8, 16], "outplanes": [272], "outstrides": [16]}
    assert neck.kwargs == {**sizes, "standardise": False}
    assert not config.dataset.train.get("pseudo_anomalies")
    assert reconstruction.kwargs == {
        "inplanes": [272],
        "instrides": [16],
        "feature_size": [14, 14],
        "pos_embed_type": "learned",
        "hidden_dim": 256,
        "nhead": 8,
        "num_encoder_layers": 4,
        "num_decoder_layers": 4,
        "dim_feedforward": 1024,
        "dropout": 0.1,
        "activation": "relu",
        "normalize_before": False,
        "feature_jitter": {"scale": 20.0, "prob": 1.0},
        "neighbor_mask": {"neighbor_size": [7, 7], "mask": [True, True, True]},
        "save_recon": None,
        "initializer": {"method": "xavier_uniform"},
    }
    assert config.evaluator.key_metric == "mean_pixel_auc"
    assert [score.name for score in config.evaluator.metrics.auc if score.kwargs.avgpool_size == [16, 16]] == ["max"]


@pytest.mark.parametrize("split", ["01234", "56789", "02468", "13579"])
def test_the_cifar10_experiments_have_the_published_values(split: str) -> None:
    config = load_config(ROOT / f"experiments/CIFAR-10/{split}/config.yaml")
    assert config.dataset.normals == [int(digit) for digit in split]
    assert (config.random_seed, config.dataset.batch_size, config.evaluator.key_metric) == (131, 16, "mean_mean_auc")
    assert config.net[0].kwargs.outlayers == [1, 2, 3, 4, 5]
    assert config.net[2].kwargs.inplanes == [24 + 32 + 56 + 160 + 448]


def test_defaults_are_those_of_the_published_code(tmp_path: Path) -> None:
    raw = yaml.safe_load(MVTEC.read_text())
    raw["saver"] = {}
    raw["dataset"]["train"]["colorjitter"] = {}
    for key in ("dropout", "activation", "normalize_before"):
        del raw["net"][2]["kwargs"][key]
    del raw["random_seed"], raw["reproduce"], raw["net"][1]["prev"], raw["trainer"]["clip_max_norm"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    config = load_config(path)
    assert config.dataset.train.colorjitter == {"brightness": 0.1, "contrast": 0.5, "hue": 0.07, "saturation": 0.5, "prob": 0.5}
    assert (config.saver.auto_resume, config.saver.always_save, config.saver.resume_model) == (True, True, None)
    assert (config.random_seed, config.port, config.trainer.clip_max_norm) == (None, None, None)
    kwargs = config.net[2].kwargs
    assert (kwargs.dropout, kwargs.activation, kwargs.normalize_before) == (0.1, "relu", False)


def test_relative_paths_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(MVTEC, ["saver.resume_model=old/ckpt.pth.tar", "evaluator.save_dir=/absolute/result"])
    folder = MVTEC.parent
    assert Path(config.dataset.train.meta_file).resolve() == ROOT / "data/MVTec-AD/train.json"
    assert config.saver.resume_model == str(folder / "old/ckpt.pth.tar")
    assert config.evaluator.save_dir == "/absolute/result"
    assert config.net[0].kwargs.pretrained_model == ""


def test_overrides_reach_sections_list_items_and_new_keys() -> None:
    config = load_config(
        MVTEC,
        [
            "trainer.optimizer.kwargs.lr=1e-3",
            "net.reconstruction.kwargs.hidden_dim=128",
            "net.0.kwargs.outlayers=[2, 3]",
            "net.reconstruction.kwargs.feature_jitter=False",
            "evaluator.vis_single.save_dir=pictures",
            "dataset.test.batch_size=32",
        ],
    )
    assert config.trainer.optimizer.kwargs.lr == 1e-3
    assert (config.net[2].kwargs.hidden_dim, config.net[2].kwargs.inplanes, config.net[2].kwargs.feature_jitter) == (
        128,
        [88],
        None,
    )
    assert config.evaluator.vis_single.max_score is None
    assert config.dataset.test.batch_size == 32
    assert config.dataset.batch_size == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=1", r"trainer\.max_epochs is not a key: did you mean 'trainer\.max_epoch'\?"),
        ("dataset.train.hflipp=True", r"dataset\.train\.hflipp is not a key: did you mean 'dataset\.train\.hflip'\?"),
        (
            "net.reconstruction.kwargs.hiden_dim=8",
            r"net\.reconstruction\.kwargs\.hiden_dim is not a key: did you mean .*hidden_dim'",
        ),
        ("trainer.max_epoch=many", r"trainer\.max_epoch must be a whole number, not 'many'"),
        ("trainer.max_epoch=0", r"trainer\.max_epoch must be at least 1"),
        ("trainer.max_epoch=null", r"trainer\.max_epoch is missing: epochs in all; or give trainer\.max_step"),
        ("trainer.max_step=0", r"trainer\.max_step must be at least 1"),
        ("trainer.optimizer=null", r"trainer\.optimizer is missing"),
        ("trainer.lr_scheduler=null", r"trainer\.lr_scheduler is missing"),
        ("dataset.crop=[240, 224]", r"dataset\.crop \[240, 224\] is larger than dataset\.input_size \[224, 224\]"),
        ("dataset.crop=[224, 240]", r"dataset\.crop \[224, 240\] is larger than dataset\.input_size \[224, 224\]"),
        ("dataset.crop=[200, 200]", r"crop \[200, 200\] must be divisible by 16, the stride given by"),
        ("dataset.crop=224", r"dataset\.crop must be two positive whole numbers"),
        ("evaluator.map.size=[256]", r"evaluator\.map\.size must be two positive whole numbers"),
        ("evaluator.map.sigma=-1", r"evaluator\.map\.sigma must be at least 0"),
        ("evaluator.metrics.auc=[{name: top, kwargs: {share: 2}}]", r"share must be at most 1"),
        ("evaluator.metrics.auc=[{name: max, kwargs: {share: 0.1}}]", r"metrics\.auc: share is for the score top, not max"),
        ("dataset.batch_size=True", r"dataset\.batch_size must be a whole number"),
        ("dataset.input_size=224", r"dataset\.input_size must be two positive whole numbers"),
        ("dataset.input_size=[224, 220]", r"input_size \[224, 220\] must be divisible by 16"),
        ("dataset.pixel_mean=[0.5]", r"dataset\.pixel_mean must be three numbers"),
        ("dataset.type=imagenet", r"dataset\.type 'imagenet' is unknown: use one of custom, cifar10"),
        ("dataset.train.meta_file=null", r"dataset\.train\.meta_file is missing"),
        ("net.backbone.type=models.backbones.efficientnet_b44", r"type '.*b44' is unknown: did you mean '.*efficientnet_b\d'"),
        ("net.backbone.type=os.system", r"type 'os\.system' is unknown"),
        ("net.backbone.kwargs.outlayers=[1, 6]", r"efficientnet_b4 has no layer 6"),
        ("net.neck.prev=reconstruction", r"net\.neck\.prev 'reconstruction' must be 'backbone'"),
        ("net.neck.kwargs.outstrides=[16, 8]", r"outstrides must hold one stride"),
        ("net.neck.kwargs.outstrides=[0]", r"outstrides must be a list of positive whole numbers"),
        ("net.reconstruction.kwargs.dropout=1.5", r"dropout must be at most 1, not 1\.5"),
        ("net.backbone.type=[1]", r"net\.backbone\.type '\[1\]' is unknown"),
        ("net.neck.name=backbone", r"net must be a backbone, models\.necks\.MFCN and one of .* a name of its own"),
        ("dataset.input_size.0.x=1", r"there is no section to hold 'x'"),
        ("random_seed=-1", r"random_seed must be at least 0"),
        ("port=70000", r"port must be at most 55535"),
        ("trainer.lr_scheduler.kwargs.step_size=0", r"step_size must be at least 1"),
        ("evaluator.metrics.auc=[{name: max, kwargs: {avgpool_size: [300, 300]}}]", r"avgpool_size \[300, 300\] is larger than"),
        ("evaluator.metrics.auc=[{name: pixel}, {name: max}, {name: max}]", r"metrics\.auc names a score twice"),
        ("evaluator.metrics.auc=[{name: mean, kwargs: {avgpool_size: [2, 2]}}]", r"avgpool_size is for the score max, not mean"),
        ("frozen_layers=[bakbone]", r"frozen_layers: 'bakbone' is not a subnet: did you mean 'backbone'"),
        ("evaluator.key_metric=mean_pixels_auc", r"key_metric 'mean_pixels_auc' is not computed: use one of .*mean_pixel_auc"),
        ("trainer.optimizer.kwargs.momentum=0.9", r"trainer\.optimizer\.kwargs do not suit AdamW: .*momentum"),
        ("trainer.optimizer.kwargs.lr=-1", r"trainer\.optimizer\.kwargs do not suit AdamW: .*learning rate"),
        ("trainer.lr_scheduler={type: OneCycleLR, kwargs: {}}", r"lr_scheduler\.kwargs do not suit OneCycleLR: .*max_lr"),
        (
            "trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 1.0, pct_start: 2.0}}",
            r"do not suit OneCycleLR: .*pct_start",
        ),
        ("trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: -1.0}}", r"kwargs\.max_lr must be one number above 0"),
        ("trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 1.0, div_factor: 0}}", r"do not suit OneCycleLR: .*zero"),
        ("trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 1, last_epoch: 3}}", r"OneCycleLR: param 'initial_lr'[^\\]*$"),
        ("trainer.optimizer.kwargs.betas=[0.9]", r"trainer\.optimizer\.kwargs do not suit AdamW: "),
        ("max_epoch=3", r"max_epoch is not a key: did you mean 'trainer\.max_epoch'"),
        ("feature_cache.mode=off", r"feature_cache is not a key: did you mean 'dataset\.feature_cache'"),
        ("lr_schedule.type=StepLR", r"lr_schedule is not a key: did you mean 'trainer\.lr_scheduler'"),
        ("trainer.lr_scheduler.type=OneCycleLRs", r"'OneCycleLRs' is unknown: did you mean 'OneCycleLR'"),
        ("dataset.train.pseudo_anomalies=True", r"dataset\.pseudo_anomalies are for a subnet of type .*\.Discriminator"),
        ("dataset.pseudo_anomalies=True", r"dataset\.pseudo_anomalies are for a subnet of type .*\.Discriminator"),
        ("dataset.train.pseudo_anomalie=True", r"is not a key: did you mean 'dataset\.train\.pseudo_anomalies'"),
        (
            "criterion=[{name: a, type: PseudoAnomalyLoss, kwargs: {}}]",
            r"PseudoAnomalyLoss needs a subnet of type .*Discriminator",
        ),
        ("net.reconstruction.type=models.discriminators.Discriminator", r"net\.reconstruction\.kwargs\.\w+ is not a key"),
        ("trainer.lr_scheduler.kwargs={}", r"trainer\.lr_scheduler\.kwargs do not suit StepLR: .*step_size"),
        ("criterion=[{name: a, type: ImageMSELoss, kwargs: {weight: 1}}]", r"ImageMSELoss needs a subnet of type .*VisDecoder"),
        ("net.reconstruction.kwargs.neighbor_mask.mask=[True]", r"mask must be three of True and False"),
        ("net=[]", r"the section 'net' is missing"),
        ("net.decoder.kwargs.x=1", r"'decoder' is neither a position 0 to 2 nor one of the names"),
        ("trainer", r"overrides are written key=value"),
        ("trainer.max_epoch.x=1", r"'max_epoch' is a value, not a section"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_the_key_and_what_to_do(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(MVTEC, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.train.pseudo_anomalies=False", r"Discriminator learns from pseudo-anomalies: set dataset\.pseudo_anomalies to"),
        ("criterion=[{name: a, type: FeatureMSELoss, kwargs: {}}]", r"Discriminator needs a criterion of type PseudoAnomalyLoss"),
        ("criterion=[{name: a, type: PseudoAnomalyLoss, kwargs: {}}]", r"UniAD needs a criterion of type FeatureMSELoss"),
        ("net.neck.kwargs.standardise=False", r"Discriminator needs standardised features: set standardise of the MFCN to True"),
        (
            "net.discriminator.kwargs.outstride=9",
            r"must be divisible by 9, the stride given by net\.discriminator\.kwargs\.outstride",
        ),
        ("net.discriminator.kwargs={}", r"net\.discriminator\.kwargs\.outstride is missing"),
        ("net.discriminator.kwargs.outstride=[8]", r"net\.discriminator\.kwargs\.outstride must be a whole number"),
        ("net.discriminator.kwargs.hidden_dim=1", r"net\.discriminator\.kwargs\.hidden_dim must be at least 2"),
        ("net.discriminator.kwargs.weight=-1", r"net\.discriminator\.kwargs\.weight must be at least 0"),
        ("net.discriminator.prev=neck", r"net\.discriminator\.prev 'neck' must be 'reconstruction'"),
        ("net.discriminator.name=neck", r"net must be .*, each with a name of its own, and .*UniAD optionally .*Discriminator"),
        (
            "frozen_layers=[backbone, discriminator]",
            r"net\.discriminator cannot be frozen: .* standardised by is found in training",
        ),
        ("frozen_layers=[backbone, neck]", r"net\.neck cannot be frozen: .* standardised by is found in training"),
        ("net.neck.frozen=True", r"net\.neck cannot be frozen"),
        ("trainer.lr_scheduler.kwargs.total_steps=9", r"total_steps follows from max_epoch and the data: leave it out"),
        (f"net={ALL_BUT_DISCRIMINATOR}", r"dataset\.pseudo_anomalies are for a subnet of type .*Discriminator, which net lacks"),
    ],
)
def test_what_the_discriminator_needs_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(PLUS, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["rebalance", "hflip", "vflip", "rotate", "colorjitter"])
@pytest.mark.parametrize("section", ["dataset", "dataset.train"])
def test_a_memory_refuses_what_shows_it_an_image_twice_or_changed(tmp_path: Path, section: str, key: str) -> None:
    (path := tmp_path / "config.yaml").write_text(tiny.CONFIG)
    value = "{}" if key == "colorjitter" else "True"
    with pytest.raises(UserError, match=rf"dataset\.{key}: models\.reconstructions\.Memory sees each training image once"):
        load_config(path, [tiny.MEMORY, f"{section}.{key}={value}"])


def test_a_memory_standardises_by_itself_and_needs_no_epochs_optimiser_or_schedule() -> None:
    with pytest.raises(
        UserError, match=r"net\.neck\.kwargs\.standardise: models\.reconstructions\.Memory standardises by itself"
    ):
        load_config(MEMORY, ["net.neck.kwargs.standardise=True"])
    config = load_config(MEMORY, [f"trainer.{name}=null" for name in ("max_epoch", "optimizer", "lr_scheduler")])
    assert all(subnet.frozen for subnet in config.net)  # nothing is trained, whatever frozen_layers says


@pytest.mark.parametrize(
    ("path", "override"),
    [
        ("custom-memory", "net.reconstruction.type=models.reconstructions.Dinomaly"),  # after a neck
        ("custom-dinomaly", "net.reconstruction={name: r, type: models.reconstructions.Memory, kwargs: {}}"),  # without one
        ("custom-memory", "net.neck={name: neck, type: models.reconstructions.Memory, kwargs: {}}"),
        (
            "custom-plus",
            "net.reconstruction={name: r, type: models.reconstructions.Memory, kwargs: {}}",
        ),  # a discriminator after it
    ],
)
def test_subnets_that_cannot_follow_each_other_are_one_line_that_says_what_can(path: str, override: str) -> None:
    overrides = [override, "net.reconstruction.kwargs={}"] if override.endswith("Dinomaly") else [override]
    with pytest.raises(
        UserError, match=r"net must be a backbone, models\.necks\.MFCN and one of .* follows the backbone"
    ) as caught:
        load_config(ROOT / f"experiments/{path}/config.yaml", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nhead=5", r"nhead 5 must divide the backbone's width 384"),
        ("num_decoder_layers=4", r"num_decoder_layers 4 must be the number of the backbone's outlayers, 8"),
        ("groups=[[0, 1], [2]]", r"groups .* must hold each of the backbone's layers 0 to 7 once"),
    ],
)
def test_what_does_not_suit_dinomaly_s_backbone_is_one_line(override: str, message: str) -> None:
    options = ["net.backbone.kwargs.pretrained=False", f"net.reconstruction.kwargs.{override}"]
    config = load_config(ROOT / "experiments/custom-dinomaly/config.yaml", options)
    with pytest.raises(UserError, match=message):
        build_network(config.net)


def test_a_frozen_subnet_needs_no_loss() -> None:
    loss = "criterion=[{name: a, type: PseudoAnomalyLoss, kwargs: {}}]"
    config = load_config(PLUS, ["frozen_layers=[backbone, reconstruction]", loss])
    assert [subnet.frozen for subnet in config.net] == [True, False, True, False]
    assert [criterion.type for criterion in config.criterion] == ["PseudoAnomalyLoss"]


def test_the_discriminator_reads_the_backbone_s_own_maps() -> None:
    config = load_config(PLUS, ["net.backbone.kwargs.outlayers=[2, 3]"])
    kwargs = {"inplanes": [32, 56], "instrides": [4, 8], "outstride": 8, "hidden_dim": 128, "weight": 3.0}
    assert config.net[3].kwargs == kwargs
    assert config.net[1].kwargs.standardise is True


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.5, 1.0])
def test_any_share_of_the_run_may_rise(pct_start: float) -> None:
    config = load_config(PLUS, [f"trainer.lr_scheduler.kwargs.pct_start={pct_start}"])
    assert config.trainer.lr_scheduler.kwargs.pct_start == pct_start


def test_reproducing_needs_a_seed() -> None:
    with pytest.raises(UserError, match="reproduce: True needs a random_seed"):
        load_config(MVTEC, ["reproduce=True", "random_seed=null"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3\n", r"broken\.yaml, line \d: not valid YAML"),
        ("- 1\n- 2\n", r"a configuration is a mapping of keys, this file holds list"),
        ("net: {}\nsaver: {}\n", r"the section 'net' is missing"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(f"net: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(path)
    assert not (tmp_path / "ran").exists()
