from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

import inlay
from inlay import Box, Composer, InputError
from inlay.cli import main
from inlay.pictures.read import MAX_FILE_BYTES, MAX_JSON_BYTES, read_picture, read_record
from inlay.pictures.write import write_picture
from inlay.request import RemoveRequest, Request
from inlay.result import State, Used, file_sha256, identify, record_of, record_text
from inlay.result.record import names, read_back
from photos import cup
from reruns import needs, rerun

OLD = json.loads((Path(__file__).parent / "records_0_1.json").read_text())


def _record(**changes: Any) -> dict[str, Any]:
    request = RemoveRequest(picture=np.zeros((4, 4, 3), np.uint8), mask="m.png",
                            method={"name": "telea", "radius": 3}, seed=5)  # fmt: skip
    known = identify(np.zeros((4, 4, 3), np.uint8))
    inputs = {"picture": known, "mask": known}
    used, seconds = Used(notes=("a note",)), {"run_s": 0.5}
    picture, mask = read_picture(np.zeros((4, 4, 3), np.uint8)), np.zeros((6, 5), np.float32)
    state = State(picture, Box(3, 4, 5, 6), mask, Box(1, 2, 30, 40), used)
    record = record_of(request, None, Composer(), state, inputs, (), seconds)
    return {**record, **changes}


def _asked(**changes: Any) -> dict[str, Any]:
    """A record whose request was changed."""
    record = _record()
    return {**record, "request": {**record["request"], **changes}}


def _picture(path: Path, record: Any) -> Path:
    text = record if isinstance(record, str) else record_text(record)
    write_picture(read_picture(data.chelsea()[:64, :80]), path, record=text)
    return path


def _pasted(folder: Path, suffix: str = ".png", **more: Any) -> Path:
    """A composite made from files in `folder`, saved there with its record."""
    background, subject = folder / "bg.png", folder / "cup.png"
    if not background.exists():
        Image.fromarray(data.astronaut()).save(background)
        cup = data.coffee()[60:260, 180:420]
        alpha = np.full((*cup.shape[:2], 1), 255, np.uint8)
        alpha[:20] = 0
        Image.fromarray(np.concatenate([cup, alpha], 2)).save(subject)
    result = Composer().compose(
        str(background), str(subject), at=(200, 240), scale=0.4, method="paste", seed=9, **more
    )
    out = folder / f"out{suffix}"
    result.save(out)
    return out


def test_a_record_says_all_that_it_should() -> None:
    record = _record()
    assert record["inlay"] == inlay.__version__
    assert record["window"] == {"x": 1, "y": 2, "width": 30, "height": 40}
    assert set(record["inputs"]) == {"picture", "mask"}
    assert record["model"] is None and record["device"] is None
    inside = json.loads(record_text(record))
    assert inside == {key: value for key, value in record.items() if key != "timings"}
    assert "\n" not in record_text(record)


