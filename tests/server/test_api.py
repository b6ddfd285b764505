"""The HTTP API: what is made through it is what the library makes, and nothing of it is lost."""

from __future__ import annotations

import hashlib
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay import Composer
from inlay.pictures.read import read_picture
from inlay.pictures.write import write_picture
from inlay.request import Request
from servers import Running, encoded, photographs

SCENE = {"name": "phd", "prompt": "a table"}
SLOW = {"name": "cdc", "num_inference_steps": 1000, "prompt": "a cup"}


@pytest.fixture(scope="module")
def pictures(server: Running) -> tuple[str, str]:
    background, subject = photographs()
    return server.upload(background), server.upload(subject)


def compose(pictures: tuple[str, str], method: Any = "poisson", **more: Any) -> dict[str, Any]:
    subject = {"picture": pictures[1], "box": [100, 120, 90, 80]}
    request = {"verb": "compose", "background": pictures[0], "subjects": [subject]}
    return {**request, "method": method, **more}


def opened(content: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(content)))


def test_a_result_is_the_file_that_the_library_writes(
    server: Running, pictures: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte of it, two pictures of one request, and the record inside."""
    asked = compose(pictures, {"name": "phd", "num_inference_steps": 4}, num_images=2, seed=3)
    job = server.wait(server.order(asked)["id"])
    assert (job["state"], job["images"], job["error"]) == ("done", 2, None)
    monkeypatch.chdir(server.service.store.files)
    result = Composer("embedded", device="cpu").run(Request.of(job["request"]))
    for number, (picture, record) in enumerate(zip(result.pictures, result.records, strict=True)):
        one = type(result)([picture], [record], result.window, result.region, result.changes)
        one.save(tmp_path / "own.png")
        answer = server.client.get(f"/api/jobs/{job['id']}/result?n={number}")
        assert answer.content == (tmp_path / "own.png").read_bytes()
        assert hashlib.sha256(answer.content).hexdigest() == job["files"][number]
    assert f'filename="inlay-{job["id"]}-1.png"' in answer.headers["content-disposition"]
    assert job["record"]["request"]["background"] == pictures[0]
    assert server.client.get(f"/api/jobs/{job['id']}/result?n=2").status_code == 404


def test_files_may_come_along_with_the_request(server: Running) -> None:
    background, subject = photographs()
    request = {"verb": "compose", "background": "ground", "method": "paste"}
    request["subjects"] = [{"picture": "thing", "at": [128, 128], "mask": "white"}]
    white = encoded(np.full((80, 90), 255, np.uint8))
    parts = {"ground": background, "thing": subject, "white": white}
    parts["request"] = json.dumps(request).encode()
    answer = server.client.post("/api/jobs", files=parts)
    assert answer.status_code == 202, answer.text
    job = server.wait(answer.json()["id"])
    assert job["state"] == "done"
    assert job["request"]["subjects"][0]["mask"] == hashlib.sha256(white).hexdigest()


def test_events_tell_a_job_from_its_start_to_its_end(
    server: Running, pictures: tuple[str, str]
) -> None:
    """And a reader that comes back hears what it has missed, and no more."""
    job = server.order(compose(pictures, {"name": "cdc", "num_inference_steps": 20}))["id"]
    events = server.events(job)
    numbers, names = [each[0] for each in events], [each[1] for each in events]
    assert names[0] == "state" and names[-1] == "done"
    assert numbers == sorted(set(numbers))
    assert {"progress", "preview"} <= set(names)
    assert events[-1][2]["state"] == "done" and events[-1][2]["id"] == job
    [last] = [told for _, name, told in events if name == "progress"][-1:]
    assert last["step"] == last["total"] > 1
    preview = next(told["image"] for _, name, told in events if name == "preview")
    assert preview.startswith("data:image/jpeg;base64,/9j/")
    again = server.events(job, **{"Last-Event-ID": str(numbers[-2])})
    assert [each[:2] for each in again] == [(numbers[-1], "done")]
    url, late = f"/api/jobs/{job}/events", {"Last-Event-ID": str(numbers[-1])}
    assert server.client.get(url, headers=late).status_code == 204


def test_jobs_are_cancelled_while_they_wait_and_while_they_run(
    server: Running, pictures: tuple[str, str]
) -> None:
    first = server.order(compose(pictures, SLOW))["id"]
    second = server.order(compose(pictures, SLOW, seed=1))
    third = server.order(compose(pictures, "paste"))["id"]
    server.wait(first, "running")
    assert second["position"] >= 1
    url = f"/api/jobs/{second['id']}"
    assert server.client.delete(url).json()["state"] == "cancelled"
    assert server.client.delete(f"/api/jobs/{first}").json()["state"] == "cancelled"
    assert server.client.get(f"/api/jobs/{first}/result").status_code == 409
    # The worker is free again, and what was cancelled has no result.
    assert server.wait(third)["state"] == "done"
    assert server.wait(first)["file"] is None
    assert server.client.delete(url).status_code == 204
    assert server.client.get(url).status_code == 404
    listed = [each["id"] for each in server.client.get("/api/jobs").json()["jobs"]]
    assert listed[:2] == [third, first]


def test_a_request_that_is_sent_twice_is_one_job(
    server: Running, pictures: tuple[str, str]
) -> None:
    key = {"Idempotency-Key": "once"}
    first = server.order(compose(pictures, "paste"), **key)
    assert server.order(compose(pictures, "paste"), **key)["id"] == first["id"]
    other = server.client.post("/api/jobs", json=compose(pictures, "feather"), headers=key)
    assert other.status_code == 409
    assert server.order(compose(pictures, "paste"))["id"] != first["id"]


def test_an_uploaded_picture_is_shown_upright_and_reduced(server: Running) -> None:
    photo = Image.fromarray(data.coffee())
    exif = photo.getexif()
    exif[274] = 6
    buffer = BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    answer = server.client.post("/api/files", files={"file": ("../x", buffer.getvalue())})
    told = answer.json()
    assert told["file"] == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert (told["kind"], told["width"], told["height"]) == ("picture", 400, 600)
    assert server.client.get(f"/api/files/{told['file']}/info").json() == told
    shown = server.client.get(f"/api/files/{told['file']}?size=100")
    assert shown.headers["content-type"] == "image/jpeg"
    assert opened(shown.content).shape == (100, 67, 3)
    clear = server.upload(photographs()[1])
    shown = server.client.get(f"/api/files/{clear}")
    assert shown.headers["content-type"] == "image/png"
    assert (opened(shown.content)[..., 3] == opened(photographs()[1])[..., 3]).all()


def test_a_cut_is_of_the_pictures_size_and_a_preview_shows_it_in_place(server: Running) -> None:
    field = np.full((200, 300, 3), (40, 90, 160), np.uint8)
    field[60:160, 100:200] = (220, 60, 40)
    picture = server.upload(encoded(field))
    asked = {"picture": picture, "box": [80, 40, 140, 140]}
    answer = server.client.post("/api/cut", json=asked)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    x, y, width, height = told["box"]
    assert abs(x - 100) < 8 and abs(y - 60) < 8 and abs(width - 100) < 15 and abs(height - 100) < 15
    alpha = opened(server.client.get(f"/api/files/{told['mask']}").content)
    assert alpha.shape[:2] == (200, 300)
    request = {"verb": "compose", "background": picture, "shadow": "none"}
    request["subjects"] = [{"picture": told["file"], "box": [0, 0, 60, 60], "rotate": 90}]
    answer = server.client.post("/api/preview", json={"request": request, "size": 150})
    assert answer.headers["content-type"] == "image/jpeg"
    shown = opened(answer.content).astype(int)
    assert shown.shape == (100, 150, 3)
    # At half the size a red square lies in the corner, and nothing else is new.
    assert (abs(shown[5:25, 5:25] - (220, 60, 40)) < 60).all()
    assert (abs(shown[50:90, 5:45] - (40, 90, 160)) < 12).all()


def test_an_object_is_learnt_and_used(server: Running, pictures: tuple[str, str]) -> None:
    learn = {"verb": "learn", "photos": [pictures[1]], "class_name": " cup", "steps": 1}
    job = server.wait(server.order(learn)["id"])
    assert job["state"] == "done", job["error"]
    concept = job["file"]
    assert re.fullmatch(r"[0-9a-f]{64}\.safetensors", concept)
    told = server.client.get(f"/api/files/{concept}/info").json()
    assert (told["kind"], told["class_name"]) == ("concept", "cup")
    # The cup was cut out, and so it is shown.
    assert opened(server.client.get(f"/api/files/{concept}").content).shape[2] == 4
    content = server.client.get(f"/api/jobs/{job['id']}/result").content
    assert server.upload(content) == concept
    assert str(server.service.store.files).encode() not in content
    asked = compose((pictures[0], concept), "reinhard")
    assert server.wait(server.order(asked)["id"])["state"] == "done"
    preview = server.client.post("/api/preview", json={"request": asked, "size": 128})
    assert preview.headers["content-type"] == "image/jpeg"


def test_a_picture_gives_its_request_back(server: Running, pictures: tuple[str, str]) -> None:
    job = server.wait(server.order(compose(pictures, "reinhard", seed=7))["id"])
    answer = server.client.post("/api/open", json={"file": job["file"]}).json()
    assert answer["missing"] == []
    assert answer["request"]["background"] == pictures[0]
    again = server.wait(server.order(answer["request"])["id"])
    assert again["file"] == job["file"]
    plain = server.client.post("/api/open", json={"file": pictures[0]})
    assert plain.status_code == 422 and "no record" in plain.json()["error"]


def test_a_record_names_no_place_but_those_of_its_request(
    server: Running, pictures: tuple[str, str], tmp_path: Path
) -> None:
    """Whoever wrote it: inputs that are not stored are missing, the rest is passed over."""
    known = {"path": "/srv/secret.png", "sha256": pictures[0]}
    places = ("background", "subjects.0.picture", "subjects.9.mask", "method.name", "a.b.c", "")
    inputs = {place: known for place in places}
    inputs["subjects.0.picture"] = {"path": "x.png", "sha256": "0" * 64}
    record = {"inlay": "9", "request": compose(pictures, "paste"), "inputs": inputs}
    picture = read_picture(data.chelsea()[:20, :20])
    write_picture(picture, tmp_path / "other.png", record=json.dumps(record))
    file = server.upload((tmp_path / "other.png").read_bytes())
    answer = server.client.post("/api/open", json={"file": file})
    assert answer.status_code == 200 and answer.json()["missing"] == ["subjects.0.picture"]
    request = answer.json()["request"]
    assert request["background"] == pictures[0] and request["method"]["name"] == "paste"
    assert request["subjects"][0]["picture"] is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"background": "/etc/passwd"}, "background"),
        ({"background": "https://example.org/x.png"}, "background"),
        ({"background": ["a"]}, "background"),
        ({"background": "0" * 64}, "no file"),
        ({"model": "runwayml/stable-diffusion-v1-5"}, "model"),
        ({"model": {"name": "/srv/model"}}, "model"),
        ({"model": {"loras": [["/x.safetensors", 1.0]]}}, "model"),
        ({"method": {"name": "phd", "harmonizer": "/srv/branch"}}, "harmonizer"),
        ({"method": {"name": "cdc", "adapter": "owner/name"}}, "adapter"),
        ({"method": {"name": "phd", "ip_adapter": "/x.safetensors"}}, "ip adapter"),
        ({"method": "nonsense"}, "nonsense"),
        ({"subjects": [{"picture": "SUBJECT", "cut": "owner/segmenter"}]}, "cut"),
        ({"subjects": [{"picture": "SUBJECT", "cut": "rembg"}]}, "cut"),
        ({"subjects": [{"picture": "SUBJECT", "mask": "../mask.png"}]}, "mask"),
        ({"subjects": ["SUBJECT"] * 9}, "subjects"),
        ({"num_images": 5}, "num_images"),
        ({"self": 1}, "self"),
        ({"seed": 10**400}, "seed"),
        ({"verb": "scene", "size": [8192, 8192], "method": SCENE}, "background"),
        ({"verb": "open"}, "verb"),
    ],
)
def test_a_request_opens_nothing_but_stored_files(
    server: Running, pictures: tuple[str, str], change: dict[str, Any], word: str
) -> None:
    text = json.dumps({**compose(pictures, "paste"), **change}).replace("SUBJECT", pictures[1])
    kind = {"content-type": "application/json"}
    answer = server.client.post("/api/jobs", content=text, headers=kind)
    assert answer.status_code in (404, 422), answer.text
    sentence = answer.json()["error"]
    assert word in sentence and "Traceback" not in sentence
    assert str(server.service.store.files.parent) not in sentence


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"[" * 100_000, b'{"verb": NaN}', b'{"a": "\\ud800"}', b"\xff\xfe{}"]
)
def test_what_is_no_request_is_refused(server: Running, text: bytes) -> None:
    kind = {"content-type": "application/json"}
    answer = server.client.post("/api/jobs", content=text, headers=kind)
    assert answer.status_code == 422
    assert "no JSON object" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "methods"), [("jobs", "GET, POST"), ("jobs/x", "DELETE, GET"), ("session", "GET")]
)
def test_an_address_says_all_that_it_takes(server: Running, path: str, methods: str) -> None:
    answer = server.client.request("OPTIONS", f"/api/{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_a_scene_is_no_larger_than_a_picture(server: Running, pictures: tuple[str, str]) -> None:
    request = {"verb": "scene", "size": [4096, 4096], "subjects": pictures[1], "method": SCENE}
    answer = server.client.post("/api/jobs", json=request)
    assert answer.status_code == 422 and "at most 1 MP" in answer.json()["error"]


def test_a_job_whose_picture_shows_nothing_fails_in_our_words(
    server: Running, pictures: tuple[str, str]
) -> None:
    clear = server.upload(encoded(np.zeros((32, 32, 4), np.uint8)))
    job = server.wait(server.order(compose((pictures[0], clear), "paste"))["id"])
    assert job["state"] == "failed"
    assert job["error"] == "subject is fully transparent; give a subject with opacity."


def test_what_there_is_is_described(server: Running) -> None:
    told = server.client.get("/api/session").json()
    assert told["models"] == ["embedded"] and told["token_required"] is False
    methods = server.client.get("/api/methods?model=embedded").json()
    assert {"phd", "paste"} <= methods.keys()
    assert server.client.get("/api/methods?model=other").status_code == 404
    assert "background" in server.client.get("/api/schema/compose").json()["properties"]
    assert "photos" in server.client.get("/api/schema/learn").json()["properties"]
    assert server.client.get("/api/schema/nonsense").status_code == 422
    described = server.client.get("/api/openapi.json").json()
    parts = described["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)):
        assert name in parts
    assert {"compose", "harmonize", "remove", "scene", "learn"} <= parts.keys()
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert "inlay_job_seconds" in server.client.get("/metrics").text
    page = server.client.get("/")
    assert page.status_code == 200 and "default-src 'self'" in str(page.headers)
