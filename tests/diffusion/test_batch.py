"""Several pictures through the network together: the same pictures, in fewer calls."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from skimage import data

import checkpoints
import flows
from inlay import Cancelled, Composer, InputError
from inlay.request import ComposeRequest
from inlay.result import Result, record_text
from inlay.run import Options
from photos import cup

STEPS = {"num_inference_steps": 4}
CASES: dict[str, dict[str, Any]] = {
    "phd": STEPS,
    "cdc": {**STEPS, "prompt": "a cat", "negative_prompt": "cups"},
    "freecompose": {"num_iterations": 3},
}
PAIRS = [
    *((model, "phd") for model in ("embedded", "sd1_inpaint", "sdxl", "flux_fill")),
    *((model, "cdc") for model in ("sd1", "sd3")),
    *((model, "freecompose") for model in ("embedded", "sdxl_inpaint")),
]


@functools.cache
def composer(model: str) -> Composer:
    home = flows if model in ("sd3", "flux_fill") else checkpoints
    return Composer(model if model == "embedded" else str(home.built(model)))


def compose(model: str, method: str, size: Any, **more: Any) -> Result:
    told = {"box": (60, 60, 200, 200), "num_images": 3, "batch_size": size, "method": method}
    return composer(model).compose(data.astronaut(), cup(), **told, **CASES[method], **more)


@contextmanager
def calls(model: str) -> Iterator[list[int]]:
    """The rows of each call of the network."""
    rows: list[int] = []

    def hear(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        rows.append(len(output[0]))

    hook = composer(model).backbone.network.register_forward_hook(hear, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def pixels(result: Result) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in result.images])


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_a_batch_gives_the_pictures_of_each_alone_in_a_third_of_the_calls(
    model: str, method: str
) -> None:
    with calls(model) as alone:
        one = compose(model, method, 1)
    with calls(model) as joined:
        three = compose(model, method, 3)
    assert np.abs(pixels(one) - pixels(three)).max() <= 1
    assert len(alone) == 3 * len(joined) and sum(alone) == sum(joined)
    assert [record["batch_size"] for record in three.records] == [3, 3, 3]
    assert [record["seed"] for record in three.records] == [0, 1, 2]
    assert not any("batch_size" in record for record in one.records)


def test_a_batch_of_two_leaves_one_that_has_the_bytes_of_one_alone() -> None:
    one, two = compose("sd1", "phd", 1), compose("sd1", "phd", 2)
    assert np.array_equal(pixels(one)[2], pixels(two)[2])
    assert record_text(one.records[2]) == record_text(two.records[2])
    assert [record.get("batch_size") for record in two.records] == [2, 2, None]


def test_what_fits_into_memory_is_more_than_one_here() -> None:
    assert compose("embedded", "phd", "auto").record["batch_size"] == 3


def test_attention_rules_and_random_places_are_each_pictures_own() -> None:
    one, three = (
        composer("sd1").compose(
            data.astronaut(), cup(), random=True, method="cdc", words_inside="cat",
            num_images=3, batch_size=size, **CASES["cdc"],
        )
        for size in (1, 3)
    )  # fmt: skip
    assert np.abs(pixels(one) - pixels(three)).max() <= 1
    assert [r["subjects"] for r in one.records] == [r["subjects"] for r in three.records]


def test_progress_of_a_batch_is_one_count_that_only_rises() -> None:
    heard: list[tuple[int, int]] = []
    compose("sd1", "cdc", 3, callback=lambda step, total, _: heard.append((step, total)))
    assert heard == sorted(heard) and heard[-1] == (12, 12) and len(heard) == 12


def test_requests_run_together_and_one_that_is_cancelled_or_wrong_stops_no_other() -> None:
    def request(**more: Any) -> ComposeRequest:
        told = {"background": data.astronaut(), "method": {"name": "cdc", **CASES["cdc"]}}
        subjects = [{"picture": cup(), "box": (60, 60, 200, 200)}]
        return ComposeRequest(**{**told, "subjects": subjects, **more})

    def cancel(step: int, total: int, preview: Any) -> None:
        if step == 2:
            raise Cancelled

    other = {"name": "cdc", **CASES["cdc"], "prompt": "a table"}
    requests = [
        request(), request(method=other, seed=4), request(), request(background="gone.png"),
        request(method="paste"),
    ]  # fmt: skip
    options = [Options(), Options(), Options(callback=cancel), Options(), Options()]
    with calls("sd1") as rows:
        first, second, third, fourth, fifth = composer("sd1").run_all(requests, options, 8)
    assert rows == [6, 6, 4, 4]
    assert isinstance(third, Cancelled) and isinstance(fourth, InputError)
    for made, wanted in ((first, requests[0]), (second, requests[1]), (fifth, requests[4])):
        assert isinstance(made, Result)
        assert np.abs(pixels(made) - pixels(composer("sd1").run(wanted))).max() <= 1
        assert made.record["seed"] == wanted.seed


def test_what_a_callback_raises_ends_a_batch() -> None:
    def stop(step: int, total: int, preview: Any) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        compose("sd1", "cdc", 3, callback=stop)
    # And leaves the composer as it was.
    assert len(compose("sd1", "cdc", 3).pictures) == 3


@pytest.mark.parametrize("size", [0, -1, "many", 1.5, True, None, 65])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"batch_size is .*expected 1 to 64, or auto"):
        compose("embedded", "phd", size)
