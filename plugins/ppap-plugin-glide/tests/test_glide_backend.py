"""The backend: guidance without a classifier, the upsampler, and what cannot be."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from glide_files import (
    BASE,
    CONFIG,
    PROCESS,
    UPSAMPLER,
    VOCABULARY,
    glide,
    letters,
    random_state,
    stage,
    stated,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.checkpoints import join_checkpoints, open_checkpoint, save_checkpoint
from ppap_framework.cli import main
from ppap_framework.components import CascadedStage, CascadeSampling
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.registry import registry
from ppap_plugin_glide import conversion, released
from ppap_plugin_glide.backend import Condition, GlideBackend, make_glide
from ppap_plugin_glide.options import GlideOptions
from ppap_plugin_glide.tokens import PromptTokens, read_tokenizer

PROMPTS = ["a cat", "", "a red cube on a mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glide")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return glide(folder).path


@pytest.fixture(scope="module")
def backend(folder: Path, file: Path) -> GlideBackend:
    return make_glide(GlideOptions(cfg=3.0), glide(folder))


def noisy(size: int = 4, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator), torch.tensor([0, 40, 99])[:batch]


def said(backend: GlideBackend, prompts: list[str], **given: Any) -> Tensor:
    """What the base's network itself says."""
    network: Any = backend.stages[0].network
    texts = backend.encode(prompts, len(prompts)).texts
    x_t, t = noisy(batch=len(prompts))
    with torch.no_grad():
        output: Tensor = network(x_t, t, tokens=texts.tokens, mask=texts.mask)
    return output


