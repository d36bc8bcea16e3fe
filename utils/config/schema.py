"""Every key of a configuration: one declaration with its type, range, default and meaning.

docs/configuration.md is generated from these classes. A key without a default is required wherever its section is. Relative
paths are relative to the folder of the configuration that is run; utils.config.loading makes them absolute.
"""

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from models.backbones.specs import SPECS
from models.losses import LOSSES
from models.network import SUBNETS as SUBNET_TYPES
from utils.config.scalars import as_plain, as_text, as_value
from utils.limits import LAYERS, PIXELS, SIDE, WIDTH, WORKERS
from utils.reading import check_path, check_text


@dataclass(frozen=True)
class Kind:
    """What a type accepts, in the words of the error message."""

    words: str


def checked(check: Callable[[str], None]) -> Callable[[str], str]:
    """A check as a validator."""

    def validator(text: str) -> str:
        check(text)
        return text

    return validator


PATH = Kind("a path")
Int = Annotated[int, Kind("a whole number")]
Number = Annotated[int | float, Kind("a number")]
Bool = Annotated[bool, Kind("True or False")]
Text = Annotated[str, AfterValidator(checked(check_text)), Kind("a text")]
PathText = Annotated[str, AfterValidator(checked(check_path)), PATH]
Mapping = Annotated[dict[str, Any], Kind("a mapping of keys")]
PositiveInt = Annotated[int, Gt(0), Le(SIDE)]
Size = Annotated[list[PositiveInt], Len(2, 2), Kind("two positive whole numbers [height, width]")]
Triple = Annotated[list[int | float], Len(3, 3), Kind("three numbers, one a channel")]
Bools = Annotated[list[bool], Len(3, 3), Kind("three of True and False")]
Ints = Annotated[list[int], Len(1), Kind("a list of whole numbers")]
Strides = Annotated[list[PositiveInt], Len(1), Kind("a list of positive whole numbers")]
Names = Annotated[list[Annotated[str, AfterValidator(checked(check_text))]], Kind("a list of names")]


def key(meaning: str, default: Any = ..., ge: float | None = None, le: float | None = None) -> Any:
    return Field(default, ge=ge, le=le, description=meaning)


def section() -> Any:
    """A section that is read as empty where the file leaves it out: its required keys are missing then."""
    return Field(default_factory=dict, validate_default=True)


def parts_of(annotation: Any) -> Iterator[Any]:
    """The annotation and everything it is made of: members of unions, arguments of Annotated and list."""
    yield annotation
    if typing.get_origin(annotation) is not None or isinstance(annotation, UnionType):
        for part in typing.get_args(annotation):
            yield from parts_of(part)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field, or each item of it, is; None for a plain value."""
    return next((p for p in parts_of(field.annotation) if isinstance(p, type) and issubclass(p, BaseModel)), None)


def read_as(field: FieldInfo, value: Any) -> Any:
    """A value as the field's kind reads it: a text literally, numbers and lists as YAML does; sections read their own."""
    parts = list(parts_of(field.annotation))
    is_list, is_mapping = (any(typing.get_origin(part) is kind for part in parts) for kind in (list, dict))
    if section_of(field):
        return as_value(value)
    if is_mapping or not (str in parts or any(typing.get_origin(part) is Literal for part in parts)):
        return as_plain(value)
    if not is_list:
        return as_text(value)
    value = as_value(value)
    return list(map(as_text, value)) if isinstance(value, list) else value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def read_kinds(cls, raw: Any) -> Any:
        """A key's kind decides how it is read. null means that it is left out; False turns off an optional section, too."""
        if not isinstance(raw, dict):
            return raw
        fields = cls.model_fields
        raw = {str(name): read_as(fields[name], value) if name in fields else value for name, value in raw.items()}
        optional = {name for name, field in fields.items() if field.default is None and section_of(field)}
        return {name: None if value is False and name in optional else value for name, value in raw.items() if value is not None}


# --- data


class ReaderKwargs(Section):
    image_dir: PathText = key("custom: the folder to which the names in the list are relative")
    color_mode: Literal["RGB", "BGR", "GRAY"] = key("custom: channel order; GRAY is three equal channels", "RGB")
    max_pixels: Int = key(
        "custom: an image of more pixels is a bad image; a JPEG is decoded at a half to an eighth of its size instead (ours)",
        PIXELS,
        ge=1,
    )
    allow_outside: Bool = key("custom: names in the list may be absolute, or lead out of image_dir by .. (ours)", False)


