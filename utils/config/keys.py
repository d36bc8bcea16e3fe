"""Every key a configuration may hold: its kind, its default and its meaning.

This is the only list of keys: utils.config validates against it, and the README's table is tested against it. Keys are dotted;
`[]` stands for each item of a list, and `net[UniAD]` for a subnet of that type. Relative paths are relative to the
configuration's folder. `{class_name}` in a path stands for the class that a vis tool was started for.
"""

from dataclasses import dataclass
from typing import Any

from models.backbones.specs import SPECS

REQUIRED = "required"  # the default of a key that must be given wherever its section is

# What each kind accepts, in the words of the error message.
KINDS = {
    "int": "a whole number",
    "number": "a number",
    "bool": "True or False",
    "str": "a text",
    "path": "a path",
    "size": "two positive whole numbers [height, width]",
    "triple": "three numbers, one a channel",
    "bools": "three of True and False",
    "ints": "a list of whole numbers",
    "strides": "a list of positive whole numbers",
    "names": "a list of names",
    "mapping": "a mapping of keys",
}


@dataclass(frozen=True)
class Key:
    """One key: its `kind` (of KINDS), `default`, `meaning`, and where they exist its only `choices`, `least` and `most`."""

    kind: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


def on_off(meaning: str, default: bool = False) -> Key:
    return Key("bool", default, meaning)


def score_keys(kind: str, meaning: str) -> dict[str, Key]:
    prefix = f"evaluator.metrics.{kind}[]"
    return {
        f"{prefix}.name": Key(
            "str", REQUIRED, f"{meaning} of this score of an image, or of pixels", ("mean", "std", "max", "pixel")
        ),
        f"{prefix}.kwargs.avgpool_size": Key("size", None, "max: average the map over this window before the maximum"),
    }


