"""What does masking attention after the softmax cost, against building the attention map?

Both sides are diffusers' attention layers of Stable Diffusion 1.5 on a latent of 64 x 64 (4096
queries, 8 heads of 40, float32): the literal formula with explicit softmax, mask and product, and
the masked-value form. Prints literal / ours for time, CPU and wall, as the median of pairs timed
alternately in one run, and ours / literal for peak memory, each side in a process of its own less
that of one that only holds the layer and its inputs. Boxes are named by their share of the picture.

    python benchmarks/masked_attention.py [RUNS]
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from inlay.diffusion.attention import AttentionRule, Layer
from inlay.diffusion.attention_masked import MaskedAttention, inside_at

SIDE, HEADS, WIDTH, KEYS, TEXT = 64, 8, 40, 77, 768


class Literal(AttentionRule):
    """Equation 2 as it is written: (M o softmax(Q K^T / sqrt(d))) V."""

    def __init__(self, mask: Tensor) -> None:
        self.inside = inside_at(mask, SIDE * SIDE)[0]

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        allowed = self.inside[:, None] == self.inside[None]
        if layer.kind == "cross":
            allowed = self.inside[:, None].expand(-1, key.shape[2])
        weights = (query @ key.transpose(-1, -2) * layer.attn.scale).softmax(-1) * allowed
        return weights @ value


def box(percent: int) -> Tensor:
    """A latent mask of a centred square of about that share."""
    side = round(SIDE * (percent / 100) ** 0.5)
    start = (SIDE - side) // 2
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., start : start + side, start : start + side] = 1
    return mask


def case(kind: str, side: str, percent: int, grad: bool) -> Callable[[], Tensor]:
    """One call of a layer of `kind` self or cross; with `grad` and its backward pass."""
    torch.manual_seed(0)
    text = TEXT if kind == "cross" else None
    attn = Attention(HEADS * WIDTH, text, heads=HEADS, dim_head=WIDTH)
    layer = Layer("it", "self" if text is None else "cross", True, attn)
    hidden = torch.randn(1, SIDE * SIDE, HEADS * WIDTH, requires_grad=grad)
    context = torch.randn(1, KEYS, TEXT) if kind == "cross" else None
    rule = Literal(box(percent)) if side == "literal" else MaskedAttention(box(percent))

    def run() -> Tensor:
        with torch.set_grad_enabled(grad):
            output = rule.run(layer, hidden, context)
            if grad:
                output.square().mean().backward()
        return output.detach()

    return run


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak(function: Callable[[], Any]) -> float:
    """The most MB of tensors, kernels' own buffers too, that a call holds at any one time."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    moves = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    held = itertools.accumulate(move for _, move in sorted(moves, key=lambda pair: pair[0]))
    return max(held) / 2**20


def report(kind: str, percent: int, grad: bool, runs: int) -> None:
    literal, ours = (case(kind, side, percent, grad) for side in ("literal", "ours"))
    worst = (literal() - ours()).abs().max()
    pairs = [(timed(literal), timed(ours)) for _ in range(runs)]
    cpu, wall = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    took = [1000 * statistics.median(pair[i][0] for pair in pairs) for i in (0, 1)]
    used = [peak(function) for function in (literal, ours)]
    print(
        f"{kind:5s} {'training' if grad else 'forward':8s} box {percent:3d} %   "
        f"times faster: {cpu:5.2f} CPU {wall:5.2f} wall ({took[0]:.0f} / {took[1]:.0f} ms)   "
        f"memory {used[1] / used[0]:5.3f} ({used[1]:.1f} / {used[0]:.1f} MB)   "
        f"differ by {worst:.0e}",
        flush=True,
    )


def main(runs: int) -> None:
    torch.set_num_threads(1)
    for kind, percents in (("self", (25,)), ("cross", (6, 25, 56))):
        for percent in percents:
            for grad in (False, True):
                report(kind, percent, grad, runs)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
