"""Folders and hub names of pipelines: checked before anything is read, and loaded.

A pipeline is a folder with `model_index.json`, which names the class of each component, and a
folder for each component. Weights are safetensors only, and no code that comes with them is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    UsageError,
    downloading,
    downloads_are_off,
    open_checkpoint,
)
from ppap_plugin_diffusers.families import UPSAMPLER, Family, family_of

__all__ = ["load_decoder", "load_pipeline", "load_upsampler", "open_pipeline"]

_log = logging.getLogger(__name__)

_INDEX = "model_index.json"
_HUB = re.compile(r"(?P<repository>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LIBRARIES = ("diffusers", "transformers")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)\b")


def open_pipeline(wanted: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint of a folder, or of "owner/name" or "owner/name@revision" of the hub; or of two
    joined by "+", the stages of a cascade.

    Raises:
        AssetError: If it is no pipeline, of no family that is built, wants code of its own to be
            run, or a component is missing, damaged or pickled.
        UsageError: If it is neither a folder nor a name of the hub.
    """
    text = os.fspath(wanted)
    if "+" in text and not os.path.exists(os.path.expanduser(text)):  # noqa: PTH110, PTH111
        return _joined([_opened(part, also=(UPSAMPLER,)) for part in text.split("+")])
    return _opened(text)


def _joined(stages: Sequence[Checkpoint]) -> Checkpoint:
    names = [stage.architecture["class"] for stage in stages]
    if names != ["IFPipeline", *UPSAMPLER.pipelines]:
        fault = f"{' and '.join(names)} are no stages of one model"
        hint = f"of DeepFloyd IF: an IFPipeline and an {UPSAMPLER.pipelines[0]}"
        raise AssetError(fault, hint=hint)
    first, later = stages
    architecture = {**first.architecture, "later": later.architecture["folder"]}
    files = {**first.files, **{path: f"later.{name}" for path, name in later.files.items()}}
    return Checkpoint(f"{first.name}+{later.name}", files, architecture)


def _opened(text: str, also: Sequence[Family] = ()) -> Checkpoint:
    path = Path(os.path.expanduser(text))  # noqa: PTH111  # pathlib's raises
    if os.path.isfile(path):  # noqa: PTH113  # pathlib's raises
        hint = f"a pipeline is a folder with {_INDEX}"
        raise UsageError(f"{text!r} is a file, and no pipeline of diffusers", hint=hint)
    is_folder = os.path.isdir(path)  # noqa: PTH112  # pathlib's raises
    folder = path if is_folder else _downloaded(text)
    index = _read(folder / _INDEX)
    stated = index.get("_class_name")
    if not isinstance(stated, str):
        _refuse_code(folder, "its pipeline", stated)
    family = family_of(str(stated), also)
    files: dict[Path, str] = {}
    for name in family.networks:
        library, kind = _component(folder, index, name)
        if kind is None and name in family.optional:
            continue
        if kind is None:
            hint = f"a {stated} has {', '.join(family.networks)}"
            raise AssetError(f"the {stated} in {str(folder)!r} has no {name}", hint=hint)
        if library not in _LIBRARIES:
            _refuse_code(folder, name, f"{library}.{kind}")
        files |= dict.fromkeys(_weights(folder, name), f"{name}.")
        _read(folder / name / "config.json")
    for name, value in index.items():
        if isinstance(value, list) and name not in (*family.networks, *_UNUSED):
            library, kind = _component(folder, index, name)
            if library is not None and library not in _LIBRARIES:
                _refuse_code(folder, name, f"{library}.{kind}")
            if kind is not None and name == "scheduler":
                _read(folder / name / "scheduler_config.json")
            elif kind is not None:
                _place(folder, name)
    name = path.resolve().name if is_folder else text
    return Checkpoint(name, files, {"folder": str(folder), "class": stated})


