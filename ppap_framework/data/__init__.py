"""Training images: drawn by the diffusion model, or labelled ones from a file."""

from ppap_framework.data.folder import SyntheticData as SyntheticData
from ppap_framework.data.images import Images as Images
from ppap_framework.data.images import LabelledImages as LabelledImages
from ppap_framework.data.synthesize import check_synthesis as check_synthesis
from ppap_framework.data.synthesize import synthesize as synthesize
