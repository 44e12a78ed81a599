"""Look at every page of the built site in headless Chromium, as a reader with a phone or a dark room would.

    python docs/check_site.py docs/_build/html [--screenshots FOLDER]

Checked at two widths, in light and dark: the page does not overflow, no picture is broken, every picture has a text,
links and buttons have names, and text has the contrast of WCAG AA. Prints what is wrong; status 1 if anything is.
"""

import argparse
import http.server
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

WIDTHS = (1280, 390)
THEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const pages = PAGES, widths = WIDTHS, themes = THEMES, found = [];
const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
function behind(element, view) {
  for (let e = element; e; e = e.parentElement) {
    const style = view.getComputedStyle(e), [r, g, b, a = 1] = channels(style.backgroundColor);
    if (style.backgroundImage !== 'none') return null;
    if (a > 0.9) return [r, g, b];
  }
  return [255, 255, 255];
}
function contrast(view, report) {
  const seen = new Set(), walk = view.document.createTreeWalker(view.document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'TEMPLATE'].includes(element.tagName)) continue;
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = view.getComputedStyle(element), [r, g, b, a = 1] = channels(style.color);
    const ground = behind(element, view);
    if (!ground || a < 0.99) continue;
    const two = [light([r, g, b]), light(ground)].sort((x, y) => y - x), ratio = (two[0] + 0.05) / (two[1] + 0.05);
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    const key = [style.color, ground, element.tagName, element.className].join();
    if (ratio < (isLarge ? 3 : 4.5) - 0.005 && !seen.has(key)) {
      seen.add(key);
      report(`contrast ${ratio.toFixed(2)} of ${style.color} on ${ground}: <${element.tagName} ${element.className}> ` +
        JSON.stringify(text.slice(0, 30)));
    }
  }
}
function check(view, report) {
  const root = view.document.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) report(`overflows: ${root.scrollWidth} of ${root.clientWidth} pixels`);
  for (const image of view.document.images) {
    if (!image.naturalWidth) report(`broken picture ${image.src}`);
    if (!image.alt || /^[._\\/]*_images|\\.png$/.test(image.alt)) report(`picture without a text: ${image.src}`);
  }
  for (const e of view.document.querySelectorAll('a[href], button')) {
    const name = e.textContent.trim() || e.getAttribute('aria-label') || e.title || e.querySelector('img[alt], title');
    if (!name && e.checkVisibility()) report(`no name: ${e.outerHTML.slice(0, 90)}`);
    if (e.tabIndex < 0 && e.href && e.checkVisibility()) report(`not by keyboard: ${e.outerHTML.slice(0, 90)}`);
  }
  contrast(view, report);
}
async function main() {
  for (const width of widths) for (const page of pages) {
    const frame = document.createElement('iframe');
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    frame.src = '/' + page;
    document.body.append(frame);
    await new Promise(done => frame.onload = done);
    const view = frame.contentWindow, still = view.document.createElement('style');
    still.textContent = '* { transition: none !important; animation: none !important }';
    view.document.head.append(still);
    for (const theme of themes) {
      Object.assign(view.document.documentElement.dataset, {theme, mode: theme});
      await new Promise(done => setTimeout(done, 60));
      check(view, text => found.push(`${page} (${width}, ${theme}): ${text}`));
    }
    frame.remove();
  }
  await fetch('/__result', {method: 'POST', body: JSON.stringify(found)});
}
main().catch(e => fetch('/__result', {method: 'POST', body: JSON.stringify(['harness: ' + e])}));
</script>"""


def find_browser() -> str | None:
    """The first browser that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pages_of(site: Path) -> list[str]:
    """Every page but the listings of source code and what the search generates."""
    found = (path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html")))
    return [
        p for p in found if not p.startswith(("_modules/", "_static/")) and p not in ("genindex.html", "search.html")
    ]


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments, harness: str, results: list[str], done: threading.Event, **options):
        self.harness, self.results, self.done = harness, results, done
        super().__init__(*arguments, **options)

    def do_GET(self):
        if self.path != "/__harness":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.harness.encode())

    def do_POST(self):
        self.results += json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *arguments):
        pass


def check(site: Path, browser: str, timeout: float = 600) -> list[str]:
    """Return what is wrong with the pages of a site.

    Raises:
        TimeoutError: the browser gave no answer.
    """
    values = {"PAGES": pages_of(site), "WIDTHS": WIDTHS, "THEMES": THEMES}
    harness = HARNESS
    for name, value in values.items():
        harness = harness.replace(f"= {name}", f"= {json.dumps(value)}")
    results: list[str] = []
    done = threading.Event()
    handler = partial(_Handler, directory=str(site), harness=harness, results=results, done=done)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/__harness"
        words = _words(browser, profile, 1400, 1000)
        process = subprocess.Popen([*words, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL)
        try:
            if not done.wait(timeout):
                raise TimeoutError(f"no answer from {browser} within {timeout:.0f} s.")
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
    return results


def take_screenshots(site: Path, browser: str, folder: Path) -> None:
    """One picture per page, width and theme, of its first 2400 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages_of(site):
        name = page.removesuffix(".html").replace("/", "_")
        for width, (theme, scheme) in itertools.product(WIDTHS, (("light", 1), ("dark", 0))):
            with tempfile.TemporaryDirectory() as profile:
                words = [
                    *_words(browser, profile, width, 2400),
                    f"--blink-settings=preferredColorScheme={scheme}",
                    f"--screenshot={folder / f'{name}_{width}_{theme}.png'}",
                    (site / page).resolve().as_uri(),
                ]
                subprocess.run(words, stderr=subprocess.DEVNULL, check=True, timeout=120)


def _words(browser: str, profile: str, width: int, height: int) -> list[str]:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}")
    return [browser, *flags, f"--window-size={width},{height}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument(
        "--screenshots", type=Path, help="folder for pictures of every page at both widths, light and dark"
    )
    arguments = parser.parse_args()
    if (browser := find_browser()) is None:
        sys.exit(f"no browser: looked for {', '.join(BROWSERS)}")
    found = check(arguments.site, browser)
    print("\n".join(found) or f"{len(pages_of(arguments.site))} pages are in order")
    if arguments.screenshots:
        take_screenshots(arguments.site, browser, arguments.screenshots)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