class ImageReader(Section):
    type: Literal["opencv"] = key("custom: what decodes images", "opencv")
    kwargs: ReaderKwargs = section()


class FeatureCache(Section):
    mode: Literal["auto", "off"] = key(
        "auto: compute frozen features once and read them back; where they change, keep the resized images", "auto"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = key("number format of the stored features", "float32")
    check: Literal["sample", "all"] = key("which checksums are compared before a cache is used, of some rows or of all", "sample")
    dir: PathText = key("folder of the features, on a disk that all processes share", "feature_cache")


class ColorJitter(Section):
    brightness: Number = key("train: range of the brightness factor around 1", 0.1, ge=0)
    contrast: Number = key("train: range of the contrast factor around 1", 0.5, ge=0)
    hue: Number = key("train: range of the hue shift, in turns of the colour circle", 0.07, ge=0, le=0.5)
    saturation: Number = key("train: range of the saturation factor around 1", 0.5, ge=0)
    prob: Number = key("train: probability of each of the four adjustments", 0.5, ge=0, le=1)


class TileKeys(Section):
    size: Size = key("size of a tile in pixels of the photograph; it is resized to input_size")
    overlap: Int = key("pixels that neighbours share at least; less than the tile's sides", ge=0)


class DatasetKeys(Section):
    meta_file: PathText | None = key("custom: the JSON-lines list of images; stands in train and test", None)
    class_name: Text | None = key("custom: use only the images of this class; none: of all classes", None)
    separate: Bool = key("custom: train or evaluate one model a class, each below CLASS/, and join their tables", False)
    image_reader: ImageReader | None = None
    root_dir: PathText | None = key("cifar10: the folder that contains cifar-10-batches-py", None)
    normals: Ints | None = key("cifar10: ids of the classes that count as normal", None)
    input_size: Size = key("size to which images and masks are resized")
    crop: Size | None = key("then their middle part of this size is used (ours); none: all", None)
    pixel_mean: Triple = key("mean to subtract from pixel values in 0..1")
    pixel_std: Triple = key("deviation by which they are divided")
    batch_size: Int = key("images a batch in each process", ge=1)
    workers: Int = key("worker processes that read images, for each process", 2, ge=0, le=WORKERS)
    on_bad_image: Literal["stop", "skip"] = key(
        "custom: an image or mask that is missing or unreadable ends the run with its name, or is skipped, counted and reported; "
        "in training the next image takes its place",
        "stop",
    )
    on_defective_train: Literal["stop", "skip"] = key(
        "custom: a defective image in the training list ends the run with its line, or is skipped and counted; a vis decoder "
        "takes it",
        "stop",
    )
    holdout: Number = key("custom: share of each class's normal training images kept for calibrate.py", 0, ge=0, le=0.9)
    feature_cache: FeatureCache = section()
    rebalance: Bool = key("train: draw every class equally often in an epoch", False)
    drop_last: Bool = key("train: leave out an epoch's last batch if it is not full (ours)", False)
    hflip: Bool = key("train: mirror left-right half the time", False)
    vflip: Bool = key("train: mirror top-bottom half the time", False)
    rotate: Bool = key("train: turn by 0, 90, 180 or 270 degrees", False)
    colorjitter: ColorJitter | None = None
    pseudo_anomalies: Bool = key(
        "train: add to each image a copy with an artificial defect, for models.discriminators.Discriminator (ours)", False
    )


def optional(field: FieldInfo) -> Any:
    """The field's type, or None."""
    return (Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation) | None


# Dataset keys that hold for one split only; a key that is not given is taken from `dataset`.
DatasetPart = create_model(
    "DatasetPart",
    __base__=Section,
    **{name: (optional(field), Field(None, description=field.description)) for name, field in DatasetKeys.model_fields.items()},
)


class Dataset(DatasetKeys):
    type: Literal["custom", "cifar10"] = key("the data set class that reads the images")
    roi: PathText | list[list[str]] | None = key(
        "custom: only this part of a photograph counts: a mask file, or a .json of polygons; {clsname} in the path is each class "
        "(ours)",
        None,
    )
    tiles: TileKeys | None = Field(
        None, description="custom: photographs are cut into tiles, and the tiles' maps joined (ours); none: do not"
    )
    train: DatasetPart = section()
    test: DatasetPart = section()


class PictureData(Section):
    dataset_dir: PathText | None = key("vis_recon: the folder of the images, as image_dir above", None)
    feature_dir: PathText | None = key("vis_recon: the reconstructed features that evaluation saved (save_recon below)", None)
    input_size: Size = key("vis_recon, vis_query: as in dataset, the size that the vis decoder was trained with")
    pixel_mean: Triple = key("vis_recon, vis_query: as in dataset")
    pixel_std: Triple = key("vis_recon, vis_query: as in dataset")


# --- loss and training


class CriterionKwargs(Section):
    weight: Number = key("its weight in the sum", 1.0)


class CriterionItem(Section):
    name: Text = key("a name for the loss")
    type: Literal[tuple(LOSSES)] = key("which loss")  # type: ignore[valid-type]
    kwargs: CriterionKwargs = section()


class Scheduler(Section):
    type: Literal["StepLR", "OneCycleLR", "WarmupCosineLR"] = key(
        "which schedule; the others than StepLR act every step, up and then down over the whole run", "StepLR"
    )
    kwargs: Mapping = key("its arguments, as in torch.optim.lr_scheduler or utils.optim")


class Optimizer(Section):
    type: Literal["AdamW", "Adam", "SGD", "StableAdamW"] = key("which optimiser")
    kwargs: Mapping = key("its arguments, as in torch.optim or utils.optim")


class Trainer(Section):
    max_epoch: Int | None = key("epochs in all; Memory needs none", None, ge=1)
    max_step: Int | None = key("end after so many steps, if the epochs are not done before; none: no limit", None, ge=1)
    clip_max_norm: Number | None = key("scale gradients down to this norm; none: do not clip", None, ge=0)
    precision: Literal["float32", "bfloat16", "auto"] = key(
        "number format of the network; auto: float32, until bfloat16 is shown to be as good", "float32"
    )
    compile: Bool = key("torch.compile the trained subnets: minutes before the first step, no gain seen on CPU", False)
    cuda_graph: Bool = key("on one GPU, record a training step once and launch it as a whole; not yet measured on a GPU", True)
    val_freq_epoch: Int = key("evaluate every so many epochs, and after the last", 10, ge=1)
    print_freq_step: Int = key("a log line every so many steps", 50, ge=1)
    tb_freq_step: Int = key("TensorBoard scalars every so many steps", 10, ge=1)
    lr_scheduler: Scheduler | None = None
    optimizer: Optimizer | None = None


# --- files and evaluation


class Saver(Section):
    auto_resume: Bool = key("train: resume from save_dir's newest readable checkpoint if there is one", True)
    resume_model: PathText | None = key("train: resume from this checkpoint (auto_resume comes first)", None)
    init_from: PathText | None = key("train: start a new run from this checkpoint's weights (ours)", None)
    always_save: Bool = key("also keep ckpt_<epoch>.pth.tar of every evaluation", True)
    save_freq_step: Int | None = key(
        "train: also save every so many steps, for long epochs; none: only after each epoch", None, ge=1
    )
    load_path: PathText = key("evaluate (-e): the checkpoint", "checkpoints/ckpt.pth.tar")
    save_dir: PathText = key("folder of the checkpoints", "checkpoints")
    log_dir: PathText = key("folder of the log and of TensorBoard's files", "log")


class ScoreKwargs(Section):
    avgpool_size: Size | None = key("max: average the map over this window before the maximum", None)
    share: Number | None = key("top: the share of the pixels, the highest, whose mean is the score; none: 0.01", None, ge=0, le=1)


class ScoreItem(Section):
    name: Literal["mean", "std", "max", "top", "pixel"] = key("the image score to rank by, or pixel for the pixels themselves")
    kwargs: ScoreKwargs = section()


class PixelItem(Section):
    name: Literal["pixel"] = key("pixels only")


class Metrics(Section):
    auc: list[ScoreItem] = Field([], description="AUROC")
    ap: list[ScoreItem] = Field([], description="average precision")
    f1max: list[ScoreItem] = Field([], description="largest F1 over all thresholds")
    aupro: list[PixelItem] = Field([], description="per-region overlap up to a false-positive rate of 0.3")


class Compound(Section):
    """-e: image, mask and two heat maps side by side."""

    save_dir: PathText = key("folder of the pictures")
    max_score: Number | None = key("the map value drawn as hottest; none: the largest of all maps", None)
    min_score: Number | None = key("the map value drawn as coldest; none: the smallest of all maps", None)


class Single(Compound):
    """-e: image and heat map as separate files."""


class MapSection(Section):
    size: Size | None = key("resize the anomaly map to this size, and masks with it (ours); none: the network's", None)
    sigma: Number | None = key(
        "then smooth it with a Gaussian of this deviation, over 5x5 pixels (ours); none: do not", None, ge=0
    )


class Evaluator(Section):
    save_dir: PathText = key("folder of metrics.json, scores.csv, the table and the report", "result")
    key_metric: Text = key("the number that decides ckpt_best.pth.tar, e.g. mean_pixel_auc")
    metrics: Metrics = section()
    map: MapSection | None = None
    vis_compound: Compound | None = None
    vis_single: Single | None = None


# --- pictures of features: train_vis_decoder, vis_recon, vis_query


class Visualization(Section):
    vis_freq_epoch: Int = key("train_vis_decoder: draw check images every so many epochs", 10, ge=1)
    vis_dir: PathText = key("train_vis_decoder: folder of these pictures, below the class's folder", "vis")


class VisQuery(Section):
    model_path: PathText = key("the UniAD checkpoint whose learned queries are drawn")
    hidden_dim: Int | None = key("its hidden_dim; none: as in the checkpoint", None, ge=1)
    num_decoder_layers: Int | None = key("its num_decoder_layers; none: as in the checkpoint", None, ge=1)
    with_text: Bool = key("write the name of each picture above it", True)


# --- network

INITIAL = Literal["normal", "xavier_uniform", "xavier_normal", "msra_uniform", "msra_normal"]


class Initializer(Section):
    method: INITIAL = key("initial weights", "normal")


class BackboneKwargs(Section):
    pretrained: Bool = key("start from ImageNet weights", True)
    outlayers: Ints = key("layers whose feature maps are used, from 1")
    pretrained_model: PathText = key("file with the ImageNet weights; empty: bundled, cached or downloaded", "")


class TimmKwargs(Section):
    name: Text = key("the model as timm calls it, e.g. vit_base_patch14_reg4_dinov2")
    pretrained: Bool = key("start from its pretrained weights", True)
    outlayers: Ints = key("levels of a multi-scale model or blocks of a ViT to use, from 1")
    pretrained_model: PathText = key(
        "file with its weights (.pth, .safetensors); empty: from the hub's cache, else downloaded", ""
    )


class MFCNKwargs(Section):
    outstrides: Strides = key("stride of the one feature grid, e.g. [16]")
    standardise: Bool = key("give each channel mean 0 and deviation 1 over the training features (ours)", False)


class FeatureJitter(Section):
    scale: Number = key("noise in proportion to a token's norm", ge=0)
    prob: Number = key("probability that a batch gets noise", ge=0, le=1)


class NeighborMask(Section):
    neighbor_size: Size = key("window that a token does not attend to; 6 means 7")
    mask: Bools = key("whether to mask in [encoder, decoder attention 1, decoder attention 2]")


class SaveRecon(Section):
    save_dir: PathText = key("-e: folder of the reconstructed features, .npy")


class UniADKwargs(Section):
    pos_embed_type: Literal["learned", "sine"] = key("position embedding", "learned")
    hidden_dim: Int = key("width of a token inside the transformer", ge=1, le=WIDTH)
    nhead: Int = key("attention heads", ge=1, le=LAYERS)
    num_encoder_layers: Int = key("encoder layers", ge=0, le=LAYERS)
    num_decoder_layers: Int = key("decoder layers", ge=1, le=LAYERS)
    dim_feedforward: Int = key("width of the feed-forward", ge=1, le=WIDTH)
    dropout: Number = key("dropout rate, below 1", 0.1, ge=0, le=1)
    activation: Literal["relu", "gelu"] = key("activation of the feed-forward", "relu")
    normalize_before: Bool = key("norm before each sub-layer instead of after it", False)
    feature_jitter: FeatureJitter | None = None
    neighbor_mask: NeighborMask | None = None
    save_recon: SaveRecon | None = None
    initializer: Initializer | None = None


class MemoryKwargs(Section):
    max_tokens: Int = key("normal tokens to keep, an equal share for each class", 20000, ge=1)
    smooth: Int = key("side of the window over which features are averaged; 1: none", 3, ge=1, le=SIDE)
    coreset: Literal["greedy", "random"] = key("how they are chosen: far from each other, or at random", "greedy")
    distance: Literal["deviations", "angle"] = key(
        "channels in units of their deviation, or the angle between tokens", "deviations"
    )
    save_recon: SaveRecon | None = None


class DinomalyKwargs(Section):
    nhead: Int = key("attention heads", 12, ge=1, le=LAYERS)
    num_decoder_layers: Int = key("decoder layers, as many as the backbone's outlayers", 8, ge=1, le=LAYERS)
    groups: list[Ints] = key("which of these layers, from 0, are compared together", [[0, 1, 2, 3], [4, 5, 6, 7]])
    dropout: Number = key("dropout rate of the bottleneck, below 1", 0.2, ge=0, le=1)


class DiscriminatorKwargs(Section):
    outstride: Int = key("stride of its grid, e.g. 8, finer than the neck's", ge=1, le=SIDE)
    hidden_dim: Int = key("its channels", 128, ge=2, le=WIDTH)
    weight: Number = key("what a certain defect adds to the distance, in deviations", 3.0, ge=0)


class VisDecoderKwargs(Section):
    block_type: Literal["basic", "bottle"] = key("residual block")
    width: Int = key("channels of the last stage, the others in proportion; smaller is faster (ours)", 128, ge=8, le=WIDTH)
    initializer: Initializer | None = None


KWARGS: dict[str, type[Section]] = {
    "backbone": BackboneKwargs,
    "timm": TimmKwargs,
    "MFCN": MFCNKwargs,
    "UniAD": UniADKwargs,
    "Memory": MemoryKwargs,
    "Dinomaly": DinomalyKwargs,
    "Discriminator": DiscriminatorKwargs,
    "VisDecoder": VisDecoderKwargs,
}

# What `net[].type` may say, and whose kwargs it takes.
SUBNET_KINDS: dict[str, str] = {name: name.rsplit(".")[-1] for name in SUBNET_TYPES}
SUBNET_KINDS |= {f"models.backbones.{name}": "backbone" for name in SPECS}

RECONSTRUCTIONS = [kind for name, kind in SUBNET_KINDS.items() if name.startswith("models.reconstructions.")]
MAKES_MAPS = [kind for kind in RECONSTRUCTIONS if kind != "VisDecoder"]  # the kinds of subnets that make an anomaly map
MEMORY = "models.reconstructions.Memory"  # is filled, not trained


class Subnet(Section):
    name: Text = key("the subnet's name; prefix of its keys in a checkpoint")
    type: Literal[tuple(SUBNET_KINDS)] = key("which subnet")  # type: ignore[valid-type]
    prev: Text | None = key("name of the subnet before it", None)
    frozen: Bool = key("do not train it, as frozen_layers does", False)
    lr_scale: Number = key("factor of its learning rate (ours)", 1.0, ge=0)


SUBNETS: dict[str, type[Section]] = {
    kind: create_model(f"{kind}Subnet", __base__=Subnet, kwargs=(kwargs, section())) for kind, kwargs in KWARGS.items()
}


class Config(Section):
    """The whole configuration; a section that a file leaves out is not in the result."""

    run_dir: PathText | None = key(
        "folder of everything that a run writes; relative paths of checkpoints, log, results, pictures and caches lie in it", None
    )
    version: Text | None = key("a free label of the configuration", None)
    random_seed: Int | None = key("the process's rank is added; powers 1 to 4 seed numpy, torch, CUDA and Python", None, ge=0)
    reproduce: Bool = key("deterministic algorithms; needs a seed. The same run twice is bit-equal on a machine", False)
    port: Int | None = key(
        "Slurm: the port where rank 0 listens; if it is busy, a free one. MASTER_PORT comes first", None, ge=1024, le=55535
    )
    dataset: Dataset | None = None
    criterion: list[CriterionItem] = []
    trainer: Trainer | None = None
    saver: Saver | None = None
    evaluator: Evaluator | None = None
    visualization: Visualization | None = None
    data: PictureData | None = None
    vis_query: VisQuery | None = None
    frozen_layers: Names = key("names of subnets that are not trained", [])
    net: list[Subnet] = []
