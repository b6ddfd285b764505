"""The page of `inlay serve`, driven in a browser as a user does."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay import Box, Composer, Request
from photos import cutout
from servers import Running

axe = pytest.importorskip("axe_playwright_python")

COLOUR, GROUND = (255, 0, 255), (40, 90, 60)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to upload: photographs, a cut-out, and a plain subject whose edges are easily seen."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.coffee()).save(folder / "coffee.png")
    Image.fromarray(cutout(data.chelsea(), Box(60, 20, 300, 260))).save(folder / "cat.png")
    plain = np.zeros((300, 400, 4), np.uint8)
    plain[50:250, 50:350] = (*COLOUR, 255)
    Image.fromarray(plain).save(folder / "plain.png")
    Image.fromarray(np.full((800, 1000, 3), GROUND, np.uint8)).save(folder / "green.png")
    return folder


class Visit:
    """A page that is open, and all that it did wrong."""

    def __init__(self, browser: Any, server: Running, **options: Any) -> None:
        self.address = f"http://127.0.0.1:{server.port}"
        self.faults: list[str] = []
        options = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark", **options}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._sent)
        self.page.goto(self.address)
        self.page.locator(".welcome").wait_for()

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _sent(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", f"blob:{self.address}")):
            self.faults.append(f"a foreign request: {request.url}")

    def choose(self, where: str, name: str, file: Path) -> None:
        button = self.page.locator(where).get_by_role("button", name=name).first
        with self.page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(file)

    def stage(self, background: Path, subject: Path) -> None:
        """Both pictures onto the stage."""
        self.choose(".welcome", "Choose a background", background)
        self.page.locator(".rail").wait_for()
        self.choose(".panel", "Add subject", subject)
        self.page.locator(".panel li.selected").wait_for()

    def numbers(self) -> list[float]:
        """Box and degrees of the selected subject, as the panel says."""
        fields = ("X", "Y", "Width", "Height", "Turn, °")
        panel = self.page.locator(".panel")
        return [float(panel.get_by_label(name, exact=True).input_value()) for name in fields]

    def seen(self) -> np.ndarray[Any, Any]:
        """What the stage shows, with nothing over it: (h, w, 3), in pixels of the screen."""
        shot = Image.open(io.BytesIO(self.page.locator(".frame").screenshot()))
        return np.asarray(shot.convert("RGB"))

    def drawn(self, ratio: float) -> tuple[float, float, float, float]:
        """The plain subject's edges, left, top, right, bottom, in CSS pixels of the stage."""
        seen = self.seen().astype(float)
        close = np.abs(seen - COLOUR).max(-1) < 40
        rows, columns = np.nonzero(close.sum(1) > 20)[0], np.nonzero(close.sum(0) > 20)[0]
        edges = list[float]()
        for line in (seen[rows.mean().astype(int)], seen[:, columns.mean().astype(int)]):
            # What of a pixel of the screen an edge leaves covered says where in it the edge is.
            away = np.array(COLOUR) - GROUND
            covered = np.clip((line - GROUND) @ away / (away @ away), 0, 1)
            first, last = np.nonzero(covered > 0.98)[0][[0, -1]]
            edges += [
                first - covered[first - 1 : first].sum(),
                last + 1 + covered[last + 1 : last + 2].sum(),
            ]
        left, right, top, bottom = edges
        return left / ratio, top / ratio, right / ratio, bottom / ratio

    def close(self) -> None:
        self.context.close()
        assert self.faults == []


