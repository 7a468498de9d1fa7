"""The report's page in a headless Chromium: the slider moves, nothing complains, no text runs, it fits every screen."""

import os
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tasks import html
from tasks.pictures import comparison
from tasks.quality import measure
from tasks.recover import recover
from tasks.report import page_beside, report_beside
from tasks.storage import urls
from tests.browser.chromium import chromium, whole_page
from tests.tasks.conftest import Made, made  # noqa: F401 - a fixture

pytestmark = pytest.mark.system

EVIL = "a</script><script>window.evil=1</script>\"'><img src=x onerror='window.evil=2'>"
SCREENS = {"phone": (390, 844), "desktop": (1440, 900), "4k": (3840, 2160)}


@pytest.fixture(scope="module")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The page of a real result, with hostile text in every place that a file or user names."""
    folder = tmp_path_factory.mktemp("page")
    output = folder / "out.mp4"
    recover(made.job, str(output), made.cache_dir)
    assert Path(page_beside(str(output))).exists()
    found = urls.read_json(report_beside(str(output)))
    joins = [segment.start for segment in made.plan.segments[1:]]
    quality, sights = measure(output, made.source, made.plan.info, joins, 60.0)
    found["source"] = found["job"] = found["command"] = EVIL
    found["notes"] = found["warnings"] = found["fallbacks"] = found["devices"] = [EVIL]
    found["output"]["url"] = f"/out/{EVIL}"
    for result in found["results"]:
        result["worker"] = EVIL
    found["quality"]["reference_file"] = EVIL
    found["quality"]["reference"] = {"psnr": 30.0}
    assert quality.joins_total == 2
    path = folder / "page.html"
    path.write_text(html.page(found, [comparison(sight) for sight in sights]))
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_fits_and_moves(page: Path, tmp_path: Path, screen: str, dark: bool) -> None:
    with chromium(tmp_path / "profile", *SCREENS[screen], dark=dark) as browser:
        browser.get(page.as_uri())
        assert browser.execute_script("return window.evil") is None
        width = SCREENS[screen][0]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (int(ground[4:].split(",")[0]) < 100) == dark
        before = clip_of(browser)
        slider = browser.find_element(By.CSS_SELECTOR, ".frame:not([hidden]) .compare input")
        for _ in range(40):
            slider.send_keys(Keys.ARROW_RIGHT)
        after = clip_of(browser)
        assert before != after
        webdriver.ActionChains(browser).move_to_element_with_offset(
            slider, -slider.size["width"] // 4, 0
        ).click().perform()
        assert clip_of(browser) not in (before, after)
        loaded = browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert loaded
        buttons = browser.find_elements(By.CSS_SELECTOR, ".choose button")
        assert len(buttons) >= 2
        buttons[1].click()
        shown = browser.execute_script("return [...document.querySelectorAll('.frame')].map(f => !f.hidden)")
        assert shown == [False, True, *[False] * (len(shown) - 2)]
        pictures = Path(os.environ.get("FLASHVSR_PICTURES", tmp_path))
        whole_page(browser, pictures / f"report-{screen}-{'dark' if dark else 'light'}.png")
        assert browser.get_log("browser") == []


def clip_of(browser: webdriver.Chrome) -> str:
    """How much of the source is shown."""
    script = "return getComputedStyle(document.querySelector('.frame:not([hidden]) .before')).clipPath"
    return str(browser.execute_script(script))
