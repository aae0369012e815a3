"""Runs from Python: `backend`, `guide` and `sample`; plans, the image loop, run folders."""

from __future__ import annotations

from ppap_framework.run.backend import FoundBackend as FoundBackend
from ppap_framework.run.backend import LoadedBackend as LoadedBackend
from ppap_framework.run.backend import backend as backend
from ppap_framework.run.backend import find_backend as find_backend
from ppap_framework.run.drawing import Drawing as Drawing
from ppap_framework.run.drawing import drawing as drawing
from ppap_framework.run.estimate import Counts as Counts
from ppap_framework.run.estimate import counts_of as counts_of
from ppap_framework.run.estimate import first_batch as first_batch
from ppap_framework.run.folder import RunFolder as RunFolder
from ppap_framework.run.folder import check_folder as check_folder
from ppap_framework.run.folder import fresh_folder as fresh_folder
from ppap_framework.run.grid import MAX_IMAGES as MAX_IMAGES
from ppap_framework.run.init_image import read_picture as read_picture
from ppap_framework.run.module_guide import FunctionLoss as FunctionLoss
from ppap_framework.run.module_guide import ModuleGuide as ModuleGuide
from ppap_framework.run.plan import Plan as Plan
from ppap_framework.run.plan import guide_origin as guide_origin
from ppap_framework.run.plan import option_words as option_words
from ppap_framework.run.plan import plan as plan
from ppap_framework.run.plan import scale_words as scale_words
from ppap_framework.run.request import GuideRequest as GuideRequest
from ppap_framework.run.request import Loss as Loss
from ppap_framework.run.request import guide as guide
from ppap_framework.run.result import Result as Result
from ppap_framework.run.sample import draw as draw
from ppap_framework.run.sample import sample as sample
from ppap_framework.run.sample import warn_of_futility as warn_of_futility
from ppap_framework.run.settings import UNGUIDED as UNGUIDED
from ppap_framework.run.settings import Compute as Compute
from ppap_framework.run.settings import Sampling as Sampling
from ppap_framework.run.settings import changed as changed
from ppap_framework.run.settings import check as check
