"""The optimise-the-latent loop against literal references, on checkpoints in the real formats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import loaded
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.distill import (
    Descent,
    Draw,
    Iterate,
    Side,
    Span,
    Term,
    delta,
    distill,
    draw_levels,
)
from inlay.diffusion.sample import Denoise, Level

NAMES = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint", "embedded"]
SIDE = 8


def backbone_of(name: str) -> Backbone:
    return load_backbone("embedded", device="cpu") if name == "embedded" else loaded(name)


def noise_of(seed: int) -> tuple[torch.Generator, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return generator, lambda like: torch.randn(like.shape, generator=generator)


def branches(backbone: Backbone, guidance: float = 3.0, seed: int = 0) -> tuple[Side, Side]:
    """Two branches that differ in all they can differ in."""
    generator = torch.Generator().manual_seed(seed)
    size = (SIDE * backbone.factor,) * 2
    made = []
    for number, prompt in enumerate(("something in some place", "a harmonious scene")):
        shape = (1, backbone.latent_channels, SIDE, SIDE)
        z, seen = torch.randn(2, *shape, generator=generator)
        mask = torch.zeros(1, 1, SIDE, SIDE)
        mask[..., number : number + 4, 2:6] = 1
        text, negative = backbone.embed([prompt], size), backbone.embed([""], size)
        told = Conditions(text, negative, guidance, mask=mask, masked_latent=seen)
        made.append(Side(z, told))
    return made[0], made[1]


def go(backbone: Backbone, source: Side | None, target: Side, **changes: Any) -> tuple[Tensor, int]:
    generator, _ = noise_of(changes.pop("seed", 5))
    named = {field.name for field in fields(Descent)} & changes.keys()
    descent = Descent(
        **{"spans": [Span(1, 50, 950)], "iterations": 4} | {key: changes.pop(key) for key in named}
    )
    denoiser = changes.pop("denoiser", backbone.denoiser)
    changes = {"generator": generator} | changes
    return distill(denoiser, backbone.levels, source, target, descent, **changes)


@torch.no_grad()
def slow_eps(
    backbone: Backbone, branch: Side, t: int, noise: Tensor, guidance: float
) -> Tensor:  # fmt: skip
    """One row after the other through the bare U-Net, and the formulas of METHODS in words."""
    alpha, told = backbone.levels[t].signal ** 2, branch.conditions
    noisy = math.sqrt(alpha) * branch.z + math.sqrt(1 - alpha) * noise
    fed = [noisy]
    if backbone.kind == "inpaint":
        assert told.mask is not None and told.masked_latent is not None
        fed += [told.mask, told.masked_latent]
    rows = []
    for text in (told.negative, told.text):
        assert text is not None
        out = backbone.network(
            torch.cat(fed, 1).to(backbone.dtype), t, text.hidden, added_cond_kwargs=text.added
        ).sample
        rows.append(out.float())
    out = rows[0] + guidance * (rows[1] - rows[0])
    if backbone.prediction_type == "v_prediction":
        return math.sqrt(alpha) * out + math.sqrt(1 - alpha) * noisy
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t", "guidance"), [(60, 1.5), (900, 1.5), (500, 7.5)])
def test_the_gradient_is_the_literal_one_on_every_format(
    name: str, t: int, guidance: float
) -> None:
    # Guidance multiplies the rounding of float32 too.
    close = {"atol": 1e-5 * max(1.0, guidance / 1.5), "rtol": 1e-5}
    backbone = backbone_of(name)
    source, target = branches(backbone, guidance)
    noise, level = noise_of(1)[1](source.z), backbone.levels[t]
    g, known = delta(backbone.denoiser, source, target, level, noise)
    slow_source = slow_eps(backbone, source, t, noise, guidance)
    expected = slow_eps(backbone, target, t, noise, guidance) - slow_source
    torch.testing.assert_close(g, expected, **close)
    torch.testing.assert_close(known, slow_source, **close)
    again, _ = delta(backbone.denoiser, source, target, level, noise, known)
    torch.testing.assert_close(again, g, **close)
    score, reference = delta(backbone.denoiser, None, target, level, noise)
    torch.testing.assert_close(score, expected + slow_source - noise, **close)
    assert torch.equal(reference, noise)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_z_minus_eta_times_g(name: str) -> None:
    backbone = backbone_of(name)
    source, target = branches(backbone)
    weight = torch.linspace(0, 1, SIDE).expand(1, 1, SIDE, SIDE)
    seen: list[Iterate] = []
    got = go(backbone, source, target, eta=0.3, weight=weight, progress=seen.append)
    z = target.z
    for iterate in seen:
        z = z - 0.3 * (iterate.g * weight)
        assert torch.equal(iterate.z, z)
    assert torch.equal(got[0], z)
    assert [i.number for i in seen] == [0, 1, 2, 3] and got[1] == 4
    assert torch.equal(got[0][..., 0], target.z[..., 0])


@pytest.mark.parametrize("pool_size", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_on_both_sides_never_moves(name: str, pool_size: int) -> None:
    backbone = backbone_of(name)
    one = branches(backbone)[0]
    seen: list[Iterate] = []
    got = go(backbone, one, one, pool_size=pool_size, rerun_source=True, progress=seen.append)
    assert all(not iterate.g.any() for iterate in seen)
    assert torch.equal(got[0], one.z)


class Counting:
    """A backbone's denoisers that keep how many latents each call had."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.rows = backbone, list[int]()

    def __call__(self, conditions: Conditions) -> Denoise:
        denoise = self.backbone.denoiser(conditions)

        def count(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            self.rows.append(len(z))
            return denoise(z, level)

        return count


def test_a_pool_predicts_the_source_once_a_pair_and_gives_the_same() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    reusing, rerunning = Counting(backbone), Counting(backbone)
    a = go(backbone, source, target, denoiser=reusing, pool_size=3, iterations=8)
    b = go(
        backbone, source, target, denoiser=rerunning, pool_size=3, iterations=8, rerun_source=True
    )
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=1e-5)
    assert reusing.rows == [2, 2, 2, 1, 1, 1, 1, 1]
    assert rerunning.rows == [2] * 8
    fresh = Counting(backbone)
    go(backbone, source, target, denoiser=fresh, pool_size=0, iterations=3)
    assert fresh.rows == [2, 2, 2]