KEYS: dict[str, Key] = {
    "version": Key("str", None, "a free label of the configuration"),
    "random_seed": Key("int", None, "the process's rank is added; powers 1 to 4 seed numpy, torch, CUDA and Python", least=0),
    "reproduce": on_off("deterministic algorithms; needs a seed. The same run twice is bit-equal on a machine"),
    "port": Key(
        "int",
        None,
        "Slurm: where processes meet, job and step number added; if busy, the next free port. MASTER_PORT comes first",
        least=1024,
        most=55535,
    ),
    # data
    "dataset.type": Key("str", REQUIRED, "which data set class reads the images", ("custom", "cifar10")),
    "dataset.train": Key("mapping", {}, "dataset keys that hold for training only, e.g. meta_file, hflip"),
    "dataset.test": Key("mapping", {}, "dataset keys that hold for evaluation only, e.g. meta_file"),
    "dataset.meta_file": Key("path", None, "custom: the JSON-lines list of images; stands in train and test"),
    "dataset.class_name": Key("str", None, "custom: only the images of this class; none: of all classes"),
    "dataset.separate": on_off("custom: train_val works on one model a class, each below CLASS/, and joins their tables"),
    "dataset.image_reader.type": Key("str", "opencv", "custom: what decodes images", ("opencv",)),
    "dataset.image_reader.kwargs.image_dir": Key("path", REQUIRED, "custom: the folder that names in the list are relative to"),
    "dataset.image_reader.kwargs.color_mode": Key(
        "str", "RGB", "custom: channel order; GRAY is three equal channels", ("RGB", "BGR", "GRAY")
    ),
    "dataset.root_dir": Key("path", None, "cifar10: the folder that contains cifar-10-batches-py"),
    "dataset.normals": Key("ints", None, "cifar10: ids of the classes that count as normal"),
    "dataset.input_size": Key("size", REQUIRED, "size that images and masks are resized to"),
    "dataset.pixel_mean": Key("triple", REQUIRED, "mean that is subtracted, of values in 0..1"),
    "dataset.pixel_std": Key("triple", REQUIRED, "deviation that is divided by"),
    "dataset.batch_size": Key("int", REQUIRED, "images a batch in each process", least=1),
    "dataset.workers": Key("int", 2, "processes that read images for each process", least=0),
    "dataset.on_bad_image": Key(
        "str",
        "stop",
        "custom: what an image (or mask) that is missing or cannot be read does: end the run with its name, or be left out, "
        "counted and reported; in training the next one takes its place",
        ("stop", "skip"),
    ),
    "dataset.holdout": Key(
        "number", 0, "custom: share of each class's normal training images kept for calibrate.py", least=0, most=0.9
    ),
    "dataset.feature_cache.mode": Key(
        "str", "auto", "train: compute frozen features once, read them back; auto: where they never change", ("auto", "off")
    ),
    "dataset.feature_cache.dtype": Key("str", "float32", "format they are stored in", ("float32", "bfloat16", "float16")),
    "dataset.feature_cache.dir": Key("path", "feature_cache", "where they are stored; must be a disk that all processes share"),
    "dataset.rebalance": on_off("train: draw every class equally often in an epoch"),
    "dataset.hflip": on_off("train: mirror left-right half the time"),
    "dataset.vflip": on_off("train: mirror top-bottom half the time"),
    "dataset.rotate": on_off("train: turn by 0, 90, 180 or 270 degrees"),
    "dataset.colorjitter.brightness": Key("number", 0.1, "train: range of the brightness factor around 1", least=0),
    "dataset.colorjitter.contrast": Key("number", 0.5, "train: range of the contrast factor around 1", least=0),
    "dataset.colorjitter.hue": Key("number", 0.07, "train: range of the hue shift, in turns", least=0, most=0.5),
    "dataset.colorjitter.saturation": Key("number", 0.5, "train: range of the saturation factor around 1", least=0),
    "dataset.colorjitter.prob": Key("number", 0.5, "train: probability of each of the four", least=0, most=1),
    "dataset.pseudo_anomalies": on_off(
        "train: beside each image a copy with an artificial defect, for models.discriminators.Discriminator (ours)"
    ),
    # loss and training
    "criterion[].name": Key("str", REQUIRED, "a name for the loss"),
    "criterion[].type": Key("str", REQUIRED, "which loss", ("FeatureMSELoss", "ImageMSELoss", "PseudoAnomalyLoss")),
    "criterion[].kwargs.weight": Key("number", 1.0, "its weight in the sum"),
    "trainer.max_epoch": Key("int", REQUIRED, "epochs in all", least=1),
    "trainer.clip_max_norm": Key("number", None, "gradients are scaled down to this norm; none: not at all", least=0),
    "trainer.precision": Key(
        "str",
        "float32",
        "what the network computes in; auto: float32, until bfloat16 is shown to be as good",
        ("float32", "bfloat16", "auto"),
    ),
    "trainer.compile": on_off("torch.compile the subnet that trains: minutes before the first step, no gain seen on CPU"),
    "trainer.val_freq_epoch": Key("int", 10, "evaluate and save every so many epochs, and after the last", least=1),
    "trainer.print_freq_step": Key("int", 50, "a log line every so many steps", least=1),
    "trainer.tb_freq_step": Key("int", 10, "TensorBoard scalars every so many steps", least=1),
    "trainer.lr_scheduler.type": Key(
        "str",
        "StepLR",
        "which schedule; OneCycleLR acts every step, up and then down over the whole run",
        ("StepLR", "OneCycleLR"),
    ),
    "trainer.lr_scheduler.kwargs": Key("mapping", REQUIRED, "its arguments, as in torch.optim.lr_scheduler"),
    "trainer.optimizer.type": Key("str", REQUIRED, "which optimiser", ("AdamW", "Adam", "SGD")),
    "trainer.optimizer.kwargs": Key("mapping", REQUIRED, "its arguments, as in torch.optim"),
    # files
    "saver.auto_resume": on_off("train: go on from save_dir's newest whole checkpoint if there is one", True),
    "saver.resume_model": Key("path", None, "train: go on from this checkpoint (auto_resume comes first)"),
    "saver.init_from": Key("path", None, "train: start a new run from this checkpoint's weights (ours)"),
    "saver.always_save": on_off("keep ckpt_<epoch>.pth.tar of every evaluation as well", True),
    "saver.save_freq_step": Key("int", None, "train: save every so many steps as well, for long epochs; none: not", least=1),
    "saver.load_path": Key("path", "checkpoints/ckpt.pth.tar", "evaluate (-e): the checkpoint"),
    "saver.save_dir": Key("path", "checkpoints", "where checkpoints are written"),
    "saver.log_dir": Key("path", "log", "where the log and TensorBoard's files are written"),
    # evaluation
    "evaluator.save_dir": Key("path", "result", "where metrics.json, scores.csv and the table are written"),
    "evaluator.key_metric": Key("str", REQUIRED, "the number that decides ckpt_best.pth.tar, e.g. mean_pixel_auc"),
    **score_keys("auc", "AUROC"),
    **score_keys("ap", "average precision"),
    **score_keys("f1max", "largest F1 over all thresholds"),
    "evaluator.metrics.aupro[].name": Key("str", REQUIRED, "per-region overlap to a false-positive rate of 0.3", ("pixel",)),
    "evaluator.vis_compound.save_dir": Key("path", REQUIRED, "-e: image, mask and two heat maps side by side are written here"),
    "evaluator.vis_compound.max_score": Key("number", None, "the map value drawn as hottest; none: the largest of all maps"),
    "evaluator.vis_compound.min_score": Key("number", None, "the map value drawn as coldest; none: the smallest of all maps"),
    "evaluator.vis_single.save_dir": Key("path", REQUIRED, "-e: image and heat map are written here as separate files"),
    "evaluator.vis_single.max_score": Key("number", None, "as in vis_compound"),
    "evaluator.vis_single.min_score": Key("number", None, "as in vis_compound"),
    # pictures of features: train_vis_decoder, vis_recon, vis_query
    "visualization.vis_freq_epoch": Key("int", 10, "train_vis_decoder: draw check images every so many epochs", least=1),
    "visualization.vis_dir": Key("path", "vis", "train_vis_decoder: where they are written, below the class's folder"),
    "data.dataset_dir": Key("path", None, "vis_recon: the folder of the images, as image_dir above"),
    "data.feature_dir": Key("path", None, "vis_recon: the reconstructed features that evaluation saved (save_recon below)"),
    "data.input_size": Key("size", REQUIRED, "vis_recon, vis_query: as in dataset; the vis decoder was trained with it"),
    "data.pixel_mean": Key("triple", REQUIRED, "vis_recon, vis_query: as in dataset"),
    "data.pixel_std": Key("triple", REQUIRED, "vis_recon, vis_query: as in dataset"),
    "vis_query.model_path": Key("path", REQUIRED, "the UniAD checkpoint whose learned queries are drawn"),
    "vis_query.hidden_dim": Key("int", None, "its hidden_dim; none: as in the checkpoint", least=1),
    "vis_query.num_decoder_layers": Key("int", None, "its num_decoder_layers; none: as in the checkpoint", least=1),
    "vis_query.with_text": on_off("write the name of each picture above it", True),
    # network
    "frozen_layers": Key("names", [], "names of subnets that are not trained"),
    "net[].name": Key("str", REQUIRED, "the subnet's name; prefix of its keys in a checkpoint"),
    "net[].type": Key(
        "str",
        REQUIRED,
        "models.backbones.<name>, models.necks.MFCN, models.reconstructions.UniAD or VisDecoder, "
        "models.discriminators.Discriminator",
    ),
    "net[].prev": Key("str", None, "name of the subnet it follows"),
    "net[].frozen": on_off("do not train it, as frozen_layers does"),
    "net[].lr_scale": Key("number", 1.0, "its learning rate is the optimiser's (and the schedule's) times this (ours)", least=0),
    "net[backbone].kwargs.pretrained": on_off("start from ImageNet weights", True),
    "net[backbone].kwargs.outlayers": Key("ints", REQUIRED, "layers whose feature maps are used, from 1"),
    "net[backbone].kwargs.pretrained_model": Key(
        "path", "", "file with the ImageNet weights; empty: bundled, cached or downloaded"
    ),
    "net[timm].kwargs.name": Key("str", REQUIRED, "the model as timm calls it, e.g. vit_base_patch14_reg4_dinov2"),
    "net[timm].kwargs.pretrained": on_off("start from its pretrained weights", True),
    "net[timm].kwargs.outlayers": Key("ints", REQUIRED, "levels of a multi-scale model or blocks of a ViT that are used, from 1"),
    "net[timm].kwargs.pretrained_model": Key(
        "path", "", "file with its weights (.pth, .safetensors); empty: from the hub's cache, else downloaded"
    ),
    "net[MFCN].kwargs.outstrides": Key("strides", REQUIRED, "stride of the one feature grid, e.g. [16]"),
    "net[MFCN].kwargs.standardise": on_off("give each channel mean 0 and deviation 1 over the training features (ours)"),
    "net[UniAD].kwargs.pos_embed_type": Key("str", "learned", "position embedding", ("learned", "sine")),
    "net[UniAD].kwargs.hidden_dim": Key("int", REQUIRED, "width of a token inside the transformer", least=1),
    "net[UniAD].kwargs.nhead": Key("int", REQUIRED, "attention heads", least=1),
    "net[UniAD].kwargs.num_encoder_layers": Key("int", REQUIRED, "encoder layers", least=0),
    "net[UniAD].kwargs.num_decoder_layers": Key("int", REQUIRED, "decoder layers", least=1),
    "net[UniAD].kwargs.dim_feedforward": Key("int", REQUIRED, "width of the feed-forward", least=1),
    "net[UniAD].kwargs.dropout": Key("number", 0.1, "dropout rate, below 1", least=0, most=1),
    "net[UniAD].kwargs.activation": Key("str", "relu", "activation of the feed-forward", ("relu", "gelu")),
    "net[UniAD].kwargs.normalize_before": on_off("norm before each sub-layer instead of after it"),
    "net[UniAD].kwargs.feature_jitter.scale": Key("number", REQUIRED, "noise in proportion to a token's norm", least=0),
    "net[UniAD].kwargs.feature_jitter.prob": Key("number", REQUIRED, "probability of a batch to get noise", least=0, most=1),
    "net[UniAD].kwargs.neighbor_mask.neighbor_size": Key("size", REQUIRED, "window that a token does not attend to; 6 means 7"),
    "net[UniAD].kwargs.neighbor_mask.mask": Key("bools", REQUIRED, "mask in [encoder, decoder attention 1, decoder attention 2]"),
    "net[UniAD].kwargs.save_recon.save_dir": Key("path", REQUIRED, "-e: reconstructed features are written here as .npy"),
    "net[UniAD].kwargs.initializer.method": Key(
        "str", "normal", "initial weights", ("normal", "xavier_uniform", "xavier_normal", "msra_uniform", "msra_normal")
    ),
    "net[Discriminator].kwargs.outstride": Key("int", REQUIRED, "stride of its grid, e.g. 8, finer than the neck's", least=1),
    "net[Discriminator].kwargs.hidden_dim": Key("int", 128, "its channels", least=2),
    "net[Discriminator].kwargs.weight": Key("number", 3.0, "what a certain defect adds to the distance, in deviations", least=0),
    "net[VisDecoder].kwargs.block_type": Key("str", REQUIRED, "residual block", ("basic", "bottle")),
    "net[VisDecoder].kwargs.width": Key(
        "int", 128, "channels of the last stage; the others in proportion. Smaller is faster (ours)", least=8
    ),
    "net[VisDecoder].kwargs.initializer.method": Key(
        "str", "normal", "initial weights", ("normal", "xavier_uniform", "xavier_normal", "msra_uniform", "msra_normal")
    ),
}

# Sections that may be missing, null or False: they are None then, and their keys are not needed.
OPTIONAL = frozenset(
    {
        "dataset.colorjitter",
        "dataset.image_reader",
        "evaluator.vis_compound",
        "evaluator.vis_single",
        "visualization",
        "net[UniAD].kwargs.feature_jitter",
        "net[UniAD].kwargs.neighbor_mask",
        "net[UniAD].kwargs.save_recon",
        "net[UniAD].kwargs.initializer",
        "net[VisDecoder].kwargs.initializer",
    }
)

# What `net[].type` may say, and the name its keys stand under in KEYS.
SUBNET_KINDS: dict[str, str] = {
    **{f"models.backbones.{name}": "backbone" for name in SPECS},
    "models.backbones.timm": "timm",
    "models.necks.MFCN": "MFCN",
    "models.reconstructions.UniAD": "UniAD",
    "models.reconstructions.VisDecoder": "VisDecoder",
    "models.discriminators.Discriminator": "Discriminator",
}
