"""All pages in a real browser, with hostile texts in every field: nothing of them runs, nothing is
wider than a telephone, and charts are drawn, in both colour schemes."""

import pytest

from har_jax.reports.comparison import write_comparison
from har_jax.reports.dataset import write_dataset_page
from har_jax.reports.page import write_report
from tests.reports import browser, hostile

pytestmark = pytest.mark.skipif(
    browser.COMMAND is None, reason="there is no chromium (apt-get install chromium)"
)
DRAWN = """[...document.querySelectorAll('polyline.line, circle.mean, rect.bar')]
    .filter(e => e.getBBox().width > 0 || e.getBBox().height > 0).length"""
SEEN = "[...document.querySelectorAll('article')].filter(e => e.offsetHeight > 0).length"
# What is wider than the page, by name; inside of a scrolling box or a drawing it may be.
TOO_WIDE = """[...document.querySelectorAll('body *:not(svg *)')].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.wide')).map(e =>
    e.tagName + '.' + e.getAttribute('class')).slice(0, 5)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    data = hostile.dataset(root / "data", hostile.EVIL)
    one, other = (
        hostile.run(root / f"{k}{hostile.IN_A_NAME}", hostile.EVIL, data=data, value=float(k))
        for k in (1, 2)
    )
    return {
        "run": write_report(one, compare_with=other, out=root / "run.html"),
        "comparison": write_comparison(one, [other], out=root / "comparison.html"),
        "dataset": write_dataset_page(data, out=root / "dataset.html"),
    }


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("name", ["run", "comparison", "dataset"])
def test_a_page_in_a_browser(pages, chromium, name):
    grounds = set()
    for width, dark in ((400, False), (1100, True)):
        page = chromium.open(pages[name], width=width, dark=dark)
        page.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert page.ask("document.documentElement.scrollWidth") <= width, page.ask(TOO_WIDE)
        assert page.ask(TOO_WIDE) == []
        assert page.complaints == []
        assert page.ask("[typeof window.owned, document.scripts.length]") == ["undefined", 0]
        assert "window.owned=1" in page.ask("document.body.innerText"), "told, and not run"
        assert page.ask(DRAWN) >= 5
        grounds.add(page.ask("getComputedStyle(document.body).backgroundColor"))
        images = page.ask("[...document.images].map(e => e.src.slice(0, 11))")
        assert images and set(images) == {"data:image/"}
    assert len(grounds) == 2, "light and dark"


def test_the_images_of_a_split_are_chosen_without_a_script(pages, chromium):
    page = chromium.open(pages["dataset"], width=1100)
    assert page.ask(SEEN) == hostile.SPLITS["train"]
    page.ask("document.querySelectorAll('.choice label')[1].click()")
    assert page.ask(SEEN) == hostile.SPLITS["val"]
