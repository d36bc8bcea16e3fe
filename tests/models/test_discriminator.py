"""The discriminator: it learns what a pseudo-anomaly looks like, and adds what it finds to UniAD's distance."""

import csv
import json
import math
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from datasets.base import ImageDataset
from datasets.build import build_dataset
from models import build_network
from models.discriminators import Discriminator
from models.losses import PseudoAnomalyLoss
from models.network import Network
from models.reconstructions.uniad import enlarge
from tests.helpers import tiny
from tests.helpers.comparing import assert_same
from tests.helpers.discriminator import make
from tests.helpers.exported import images_of, run_file
from tests.helpers.started_runs import RUN, result, start
from tools import calibrate
from utils.config import load_config
from utils.errors import UserError
from utils.evaluation.calibration import read_calibration
from utils.predict.export import export_checkpoint
from utils.predict.predictor import Predictor
from utils.process.checkpoint import BEST, load_checkpoint
from utils.process.cli import EXIT_INTERRUPTED

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")  # torch 2.14 and later

PLACES = (16, 16)  # of its grid, on images of 64 x 64; UniAD's has 8 x 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture
def network(path: Path) -> Network:
    torch.manual_seed(0)
    return build_network(load_config(path).net)


def batch_of(data: ImageDataset, size: int) -> dict[str, Tensor]:
    """Image, pseudo and pseudo_mask of the first training samples."""
    samples = [data[index] for index in range(size)]
    return {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "pseudo", "pseudo_mask")}


@pytest.fixture
def batch(path: Path) -> dict[str, Tensor]:
    """Three samples."""
    return batch_of(build_dataset(load_config(path).dataset, "train", 0), 3)


# --- the map ---


def test_in_training_it_answers_for_normal_images_and_then_pseudo_anomalies(network: Network, batch: dict[str, Tensor]) -> None:
    outputs = network.train()(batch)
    assert outputs["defect_logits"].shape == (6, 1, *PLACES)
    assert "pred" not in outputs
    assert [feature.shape for feature in outputs["pseudo_features"]] == [feature.shape for feature in outputs["features"]]
    assert all(torch.equal(a, b) for a, b in zip(outputs["features"], network.backbone(batch)["features"], strict=True))
    of_pseudo = network.backbone({"image": batch["pseudo"]})["features"]
    assert all(torch.equal(a, b) for a, b in zip(outputs["pseudo_features"], of_pseudo, strict=True))