def test_source_target_and_both_guidance_rows_are_one_batch_of_four() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    batches: list[tuple[int, bool]] = []

    def look(module: Any, args: tuple[Any, ...], output: Any) -> None:
        batches.append((len(args[0]), torch.is_grad_enabled()))
        assert not output[0].requires_grad

    rows = Counting(backbone)
    handle = backbone.network.register_forward_hook(look)
    try:
        with torch.enable_grad():
            go(
                backbone, source, target, pool_size=1, iterations=2,
                terms=[Term(1.0, lambda z: (backbone.decode(z) ** 2).mean())],
                denoiser=rows,
            )  # fmt: skip
            go(backbone, *branches(backbone, guidance=1.0), iterations=1)
    finally:
        handle.remove()
    assert batches == [(4, False), (2, False), (2, False)]
    assert rows.rows == [2, 1]
    assert all(p.grad is None for p in backbone.network.parameters())
    assert all(p.grad is None for p in backbone.vae.parameters())


def test_extra_terms_add_their_own_gradient() -> None:
    """Against the gradient worked out by hand: d sum((z - a)^2) / dz = 2 (z - a)."""
    backbone = loaded("sd1")
    one = branches(backbone)[0]
    goal = torch.randn(one.z.shape, generator=torch.Generator().manual_seed(8))
    term = Term(0.2, lambda z: ((z - goal) ** 2).sum())
    got = go(backbone, one, one, rerun_source=True, terms=[term], iterations=1, eta=0.5)
    expected = one.z - 0.5 * 0.2 * 2 * (one.z - goal)
    torch.testing.assert_close(got[0], expected, atol=1e-6, rtol=1e-6)
    rare = Term(0.2, term.loss, every=3)
    seen: list[Iterate] = []
    go(backbone, one, one, terms=[rare], iterations=3, eta=0.5, progress=seen.append)
    assert torch.equal(seen[1].z, one.z)
    expected = one.z - 0.5 * 0.6 * 2 * (one.z - goal)
    torch.testing.assert_close(seen[2].z, expected, atol=1e-6, rtol=1e-6)


def test_adamw_takes_its_first_step_of_eta_and_does_not_decay() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    seen: list[Iterate] = []
    go(backbone, source, target, optimizer="AdamW", eta=0.02, iterations=1, progress=seen.append)
    expected = target.z - 0.02 * seen[0].g.sign()
    torch.testing.assert_close(seen[0].z, expected, atol=1e-4, rtol=0)
    still = go(backbone, source, source, rerun_source=True, optimizer="AdamW", iterations=3)
    assert torch.equal(still[0], source.z)


