"""The conformance suite of adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.registry import registry
from ppap_framework.runtime import evaluating
from ppap_testing.fakes import fake_network
from ppap_testing.probes import changed_facts, close, facts, finite, pictures, safetensors_copy
from ppap_testing.suite import Conformance, NotConformingError, require, shared

_EXPERTS = 2


class AdapterConformance(Conformance):
    """Checks of an adapter, on a small network; override `network` for another one."""

    kind = "adapter"

    def network(self) -> nn.Module:
        """A network that the adapter can change, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return fake_network()

    def images(self) -> Tensor:
        """What the network looks at, (B, ...)."""
        return pictures(4, (16, 16))

    @contextlib.contextmanager
    def _attached(self, network: nn.Module | None = None) -> Iterator[tuple[ExpertAdapter, Any]]:
        network = self.network() if network is None else network
        adapter: Any = registry().make(self.spec, self.options)
        adapter.attach(network, _EXPERTS)
        try:
            yield adapter, network
        finally:
            with contextlib.suppress(Exception):
                adapter.detach()

    def _answer(self, network: nn.Module) -> Tensor:
        with torch.no_grad(), evaluating(network):
            return network(self.images().to(next(network.parameters()).dtype))  # type: ignore[no-any-return]  # a module

    def _train(self, adapter: ExpertAdapter, network: nn.Module, index: int) -> Tensor:
        """Two steps of gradient descent in training mode; the answer while unmerged."""
        with adapter.training(index):
            for _ in range(2):
                network.train()
                loss = (network(self.images()) - 3.0 * (index + 1)).square().mean()
                parameters = list(adapter.parameters(index))
                slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)
                with torch.no_grad():
                    for parameter, slope in zip(parameters, slopes, strict=True):
                        parameter.sub_(0.05 * slope)
            network.eval()
            return self._answer(network)

    @shared
    def attaches(self) -> bool:
        with self._attached():
            return True

    @shared
    def trains(self) -> bool:
        self.attaches()
        with self._attached() as (adapter, network):
            return finite(self._train(adapter, network, 0))

    def test_attaching_changes_nothing(self) -> None:
        """attaching leaves the network as it is, bit for bit"""
        self.made(), self.attaches(first=True)
        network = self.network()
        before = facts(network)
        with self._attached(network):
            changed = changed_facts(before, facts(network))
        require(not changed, f"attaching changes {changed}", "change nothing before an expert acts")

    def test_experts_begin_as_no_change(self) -> None:
        """a new expert answers as the untouched network, bit for bit"""
        self.attaches()
        with self._attached() as (adapter, network):
            expected = self._answer(network)
            for index in range(_EXPERTS):
                adapter.activate(index)
                require(
                    torch.equal(self._answer(network), expected),
                    "a new expert answers differently from the untouched network",
                    "begin at P(W) = W exactly: such as W + B A with B = 0",
                )

    def test_only_experts_are_trained(self) -> None:
        """in `training`, the expert's parameters require gradients, and no others do"""
        self.attaches()
        with self._attached() as (adapter, network):
            with adapter.training(0):
                own = {id(parameter) for parameter in adapter.parameters(0)}
                trained = {id(p) for p in network.parameters() if p.requires_grad}
                free = all(p.requires_grad for p in adapter.parameters(0))
            require(
                own and free and trained <= own,
                "in `training`, other parameters require gradients, or the expert's own do not",
                "freeze the network there, and return the expert's parameters in `parameters`",
            )

    def test_experts_learn(self) -> None:
        """a gradient step changes what an expert answers, and every parameter has a part in it"""
        self.trains(first=True)
        with self._attached() as (adapter, network):
            before = self._answer(network)
            begun = [parameter.detach().clone() for parameter in adapter.parameters(0)]
            after = self._train(adapter, network, 0)
            idle = [
                list(old.shape)
                for old, new in zip(begun, adapter.parameters(0), strict=True)
                if torch.equal(old, new)
            ]
        require(
            not torch.equal(before, after) and finite(after),
            "an expert answers the same after two gradient steps",
            "let the parametrization depend on its parameters differentiably",
        )
        require(
            not idle,
            f"parameters of the shapes {idle[:3]} have no gradient",
            "leave out parameters that are not used, and begin at no point where all slopes are 0",
        )

    def test_experts_are_independent(self) -> None:
        """training an expert changes neither the others nor the network"""
        self.trains()
        with self._attached() as (adapter, network):
            adapter.activate(1)
            other = self._answer(network)
        with self._attached() as (adapter, network):
            untouched = self._answer(network)
            self._train(adapter, network, 0)
            require(
                torch.equal(self._answer(network), untouched),
                "after training an expert, the network itself answers differently",
                "train copies; only the expert's own tensors may change",
            )
            adapter.activate(1)
            require(
                torch.equal(self._answer(network), other),
                "training expert 0 changes expert 1",
                "make new parameters for each expert",
            )

    def test_merging_changes_no_answer(self) -> None:
        """an expert answers the same merged as while it is trained"""
        self.trains()
        with self._attached() as (adapter, network):
            trained = self._train(adapter, network, 0)
            adapter.activate(0)
            require(
                close(self._answer(network), trained, 1e-4),
                "a merged expert answers differently from the trained one",
                "merge exactly what `training` computes with; mind the scale",
            )

    def test_the_network_is_restored(self) -> None:
        """without an expert the network is what it was, bit for bit"""
        self.trains()
        network = self.network()
        before = facts(network)
        with self._attached(network) as (adapter, _):
            self._train(adapter, network, 0)
            network.train()
            for index in (0, 1, 0, None):
                adapter.activate(index)
            changed = changed_facts(before, facts(network))
        require(
            not changed,
            f"after `activate(None)` {changed} of the network differ",
            "keep a copy of the weights, and copy it back: subtracting does not restore every bit",
        )

    def test_detaching_restores_all(self) -> None:
        """after `detach` the network is as it was found, and can be adapted again"""
        self.trains()
        network = self.network()
        before = facts(network)
        with self._attached(network) as (adapter, _):
            self._train(adapter, network, 0)
            network.train()
            adapter.activate(1)
            adapter.detach()
            changed = changed_facts(before, facts(network))
            require(
                not changed,
                f"after `detach` {changed} of the network differ",
                "remove hooks, modules and flags again, and restore the weights",
            )
            try:
                adapter.attach(network, 1)
            except Exception as error:
                raise NotConformingError(
                    f"it cannot be attached again: {error}", "forget the network in `detach`"
                ) from error

    def test_names_of_tensors(self) -> None:
        """tensors are called INDEX.NAME, after those of the network"""
        self.attaches()
        with self._attached() as (adapter, network):
            names = [*network.state_dict()]
            for name in adapter.state_dict():
                index, _, rest = name.partition(".")
                require(
                    index.isdigit() and any(rest.startswith(own) for own in names),
                    f"a tensor of the state dict is called {name!r}",
                    'call it "INDEX.NAME", where NAME begins with the name of the adapted tensor',
                )

    def test_experts_are_saved(self) -> None:
        """experts can be saved as safetensors, and loaded into another adapter"""
        self.trains()
        with self._attached() as (adapter, network):
            self._train(adapter, network, 0)
            adapter.activate(0)
            expected = self._answer(network)
            state = safetensors_copy(adapter.state_dict())
        with self._attached() as (other, network):
            other.load_state_dict(state)
            other.activate(0)
            found = self._answer(network)
        require(
            torch.equal(found, expected),
            "an expert that was saved and loaded answers differently",
            "have every tensor of an expert in `state_dict`",
        )

    def test_experts_of_others_are_refused(self) -> None:
        """a state that does not fit is refused, and nothing of it is loaded"""
        self.trains()
        with self._attached() as (adapter, network):
            self._train(adapter, network, 0)
            state = safetensors_copy(adapter.state_dict())
            last = list(adapter.state_dict())[-1]  # safetensors keeps no order
            wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            wrong[last] = torch.zeros(7, 7, 7)
            for given in (wrong, {n: x for n, x in wrong.items() if n != last}):
                with contextlib.suppress(AssetError):
                    adapter.load_state_dict(given)
                    raise NotConformingError(
                        "a state with a missing or misshapen tensor is accepted",
                        "compare names and shapes first, and raise AssetError",
                    )
            left = adapter.state_dict()
            require(
                all(torch.equal(tensor, left[name]) for name, tensor in state.items()),
                "a part of a state that is refused was loaded",
                "check all of it before anything is copied",
            )

    def test_experts_that_are_not_there(self) -> None:
        """an index without an expert is an IndexError"""
        self.attaches()
        with self._attached() as (adapter, _):
            for call in (adapter.activate, adapter.parameters, adapter.training):
                try:
                    found: Any = call(_EXPERTS)
                    if call == adapter.training:
                        with found:
                            pass
                    elif found is not None:
                        list(found)
                except IndexError:
                    continue
                except Exception as error:
                    if isinstance(error.__cause__, IndexError):
                        continue
                    fault = f"expert {_EXPERTS} of {_EXPERTS} is a {type(error).__name__}"
                    raise NotConformingError(fault, "raise IndexError") from error
                raise NotConformingError(
                    f"`{call.__name__}({_EXPERTS})` of {_EXPERTS} experts raises nothing",
                    "raise IndexError for an index without an expert",
                )

    def test_nothing_to_adapt(self) -> None:
        """a network without anything to adapt is refused with a hint"""
        self.attaches()
        try:
            with self._attached(nn.Flatten()):
                pass
        except UsageError as error:
            require(error.hint, "the refusal has no hint", "say which networks it can adapt")
        except Exception as error:
            fault = f"for a network without parameters it raises {type(error).__name__}: {error}"
            raise NotConformingError(fault, "raise UsageError with a hint") from error
        else:
            raise NotConformingError(
                "it is attached to a network without parameters",
                "raise UsageError if there is nothing to adapt: its experts could not learn",
            )

    def test_modes_are_left_alone(self) -> None:
        """the training mode stays what the caller chose"""
        self.attaches()
        for mode in (True, False):
            own = [*(network := self.network().train(mode)).modules()]
            with self._attached(network) as (adapter, _):
                adapter.activate(0)
                seen = [module.training for module in own]
                with adapter.training(0):
                    seen += [module.training for module in own]
                seen += [module.training for module in own]
            require(
                all(found == mode for found in seen),
                "the adapter changes the network's training mode",
                "leave train() and eval() to the caller",
            )

    def test_other_precisions(self) -> None:
        """a network in bfloat16 stays in bfloat16"""
        self.attaches()
        with self._attached(self.network().bfloat16()) as (adapter, network):
            expected = self._answer(network)
            adapter.activate(0)
            kept = all(tensor.dtype == torch.bfloat16 for tensor in network.parameters()) and close(
                self._answer(network), expected, 0.1
            )
        require(
            kept,
            "a new expert changes the precision or the answers of a network in bfloat16",
            "return P(W) in the dtype of W: .to(weight.dtype)",
        )

    def test_parameters_stay_the_same_objects(self) -> None:
        """`parameters` returns the same objects every time"""
        self.trains()
        with self._attached() as (adapter, network):
            before = list(adapter.parameters(0))
            self._train(adapter, network, 0)
            adapter.activate(0)
            adapter.activate(None)
            after = list(adapter.parameters(0))
        require(
            len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)),
            "`parameters` returns other objects after training",
            "keep the parameters: optimizers hold them",
        )
