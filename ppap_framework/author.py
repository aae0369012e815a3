"""Everything that a plugin imports of this framework, in one place.

    from ppap_framework.author import GuidanceModel, Target, TaskLoss, UsageError

A guider implements `network`, `forward` and `target`; a loss `energy`; an adapter is a
`ParametrizationAdapter`, given what it changes; a backend is `Stage`s and `encode`. Everything else
has a default that may be overridden.

Importing this imports torch. A plugin's spec module, which is imported whenever plugins are listed,
imports `ppap_framework.plugin` instead: its records are here too.
"""

from ppap_framework.adaptation import Adaptation, ParametrizationAdapter
from ppap_framework.checkpoints import (
    Checkpoint,
    asking_hub,
    asking_torch_hub,
    downloads_are_off,
    in_torch_hub,
    load_into,
    open_checkpoint,
    read_architecture,
    save_checkpoint,
)
from ppap_framework.classification import (
    class_target,
    describe_top_class,
    draw_top_classes,
    find_class,
)
from ppap_framework.components import (
    CascadedStage,
    CascadeSampling,
    DiffusionBackend,
    ExpertAdapter,
    GuidanceModel,
    Prediction,
    Stage,
    Target,
    TargetInput,
    TaskLoss,
    VarianceKind,
)
from ppap_framework.noise import (
    NoiseLevel,
    NoiseSchedule,
    cosine_schedule,
    linear_schedule,
    noise_schedule,
)
from ppap_framework.pixels import from_uint8, scaled, to_pil, to_uint8
from ppap_framework.plugin import (
    PPAP_API,
    AdapterSpec,
    Asset,
    AssetError,
    AssetFile,
    BackendSpec,
    Card,
    ComponentKind,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
    PluginError,
    PpapError,
    TaskLossSpec,
    UsageError,
    hookimpl,
)
from ppap_framework.predictions import each_tensor, joined, widened
from ppap_framework.preprocessing import Preprocessing, PreprocessingGuide
from ppap_framework.transformers_models import (
    ImageInput,
    ModelFiles,
    Task,
    find_model,
    load_network,
    make_input,
)
