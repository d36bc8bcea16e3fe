"""What tools/prepare_data.py finds in images and masks while it reads them, and what it does about it."""

import hashlib
import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.images import ImageReader
from datasets.lists import read_list
from datasets.prepare.near_duplicates import fingerprint, group, represent, split
from tests.helpers import tiny
from tools.prepare_data import main
from utils.errors import UserError


def picture(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A soft picture of its own, h x w x 3 uint8 RGB."""
    coarse = np.random.default_rng(seed).integers(40, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save(path: Path, content: bytes | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encoded(Image.fromarray(content), "PNG"))


@pytest.fixture
def root(tmp_path) -> Path:
    """A sound set in MVTec layout: of one class eight images to train and, to test, a good one and a defective one with mask."""
    root = tmp_path / "root"
    for index in range(8):
        save(root / f"nut/train/good/{index}.png", picture(index))
    save(root / "nut/test/good/0.png", picture(8))
    save(root / "nut/test/bent/0.png", picture(9))
    save(root / "nut/ground_truth/bent/0_mask.png", np.eye(60, 80, dtype=np.uint8) * 255)
    return root


@pytest.fixture
def prepare(root, monkeypatch, capsys):
    """Run the tool; returns what it printed and what it wrote to stderr."""

    def run(*options: str, kind: str = "mvtec") -> tuple[str, list[str]]:
        arguments = [kind, "--root", str(root), "--out", str(root.parent / "out"), "--workers", "2", *options]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
        main()
        printed = capsys.readouterr()
        return printed.out, printed.err.splitlines()

    return run


@pytest.fixture
def refused(root, prepare, capsys):
    """Run the tool on a set that is unsound; returns its line for each bad file."""

    def run() -> list[str]:
        with pytest.raises(UserError, match=r"cannot be used .*listed above.*--skip_bad; nothing is written") as caught:
            prepare()
        assert "\n" not in str(caught.value)
        assert not (root.parent / "out").exists()
        return capsys.readouterr().err.splitlines()

    return run


def listed(root: Path, name: str = "test") -> dict[str, str | None]:
    return {line["filename"]: line["maskname"] for line in read_list(root.parent / "out" / f"{name}.json")}


# --- images that cannot be used ---

WHOLE = Image.fromarray(picture(50))
UNREADABLE = {
    "text.png": b"this is a text, whatever its name says\n" * 20,
    "empty.jpg": b"",
    "cut short.jpg": encoded(WHOLE, "JPEG", quality=95)[:-600],
    "cut short progressive.jpg": encoded(WHOLE, "JPEG", quality=95, progressive=True)[:-600],
    "cut short.png": encoded(WHOLE, "PNG")[:-600],
    "cut short.bmp": encoded(WHOLE, "BMP")[:-600],
    "cut short.tif": encoded(WHOLE, "TIFF")[:-600],
    "cut short.webp": encoded(WHOLE, "WEBP")[:-100],
}


def test_every_image_that_cannot_be_read_or_is_cut_short_is_listed_and_nothing_is_written(root, refused):
    for name, content in UNREADABLE.items():
        save(root / "nut/train/good" / name, content)
    lines = refused()
    assert len(lines) == len(UNREADABLE)
    for name, line in zip(sorted(UNREADABLE), lines, strict=True):
        assert line.startswith(f"bad: nut/train/good/{name} ")
        assert name.startswith("cut short") == ("cut short or damaged" in line)


def test_bad_images_can_be_left_out(root, prepare):
    for name, content in UNREADABLE.items():
        save(root / "nut/train/good" / name, content)
    printed, lines = prepare("--skip_bad")
    assert len(lines) == len(UNREADABLE)
    assert all(line.startswith("left out: nut/train/good/") for line in lines)
    assert sorted(listed(root, "train")) == [f"nut/train/good/{index}.png" for index in range(8)]
    assert printed.splitlines()[1].split()[:5] == ["nut", *"8111"]


def test_where_no_good_image_is_left_nothing_is_written(root, prepare):
    for index in range(8):
        save(root / f"nut/train/good/{index}.png", b"no image")
    with pytest.raises(UserError, match=r"no image is left for train\.json"):
        prepare("--skip_bad")
    assert not (root.parent / "out").exists()


def test_a_listed_image_that_does_not_exist_is_named(root, prepare, capsys):
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("object,split,label,image,mask\nnut,train,normal,nut/nowhere.JPG,\n")
    with pytest.raises(UserError, match="an image or mask cannot be used"):
        prepare(kind="visa")
    assert "there is no file nut/nowhere.JPG" in capsys.readouterr().err


# --- masks ---


MASK = cv2.circle(np.zeros((60, 80), np.uint8), (30, 30), 12, 255, -1)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(MASK), "PNG"),
        encoded(Image.fromarray(MASK // 255), "PNG"),
        encoded(Image.fromarray(MASK).convert("1"), "TIFF"),
        *(encoded(Image.fromarray(MASK), "JPEG", quality=quality) for quality in (95, 75)),
    ],
)
def test_a_picture_of_two_values_among_photographs_is_a_mask_and_not_an_image(root, refused, content):
    save(root / "nut/train/good/region.png", content)
    assert refused() == [
        "bad: nut/train/good/region.png holds two values only: it looks like a mask; move it to a folder "
        "ground_truth, or remove it"
    ]


@pytest.mark.parametrize("number", [4, 5])
def test_photographs_of_two_values_are_images_where_most_of_a_class_are_so_and_its_masks_lie_elsewhere(
    root, prepare, refused, number
):
    for index in range(number):
        save(root / f"nut/train/good/{index}.png", np.roll(MASK, index, axis=1))
    if number == 4:  # of eight
        assert len(refused()) == 4
    else:
        prepare()
        assert len(listed(root, "train")) == 8


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((30, 40), np.uint8), "is 40 x 30, its image nut/test/bent/0.png 80 x 60 pixels"),
        (
            np.ones((80, 60), np.uint8),
            "60 x 80, its image nut/test/bent/0.png 80 x 60 pixels; an image is turned as its EXIF data say",
        ),
        (b"no mask", "is not an image"),
    ],
)
def test_a_mask_that_cannot_be_used_is_listed_and_can_be_left_out_without_its_image(root, refused, prepare, mask, message):
    save(root / "nut/ground_truth/bent/0_mask.png", mask)
    (line,) = refused()
    assert "nut/ground_truth/bent/0_mask.png" in line
    assert message in line
    printed, _ = prepare("--skip_bad")
    assert listed(root)["nut/test/bent/0.png"] is None
    assert "1 defective without mask" in printed


def test_joined_masks_must_be_equally_large(root, prepare, capsys):
    save(root / "nut/validation/good/0.png", picture(20))
    (root / "nut/ground_truth/bent/0_mask.png").unlink()
    for index, size in enumerate([(60, 80), (6, 8)]):
        save(root / f"nut/ground_truth/bent/0/{index}.png", np.ones(size, np.uint8))
    with pytest.raises(UserError, match="an image or mask cannot be used"):
        prepare(kind="mvtec_loco")
    sizes = "nut/ground_truth/bent/0/0.png 80 x 60, nut/ground_truth/bent/0/1.png 8 x 6"
    assert f"of different sizes: {sizes}" in capsys.readouterr().err
    prepare("--skip_bad", kind="mvtec_loco")
    assert listed(root)["nut/test/bent/0.png"] is None
    assert not (root / "nut/ground_truth/bent/0.png").exists()


def test_missing_empty_and_inverted_masks_are_only_noted(root, prepare):
    save(root / "nut/test/bent/1.png", picture(10))
    save(root / "nut/test/bent/2.png", picture(11))
    save(root / "nut/ground_truth/bent/2_mask.png", np.zeros((60, 80), np.uint8))
    save(root / "nut/test/bent/3.png", picture(12))
    save(root / "nut/ground_truth/bent/3_mask.png", 255 - np.eye(60, 80, dtype=np.uint8) * 255)
    printed, lines = prepare()
    assert lines == []
    assert "1 defective without mask; 1 empty masks; 1 nearly full masks (inverted?)" in printed
    assert list(listed(root).values()).count(None) == 2


# --- what else is noted ---


def test_a_file_that_is_in_training_and_in_test_is_named(root, prepare):
    save(root / "nut/test/good/1.png", (root / "nut/train/good/3.png").read_bytes())
    printed, _ = prepare()
    assert "1 also in training" in printed
    assert "the same file: nut/test/good/1.png (test) and nut/train/good/3.png (training)" in printed.splitlines()


def test_a_sound_class_has_no_notes_and_a_small_or_one_sided_one_has(root, prepare):
    assert prepare()[0].splitlines()[1].split() == ["nut", *"8111"]
    for index in range(7):
        save(root / f"bolt/train/good/{index}.png", picture(30 + index))
    save(root / "bolt/test/cut/0.png", picture(40))
    bolt = prepare()[0].splitlines()[1]
    assert "fewer than 8 training images; no good test images" in bolt
    assert "1 defective without mask" in bolt


def test_a_16_bit_file_that_uses_few_bits_is_noted(root, prepare):
    deep = picture(12)[..., 0].astype(np.uint16)  # 8 bits in a 16-bit file: black once it is read at 8 bits
    save(root / "nut/test/good/1.png", cv2.imencode(".png", deep)[1].tobytes())
    assert "1 nearly black" in prepare()[0]
    save(root / "nut/test/good/1.png", cv2.imencode(".png", deep * 256)[1].tobytes())
    assert "nearly black" not in prepare()[0]


# --- odd files that can be used ---

TURNED = Image.Exif()
TURNED[274] = 6  # to be turned right by a quarter

ODD = {
    "turned by EXIF.jpg": encoded(WHOLE, "JPEG", quality=95, exif=TURNED),
    "16 bits.png": cv2.imencode(".png", picture(51)[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "16 bits, grey.tif": cv2.imencode(".tif", picture(52)[..., 0].astype(np.uint16) * 257)[1].tobytes(),
    "alpha.png": encoded(Image.fromarray(picture(53)).convert("RGBA"), "PNG"),
    "palette.png": encoded(Image.fromarray(picture(54)).quantize(64), "PNG"),
    "palette.bmp": encoded(Image.fromarray(picture(55)).quantize(64), "BMP"),
    "CMYK.jpg": encoded(Image.fromarray(picture(56)).convert("CMYK"), "JPEG", quality=95),
    "grey and alpha.png": encoded(Image.fromarray(picture(57)).convert("LA"), "PNG"),
    "progressive.JPEG": encoded(Image.fromarray(picture(59)), "JPEG", progressive=True),
    "lossless.webp": encoded(Image.fromarray(picture(60)), "WEBP", lossless=True),
    "schräg 表面 é (1) 'x'.png": encoded(Image.fromarray(picture(61, (33, 57))), "PNG"),
    " leading space.png": encoded(Image.fromarray(picture(62, (1, 1))), "PNG"),
    "no ending but.one.more.png": encoded(Image.fromarray(picture(63, (301, 7))), "PNG"),
}


def test_odd_files_are_listed_under_their_names_and_can_be_read(root, prepare):
    for name, content in ODD.items():
        save(root / "nut/train/good" / name, content)
    _, lines = prepare()
    assert lines == []
    names = {f"nut/train/good/{name}" for name in ODD}
    assert names <= set(listed(root, "train"))
    reader = ImageReader(str(root))
    pixels = {name.rpartition("/")[2]: reader.read(name) for name in names}
    assert pixels["turned by EXIF.jpg"].shape == (80, 60, 3)
    expected = {"16 bits.png": 51, "alpha.png": 53, "lossless.webp": 60}
    for name, seed in expected.items():
        np.testing.assert_array_equal(pixels[name], picture(seed))
    assert np.abs(pixels["CMYK.jpg"].astype(int) - picture(56)).mean() < 5
    assert np.abs(pixels["palette.png"].astype(int) - pixels["palette.png"].mean()).mean() > 5  # colours, not indices of them


def test_further_pages_and_frames_are_counted_and_named(root, prepare):
    other = [Image.fromarray(picture(70))]
    save(root / "nut/train/good/pages.tif", encoded(Image.fromarray(picture(71)), "TIFF", save_all=True, append_images=other))
    assert "left out: 1 with further pages or frames, of which only the first is read (nut/train/good/pages.tif)" in prepare()[0]


def test_the_mask_of_an_image_turned_by_exif_is_as_large_as_the_turned_image(root, prepare):
    save(root / "nut/test/bent/1.jpg", ODD["turned by EXIF.jpg"])
    save(root / "nut/ground_truth/bent/1_mask.png", np.eye(80, 60, dtype=np.uint8))
    _, lines = prepare()
    assert lines == []
    assert listed(root)["nut/test/bent/1.jpg"] == "nut/ground_truth/bent/1_mask.png"


def test_from_photographs_with_odd_files_among_them_to_a_report(tmp_path, monkeypatch, capsys):
    config = tiny.make(tmp_path / "run")
    photos = tmp_path / "own photos"
    for name, content in (ODD | UNREADABLE).items():
        save(photos / "good" / name, content)
    for index in range(2):
        save(photos / "bad" / f"{index} ü.png", picture(70 + index))
    arguments = ["folder", "--root", str(photos), "--out", str(photos), "--skip_bad"]
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
    main()
    assert len(capsys.readouterr().err.splitlines()) == len(UNREADABLE)
    overrides = [
        f"dataset.image_reader.kwargs.image_dir={photos}",
        f"dataset.train.meta_file={photos}/train.json",
        f"dataset.test.meta_file={photos}/test.json",
    ]
    tiny.train(config, *overrides)
    result = Path(tiny.evaluate(config, *overrides).evaluator.save_dir)
    assert "own photos" in (result / "report.html").read_text(encoding="utf-8")
    scored = (result / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert len(scored) == 1 + len(read_list(photos / "test.json"))


# --- near-duplicates ---


def texture(seed: int) -> np.ndarray:
    """h x w x 3 uint8 with detail at every scale, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(0, size, (120 // size, 160 // size)), (160, 120)) for size in (2, 5, 10, 20)]
    return np.clip(128 + 4 * sum(layers), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def test_copies_that_differ_in_size_brightness_compression_or_noise_are_near_duplicates_and_other_images_are_not():
    image = texture(0)
    noise = np.random.default_rng(1).normal(0, 3, image.shape)
    copies = [
        image,
        cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA),
        np.clip(image * 0.9 + 10, 0, 255).astype(np.uint8),
        cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
        np.clip(image + noise, 0, 255).astype(np.uint8),
    ]
    others = [texture(seed) for seed in range(2, 12)]
    groups = group(np.stack([fingerprint(each) for each in copies + others]))
    assert len(set(groups[: len(copies)])) == 1
    assert len(set(groups)) == 1 + len(others)


def test_aligned_products_that_differ_in_detail_are_no_near_duplicates():
    product = texture(0)
    shots = [np.clip(product + 0.5 * (texture(seed).astype(float) - 128), 0, 255).astype(np.uint8) for seed in range(1, 11)]
    assert len(set(group(np.stack([fingerprint(shot) for shot in shots])))) == 10


def test_a_chain_of_near_duplicates_is_one_group():
    bits = np.zeros((3, 256), bool)
    bits[1, :8] = bits[2, :16] = True  # 8 bits from one to the next, 16 from the first to the last
    assert len(set(group(np.packbits(bits, axis=1).view(np.uint64)))) == 1
    assert len(set(group(np.packbits(bits[[0, 2]], axis=1).view(np.uint64)))) == 2


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_groups_whole_tests_about_the_share_asked_for_and_moves_no_image_when_others_come(seed):
    groups = np.array([0, 0, 0, 1, 1, *range(2, 397)])
    tested = split(represent(groups, digests(400)), 0.25, seed)
    assert 70 <= tested.sum() <= 130
    assert len(set(tested[:3])) == len(set(tested[3:5])) == 1
    np.testing.assert_array_equal(split(represent(groups[:300], digests(300)), 0.25, seed), tested[:300])


def test_a_split_tests_one_image_where_it_can_and_never_all():
    assert split(digests(2), 0.01, seed=0).sum() == 1
    assert split(digests(2), 0.99, seed=0).sum() == 1
    assert not split(digests(10), 0.0, seed=0).any()
    assert not split(digests(1) * 10, 0.2, seed=0).any()
    assert not split(digests(1), 0.2, seed=0).any()


def test_near_duplicates_among_good_images_land_on_one_side_and_are_noted(tmp_path, monkeypatch, capsys):
    for index in range(20):
        save(tmp_path / f"shots/{index:02d}.png", texture(index // 2))  # each twice: one a little brighter
        if index % 2:
            save(tmp_path / f"shots/{index:02d}.png", texture(index // 2) // 2 + 60)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "folder", "--root", str(tmp_path), "--out", str(tmp_path / "out")])
    main()
    assert "20 near-duplicates kept on one side" in capsys.readouterr().out
    tested = {Path(line["filename"]).stem for line in read_list(tmp_path / "out/test.json")}
    assert tested
    assert tested == {f"{int(name) ^ 1:02d}" for name in tested}


def test_copies_that_are_added_move_nothing_from_one_side_to_the_other(tmp_path, monkeypatch):
    arguments = ["prepare_data.py", "folder", "--root", str(tmp_path / "shots"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)

    def split_of(names: list[str]) -> dict[str, bool]:
        for index, name in enumerate(names):
            save(tmp_path / "shots" / name, encoded(Image.fromarray(texture(index)), "JPEG" if "web" in name else "PNG"))
        main()
        return {
            line["filename"]: name == "test" for name in ("train", "test") for line in read_list(tmp_path / f"out/{name}.json")
        }

    before = split_of([f"{index:02d}.png" for index in range(40)])
    after = split_of([f"{index:02d} web.jpg" for index in range(40)])
    assert 0 < sum(before.values()) < 40
    assert after == {**before, **{name.replace(".png", " web.jpg"): tested for name, tested in before.items()}}
    (tmp_path / "out/test.json").write_text("damaged")  # a list that is replaced
    split_of([])
    assert read_list(tmp_path / "out/test.json")
