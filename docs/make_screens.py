"""The pictures of docs/page.md: the page of `inlay serve`, as it looks while it is used.

    inlay serve --port 8000 &
    python docs/make_screens.py http://127.0.0.1:8000 [--chromium PATH]

Photographs are those that scikit-image ships.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

IMAGES = Path(__file__).parent / "images"
# Where the cup lies on the floor of the garage: left, top and width.
PLACE = (470, 330, 190)
# Along the spoon beside the cup of coffee, in pixels of that photograph.
SPOON = ((350, 275), (375, 270), (385, 295), (358, 300), (372, 262), (392, 215), (404, 165))


def choose(page: Any, where: str, name: str, *files: Path) -> None:
    """Take files by the button of that name."""
    with page.expect_file_chooser() as chooser:
        page.locator(where).get_by_role("button", name=name).first.click()
    chooser.value.set_files(list(files))


def shot(page: Any) -> Image.Image:
    """The window, once it has come to rest."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(2500)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def save(picture: Image.Image, name: str) -> None:
    """Into docs/images, small."""
    picture.save(IMAGES / name, quality=84, optimize=True)
    print(name, picture.size, (IMAGES / name).stat().st_size)


def visit(browser: Any, address: str, scheme: str, width: int = 1280, height: int = 800) -> Any:
    """A new client's page."""
    phone = {"has_touch": True, "is_mobile": True} if width < 600 else {}
    size = {"width": width, "height": height}
    page = browser.new_context(viewport=size, color_scheme=scheme, **phone).new_page()
    page.goto(address)
    page.locator(".welcome").wait_for()
    return page


def stage(page: Any, background: Path, subject: Path, x: int, y: int, width: int) -> None:
    """Both pictures on the stage, the subject with its upper left corner there and so wide."""
    choose(page, ".welcome", "Choose a background", background)
    page.locator(".rail").wait_for()
    narrow = page.viewport_size["width"] < 600
    if narrow:
        page.get_by_role("button", name="Raise the panel").click()
    choose(page, ".panel", "Add subject", subject)
    page.locator(".panel li.selected").wait_for()
    for name, value in (("Width", width), ("X", x), ("Y", y)):
        field = page.locator(".panel").get_by_label(name, exact=True)
        field.fill(str(value))
        field.press("Enter")
    for close in page.get_by_label("Dismiss").all():
        close.click()
    if narrow:
        page.get_by_role("button", name="Lower the panel").click()


def make(page: Any) -> None:
    """Press the button, and wait for the result."""
    page.locator(".bar .run").click()
    page.get_by_role("group", name="Result").wait_for(timeout=120_000)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        garage, coffee = Path(name, "garage.png"), Path(name, "cup of coffee.png")
        Image.fromarray(data.stereo_motorcycle()[0]).save(garage)
        Image.fromarray(data.coffee()).save(coffee)
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])

        page = visit(browser, given.address, "light")
        save(shot(page), "page-first.jpg")
        stage(page, garage, coffee, *PLACE)
        save(shot(page), "page-place.jpg")
        make(page)
        save(shot(page), "page-result.jpg")

        page = visit(browser, given.address, "dark")
        page.get_by_role("button", name="Remove", exact=True).first.click()
        choose(page, ".welcome", "Choose a picture", coffee)
        frame = page.locator(".frame").bounding_box()
        zoom = float(page.get_by_label("Zoom, percent").input_value().rstrip("%")) / 100
        page.locator(".panel").get_by_label("Brush,").fill("76")
        for number, (x, y) in enumerate(SPOON):
            page.mouse.move(
                frame["x"] + frame["width"] / 2 + (x - 300) * zoom,
                frame["y"] + frame["height"] / 2 + (y - 200) * zoom,
                steps=4,
            )
            if number == 0:
                page.mouse.down()
        page.mouse.up()
        save(shot(page), "page-remove.jpg")

        phones = Image.new("RGB", (2 * 390 + 24, 844), "white")
        for number, scheme in enumerate(("light", "dark")):
            page = visit(browser, given.address, scheme, 390, 844)
            stage(page, garage, coffee, *PLACE)
            if scheme == "dark":
                make(page)
            phones.paste(shot(page), (number * 414, 0))
        save(phones, "page-phone.jpg")
        browser.close()


if __name__ == "__main__":
    main()
