"""The README's picture of a report, as Chromium shows it: its top, its viewer, its curves.

python docs/screenshot.py --workdir=runs/mood --case=test_00036 --output=docs/report.jpg
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PARTS = ("section[aria-label='Main results']", "#viewer", "section[aria-labelledby=figures]")


def shots(report, case):
    """The parts of the page as pictures, with this case in the viewer."""
    with sync_playwright() as program:
        browser = program.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(report.resolve().as_uri())
        page.locator("#gallery button").filter(has_text=case).first.click()
        page.wait_for_timeout(1000)  # its pictures are unpacked
        found = [page.locator(part).first.screenshot() for part in PARTS]
        browser.close()
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    pictures = shots(options.workdir / "report.html", options.case)
    width, gap = max(one.width for one in pictures), 16
    height = sum(one.height + gap for one in pictures)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for one in pictures:
        whole.paste(one, ((width - one.width) // 2, top))
        top += one.height + gap
    whole.resize((900, round(900 * height / width)), Image.LANCZOS).save(options.output, quality=80)


if __name__ == "__main__":
    main()
