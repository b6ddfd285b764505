"""How smoothly the page moves a subject: frames while a cut-out of 2 MP is dragged over 12 MP.

python benchmarks/page.py [--chromium PATH] [--seconds 4]

Starts `inlay serve` and a headless Chromium, puts both pictures on the stage, drags the subject in
circles at three zooms, paints a mask over all 12 MP, and prints the times between frames in
milliseconds, and how long the quick preview takes to come after a drag ends. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from skimage.transform import resize

BACKGROUND, SUBJECT = (3000, 4000), (1400, 1500)
WATCH = """() => {
  window.frames_ = [];
  const tick = (time) => {
    window.frames_.push(time);
    window.ticking_ = requestAnimationFrame(tick);
  };
  window.ticking_ = requestAnimationFrame(tick);
}"""
STOP = "() => { cancelAnimationFrame(window.ticking_); return window.frames_; }"


def pictures(folder: Path) -> tuple[Path, Path]:
    """A photograph of 12 MP, and an elliptic cut-out of 2 MP."""
    ground = resize(data.coffee(), BACKGROUND, anti_aliasing=False)
    Image.fromarray((ground * 255).astype(np.uint8)).save(folder / "ground.jpg", quality=92)
    height, width = SUBJECT
    thing = (resize(data.astronaut(), SUBJECT, anti_aliasing=False) * 255).astype(np.uint8)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    alpha = np.clip((1 - np.hypot(rows, columns)) * 60, 0, 1) * 255
    Image.fromarray(np.dstack([thing, alpha.astype(np.uint8)])).save(folder / "thing.png")
    return folder / "ground.jpg", folder / "thing.png"


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "inlay", "serve", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--folder", str(folder / "kept")], stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    return process, address


def choose(page: Any, where: str, name: str, file: Path) -> None:
    """Take a file by the button of that name."""
    with page.expect_file_chooser() as chooser:
        page.locator(where).get_by_role("button", name=name).first.click()
    chooser.value.set_files(file)


def drag(page: Any, seconds: float) -> np.ndarray[Any, Any]:
    """Milliseconds between frames while the subject goes in circles."""
    frame = page.locator(".frame").bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 8, y)
    page.evaluate(WATCH)
    end = time.monotonic() + seconds
    angle = 0.0
    while time.monotonic() < end:
        angle += 0.09
        page.mouse.move(x + 120 * math.sin(angle), y + 90 * math.sin(2 * angle))
    page.mouse.move(x, y)
    times = np.diff(page.evaluate(STOP))
    page.mouse.up()
    return times


def tell(what: str, times: np.ndarray[Any, Any]) -> None:
    """Print the times between frames."""
    middle, late = np.percentile(times, [50, 95])
    print(f"{what:>5}: {len(times)} frames, median {middle:.1f}, 95th {late:.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        ground, thing = pictures(Path(name))
        server, address = serve(Path(name))
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        choose(page, ".welcome", "Choose a background", ground)
        page.locator(".rail").wait_for()
        choose(page, ".panel", "Add subject", thing)
        page.locator(".panel li.selected").wait_for()
        page.wait_for_timeout(3000)
        for zoom in ("fit", "50%", "100%"):
            page.get_by_label("Fit to the window").click()
            if zoom != "fit":
                page.get_by_label("Zoom, percent").fill(zoom)
                page.get_by_label("Zoom, percent").press("Enter")
            page.wait_for_timeout(500)
            tell(zoom, drag(page, given.seconds))
        page.get_by_label("Fit to the window").click()
        page.wait_for_timeout(1500)
        waits = [preview(page) for _ in range(8)]
        print(f"preview: median {np.median(waits):.0f}, largest {max(waits):.0f} ms after the drag")
        page.get_by_role("button", name="Remove", exact=True).first.click()
        page.wait_for_timeout(500)
        tell("brush", drag(page, given.seconds))
        browser.close()
        server.terminate()
        server.wait(20)


def preview(page: Any) -> float:
    """Milliseconds from the end of a short drag to the preview's arrival."""
    frame = page.locator(".frame").bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 12, y + 5, steps=4)
    with page.expect_response("**/api/preview"):
        page.mouse.up()
        start = time.monotonic()
    wait = 1000 * (time.monotonic() - start)
    page.mouse.move(x + 12, y + 5)
    page.mouse.down()
    page.mouse.move(x, y, steps=4)
    with page.expect_response("**/api/preview"):
        page.mouse.up()
    return wait


if __name__ == "__main__":
    main()
