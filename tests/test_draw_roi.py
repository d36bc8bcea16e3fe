"""The page that draws regions of interest, in a browser: what it saves is what dataset.roi reads."""

from pathlib import Path

import numpy as np
import pytest

from datasets.roi import Roi
from tests.helpers import tiny


def test_a_polygon_of_each_class_is_saved_and_read(browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    tiny.save_image(tmp_path / "photo.png", np.full((200, 400, 3), 90, np.uint8))
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    browser.get((tiny.ROOT / "docs/draw-roi.html").as_uri())
    one = {name: browser.find_element("id", name) for name in ("photo", "name", "canvas", "close", "keep", "save", "undo")}
    one["photo"].send_keys(str(tmp_path / "photo.png"))
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script("return canvas.width === 400"))

    def click(*corners: tuple[int, int]) -> None:
        for x, y in corners:  # offsets count from the middle
            ActionChains(browser).move_to_element_with_offset(one["canvas"], x - 200, y - 100).click().perform()

    click((0, 0), (200, 0), (200, 199), (0, 199), (300, 100))
    one["undo"].click()
    one["name"].send_keys("cup")
    one["keep"].click()
    click((0, 0), (399, 0), (399, 100), (0, 100))
    one["name"].send_keys("tile")
    one["save"].click()
    file = tmp_path / "roi.json"
    WebDriverWait(browser, 60).until(lambda _: file.is_file())
    roi = Roi.read(str(file), ["cup", "tile"])
    assert roi.mask("cup").mean() == pytest.approx(0.5, abs=0.02)
    assert roi.mask("cup")[:, :1000].mean() > 0.97
    assert roi.mask("tile")[:1000].mean() > 0.97
    assert roi.mask("tile").mean() == pytest.approx(0.5, abs=0.02)
    assert browser.get_log("browser") == []
