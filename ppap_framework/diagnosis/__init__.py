"""What a network still understands at each noise level, and boundaries for experts."""

from ppap_framework.diagnosis.disagreement import disagreement as disagreement
from ppap_framework.diagnosis.disagreement import distances as distances
from ppap_framework.diagnosis.disagreement import evenly_spaced as evenly_spaced
from ppap_framework.diagnosis.disagreement import level_means as level_means
from ppap_framework.diagnosis.disagreement import noised as noised
from ppap_framework.diagnosis.proposal import MOST_EXPERTS as MOST_EXPERTS
from ppap_framework.diagnosis.proposal import propose_boundaries as propose_boundaries
from ppap_framework.diagnosis.proposal import propose_number as propose_number
from ppap_framework.diagnosis.proposal import rising_fit as rising_fit
