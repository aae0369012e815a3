"""A plugin module that imports torch."""

import torch  # noqa: F401  # what is wrong with it

from ppap_broken.plugin import spec_of
from ppap_framework.plugin import hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_guiders():
    return [spec_of("guider", "heavy", "Sound")]
