"""The report in a browser, as a person uses it; and what all its tests share: a result folder of random maps, a parsed page."""

import re
from collections.abc import Iterator

import pytest

from tests.helpers.result_folders import EVIL, make_evaluation, write_folder
from utils.report.page import write_report

# --- in Chromium ---


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report of three classes, one of them with a name that could do harm."""
    evaluation = make_evaluation(["cup", "tile", EVIL])
    evaluation.labels[9:18] = 0  # tile: no defective image, so no number
    evaluation.packed_masks[9:18] = b""
    folder = write_folder(tmp_path_factory.mktemp("a name with 'spaces' & quotes"), evaluation)
    return write_report(folder).as_uri()


@pytest.fixture
def page(browser, report: str) -> Iterator:
    """The browser with the page just opened; what the page does may leave no line on the console."""
    set_width(browser, 1280)
    browser.get(report)
    yield browser
    assert browser.get_log("browser") == []


def set_width(browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def all_of(page, selector: str) -> list:
    return page.find_elements("css selector", selector)


def one(page, selector: str):
    return page.find_element("css selector", selector)


def press(page, key: str) -> None:
    page.switch_to.active_element.send_keys({"Escape": "\ue00c", "Left": "\ue012", "Right": "\ue014", "Enter": "\ue007"}[key])


def wait_for_focus(page, element) -> None:
    """A closed dialog's `close` event comes a task after it is gone; fail if the focus does not follow within ten seconds."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(page, 10).until(lambda page: page.switch_to.active_element == element, "the focus is elsewhere")


def column(page, number: int) -> list[str]:
    return [row.find_elements("css selector", "th, td")[number].text for row in all_of(page, "#results-table tbody tr")]


def test_it_opens_with_every_picture_drawn_and_nothing_on_the_console(page):
    drawn = """
        const done = arguments[0];
        for (const details of document.querySelectorAll("details")) details.open = true;
        for (const image of document.images) image.loading = "eager";
        Promise.all([...document.images].map((image) => image.decode().then(() => image.naturalWidth))).then(done, String)"""
    widths = page.execute_async_script(drawn)
    assert set(widths) == {16}
    assert len(widths) > 50
    assert all(image.get_attribute("alt") for image in all_of(page, "img"))
    assert len(all_of(page, "svg[role=img][aria-label]")) == len(all_of(page, "svg")) == 6


def test_names_are_shown_and_not_run(page):
    assert EVIL in column(page, 0)
    assert EVIL in [heading.text for heading in all_of(page, "summary h3")]
    assert len(all_of(page, "script")) == 1
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


def test_the_table_sorts_by_each_column_with_missing_numbers_last_and_the_mean_at_the_foot(page):
    headers = all_of(page, "#results-table thead th")
    assert [header.get_attribute("aria-sort") for header in headers] == ["ascending", *[None] * 5]
    assert column(page, 0) == sorted(column(page, 0))
    for number in range(1, len(headers)):
        numbers = [value for value in column(page, number) if value != "–"]
        missing = ["–"] * (3 - len(numbers))
        for order, falls in (("descending", True), ("ascending", False)):
            headers[number].find_element("css selector", "button").click()
            assert column(page, number) == sorted(numbers, key=float, reverse=falls) + missing
            assert [header.get_attribute("aria-sort") for header in headers].count(order) == 1
            assert headers[number].get_attribute("aria-sort") == order
        assert one(page, "#results-table tfoot th").text == "mean"
    button = headers[0].find_element("css selector", "button")
    page.execute_script("arguments[0].focus()", button)
    press(page, "Enter")
    press(page, "Enter")
    assert column(page, 0) == sorted(column(page, 0), reverse=True)


def test_a_card_enlarges_and_closes_by_key_button_and_outside(page):
    dialog, card = one(page, "#lightbox"), all_of(page, ".card")[1]
    closing = {
        "key": lambda: press(page, "Escape"),
        "button": lambda: one(page, "#lightbox .close").click(),
        "outside": lambda: page.execute_script("arguments[0].click()", dialog),
    }
    for how, close in closing.items():
        assert not dialog.is_displayed(), how
        card.click()
        assert dialog.is_displayed(), how
        large = all_of(page, "#lightbox img")
        small = card.find_elements("css selector", "img")
        assert [image.get_attribute("src") for image in large] == [image.get_attribute("src") for image in small]
        assert all(image.get_attribute("alt") for image in large)
        assert large[0].size["width"] > 2 * small[0].size["width"]
        assert one(page, "#lightbox h2").text == card.get_attribute("data-file")
        facts = one(page, "#lightbox .facts").text.split()
        assert facts[:6] == ["class", "cup", "label", card.get_attribute("data-label"), "score", card.get_attribute("data-score")]
        assert re.search(r"rank by score \d of 9$", one(page, "#lightbox .facts").text)
        close()
    assert not dialog.is_displayed()
    wait_for_focus(page, card)


def test_arrow_keys_step_through_the_class_and_the_focus_follows(page):
    cards = all_of(page, "details[open] .card")
    files = [card.get_attribute("data-file") for card in cards]
    page.execute_script("arguments[0].focus()", cards[0])
    press(page, "Enter")
    shown = lambda: (one(page, "#lightbox h2").text, one(page, "#lightbox img").get_attribute("src"))  # noqa: E731
    first = shown()
    for position in (1, 2, 3):
        press(page, "Right")
        assert shown()[0] == files[position]
    assert shown()[1] != first[1]
    press(page, "Left")
    assert shown()[0] == files[2]
    for _ in range(3):
        press(page, "Left")
    assert shown()[0] == files[-1], "before the first comes the last"
    press(page, "Escape")
    wait_for_focus(page, cards[-1])


def test_a_class_in_the_table_leads_to_its_gallery(page):
    details = all_of(page, "#gallery details")
    assert [entry.get_attribute("open") for entry in details] == ["true", None, None]
    page.find_element("link text", "tile").click()
    assert "true" in [entry.get_attribute("open") for entry in details if "tile" in entry.text]


@pytest.mark.parametrize("width", [400, 320])
def test_on_a_phone_the_page_does_not_overflow_and_the_table_scrolls_in_its_box(page, width: int):
    set_width(page, width)
    page.execute_script("document.querySelectorAll('details').forEach((details) => details.open = true)")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    assert page.execute_script("const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth")
    all_of(page, ".card")[0].click()
    left, right = page.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return [box.left, box.right]", one(page, "#lightbox")
    )
    assert left >= 0
    assert right <= width
    assert page.execute_script("const box = arguments[0]; return box.scrollWidth <= box.clientWidth", one(page, "#lightbox"))
    tops = [image.location["y"] for image in all_of(page, "#lightbox img")]
    assert tops == sorted(set(tops)), "the pictures stand below each other"
