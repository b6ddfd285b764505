"""Command lines that must be refused; the files they name are made in test_bad_input.py."""

from __future__ import annotations

from collections.abc import Callable

BAD_FILES = [
    *(f"{kind}.{s}" for kind in ("head", "empty", "noise") for s in ("png", "jpg", "tif", "bmp")),
    "cut.png", "cut.jpg", "cut.webp", "cut.tif", "cut.bmp", "cut.gif", "text.png", "script.png",
    "bomb.png", "wide.png", "nothing.png", "short.png", "folder.png", "loop.png", "gone.png",
    "pipe.png", "missing.png", "good.png/inside.png", "", ".", "/dev/null", "x" * 5000,
    "nul\0.png", "no\nline.png", "https://example.org/a.png", "-",
]  # fmt: skip
OUT = ["-o", "out.png"]
BOXES = ["--box=9,9,50,50", "--box=70,70,60,60"]
PHASED = ["compose", "good.png", "subject.png", "--box=9,9,50,50", "--phases",
          "remove,paste,harmonize"]  # fmt: skip
ROLES: dict[str, Callable[[str], list[str]]] = {
    "background": lambda f: ["compose", "--method", "paste", *OUT, "--", f, "subject.png"],
    "subject": lambda f: ["compose", "--method", "paste", *OUT, "--", "good.png", f],
    "second subject": lambda f: [
        "compose",
        *BOXES,
        "--method",
        "paste",
        *OUT,
        "--",
        "good.png",
        "subject.png",
        f,
    ],
    "what goes": lambda f: [*PHASED, "--method", "feather", f"--remove-mask={f}", *OUT],
    "subject mask": lambda f: ["compose", "good.png", "good.png", f"--mask={f}", *OUT],
    "harmonize": lambda f: ["harmonize", "--mask", "mask.png", *OUT, "--", f],
    "harmonize mask": lambda f: ["harmonize", "good.png", f"--mask={f}", *OUT],
    "clean": lambda f: ["harmonize", "good.png", "--mask=mask.png", f"--background={f}", *OUT],
    "remove": lambda f: ["remove", "--mask", "mask.png", *OUT, "--", f],
    "remove mask": lambda f: ["remove", "good.png", f"--mask={f}", *OUT],
    "cut": lambda f: ["cut", *OUT, "--", f],
    "rerun": lambda f: ["rerun", *OUT, "--", f],
}
FILE_CASES = [make(bad) for make in ROLES.values() for bad in BAD_FILES]

