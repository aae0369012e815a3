"""Experts: adapters for ranges of noise levels in one network, and the files that hold them.

guide = Identity(component="classifier", checkpoint=None, sha256=guide_sha256(model))
experts = ExpertSet(model, NoiseRanges.equal(stage.schedule, 5), {"lora": lora, "bias": bias})
with experts.training(0): ...                       # gradients for experts.parameters(0)
save_bundle(path, experts, describe(experts, stage.schedule, (32, 32), guide=guide, ...))

chosen = choose_experts("auto", "classifier", model, backend)  # None if none match
with chosen.attached(model) as experts:
    prediction = experts.at(level)(images, level)
"""

from ppap_framework.experts.bundle import SUFFIX as SUFFIX
from ppap_framework.experts.bundle import installed_adapter as installed_adapter
from ppap_framework.experts.bundle import load_bundle as load_bundle
from ppap_framework.experts.bundle import read_bundle_info as read_bundle_info
from ppap_framework.experts.bundle import save_bundle as save_bundle
from ppap_framework.experts.bundle import verify_bundle as verify_bundle
from ppap_framework.experts.bundle import write_curve as write_curve
from ppap_framework.experts.choice import BundleFile as BundleFile
from ppap_framework.experts.choice import WantedExperts as WantedExperts
from ppap_framework.experts.choice import bundle_by_name as bundle_by_name
from ppap_framework.experts.choice import check_wanted as check_wanted
from ppap_framework.experts.choice import choose_experts as choose_experts
from ppap_framework.experts.choice import experts_dir as experts_dir
from ppap_framework.experts.choice import find_bundles as find_bundles
from ppap_framework.experts.choice import keep_bundle as keep_bundle
from ppap_framework.experts.choice import same_experts as same_experts
from ppap_framework.experts.choice import same_loss as same_loss
from ppap_framework.experts.choice import uses_experts as uses_experts
from ppap_framework.experts.choice import warn_of_idle as warn_of_idle
from ppap_framework.experts.identity import Identity as Identity
from ppap_framework.experts.identity import InputConvention as InputConvention
from ppap_framework.experts.identity import backend_sha256 as backend_sha256
from ppap_framework.experts.identity import guide_sha256 as guide_sha256
from ppap_framework.experts.identity import weights_sha256 as weights_sha256
from ppap_framework.experts.info import WAIVABLE as WAIVABLE
from ppap_framework.experts.info import AdapterConfig as AdapterConfig
from ppap_framework.experts.info import BundleInfo as BundleInfo
from ppap_framework.experts.info import Present as Present
from ppap_framework.experts.info import describe as describe
from ppap_framework.experts.ranges import NoiseRanges as NoiseRanges
from ppap_framework.experts.scales import RangeScales as RangeScales
from ppap_framework.experts.scales import ScaleCurve as ScaleCurve
from ppap_framework.experts.set import ExpertSet as ExpertSet
from ppap_framework.experts.set import has_experts as has_experts
