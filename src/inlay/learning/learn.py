"""Learning one object from a few photos: DreamCom (Lu et al. 2023, arXiv 2309.15508, section 4).

A checkpoint is fine-tuned to fill the object's box under a prompt with a word for it. Nothing
outside the box attends to the prompt (eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from inlay.checkpoints.concept import Concept
from inlay.checkpoints.load import load_backbone
from inlay.errors import InputError
from inlay.learning.loop import Processes, train
from inlay.learning.photos import Photo, find_views
from inlay.learning.run import Learning
from inlay.learning.samples import example
from inlay.learning.settings import LearnConfig
from inlay.learning.state import check_state
from inlay.pictures.read import DEFAULT_MAX_PIXELS
from inlay.pictures.write import check_target


def run_folder(out: Path) -> Path:
    """Where a run keeps its state, its log and its previews: beside the file, by its name."""
    return out.with_name(out.stem + "-learning")


def learn(
    photos: Sequence[Photo],
    class_name: str,
    output: str | Path,
    config: LearnConfig | None = None,
    *,
    cut: str | None = None,
    class_pictures: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    trust_remote_code: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    log: Callable[[str], None] = lambda line: None,
) -> Concept:
    """Learn an object of a class from 1 to 10 photos and write it to OUTPUT, a .safetensors file.

    A photo's box or mask says where it is, else its alpha does, else a cutout by `cut`. State, log
    and previews go to a folder beside the file, see run_folder(), from which `resume` goes on.
    Raises InputError for photos, boxes, masks or settings that cannot be used, an output that
    cannot be written and a checkpoint that cannot be loaded, before anything is written.

    Where `accelerate launch` has started several processes, each has a device of its own, `device`
    goes for none of them, and the first one writes and logs.
    """
    config = config or LearnConfig()
    name = " ".join(class_name.split())
    if not 1 <= len(name) <= 200:
        raise InputError(f"the class name has {len(name)} letters; give a word for the object.")
    out = Path(output)
    if out.suffix.lower() != ".safetensors":
        raise InputError(f"{out.name} is no name for a concept; expected NAME.safetensors.")
    check_target(out)
    folder = run_folder(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder, but the run's state would go there; move it.")
    if resume:
        check_state(folder)
    # Photos first: what is wrong with them is said before a checkpoint is loaded.
    views = find_views(
        photos,
        cut=cut,
        trust_remote_code=trust_remote_code,
        max_pixels=max_pixels,
    )
    processes = Processes()
    processes.rows(config.batch)
    backbone = load_backbone(config.model, device=processes.device or device, dtype="float32")
    side = config.resolution or backbone.native_size
    run = Learning(
        [example(view, config, side) for view in views],
        name,
        folder,
        backbone,
        config,
        class_pictures=None if class_pictures is None else Path(class_pictures),
        resume=resume,
        processes=processes,
    )
    if processes.first:
        log(f"{len(run.examples)} photos, prompt: {run.prompt}")
    train(run, log)
    return run.write(out)
