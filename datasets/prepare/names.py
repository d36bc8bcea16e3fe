"""What the names of folders and files say: good, defective, a split, masks."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "split", "rgb", "public"}
MASKS = {f"{word}{s}" for word in ("mask", "gt", "groundtruth", "annotation", "segmentation", "label") for s in ("", "s")}
MASKS |= {"seg", "maske", "masken"}
MASK_FILE = re.compile(
    r"(?:(?:mask|gt|ground[ _-]?truth)s?[ ._-]+)?(.+?)"
    r"(?:[ ._-]+(?:mask|gt|ground[ _-]?truth|label|annotation|seg|segmentation)s?)?"
)

GOOD = "goods?|ok|okay|normals?|pass|passed|intact|perfect|healthy|flawless|faultless|undamaged|golden|accept|accepted|io"
GOOD += "|nondefective|nonanomalous|defectfree|gut"
# Usual names of defects. A folder of another name beside a folder of good images counts as defective too.
BAD = (
    "(?:abnormal|anomal|bad|bend|bent|blister|broke|broken|bubble|burn|burr|chip|contaminat|contamination|corros|corrosion|crack"
)
BAD += "|fehler|fehlerhaft|schlecht"
BAD += "|cut|damage|deform|def|defect|defekt|dent|dirt|discolor|fail|failure|fault|faulty|flaw|fractur|fracture|fray|gouge|hole"
BAD += "|impurit|ko|misplac|misprint|missing|ng|nio|nogood|nok|notgood|outlier|pit|poke|reject|rust|scrap|scratch|scuff|smudge"
BAD += "|spot|stain|tear|torn|warp|worn|wrinkle)(?:s|es|d|ed|ing|y|ies|ive|ives|ous)?"

# Two folders called so may be good and defective images, or two classes.
OPPOSITES = (("0", "1"), ("positive", "negative"), ("pos", "neg"), ("yes", "no"), ("true", "false"))


def words(name: str) -> list[str]:
    """The words of a name, without digits: "OK_front2" and "okFront" give ok, front."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(
        r"[^\W\d_]+", apart.casefold().replace("ground truth", "groundtruth").replace("ground_truth", "groundtruth")
    )


@dataclass(frozen=True)
class Names:
    """How names are read. `good` and `bad` are the user's own names of the folders of good and of defective images."""

    good: str | None = None  # ".": what no name calls defective is good
    bad: str | None = None

    def label(self, part: str) -> int | None:
        """0: the name says good, 1: defective, None: it says neither."""
        for label, own in ((1, self.bad), (0, self.good)):
            if own is not None and part.casefold() == own.casefold():
                return label
        text = " ".join(words(part))
        text = re.sub(rf"\b(?:no|non|not|without|zero) {BAD}\b|\b{BAD} free\b", "good", text)
        text = re.sub(rf"\b(?:no|non|not) (?:{GOOD})\b", "bad", text)
        return 1 if re.search(rf"\b{BAD}\b", text) else 0 if re.search(rf"\b(?:{GOOD})\b", text) else None

    def split(self, part: str) -> str | None:
        """train, test or validation: for "Train", "test_set", "train_good", but not for "test piece"."""
        found = words(part)
        split = next((SPLITS[word] for word in found if word in SPLITS), None)
        return split if self.label(part) is not None or set(found) <= SPLITS.keys() | FILLERS else None

    def is_kind(self, part: str) -> bool:
        """Whether the name is more than a split: it names a kind of image."""
        return not self.split(part) or not set(words(part)) <= SPLITS.keys() | FILLERS


def names_masks(part: str) -> bool:
    """Whether a folder is called masks; "label" only in the last place, as a product can be called "label printer"."""
    found = words(part)
    return any(word in MASKS and not word.startswith("label") for word in found) or bool(found and found[-1] in MASKS)


def is_called_masks(part: str) -> bool:
    """Whether the name says masks and nothing else: "bottle label" may be a class, "labels" may not."""
    return set(words(part)) <= MASKS | FILLERS and names_masks(part)


def names_drawings(part: str) -> bool:
    """Whether a folder is called after what is drawn over photographs: heatmaps, defect_map, anomaly maps, overlays."""
    return bool(re.search(r"\b(?:heat|defect|anomaly|score|error|attention) ?maps?\b|\boverlays?\b", " ".join(words(part))))


def mask_stem(name: str) -> str:
    """The stem of the image that a mask belongs to, by its name: 000_mask.png, mask-000.png and 000.png give 000."""
    return MASK_FILE.fullmatch(PurePosixPath(name).stem.casefold())[1]
