"""What this distribution supplies."""

from __future__ import annotations

from ppap_framework.plugin import GuiderSpec, ReleasedExperts, TaskLossSpec, hookimpl

PPAP_API = (1, 0)

_RAW = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # images stay in [-1, 1]
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_RESIZE = {"interpolation": "bilinear", "antialias": True}


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `classifier`."""
    return [
        GuiderSpec(
            name="classifier",
            summary="Any classifier of timm, torchvision or transformers, by name or file",
            factory="ppap_plugin_classifier.guider:make_classifier",
            options="ppap_plugin_classifier.options:ClassifierOptions",
            task="classification",
            default_loss="cross-entropy",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `cross-entropy`."""
    return [
        TaskLossSpec(
            name="cross-entropy",
            summary="Cross-entropy with the target class; KL divergence from teacher to student",
            factory="ppap_plugin_classifier.loss:CrossEntropy",
            options="ppap_plugin_classifier.options:CrossEntropyOptions",
            task="classification",
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_assets() -> list[ReleasedExperts]:
    """How the released experts of ResNet-50 and DeiT-S are to be read."""
    return [
        ReleasedExperts(
            name="resnet50",
            guider="classifier",
            model="resnet50.tv2_in1k",
            targets="conv1,layer*.conv1,layer*.conv2",
            alpha=8.0,
            # At their own size. The teacher alone is shown normalised ones.
            preprocessing={"size": None, **_RAW, **_RESIZE},
        ),
        ReleasedExperts(
            name="deit-s",
            guider="classifier",
            model="deit_small_patch16_224.fb_in1k",
            targets="blocks.*.attn.qkv,blocks.*.attn.proj",
            alpha=None,  # only merging multiplies by alpha / rank there, and nothing is merged
            # Adapters come with a normalisation, and the network they are put into resizes.
            preprocessing={"size": 224, **_IMAGENET, **_RESIZE},
            network_preprocessing={"size": 224, **_RAW, **_RESIZE},
        ),
    ]