def test_the_run_ends_where_nothing_moves_any_more() -> None:
    backbone = loaded("sd1")
    one, other = branches(backbone)
    term = Term(0.25, lambda z: ((z - other.z) ** 2).sum())
    # A denoiser that sees no difference leaves the term alone.
    values: dict[str, Any] = {"terms": [term], "eta": 0.5, "iterations": 60}
    values["denoiser"] = lambda conditions: lambda z, level: (torch.zeros_like(z), z)
    got = go(backbone, one, one, plateau=1e-3, patience=5, **values)
    assert 5 < got[1] < 60
    torch.testing.assert_close(got[0], other.z, atol=0.01, rtol=0)
    assert go(backbone, one, one, plateau=0.0, **values)[1] == 60
    # What may not move does not count.
    weight = torch.zeros(1, 1, SIDE, SIDE)
    assert go(backbone, one, other, weight=weight, plateau=0.1, patience=2)[1] == 3


def test_the_same_seed_gives_the_same_latent_and_another_does_not() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    for pool_size in (0, 2):
        a, b, c = (go(backbone, source, target, seed=s, pool_size=pool_size)[0] for s in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_what_progress_raises_ends_the_run() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    seen: list[int] = []

    def stop(iterate: Iterate) -> None:
        seen.append(iterate.number)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        go(backbone, source, target, progress=stop)
    assert seen == [0]


def test_zero_terminal_snr_moves_nothing_wrongly() -> None:
    """At t = 999 of the embedded schedule the signal is 0: both branches are the same noise."""
    backbone = backbone_of("embedded")
    source, target = branches(backbone)
    assert backbone.levels[999].signal < 1e-3
    got = go(backbone, source, target, spans=[Span(1, 999, 1000)], iterations=1)
    torch.testing.assert_close(got[0], target.z, atol=0.02, rtol=0)
    assert got[0].isfinite().all()


def test_branches_that_do_not_match_are_refused() -> None:
    backbone = loaded("sd1")
    source, target = branches(backbone)
    for name in ("negative", "mask", "masked_latent"):
        bare = replace(target, conditions=replace(target.conditions, **{name: None}))
        with pytest.raises(ValueError, match=f"must have {name}"):
            go(backbone, source, bare)


def take(
    spans: list[Span], iterations: int, pool_size: int, seed: int = 0, timesteps: int = 1000
) -> list[Draw]:
    generator, _ = noise_of(seed)
    like = torch.zeros(1, 1, 2, 2)
    descent = Descent(spans, iterations, pool_size)
    return list(draw_levels(descent, timesteps, like, generator))


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 900), st.integers(1, 99)),
        min_size=1, max_size=4,
    ).filter(lambda rows: sum(row[0] for row in rows) > 1e-3),
    st.integers(0, 40),
    st.integers(0, 7),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_draws_lie_in_their_span_and_there_is_one_an_iteration(
    rows: list[tuple[float, int, int]], iterations: int, pool_size: int
) -> None:
    spans = [Span(share, low, low + wide) for share, low, wide in rows]
    draws = take(spans, iterations, pool_size)
    assert len(draws) == iterations
    assert all(any(s.t_min <= d.t < s.t_max and s.share > 0 for s in spans) for d in draws)
    if pool_size:
        assert len({id(draw) for draw in draws}) <= pool_size * len(spans)


def test_spans_follow_each_other_by_their_shares() -> None:
    draws = take([Span(5, 100, 900), Span(1, 50, 60)], 12, 4)
    assert all(draw.t >= 100 for draw in draws[:10])
    assert all(draw.t < 60 for draw in draws[10:])


def test_a_pool_goes_round_and_covers_the_range_evenly() -> None:
    draws = take([Span(1, 0, 1000)], 20, 10)
    assert draws[:10] == draws[10:]
    assert sorted(draw.t // 100 for draw in draws[:10]) == list(range(10))
    fresh = [draw.t for draw in take([Span(1, 0, 1000)], 4000, 0)]
    assert sum(fresh) / len(fresh) == pytest.approx(499.5, abs=20)


@pytest.mark.parametrize(
    "span", [Span(1, 10, 10), Span(1, -1, 5), Span(1, 0, 1001), Span(-1, 0, 9), Span(0, 0, 9)]
)
def test_a_span_that_makes_no_sense_is_refused(span: Span) -> None:
    with pytest.raises(ValueError, match=r"span|Span"):
        take([span], 3, 0)
