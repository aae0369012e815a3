"""Knowledge transfer without data: the diffusion model draws the training images."""

from ppap_framework.learn.calibration import calibrate as calibrate
from ppap_framework.learn.calibration import kept_curve as kept_curve
from ppap_framework.learn.plan import load_teacher as load_teacher
from ppap_framework.learn.recipe import Adapters as Adapters
from ppap_framework.learn.recipe import Recipe as Recipe
from ppap_framework.learn.transfer import adapt as adapt
from ppap_framework.learn.transfer import check_adapt as check_adapt
from ppap_framework.learn.transfer import check_transfer as check_transfer
from ppap_framework.learn.transfer import transfer as transfer
