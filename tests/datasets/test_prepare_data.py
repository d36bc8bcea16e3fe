"""tools/prepare_data.py on trees laid out as each data set's publisher does; datasets/prepare says who documents a layout."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.lists import read_list
from datasets.prepare import KINDS, read_layout
from tests.helpers.tiny import ROOT, environment, save_image
from tools.prepare_data import main
from utils.errors import UserError

MVTEC = ROOT / "data" / "MVTec-AD"


def paint(root: Path, *names: str) -> None:
    """An image of its own for each name, 24 x 16 pixels."""
    for name in names:
        rng = np.random.default_rng(list(name.encode()))
        save_image(root / name, cv2.resize(rng.integers(40, 256, (4, 6, 3), dtype=np.uint8), (24, 16)))


def paint_masks(root: Path, *names: str, value: int = 255) -> None:
    """For each name a mask of 24 x 16 pixels; the second row of the first is marked, the third row of the second, …"""
    for row, name in enumerate(names, 1):
        mask = np.zeros((16, 24), np.uint8)
        mask[row] = value
        save_image(root / name, mask)


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """Run the tool on tmp_path/root; returns the lists it wrote, as rows (filename, label, maskname, clsname), and its table."""

    def run(kind: str, *options: str) -> tuple[dict[str, list[tuple]], list[list[str]]]:
        out = tmp_path / "out"
        arguments = [kind, "--root", str(tmp_path / "root"), "--out", str(out), "--workers", "2", *options]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
        main()
        lists = {path.stem: [tuple(line.values()) for line in read_list(path)] for path in out.glob("*.json")}
        return lists, [line.split() for line in capsys.readouterr().out.splitlines()]

    return run


# --- the published data sets ---


@pytest.mark.parametrize("kind", ["mvtec", "mpdd"])
def test_mvtec_and_mpdd(tmp_path, prepare, kind):
    paint(tmp_path / "root", *(f"bracket_black/train/good/00{i}.png" for i in range(3)))
    paint(
        tmp_path / "root", "bracket_black/test/good/000.png", "bracket_black/test/hole/000.png", "bracket_black/test/hole/001.png"
    )
    paint_masks(tmp_path / "root", "bracket_black/ground_truth/hole/000_mask.png", "bracket_black/ground_truth/hole/001_mask.png")
    paint(tmp_path / "root", "tube/train/good/000.png", "tube/test/good/000.png")
    lists, rows = prepare(kind)
    assert lists["train"] == [
        *((f"bracket_black/train/good/00{i}.png", 0, None, "bracket_black") for i in range(3)),
        ("tube/train/good/000.png", 0, None, "tube"),
    ]
    assert lists["test"] == [
        ("bracket_black/test/good/000.png", 0, None, "bracket_black"),
        ("bracket_black/test/hole/000.png", 1, "bracket_black/ground_truth/hole/000_mask.png", "bracket_black"),
        ("bracket_black/test/hole/001.png", 1, "bracket_black/ground_truth/hole/001_mask.png", "bracket_black"),
        ("tube/test/good/000.png", 0, None, "tube"),
    ]
    assert [row[:5] for row in rows[1:4]] == [["bracket_black", *"3122"], ["tube", *"1100"], ["total", *"4222"]]


def visa_images(root: Path) -> None:
    paint(root, "candle/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0001.JPG", "candle/Data/Images/Anomaly/000.JPG")
    paint_masks(root, "candle/Data/Masks/Anomaly/000.png", value=3)  # a kind of defect


def test_visa_with_its_table_of_splits(tmp_path, prepare):
    root = tmp_path / "root"
    visa_images(root)
    (root / "split_csv").mkdir()
    with open(root / "split_csv" / "1cls.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["object", "split", "label", "image", "mask"])
        rows.writerow(["candle", "train", "normal", "candle/Data/Images/Normal/0001.JPG", ""])
        rows.writerow(["candle", "test", "normal", "candle/Data/Images/Normal/0000.JPG", ""])
        rows.writerow(["candle", "test", "anomaly", "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"])
    lists, table = prepare("visa")
    assert lists["train"] == [("candle/Data/Images/Normal/0001.JPG", 0, None, "candle")]
    assert lists["test"] == [
        ("candle/Data/Images/Anomaly/000.JPG", 1, "candle/Data/Masks/Anomaly/000.png", "candle"),
        ("candle/Data/Images/Normal/0000.JPG", 0, None, "candle"),
    ]
    assert table[1][:5] == ["candle", *"1111"]
    assert "empty" not in table[1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\n", "1cls.csv: its first line must name the columns object, split"),
        ("object,split,label,image,mask\nc,train,normal,a.JPG,\nc,train,good,b.JPG,\n", "1cls.csv:3: split must be"),
    ],
)
def test_a_table_of_another_form_is_named(tmp_path, table, message):
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        read_layout("visa", tmp_path)


def test_visa_as_its_authors_script_lays_it_out(tmp_path, prepare):
    paint(tmp_path / "root/1cls/pcb1", "train/good/0005.JPG", "test/good/0001.JPG", "test/bad/000.JPG")
    paint_masks(tmp_path / "root/1cls/pcb1", "ground_truth/bad/000.png")
    lists, _ = prepare("visa")
    assert lists["train"] == [("1cls/pcb1/train/good/0005.JPG", 0, None, "pcb1")]
    assert lists["test"] == [
        ("1cls/pcb1/test/bad/000.JPG", 1, "1cls/pcb1/ground_truth/bad/000.png", "pcb1"),
        ("1cls/pcb1/test/good/0001.JPG", 0, None, "pcb1"),
    ]


def test_btad(tmp_path, prepare):
    paint(tmp_path / "root", "01/train/ok/0000.bmp", "01/test/ok/0000.bmp", "01/test/ko/0000.bmp")
    paint(tmp_path / "root", "02/train/ok/0001.png", "02/test/ok/0000.png", "02/test/ko/0003.png")
    paint_masks(tmp_path / "root", "01/ground_truth/ko/0000.png", "02/ground_truth/ko/0003.png")
    paint(tmp_path / "root", "03/train/ok/0000.bmp", "03/test/ko/0000.bmp")
    paint_masks(tmp_path / "root", "03/ground_truth/ko/0000.bmp")
    lists, rows = prepare("btad")
    assert [row[0] for row in lists["train"]] == ["01/train/ok/0000.bmp", "02/train/ok/0001.png", "03/train/ok/0000.bmp"]
    assert lists["test"] == [
        ("01/test/ko/0000.bmp", 1, "01/ground_truth/ko/0000.png", "01"),
        ("01/test/ok/0000.bmp", 0, None, "01"),
        ("02/test/ko/0003.png", 1, "02/ground_truth/ko/0003.png", "02"),
        ("02/test/ok/0000.png", 0, None, "02"),
        ("03/test/ko/0000.bmp", 1, "03/ground_truth/ko/0000.bmp", "03"),
    ]
    assert rows[3][:5] == ["03", *"1011"]


@pytest.mark.parametrize("folder", ["realiad_jsons", "realiad_jsons/realiad_jsons"])
def test_real_iad(tmp_path, prepare, folder):
    root = tmp_path / "root"
    good, tested = "OK/S0001/audiojack_0001_OK_C1_20231021.jpg", "OK/S0002/audiojack_0002_OK_C1_20231021.jpg"
    bent, mask = "NG/BX/S0003/audiojack_0003_BX_C1_20231022.jpg", "NG/BX/S0003/audiojack_0003_BX_C1_20231022.png"
    paint(root, *(f"{size}/audiojack/{name}" for size in ("realiad_512", "realiad_1024") for name in (good, tested, bent)))
    paint_masks(root, *(f"{size}/audiojack/{mask}" for size in ("realiad_512", "realiad_1024")))

    def entry(kind: str, image: str, mask: str | None = None) -> dict:
        return {"category": "audiojack", "anomaly_class": kind, "image_path": image, "mask_path": mask}

    content = {
        "meta": {"prefix": "audiojack/", "normal_class": "OK"},
        "train": [entry("OK", good)],
        "test": [entry("OK", tested), entry("BX", bent, mask)],
    }
    (root / folder).mkdir(parents=True)
    (root / folder / "audiojack.json").write_text(json.dumps(content))
    lists, rows = prepare("real_iad")
    prefix = "realiad_512/audiojack"  # the smaller of the sizes that are there
    assert lists["train"] == [(f"{prefix}/{good}", 0, None, "audiojack")]
    assert lists["test"] == [
        (f"{prefix}/{bent}", 1, f"{prefix}/{mask}", "audiojack"),
        (f"{prefix}/{tested}", 0, None, "audiojack"),
    ]
    assert rows[1][:5] == ["audiojack", *"1111"]


def test_elpv_takes_0_as_good_above_a_half_as_defective_and_leaves_out_what_is_between(tmp_path, prepare):
    root, cells = tmp_path / "root", [(kind, p) for kind in ("mono", "poly") for p in ("0.0", "0.0", "0.3333333333333333", "1.0")]
    names = [f"images/cell{number:04d}.png" for number in range(len(cells))]
    paint(root, *names)
    lines = [f"{name}  {p}  {kind}\n" for name, (kind, p) in zip(names, cells, strict=True)]
    (root / "labels.csv").write_text("".join(lines))
    lists, rows = prepare("elpv", "--test_share", "0")
    good = [(names[number], 0, None, kind) for number, kind in ((0, "mono"), (1, "mono"), (4, "poly"), (5, "poly"))]
    assert [row[:4] for row in lists["train"]] == good
    assert lists["test"] == [(names[3], 1, None, "mono"), (names[7], 1, None, "poly")]
    assert "images/ 2 images: left out (defective with probability 0.3333333333333333)" in map(" ".join, rows)
    with pytest.raises(UserError, match="it looks like the kind 'elpv'"):
        read_layout("folder", root)
    (root / "labels.csv").write_text("".join(lines) + "images/cell0009.png  2  mono\n")
    with pytest.raises(UserError, match=r"labels\.csv:9: expected an image, a probability from 0 to 1 and a kind of cell"):
        prepare("elpv")


def test_real_iad_without_images_or_with_another_file_says_so(tmp_path):
    (tmp_path / "realiad_jsons").mkdir()
    (tmp_path / "realiad_jsons" / "toy.json").write_text("[]")
    with pytest.raises(UserError, match="none of the image folders realiad_256, realiad_512, realiad_1024"):
        read_layout("real_iad", tmp_path)
    (tmp_path / "realiad_256").mkdir()
    with pytest.raises(UserError, match=r"toy\.json is not a class's list of Real-IAD"):
        read_layout("real_iad", tmp_path)


def test_mvtec_loco_joins_the_masks_of_an_image_and_keeps_validation_apart(tmp_path, prepare):
    root = tmp_path / "root"
    paint(root / "splicing", "train/good/000.png", "validation/good/000.png", "validation/good/001.png", "test/good/000.png")
    paint(
        root / "splicing", *(f"test/{kind}_anomalies/{name}.png" for kind in ("logical", "structural") for name in ("000", "001"))
    )
    one = "splicing/ground_truth/structural_anomalies/000/000.png"
    joined = "splicing/ground_truth/logical_anomalies/001.png"
    paint_masks(root, one)
    paint_masks(root / "splicing/ground_truth", *(f"logical_anomalies/001/00{i}.png" for i in range(3)), value=209)
    for _ in range(2):  # the second time the joined mask is there already
        lists, rows = prepare("mvtec_loco")
        assert lists["train"] == [("splicing/train/good/000.png", 0, None, "splicing")]
        assert lists["validation"] == [(f"splicing/validation/good/00{i}.png", 0, None, "splicing") for i in range(2)]
        assert [row[1:3] for row in lists["test"]] == [
            (0, None),
            (1, None),
            (1, joined),
            (1, one),
            (1, None),
        ]
        assert rows[1][:5] == ["splicing", *"1142"]
        assert "2 held out in validation.json" in " ".join(rows[1])
    mask = cv2.imread(str(root / joined), cv2.IMREAD_UNCHANGED)
    assert mask.any(axis=1).tolist() == [False, True, True, True] + [False] * 12
    assert set(np.unique(mask)) == {0, 255}


# --- one's own images ---


def test_own_images_split_already(tmp_path, prepare):
    paint(tmp_path / "root", "train/OK/a.png", "test/ok/b.png", "test/scratch/c.png")
    paint_masks(tmp_path / "root", "ground_truth/scratch/c_mask.png")
    lists, _ = prepare("folder")
    assert lists["train"] == [("train/OK/a.png", 0, None, "root")]
    assert lists["test"] == [
        ("test/ok/b.png", 0, None, "root"),
        ("test/scratch/c.png", 1, "ground_truth/scratch/c_mask.png", "root"),
    ]


@pytest.mark.parametrize("folder", ["", "nut/"])
def test_own_images_sorted_into_good_and_bad(tmp_path, prepare, folder):
    names = [f"{folder}Good/{day}/{i}.jpg" for day in ("mon", "tue") for i in range(10)]
    paint(tmp_path / "root", *names, f"{folder}bad/0.png", f"{folder}bad/late/1.png", f"{folder}scratch/2.png")
    paint_masks(tmp_path / "root", f"{folder}ground_truth/bad/late/1.png", f"{folder}ground_truth/scratch/2_mask.png")
    lists, rows = prepare("folder")
    clsname = folder.strip("/") or "root"
    good = [row for row in lists["test"] if row[1] == 0]
    assert 1 <= len(good) < len(lists["train"])
    assert sorted(row[0] for row in lists["train"] + good) == names
    assert [row for row in lists["test"] if row[1] == 1] == [
        (f"{folder}bad/0.png", 1, None, clsname),
        (f"{folder}bad/late/1.png", 1, f"{folder}ground_truth/bad/late/1.png", clsname),
        (f"{folder}scratch/2.png", 1, f"{folder}ground_truth/scratch/2_mask.png", clsname),
    ]
    assert rows[1][:5] == [clsname, str(len(lists["train"])), str(len(good)), "3", "2"]
    assert {row[3] for row in lists["train"]} == {clsname}


def test_the_folders_of_good_and_bad_images_can_be_named(tmp_path, prepare):
    paint(tmp_path / "root", *(f"pass/{i}.png" for i in range(5)), "fail/0.png", "not sorted yet/0.png")
    lists, _ = prepare("folder", "--good", "pass", "--bad", "FAIL", "--test_share", "0.4")
    assert [row[0] for row in lists["test"] if row[1]] == ["fail/0.png"]
    assert [len(lists["train"]), len(lists["test"])] == [3, 3]
    with pytest.raises(UserError, match="there is no folder 'broken' with images in it"):
        prepare("folder", "--good", "pass", "--bad", "broken")


def test_photographs_are_all_good_and_a_share_of_each_class_is_kept_for_testing(tmp_path, prepare):
    paint(tmp_path / "root", *(f"cup/{i}.png" for i in range(10)), *(f"mug/{i}.png" for i in range(5)))
    lists, rows = prepare("folder")
    assert [(row[0], int(row[1]) + int(row[2]), row[3]) for row in rows[1:3]] == [("cup", 10, "0"), ("mug", 5, "0")]
    assert all(int(row[1]) and int(row[2]) for row in rows[1:3])
    assert {row[1] for row in lists["train"] + lists["test"]} == {0}
    assert "no defective test images" in " ".join(rows[1])


def test_photographs_without_folders_are_one_class_named_after_their_folder(tmp_path, prepare):
    paint(tmp_path / "root", *(f"{i}.png" for i in range(9)), "later/9.png")
    lists, rows = prepare("folder", "--good", ".")
    assert rows[1][:4] == ["root", *"820"]
    assert len({row[0] for row in lists["train"] + lists["test"]}) == 10


def test_without_a_test_share_there_is_a_training_list_only(tmp_path, prepare):
    paint(tmp_path / "root", *(f"{i}.png" for i in range(9)))
    lists, rows = prepare("folder", "--test_share", "0")
    assert {name: len(rows) for name, rows in lists.items()} == {"train": 9}
    assert "no image is left for test.json" in " ".join(rows[-1])


def test_what_was_test_stays_test_when_photographs_are_added(tmp_path, prepare):
    paint(tmp_path / "root", *(f"{i}.png" for i in range(60)))
    before, _ = prepare("folder")
    paint(tmp_path / "root", *(f"new {i}.png" for i in range(15)))
    (tmp_path / "root/7.png").rename(tmp_path / "root/renamed.png")
    after, _ = prepare("folder")
    sides = {split: {row[0].replace("renamed", "7") for row in after[split]} for split in after}
    assert all({row[0] for row in before[split]} <= sides[split] for split in before)


def test_the_split_follows_from_the_seed(tmp_path, prepare):
    paint(tmp_path / "root", *(f"{i}.png" for i in range(30)))
    drawn = [prepare("folder", "--seed", seed)[0] for seed in ("0", "0", "1")]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    for lists in drawn:
        assert len(lists["train"] + lists["test"]) == 30


def labels(scan) -> dict[str, int]:
    return {line["filename"]: line["label"] for line in scan.records()}


@pytest.mark.parametrize(
    ("names", "defective", "masks"),
    [
        (["good/0", "crack/0", "mask/crack/0"], ["crack/0"], ["mask/crack/0"]),
        (["v/Train/Good/0", "v/Test/Good/1", "v/Test/Scratch/2"], ["v/Test/Scratch/2"], []),
        (["TRAIN/OK/0", "TEST/NOK/0", "Labels/Test/NOK/0_GT"], ["TEST/NOK/0"], ["Labels/Test/NOK/0_GT"]),
        (["training/ok_front/0", "testing/def_front/1"], ["testing/def_front/1"], []),
        (["train/0", "test/scratch/1", "Ground Truth/scratch/1"], ["test/scratch/1"], ["Ground Truth/scratch/1"]),
        (["train_good/0", "test_bad/1", "test_good/2"], ["test_bad/1"], []),
        (["c/defect_free/0", "c/with defects/1", "c/annotations/1"], ["c/with defects/1"], ["c/annotations/1"]),
        (["not_good/0", "goodParts/1"], ["not_good/0"], []),
        (["good/0", "bad/images/1", "bad/masks/1"], ["bad/images/1"], ["bad/masks/1"]),
        (["images/good/0", "images/bad/1", "masks/bad/1"], ["images/bad/1"], ["masks/bad/1"]),
        (["a/good/0", "a/bad/0", "b/good/0", "b/bad/1", "masks/b/bad/1"], ["a/bad/0", "b/bad/1"], ["masks/b/bad/1"]),
        (["gut/0", "schlecht/1", "maske/schlecht/1"], ["schlecht/1"], ["maske/schlecht/1"]),
        (["chip_1", "chip_2"], [], []),
        (["good/0", "bad/1", "bad/1_mask", "good/0-label"], ["bad/1"], ["bad/1_mask"]),
        (["good/0", "Defekte Teile/1", "unknown/2"], ["unknown/2", "Defekte Teile/1"], []),
        (
            ["bagel/train/good/rgb/0", "bagel/test/hole/rgb/1", "bagel/test/hole/gt/1"],
            ["bagel/test/hole/rgb/1"],
            ["bagel/test/hole/gt/1"],
        ),
        (
            ["can/train/good/0", "can/validation/good/1", "can/test_public/bad/2", "can/test_public/ground_truth/bad/2_mask"],
            ["can/test_public/bad/2"],
            ["can/test_public/ground_truth/bad/2_mask"],
        ),
        (["bottle_label/good/0", "bottle_label/bad/1"], ["bottle_label/bad/1"], []),
        (["OK/0", "nOK/1"], ["nOK/1"], []),
        (["cup/iO/0", "cup/niO/1"], ["cup/niO/1"], []),
        (["cup/i.O/0", "cup/n.i.O/1"], ["cup/n.i.O/1"], []),
        (["Gutteile/0", "Ausschuss/1"], ["Ausschuss/1"], []),
        (["ohne Fehler/0", "nicht ok/1"], ["nicht ok/1"], []),
        (["良品/0", "不良品/1"], ["不良品/1"], []),
        (["无缺陷/0", "不OK/1"], ["不OK/1"], []),
        (["conforme/0", "non conforme/1"], ["non conforme/1"], []),
        (["sans défaut/0", "de\u0301faut/1"], ["de\u0301faut/1"], []),
        (["정상/0", "불량/1"], ["불량/1"], []),
        (["ok_part/0", "bad_part/1"], ["bad_part/1"], []),
        (["good/0", "bad/a\u0308", "masks/bad/ä"], ["bad/a\u0308"], ["masks/bad/ä"]),
        (["good/0", "good/0_heatmap", "bad/1", "bad/overlay-1", "bad/1 anomaly map"], ["bad/1"], []),
    ],
)
def test_usual_names_say_which_images_are_good_which_defective_and_which_masks(tmp_path, names, defective, masks):
    paint(tmp_path, *(f"{name}.png" for name in names))
    scan = read_layout("folder", tmp_path)
    found = labels(scan)
    assert {name for name, label in found.items() if label} == {f"{name}.png" for name in defective}
    assert {line["maskname"] for line in scan.records() if "maskname" in line} == {f"{name}.png" for name in masks}
    assert found.keys() | {f"{name}.png" for name in masks} | scan.left_out.keys() == {f"{name}.png" for name in names}


def test_several_masks_of_an_image_are_joined(tmp_path, prepare):
    paint(tmp_path / "root", *(f"cup/good/{i}.png" for i in range(9)), "cup/bad/0.png", "cup/bad/1.png")
    paint_masks(tmp_path / "root", "cup/gt/bad/0_mask_1.png", "cup/gt/bad/0_mask_2.png", "cup/gt/bad/1_mask_1.png")
    for _ in range(2):  # what the first run has joined, the second finds
        lists, _ = prepare("folder")
        masks = {line[0]: line[2] for line in lists["test"] if line[1]}
        assert masks == {"cup/bad/0.png": "cup/gt/bad/0_mask.png", "cup/bad/1.png": "cup/gt/bad/1_mask_1.png"}
        marked = cv2.imread(str(tmp_path / "root/cup/gt/bad/0_mask.png"), cv2.IMREAD_GRAYSCALE).any(axis=1)
        assert list(np.flatnonzero(marked)) == [1, 2]


def test_an_option_names_a_folder_of_either_form_of_unicode(tmp_path, prepare):
    paint(tmp_path / "root", *(f"cup/fu\u0308r gut/{i}.png" for i in range(9)), "cup/andere/0.png")
    lists, _ = prepare("folder", "--good", "für gut")
    assert [line[0] for line in lists["test"] if line[1]] == ["cup/andere/0.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fine/0", "bad/0"], "'bad' sounds like defective images.*--good"),
        (["fine/0", "pcb/NG/0"], "there is no folder of good images.*--good NAME"),
        (["pcb/Muster/0", "pcb/Serie/0"], r"\(Muster, Serie\) are good.*--good NAME.*--good \.$"),
        (["pcb/Muster/0", "pcb/scratch/0"], "there is no folder of good images|--good NAME"),
        (["io_board/0", "cpu_board/0"], "io_board may hold good images beside defects.*--good 'io_board', or rename io_board"),
        (["bolt/good/0", "bolt/bad/0", "overview"], "overview.png.* beside folders.*--good"),
        (["bolt/0", "cap/0", "overview"], "overview.png.* beside folders.*--good"),
        (["bolt/good/0", "bolt/bad/0", "bolt/unsorted"], "unsorted.png lies beside bad, good"),
        (["train/good/0", "test/1"], "test/1.png lies beside good where no folder says"),
        (["good/scratch/0", "good/1"], "good/scratch/0.png: its folders say both good and defective"),
        (["masks/0", "masks/1"], "holds masks only"),
        (["Class1/Train/0001", "Class1/Train/0002", "Class1/Train/Label/0002_label"], "0002.png lies where all .* has the mask"),
        (["0/0", "1/0"], "0 and 1 may be good and defective images, or two classes: use --good NAME, or --good \\."),
        (["x/good_1", "x/bad_2"], "bad_2.png is called defective and lies among others.*--good \\."),
        (["0", "1", "1_mask"], "1.png lies where all images count as good, and has the mask 1_mask.png"),
        (["bagel/train/good/rgb/0", "bagel/train/good/xyz/0"], "MVTec 3D-AD's .* not supported; move xyz/ away"),
    ],
)
def test_names_that_allow_two_readings_stop_with_the_option_that_chooses(tmp_path, names, message):
    paint(tmp_path, *(f"{name}.png" for name in names))
    with pytest.raises(UserError, match=message):
        read_layout("folder", tmp_path)


def test_a_photograph_that_is_good_and_defective_is_named(tmp_path, prepare):
    paint(tmp_path / "root", *(f"cup/good/{i}.png" for i in range(5)), "cup/dent/0.png")
    for good in range(5):  # wherever the split puts it
        (tmp_path / f"root/cup/dent/{good}_again.png").write_bytes((tmp_path / f"root/cup/good/{good}.png").read_bytes())
    _, rows = prepare("folder")
    said = {" ".join(row) for row in rows}
    lines = {f"the same file: cup/dent/{i}_again.png (defective) and cup/good/{i}.png (good): remove one" for i in range(5)}
    assert lines <= said


@pytest.mark.parametrize("folder", ["heatmaps", "Heat_Maps", "defect_map", "anomaly maps", "overlay"])
@pytest.mark.parametrize("above", ["cup/", "cup/test/", ""])
def test_maps_drawn_over_photographs_are_no_photographs(tmp_path, prepare, folder, above):
    paint(tmp_path / "root", *(f"cup/train/good/{i}.png" for i in range(3)), "cup/test/good/7.png", "cup/test/dent/8.png")
    paint(tmp_path / "root", f"{above}{folder}/8.png", "tube/train/good/1.png", "tube/test/good/2.png")
    lists, rows = prepare("folder")
    assert [line[0] for line in lists["test"]] == ["cup/test/dent/8.png", "cup/test/good/7.png", "tube/test/good/2.png"]
    assert "drawn maps, no photographs" in "\n".join(map(" ".join, rows))
    if above == "cup/test/":  # whoever calls it so has photographs in it
        lists, _ = prepare("folder", "--bad", folder)
        assert f"{above}{folder}/8.png" in {line[0] for line in lists["test"]}


@pytest.mark.parametrize(("mark", "folder"), [("predict.json", "pictures"), ("metrics.json", "vis_compound")])
def test_what_a_prediction_or_an_evaluation_drew_is_no_photograph(tmp_path, prepare, mark, folder):
    names = [f"cup/good/{i}.png" for i in range(4)]
    paint(tmp_path / "root", *names, "cup/dent/8.png", *(f"results/{folder}/{name}" for name in names))
    (tmp_path / "root/results" / mark).write_text("{}")
    lists, rows = prepare("folder")
    assert {line[3] for line in lists["train"] + lists["test"]} == {"cup"}
    assert f"left out: 1 folders of pictures that an earlier run drew (results/{folder})" in map(" ".join, rows)


def test_the_printed_table_says_what_each_folder_was_taken_for_and_what_was_left_out(tmp_path, prepare):
    root = tmp_path / "root"
    paint(root, *(f"valve/Train/Good/{i}.png" for i in range(9)), "valve/Train/Dent/0.png")
    paint(root, "valve/Test/Good/0.png", "valve/Test/Scratch/0.png", "valve/Test/Scratch/@eaDir/1.png", "raw/0.HEIC.jpg")
    paint_masks(root, "valve/GT/Scratch/0.png", "valve/GT/Scratch/7.png")
    (root / "raw/0.HEIC.jpg").rename(root / "valve/0.HEIC")
    lists, rows = prepare("folder", "--dry_run")
    assert lists == {}
    assert not (tmp_path / "out").exists()
    assert [" ".join(row) for row in rows[3:]] == [
        "valve/GT/Scratch/ 1 images: left out (masks without an image)",
        "valve/GT/Scratch/ 1 images: masks",
        "valve/Test/Good/ 1 images: good, for testing",
        "valve/Test/Scratch/ 1 images: defective",
        "valve/Train/Dent/ 1 images: left out (defective, in train)",
        "valve/Train/Good/ 9 images: good, for training",
        "raw/ no image",
        "left out: 1 of type .heic (valve/0.HEIC)",
        "left out: 1 folders of the system or of thumbnails (valve/Test/Scratch/@eaDir)",
        f"train.json, test.json: not written to {tmp_path / 'out'}",
    ]


WORDS = {
    None: ["2024-05-01", "line 3", "Ä1", "."],
    0: ["good", "Good", "OK", "ok_front", "no_defect", "Normal2", "i.O.", "合格"],
    1: ["bad", "NG", "def_front", "Scratches", "crack", "not ok", "Broken Parts", "nOK", "nicht gut", "不OK", "niO", "Défaut"],
    2: ["mask", "Masks", "ground_truth", "GT", "labels", "Annotation"],
    3: ["train", "Train", "TEST", "testing", "validation"],
}


@pytest.mark.parametrize("seed", range(200))
def test_no_random_tree_gives_a_defect_the_label_0_or_takes_a_mask_for_an_image(tmp_path, prepare, seed):
    rng = np.random.default_rng(seed)
    meanings, root = {}, tmp_path / "root"
    for index in range(rng.integers(1, 9)):
        kinds = [kind for kind in (None, 3, 0, 1, 2) if rng.random() < 0.4]
        parts = [rng.choice(WORDS[kind]) for kind in rng.permutation(np.array(kinds, object))]
        twin = "_mask" if rng.random() < 0.2 else ""
        for name in {f"{index}", f"{index}{twin}"}:
            path = root.joinpath(*parts, f"{name}{rng.choice(['.png', '.JPG', '.bmp'])}")
            save_image(path, rng.integers(40, 256, (8, 8, 3), dtype=np.uint8))
            meanings[path.resolve().relative_to(root.resolve())] = {2} if name.endswith("_mask") else {*kinds}
        if rng.random() < 0.2:
            path.with_name(".junk.png").write_bytes(b"junk")
    if rng.random() < 0.3:
        (root / "linked").symlink_to(rng.choice([path for path in root.rglob("*") if path.is_dir()] or [root]))
    try:
        lists, _ = prepare("folder")
    except UserError:
        return  # two readings
    for name, label, *_ in [*lists["train"], *lists.get("test", ())]:
        meaning = meanings[(root / name).resolve().relative_to(root.resolve())]
        assert 2 not in meaning, name
        assert label == 1 or 1 not in meaning, name


# --- the tool ---


def test_the_lists_of_mvtec_follow_from_the_count_table(tmp_path, monkeypatch):
    arguments = ["mvtec", "--counts", str(MVTEC / "counts.json"), "--out", str(tmp_path), "--per_class_dir", "json_vis_decoder"]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
    main()
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.json")}
    committed = {path.relative_to(MVTEC): path.read_bytes() for path in MVTEC.rglob("*.json") if path.name != "counts.json"}
    assert written == committed
    assert len(written) == 2 + 15


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_unusable_count_table_is_an_error(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "counts.json").write_text(content)
    arguments = ["mvtec", "--counts", str(tmp_path / "counts.json"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
    with pytest.raises(UserError, match="count table"):
        main()


def test_only_the_classes_asked_for_are_read(tmp_path, prepare):
    paint(tmp_path / "root", "nut/train/good/0.png", "nut/test/good/0.png", "bolt/train/good/0.png", "bolt/test/good/0.png")
    lists, _ = prepare("mvtec", "--classes", "nut")
    assert {row[3] for row in lists["train"] + lists["test"]} == {"nut"}
    with pytest.raises(UserError, match=r"there is no class 'screw' in .*: its classes are bolt, nut"):
        prepare("mvtec", "--classes", "screw")


def test_the_tool_runs_from_any_folder_and_a_wrong_root_is_one_line_and_exit_code_2(tmp_path):
    paint(tmp_path, "01/train/ok/0.bmp", "01/test/ok/0.bmp")
    tool = [sys.executable, str(ROOT / "tools" / "prepare_data.py")]
    done = {
        kind: subprocess.run(
            [*tool, kind, "--root", ".", "--out", f"lists {kind}"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        for kind in ("btad", "mvtec")
    }
    assert done["btad"].returncode == 0, done["btad"].stderr
    assert [len(read_list(tmp_path / "lists btad" / name)) for name in ("train.json", "test.json")] == [1, 1]
    assert done["mvtec"].returncode == 2
    assert done["mvtec"].stdout == ""
    assert len(done["mvtec"].stderr.strip().splitlines()) == 1
    assert "is not laid out as mvtec, CLASS/train/good" in done["mvtec"].stderr
    assert "it holds 01/" in done["mvtec"].stderr
    assert "it looks like the kind 'btad'" in done["mvtec"].stderr
    assert not (tmp_path / "lists mvtec").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_that_is_no_folder_or_holds_nothing_is_said(tmp_path, kind):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_layout(kind, tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"is not laid out as {kind}, .*it holds nothing$"):
        read_layout(kind, tmp_path)


@pytest.mark.parametrize(("root", "right"), [("", "set"), ("set/nut", "set")])
def test_the_folder_above_or_below_is_named_where_that_is_the_data_set(tmp_path, root, right):
    paint(tmp_path, "set/nut/train/good/0.png", "set/nut/test/good/0.png")
    with pytest.raises(UserError, match=f"give {tmp_path / right} instead"):
        read_layout("mvtec", tmp_path / root)


def test_a_set_with_several_masks_an_image_is_not_read_as_mvtec_nor_as_ones_own(tmp_path):
    paint(tmp_path, "box/train/good/0.png", "box/validation/good/0.png", "box/test/good/0.png")
    for kind in ("mvtec", "folder"):
        with pytest.raises(UserError, match="it looks like the kind 'mvtec_loco'"):
            read_layout(kind, tmp_path)