class TestBase:
    def test_guides_by_the_difference_to_the_empty_prompt(self, backend: GlideBackend) -> None:
        with_prompt, without = said(backend, PROMPTS), said(backend, [""] * 3)
        prediction = backend.stages[0].denoise(*noisy(), backend.encode(PROMPTS, 3))
        expected = without[:, :3] + 3.0 * (with_prompt - without)[:, :3]
        torch.testing.assert_close(prediction.eps, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(prediction.variance, with_prompt[:, 3:], atol=1e-3, rtol=1e-3)
        assert (expected - with_prompt[:, :3])[[0, 2]].abs().amax((1, 2, 3)).min() > 0.01
        torch.testing.assert_close(prediction.eps[1], without[1, :3], atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("prompts", [None, ["", "", ""]])
    def test_no_prompt_is_the_empty_one_unguided(
        self, backend: GlideBackend, prompts: list[str] | None
    ) -> None:
        condition = backend.encode(prompts, 3)
        assert condition.empty is None
        eps = backend.stages[0].denoise(*noisy(), condition).eps
        torch.testing.assert_close(eps, said(backend, [""] * 3)[:, :3], atol=1e-5, rtol=1e-4)

    def test_a_scale_of_one_is_the_prompt_alone(self, folder: Path) -> None:
        alone = make_glide(GlideOptions(cfg=1.0), glide(folder))
        eps = alone.stages[0].denoise(*noisy(), alone.encode(PROMPTS, 3)).eps
        torch.testing.assert_close(eps, said(alone, PROMPTS)[:, :3], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("predicts", ["x0", "v"])
    def test_what_the_network_predicts_makes_no_difference(
        self, tmp_path: Path, predicts: str
    ) -> None:
        base = stage(BASE, 4, process=PROCESS | {"predicts": predicts})
        eps = {}
        for cfg in (0.0, 1.0, 2.5):
            made = make_glide(GlideOptions(cfg=cfg), glide(tmp_path, base=base))
            eps[cfg] = made.stages[0].denoise(*noisy(), made.encode(PROMPTS, 3)).eps
        expected = eps[0.0] + 2.5 * (eps[1.0] - eps[0.0])
        scale = expected.abs().amax((1, 2, 3), keepdim=True)
        torch.testing.assert_close(eps[2.5] / scale, expected / scale, atol=1e-4, rtol=0)

    def test_reads_each_text_once(
        self, backend: GlideBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network: Any = backend.stages[0].network
        read: list[int] = []
        original = type(network).encode_text
        monkeypatch.setattr(
            type(network),
            "encode_text",
            lambda self, tokens, mask: read.append(len(tokens)) or original(self, tokens, mask),
        )
        ppap.sample(backend, num=2, steps=4, prompt="a cat", stage="base")
        assert read == [2, 2]

    def test_passes_gradients_to_the_noisy_image(self, backend: GlideBackend) -> None:
        x_t, t = noisy()
        x_t.requires_grad_()
        x0 = backend.stages[0].denoise(x_t, t, backend.encode(PROMPTS, 3)).x0
        (gradient,) = torch.autograd.grad(x0.square().sum(), x_t)
        assert gradient.isfinite().all()
        assert gradient.abs().amax((1, 2, 3)).min() > 0


class TestUpsampler:
    def test_sees_rounded_images_and_the_prompt(self, backend: GlideBackend) -> None:
        upsampler = backend.stages[1]
        assert isinstance(upsampler, CascadedStage)
        images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
        condition = backend.encode(PROMPTS, 3)
        told: Condition = upsampler.conditioned(condition, images)
        assert told.low_res is not None
        levels = (told.low_res + 1.0) * 127.5
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert 0 < (told.low_res - images).abs().max() <= 0.5 / 127.5 + 1e-6
        x_t, t = noisy(8)
        network: Any = upsampler.network
        with torch.no_grad():
            texts = condition.texts
            expected = network(x_t, t, low_res=told.low_res, tokens=texts.tokens, mask=texts.mask)
        prediction = upsampler.denoise(x_t, t, told)
        torch.testing.assert_close(prediction.eps, expected[:, :3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prediction.variance, expected[:, 3:], atol=1e-5, rtol=1e-4)

    def test_the_published_recipe_is_the_default(self, tmp_path: Path) -> None:
        part = stage(UPSAMPLER, 8, process={"schedule": "linear", "timesteps": 1000})
        upsampler = make_glide(GlideOptions(), glide(tmp_path, upsampler=part)).stages[1]
        assert isinstance(upsampler, CascadedStage)
        assert upsampler.sampling == CascadeSampling(respacing="fast27", eta=0.0, temperature=0.997)

    def test_may_be_left_out(self, tmp_path: Path) -> None:
        base = make_glide(GlideOptions(), glide(tmp_path, upsampler=None))
        assert [stage.name for stage in base.stages] == ["base"]
        assert ppap.sample(base, num=1, steps=2, prompt="x").images.shape == (1, 3, 4, 4)


class TestSampling:
    def test_both_stages_whatever_the_batch(self, backend: GlideBackend) -> None:
        asked: dict[str, Any] = {"num": 3, "steps": 3, "prompt": PROMPTS, "sampler": "ddpm"}
        together = ppap.sample(backend, **asked, batch=3)
        alone = ppap.sample(backend, **asked, batch=1)
        assert together.images.shape == (3, 3, 8, 8)
        assert together.guided.earlier["base"].shape == (3, 3, 4, 4)
        torch.testing.assert_close(together.images, alone.images, atol=2 / 255, rtol=0)

    def test_can_be_copied_to_other_processes(self, backend: GlideBackend) -> None:
        copy = pickle.loads(pickle.dumps(backend))
        x_t, t = noisy()
        expected = backend.stages[0].denoise(x_t, t, backend.encode(PROMPTS, 3)).eps
        assert torch.equal(copy.stages[0].denoise(x_t, t, copy.encode(PROMPTS, 3)).eps, expected)


@pytest.fixture(scope="module")
def tokens() -> PromptTokens:
    return PromptTokens(read_tokenizer(letters("<end>")), VOCABULARY, 12)


class TestPrompts:
    @given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
    def test_any_text_is_cut_or_padded(self, tokens: PromptTokens, text: str) -> None:
        texts = tokens([text])
        length = min(12, len(text.lower().encode()))
        assert texts.mask.tolist() == [[True] * length + [False] * (12 - length)]
        assert (texts.tokens[~texts.mask] == VOCABULARY - 1).all()
        assert texts.tokens.max() < VOCABULARY

    def test_a_long_one_is_cut_with_a_warning(
        self, backend: GlideBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            long = backend.encode(["a" * 10_000] * 2, 2)
            backend.encode(["a" * 10_000], 1)
        assert [r.getMessage() for r in caplog.records] == [
            f"the prompt {'a' * 40!r} has 10000 tokens, of which the first 12 count"
        ]
        assert torch.equal(long.texts.tokens, backend.encode(["a" * 12] * 2, 2).texts.tokens)

    @pytest.mark.parametrize("prompt", ["\x00\x07\x1b[31m", "😀 👩‍👩‍👧", "\n\t ", "<end>"])
    def test_strange_ones_are_texts(self, backend: GlideBackend, prompt: str) -> None:
        assert backend.encode([prompt], 1).texts.mask.any()

    def test_what_is_no_text_is_refused(self, backend: GlideBackend) -> None:
        with pytest.raises(UsageError, match="no Unicode character, at 2"):
            backend.encode(["a \udcff"], 1)
        with pytest.raises(UsageError, match="2 prompts were given for 3 images"):
            backend.encode(["a", "b"], 3)


class TestCheckpointsThatAreNone:
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"base": None}, "missing 1 required keyword-only argument: 'base'"),
            ({"tokenizer": None}, "missing 1 required keyword-only argument: 'tokenizer'"),
            ({"tokenizer": {"model": "none"}}, "is no tokenizer.json"),
            ({"tokenizer": "gpt3"}, "'tokenizer' must be an object"),
            ({"tokenizer": letters()}, "the tokenizer has 256 tokens, and the network knows 257"),
            ({"base": stage(UPSAMPLER, 4)}, f"'base' is a {UPSAMPLER}"),
            ({"base": stage("ADM", 4)}, "'official_class' must be in"),
            ({"base": stage(BASE, 0)}, "'image_size' must be > 0"),
            ({"base": stage(BASE, 4, process={"schedule": "odd", "timesteps": 9})}, "'odd'"),
            (
                {"base": stage(BASE, 4, process=PROCESS | {"variance": "fixed_small"})},
                "its base takes 3 channels and gives 6",
            ),
            ({"base": stage(BASE, 4, config={"colour": 4})}, "no argument colour"),
            ({"base": stage(BASE, 4, config={"text_ctx": 9})}, "does not fit"),
            ({"upsampler": stage(UPSAMPLER, 4)}, "draws 4 pixels a side, no more than"),
            ({"upsampler": stage(UPSAMPLER, 8, recipe={"eta": 0.0})}, "respacing"),
            (
                {"upsampler": stage(UPSAMPLER, 8, recipe={"respacing": "5", "eta": 2.0})},
                "'eta' must be <= 1.0",
            ),
            ({"colour": 1}, "'colour'"),
        ],
    )
    def test_is_one_line(self, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
        with pytest.raises(AssetError) as caught:
            make_glide(GlideOptions(), glide(tmp_path, **change))
        assert expected in caught.value.message
        assert "'glide.safetensors'" in caught.value.message
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_an_upsampler_of_another_base(self, tmp_path: Path) -> None:
        parts = stated(upsampler=stage(UPSAMPLER, 8, config={"text_ctx": 9}))
        state = {}
        for name in ("base", "upsampler"):
            weights = random_state(parts[name]["official_class"], parts[name]["config"])
            state |= {f"{name}.{key}": value for key, value in weights.items()}
        save_checkpoint(tmp_path / "odd.safetensors", state, parts)
        with pytest.raises(AssetError, match="its base reads 12 tokens of 257, its upsampler 9"):
            make_glide(GlideOptions(), open_checkpoint(tmp_path / "odd.safetensors"))


def test_published_files_become_one(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_checkpoint(file).state_dict()
    for name in ("base", "upsampler"):
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v.clone() for k, v in whole.items() if k.startswith(prefix)}
        torch.save(part, tmp_path / f"{name}.pt")
    parts = stated()
    monkeypatch.setattr(conversion, "STAGES", {k: parts[k] for k in ("base", "upsampler")})
    monkeypatch.setattr(conversion, "gpt2_tokenizer", lambda: parts["tokenizer"])
    out = tmp_path / "out.safetensors"
    conversion.convert_glide(tmp_path / "base.pt", tmp_path / "upsampler.pt", out)
    converted = open_checkpoint(out)
    assert converted.architecture == open_checkpoint(file).architecture
    assert {k: v.tolist() for k, v in converted.state_dict().items()} == {
        k: v.tolist() for k, v in whole.items()
    }


def test_two_published_files_draw_as_one(tmp_path: Path, file: Path, backend: GlideBackend) -> None:
    whole, parts = open_checkpoint(file).state_dict(), stated()
    cards = {card.prefix: card for card in reversed(released.cards())}
    opened = []
    for name in ("base", "upsampler"):
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v.clone() for k, v in whole.items() if k.startswith(prefix)}
        torch.save(part, tmp_path / f"{name}.pt")
        architecture = {name: parts[name], "tokenizer": parts["tokenizer"]}
        card = attrs.evolve(cards[prefix], architecture=architecture)
        opened.append(open_checkpoint(tmp_path / f"{name}.pt", like=card))
    joined = make_glide(GlideOptions(cfg=3.0), join_checkpoints(opened))
    condition = joined.encode(PROMPTS, 3)
    with torch.no_grad():
        base = [b.stages[0].denoise(*noisy(), condition).eps for b in (joined, backend)]
        assert torch.equal(*base)
        low_res = torch.zeros(3, 3, 4, 4)
        upsampled = []
        for b in (joined, backend):
            upsampler = b.stages[1]
            assert isinstance(upsampler, CascadedStage)
            told = upsampler.conditioned(condition, low_res)
            upsampled.append(upsampler.denoise(*noisy(8), told).eps)
        assert torch.equal(*upsampled)


@pytest.mark.parametrize("name", ["gpt2", "clip"])
def test_a_tokenizer_may_be_named(tmp_path: Path, name: str) -> None:
    """The published ones come with packages; here they are of another network."""
    with pytest.raises(AssetError, match=r"tokenizer has \d{5} tokens, and the network knows 257"):
        make_glide(GlideOptions(), glide(tmp_path, tokenizer=name))


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PPAP_PLUGINS", "ppap-plugin-glide")
        registry.cache_clear()
        yield
        registry.cache_clear()

    def typed(
        self,
        capsys: pytest.CaptureFixture[str],
        file: Path,
        *arguments: str,
        prompt: Sequence[str] = ("--prompt", "a cat"),
    ) -> tuple[Any, str, str]:
        drawing = ("--backend", "glide", "--checkpoint", str(file), "--steps", "2", "--num", "1")
        with pytest.raises(SystemExit) as caught:
            main(("run", *drawing, *prompt, *arguments))
        return caught.value.code, *capsys.readouterr()

    def test_draws_both_stages(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = self.typed(capsys, file, "--cfg", "2", "--out", "out")
        assert (code, out, err) == (0, "out/grid.png\n", "")
        assert np.asarray(Image.open("out/000.png")).shape == (8, 8, 3)
        assert np.asarray(Image.open("out/stages/base/000.png")).shape == (4, 4, 3)
        config = json.loads(Path("out/run.json").read_text())["config"]
        assert config["backend"]["options"] == {"cfg": 2.0}
        assert config["prompt"] == "a cat"

    def test_a_weight_of_no_prompt_is_said_to_change_nothing(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out, err = self.typed(
            capsys, file, "--cfg", "5", "--stage", "base", "--dry-run", prompt=()
        )
        assert err == "ppap: --cfg weighs the prompt, and there is none: it changes nothing\n"
        assert re.search(r"not drawn +upsampler", out)

    def test_stops_at_the_base(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, _ = self.typed(capsys, file, "--stage", "base", "--out", "out")
        assert code == 0
        assert np.asarray(Image.open("out/000.png")).shape == (4, 4, 3)
        assert not Path("out/stages").exists()

    def test_says_what_it_would_cost(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.typed(capsys, file, "--dry-run")
        assert code == 0
        for fact in ("cfg=3", "base, upsampler", "a cat", "of 8x8", "upsampler 5 of 100"):
            assert fact in out
        code, out, _ = self.typed(capsys, file, "--dry-run", "--json")
        assert json.loads(out)["cost"]["denoiser_forwards"] == 2 * 2 + 5

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--cfg", "nan"), "option 'cfg': must be a finite number, not nan"),
            (("--cfg", "-inf"), "must be a finite number, not -inf"),
            (("--cfg", "much"), "option 'cfg': could not convert string to float: 'much'"),
            (("--cfg", "2", "--backend-option", "cfg=3"), "--backend-option cfg is given twice"),
            (("--backend-option", "guidance=3"), "unknown option 'guidance'"),
            (("--stage", "last"), "has no stage 'last'"),
        ],
    )
    def test_refuses_in_one_line(
        self,
        file: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        expected: str,
    ) -> None:
        code, out, err = self.typed(capsys, file, *arguments)
        assert code == 2
        assert out == ""
        assert expected in err
        assert "Traceback" not in err
        assert not list(Path().iterdir())


def test_a_configuration_without_changes_is_what_the_tests_think() -> None:
    assert CONFIG["tokenizer"]["n_vocab"] == VOCABULARY == 257
