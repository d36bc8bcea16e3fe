"""What is written for an image has a name of its own, below its folder, and leads back to the image."""

from pathlib import Path, PurePath

import pytest

from utils.evaluation.naming import ANY_CLASS, feature_names, find_images, matching_classes, output_names


def texts(paths: list[PurePath]) -> list[str]:
    return [path.as_posix() for path in paths]


def features(*filenames: str, clsname: str = "cup") -> list[str]:
    return texts(feature_names(filenames, [clsname] * len(filenames)))


def found(names: list[str], *filenames: str, clsname: str = "cup") -> list[str | None]:
    return find_images([PurePath(name) for name in names], filenames, clsname)


# --- names of what is written ---


def test_an_image_gives_its_name_without_the_ending() -> None:
    assert texts(output_names(["cup/test/good/000.png", "cup/test/good/001.v2.JPG"])) == [
        "cup/test/good/000",
        "cup/test/good/001.v2",
    ]


def test_images_that_differ_in_the_ending_only_keep_it() -> None:
    assert texts(output_names(["a/0.png", "a/0.jpg", "a/1.png"])) == ["a/0.png", "a/0.jpg", "a/1"]


def test_a_name_that_another_image_keeps_is_not_given_twice() -> None:
    names = texts(output_names(["a/0.png", "a/0.jpg", "a/0.png.bmp"]))
    assert names == ["a/0.png", "a/0.jpg", "a/0.png.bmp"]


def test_an_image_that_is_listed_twice_has_one_name() -> None:
    assert texts(output_names(["a/0.png", "a/0.png"])) == ["a/0", "a/0"]
    assert features("cup/test/good/0.png", "cup/test/good/0.png") == ["cup/good/0", "cup/good/0"]


@pytest.mark.parametrize("filename", ["../../etc/0.png", "/etc/0.png", "a/../../etc/0.png"])
def test_no_name_leads_out_of_the_folder(filename: str) -> None:
    (name,) = output_names([filename])
    assert not name.is_absolute()
    assert ".." not in name.parts
    (name,) = feature_names([filename], ["../cup"])
    assert name.parts[0] == "cup"
    assert ".." not in name.parts


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("cup/test/good/000.png", "cup/good/000"),
        ("sets/cup/test/hole/000.png", "cup/hole/000"),
        ("cup/test/hole/left/deep/000.png", "cup/hole/left/deep/000"),
        ("cup/train/good/000.png", "cup/train/good/000"),
        ("cup/good/000.png", "cup/good/000"),
        ("cup/test.png", "cup/test"),
        ("cup/test/000.png", "cup/000"),
        ("cup/cup/test/cup/000.png", "cup/000"),
        ("images/000.png", "cup/images/000"),
        ("000.png", "cup/000"),
        ("cup.png", "cup/cup"),
    ],
)
def test_features_lie_below_class_and_kind(filename: str, name: str) -> None:
    assert features(filename) == [name]


def test_a_class_has_features_of_its_own() -> None:
    assert texts(feature_names(["a/0.png", "a/1.png"], ["cup", "tile"])) == ["cup/a/0", "tile/a/1"]


def test_images_of_one_kind_in_two_places_have_features_of_their_own() -> None:
    names = features("left/cup/test/good/000.png", "right/cup/test/good/000.png", "right/cup/test/good/001.png")
    assert names == ["cup/left/cup/test/good/000", "cup/right/cup/test/good/000", "cup/good/001"]


# --- the way back ---

FOLDER = [
    "cup/test/good/000.png",
    "cup/test/good/001.jpg",
    "cup/test/good/both.jpg",
    "cup/test/good/both.png",
    "cup/test/hole/deep/000.bmp",
    "cup/train/good/000.png",
    "tile/test/good/000.png",
    "left/cup/test/hole/9.png",
    "right/cup/test/hole/9.png",
]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_evaluated_image_is_found_again(count: int) -> None:
    """Evaluated all at once, each image of the class keeps what makes its name its own."""
    listed = [name for name in FOLDER if "cup/test" in name]
    listed = listed if count == 4 else listed[:count]
    names = feature_names(listed, ["cup"] * len(listed))
    assert find_images(names, FOLDER, "cup") == listed


def test_a_name_that_several_images_may_have_is_nobody_s() -> None:
    """Evaluated alone, both.png lost its ending; which of the two it was can not be told from the folder."""
    assert features("cup/test/good/both.png") == ["cup/good/both"]
    assert found(["cup/good/both", "cup/hole/9"], *FOLDER) == [None, None]


def test_a_name_of_no_image_is_nobody_s() -> None:
    assert found(["cup/good/absent", "tile/good/000"], *FOLDER) == [None, None]


# --- classes ---


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_classes_are_those_whose_path_exists(tmp_path: Path) -> None:
    touch(tmp_path, "cup/ckpt.tar", "metre à ruban/ckpt.tar", "tile/other.tar", "deep/er/ckpt.tar", "file")
    assert matching_classes(tmp_path / ANY_CLASS / "ckpt.tar") == ["cup", "metre à ruban"]


def test_a_class_may_stand_anywhere_in_the_path(tmp_path: Path) -> None:
    touch(tmp_path, "test_cup.json", "test_[x].json", "test_.json", "train_tile.json", "cup/cup.tar", "cup/tile.tar")
    assert matching_classes(tmp_path / f"test_{ANY_CLASS}.json") == ["[x]", "cup"]
    assert matching_classes(tmp_path / ANY_CLASS / f"{ANY_CLASS}.tar") == ["cup"]


def test_no_character_of_the_folder_is_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "a[b]c (1)+/cup.json", "abc/tile.json")
    assert matching_classes(tmp_path / "a[b]c (1)+" / f"{ANY_CLASS}.json") == ["cup"]