def load_pipeline(checkpoint: Checkpoint) -> Any:
    """The pipeline of a checkpoint, frozen and in evaluation mode; AssetError if it fails.

    Args:
        checkpoint: What `open_pipeline` made, or a card's, which is the denoiser's file in its
            folder in the pipeline's.
    """
    import diffusers

    if "folder" not in checkpoint.architecture:
        opened = open_pipeline(checkpoint.path.parents[1])
        checkpoint = attrs.evolve(opened, dtype=checkpoint.dtype)
    folder, stated = Path(checkpoint.architecture["folder"]), checkpoint.architecture["class"]
    family, index = family_of(stated), _read(folder / _INDEX)
    parts: dict[str, Any] = {name: None for name in _UNUSED if name in index}
    with _loading(folder):
        made_of = getattr(diffusers, stated)  # importing it adds classes to transformers
        for name in family.networks:
            library, kind = _component(folder, index, name)
            if kind is not None:
                dtype = checkpoint.dtype or torch.float32
                parts[name] = _network(folder / name, library, kind, dtype=dtype)
        return made_of.from_pretrained(
            str(folder),
            **parts,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )


def load_upsampler(checkpoint: Checkpoint) -> Any:
    """The second pipeline of `open_pipeline`, without encoders of texts, frozen and in evaluation
    mode; None if it opened one. AssetError if it fails.
    """
    if "later" not in checkpoint.architecture:
        return None
    import diffusers

    folder = Path(checkpoint.architecture["later"])
    unused = ("safety_checker", "feature_extractor", "watermarker", "text_encoder", "tokenizer")
    parts: dict[str, Any] = dict.fromkeys(unused)
    with _loading(folder):
        dtype = checkpoint.dtype or torch.float32
        unet = _network(folder / "unet", "diffusers", "UNet2DConditionModel", dtype=dtype)
        return diffusers.IFSuperResolutionPipeline.from_pretrained(
            str(folder), unet=unet, **parts, requires_safety_checker=False, local_files_only=True
        )


def load_decoder(folder: str, family: Family) -> nn.Module:
    """A decoder of latents from a folder with a config and safetensors, frozen.

    Raises:
        UsageError: If the family has no latents.
        AssetError: If the folder holds no decoder, or it is damaged or pickled.
    """
    if family.decoder is None:
        raise UsageError(f"{family.name} have no latents", hint="leave out the option vae")
    path = Path(os.path.expanduser(folder))  # noqa: PTH111  # pathlib's raises
    if not os.path.isdir(path):  # noqa: PTH112  # pathlib's raises
        hint = "name the folder of an AutoencoderTiny, say"
        raise UsageError(f"the decoder {folder!r} is no folder", hint=hint)
    stated = _read(path / "config.json").get("_class_name")
    if stated not in ("AutoencoderTiny", "AutoencoderKL", "VQModel"):
        hint = "an AutoencoderTiny, an AutoencoderKL or a VQModel is wanted"
        raise AssetError(f"{folder!r} holds a {stated}", hint=hint)
    _weights(path, "")
    with _loading(path):
        return _network(path, "diffusers", stated)