@pytest.mark.parametrize("ratio", [1, 2])
def test_posted_box_is_the_drawn_one(
    browser: Any, server: Running, pictures: Path, ratio: int
) -> None:
    visit = Visit(browser, server, device_scale_factor=ratio)
    page = visit.page
    visit.stage(pictures / "green.png", pictures / "plain.png")
    page.get_by_label("Close the hints").click()
    page.get_by_role("button", name="Live preview").click()
    page.get_by_role("combobox", name="Name").select_option("paste")
    frame = page.locator(".frame").bounding_box()
    for zoom in (0.25, 2):
        field = page.get_by_label("Zoom, percent")
        field.fill(f"{zoom * 100:g}")
        field.press("Enter")
        start = visit.numbers()
        # The stage was in the middle of its window, and is still.
        centre = [frame["width"] / 2, frame["height"] / 2]
        corner = [centre[0] - 500 * zoom, centre[1] - 400 * zoom]
        box = (start[0] + start[2] / 2, start[1] + start[3] / 2)
        grip = [frame["x"] + corner[0] + box[0] * zoom, frame["y"] + corner[1] + box[1] * zoom]
        page.mouse.move(*grip)
        page.mouse.down()
        for part in (0.3, 0.7, 1):
            page.mouse.move(grip[0] + 36 * part, grip[1] + 22 * part)
        page.mouse.up()
        x, y, width, height, _ = visit.numbers()
        assert abs(x - start[0] - 36 / zoom) <= 1
        assert abs(y - start[1] - 22 / zoom) <= 1
        page.keyboard.press("Escape")
        left, top, right, bottom = visit.drawn(ratio)
        # A pixel of the background, and what of a pixel of the screen a browser rounds.
        near = 1 + 0.1 / ratio / zoom
        if zoom == 0.25:
            assert abs((right - corner[0]) / zoom - x - width) <= near
            assert abs((bottom - corner[1]) / zoom - y - height) <= near
        assert abs((left - corner[0]) / zoom - x) <= near
        assert abs((top - corner[1]) / zoom - y) <= near
        with page.expect_request("**/api/jobs") as sent:
            page.locator(".bar .run").click()
        posted = json.loads(sent.value.post_data)
        assert posted["subjects"][0]["box"] == [x, y, width, height]
        page.get_by_role("group", name="Result").wait_for()
        page.keyboard.press("Escape")
        page.locator(".panel li .name").first.click()
    visit.close()


def test_file_is_the_one_that_python_makes(
    browser: Any, server: Running, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(browser, server)
    page = visit.page
    visit.stage(pictures / "coffee.png", pictures / "cat.png")
    page.get_by_label("X", exact=True).fill("60")
    page.get_by_label("X", exact=True).press("Enter")
    page.locator(".frame").focus()
    for key in ("ArrowDown", "]", "f"):
        page.keyboard.press(key)
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("combobox", name="Name").select_option("cdc")
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Steps", exact=True).fill("20")
    page.get_by_label("Steps", exact=True).press("Enter")
    with page.expect_request("**/api/jobs") as sent:
        page.locator(".bar .run").click()
    page.locator(".bar progress").wait_for()
    page.locator(".bar").get_by_text("Step ").wait_for()
    result = page.get_by_role("group", name="Result")
    result.wait_for(timeout=90_000)
    with page.expect_download() as download:
        result.get_by_role("link", name="Download").click()
    mine = pictures / "mine.png"
    theirs = pictures / "theirs.png"
    download.value.save_as(theirs)

    # A server's requests name files by their hashes, in the folder where it keeps them.
    monkeypatch.chdir(server.service.store.files)
    posted = json.loads(sent.value.post_data)
    assert posted["method"] == {"name": "cdc", "num_inference_steps": 20}
    request = Request.of(posted)
    Composer.from_pretrained("embedded").run(request).save(mine)
    assert mine.read_bytes() == theirs.read_bytes()

    page.reload()
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name="Put its request back on the stage").first.click()
    page.locator(".panel").get_by_role("button", name="Edit").click()
    page.locator(".panel li.selected").wait_for()
    box = request.subjects[0].box  # type: ignore[attr-defined]
    assert visit.numbers() == [box.x, box.y, box.width, box.height, -1]
    assert page.get_by_label("Seed", exact=True).input_value() == "7"
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Open a picture made by inlay").click()
    chooser.value.set_files(theirs)
    page.locator(".panel li.selected").wait_for()
    assert visit.numbers() == [box.x, box.y, box.width, box.height, -1]
    visit.close()


