"""What the names of folders and files say: good, defective, a split, masks."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "split", "rgb", "public"}
MASKS = {f"{word}{s}" for word in ("mask", "gt", "groundtruth", "annotation", "segmentation", "label") for s in ("", "s")}
MASKS |= {"seg", "maske", "masken"}
MASK_FILE = re.compile(
    r"(?:(?:mask|gt|ground[ _-]?truth)s?[ ._-]+)?(.+?)"
    r"(?:[ ._-]+(?:mask|gt|ground[ _-]?truth|label|annotation|seg|segmentation)s?(?P<number>[ ._-]*\d+)?)?"
)
DRAWN = r"(?:heat|defect|anomaly|score|error|attention)[ ._-]?maps?|overlays?"

GOOD = "goods?|ok|okay|normals?|pass|passed|intact|perfect|healthy|flawless|faultless|undamaged|golden|accept|accepted|io"
GOOD += "|nondefective|nonanomalous|defectfree"
GOOD += "|gute?|gutteile?|fehlerfrei|einwandfrei|bons?|bonnes?|conformes?|buen[oa]s?|buon[oaie]"
# Usual names of defects. A folder of another name beside a folder of good images counts as defective too.
BAD = (
    "(?:abnormal|anomal|bad|bend|bent|blister|broke|broken|bubble|burn|burr|chip|contaminat|contamination|corros|corrosion|crack"
)
BAD += "|fehler|fehlerhafte?|schlechte?|schlechtteile?|ausschuss|mangel|mängel|mangelhafte?|beschädigte?|kaputte?|mauvais"
BAD += "|défaut|défectueux|rebut|mal[oa]|defecto|defectuos[oa]|difetto|difettos[oa]|scart[oi]|defeito"
BAD += "|cut|damage|deform|def|defect|defekte?|dent|dirt|discolor|fail|failure|fault|faulty|flaw|fractur|fracture|fray|gouge|hole"
BAD += "|impurit|ko|misplac|misprint|missing|ng|nio|nogood|nok|notgood|outlier|pit|poke|reject|rust|scrap|scratch|scuff|smudge"
BAD += "|spot|stain|tear|torn|warp|worn|wrinkle)(?:s|es|d|ed|ing|y|ies|ive|ives|ous)?"
# Chinese, Japanese and Korean, which part no words.
GOOD_SIGNS = "良品|合格|正常|完好|양품|정상"
BAD_SIGNS = "不良|不合格|不正常|非正常|异常|異常|次品|废品|缺陷|瑕疵|欠陥|불량|비정상"
NOT = (  # what turns a good word into a bad one, and what a bad one into a good one
    rf"\b(?:(?:no|non|not|nicht|keine?|pas|almost|nearly|false|不|非|未) (?:{GOOD})"
    rf"|(?:not|nicht|keine?|never|pas)(?: \w+){{0,2}} (?:{GOOD})|(?:n|un) (?:ok|okay|io|good))\b"
)
WITHOUT = rf"\b(?:no|non|not|without|zero|ohne|nicht|keine?|sans|sin|senza|pas de) {BAD}\b|\b{BAD} (?:free|frei)\b"
WITHOUT += "|[无無](?:缺陷|瑕疵)"

# Two folders called so may be good and defective images, or two classes.
OPPOSITES = (("0", "1"), ("positive", "negative"), ("pos", "neg"), ("yes", "no"), ("true", "false"))


def fold(name: str) -> str:
    """The name as it is compared: macOS writes "ä" as two characters, and people type one; nor does case matter."""
    return unicodedata.normalize("NFC", name).casefold()


def words(name: str) -> list[str]:
    """The words of a name, without digits: "OK_front2", "okFront" give ok, front; "i.O." and "iO" io; "不OK" 不, ok."""
    signs = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
    apart = re.sub(rf"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[{signs}])|(?<=[{signs}])(?=[A-Za-z])", " ", name)
    text = " ".join(re.findall(r"[^\W\d_]+", fold(apart)))
    return re.sub(r"\b(n?)i o\b", r"\1io", text.replace("ground truth", "groundtruth")).split()


@dataclass(frozen=True)
class Names:
    """How names are read. `good` and `bad` are the user's own names of the folders of good and of defective images."""

    good: str | None = None  # ".": what no name calls defective is good
    bad: str | None = None

    def label(self, part: str) -> int | None:
        """0: the name says good, 1: defective, None: it says neither."""
        for label, own in ((1, self.bad), (0, self.good)):
            if own is not None and fold(part) == fold(own):
                return label
        text = " ".join(words(part))
        text = re.sub(NOT, "bad", re.sub(WITHOUT, "good", text))
        if re.search(rf"\b{BAD}\b|{BAD_SIGNS}", text):
            return 1
        return 0 if re.search(rf"\b(?:{GOOD})\b|{GOOD_SIGNS}", text) else None

    def says_only_good(self, part: str) -> bool:
        """Whether the name is "good" or "ok images", rather than "io board" or "normal bolt", which may name a product."""
        return all(word in FILLERS or self.label(word) == 0 for word in words(part))

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
    return bool(re.search(rf"\b(?:{DRAWN})\b", " ".join(words(part))))


def drawn_stem(name: str) -> str:
    """The stem of the photograph that a file was drawn over, by its name: 000_heatmap.jpg and 000.png give 000."""
    return re.sub(rf"(?:{DRAWN})[ ._-]+|[ ._-]+(?:{DRAWN})", "", fold(PurePosixPath(name).stem))


def mask_stem(name: str) -> str:
    """The stem of the image that a mask belongs to, by its name: 000_mask.png, mask-000.png, 000_mask_2.png give 000."""
    return MASK_FILE.fullmatch(fold(PurePosixPath(name).stem))[1]


def is_numbered_mask(name: str) -> bool:
    """Whether the name says that an image has several masks: 000_mask_1.png."""
    return bool(MASK_FILE.fullmatch(fold(PurePosixPath(name).stem))["number"])
