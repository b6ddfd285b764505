"""The report and the study in a browser, as people use them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation import lookalikes
from inlay.evaluation.bench import Bench, Variant
from inlay.evaluation.datasets import open_dataset
from inlay.evaluation.metrics import Metric
from inlay.evaluation.report import write_results

LABELS = ("paste", "poisson", "<b>feather</b>")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Eight pairs by three methods, with two figures."""
    root = tmp_path_factory.mktemp("bench")
    lookalikes.murecom(root / "murecom")
    variants = [Variant(label, {"name": label.strip("</b>")}) for label in LABELS]
    bench = Bench(open_dataset("murecom", root / "murecom"), variants, root / "out")
    assert bench.write(lambda: None) == 0
    figures = [
        Metric(
            name, "test", "this file", name == "mean", None,
            lambda pair, result, at=at: float(np.asarray(result, float)[..., at].mean()),
        )
        for at, name in enumerate(("red", "mean"))
    ]  # fmt: skip
    about = {"title": "cups", "benchmark": "murecom", "protocol": "test"}
    write_results(bench, bench.score(figures), figures, about)
    return bench


class Visit:
    """A page that is open, and all that it did wrong."""

    def __init__(self, browser: Any, address: str, context: Any = None) -> None:
        self.faults = list[str]()
        self.context = context or browser.new_context(viewport={"width": 1280, "height": 900})
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.page.on(
            "console", lambda m: m.type in ("error", "warning") and self.faults.append(m.text)
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        own = address.rpartition("/")[0]
        self.page.on(
            "request",
            lambda r: r.url.startswith((own, "data:", "blob:")) or self.faults.append(r.url),
        )
        self.page.goto(address)


def test_the_report_shows_and_sorts_everything(browser: Any, bench: Bench) -> None:
    visit = Visit(browser, (bench.out / "report.html").as_uri())
    page = visit.page
    loaded = page.evaluate(
        "[...document.images].filter(i => i.src).map(i => i.complete && i.naturalWidth)"
    )
    # Background, object and three methods of eight pairs.
    assert len(loaded) == 8 * 5 and all(width >= 96 for width in loaded)
    assert "<b>feather</b>" in page.locator("tbody").first.inner_text()
    scores = {}
    for row in map(json.loads, (bench.out / "pairs.jsonl").read_text().splitlines()):
        scores[row["name"]] = {
            label: np.asarray(Image.open(path).convert("RGB"), float)[..., :2].mean((0, 1))
            for label, path in row["pictures"].items()
        }
    for at, (metric, sign) in enumerate((("red", -1), ("mean", 1))):
        for label in LABELS:
            page.select_option("#metric", metric)
            page.select_option("#method", label)
            shown = [each.inner_text() for each in page.locator("article h3").all()]
            values = [sign * scores[name][label][at] for name in shown]
            # Worst first, whether more or less is better.
            assert len(shown) == 8 and values == sorted(values)
    page.click("#order")
    assert [each.inner_text() for each in page.locator("article h3").all()][-1] == shown[0]
    page.fill("#only", "coffee")
    assert page.locator("article:visible").count() == 4
    page.locator(".shot").nth(4).click()
    page.locator("dialog input").fill("30")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    page.locator("thead button", has_text="red").first.click()
    page.select_option("#form", "LaTeX")
    page.locator("td.copy button").first.click()
    page.locator("td.copy button", has_text="copied").wait_for()
    assert visit.faults == []


def test_two_people_rate_and_nothing_is_lost_by_a_reload(browser: Any, bench: Bench) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "inlay", "study", str(bench.out), "--serve", "--trials", "2"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        key = json.loads((bench.out / "study" / "key.json").read_text())["trials"]
        # Two trials and a check, with two questions each.
        assert len(key) == 3
        methods = {
            name: label for trial in key.values() for name, label in trial["methods"].items()
        }
        best = {
            "ann": [*LABELS, "whole", "broken"],
            "bob": [*LABELS[1:], LABELS[0], "whole", "broken"],
        }
        for who, order in best.items():
            visit = Visit(browser, f"http://127.0.0.1:{port}/")
            begin(visit.page, who)
            for answer in range(6):
                if answer == 3:
                    # A reload, half of an answer given, and a browser that has forgotten all.
                    visit.page.locator("#candidates button").first.click()
                    visit.page.evaluate("localStorage.clear()")
                    visit.page.reload()
                    begin(visit.page, who)
                    assert visit.page.locator("#progress").evaluate("e => e.value") == 0.5
                shown = visit.page.locator("#candidates button")
                names = [shown.nth(n).get_attribute("data-name") for n in range(shown.count())]
                for name in sorted(names, key=lambda name: order.index(methods[name]))[:-1]:
                    visit.page.click(f"[data-name='{name}']")
                visit.page.click("#next")
                visit.page.locator("#state", has_text="all answers are saved").wait_for()
            visit.page.locator("#end").wait_for()
            assert visit.faults == []
    finally:
        server.terminate()
        server.wait()
    lines = (bench.out / "study" / "ratings.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 6
    told = {(r["annotator"], r["trial"], r["question"]) for r in map(json.loads, lines)}
    assert len(told) == 2 * 6
    # The server's last word are the tables: by ann 1, 2, 3, by bob 3, 1, 2.
    table = (bench.out / "study" / "results.csv").read_text().splitlines()
    assert [row.split(",")[2].split()[0] for row in table[1:]] == ['"2.00', '"1.50', '"2.50']


def begin(page: Any, name: str) -> None:
    page.fill("#name", name)
    page.click("#begin button")
    page.locator("#candidates img").last.wait_for()
