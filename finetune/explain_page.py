"""The page of `headwater explain`: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json

import numpy as np

from finetune.explain import Attribution, Explanation

ATTRIBUTION = """<p>Green tokens raise the output <b>{output}</b>, red ones lower it: integrated gradients,
against a text of {empty}. Their sum is {total:.4f}, off by {error:.1e}.</p>
<p>{tokens}</p>
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>headwater explain</title><style>
body {{ font: 16px sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.token {{ padding: 2px 3px; margin: 1px; border-radius: 3px; display: inline-block; white-space: pre; }}
canvas {{ border: 1px solid #ccc; }} #cell {{ font-family: monospace; }}
</style></head><body>
<h1>{title}</h1>
<p>The model's answer: <code>{answer}</code></p>
<h2>What it rests on</h2>
{attributions}
<h2>Attention</h2>
<p>layer <select id="layer"></select> head <select id="head"></select> <span id="cell">&nbsp;</span></p>
<canvas id="map" width="600" height="600"></canvas>
<script type="application/json" id="data">{data}</script>
<script>
const {{tokens, layers, heads, attention}} = JSON.parse(document.getElementById("data").textContent);
const bytes = Uint8Array.from(atob(attention), character => character.charCodeAt(0)), S = tokens.length;
const [layer, head, map, cell] = ["layer", "head", "map", "cell"].map(id => document.getElementById(id));
const fill = (select, count) => {{ for (let i = 0; i < count; i++) select.add(new Option(i + 1, i)); }};
fill(layer, layers); fill(head, heads);
const size = map.width / S, context = map.getContext("2d");
const at = (y, x) => bytes[((layer.value * heads + +head.value) * S + y) * S + x] / 255;
const draw = () => {{ for (let y = 0; y < S; y++) for (let x = 0; x < S; x++) {{
  context.fillStyle = `rgb(${{255 - 255 * at(y, x)}}, ${{255 - 160 * at(y, x)}}, 255)`;
  context.fillRect(x * size, y * size, size, size);
}} }};
layer.onchange = head.onchange = draw; draw();
map.onmousemove = event => {{
  const [x, y] = [event.offsetX, event.offsetY].map(place => Math.min(S - 1, Math.floor(place / size)));
  cell.textContent = `${{tokens[y]}} → ${{tokens[x]}}: ${{at(y, x).toFixed(2)}}`;
}};
</script></body></html>
"""


def page(found: Explanation) -> str:
    """The page as text; tokens and labels are data in it, never markup.

    Attention is kept in steps of 1/255, a byte each: layers * heads * tokens^2 of them.
    """
    layers, heads = found.attention.shape[:2]
    steps = np.rint(found.attention * 255).astype(np.uint8)
    attention = base64.b64encode(steps.tobytes()).decode()
    data = {"tokens": found.tokens, "layers": layers, "heads": heads, "attention": attention}
    return PAGE.format(
        title=html.escape(", ".join(one.output for one in found.attributions)),
        answer=html.escape(json.dumps(found.answer, ensure_ascii=False)),
        attributions="".join(_colored(one, found) for one in found.attributions),
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _colored(one: Attribution, found: Explanation) -> str:
    """The tokens, each as strongly coloured as its share is large."""
    strongest = max(float(abs(one.values).max()), 1e-12)
    spans = []
    for token, value in zip(found.tokens, one.values, strict=True):
        color = "40, 160, 60" if value > 0 else "210, 50, 40"
        style = f"background: rgba({color}, {abs(value) / strongest:.3f})"
        spans.append(f'<span class="token" style="{style}" title="{value:.4f}">{html.escape(token)}</span>')
    return ATTRIBUTION.format(
        output=html.escape(one.output),
        empty=found.empty,
        total=float(one.values.sum()),
        error=one.error,
        tokens="".join(spans),
    )
