"""Evaluation: run a network over a test set in order, gather what it says, and report it as tables and files."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loading import ImageLoader
from datasets.roi import Roi
from datasets.tiled import TileDataset, tiles_of
from datasets.tiles import Layout
from models.necks import MFCN
from models.reconstructions.uniad import enlarge
from utils.errors import UserError
from utils.evaluation.maps import PLAIN, MapForm
from utils.evaluation.metrics import PIXEL, ScoreKey, evaluate_class, image_keys, image_score, wanted_metrics
from utils.evaluation.naming import feature_names
from utils.evaluation.results import KINDS, Results
from utils.files import to_cell, write_below, write_text
from utils.process.distributed import SINGLE_PROCESS, Process, gather_everywhere, to_device
from utils.process.precision import autocast
from utils.process.skipped import report_skipped

GALLERY = "report_gallery"  # of the result folder: the pictures in its report
INTERVALS = "intervals.json"  # of the result folder: see utils.evaluation.intervals
REGIONS, REGION_RATES = "regions.csv", "region_rates.json"  # of the result folder: see utils.evaluation.region_rates
AT_ONCE = 64  # maps of tiles in memory
DEFECT = "defect_percent"  # column of scores.csv: the share of the image, of what is inspected, that its mask marks


@dataclass
class Evaluation:
    """The outputs of a network on a test set, in the data set's order.

    Of an anomaly map its small grid of distances is kept, which says everything, and of a mask its bits; `map` and `mask` give
    them at full size, one at a time. Where photographs are cut into tiles, they join those of the tiles.
    """

    size: tuple[int, int]  # H, W of the network's maps
    indices: np.ndarray  # N, position in the data set
    grids: np.ndarray  # N x h x w float32, distances; with layouts N of T x h x w, of T tiles
    packed_masks: np.ndarray  # N of bytes, see pack_masks; with layouts N lists of T of them
    labels: np.ndarray  # N of {0, 1}
    losses: np.ndarray  # N, the loss of the image's batch
    clsnames: np.ndarray  # N texts
    filenames: np.ndarray  # N texts
    form: MapForm = PLAIN  # how maps are finished, and masks with them
    insides: dict[str, np.ndarray] = field(default_factory=dict)  # regions of interest by class, HxW bool as maps; else all
    layouts: Sequence[Layout] = ()  # N, of photographs that are cut into tiles, whose region of interest is in `roi`
    roi: Roi | None = None

    def __post_init__(self) -> None:
        self.known_scores: dict[ScoreKey, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.grids)

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """All parts as one, in the data set's order."""
        columns = [column.name for column in fields(cls) if column.name not in ("size", "form", "insides", "layouts", "roi")]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        order = np.argsort(joined["indices"])
        ordered = {name: values[order] for name, values in joined.items()}
        return cls(parts[0].size, **ordered, form=parts[0].form, insides=parts[0].insides)

    def of_photographs(self, tiles: TileDataset) -> "Evaluation":
        """The photographs, of an evaluation of their tiles. Raises UserError for one of which only some tiles were read."""
        numbers = np.array(tiles.photographs)[self.indices]
        photographs, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        layouts = [tiles.layouts[number] for number in photographs]
        for layout, count, start in zip(layouts, counts, first, strict=True):
            if count != len(layout.places):
                raise UserError(f"{self.filenames[start]}: only {count} of its {len(layout.places)} tiles could be read")
        grids, masks = (np.empty(len(first), object) for _ in range(2))
        for position, (start, count) in enumerate(zip(first, counts, strict=True)):
            grids[position] = self.grids[start : start + count]
            masks[position] = self.packed_masks[start : start + count].tolist()
        columns = {name: getattr(self, name)[first] for name in ("labels", "clsnames", "filenames")}
        losses = np.add.reduceat(self.losses, first) / counts
        more = {"form": self.form, "layouts": layouts, "roi": tiles.roi}
        return Evaluation(self.size, photographs, grids, masks, losses=losses, **columns, **more)

    @property
    def tile_size(self) -> tuple[int, int]:
        """H, W of what the network's maps become, and masks with them."""
        return self.form.size or self.size

    def map_size(self, position: int) -> tuple[int, int]:
        """H, W of a map and a mask."""
        return self.layouts[position].joined_size(self.tile_size) if self.layouts else self.tile_size

    def map(self, position: int) -> np.ndarray:
        """The anomaly map, HxW float32: what the network gave as `pred`, finished; 0 outside of the region of interest."""
        if self.layouts:
            anomaly_map = self.layouts[position].join(self._finished(self.grids[position]), self.tile_size)
        else:
            anomaly_map = next(self._finished(self.grids[position, None]))
        inside = self.inside(position)
        return anomaly_map if inside is None else np.where(inside, anomaly_map, np.float32(0))

    def _finished(self, grids: np.ndarray) -> Iterator[np.ndarray]:
        """Each map, HxW, of grids Bxhxw; a few at a time are in memory."""
        for start in range(0, len(grids), AT_ONCE):
            part = torch.from_numpy(grids[start : start + AT_ONCE])[:, None]
            yield from self.form(enlarge(part, self.size))[:, 0].numpy()

    def inside(self, position: int) -> np.ndarray | None:
        """The region of interest, HxW bool; None: all."""
        clsname = self.clsnames[position]
        return self.roi.of_map(clsname, self.map_size(position)) if self.roi else self.insides.get(clsname)

    def inspected(self, position: int) -> float:
        """The share of the image that is inspected."""
        inside = self.inside(position)
        return 1.0 if inside is None else float(inside.mean())

    def mask(self, position: int) -> np.ndarray:
        """HxW uint8 of {0, 1}."""
        packed = self.packed_masks[position]
        if not self.layouts:
            return unpack_mask(packed, self.tile_size)
        return self.layouts[position].join_masks((unpack_mask(one, self.tile_size) for one in packed), self.tile_size)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value of all maps."""
        maps = (self.map(position) for position in range(len(self)))
        lows, highs = zip(*((anomaly_map.min(), anomaly_map.max()) for anomaly_map in maps), strict=True)
        return float(min(lows)), float(max(highs))

    def scores(self, keys: Sequence[ScoreKey], process: Process = SINGLE_PROCESS) -> dict[ScoreKey, np.ndarray]:
        """The image scores `keys`, N each, computed once; with several processes each must call this, and they share the work."""
        if new := [key for key in keys if key not in self.known_scores]:
            own = range(process.rank, len(self), process.world_size)
            maps = ((self.map(position), self.inside(position)) for position in own)
            share = np.array([[image_score(one, *key, inside) for key in new] for one, inside in maps], np.float64)
            values = np.empty((len(self), len(new)))
            for rank, other in enumerate(gather_everywhere(share, process)):
                values[rank :: process.world_size] = other.reshape(-1, len(new))
            self.known_scores |= dict(zip(new, values.T, strict=True))
        return {key: self.known_scores[key] for key in keys}


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """NxHxW of {0, 1} as N bytes, eight pixels in each; none for an empty mask."""
    packed = np.packbits(masks.reshape(len(masks), -1) != 0, axis=1)  # N x HW/8
    return np.array([bits.tobytes() if bits.any() else b"" for bits in packed], dtype=object)


def unpack_mask(packed: bytes, size: tuple[int, int]) -> np.ndarray:
    """A mask of pack_masks, HxW uint8 of {0, 1}."""
    if not packed:
        return np.zeros(size, np.uint8)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=math.prod(size)).reshape(size)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: ImageLoader,
    criterion: nn.Module,
    process: Process,
    recon_dir: str | Path | None = None,
    precision: torch.dtype = torch.float32,
    form: MapForm = PLAIN,
) -> Evaluation:
    """Run the network in eval mode over every image of `loader`, whose sampler gives each process its own share.

    Returns the whole set's outputs in every process, all of which must call it. With `recon_dir`, reconstructed features are
    saved there as <class>/<kind>/<name>.npy, Cxhxw float32, not standardised. Images that the loader skips are in a line of the
    log and nowhere else. Of a data set of tiles the result is of its photographs. Raises UserError naming the image for a map
    that is not finite, and where all images were skipped.
    """
    network.eval()
    parts, data, tiles = [], loader.dataset, tiles_of(loader.dataset)
    regions = {} if tiles else {name: data.seen_inside(name) for name in set(data.clsnames)}
    insides = {name: form.inside(inside) for name, inside in regions.items() if inside is not None}
    names = feature_names(loader.dataset.filenames, loader.dataset.clsnames) if recon_dir is not None else []
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=None if process.is_main else True):
        with autocast(process.device, precision):
            outputs = network(to_device(batch, process.device))
        grids = outputs["distance"].squeeze(1).float().cpu()  # B x h x w
        finite = grids.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            raise UserError(f"{batch['filename'][int(finite.int().argmin())]}: its anomaly map holds values that are not finite")
        if recon_dir is not None:
            neck = next(subnet for subnet in network.children() if isinstance(subnet, MFCN))
            features = neck.in_backbone_units(outputs["feature_rec"])  # which vis decoders draw
            save_reconstructions(features, recon_dir, [names[index] for index in batch["index"]])
        parts.append(
            Evaluation(  # of copies: a tensor that a worker made keeps a file open for as long as it lives
                size=tuple(outputs["pred"].shape[2:]),
                indices=batch["index"].numpy().copy(),
                grids=grids.numpy(),
                packed_masks=pack_masks(form.mask(batch["mask"]).numpy()),
                labels=batch["label"].numpy().copy(),
                losses=np.full(len(grids), criterion(outputs).item()),
                clsnames=np.array(batch["clsname"], dtype=object),
                filenames=np.array(batch["filename"], dtype=object),
                form=form,
                insides=insides,
            )
        )
    report_skipped(loader, process, "evaluation")
    if not (joined := [part for share in gather_everywhere(parts, process) for part in share]):
        raise UserError(f"no image of the test set can be read, of {len(loader.dataset)}: see the log")
    evaluation = Evaluation.join(joined)
    return evaluation.of_photographs(tiles) if tiles else evaluation


def save_reconstructions(feature_rec: Tensor, folder: str | Path, names: Sequence[PurePath]) -> None:
    """feature_rec: BxCxhxw; one file an image, <folder>/<name>.npy, Cxhxw float32."""
    for features, name in zip(feature_rec.float().cpu().numpy(), names, strict=True):
        write_below(folder, f"{name}.npy", lambda file, features=features: np.save(file, features))


def compute_metrics(evaluation: Evaluation, metrics: dict[str, Any], process: Process = SINGLE_PROCESS) -> Results:
    """The metrics of evaluate_maps. With several processes each must call this, and they share the work."""
    wanted = wanted_metrics(metrics)
    scores = evaluation.scores(image_keys(wanted), process)
    classes = [clsname for clsname, _ in Counter(evaluation.clsnames.tolist()).most_common()]

    def read(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return evaluation.map(i), evaluation.mask(i), evaluation.inside(i)

    values = {}
    for clsname in classes[process.rank :: process.world_size]:  # each process has large ones and small ones
        chosen = np.flatnonzero(evaluation.clsnames == clsname)
        pixels = sum(math.prod(evaluation.map_size(i)) for i in chosen)
        values[clsname] = evaluate_class(chosen, read, evaluation.labels, scores, wanted, pixels)
    rows = {c: v for share in gather_everywhere(values, process) for c, v in share.items()}
    return Results.of([(name, kind) for kind, (name, _) in wanted], rows)


def score_columns(metrics: dict[str, Any]) -> dict[str, ScoreKey]:
    """The image scores that are configured, by name; of several windows the last."""
    wanted = wanted_metrics({kind: metrics.get(kind) for kind in KINDS})
    return {key[0]: key for _, key in wanted if key != PIXEL}


def write_results(folder: str | Path, evaluation: Evaluation, results: Results, metrics: dict[str, Any]) -> None:
    """Write metrics.json, table.txt and scores.csv, a line an image, into the result folder."""
    write_table(folder, results)
    columns = score_columns(metrics)
    scores = [[f"{value:.8g}" for value in values] for values in evaluation.scores(list(columns.values())).values()]
    shares = [evaluation.mask(i).mean() / evaluation.inspected(i) for i in range(len(evaluation))]
    defects = [f"{100 * share:.6g}" for share in shares]
    names = (map(to_cell, column) for column in (evaluation.filenames, evaluation.clsnames))
    rows = zip(*names, map(str, evaluation.labels), *scores, defects, strict=True)
    lines = [("filename", "clsname", "label", *columns, DEFECT), *rows]
    write_text(Path(folder) / "scores.csv", "".join(",".join(line) + "\n" for line in lines))


def write_table(folder: str | Path, results: Results) -> None:
    """Write metrics.json and table.txt into the result folder, and remove what else an earlier evaluation wrote."""
    folder = Path(folder)
    for name in ("report.html", "run.json", "scores.csv", INTERVALS, REGIONS, REGION_RATES):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / GALLERY, ignore_errors=True)
    results.write(folder)