def _network(folder: Path, library: str, kind: str, **how: Any) -> nn.Module:
    """A network of a folder, frozen and in evaluation mode.

    The libraries fill in tensors that the weights lack at random, and say so only in their logs.

    Raises:
        AssetError: If the weights lack tensors of the network.
    """
    network, told = getattr(importlib.import_module(library), kind).from_pretrained(
        str(folder),
        **how,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
        output_loading_info=True,
    )
    if missing := sorted(told["missing_keys"]):
        fault = f"the weights in {str(folder)!r} lack {len(missing)} of the tensors of {kind}"
        hint = "fetch it again; its config and weights are of different models"
        raise AssetError(f"{fault}, such as {missing[0]}", hint=hint)
    if extra := sorted(told["unexpected_keys"]):
        words = "%r: %s does not use %d tensors, such as %s"
        _log.warning(words, str(folder), kind, len(extra), extra[0])
    frozen: nn.Module = network.requires_grad_(False).eval()
    return frozen


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """A context in which diffusers and transformers say nothing, and errors are of one line."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    from diffusers.utils import logging as own
    from transformers.utils import logging as others

    shown = [bars for bars in (own, others) if bars.is_progress_bar_enabled()]
    for bars in shown:
        bars.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AssetError:
        raise
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever configs and tensors that do not fit cause
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        hint = "its configs and weights are of different models, or of another version of diffusers"
        raise AssetError(f"{str(folder)!r} cannot be loaded: {reason}", hint=hint) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for bars in shown:
            bars.enable_progress_bar()


def _component(folder: Path, index: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Library and class of a component."""
    value = index.get(name)
    if value is None:
        return None, None
    if not isinstance(value, list) or len(value) != 2:
        fault = f"{str(folder / _INDEX)!r} does not say what its {name} is"
        raise AssetError(fault, hint="fetch it again")
    return value[0], value[1]


def _place(folder: Path, name: str) -> Path:
    """The folder of a component."""
    place = folder / name if name else folder
    if not place.is_dir():
        fault = f"the pipeline in {str(folder)!r} has no folder for its {name}"
        raise AssetError(fault, hint="fetch it again; it is incomplete")
    return place


def _weights(folder: Path, name: str) -> list[Path]:
    """The files of a component's weights, verified as containers."""
    place = _place(folder, name)
    whole = name or "the decoder"
    found = [path for path in sorted(place.glob("*.safetensors")) if not _VARIANT.search(path.name)]
    if not found:
        if any(True for pattern in _PICKLES for _ in place.glob(pattern)):
            fault = f"{whole} in {str(folder)!r} is pickled, and pickles may run code"
            hint = "save it with pipe.save_pretrained(FOLDER), which writes safetensors"
            raise AssetError(fault, hint=hint)
        fault = f"{whole} in {str(folder)!r} has no weights"
        hint = "fetch it again; safetensors are wanted, and no variant such as fp16"
        raise AssetError(fault, hint=hint)
    for path in found:
        open_checkpoint(path)
    return found


def _refuse_code(folder: Path, what: str, stated: object) -> None:
    words = " ".join(map(str, stated)) if isinstance(stated, list) else stated
    fault = f"{what} in {str(folder)!r} wants code of its own to be run ({words}); nothing was run"
    hint = "load it yourself, if you trust it, and give the pipeline to ppap_framework.backend"
    raise AssetError(fault, hint=hint)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is no pipeline: it" if path.name == _INDEX else "is incomplete: it"
        hint = f"a pipeline of diffusers is a folder with {_INDEX} and its components"
        raise AssetError(f"{str(path.parent)!r} {what} has no {path.name}", hint=hint)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AssetError(f"{str(path)!r} cannot be read: {error}", hint="fetch it again") from error
    if not isinstance(content, dict):
        raise AssetError(f"{str(path)!r} is no JSON object", hint="fetch it again")
    return content


def _downloaded(text: str) -> Path:
    """The folder of a pipeline of the hub: configs, tokenizers and safetensors."""
    named = _HUB.fullmatch(text)
    if named is None:
        fault = f"{text!r} is neither a folder that exists nor a name of the hub"
        raise UsageError(fault, hint=f"give a folder with {_INDEX}, or owner/name")
    from huggingface_hub import snapshot_download

    hint = f"download {named['repository']} elsewhere and give its folder"
    with downloading(f"pipeline {text!r}", hint):
        found = snapshot_download(
            named["repository"],
            revision=named["revision"],
            allow_patterns=["*.json", "*.txt", "*.model", "*/*.safetensors"],
            ignore_patterns=["*.fp16.*", "*.non_ema.*", "*.bf16.*"],
            local_files_only=downloads_are_off(),
        )
    return Path(found)
