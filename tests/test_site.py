"""The built site in a browser; its build is tested by `.ci/run docs`, which executes the tutorials."""

import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "_build" / "html"


@pytest.fixture(scope="module")
def checker():
    return runpy.run_path(str(ROOT / "docs" / "check_site.py"))


@pytest.fixture(scope="module")
def browser(checker):
    if (found := checker["find_browser"]()) is None:
        pytest.skip("no browser is installed: chromium, chromium-browser or google-chrome")
    return found


BAD = """<!doctype html><html><body style="background: white"><p style="width: 3000px; color: #aaa">pale</p>
<img src="absent.png"><a href="#x"></a></body></html>"""


@pytest.mark.slow
def test_the_checker_finds_what_is_wrong(checker, browser, tmp_path):
    (tmp_path / "bad.html").write_text(BAD)
    found = "\n".join(checker["check"](tmp_path, browser, timeout=120))
    for wanted in ("overflows", "contrast 2.32", "broken picture", "picture without a text", "no name"):
        assert wanted in found, found


THEMED = """<!doctype html><style>@media (prefers-color-scheme: dark) { body { background: black } }</style>
<body>page</body>"""


@pytest.mark.slow
def test_screenshots_are_light_and_dark_at_both_widths(checker, browser, tmp_path):
    (tmp_path / "page.html").write_text(THEMED)
    checker["take_screenshots"](tmp_path, browser, tmp_path / "shots")
    pictures = {path.stem: plt.imread(path) for path in (tmp_path / "shots").iterdir()}
    assert {name: picture.shape[1] for name, picture in pictures.items()} == {
        **dict.fromkeys(("page_1280_light", "page_1280_dark"), 1280),
        **dict.fromkeys(("page_390_light", "page_390_dark"), 390),
    }
    assert pictures["page_390_dark"][..., :3].mean() < 0.1 < 0.9 < pictures["page_390_light"][..., :3].mean()


@pytest.mark.slow
def test_pages_are_fit_to_read(checker, browser):
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: sphinx-build -W -b html docs docs/_build/html")
    assert checker["check"](SITE, browser) == []
