"""Prompts with weights, long ones, and text encoders that are left early."""

from __future__ import annotations

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from diffusers import StableDiffusionXLPipeline
from skimage import data

from checkpoints import built, loaded
from flows import loaded as flow
from inlay import Composer
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.text import plain_text, weighted
from inlay.errors import InputError
from photos import cup

SIZE = (128, 128)
LONG = "a photo of a cat on a table, two cups of coffee. " * 8
# In the words of the web UI, and in compel's.
PROMPTS = [
    ("a (cat:1.4) on a table", "a (cat)1.4 on a table"),
    ("(a photo of a cat:0.6), two cups", "(a photo of a cat)0.6, two cups"),
    ("a cat on a (table:0)", "a cat on a (table)0"),
    ("(cat) on a table", "(cat)1.1 on a table"),
    ("a (photo of a (cat:1.2):1.5) on a table", "a (photo of a)1.5 (cat)1.8 on a table"),
    ("two (cups:1.3) of (coffee:0.8)", "two (cups)1.3 of (coffee)0.8"),
    ("(two cups of coffee:2)", "(two cups of coffee)2"),
    ("a cat, (two cups:0.5), (a table:1.9)", "a cat, (two cups)0.5, (a table)1.9"),
    (LONG, LONG),
    (LONG + "(two cups:1.5)", LONG + "(two cups)1.5"),
]


@pytest.mark.parametrize(("ours", "theirs"), PROMPTS)
@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_weights_and_long_prompts_are_embedded_as_compel_does(
    model: str, ours: str, theirs: str
) -> None:
    text = loaded(model).text
    kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    if model == "sd1":
        kind = ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
    compel = Compel(
        text.tokenizers, text.encoders, truncate_long_prompts=False,
        returned_embeddings_type=kind, requires_pooled=[False, True][: len(text.encoders)],
    ) if model == "sdxl" else Compel(
        text.tokenizers[0], text.encoders[0], truncate_long_prompts=False
    )  # fmt: skip
    wanted = compel(theirs)
    hidden, pooled = wanted if model == "sdxl" else (wanted, None)
    made = text.embed([ours], SIZE)
    torch.testing.assert_close(made.hidden, hidden, atol=1e-5, rtol=1e-5)
    if pooled is not None and ours == LONG:
        torch.testing.assert_close((made.added or {})["text_embeds"], pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("((cat))", [("cat", 1.1 * 1.1)]),
        ("[cat] on", [("cat", 1 / 1.1), (" on", 1.0)]),
        (r"a \(cat\) \\ \x", [(r"a (cat) \ \x", 1.0)]),
        ("a (cat :) b", [("a ", 1.0), ("cat :", 1.1), (" b", 1.0)]),
        ("a ] (cat b) [c", [("a ] ", 1.0), ("cat b", 1.1), (" [c", 1.0)]),
        ("ratio 3:4", [("ratio 3:4", 1.0)]),
        ("", []),
        ("()", []),
    ],
)
def test_a_prompts_parts_and_their_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert [(text, pytest.approx(weight)) for text, weight in weighted(prompt)] == parts
    assert plain_text(prompt) == "".join(text for text, _ in parts)


def test_a_prompt_without_weights_has_the_row_that_it_always_had() -> None:
    text = loaded("sd1").text
    ids = torch.tensor([text.token_ids("a cat")])
    assert torch.equal(text.embed(["a cat"], SIZE).hidden, text.encoders[0](ids)[0])


def test_layers_are_left_out_as_diffusers_does() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(built("sdxl"))
    expected = pipe.encode_prompt(
        "a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False,
        clip_skip=1,
    )[0]  # fmt: skip
    made = loaded("sdxl").embed(["a cat"], SIZE, 1).hidden
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    # Of one encoder the rest goes through its last norm.
    text = loaded("sd1").text
    states = text.encoders[0](torch.tensor([text.token_ids("a cat")]), output_hidden_states=True)
    expected = text.encoders[0].final_layer_norm(states.hidden_states[-2])
    assert torch.equal(text.embed(["a cat"], SIZE, 1).hidden, expected)
    with pytest.raises(InputError, match=r"clip_skip is 2; expected less than the 2 layers"):
        text.embed(["a cat"], SIZE, 2)


def test_a_short_negative_prompt_is_filled_up_beside_a_long_one() -> None:
    backbone = loaded("sd1")
    long, short = (backbone.embed([prompt], SIZE) for prompt in (LONG, "cups"))
    chunks = long.hidden.shape[1] // 77
    rows = Conditions(long, short, 5.0).rows(2).text.hidden
    assert chunks > 1 and rows.shape == (4, 77 * chunks, 32)
    assert torch.equal(rows[0, :77], short.hidden[0])
    assert torch.equal(rows[0, 77:154], backbone.embed([""], SIZE).hidden[0])
    assert torch.equal(rows[2], long.hidden[0])
    both = backbone.embed([LONG, "cups"], SIZE).hidden
    assert torch.equal(both, rows[[2, 0]])


@pytest.mark.parametrize("words", [{}, {"words_inside": "cat"}])
def test_a_long_weighted_prompt_makes_a_picture(words: dict[str, str]) -> None:
    result = Composer(str(built("sdxl"))).compose(
        data.astronaut(), cup(), box=(60, 60, 200, 200), method="cdc", num_inference_steps=2,
        prompt=f"a (cat:1.5), {LONG}", negative_prompt="[cups]", clip_skip=0, **words,
    )  # fmt: skip
    assert not any("tokens" in note for note in result.record["notes"])


def test_transformers_pass_over_weights() -> None:
    backbone = flow("sd3")
    one, two = (backbone.embed([text], SIZE).hidden for text in ("a (cat:1.4)", "a cat"))
    assert torch.equal(one, two)
    assert "tokens of the prompt" in backbone.text.unread("a cat " * 600)
