"""For authors of plugins: conformance suites, fake components, and a registry of one's own.

    from ppap_testing import GuiderConformance

    class TestEdges(GuiderConformance):
        component = "edges"
        target = "0.3"
        bad_targets = ("dusk",)

pytest collects the checks of the suite. `ppap plugins check edges` runs them without pytest, and
`ppap new` writes a package that has them.
"""

from ppap_testing.adapters import AdapterConformance as AdapterConformance
from ppap_testing.backends import BackendConformance as BackendConformance
from ppap_testing.fakes import FakeBackend as FakeBackend
from ppap_testing.fakes import FakeGuider as FakeGuider
from ppap_testing.guiders import GuiderConformance as GuiderConformance
from ppap_testing.isolation import isolated_registry as isolated_registry
from ppap_testing.losses import TaskLossConformance as TaskLossConformance
from ppap_testing.suite import Conformance as Conformance
from ppap_testing.suite import NotConformingError as NotConformingError
from ppap_testing.suite import Outcome as Outcome
from ppap_testing.suite import run_checks as run_checks
