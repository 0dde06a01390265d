"""Datasets of HuggingFace, in folders as ``datasets`` leaves them and as the hub has them; names out of reach."""

import io
import json

import pytest
import torch

import metaprox as mp
from metaprox.cli import main
from metaprox.errors import DataWarning
from metaprox.readers import read_images, read_texts
from metaprox.readers.archives import content_of
from metaprox.tasks import Images, Text

datasets = pytest.importorskip("datasets")
image = pytest.importorskip("PIL.Image")
SHORT = ["--meta-steps", "1", "--meta-batch", "2", "--eval-tasks", "2", "--test-tasks", "2", "--steps", "2"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """What datasets reads from Parquet it keeps in a folder of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def png(shade):
    file = io.BytesIO()
    image.new("L", (6, 5), shade).save(file, "PNG")
    return file.getvalue()


def pictures(kinds, of_class=True, label="label"):
    """Eight pictures of each kind, in shades of it."""
    rows = {"image": [png(20 * kind + i) for kind in kinds for i in range(8)]}
    rows[label] = [(kind if of_class else f"kind {kind}") for kind in kinds for _ in range(8)]
    found = datasets.Dataset.from_dict({**rows, "image": [{"bytes": one, "path": None} for one in rows["image"]]})
    found = found.cast_column("image", datasets.Image())
    return found.cast_column(label, datasets.ClassLabel(names=[f"kind {i}" for i in range(10)])) if of_class else found


def as_the_hub_has_it(folder, **splits):
    """A folder in the layout of a repository on the hub: Parquet by split."""
    (folder / "data").mkdir(parents=True)
    for name, table in splits.items():
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def of_one_split(folder):
    pictures(range(10)).save_to_disk(folder)


def of_two_splits(folder):
    datasets.DatasetDict({"train": pictures(range(6)), "test": pictures(range(6, 10))}).save_to_disk(folder)


def of_parquet(folder):
    as_the_hub_has_it(folder, train=pictures(range(6)), test=pictures(range(6, 10)))


@pytest.mark.parametrize("made", [of_one_split, of_two_splits, of_parquet])
def test_pictures_of_every_kind_of_folder(made, tmp_path):
    made(tmp_path / "d")
    found = read_images(f"hf:{tmp_path / 'd'}")
    assert found.names == tuple(f"kind {i}" for i in range(10))
    assert len(found) == 80
    by_class = {name: set() for name in found.names}
    for item, label in (found[i] for i in range(80)):
        by_class[found.names[label]].add(content_of(item))
    assert by_class == {f"kind {k}": {png(20 * k + i) for i in range(8)} for k in range(10)}
    if made is not of_one_split:
        assert read_images(f"hf:{tmp_path / 'd'}", split="test").names == tuple(f"kind {i}" for i in range(6, 10))
        with pytest.raises(mp.InputError, match="nosuch"):
            read_images(f"hf:{tmp_path / 'd'}", split="nosuch")
    family = Images(f"hf:{tmp_path / 'd'}", ways=2, queries=3, size=5)
    inputs, labels = family.drawn[0].support
    assert inputs.shape == (2, 3, 5, 5)
    shade = (255 * inputs.mean((1, 2, 3)) / 20).floor().int().tolist()
    assert [f"kind {one}" for one in shade] == [family.drawn.names(0)[label] for label in labels]


def test_columns_are_found_or_named_and_rows_without_a_class_are_told(tmp_path):
    table = pictures(range(3), label="fine")
    table = table.add_column("coarse", [0] * 24).cast_column("coarse", datasets.ClassLabel(names=["all"]))
    table.save_to_disk(tmp_path / "two")
    with pytest.raises(mp.InputError, match=r"several columns of labels \(fine, coarse\).*--label-column"):
        read_images(f"hf:{tmp_path / 'two'}")
    assert read_images(f"hf:{tmp_path / 'two'}", label="coarse").names == ("all",)
    with pytest.raises(mp.InputError, match="has no pictures in 'fine'"):
        read_images(f"hf:{tmp_path / 'two'}", image="fine", label="fine")
    with pytest.raises(mp.InputError, match=r"no column 'nosuch'; its columns: 'image', 'fine', 'coarse'"):
        read_images(f"hf:{tmp_path / 'two'}", label="nosuch")
    words = pictures(range(2), of_class=False)
    words = datasets.concatenate_datasets([words, words.select([0]).map(lambda row: {"label": " "})])
    words.save_to_disk(tmp_path / "words")
    found = read_images(f"hf:{tmp_path / 'words'}")
    assert found.names == ("kind 0", "kind 1")
    assert [problem.what for problem in found.problems] == ["nothing in 'label'"]
    assert "row 16" in found.problems[0].place
    none = pictures(range(2)).map(lambda row, i: {"label": -1 if i < 8 else row["label"]}, with_indices=True)
    none.save_to_disk(tmp_path / "none")  # as test splits without labels are
    assert len(read_images(f"hf:{tmp_path / 'none'}")) == 8
    assert len(read_images(f"hf:{tmp_path / 'none'}", labels=False)) == 16


def test_a_picture_that_is_none_is_named(tmp_path):
    rows = [{"bytes": png(20 * (i // 8)), "path": None} for i in range(48)]
    rows[3] = {"bytes": b"none", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": rows, "label": [i // 8 for i in range(48)]}, features=features)
    table.save_to_disk(tmp_path / "d")
    with pytest.warns(DataWarning, match=r"hf:.*d train, row 3: not a picture|hf:.*d, row 3: not a picture"):
        family = Images(f"hf:{tmp_path / 'd'}", ways=1, queries=3, size=5, channels=1)
    assert len(family.contents().parts["0"]) == 7 * 8


def test_from_a_dataset_to_answers_on_the_command_line(tmp_path, capsys, monkeypatch):
    of_parquet(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    given = ["--ways", "2", "--queries", "2", "--size", "8", "--width", "4", "--channels", "1"]
    main(["train", "images", "--data", "hf:d", "--data-split", "train+test", "--out", "run", *given, *SHORT])
    monkeypatch.chdir("/")
    run = str(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tasks"]["data"] == f"hf:{tmp_path / 'd'}"
    main(["evaluate", run, "--count", "2"])
    with pytest.raises(SystemExit):
        main(["evaluate", run, "--label-column", "label"])
    assert "--label-column is of other data" in capsys.readouterr().err
    as_the_hub_has_it(tmp_path / "three", train=pictures([0], label="kind"), test=pictures([7, 8, 9], label="kind"))
    others = ["evaluate", run, "--data", f"hf:{tmp_path / 'three'}", "--data-split", "test", "--label-column", "kind"]
    main([*others, "--count", "2", "--as-json"])
    pictures([2, 5], label="sort").save_to_disk(tmp_path / "new")
    new = f"hf:{tmp_path / 'new'}"
    with pytest.raises(SystemExit):
        main(["adapt", run, "--support", new, "--out", str(tmp_path / "a"), "--label-column", "label"])
    assert "no column 'label'" in capsys.readouterr().err
    main(["adapt", run, "--support", new, "--out", str(tmp_path / "a0")])  # of which the run's splits are none
    as_the_hub_has_it(tmp_path / "new2", train=pictures([2], label="sort"), test=pictures([5], label="sort"))
    main(["adapt", run, "--support", f"hf:{tmp_path / 'new2'}", "--out", str(tmp_path / "a")])
    capsys.readouterr()
    main(["predict", str(tmp_path / "a"), f"hf:{tmp_path / 'new2'}", "--data-split", "test", "--as-json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8
    assert set(lines[0]["probabilities"]) == {"kind 2", "kind 5"}
    before = Images(f"hf:{tmp_path / 'd'}", ways=2, queries=2, size=8).contents()
    (tmp_path / "d").rename(tmp_path / "gone")
    main(["adapt", run, "--support", f"hf:{tmp_path / 'new2'}", "--out", str(tmp_path / "b")])
    with pytest.raises(SystemExit):
        main(["evaluate", run])
    assert f"the run's data are no longer in hf:{tmp_path / 'd'}" in " ".join(capsys.readouterr().err.split())
    other = pictures(range(6)).map(
        lambda row, i: {"image": {"bytes": png(250), "path": None}} if i == 9 else {}, with_indices=True
    )
    as_the_hub_has_it(tmp_path / "d", train=other, test=pictures(range(6, 10)))
    with pytest.raises(SystemExit):
        main(["evaluate", run])
    said = " ".join(capsys.readouterr().err.split())
    assert "have changed since it began" in said
    assert "row 9 is another" in said
    assert len(before.owners) == 80


def test_texts_with_classes_by_number_or_by_name(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    numbers = datasets.Dataset.from_dict({"sentence": texts, "topic": [i // 4 for i in range(40)]})
    numbers = numbers.cast_column("topic", datasets.ClassLabel(names=[f"topic {i}" for i in range(10)]))
    as_the_hub_has_it(tmp_path / "d", train=numbers)
    found = read_texts(f"hf:{tmp_path / 'd'}", "sentence", "topic")
    assert list(found.items) == texts
    assert [found.names[i] for i in found.targets] == [f"topic {i // 4}" for i in range(40)]
    with pytest.raises(mp.InputError, match=r"no column 'text', 'label'; its columns: 'sentence', 'topic'"):
        read_texts(f"hf:{tmp_path / 'd'}")
    pytest.importorskip("transformers")
    family = Text(f"hf:{tmp_path / 'd'}", ways=2, queries=2, text_column="sentence", label_column="topic")
    assert sum(len(part) for part in family.contents().parts.values()) == 40 * 8
    assert {len(one.drawn._rows) for one in (family.of_split("validation"), family.of_split("test"))} == {2}


def test_a_name_that_cant_be_reached_ends_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit):
        main(["train", "images", "--data", "hf:nobody/nothing", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "hf:nobody/nothing can't be read" in " ".join(said.split())
    assert "Traceback" not in said
    assert "hf:FOLDER" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(mp.InputError, match=r"hf:.*empty can't be read"):
        read_images(f"hf:{tmp_path / 'empty'}")
    for name in ("subset", "data_split", "label_column"):
        with pytest.raises(mp.InputError, match=f"{name}='x' is of datasets of HuggingFace"):
            Images(tmp_path, **{name: "x"})


def test_a_folder_with_a_program_is_not_run(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text("open('ran', 'w')\nraise SystemExit\n")
    with pytest.raises(mp.InputError, match="can't be read"):
        read_texts(f"hf:{tmp_path / 'd'}")
    assert not torch.os.path.exists("ran")
