"""Everything that a plugin imports of this framework, in one place.

    from ppap_framework.author import GuidanceModel, Target, TaskLoss, UsageError

A guider sets `network` and implements `forward` and `target`; a loss implements `energy`; an
adapter is a `ParametrizationAdapter`; a backend has `Stage`s and implements `encode`.

Importing this imports torch. A plugin's spec module is imported whenever plugins are listed and
imports `ppap_framework.plugin` instead; its records are here too.
"""

from ppap_framework.adaptation import *
from ppap_framework.checkpoints import Checkpoint as Checkpoint
from ppap_framework.checkpoints import downloading as downloading
from ppap_framework.checkpoints import downloads_are_off as downloads_are_off
from ppap_framework.checkpoints import in_torch_hub as in_torch_hub
from ppap_framework.checkpoints import load_into as load_into
from ppap_framework.checkpoints import open_checkpoint as open_checkpoint
from ppap_framework.checkpoints import read_architecture as read_architecture
from ppap_framework.checkpoints import save_checkpoint as save_checkpoint
from ppap_framework.classification import *
from ppap_framework.components import *
from ppap_framework.known import *
from ppap_framework.noise import *
from ppap_framework.pixels import *
from ppap_framework.plugin import *
from ppap_framework.predictions import *
from ppap_framework.preprocessing import *
from ppap_framework.targets import weighted_parts as weighted_parts
