"""Files of experiments: what they say, and what is wrong with them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import attrs
import pytest
from bench_toy import CLASSES, EXPERTS, SCENES
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.guidance import raw_scale
from ppap_plugin_bench import Experiment, Row, read_experiment, row_guide
from ppap_plugin_bench.row import times

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


README = Path(__file__).parents[1] / "README.md"
NAMED = "kept/mine.experts.safetensors"


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_experiment(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", [CLASSES, SCENES, EXPERTS])
def test_files_may_be_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "toy.toml").write_text(text)
    (tmp_path / "toy.json").write_text(json.dumps(tomllib.loads(text)))
    toml, as_json = (read_experiment(tmp_path / f"toy.{kind}") for kind in ("toml", "json"))
    assert attrs.asdict(as_json) == attrs.asdict(toml)
    assert toml.batch == (16 if text is CLASSES else 8)  # `block` is its older name


def test_paths_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    bundle, path = tmp_path / NAMED, tmp_path / "a.toml"
    text = SCENES.replace('title = "A guide"', 'training = ["a.json", "b/run.json"]')
    path.write_text(text.replace('{guider = "grey"', f'{{experts = "{NAMED}", guider = "grey"'))
    found = read_experiment(path)
    assert found.scenes is not None
    assert found.reference == str(tmp_path / "scene-reference.npz")
    assert found.rows[0].images == str(tmp_path / "other-scenes.npz")
    assert found.scenes.pictures == str(tmp_path / "scenes.npz")
    assert found.rows[2].training == (str(tmp_path / "a.json"), str(tmp_path / "b/run.json"))
    assert [guide.experts for guide in found.rows[3].guides] == [str(bundle), "none"]
    path.write_text(EXPERTS)
    experts = [row.guides[0].experts for row in read_experiment(path).rows]
    assert experts == ["none", str(bundle), str(bundle)]
    path.write_text(EXPERTS.replace(NAMED, "mine"))
    assert read_experiment(path).rows[1].guides[0].experts == "mine"  # names stay names
    assert read_experiment(path, reference="a.npz").reference == "a.npz"  # as typed


@pytest.mark.parametrize(
    ("text", "was", "becomes", "says"),
    [
        (CLASSES, "backend =", "backened =", "has 'backened', not 'backend'; it has no backend"),
        (CLASSES, "num = 64", 'num = "64"', "num"),
        (CLASSES, '["unguided"]', '["unguarded"]', "has no row unguarded"),
        (CLASSES, 'name = "guided"', 'name = "unguided"', "several rows called unguided"),
        (CLASSES, 'name = "guided"', 'name = "Guided"', "lower-case"),
        (CLASSES, 'name = "guided"', 'name = "guided"\nimages = "x"', "one or the other"),
        (CLASSES, 'guider = "colour"\n', "", "has scales, default and no guider"),
        (CLASSES, 'guider = "colour"\n', 'guidr = "colour"\n', "has 'guidr', not 'guider'"),
        (CLASSES, '["raw:0.001", "raw:100", "raw:0.002"]', "[]", "different scales"),
        (CLASSES, '["raw:0.001", "raw:100", "raw:0.002"]', "[1, 2, 1]", "different scales"),
        (CLASSES, '["raw:0.001", "raw:100", "raw:0.002"]', "[nan]", "finite numbers"),
        (CLASSES, '["raw:0.001", "raw:100", "raw:0.002"]', "[0]", "other than 0"),
        (CLASSES, '["raw:0.001", "raw:100", "raw:0.002"]', "3", "not iterable"),
        (CLASSES, 'default = "raw:100"', "default = 8", "default is none of its scales"),
        (CLASSES, '"raw:0.001"', '"raw:lots"', 'not \'raw:lots\''),
        (CLASSES, 'name = "guided"', 'name = "guided"\nmoments = [0.9, 1.0]', "moments must be"),
        (CLASSES, 'name = "guided"', 'name = "guided"\nsampler = "euler"', "sampler"),
        (CLASSES, 'name = "guided"', 'name = "guided"\nschedule = "cosine"', "schedule"),
        (CLASSES, 'name = "guided"', 'name = "guided"\nobjective = "hit"', "it is `fidelity`"),
        (CLASSES, "num = 64", "num = 64\ntuning = {num = 8}", "not chosen: remove it"),
        (CLASSES, "[[rows]]\nname", "[[rows]]\nthrough = 'mist'\nname", "through"),
        (CLASSES, "[[rows]]\nname", "[[rows]]\ninterval = [0.9, 0.2]\nname", "[lo, hi]"),
        (CLASSES, "[[rows]]\nname", "[[rows]]\nintervals = [[0, 1]]\nname", "it is `interval`"),
        (CLASSES, 'images = "others.npz"', 'images = "others.npz"\nprompt = "brighter"',
         "has images, and tells the backend how to draw"),
        (CLASSES, 'judge = "', 'judge = "nobody" #', 'write "guider:checkpoint"'),
        (CLASSES, "{num = 2, rounds = 3}", "3", "[timing] is not a table"),
        (CLASSES, "title =", "title", "neither TOML nor JSON"),
        (SCENES, "scenes =", "other =", "has 'other'"),
        (SCENES, "scenes =", "#", "no [scenes] that hold the"),
        (SCENES, "num = 8", "num = 0", "[scenes] 'num' must be >= 1"),
        (SCENES, '"grey.distance"', '"grey.fid"', "none of hit, grey.distance, grey.likeness"),
        (SCENES, '["grey.distance", "hit"]', "[]", "fidelity"),
        (SCENES, 'name = "grey"', 'name = "Grey"', "lower-case"),
        (SCENES, '"grey:grey-1"', '"grey"', 'the guider \'grey\'; write "guider:checkpoint"'),
        (SCENES, '"grey:grey-1"', "3", "'guider' must be"),
        (SCENES, '["distance"]', '["likeness"]', "names a figure twice"),
        (SCENES, 'lower = ["distance"]\nhigher = ["likeness"]', "", "no figures that are better"),
        (SCENES, "[[rows]]\n", SCENES[SCENES.index("[[judges]]") : SCENES.index("[[rows]]")] +
         "[[rows]]\n", "several judges called grey"),
        (SCENES, 'guider = "grey"\nmodel', "model", "has model and no guider"),
        (SCENES, 'name = "together"', 'name = "together"\nguider = "grey"', "a guider and guides"),
        (SCENES, 'name = "together"', 'name = "together"\nimages = "a.npz"', "one or the other"),
        (SCENES, '{guider = "colour"', '{guider = "grey"', "by together-grey more than once"),
        (SCENES, '{guider = "colour"', '{guidar = "colour"', "guide 2 has 'guidar', not 'guider'"),
        (SCENES, 'aim = "class"', 'aim = "clas"', "guide 2 'aim' must be class or scene"),
        (SCENES, 'aim = "class"', 'experts = "auto"', "a table says which"),
        (SCENES, 'aim = "class"', "options = 3", "'options' must be a table"),
        (SCENES, 'aim = "class"', "loss_options = 3", "'loss_options' must be a table"),
        (SCENES, 'name = "unguided"', 'name = "unguided"\ntraining = "a"', "training and no g"),
        (EXPERTS, NAMED, "auto", "a table says which"),
        (EXPERTS, "scales = [1, 8]", 'scales = ["auto"]', "not 'auto'"),
        (EXPERTS, 'experts = "k', 'through = "clean"\nexperts = "k', "looks through clean"),
        (EXPERTS, 'guider = "colour"\nexperts', "experts", "has experts and no guider"),
        (EXPERTS, 'experts = "k', "experts = 3 #", "'experts' must be a string, not 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, text: str, was: str, becomes: str, says: str
) -> None:
    assert was in text
    assert says in refusal(tmp_path / "toy.toml", text.replace(was, becomes, 1))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path / "x.toml", "[timing]\nnum = 0\n[[rows]]\nguider = 'a'\n")
    assert said.index("num") < said.index("row ? has no name")


def test_a_file_that_is_missing_is_an_asset(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot read"):
        read_experiment(tmp_path / "none.toml")


def test_without_scenes_no_guide_aims_at_any(tmp_path: Path) -> None:
    text = SCENES[: SCENES.index("[[judges]]")] + SCENES[SCENES.index("[[rows]]") :]
    text = text.replace("scenes =", "#").replace('fidelity = ["grey.distance", "hit"]', "")
    (tmp_path / "a.toml").write_text(text)
    read_experiment(tmp_path / "a.toml")
    said = refusal(tmp_path / "a.toml", text.replace('"class"', '"scene"'))
    assert "no [scenes], at which row together aims" in said


class TestRows:
    def test_are_chosen_by_name_in_their_order(self, experiment: Experiment) -> None:
        chosen = experiment.chosen(["renders", "unguided"])
        assert [row.name for row in chosen] == ["unguided", "renders"]
        with pytest.raises(UsageError, match=r"no row 'giuded'.*did you mean 'guided'"):
            experiment.chosen(["giuded"])

    def test_have_the_scales_of_the_experiment_or_their_own(self, experiment: Experiment) -> None:
        plain, guided, _ = experiment.rows
        own = attrs.evolve(guided, scales=None, default=None)
        assert experiment.scales_of(plain) == ()
        assert experiment.default_of(plain) is None
        assert experiment.scales_of(own) == experiment.scales == (2.0, 4.0, 8.0, 16.0, 32.0)
        assert experiment.default_of(own) == 8.0
        shown = attrs.evolve(experiment, default=32)
        assert (shown.default_of(own), shown.default_of(guided)) == (32.0, "raw:100")
        assert experiment.default_of(guided) == "raw:100"
        assert experiment.default_of(attrs.evolve(own, scales=(1, 3, 5, 7))) == 3.0

    def test_begin_where_they_would_be_without_a_guide(self, experiment: Experiment) -> None:
        plain, guided, _ = experiment.rows
        assert experiment.start_of(guided) is plain
        assert experiment.start_of(plain) is None
        for changes in ({"steps": 6}, {"sampler": "ddpm"}, {"eta": 0.5}, {"prompt": "a"}):
            assert experiment.start_of(attrs.evolve(guided, **changes)) is None
        assert experiment.start_of(attrs.evolve(guided, through="clean", moments=(0, 0))) is plain

    @given(st.floats(0.01, 100), st.floats(0.01, 100))
    def test_multiply_scales_of_either_kind(self, factor: float, scale: float) -> None:
        assert times(factor, scale) == factor * scale
        assert raw_scale(times(factor, f"raw:{scale!r}")) == factor * scale

    def test_call_a_single_guide_by_their_own_name(self) -> None:
        one = row_guide(guider="x:b", checkpoint="c", aim="class")
        assert (one.source, one.checkpoint, one.target, one.scale) == ("x:b", "c", "class", 1.0)
        row = Row(name="a", guides=(one,))
        assert row.guide_names == ("a",)
        both = attrs.evolve(row, guides=(one, row_guide(guider="d")))
        assert both.guide_names == ("a-b", "a-d")


def test_hits_are_shown_if_a_guide_aims_at_classes_or_fidelity_names_them(
    scene_experiment: Experiment,
) -> None:
    dense = {"grey.distance": "lower", "grey.likeness": "higher"}
    assert scene_experiment.shown == {"hit": "higher", **dense}
    bare = attrs.evolve(
        scene_experiment, rows=scene_experiment.rows[:3], fidelity=("grey.distance",)
    )
    assert bare.shown == dense
    assert attrs.evolve(bare, fidelity=("hit",)).shown == {"hit": "higher", **dense}


def test_the_readme_shows_an_experiment(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    keys, tables = zip(*(block.split("\n[", 1) for block in blocks), strict=True)
    (tmp_path / "a.toml").write_text("\n".join(keys) + "".join(f"\n[{table}" for table in tables))
    rows = read_experiment(tmp_path / "a.toml").rows
    assert [row.name for row in rows] == [
        "unguided",
        "naive",
        "experts",
        "published",
        "together",
        "told",
    ]
