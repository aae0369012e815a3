"""Hooks of this plugin: a diffusion model, a classifier with experts, and a judge.

Each file `weights/NAME.json` is the card of `weights/NAME.safetensors`, or of the experts in
`weights/NAME.experts.safetensors`, with a record of their training beside it.
"""

from __future__ import annotations

import json
from importlib import resources

from ppap_framework.plugin import Asset, Card, DefaultTarget, ExpertBundle, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_assets() -> list[Asset]:
    """Cards of all weights and experts, and the default target of the classifiers."""
    files = resources.files("ppap_plugin_fashion").joinpath("weights").iterdir()
    texts = {file.name: file.read_text() for file in files if file.name.endswith(".json")}
    records = [json.loads(texts[name]) for name in sorted(texts)]
    cards = [Card(**record["card"]) for record in records if "card" in record]
    bundles = [ExpertBundle(**record["experts"]) for record in records if "experts" in record]
    targets = [
        DefaultTarget(guider=card.component, checkpoint=card.name, text="sneaker")
        for card in cards
        if card.kind == "guider"
    ]
    return [*cards, *bundles, *targets]