COMPOSE = ["compose", "good.png", "subject.png", "--method", "paste"]
REMOVE = ["remove", "good.png", "--mask", "mask.png"]
BAD_BOXES = [
    "", ",", "1", "1,2", "1,2,3", "1,2,3,4,5", "a,b,c,d", "nan,0,5,5", "0,nan,5,5", "0,0,nan,5",
    "0,0,inf,5", "-inf,0,5,5", "0,0,-5,5", "0,0,5,-5", "0,0,0,5", "0,0,5,0", "0;0;5;5", "0,0,5,5,",
    "1e9,0,5,5", "0,0,1e300,5", "0x10,0,5,5", "0, 0, five, 5", "5000,5000,20,20", "-900,-900,9,9",
]  # fmt: skip
OPTION_CASES = [
    *([*COMPOSE, f"--box={box}", *OUT] for box in BAD_BOXES),
    *([*COMPOSE, f"--cut-box={box}", "--cut", "box", *OUT] for box in BAD_BOXES),
    *(["cut", "good.png", f"--box={box}", *OUT] for box in BAD_BOXES),
    *([*COMPOSE, f"--at={at}", *OUT]
      for at in ("", "1", "1,2,3", "a,b", "nan,1", "1,inf", "1;2", "9000,9000", "-1e9,0", ",")),
    *([*COMPOSE, "--at=50,50", f"--scale={scale}", *OUT]
      for scale in ("", "0", "-1", "nan", "inf", "x", "1e9", "1e-9", "1,5", "1%")),
    *([*COMPOSE, f"--rotate={angle}", *OUT] for angle in ("", "nan", "inf", "x", "90deg")),
    *([*COMPOSE, f"--seed={seed}", *OUT]
      for seed in ("", "-1", "1.5", "x", "nan", "9223372036854775808", "1" * 400)),
    *([*COMPOSE, f"--num-images={count}", *OUT]
      for count in ("", "0", "-3", "65", "1.5", "x", "99999999999999999999")),
    *([*COMPOSE, f"--max-pixels={count}", *OUT] for count in ("", "0", "-1", "x", "10")),
    *([*COMPOSE, f"--device={device}", *OUT] for device in ("", "gpu", "CPU ", "cuda:99", "tpu")),
    *([*COMPOSE, f"--dtype={dtype}", *OUT] for dtype in ("", "float", "int8", "float64")),
    *(["compose", "good.png", "subject.png", f"--method={name}", *OUT]
      for name in ("", "past", "telea", "photoshop", "../paste", "CDC", "base", "latent", "\n")),
    *([*REMOVE, f"--method={name}", *OUT] for name in ("paste", "cdc", "tela", "poison")),
    *(["compose", "good.png", "subject.png", f"--preset={name}", *OUT]
      for name in ("", "blnd", "Immerse", "none")),
    [*COMPOSE, "--preset", "blend", *OUT],
    [*COMPOSE, "--box", "1,1,50,50", "--at", "9,9", *OUT],
    [*COMPOSE, "--box", "1,1,50,50", "--random", *OUT],
    [*COMPOSE, "--at", "9,9", "--random", *OUT],
    [*COMPOSE, "--box", "1,1,50,50", "--scale", "2", *OUT],
    [*COMPOSE, "--random", "--scale", "2", *OUT],
    *([*COMPOSE, "subject.png", *places, *OUT]
      for places in ([], ["--box=1,1,9,9"], [*BOXES, BOXES[0]], ["--at=9,9"], [*BOXES, "--random"],
                     [*BOXES, "--mask=mask.png"], [*BOXES, "--cut=mask"], [*BOXES, "--box=-"],
                     [*BOXES, "--rotate=1", "--rotate=x"], [*BOXES, "--cut-box=1,1,9,9"],
                     ["--at=9,9", "--at=-"], ["--at=1,1", "--at=9,9", "--scale=1", "--scale=0"])),
    [*COMPOSE, *BOXES, *OUT],
    *([*PHASED[:-1], names, *OUT]
      for names in ("", ",", "past", "paste,remove", "harmonize", "remove,harmonize", "repose",
                    "paste,paste", "Remove,paste", "paste,repose", "remove;paste", "\n")),
    *([*PHASED, *more, *OUT]
      for more in (["--remove-method=paste"], ["--remove-method="], ["--set=remove.x=1"],
                   ["--set=remove."], ["--set=remove.radius=0"], ["--set=repose.eta=1"],
                   ["--method=telea"], ["--preset=blnd"], ["--remove-mask=black-mask.png"],
                   ["--remove-mask=small-mask.png"])),
    [*PHASED[:3], "--at=50,50", *PHASED[4:], *OUT],
    [*COMPOSE, "--keep-phases", *OUT],
    [*COMPOSE, "--remove-mask", "mask.png", *OUT],
    [*COMPOSE, "--remove-method", "telea", *OUT],
    [*COMPOSE, "--cut", "mask", *OUT],
    [*COMPOSE, "--cut", "box", *OUT],
    [*COMPOSE, "--cut", "no/such-model-of-anyone", *OUT],
    [*COMPOSE, "--cut", "grabcat", *OUT],
    ["compose", "good.png", "good.png", "--method", "paste", "--cut", "alpha", *OUT],
    ["compose", "good.png", "clear.png", "--method", "paste", *OUT],
    ["compose", "good.png", "good.png", "--method", "paste", "--mask", "small-mask.png", *OUT],
    ["compose", "good.png", "good.png", "--method", "paste", "--mask", "black-mask.png", *OUT],
    ["harmonize", "good.png", "--mask", "small-mask.png", *OUT],
    ["harmonize", "good.png", "--mask", "black-mask.png", *OUT],
    ["harmonize", "good.png", "--mask", "mask.png", "--background", "small-mask.png", *OUT],
    ["remove", "good.png", "--mask", "small-mask.png", *OUT],
    ["remove", "good.png", "--mask", "black-mask.png", *OUT],
    ["remove", "good.png", *OUT],
    ["cut", "good.png", "--mask", "small-mask.png", *OUT],
    ["cut", "good.png", "--mask", "black-mask.png", *OUT],
    ["cut", "good.png", "--cut", "mask", *OUT],
    ["cut", "good.png", "--cut", "box", *OUT],
    ["cut", "good.png", "--cut", "alpha", *OUT],
    ["cut", "good.png", "--cut", "alfa", *OUT],
    ["cut", "good.png", "--cut", "alpha", "--model", "x/y", *OUT],
    ["cut", "good.png", "--model", "no/such-model-of-anyone", *OUT],
    ["cut", "good.png", "--model", "good.png", *OUT],
    ["cut", "subject.png", "-o", "out.jpg"],
    ["cut", "subject.png", "-o", "out.bmp"],
    ["rerun", "good.png", *OUT],
    [*COMPOSE, "--lora", "missing.safetensors", *OUT],
    [*COMPOSE, "--lora", "", *OUT],
    [*COMPOSE, "--lora", "good.png:nan", *OUT],
    [*COMPOSE, "--lora", "good.png:1e9", *OUT],
    [*COMPOSE, "--textual-inversion", "missing.safetensors", *OUT],
    [*COMPOSE, "--textual-inversion", "folder.png", *OUT],
]  # fmt: skip
BAD_SETS = [
    "", "=", "=1", "T_in", "T_in=", "T_in=,", "T_in=0,,1", "T_in=x", "T_in=nan", "T_in=inf",
    "T_in=1.0001", "T_in=-0.1", "T_in=0,2", "t_in=1", "T_ni=1", "unknown=1", "N_in=0", "N_in=65",
    "N_in=0.5", "num_inference_steps=0", "num_inference_steps=1001", "num_inference_steps=2.5",
    "num_inference_steps=", "guidance_scale=-1", "guidance_scale=51", "guidance_scale=1e309",
    "strength=1.01", "decoding=resid", "decoding=RESIDUAL", "decoding=residual,plane",
    "condition_on=x1", "rounds=0", "rounds=11", "rounds=1e1000", "blend_pixels=-1", "temperature=3",
    "prompt=" + "x" * 3000, "__class__=1", "model_config=1", "settings={}", "T_in==1", "T_in:1",
    "context=None", "region=sky", "T_in=0;1", "T_in=[0,1]", "T_in=True ",
]  # fmt: skip
CDC = ["compose", "good.png", "subject.png", "--method", "cdc"]
SET_CASES = [
    *([*CDC, "--set", item, *OUT] for item in BAD_SETS),
    [*CDC, "--set", "T_in=0", "--set", "T_in=1", *OUT],
    [*CDC, "--set", "prompt=a", "--prompt", "b", *OUT],
    [*CDC, "--set", "num_inference_steps=2", "--num-inference-steps", "3", *OUT],
    [*CDC, "--set", "T_in=" + ",".join(str(i / 100) for i in range(65)), *OUT],
    [*CDC, "--set", "N_in=1,2,3,4,5,6,7,8,9", "--set", "N_out=1,2,3,4,5,6,7,8", *OUT],
    [*CDC, "--set", "N_in=1,2,3", "--num-images", "22", *OUT],
    [*CDC, *(f"--set={k}={','.join(map(str, range(1, 40)))}" for k in ("N_in", "N_out")), *OUT],
    [*CDC, "--num-inference-steps", "0", *OUT],
    [*CDC, "--num-inference-steps", "1e3", *OUT],
    [*CDC, "--guidance-scale", "-1", *OUT],
    [*CDC, "--guidance-scale", "nan", *OUT],
    [*CDC, "--prompt", "x" * 5000, *OUT],
    [*CDC, "--negative-prompt", "x" * 5000, *OUT],
    [*COMPOSE, "--set", "T_in=1", *OUT],
    [*COMPOSE, "--set", "prompt=a cat", *OUT],
    [*COMPOSE, "--set", "guidance_scale=3", *OUT],
    ["bench", "harmony", "missing", "-o", "run"],
    ["bench", "harmony", "good.png", "-o", "run"],
    ["bench", "harmony", "scikit-image", "-o", "good.png"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--methods", "rheinhard"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--methods", ""],
    ["bench", "harmony", "scikit-image", "-o", "run", "--cases", "0"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--cases", "100001"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--include", "nothing-*"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--split", "half"],
    ["bench", "harmony", "scikit-image", "-o", "run", "--set", "poissonn.x=0"],
    ["bench", "relight", "missing", "-o", "run"],
    ["bench", "relight", "good.png", "-o", "run"],
    ["bench", "relight", ".", "-o", "run"],
    ["bench", "relight", "scikit-image", "-o", "run"],
    ["train", "embedded", "missing", "-o", "run"],
    ["train", "embedded", "good.png", "-o", "run"],
    ["train", "embedded", ".", "-o", "good.png"],
    ["train", "embedded", ".", "-o", ""],
    ["train", "embedded", ".", "-o", "run", "--set", "steps=0"],
    ["train", "embedded", ".", "-o", "run", "--set", "stepps=5"],
    ["train", "embedded", ".", "-o", "run", "--set", "steps=5,6"],
    ["train", "embedded", ".", "-o", "run", "--set", "block_out_channels=a"],
    *([*CDC, "--model", model, *OUT]
      for model in ("", "folder.png", "good.png", "missing/model", "empty.png", "tmp", "../..",
                    "model.ckpt", "missing.safetensors", "noise.png", "a b c", "\0", "/dev/null")),
]  # fmt: skip
OUT_CASES = [
    [*command, "-o", out]
    for command in (COMPOSE, REMOVE, ["cut", "subject.png"], [*COMPOSE, "--num-images", "2"])
    for out in (
        "", ".", "..", "/", "out", "out.", "out.xyz", "out.gif", "out.svg", "out.png.txt", ".png",
        "folder.png", "missing/out.png", "good.png/out.png", "/proc/out.png", "tmp/",
        "good.png" if command[1] == "good.png" else "subject.png", "x" * 300 + ".png",
        "nul\0.png", "loop.png/out.png", "/dev/null",
    )
]  # fmt: skip
SYNTAX_CASES = [
    ["compos"], ["--nope"], ["-x"], ["compose"], ["compose", "good.png"], ["compose", *OUT],
    ["compose", "a", "b"], ["compose", "a", "b", "c", *OUT], ["compose", "--bx", "1,2,3,4"],
    ["compose", "a", "b", "-o"], ["compose", "a", "b", "--output"], ["harmonize"], ["remove"],
    ["cut"], ["rerun"], ["train"], ["train", "nothing"], ["train", "embedded"],
    ["train", "embedded", "x"], ["methods", "a", "b"], ["methods", "past"], ["methods", ""],
    ["methods", "--jsn"], ["models", "x"], ["models", "--jason"], ["demo", "x"], ["demo", "-o", ""],
    ["demo", "-o", "good.png"], ["demo", "-o", "good.png/x"], ["demo", "-o", "/proc/x"],
    ["scene", "x"], ["Compose"], [""], ["--", "--help"], ["compose", "--flip=yes", "a", "b", *OUT],
    ["compose", "a", "b", "--random=1", *OUT], ["compose", "a", "b", "--json=x", *OUT],
    ["\x1b[31mred"], ["compose", "\x1b]0;title\x07", "b", *OUT], ["two\nlines"], ["ünï"],
    ["harmonize", "good.png", "--box", "1,2,3,4", *OUT], ["remove", "a", "--mask"],
    ["rerun", "good.png"], ["cut", "good.png", "--seed", "1", *OUT], ["--version=2"],
    ["methods", "\udcff"], ["compose", "\udcff.png", "subject.png", *OUT],
]  # fmt: skip
CASES = [*FILE_CASES, *OPTION_CASES, *SET_CASES, *OUT_CASES, *SYNTAX_CASES]