def test_only_normal_images_are_what_it_standardises_by(network: Network, batch: dict[str, Tensor]) -> None:
    outputs = network.train()(batch)
    aligned = network.discriminator.align(outputs)["feature_align"]  # 3 x C x 16 x 16
    module = network.discriminator.standardise
    assert module.count == 3 * math.prod(PLACES)
    torch.testing.assert_close(module.mean, aligned.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(module.variance, aligned.var(dim=(0, 2, 3), correction=0))


@torch.no_grad()
def test_the_map_is_uniad_s_root_mean_square_and_what_was_found(network: Network, batch: dict[str, Tensor]) -> None:
    network.train()(batch)
    outputs = network.eval()({"image": batch["image"]})
    assert outputs["distance"].shape == (3, 1, *PLACES)
    assert outputs["pred"].shape == (3, 1, 64, 64)
    difference = (outputs["feature_rec"] - outputs["feature_align"]).numpy()  # 3 x 80 x 8 x 8
    distance = np.sqrt((difference**2).mean(axis=1, keepdims=True))
    head = network.discriminator
    logits = head.head(head.standardise(head.align(outputs)["feature_align"])).numpy()
    expected = enlarge(torch.from_numpy(distance), PLACES).numpy() + 3 / (1 + np.exp(-logits))
    np.testing.assert_allclose(outputs["distance"].numpy(), expected, rtol=1e-5)
    assert torch.equal(outputs["pred"], enlarge(outputs["distance"], (64, 64)))
    np.testing.assert_allclose(
        outputs["pred"][0, 0, [0, 0, 63, 63], [0, 63, 0, 63]], expected[0, 0, [0, 0, 15, 15], [0, 15, 0, 15]]
    )


@torch.no_grad()
def test_without_weight_and_on_uniad_s_grid_the_map_is_uniad_s_in_other_units(path: Path, batch: dict[str, Tensor]) -> None:
    kwargs = "net.discriminator.kwargs={outstride: 8, weight: 0}"
    network = build_network(load_config(path, [kwargs]).net)
    network.train()(batch)
    outputs = network.eval()({"image": batch["image"]})
    alone = network.reconstruction(outputs)
    torch.testing.assert_close(outputs["pred"] * math.sqrt(80), alone["pred"])
    torch.testing.assert_close(outputs["distance"] * math.sqrt(80), alone["distance"])


@torch.no_grad()
def test_an_image_s_map_depends_on_no_other_image(network: Network, batch: dict[str, Tensor]) -> None:
    images = batch["image"]
    network.train()(batch)
    network.eval()
    alone = torch.cat([network({"image": image[None]})["pred"] for image in images])
    torch.testing.assert_close(network({"image": images})["pred"], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_rest_of_the_network_is_as_without_it(path: Path, network: Network, batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    config = load_config(path)
    without = build_network(config.net[:3]).eval()
    assert [name for name in network.state_dict() if not name.startswith("discriminator.")] == list(without.state_dict())
    image = batch["image"]
    expected, outputs = without({"image": image}), network.eval()({"image": image})
    for key in ("feature_align", "feature_rec"):
        assert torch.equal(outputs[key], expected[key])


@pytest.mark.parametrize("outstride", [2, 8, 16])
def test_its_grid_may_have_any_stride(outstride: int) -> None:
    head = Discriminator([4, 6], [2, 8], outstride, hidden_dim=5)
    features = [torch.randn(2, 4, 32, 32), torch.randn(2, 6, 8, 8)]
    side = 64 // outstride
    assert head.train()({"features": features, "pseudo_features": features})["defect_logits"].shape == (4, 1, side, side)
    uniad = {"feature_align": torch.zeros(2, 10, 8, 8), "distance": torch.ones(2, 1, 8, 8), "pred": torch.ones(2, 1, 64, 64)}
    outputs = head.eval()({"features": features, **uniad})
    assert (outputs["distance"].shape, outputs["pred"].shape) == ((2, 1, side, side), (2, 1, 64, 64))


# --- the loss ---


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_weighted_mean_over_places(weight: float) -> None:
    """A place of 8 x 8 pixels: none defective, 1 to 6 of 64, or 7 and more."""
    rng = np.random.default_rng(0)
    counts = rng.choice([0, 1, 6, 7, 64], (2, 4, 4))
    mask = np.zeros((2, 1, 32, 32), np.float32)
    for (image, y, x), count in np.ndenumerate(counts):
        cell = np.zeros(64, np.float32)
        cell[rng.permutation(64)[:count]] = 1
        mask[image, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = cell.reshape(8, 8)
    logits = rng.normal(0, 3, (4, 1, 4, 4)).astype(np.float32)
    total = 0.0
    for (image, _, y, x), logit in np.ndenumerate(logits):
        share = counts[image - 2, y, x] / 64 if image >= 2 else 0
        probability = 1 / (1 + math.exp(-float(logit)))
        if share > 0.1:
            total += 3 * -math.log(probability)
        elif share == 0:
            total += -math.log(1 - probability)
    loss = PseudoAnomalyLoss(weight)({"defect_logits": torch.from_numpy(logits), "pseudo_mask": torch.from_numpy(mask)})
    assert loss.item() == pytest.approx(weight * total / logits.size, rel=1e-4)


def test_the_loss_is_0_in_evaluation(network: Network, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        outputs = network.eval()({"image": batch["image"]})
    assert PseudoAnomalyLoss()(outputs).item() == 0


def test_it_learns_from_its_own_loss_which_nothing_else_does(network: Network, batch: dict[str, Tensor]) -> None:
    outputs = network.train()(batch)
    PseudoAnomalyLoss()(outputs).backward()
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in network.named_parameters() if name.startswith("discriminator.")}
    assert all(network.get_parameter(name).grad.abs().max() > 0 for name in with_gradient)


def test_sixty_steps_on_imagenet_s_features_teach_it_defects_it_has_not_seen(path: Path) -> None:
    config = load_config(path, ["net.backbone.kwargs.pretrained=True"])
    torch.manual_seed(0)
    network, data = build_network(config.net).train(), build_dataset(config.dataset, "train", 0)
    optimizer = torch.optim.AdamW(network.discriminator.parameters(), lr=0.01)
    threads, losses, aucs = torch.get_num_threads(), [], []
    torch.set_num_threads(1)
    for data.epoch in range(60):  # each with defects of its own
        batch = batch_of(data, len(data))
        with torch.no_grad():
            features, pseudo_features = (network.backbone({"image": batch[key]})["features"] for key in ("image", "pseudo"))
        logits = network.discriminator({"features": features, "pseudo_features": pseudo_features})["defect_logits"]
        loss = PseudoAnomalyLoss()({"defect_logits": logits, "pseudo_mask": batch["pseudo_mask"]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share = F.avg_pool2d(batch["pseudo_mask"], 4).flatten().numpy()
        clear = (share == 0) | (share > 0.1)
        answers = logits[len(data) :].detach().flatten().numpy()  # of this epoch, before the step that learns from it
        aucs.append(roc_auc_score(share[clear] > 0.1, answers[clear]))
        losses.append(loss.item())
    torch.set_num_threads(threads)
    assert np.mean(losses[-10:]) < 0.25 * losses[0]
    assert np.mean(aucs[-10:]) > 0.85 > 0.6 > aucs[0]


# --- a whole run ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The configuration of a network that was trained for 2 epochs, 4 of 10 images held out; its metrics are in `first.json`."""
    path = make(tmp_path_factory.mktemp("plus"))
    tiny.train(path, "trainer.max_epoch=2", "dataset.holdout=0.4")
    (path.parent / "result/metrics.json").rename(path.parent / "first.json")
    tiny.evaluate(path, "net.reconstruction.kwargs.save_recon.save_dir=recon")
    return path


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Path:
    return trained.parent / "checkpoints/ckpt.pth.tar"


def test_the_checkpoint_has_the_numbers_of_the_last_validation(trained: Path) -> None:
    first, second = (json.loads((trained.parent / name).read_text()) for name in ("first.json", "result/metrics.json"))
    assert first == second
    assert "mean_pixel_auc" in first
    content = result(trained)
    build_network(load_config(trained).net).load_state_dict(
        {name.removeprefix("module."): value for name, value in content["state_dict"].items()}, strict=True
    )
    assert [epoch["epoch"] for epoch in content["history"]] == [1, 2]
    assert [group["lr_scale"] for group in content["optimizer"]["param_groups"]] == [1.0, 4.0]


def test_two_processes_train_it_and_one_finds_their_numbers_again(path: Path) -> None:
    with start(path, "trainer.max_epoch=2", "dataset.batch_size=2", processes=2) as ranks:
        assert [rank.code() for rank in ranks] == [0, 0], ranks[0].log_text()
        assert "Warning" not in ranks[0].log_text()
    numbers = [json.loads((path.parent / "result/metrics.json").read_text())]
    tiny.evaluate(path)
    numbers.append(json.loads((path.parent / "result/metrics.json").read_text()))
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3, nan_ok=True)


def test_what_is_saved_as_reconstructed_are_uniad_s_features_in_the_backbone_s_units(trained: Path, checkpoint: Path) -> None:
    config = load_config(trained)
    network = build_network(config.net, with_pretrained=False).eval()
    state = load_checkpoint(checkpoint)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    sample = build_dataset(config.dataset, "test")[0]
    neck = network.neck.standardise
    with torch.no_grad():
        reconstructed = network({"image": sample["image"][None]})["feature_rec"][0]
    expected = (reconstructed * neck.variance.sqrt()[:, None, None] + neck.mean[:, None, None]).numpy()
    name = sample["filename"].replace("/test/", "/").replace(".png", ".npy")
    np.testing.assert_allclose(np.load(trained.parent / "recon" / name), expected, rtol=0, atol=1e-5)


def test_prediction_and_exported_files_have_the_scores_of_evaluation(trained: Path, checkpoint: Path, tmp_path: Path) -> None:
    with open(trained.parent / "result/scores.csv", newline="") as file:
        expected = [float(row["max"]) for row in csv.DictReader(file)]
    records, images = images_of(trained.parent)
    scores, maps = Predictor.from_checkpoint(checkpoint)([trained.parent / "data" / record["filename"] for record in records])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    for format in ("onnx", "torchscript"):
        export_checkpoint(checkpoint, format, out := tmp_path / f"exported.{format}")
        for size in (1, 4):
            of_file, maps_of_file = run_file(out, images[:size])
            np.testing.assert_allclose(of_file, scores[:size], rtol=1e-4)
            np.testing.assert_allclose(maps_of_file, np.stack(maps[:size]), rtol=1e-3, atol=1e-4)


def test_it_can_be_calibrated(trained: Path, checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrate.py", "--config", str(trained), "--false_alarm_rate", "0.4"])
    calibrate.main()
    assert read_calibration(checkpoint.with_name("calibration.json")).pooled.images == 4


def test_features_are_not_kept_and_one_line_a_split_says_why(path: Path, log_text) -> None:
    tiny.train(path, "dataset.feature_cache.mode=auto")
    lines = [line for line in log_text().splitlines() if line.startswith("feature cache")]
    assert len(lines) == 2
    for split, line in zip(("training", "test"), lines, strict=True):
        assert line.startswith(f"feature cache: off for the {split} images: the discriminator reads the backbone's own features")
    tiny.train(path, "dataset.feature_cache.mode=off", overwrite=True)
    assert log_text().count("feature cache") == 2


def test_standardised_features_alone_are_not_kept_either(tmp_path: Path, log_text) -> None:
    tiny.train(tiny.make(tmp_path), "net.neck.kwargs.standardise=True", "dataset.feature_cache.mode=auto")
    reason = "the statistics for standardising features are gathered in training"
    assert log_text().count(f"images: {reason}") == log_text().count("feature cache") == 2


def test_an_interrupted_run_ends_as_if_it_had_not_been(path: Path, tmp_path: Path) -> None:
    """Statistics, schedule and the defects drawn go on as well as weights."""
    whole = make(tmp_path / "whole")
    tiny.train(whole, *RUN)
    with start(path, *RUN) as (run,):
        run.wait_for("epoch 2/4  step 3/10")
        run.send_signal(signal.SIGUSR1)
        assert run.code() == EXIT_INTERRUPTED
    assert result(path)["running_epoch"]["images"]
    tiny.train(path, *RUN)
    assert_same(result(path), result(whole))
    assert_same(result(path, BEST), result(whole, BEST))


def test_bfloat16_trains_with_statistics_in_float32(path: Path) -> None:
    tiny.train(path, "trainer.precision=bfloat16")
    state = result(path)["state_dict"]
    for subnet in ("neck", "discriminator"):
        assert state[f"module.{subnet}.standardise.mean"].dtype == torch.float32
        assert state[f"module.{subnet}.standardise.count"] > 0
    tiny.evaluate(path, "trainer.precision=bfloat16")


def test_the_loss_says_the_step_where_nothing_can_be_learnt(path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at epoch 1, step 1; files: "):
        tiny.train(path, "criterion.pseudo.kwargs.weight=1.0e+300")
