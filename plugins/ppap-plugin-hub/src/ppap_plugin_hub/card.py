"""The model card of a bundle, written from the bundle's own description.

A card is Markdown with YAML in front, as the Hugging Face Hub shows it. The part of a bundle lies
between two comments, so that a later push replaces it and keeps all that others wrote around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppap_framework.data import SyntheticData
from ppap_framework.errors import PpapError
from ppap_framework.experts import BundleInfo, Identity, ScaleCurve
from ppap_framework.registry import registry

_TAGS = ("ppap", "diffusion", "guidance", "plug-and-play", "multi-experts")
_PAPER = "[Towards Practical Plug-and-Play Diffusion Models](https://arxiv.org/abs/2212.05973)"
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def card(
    name: str,
    info: BundleInfo,
    sha256: str,
    *,
    source: str,
    picture: str | None = None,
    licence: str | None = None,
    before: str = "",
) -> str:
    """The text of a card with the part of a bundle.

    Args:
        name: Name of the bundle.
        info: Its description.
        sha256: SHA-256 of its file.
        source: What `ppap experts pull` is given.
        picture: Name of a picture beside the card.
        licence: Identifier of a licence of the Hub, such as "apache-2.0".
        before: The card that is there; its other parts are kept.
    """
    front = ["library_name: ppap-framework"]
    front += [f"license: {json.dumps(licence)}"] if licence else []
    front += _tags(info.guide.component, info.backend.component)
    part = _part(name, info, sha256, source, picture)
    return _placed(f"experts {name}", front, part, before)


def data_card(data: SyntheticData, source: str, before: str = "") -> str:
    """The text of the card of a synthetic set; `source` is what `--data` is given, and `before` the
    card that is there.
    """
    settings = data.manifest["settings"]
    backend = settings["backend"]
    stages = [f"{s['name']} {'x'.join(map(str, s['image_shape']))}" for s in settings["stages"]]
    facts = {
        "backend": backend["component"],
        "checkpoint": backend["checkpoint"],
        "backend's weights, SHA-256": backend["weights_sha256"],
        "images": f"{len(data):,}",
        "stages": ", ".join(stages),
        **{name: settings.get(name) for name in ("sampler", "steps", "eta", "seed")},
        "manifest, SHA-256": data.manifest_hash,
    }
    of = backend["component"]
    about = (
        f"{len(data):,} images without labels, drawn by `{of}` to train experts for guidance "
        f"({_PAPER}). The shards have webdataset's format, and `manifest.json` states the SHA-256 "
        "of each."
    )
    install = "pip install ppap-framework ppap-plugin-hub"
    command = f"ppap transfer --backend {of} --guider GUIDER --data {source} --out runs/experts"
    use = f"```\n{install}\n{command}\n```"
    part = ["# Images that a diffusion model drew", about, use, _facts(facts)]
    front = [*_tags(backend["component"]), "configs:", "- config_name: default"]
    front += ['  data_files: "shard-*.tar"']
    return _placed("synthetic set", front, "\n\n".join(part), before)


def _placed(what: str, front: Sequence[str], part: str, before: str) -> str:
    """A card with a part in the place of an earlier one of its kind; the rest is kept."""
    begin, end = (f"<!-- ppap {what}: {word} -->" for word in ("begin", "end"))
    part = f"{begin}\n{part}\n{end}"
    head, body = _split(before)
    head = head or "\n".join(["---", *front, "---", ""])
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if found.search(body):
        body = found.sub(lambda _: part, body, count=1)
    else:
        body = f"{body.rstrip()}\n\n{part}\n" if body.strip() else f"{part}\n"
    return f"{head}\n{body.lstrip()}"


def _split(text: str) -> tuple[str, str]:
    """A card's YAML, with the lines around it, and the rest."""
    match = _FRONT.match(text.replace("\r\n", "\n"))
    front = match[0] if match else ""
    return front, text.replace("\r\n", "\n")[len(front) :]


def _tags(*components: str) -> list[str]:
    return ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys([*_TAGS, *components]))]