def test_identify_hashes_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    assert identify(path) == {"path": str(path), "sha256": file_sha256(path)}
    assert identify(str(path))["sha256"] == read_picture(path).sha256
    array = data.chelsea()
    assert identify(array) == identify(array.copy())
    assert identify(array) != identify(array[::-1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_record_travels_inside_the_picture(tmp_path: Path, suffix: str) -> None:
    out = _pasted(tmp_path, suffix)
    record = read_back(out)
    request = record.resolve(tmp_path)
    assert (request.verb, request.method.name, request.seed) == ("compose", "paste", 9)
    assert request.subjects_of()[0].at == (200, 240)
    assert record.inputs["background"].sha256 == file_sha256(tmp_path / "bg.png")
    assert record.inputs["subjects.0.picture"].sha256 == file_sha256(tmp_path / "cup.png")


def test_a_record_makes_its_picture_again(tmp_path: Path) -> None:
    out = _pasted(tmp_path, rotate=30.0, flip=True)
    result = Composer().run(read_back(out).resolve(tmp_path))
    assert np.array_equal(np.asarray(result.image), np.asarray(Image.open(out)))


def test_inputs_are_found_beside_the_picture(tmp_path: Path) -> None:
    out = _pasted(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("bg.png", "cup.png", out.name):
        (tmp_path / name).rename(moved / name)
    found = read_back(moved / out.name).resolve(moved).inputs()
    wanted = {"background": moved / "bg.png", "subjects.0.picture": moved / "cup.png"}
    assert found == {place: str(path) for place, path in wanted.items()}


def test_a_changed_or_missing_input_is_named(tmp_path: Path) -> None:
    record = read_back(_pasted(tmp_path))
    Image.fromarray(data.rocket()).save(tmp_path / "bg.png")
    with pytest.raises(InputError, match=r"the background .*bg\.png has changed"):
        record.resolve(tmp_path)
    (tmp_path / "bg.png").unlink()
    wanted = f"add --input background={tmp_path / 'bg.png'} \\(what"
    with pytest.raises(InputError, match=wanted):
        record.resolve(tmp_path)


# What a stranger's record may name as the subject, and what it must not open.
STRANGE = ["/etc/hostname", "/proc/kmsg", "/dev/zero", "../elsewhere/cup.png", "link.png",
           "key.txt", "pipe.png", "large.png", "folder.png", "x" * 9000, "nul\0.png",
           "\udcff.png", "", "//server/share/cup.png", "https://example.org/a.png",
           "~/.ssh/id_rsa"]  # fmt: skip


def _opened(run: Callable[[], Any], names: Sequence[str]) -> list[str]:
    """Which files of these names are opened while something runs."""
    found: list[str] = []
    watched = True

    def hear(event: str, details: tuple[Any, ...]) -> None:
        if watched and event == "open" and Path(str(details[0])).name in names:
            found.append(str(details[0]))

    sys.addaudithook(hear)
    run()
    watched = False
    return found


@pytest.mark.parametrize("name", STRANGE, ids=lambda name: ascii(name)[:20])
def test_a_strangers_record_opens_nothing_but_pictures_beside_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    record = json.loads(read_record(_pasted(home)) or "")
    (tmp_path / "elsewhere").mkdir()
    (home / "cup.png").rename(tmp_path / "elsewhere" / "cup.png")
    Path("link.png").symlink_to("../elsewhere/cup.png")
    Path("key.txt").write_text("secret")
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    with open("large.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    if name == "key.txt":
        record["inputs"]["subjects.0.picture"]["sha256"] = file_sha256(Path(name))
    record["inputs"]["subjects.0.picture"]["path"] = name
    _picture(home / "bad.png", record)
    hidden = ["cup.png", *(Path(each).name for each in STRANGE)]
    command = ["rerun", "bad.png", "-o", "again.png"]
    assert _opened(lambda: main(command), hidden) == []
    said = capsys.readouterr().err
    assert "add --input subject=" in said and said.count("\n") == 1 and len(said) < 500
    assert said[:-1].isprintable() and not Path("again.png").exists()
    # Named by the user it is read, and must be what it was.
    given = ["--input", "subject=../elsewhere/cup.png"]
    status = []
    assert _opened(lambda: status.append(main([*command, *given])), hidden)
    assert status == [2 if name == "key.txt" else 0]


def test_a_strangers_models_and_weights_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    record = json.loads(read_record(_pasted(tmp_path)) or "")
    subject = {**record["request"]["subjects"][0], "cut": "owner/segmenter"}
    model = {"name": "owner/model", "device": "cpu", "dtype": "float32",
             "loras": [["a.safetensors", 1], ["/b c.safetensors", 0.5]],
             "textual_inversions": ["word.safetensors"]}  # fmt: skip
    record["request"] |= {"model": model, "subjects": [subject], "phases": ["paste", "repose"],
                          "method": {"name": "freecompose", "preset": "semantic", "prompt": "a cup",
                                     "source_prompt": "a bowl", "adapter": "owner/adapter"},
                          "remove": None, "repose": None}  # fmt: skip
    bad = str(_picture(tmp_path / "bad.png", record))
    assert needs(bad)[1::2] == [
        "model=owner/model", "lora_1=a.safetensors", "lora_2=/b c.safetensors",
        "textual_inversion=word.safetensors", "cut=owner/segmenter", "adapter=owner/adapter",
    ]  # fmt: skip
    given = {"lora 1": "x.safetensors", "lora_2": "y.safetensors", "model.name": "embedded",
             "cut": "alpha", "textual_inversion": "z.safetensors",
             "adapter": "embedded"}  # fmt: skip
    request = read_back(bad).resolve(tmp_path, given)
    assert request.model is not None
    assert request.model.name == "embedded"
    assert request.model.loras == (("x.safetensors", 1.0), ("y.safetensors", 0.5))
    assert names(request).keys() == {
        "model.loras.0.0", "model.loras.1.0", "model.textual_inversions.0",
    }  # fmt: skip


def test_inputs_that_lie_elsewhere_are_named(folder: Path, capsys: Any) -> None:
    Path("out").mkdir()
    common = ["--method", "paste", "-o", "out/o.png", "-q"]
    assert main(["compose", "bg.png", "cup.png", *common]) == 0
    assert needs("out/o.png") == ["--input", "background=bg.png", "--input", "subject=cup.png"]
    assert rerun("out/o.png", "again.png", "-q") == 0
    assert Path("again.png").read_bytes() == Path("out/o.png").read_bytes()
    again = ["rerun", "out/o.png", "-o", "third.png", "--input", "subject=cup.png", "--input"]
    for last, sentence in {
        "background=cup.png": "the background cup.png has changed since",
        "background=gone.png": "the background gone.png has changed since or is not there",
        "backgrund=bg.png": "the request has no input 'backgrund'; did you mean background?",
        "background": "expected ROLE=FILE",
        "=bg.png": "expected ROLE=FILE",
    }.items():
        assert main([*again, last]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
    assert not Path("third.png").exists()


def test_a_request_as_data_takes_other_inputs(folder: Path) -> None:
    subject = {"picture": "nothing.png", "box": [10, 20, 90, 80]}
    asked = {"verb": "compose", "background": "bg.png", "subjects": [subject], "method": "paste"}
    Path("request.json").write_text(json.dumps(asked))
    command = ["run", "request.json", "-q", "--input", "subject=cup.png", "-o", "one.png"]
    assert main(command) == 0
    compose = ["compose", "bg.png", "cup.png", "--box", "10,20,90,80", "--method", "paste", "-q"]
    assert main([*compose, "-o", "two.png"]) == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "device", "large", "deep", "deeper", "many", "huge"])
def test_a_hostile_request_is_one_sentence(folder: Path, kind: str, capsys: Any) -> None:
    subjects = '{"verb": "compose", "background": "bg.png", "subjects": ['
    text = {
        "large": " " * (MAX_JSON_BYTES + 1),
        "deep": subjects + "[" * 900 + "]" * 900 + "]}",
        "deeper": subjects + "[" * 100_000,
        "many": subjects + ", ".join(['"cup.png"'] * 50_000) + "]}",
        "huge": subjects + '{"picture": "cup.png", "scale": 1' + "0" * 4000 + "}]}",
    }.get(kind)
    path = {"pipe": "pipe.json", "device": "/dev/zero"}.get(kind, "request.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif text is not None:
        Path(path).write_text(text)
    assert main(["run", path, "-o", "out.png"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1000, said
    assert not Path("out.png").exists()


def test_what_is_echoed_is_short_and_printable() -> None:
    stranger = "\x1b]0;title\x07\x1b[31mred\u202e" + "x" * 5000 + " y" * 5000
    text = str(InputError(f"the model {stranger} is wrong; give another."))
    assert text.isprintable() and len(text) < 1000
    assert max(len(word) for word in text.split()) <= 200
    assert text.startswith("the model ") and text.endswith("is wrong; give another.")
    assert str(InputError("the mask é.png is 3 x 4 pixels.")) == "the mask é.png is 3 x 4 pixels."


def test_inputs_from_memory_cannot_be_found_again(tmp_path: Path) -> None:
    record = read_back(_picture(tmp_path / "a.png", _record()))
    with pytest.raises(InputError, match="the picture was handed over in memory"):
        record.resolve(tmp_path)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("{", "damaged"),
        ("[]", "damaged|no record"),
        ('"text"', "damaged|no record"),
        ("[" * 100_000, "damaged|no record"),
        (json.dumps({"inlay": "0.1.0"}), "damaged"),
        (_asked(seed=-1), "damaged: seed is -1"),
        (_asked(seed="x"), "damaged: seed is 'x'"),
        (_asked(method=3), "damaged: method is 3"),
        (_record(request=3), "damaged"),
        (_record(inputs={"picture": 3}), "damaged"),
        (_asked(verb="explode"), "damaged: verb is 'explode'"),
        ({**OLD["remove"]["record"], "seed": -1}, "damaged: seed is -1"),
        ({**OLD["remove"]["record"], "settings": 3}, "damaged"),
        ({**OLD["several"]["record"], "request": {"subjects": 5}}, "damaged"),
        ({**OLD["phases"]["record"], "phases": [{"phase": "paste"}]}, "damaged"),
        ({**OLD["one"]["record"], "verb": "explode"}, "damaged: verb is 'explode'"),
        (_record(sheet="a.png", outputs=["/tmp/a-seed=1.png"]), "contact sheet.*a-seed=1.png"),
        (_record(sheet="a.png", outputs=[]), "contact sheet"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, record: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_back(_picture(tmp_path / "a.png", record))


def test_a_picture_without_a_record_is_refused(tmp_path: Path) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    with pytest.raises(InputError, match=r"cat\.png holds no record"):
        read_back(tmp_path / "cat.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("bg.png")
    Image.fromarray(cup()).save("cup.png")
    mask = np.zeros((300, 451), np.uint8)
    mask[100:180, 150:260] = 255
    Image.fromarray(mask).save("mask.png")
    mask = np.zeros((240, 270), np.uint8)
    mask[40:200, 40:220] = 255
    Image.fromarray(mask).save("cupmask.png")
    return tmp_path


@pytest.mark.parametrize("kind", OLD)
def test_records_of_0_1_still_make_their_pictures(folder: Path, kind: str) -> None:
    """As 0.1 wrote them; the hashes are of these files and of the weights that ship now."""
    record = OLD[kind]["record"]
    # As sampling began, and what was changed, by default then.
    start = ["--set", "initial_latent=source"] if record["model"] else []
    whole = record["method"] in ("poisson", "reinhard") and record["settings"]["amount"] == 1
    start += ["--set", "amount=1"] if whole else []
    blurred = record["settings"].get("paste_blur") == 0.002
    start += ["--set", "paste_blur=0.002"] if blurred else []
    start += ["--shadow", "none"] if record["verb"] == "compose" else []
    assert main([*OLD[kind]["command"], *start, "-o", "out.png", "-q"]) == 0
    now = json.loads(read_record("out.png") or "")
    for known in record["inputs"].values():
        known["sha256"] = file_sha256(folder / known["path"])
    for word in ("model", "harmonizer"):
        if record.get(word):
            record[word]["hash"] = now[word]["hash"]
    _picture(folder / "old.png", record)
    assert main(["rerun", "old.png", "-o", "again.png", "-q"]) == 0
    assert (folder / "again.png").read_bytes() == (folder / "out.png").read_bytes()


@pytest.mark.parametrize(("written", "meant"), [("", None), ("a bowl", "a bowl")])
def test_an_empty_source_prompt_of_0_1_is_the_variants_own(
    folder: Path, written: str, meant: str | None
) -> None:
    settings = {"prompt": "a cup", "source_prompt": written, "guidance_scale": 5.0}
    old = {**OLD["cdc"]["record"], "method": "freecompose", "settings": settings}
    request = Request.of(read_back(_picture(folder / "old.png", old)).request)
    assert request.method.settings.source_prompt == meant
    assert request.method.settings.initial_latent == "source"


def test_the_networks_of_ours_that_had_a_part_are_in_the_record(folder: Path, capsys: Any) -> None:
    line = "compose bg.png bg.png --box 9,9,150,150 --method paste -q"
    for words, kinds in (
        ("--shadow none --mask mask.png", set()),
        ("--shadow none", {"cutter"}),
        ("", {"cutter", "shadow"}),
    ):
        assert main([*line.split(), *words.split(), "-o", "out.png"]) == 0
        now = json.loads(read_record("out.png") or "")
        assert {"cutter", "shadow"} & now.keys() == kinds
        for kind in kinds:
            weights = Path(inlay.__file__).parent / "assets" / kind / "model.safetensors"
            assert now[kind] == {"name": "embedded", "hash": file_sha256(weights)}
    now["shadow"]["hash"] = "0" * 64
    _picture(folder / "old.png", now)
    assert main(["rerun", "old.png", "-o", "again.png", "-q"]) == 2
    assert "shadow embedded is not the one" in capsys.readouterr().err


def test_a_changed_weight_of_an_old_record_is_named(folder: Path, capsys: Any) -> None:
    record = json.loads(json.dumps(OLD["cdc"]["record"]))
    for known in record["inputs"].values():
        known["sha256"] = file_sha256(folder / known["path"])
    record["model"]["hash"] = "0" * 64
    _picture(folder / "old.png", record)
    assert main(["rerun", "old.png", "-o", "again.png"]) == 2
    assert "embedded is not the one the picture was made with" in capsys.readouterr().err
    assert not (folder / "again.png").exists()


@pytest.mark.parametrize("kind", OLD)
def test_a_request_makes_the_same_bytes_by_every_door(folder: Path, kind: str) -> None:
    assert main([*OLD[kind]["command"], "-o", "out.png", "-q"]) == 0
    asked = json.loads(read_record("out.png") or "")["request"]
    Path("request.json").write_text(json.dumps(asked))
    assert main(["run", "request.json", "-o", "run.png", "-q"]) == 0
    assert main(["run", "out.png", "-o", "picture.png", "-q"]) == 0
    assert main(["rerun", "out.png", "-o", "rerun.png", "-q"]) == 0
    Composer().run(Request.read("request.json")).save("python.png")
    assert json.loads(Request.read("request.json").model_dump_json()) == asked
    for name in ("run", "picture", "rerun", "python"):
        assert Path(f"{name}.png").read_bytes() == Path("out.png").read_bytes(), name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON"), ("[]", "is no JSON object"), ("{}", "verb is None"),
        ('{"verb": "explode"}', "verb is 'explode'; expected one of compose"),
        ('{"verb": "remove"}', "picture is missing"),
        ('{"verb": "remove", "picture": "a.png"}', "mask is missing"),
        ('{"verb": "remove", "picture": "gone.png", "mask": "m.png"}', "gone.png"),
        ('{"verb": "remove", "picture": "bg.png", "mask": "mask.png", "methd": "telea"}',
         "'methd' is unknown; did you mean method"),
        ('{"verb": "remove", "picture": "bg.png", "mask": "mask.png", "method": {"name": "tela"}}',
         "did you mean telea"),
        ('{"verb": "compose", "background": "bg.png", "subjects": [{"picture": "cup.png", '
         '"box": [1, 2]}]}', "box is [1, 2]; expected a Box or four numbers"),
        ('{"verb": "compose", "background": null, "subjects": ["cup.png"]}', "in memory"),
        ('{"verb": "compose", "background": "bg.png", "subjects": [{"picture": null}]}', "memory"),
        ('{"verb": "remove", "picture": "bg.png", "mask": "mask.png", "model": {"name": 3}}',
         "name is 3"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_sentence(
    folder: Path, text: str, sentence: str, capsys: Any
) -> None:
    Path("request.json").write_text(text)
    assert main(["run", "request.json", "-o", "out.png"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1, error
    assert not Path("out.png").exists()


def test_another_checkpoint_than_the_open_one_is_refused() -> None:
    request = RemoveRequest(picture="a.png", mask="m.png", model={"name": "other/model"})
    with pytest.raises(InputError, match="is for the model other/model, and embedded is open"):
        Composer().run(request)
    for beside in ({"loras": [("a.safetensors", 1.0)]}, {"textual_inversions": ["a.safetensors"]}):
        request = RemoveRequest(picture="a.png", mask="m.png", model=beside)
        with pytest.raises(InputError, match="that are not open; open another Composer"):
            Composer(loras=[("a.safetensors", 0.5)]).run(request)
        # Those that are open are taken; the picture is not there.
        with pytest.raises(InputError, match=r"a\.png does not exist"):
            Composer(**beside).run(request)


@pytest.mark.parametrize("verb", ["compose", "harmonize", "remove", "scene"])
def test_the_schema_names_every_setting_of_every_method(verb: str, capsys: Any) -> None:
    assert main(["schema", verb]) == 0
    schema = json.loads(capsys.readouterr().out)
    choices = {one["title"]: one["properties"] for one in schema["properties"]["method"]["oneOf"]}
    methods = {n: m for n, m in inlay.methods().items() if verb in m.verbs}
    assert choices.keys() == methods.keys()
    for name, method in methods.items():
        assert set(choices[name]) == {"name", "preset", *method.settings.model_fields}
    assert "method" not in schema["required"]
    assert main(["schema", "compos"]) == 2
    assert "did you mean compose?" in capsys.readouterr().err
