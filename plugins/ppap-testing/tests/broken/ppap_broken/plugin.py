"""Specs of the broken components: their names say what is wrong, a check is named in each class."""

from ppap_framework.plugin import (
    AdapterSpec,
    BackendSpec,
    GuiderSpec,
    TaskLossSpec,
    hookimpl,
)

PPAP_API = (1, 0)

SPECS = {
    "guider": (
        GuiderSpec,
        {"task": "colour", "default_loss": "colour-loss", "needs_checkpoint": False},
    ),
    "backend": (BackendSpec, {"needs_checkpoint": False}),
    "loss": (TaskLossSpec, {"task": "classification"}),
    "adapter": (AdapterSpec, {}),
}
CHECKS = {
    "guider": {
        "Unmakeable": "it_can_be_made",
        "Pixelwise": "predictions",
        "OneSize": "images_of_any_size",
        "BatchNormalized": "images_are_read_independently",
        "Random": "the_same_image_is_read_the_same",
        "Switching": "modes_are_left_alone",
        "Counting": "weights_are_left_alone",
        "InPlace": "images_are_left_alone",
        "FarTarget": "the_energy_fits",
        "Rounded": "the_gradient_guides",
        "HalfDetached": "the_gradient_is_right",
        "Unregistered": "the_network_belongs_to_it",
        "OnTheCpu": "other_devices",
        "Scattering": "lower_precision",
        "Listening": "noise_levels",
        "Training": "it_is_made_in_evaluation_mode",
        "Rambling": "the_target",
        "TwoColours": "pictures_as_targets",
        "Careless": "any_target_ends_in_one_line",
        "Gullible": "bad_targets_are_refused",
        "Glaring": "drawings",
        "Chatty": "descriptions",
        "ExtraState": "weights_are_saved",
        "Locked": "it_is_copied",
    },
    "backend": {
        "Unmakeable": "it_can_be_made",
        "Twins": "stages",
        "InfiniteAtTheEnd": "predictions",
        "NextTimestep": "the_schedule_is_kept",
        "NotPreserving": "eps_and_x0_agree",
        "FaintNoise": "the_schedule_is_monotone",
        "FirstTimestep": "images_are_denoised_independently",
        "Random": "the_same_image_is_denoised_the_same",
        "Counting": "nothing_else_is_changed",
        "Deaf": "prompts",
        "Exploding": "it_draws",
        "Adding": "it_removes_noise",
        "Detached": "it_is_differentiable",
        "ExtraState": "weights_are_saved",
        "Branching": "its_cost_is_known",
        "Lambda": "it_is_pickled",
    },
    "loss": {
        "Unmakeable": "it_can_be_made",
        "LogOfZero": "energies",
        "FirstOnly": "one_target_serves_all",
        "BatchMean": "images_are_compared_independently",
        "Counted": "the_gradient_guides",
        "HalfDetached": "the_gradient_is_right",
        "Likelihood": "lower_is_closer",
        "InPlace": "arguments_are_left_alone",
        "Reversed": "experts_learn_from_it",
        "Norm": "experts_begin_at_their_teacher",
        "Undefined": "metrics",
    },
    "adapter": {
        "Unmakeable": "it_can_be_made",
        "Touching": "attaching_changes_nothing",
        "Random": "experts_begin_as_no_change",
        "Unfrozen": "only_experts_are_trained",
        "Idle": "experts_learn",
        "Common": "experts_are_independent",
        "Doubled": "merging_changes_no_answer",
        "Subtracting": "the_network_is_restored",
        "Leaving": "detaching_restores_all",
        "Nameless": "names_of_tensors",
        "Forgetful": "experts_are_saved",
        "Eager": "experts_of_others_are_refused",
        "Modular": "experts_that_are_not_there",
        "Content": "nothing_to_adapt",
        "Evaluating": "modes_are_left_alone",
        "Widening": "other_precisions",
        "Renewing": "parameters_stay_the_same_objects",
    },
}
"""The check that alone catches each broken component; `Sound` of each kind has no fault."""
COMMON = {
    "guider-no-licence": "the_spec_is_complete",
    "guider-wrong-loss": "what_the_spec_names_is_there",
    "guider-undescribed": "options_are_described",
    "guider-untyped": "options_are_described",
    "heavy": "listing_it_imports_no_torch",
}
"""The same for checks of every kind."""


def name_of(cls):
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in cls).strip("-")


def spec_of(kind, name, cls, **changes):
    spec, more = SPECS[kind]
    home = "ppap_broken.losses" if kind == "loss" else f"ppap_broken.{kind}s"
    fields = {"name": name, "summary": "Broken.", "licence": "CC0-1.0", **more}
    return spec(**{**fields, "factory": f"{home}:{cls}", **changes})


def specs(kind):
    return [spec_of(kind, f"{kind}-{name_of(cls)}", cls) for cls in ("Sound", *CHECKS[kind])]


@hookimpl
def ppap_guiders():
    options = {"undescribed": "Undescribed", "untyped": "Untyped"}.items()
    return [
        *specs("guider"),
        spec_of("guider", "guider-no-licence", "Sound", licence=None),
        spec_of("guider", "guider-wrong-loss", "Sound", default_loss="grey-loss"),
        *(
            spec_of("guider", f"guider-{name}", "Sound", options=f"ppap_broken.options:{cls}")
            for name, cls in options
        ),
    ]


@hookimpl
def ppap_backends():
    return specs("backend")


@hookimpl
def ppap_task_losses():
    others = [
        spec_of("loss", f"{task}-loss", "ColourLoss", task=task) for task in ("colour", "grey")
    ]
    return [*specs("loss"), *others]


@hookimpl
def ppap_expert_adapters():
    return specs("adapter")
