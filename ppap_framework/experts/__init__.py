"""Experts: adapters for ranges of noise levels in one network, and the files that hold them.

guide = Identity(component="classifier", checkpoint=None, sha256=guide_sha256(model))
experts = ExpertSet(model, NoiseRanges.equal(stage.schedule, 5), {"lora": lora, "bias": bias})
with experts.training(0): ...                       # gradients for experts.parameters(0)
save_bundle(path, experts, describe(experts, stage.schedule, (32, 32), guide=guide, ...))

chosen = choose_experts("auto", "classifier", model, backend)  # None if none match
with chosen.attached(model) as experts:
    prediction = experts.at(level)(images, level)
"""

from __future__ import annotations

from ppap_framework.experts.bundle import (
    SUFFIX,
    installed_adapter,
    load_bundle,
    read_bundle_info,
    save_bundle,
    verify_bundle,
    write_curve,
)
from ppap_framework.experts.choice import (
    BundleFile,
    WantedExperts,
    bundle_by_name,
    check_wanted,
    choose_experts,
    experts_dir,
    find_bundles,
    keep_bundle,
    same_experts,
    uses_experts,
    warn_of_idle,
)
from ppap_framework.experts.identity import (
    Identity,
    InputConvention,
    backend_sha256,
    guide_sha256,
    weights_sha256,
)
from ppap_framework.experts.info import WAIVABLE, AdapterConfig, BundleInfo, describe
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.experts.scales import RangeScales, ScaleCurve
from ppap_framework.experts.set import ExpertSet, has_experts

__all__ = [
    "SUFFIX",
    "WAIVABLE",
    "AdapterConfig",
    "BundleFile",
    "BundleInfo",
    "ExpertSet",
    "Identity",
    "InputConvention",
    "NoiseRanges",
    "RangeScales",
    "ScaleCurve",
    "WantedExperts",
    "backend_sha256",
    "bundle_by_name",
    "check_wanted",
    "choose_experts",
    "describe",
    "experts_dir",
    "find_bundles",
    "guide_sha256",
    "has_experts",
    "installed_adapter",
    "keep_bundle",
    "load_bundle",
    "read_bundle_info",
    "same_experts",
    "save_bundle",
    "uses_experts",
    "verify_bundle",
    "warn_of_idle",
    "weights_sha256",
    "write_curve",
]
