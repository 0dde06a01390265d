"""Every kind of page in a real browser: on a telephone and on a desk, light, dark and printed, with nothing fetched."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

import browser
from conftest import interrupt_at
from metaprox import comparison, experiments, reports, training

RESULTS = Path(__file__).parent.parent / "results"
SMALL = training.Settings(
    "sinusoid", hidden=(6,), meta_steps=30, meta_batch=2, eval_every=10, eval_tasks=3, test_tasks=6, steps=2,
    compile="off",
)  # fmt: skip
PAGES = ("run", "unfinished", "side by side", "comparison", "experiments")
WIDTHS = (390, 1280)

pytestmark = [
    pytest.mark.skipif(
        browser.chromium() is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is installed"
    ),
    pytest.mark.filterwarnings("ignore::metaprox.errors.InaccurateWarning"),  # of two inner steps
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind; screenshots come beside them."""
    place = tmp_path_factory.mktemp("pages")
    run = training.train(SMALL, place / "a run")
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL.but(method="maml", meta_steps=90), place / ("long" * 40), interrupt_at(25))
    kept = comparison.read(RESULTS / "banking77-lora-head")
    (place / "comparison").mkdir()
    (place / "experiments" / "bias").mkdir(parents=True)
    (place / "experiments" / "bias" / "results.json").write_bytes((RESULTS / "bias" / "results.json").read_bytes())
    outcome = experiments.judge(experiments.experiments()["bias"], place / "experiments")
    return {
        "run": reports.write_report(run),
        "unfinished": reports.write_report(training.RunFolder(place / ("long" * 40))),
        "side by side": reports.write_side_by_side([run.path, place / ("long" * 40)], place / "side by side.html"),
        "comparison": reports.write_comparison(kept, place / "comparison"),
        "experiments": experiments.write_summary([outcome], place / "experiments"),
    }


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


TOO_WIDE = """[...document.querySelectorAll('body *')]
    .filter(one => !one.closest('.scroll') && one.getBoundingClientRect().right > innerWidth + 0.5)
    .map(one => one.outerHTML.slice(0, 200))"""
SMALLEST = """Math.min(...[...document.querySelectorAll('p, td, th, code')]
    .map(one => parseFloat(getComputedStyle(one).fontSize)))"""
LETTERS = "Math.min(...[...document.querySelectorAll('.panels img')].map(one => one.clientWidth / one.naturalWidth))"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_fetches_nothing_and_can_be_read(pages, tab, name, dark, width):
    tab.look(width, dark)
    tab.open(pages[name])
    assert tab.value("location.protocol") == "file:"
    assert tab.value("document.querySelector('meta[name=generator]').content") == "metaprox"
    assert [url for url in tab.requests if not url.startswith("data:image/png")] == [pages[name].resolve().as_uri()]
    assert tab.problems == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(TOO_WIDE) == []
    assert tab.value(SMALLEST) >= 12
    assert tab.value("document.images.length") >= 1
    assert tab.value("[...document.images].every(one => one.complete && one.naturalWidth > 0 && one.alt)")
    # letters of 8.3 points ("small"), at 160 dots an inch, on the screen
    assert tab.value(LETTERS) * 8.3 * 160 / 72 > 8
    shot = pages[name].parent / f"{name} {width} {'dark' if dark else 'light'}.png"
    picture = Image.open(io.BytesIO(tab.screenshot(shot))).convert("L")
    assert picture.width == width
    histogram = picture.histogram()
    background = max(range(256), key=histogram.__getitem__)
    assert (background < 40) if dark else (background > 250)
    ink = sum(histogram[180:]) if dark else sum(histogram[:100])
    assert ink > 0.002 * sum(histogram)


def test_tables_that_are_too_wide_scroll_in_themselves(pages, tab):
    tab.look(390)
    tab.open(pages["comparison"])
    assert tab.value("[...document.querySelectorAll('.scroll')].some(one => one.scrollWidth > one.clientWidth)")
    assert tab.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"


def test_panels_stack_on_a_telephone_and_lie_side_by_side_on_a_desk(pages, tab):
    lefts = "new Set([...document.querySelectorAll('.panels:has(img + img) img')].map(one => one.offsetLeft)).size"
    for width, columns in ((390, 1), (1280, 2)):
        tab.look(width)
        tab.open(pages["run"])
        assert tab.value(lefts) == columns


def test_figures_on_dark_pages_have_their_colours_turned(pages, tab):
    look = "getComputedStyle(document.querySelector('.panels img')).filter"
    for dark, found in ((False, "none"), (True, "invert")):
        tab.look(1280, dark)
        tab.open(pages["run"])
        assert tab.value(look).startswith(found)


HEADINGS = """[...document.querySelectorAll('h1, h2, h3, h1 + .about, h2 + .about, .lead')]
    .every(one => getComputedStyle(one).breakAfter === 'avoid')
    && [...document.querySelectorAll('tr, .panels img')].every(one => getComputedStyle(one).breakInside === 'avoid')
    && getComputedStyle(document.querySelector('.panels img')).filter === 'none'"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints(pages, tab, name):
    """In dark ink on white, headings with what they are of, whatever the screen is like."""
    tab.look(1280, dark=True)
    tab.open(pages[name])
    printed = tab.pdf(pages[name].parent / f"{name}.pdf")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8
    assert tab.value(HEADINGS)
    assert tab.value("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"


def test_the_browser_would_notice(tab, tmp_path):
    """What the tests above look for is seen where it is."""
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><img src="http://localhost:1/x.png"><p style="width: 500px">wide</p>')
    tab.look(390)
    tab.open(page)
    assert "http://localhost:1/x.png" in tab.requests
    assert tab.value("document.documentElement.scrollWidth") > 390
    assert any("500px" in one for one in tab.value(TOO_WIDE))
