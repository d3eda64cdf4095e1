"""Makes the pictures of the documentation from the pages of a demo, by Chromium: `make demo`, then
`.venv/bin/python docs/pictures.py --demo=runs/demo --data=data/scenes`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

DOCS = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from har_jax import prepare, report  # noqa: E402
from tests.reports.browser import Browser  # noqa: E402

# name: (page, width, dark, the heading that it begins at or the top, height)
PICTURES = {
    "report.png": ("report", 1100, False, "", 1600),
    "images/report.png": ("report", 900, False, "", 1100),
    "images/report-curves.png": ("report", 900, False, "Course of training", 1140),
    "images/report-narrow.png": ("report", 400, True, "", 1200),
    "images/comparison.png": ("comparison", 900, False, "", 1010),
    "images/comparison-narrow.png": ("comparison", 400, False, "", 1200),
    "images/dataset.png": ("dataset", 900, False, "", 1020),
    "images/dataset-narrow.png": ("dataset", 400, True, "", 1200),
}
TOP = """
(heading => {
  const found = [...document.querySelectorAll('h1, h2')].find(e => e.textContent.trim() == heading);
  return Math.floor(found.getBoundingClientRect().top + scrollY) - 16;
})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", default="runs/demo")
    parser.add_argument("--data", default="data/scenes")
    given = parser.parse_args()
    runs = [f"{given.demo}/{name}" for name in ("scst-0", "mle-0")]
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        pages = {name: here / f"{name}.html" for name in ("report", "comparison", "dataset")}
        report.main([runs[0], f"--out={pages['report']}"])
        report.main([runs[0], "--against", runs[1], f"--out={pages['comparison']}"])
        prepare.main(["view", given.data, f"--out={pages['dataset']}", "--limit=12"])
        with Browser(here / "profile") as browser:
            for name, (page, width, dark, heading, height) in PICTURES.items():
                shown = browser.open(pages[page], width=width, dark=dark)
                top = shown.ask(f"{TOP.strip()}({heading!r})") if heading else 0
                (DOCS / name).write_bytes(shown.picture(top, height))
                print(DOCS / name)


if __name__ == "__main__":
    main()
