"""Files of experiments: what they say, and what is wrong with them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import attrs
import pytest
from bench_toy import CLASSES, EXPERTS, SCENES

from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_bench import Experiment, Row, read_experiment, row_guide

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
        (CLASSES, "seed = 7", "seed = 0", "tunes on seed 0, which it reports"),
        (CLASSES, '["unguided"]', '["unguarded"]', "has no row unguarded"),
        (CLASSES, 'name = "guided"', 'name = "unguided"', "several rows called unguided"),
        (CLASSES, 'name = "guided"', 'name = "Guided"', "lower-case"),
        (CLASSES, 'name = "guided"', 'name = "guided"\nimages = "x"', "one or the other"),
        (CLASSES, 'guider = "colour"\n', "", "has scales and no guider"),
        (CLASSES, 'guider = "colour"\n', 'guidr = "colour"\n', "has 'guidr', not 'guider'"),
        (CLASSES, "[0.001, 100.0, 0.002]", "[]", "no scales to choose from"),
        (CLASSES, "[0.001, 100.0, 0.002]", "[nan]", "finite numbers"),
        (CLASSES, "[0.001, 100.0, 0.002]", "3", "not iterable"),
        (CLASSES, "[[rows]]\nname", "[[rows]]\nthrough = 'mist'\nname", "through"),
        (CLASSES, "[[rows]]\nname", "[[rows]]\nintervals = [[0.9, 0.2]]\nname", "[lo, hi]"),
        (CLASSES, 'images = "others.npz"', 'guider = "colour"\nscales = [1]',
         "unequal numbers of candidates to choose from: guided 3, renders 1"),
        (CLASSES, 'images = "others.npz"', 'images = "others.npz"\nprompt = "brighter"',
         "has images, and tells the backend how to draw"),
        (CLASSES, 'judge = "', 'judge = "nobody" #', 'write "guider:checkpoint"'),
        (CLASSES, "{seed = 7, num = 16}", "3", "[tuning] is not a table"),
        (CLASSES, "title =", "title", "neither TOML nor JSON"),
        (SCENES, "scenes =", "other =", "has 'other'"),
        (SCENES, "scenes =", "#", "no [scenes] that hold the"),
        (SCENES, "num = 8", "num = 0", "[scenes] 'num' must be >= 1"),
        (SCENES, '"grey.distance"', '"grey.fid"', "none of hit, grey.distance, grey.likeness"),
        (SCENES, '"grey.distance"', "[]", "an empty `objective`"),
        (SCENES, '["hit", "grey.likeness"]', '["hit", "nose"]', "the objective 'nose'"),
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
        (SCENES, "scales = [0.1, 3.0]", 'scales = ["auto", 3.0]', "and no experts that were"),
        (SCENES, "scales = [0.1, 3.0]", "", "no scales to choose from"),
        (SCENES, "scales = [0.1, 3.0]", "scales = [3.0]", "guided 2, together 1"),
        (SCENES, 'name = "unguided"', 'name = "unguided"\ntraining = "a"', "training and no g"),
        (EXPERTS, NAMED, "auto", "a table says which"),
        (EXPERTS, "scales = [0.1, 10.0]", 'scales = ["auto", 1]', 'scale "auto", and no experts'),
        (EXPERTS, 'scales = ["auto"]', 'scales = ["best"]', "needs finite numbers, not 'best'"),
        (EXPERTS, 'scales = ["auto"]', 'scales = ["auto", 1, 2]', "calibrated 3"),
        (EXPERTS, 'experts = "k', 'through = "clean"\nexperts = "k', "there is no noise"),
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
    said = refusal(tmp_path / "x.toml", "[tuning]\nnum = 0\n[[rows]]\nguider = 'a'\n")
    assert said.index("num") < said.index("row ? has no name")


def test_a_file_that_is_missing_is_an_asset(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot read"):
        read_experiment(tmp_path / "none.toml")


def test_without_scenes_no_guide_aims_at_any(tmp_path: Path) -> None:
    text = SCENES[: SCENES.index("[[judges]]")] + SCENES[SCENES.index("[[rows]]") :]
    text = text.replace("scenes =", "#").replace('objective = "grey.distance"', "")
    text = text.replace(', "grey.likeness"', "")
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

    def test_pair_every_scale_with_every_interval(self) -> None:
        guides = (row_guide(guider="b"),)
        guided = Row(name="a", guides=guides, scales=(1, 2), intervals=((0, 0.5), (0, 1)))
        assert len({(c.scale, c.interval) for c in guided.candidates}) == 4

    def test_choose_nothing_if_their_scale_is_calibrated(self) -> None:
        row = Row(name="a", guides=(row_guide(guider="b", experts="c"),), scales=("auto",))
        assert not row.chooses
        for changes in (
            {"scales": ("auto", 1)},
            {"scales": (1,)},
            {"intervals": ((0, 0.5), (0, 1))},
        ):
            assert attrs.evolve(row, **changes).chooses

    def test_call_a_single_guide_by_their_own_name(self) -> None:
        one = row_guide(guider="x:b", checkpoint="c", aim="class")
        assert (one.source, one.checkpoint, one.target, one.scale) == ("x:b", "c", "class", 1.0)
        row = Row(name="a", guides=(one,), scales=(1.0,))
        assert row.guide_names == ("a",)
        both = attrs.evolve(row, guides=(one, row_guide(guider="d")))
        assert both.guide_names == ("a-b", "a-d")


def test_hits_are_shown_if_a_guide_aims_at_classes(scene_experiment: Experiment) -> None:
    dense = {"grey.distance": "lower", "grey.likeness": "higher"}
    assert scene_experiment.shown == {"hit": "higher", **dense}
    assert attrs.evolve(scene_experiment, rows=scene_experiment.rows[:3]).shown == dense


def test_the_readme_shows_an_experiment(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    keys, tables = zip(*(block.split("\n[", 1) for block in blocks), strict=True)
    (tmp_path / "a.toml").write_text("\n".join(keys) + "".join(f"\n[{table}" for table in tables))
    rows = read_experiment(tmp_path / "a.toml").rows
    assert [row.name for row in rows] == ["unguided", "naive", "experts", "together", "told"]