def _part(name: str, info: BundleInfo, sha256: str, source: str, picture: str | None) -> str:
    experts = "1 expert" if len(info) == 1 else f"{len(info)} experts"
    adapters = " and ".join(f"`{a.name}`{_options(a.options)}" for a in info.adapters)
    size = "x".join(map(str, info.resolution))
    about = (
        f"{experts} that let the network {_named(info.guide)} steer the diffusion model "
        f"{_named(info.backend)} at every noise level, on images of {size} pixels. Neither network "
        f"is changed: an expert is made of {adapters}. The method is that of {_PAPER} "
        "(Go et al. 2023), the program "
        "[ppap-framework](https://github.com/ppap-framework/ppap-framework)."
    )
    parts = [f"# {name}", about]
    if picture:
        parts.append(f"![Images that these experts steered]({picture})")
    parts += [
        "## Use",
        f"```\n{_installation(info)}\nppap experts pull {source}\n{_command(name, info)}\n```",
        f"`ppap plugins info {info.guide.component}` shows what `--target` may be.",
        "## Experts",
        _experts(info),
    ]
    own, untouched = info.mean_loss(), info.mean_loss("untouched")
    if own < float("inf") and untouched > 0.0:
        parts.append(
            "The loss is that of the knowledge transfer on held-out images, of the experts and of "
            f"the untouched network. Over all timesteps, the experts have {own / untouched:.1%} of "
            "the untouched network's loss."
        )
    if (curve := _curve(info)) is not None:
        parts += ["## Calibrated scale", *curve]
    facts = {
        "guide": str(info.guide),
        "guide's weights, SHA-256": info.guide.sha256,
        "backend": str(info.backend),
        "backend's weights, SHA-256": info.backend.sha256,
        "noise schedule": info.schedule,
        "parameters of the untouched network": f"{info.network_parameters:,}",
        "training images, SHA-256 of their manifest": info.data_sha256,
        "seed": info.seed,
        "recipe": json.dumps(dict(info.recipe), sort_keys=True) if info.recipe else None,
        "this file, SHA-256": sha256,
    }
    return "\n\n".join([*parts, "## Origin", _facts(facts)])


def _facts(facts: Mapping[str, object]) -> str:
    return _table(("", ""), [(k, f"`{value}`") for k, value in facts.items() if value is not None])


def _named(who: Identity) -> str:
    return f"`{who.component}` (`{who.checkpoint}`)" if who.checkpoint else f"`{who.component}`"


def _options(options: Any) -> str:
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return f" ({said})" if said else ""


def _installation(info: BundleInfo) -> str:
    """The command that installs every plugin of the bundle that is known here."""
    wanted = [("backend", info.backend.component), ("guider", info.guide.component)]
    wanted += [("adapter", adapter.name) for adapter in info.adapters]
    found = ["ppap-framework", "ppap-plugin-hub"]
    for kind, component in wanted:
        try:
            spec = registry().spec(kind, component)  # type: ignore[arg-type]  # one of its kinds
            found.append(registry().provider(spec).distribution)
        except (PpapError, LookupError):  # noqa: PERF203 - a plugin that is not installed here
            continue
    return f"pip install {' '.join(dict.fromkeys(found))}"


def _command(name: str, info: BundleInfo) -> str:
    parts = ["ppap run", "--backend", info.backend.component]
    if info.backend.checkpoint:
        parts += ["--checkpoint", info.backend.checkpoint]
    parts += ["--guider", info.guide.component]
    if info.guide.checkpoint:
        parts += ["--guider-checkpoint", info.guide.checkpoint]
    return " ".join([*parts, "--experts", name])


def _experts(info: BundleInfo) -> str:
    scores = info.metrics.get("experts") or []
    ends = [None, *info.boundaries, None]
    rows = []
    for k, parameters in enumerate(info.expert_parameters):
        score = scores[k] if k < len(scores) and isinstance(scores[k], dict) else {}
        losses = [_number(score.get(what)) for what in ("held_out", "untouched")]
        above, below = (
            ("inf", "-inf")[i] if end is None else f"{end:.3f}"
            for i, end in enumerate(ends[k : k + 2])
        )
        share = parameters / max(info.network_parameters, 1)
        owned = f"{info.timesteps[k]} to {info.timesteps[k + 1] - 1}"
        rows.append((k, owned, f"{above} to {below}", f"{parameters:,} ({share:.1%})", *losses))
    columns = ("expert", "timesteps", "log-SNR", "parameters", "held-out loss", "untouched")
    return _table(columns, rows)


def _curve(info: BundleInfo) -> list[str] | None:
    if info.curve is None:
        return None
    curve: ScaleCurve = info.curve
    rows = [
        (f"{level:.3f}", f"{scale:.4g}", f"{error:.2g}")
        for level, scale, error in zip(curve.log_snr, curve.scales, curve.errors, strict=True)
    ]
    told = "`--scale` multiplies it. At scale 1, the energy is a negative log-likelihood."
    return [told, _table(("log-SNR", "scale", "standard error of its logarithm"), rows)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "unknown"


def _table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
