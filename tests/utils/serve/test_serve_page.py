"""The service's page in a browser, as a person uses it: by mouse, by keyboard, on a phone, without a network."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.services import Service, images

SECONDS = 60


@pytest.fixture(scope="module")
def service(calibrated: Path) -> Iterator[Service]:
    service = Service(calibrated)
    yield service
    service.end()


@pytest.fixture
def page(browser, service: Service, tmp_path: Path) -> Iterator:
    """The page just opened; what it does may leave no line on the console."""
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    browser.get(service.address)
    wait(browser, "return document.getElementById('about').textContent.includes('score')")
    yield browser
    assert browser.get_log("browser") == []


def wait(browser, condition: str):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SECONDS).until(lambda driver: driver.execute_script(condition))


def one(page, selector: str):
    return page.find_element("css selector", selector)


def predict(page, paths: list[Path]) -> list:
    """Choose the files; the rows of the table once all are there."""
    before = len(page.find_elements("css selector", "#rows tr"))
    one(page, "#files").send_keys("\n".join(map(str, paths)))
    wait(page, f"return document.querySelectorAll('#rows tr').length === {before + len(paths)}")
    return page.find_elements("css selector", "#rows tr")


def test_it_says_whether_scores_have_changed(page, trained: Path) -> None:
    predict(page, images(trained))
    wait(page, "return /Drift: not known yet: [1-9]\\d* of 100 good images/.test(document.getElementById('drift').textContent)")


def test_photographs_get_decisions_regions_and_a_line_each(page, service: Service, trained: Path) -> None:
    chosen = images(trained)[:4]
    rows = predict(page, chosen)
    for path, row in zip(chosen, rows, strict=True):
        answer = service.predict(path.read_bytes()).json()
        cells = [cell.text for cell in row.find_elements("css selector", "td")]
        assert cells[:2] == [path.name, answer["decision"]]
        assert float(cells[2]) == pytest.approx(answer["score"], rel=1e-3)
        assert cells[5] == str(len(answer["regions"]))
        row.find_element("css selector", "button").click()
        assert one(page, "#verdict").text == answer["decision"]
        boxes = page.find_elements("css selector", "#stage rect")
        wanted = [[str(region[key]) for key in ("x", "y", "width", "height")] for region in answer["regions"]]
        assert [[box.get_attribute(key) for key in ("x", "y", "width", "height")] for box in boxes] == wanted
    assert "4 photographs" in one(page, "#counts").text
    wait(page, "return document.getElementById('heat').naturalWidth === 64")


def test_the_slider_fades_the_heat_map_by_keyboard(page, trained: Path) -> None:
    predict(page, images(trained)[:1])
    one(page, "#opacity").send_keys("\ue011")  # Home
    assert page.execute_script("return document.getElementById('heat').style.opacity") == "0"


def test_arrow_keys_step_through_the_table(page, trained: Path) -> None:
    chosen = images(trained)[:3]
    rows = predict(page, chosen)
    first = rows[0].find_element("css selector", "button")
    first.click()
    first.send_keys("\ue015")  # down
    assert one(page, "#rows tr[aria-selected=true] button").text == chosen[1].name
    assert page.switch_to.active_element.text == chosen[1].name
    assert chosen[1].name in one(page, "#facts").text


def test_the_table_is_downloaded(page, trained: Path, tmp_path: Path) -> None:
    evil = tmp_path / '=1+1, "x".png'
    evil.write_bytes(images(trained)[0].read_bytes())
    predict(page, [evil])
    one(page, "#download").click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, SECONDS).until(lambda _: (tmp_path / "results.csv").is_file())
    with open(tmp_path / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == f"'{evil.name}"
    assert row["decision"] in ("good", "defective")


def test_a_file_that_is_no_image_is_named_and_the_others_go_on(page, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    page.execute_script("document.getElementById('files').removeAttribute('accept')")
    one(page, "#files").send_keys(f"{tmp_path / 'notes.txt'}\n{images(trained)[0]}")
    wait(page, "return document.querySelectorAll('#rows tr').length === 1")
    assert "notes.txt: not an image" in one(page, "#error").text
    assert [entry for entry in page.get_log("browser") if "415" not in entry["message"]] == []


def test_on_a_phone_nothing_is_wider_than_the_screen(page, trained: Path) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    predict(page, images(trained)[:2])
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_fetches_nothing_from_elsewhere(page, service: Service, trained: Path) -> None:
    predict(page, images(trained)[:1])
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(name.startswith((service.address, "data:", "blob:")) for name in loaded)


def test_a_service_with_a_token_asks_for_it(browser, calibrated: Path, trained: Path) -> None:
    service = Service(calibrated, "--token", "secret")
    browser.get(service.address)
    wait(browser, "return !document.getElementById('login').hidden")
    one(browser, "#token").send_keys("secret\n")
    wait(browser, "return document.getElementById('about').textContent.includes('score')")
    assert len(predict(browser, images(trained)[:1])) == 1
    browser.get_log("browser")  # the refusal is there
    service.end()
