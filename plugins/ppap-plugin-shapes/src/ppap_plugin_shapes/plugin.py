"""Hooks of this plugin: checkpoints and default targets for components of other plugins.

Each file `weights/NAME.json` is the card of `weights/NAME.safetensors`, of a folder `weights/NAME/`
as transformers saves it, or of the experts in `weights/NAME.experts.safetensors`, with a record of
their training beside it. The classifier is also the network whose features guides of likeness
compare.
"""

from __future__ import annotations

import json
from importlib import resources

import attrs

from ppap_framework.plugin import Asset, Card, DefaultTarget, ExpertBundle, hookimpl

PPAP_API = (1, 0)

_FEATURES = ("likeness", "style")
_PICTURES = ("depth", "segmentation", *_FEATURES)  # the target is a picture
_AIMS = {"detection": "red cube@0.25,0.25,0.75,0.75", "clip-text": "a red cube"}
_SCENE = "package://ppap_plugin_shapes/references/scene-4.png"


@hookimpl
def ppap_assets() -> list[Asset]:
    """Cards of all weights and experts, and default targets of guides."""
    files = resources.files("ppap_plugin_shapes").joinpath("weights").iterdir()
    texts = {file.name: file.read_text() for file in files if file.name.endswith(".json")}
    records = [json.loads(texts[name]) for name in sorted(texts)]
    cards = [Card(**record["card"]) for record in records if "card" in record]
    (classifier,) = (card for card in cards if card.component == "classifier" and card.default)
    for component in _FEATURES:
        name = f"{classifier.name}-{component}"
        cards.append(attrs.evolve(classifier, name=name, component=component))
    bundles = [ExpertBundle(**record["experts"]) for record in records if "experts" in record]
    targets = [
        DefaultTarget(
            guider=card.component,
            checkpoint=card.name,
            text=_SCENE if card.component in _PICTURES else _AIMS.get(card.component, "red cube"),
        )
        for card in cards
        if card.kind == "guider"
    ]
    return [*cards, *bundles, *targets]