def test_fingers_pinch_and_paint(browser: Any, server: Running, pictures: Path) -> None:
    size = {"width": 390, "height": 844}
    visit = Visit(
        browser, server, viewport=size, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    page = visit.page
    visit.choose(".welcome", "Choose a background", pictures / "green.png")
    page.locator(".rail").wait_for()
    page.get_by_role("button", name="Raise the panel").click()
    visit.choose(".panel", "Add subject", pictures / "plain.png")
    page.locator(".panel li.selected").wait_for()
    before = visit.numbers()
    page.get_by_role("button", name="Live preview").click()
    page.get_by_role("button", name="Lower the panel").click()
    page.get_by_label("Close the hints").click()
    frame = page.locator(".frame").bounding_box()
    left, top, right, bottom = visit.drawn(2)
    middle = frame["x"] + (left + right) / 2, frame["y"] + (top + bottom) / 2
    session = visit.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    x, y = middle
    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    for step in range(1, 11):
        touch("touchMove", (x - 20 - step, y), (x + 20 + step, y))
    touch("touchEnd")
    after = visit.numbers()
    assert after[2] == pytest.approx(1.5 * before[2], abs=3)
    assert after[0] + after[2] / 2 == pytest.approx(before[0] + before[2] / 2, abs=3)

    page.get_by_role("button", name="Eraser").click()
    touch("touchStart", (x - 30, y))
    for step in range(1, 7):
        touch("touchMove", (x - 30 + 10 * step, y))
    touch("touchEnd")
    at = [round(2 * (value - start)) for value, start in zip(middle, frame.values(), strict=False)]
    assert np.abs(visit.seen()[at[1], at[0]].astype(int) - COLOUR).max() > 60
    with page.expect_response("**/api/files") as stored, page.expect_request("**/api/jobs") as job:
        page.locator(".bar .run").click()
    mask = stored.value.json()["file"]
    assert json.loads(job.value.post_data)["subjects"][0]["mask"] == mask
    levels = np.asarray(Image.open(server.service.store.files / mask).convert("L"))
    assert levels.shape == (300, 400)
    assert levels[60, 60] == 255 and levels[150, 200] == 0 and levels[10, 10] == 0
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Undo").click()
    assert np.abs(visit.seen()[at[1], at[0]].astype(int) - COLOUR).max() < 40
    visit.close()


PASTED = """async ([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], name, { type: "image/png" }));
  window.dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true }));
}"""


def test_from_one_result_to_the_next(browser: Any, server: Running, pictures: Path) -> None:
    """What is pasted, variants, a result as background, a removal by brush, and what is deleted."""
    visit = Visit(browser, server)
    page = visit.page
    for name in ("coffee.png", "cat.png"):
        content = base64.b64encode((pictures / name).read_bytes()).decode()
        page.evaluate(PASTED, [name, content])
        page.locator(".panel li", has_text=name.removesuffix(".png")).wait_for()
    page.get_by_role("combobox", name="Name").select_option("paste")
    page.get_by_label("Variants").fill("2")
    page.locator(".bar .run").click()
    variants = page.get_by_role("list", name="Variants")
    variants.get_by_role("button").nth(1).click()
    line = page.get_by_label("Before and after")
    line.focus()
    line.press("Home")
    page.get_by_role("button", name="Use as background").click()
    page.locator(".panel li", has_text="result").wait_for()

    page.get_by_role("button", name="Remove", exact=True).first.click()
    frame = page.locator(".frame").bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=5)
    page.mouse.up()
    page.get_by_label("Variants").fill("1")
    page.get_by_role("combobox", name="Name").select_option("telea")
    with page.expect_request("**/api/jobs") as sent:
        page.locator(".bar .run").click()
    page.get_by_role("group", name="Result").wait_for()
    request = json.loads(sent.value.post_data)
    mask = np.asarray(Image.open(server.service.store.files / request["mask"]).convert("L"))
    assert mask.shape == (400, 600) and mask[200, 300] == 255 and mask[100, 300] == 0

    page.get_by_role("button", name="History").click()
    entries = page.get_by_role("list", name="History").get_by_role("listitem")
    assert entries.count() == 2
    entries.first.get_by_role("button", name="Delete").click()
    entries.nth(1).wait_for(state="detached")
    page.reload()
    page.get_by_role("button", name="History").click()
    entries.first.wait_for()
    assert entries.count() == 1
    visit.close()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_stands_in_anybodys_way(
    browser: Any, server: Running, pictures: Path, scheme: str, width: int
) -> None:
    visit = Visit(browser, server, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = visit.page
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))

    def check() -> None:
        found = page.evaluate("axe.run().then((result) => result.violations)")
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []

    check()
    visit.choose(".welcome", "Choose a background", pictures / "coffee.png")
    page.locator(".rail").wait_for()
    if width == 390:
        page.get_by_role("button", name="Raise the panel").click()
    visit.choose(".panel", "Add subject", pictures / "cat.png")
    page.locator(".panel li.selected").wait_for()
    page.locator("summary", has_text="More settings").click()
    check()
    page.get_by_role("combobox", name="Name").select_option("paste")
    page.locator(".bar .run").click()
    page.get_by_role("group", name="Result").wait_for(timeout=60_000)
    page.get_by_role("button", name="History").click()
    page.get_by_role("list", name="History").locator("img").first.wait_for()
    check()
    page.get_by_role("button", name="Edit").click()
    for verb in ("Remove", "Scene", "Learn"):
        page.get_by_role("button", name=verb, exact=True).first.click()
        check()
    page.get_by_role("button", name="Help").click()
    check()
    visit.close()
