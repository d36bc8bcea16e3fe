"""Lists of images: reading, writing, and making them from a folder tree or a count table."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.lists import (
    RESERVED,
    lists_from_counts,
    lists_from_tree,
    read_list,
    record,
    records_of_class,
    walk_images,
    write_list,
)
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MVTEC = ROOT / "data" / "MVTec-AD"


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- the lists of MVTec-AD ---


def test_the_mvtec_lists_have_the_published_sizes():
    train, test = read_list(MVTEC / "train.json"), read_list(MVTEC / "test.json")
    assert (len(train), len(test)) == (3629, 1725)
    assert Counter(record["label"] for record in train) == {0: 3629}
    assert Counter(record["label"] for record in test) == {0: 467, 1: 1258}
    assert len({record["clsname"] for record in test}) == 15
    assert all((record["maskname"] is not None) == (record["label"] == 1) for record in test)


def test_a_line_looks_like_the_published_ones():
    lines = (MVTEC / "test.json").read_text(encoding="utf-8").splitlines()
    expected = (
        '{"filename": "zipper/test/broken_teeth/000.png", "label": 1, "label_name": "defective", '
        '"maskname": "zipper/ground_truth/broken_teeth/000_mask.png", "clsname": "zipper"}'
    )
    assert expected in lines
    assert '{"filename": "screw/test/good/000.png", "label": 0, "label_name": "good", "clsname": "screw"}' in lines


def test_the_lists_of_single_classes_are_the_test_list_without_class_names():
    test = [json.loads(line) for line in (MVTEC / "test.json").read_text(encoding="utf-8").splitlines()]
    for path in sorted((MVTEC / "json_vis_decoder").iterdir()):
        clsname = path.stem.removeprefix("test_")
        own = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [{**record, "clsname": clsname} for record in own] == [r for r in test if r["clsname"] == clsname]
        assert {record["clsname"] for record in read_list(path)} == {clsname}  # found in the path


# --- from a folder tree ---


def test_a_tree_gives_sorted_records_with_masks_where_they_exist(tmp_path):
    touch(
        tmp_path,
        "nut/train/good/b.JPG",
        "nut/train/good/a.png",
        "nut/test/good/x.bmp",
        "nut/test/bent/2.png",
        "nut/test/bent/1.tiff",
        "nut/test/bent/0.png",
        "nut/ground_truth/bent/1_mask.PNG",
        "nut/ground_truth/bent/2.bmp",
        "bolt/train/good/ä b.jpeg",
    )
    train, test = lists_from_tree(tmp_path)
    names = ["bolt/train/good/ä b.jpeg", "nut/train/good/a.png", "nut/train/good/b.JPG"]
    assert [record["filename"] for record in train] == names
    assert [record["clsname"] for record in train] == ["bolt", "nut", "nut"]
    good = {"label": 0, "label_name": "good"}
    bent = {"label": 1, "label_name": "defective"}
    assert test == [
        {"filename": "nut/test/bent/0.png", **bent, "clsname": "nut"},
        {"filename": "nut/test/bent/1.tiff", **bent, "maskname": "nut/ground_truth/bent/1_mask.PNG", "clsname": "nut"},
        {"filename": "nut/test/bent/2.png", **bent, "maskname": "nut/ground_truth/bent/2.bmp", "clsname": "nut"},
        {"filename": "nut/test/good/x.bmp", **good, "clsname": "nut"},
    ]
    assert list(test[1]) == ["filename", "label", "label_name", "maskname", "clsname"]


def test_a_mask_named_mask_comes_before_one_named_like_the_image(tmp_path):
    touch(tmp_path, "nut/train/good/0.png", "nut/test/bent/0.png")
    touch(tmp_path, "nut/ground_truth/bent/0.png", "nut/ground_truth/bent/0_mask.png")
    assert lists_from_tree(tmp_path)[1][0]["maskname"] == "nut/ground_truth/bent/0_mask.png"


def test_a_mask_is_found_in_either_form_of_unicode(tmp_path):
    touch(tmp_path, "nut/train/good/0.png", "nut/test/bent/a\u0308.png", "nut/ground_truth/bent/ä_mask.png")
    assert lists_from_tree(tmp_path)[1][0]["maskname"] == "nut/ground_truth/bent/ä_mask.png"


def test_what_is_no_image_is_left_out(tmp_path):
    touch(tmp_path, "nut/train/good/0.png", "nut/train/good/._0.png", "nut/train/good/Thumbs.db", "nut/train/bent/0.png")
    touch(tmp_path, "nut/test/readme.png", "readme.txt", "licence/text.png")
    (tmp_path / "nut/train/good/folder.png").mkdir()
    train, test = lists_from_tree(tmp_path)
    assert [record["filename"] for record in train] == ["nut/train/good/0.png"]
    assert test == []


def test_good_images_have_no_mask(tmp_path):
    touch(tmp_path, "nut/train/good/0.png", "nut/test/good/0.png", "nut/ground_truth/good/0_mask.png")
    assert "maskname" not in lists_from_tree(tmp_path)[1][0]


def test_a_tree_can_be_reduced_to_some_classes(tmp_path):
    touch(tmp_path, "nut/train/good/0.png", "bolt/train/good/0.png")
    assert [record["clsname"] for record in lists_from_tree(tmp_path, classes=["nut"])[0]] == ["nut"]


def test_the_records_of_a_tree_and_of_its_counts_are_the_same(tmp_path):
    counts = {"nut": {"train": {"good": 3}, "test": {"good": 1, "bent": 2}}, "bolt": {"train": {"good": 1}, "test": {"cut": 1}}}
    train, test = lists_from_counts(counts)
    for line in train + test:
        touch(tmp_path, line["filename"], *([line["maskname"]] if "maskname" in line else []))
    assert lists_from_tree(tmp_path) == (train, test)


@pytest.mark.parametrize(
    ("names", "root", "message"),
    [
        ([], "nowhere", "nowhere is not a folder"),
        (["a.png"], "", "holds no class in the layout CLASS/train/good"),
        (["nut/train/good/0.png"], "nut", "looks like a single class"),
        (["nut/test/good/0.png"], "", "there is no image in .*good"),
        (["nut/train/good/0.txt"], "", "there is no image in .*good"),
    ],
)
def test_a_tree_of_another_layout_is_an_error(tmp_path, names, root, message):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        lists_from_tree(tmp_path / root)


def test_the_folder_of_good_images_may_have_another_name(tmp_path):
    touch(tmp_path, "01/train/OK/0.bmp", "01/test/ok/0.bmp", "01/test/ko/1.bmp", "01/ground_truth/ko/1.png")
    train, test = lists_from_tree(tmp_path, good=("ok",))
    assert [record["filename"] for record in train] == ["01/train/OK/0.bmp"]
    assert [(record["filename"], record["label"], record.get("maskname")) for record in test] == [
        ("01/test/ko/1.bmp", 1, "01/ground_truth/ko/1.png"),
        ("01/test/ok/0.bmp", 0, None),
    ]


@pytest.mark.parametrize("folder", ["", "sets/nut"])
def test_a_class_may_lie_in_the_root_itself_or_deep_below_it(tmp_path, folder):
    touch(tmp_path / folder, "train/good/0.png", "test/bent/0.png", "ground_truth/bent/0_mask.png")
    train, test = records_of_class(tmp_path, folder, "nut")
    prefix = folder and f"{folder}/"
    assert [record["filename"] for record in train] == [f"{prefix}train/good/0.png"]
    assert [record["maskname"] for record in test] == [f"{prefix}ground_truth/bent/0_mask.png"]
    assert {record["clsname"] for record in train + test} == {"nut"}


def test_images_are_found_at_any_depth_and_behind_links_but_not_in_hidden_folders(tmp_path):
    touch(tmp_path / "root", "0.png", "a/b/1.JPG", "a/notes.txt", ".cache/2.png", "a/.3.png")
    touch(tmp_path, "elsewhere/4.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")  # leads back: must not go on for ever
    (tmp_path / "root" / "A").symlink_to(tmp_path / "root" / "a")  # the folder itself comes first, whatever the order of names
    tree = walk_images(tmp_path / "root")
    assert tree.images == ["0.png", "a/b/1.JPG", "link/4.png"]
    assert tree.left_out == {
        "hidden": [".cache", "a/.3.png"],
        "of type .txt": ["a/notes.txt"],
        "linked folders that are read under another name": ["A", "a/up"],
    }


def test_an_unknown_class_is_an_error(tmp_path):
    touch(tmp_path, "nut/train/good/0.png")
    with pytest.raises(UserError, match="bolt"):
        lists_from_tree(tmp_path, classes=["bolt"])


@pytest.mark.parametrize(
    "counts", [[], {"nut": 3}, {"nut": {"train": {"good": "3"}, "test": {}}}, {"nut": {"train": {"good": 3}}}, {}]
)
def test_an_impossible_count_table_is_an_error(counts):
    with pytest.raises(UserError, match="count table"):
        lists_from_counts(counts)


# --- reading and writing ---


def test_a_written_list_is_read_back(tmp_path):
    train, test = lists_from_counts({"ö nut": {"train": {"good": 2}, "test": {"good": 1, "bent": 1}}})
    write_list(train + test, tmp_path / "new folder" / "list.json")
    records = read_list(tmp_path / "new folder" / "list.json")
    assert [record["filename"] for record in records] == [record["filename"] for record in train + test]
    assert [record["label"] for record in records] == [0, 0, 1, 0]
    assert [record["maskname"] for record in records] == [None, None, "ö nut/ground_truth/bent/000_mask.png", None]
    assert '"clsname": "ö nut"' in (tmp_path / "new folder" / "list.json").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["list.json"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    touch(tmp_path, "list.json/file")  # a folder stands where the list should go, so the last step, the renaming, fails
    with pytest.raises(UserError, match="cannot be written"):
        write_list([{"filename": "a/b/c/d.png", "label": 0}], tmp_path / "list.json")
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(UserError, match="cannot be written"):
        write_list([], tmp_path / "file" / "list.json")


def test_class_and_mask_may_be_absent_or_null_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "list.json"
    lines = [
        '{"filename": "set/zipper/train/good/002.png", "label": 0}',
        "",
        '{"filename": "zipper/test/cut/0.png", "label": 1, "maskname": null, "clsname": null}',
        '{"filename": "x.png", "label": 1, "maskname": "m.png", "clsname": "own"}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as Windows editors save it
    assert read_list(path) == [
        {"filename": "set/zipper/train/good/002.png", "label": 0, "maskname": None, "clsname": "zipper"},
        {"filename": "zipper/test/cut/0.png", "label": 1, "maskname": None, "clsname": "zipper"},
        {"filename": "x.png", "label": 1, "maskname": "m.png", "clsname": "own"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"filename": "a/b/c/d.png", "label": 0', "not valid JSON"),
        ('["a/b/c/d.png"]', "not a JSON object"),
        ('{"filename": "a/b/c/d.png", "label": 1, "label": 0}', "the key 'label' stands twice"),
        ('{"label": 0}', '"filename" is missing'),
        ('{"filename": "a/b/c/d.png"}', '"label" is missing'),
        ('{"filename": 5, "label": 0}', "filename is 5"),
        ('{"filename": "", "label": 0}', "filename is ''"),
        ('{"filename": "a/b/c/d.png", "label": 2}', "label is 2"),
        ('{"filename": "a/b/c/d.png", "label": "good"}', "label is 'good'"),
        ('{"filename": "a/b/c/d.png", "label": null}', "label is None"),
        ('{"filename": "a/b/c/d.png", "label": 1, "maskname": 1}', "maskname is 1"),
        ('{"filename": "a/b/c/d.png", "label": 1, "clsname": 1}', "clsname is 1"),
        ('{"filename": "c/d.png", "label": 0}', "c/d.png is too short"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(tmp_path, line, message):
    path = tmp_path / "list.json"
    path.write_text('{"filename": "a/b/c/d.png", "label": 0}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        read_list(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "surrogatepass")), st.just(b"[" * 100_000)))
def test_any_bytes_as_a_list_give_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_list(path)
    assert len(str(caught.value).splitlines()) == 1


NAMES = st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name).map(os.fsdecode)  # what a file system has


@settings(max_examples=100, deadline=None)
@given(NAMES, NAMES.filter(lambda text: text not in RESERVED))
def test_any_name_and_class_survive_a_list(tmp_path_factory, name, clsname):
    path = tmp_path_factory.getbasetemp() / "names.json"
    write_list([record(name, 0, clsname)], path)
    assert [(line["filename"], line["clsname"]) for line in read_list(path)] == [(name, clsname)]


def test_a_name_that_is_not_utf_8_survives_a_list(tmp_path):
    name = os.fsdecode(b"Geh\xe4use.png")
    write_list([record(name, 0, "nut")], tmp_path / "l.json")
    assert os.fsencode(read_list(tmp_path / "l.json")[0]["filename"]) == b"Geh\xe4use.png"


@pytest.mark.parametrize(
    "line", ['{"filename": "a.png", "label": 0, "clsname": "%s"}', '{"filename": "%s/b/c/d.png", "label": 0}']
)
@pytest.mark.parametrize("clsname", ["mean", "pooled", "all classes"])
def test_a_class_cannot_be_called_as_a_row_of_the_results(tmp_path, line, clsname):
    (tmp_path / "l.json").write_text(line % clsname)
    with pytest.raises(UserError, match=rf"l\.json:1: a class cannot be called '{clsname}'"):
        read_list(tmp_path / "l.json")
    with pytest.raises(UserError, match=f"a class cannot be called '{clsname}'"):
        record("a.png", 0, clsname)


def test_a_missing_empty_or_foreign_list_is_named(tmp_path):
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff")
    for name, message in [
        ("none.json", "there is no list"),
        ("empty.json", "names no image"),
        ("image.json", "save it again as UTF-8"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            read_list(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
