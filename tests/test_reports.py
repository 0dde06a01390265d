"""Pages about runs: one anew, several side by side, unfinished or damaged ones; where and when a run was made."""

import html
import json
import re
import shutil
import sys

import pytest
import torch
from matplotlib.figure import Figure

import metaprox as mp
from conftest import interrupt_at
from metaprox import comparison, reports, training
from metaprox.cli import main
from metaprox.reports import health, side_by_side, style
from metaprox.storage.lock import holder
from metaprox.training import starts, weights

SMALL = training.Settings(
    "sinusoid", hidden=(6,), meta_steps=8, meta_batch=2, eval_every=4, eval_tasks=3, test_tasks=6, steps=2,
    checkpoint_every=4, compile="off",
)  # fmt: skip
DIGITS = training.Settings(
    "mnist1d", hidden=(6,), ways=2, meta_steps=2, meta_batch=1, eval_tasks=2, test_tasks=3, steps=1, compile="off"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two finished runs, one that was stopped, and one of other tasks."""
    place = tmp_path_factory.mktemp("made")
    training.train(SMALL, place / "plain")
    training.train(SMALL.but(method="maml", lr=0.3), place / "unrolled")
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL.but(meta_steps=80), place / "half", interrupt_at(5))
    training.train(DIGITS, place / "digits")
    return place


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """Copies of them, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for path in made.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path


def test_the_weights_of_a_finished_run_are_read_once(runs, monkeypatch):
    read, load = [], weights.load
    monkeypatch.setattr(weights, "load", lambda path, kind: read.append(path.name) or load(path, kind))
    main(["report", "digits"])
    main(["report", "plain"])
    assert read == ["weights.safetensors"] * 2


def refused(capsys, *words):
    """The status, and the one line."""
    with pytest.raises(SystemExit) as caught:
        main(["report", *map(str, words)])
    said = capsys.readouterr().err
    assert said.startswith("metaprox: error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return caught.value.code, said


def cells(page, row):
    """Of a table's row, by its first cell."""
    found = re.search(rf"<tr><th[^>]*>(?:<code>)?{re.escape(row)}(?:</code>)?</th>(.*?)</tr>", page, flags=re.DOTALL)
    return [html.unescape(re.sub("<[^>]+>", "", one)) for one in re.findall(r"<td[^>]*>(.*?)</td>", found[1])]


# --- a run keeps where and when it was made


def test_a_run_keeps_each_of_its_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/metaprox", "train", "sinusoid", "--out", "a folder"])
    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL, tmp_path / "run", interrupt_at(5))
    monkeypatch.setattr(sys, "argv", ["mine.py", "--again"])
    first, second = starts.read(training.resume(tmp_path / "run").starts)
    assert (first["step"], first["command"]) == (0, "metaprox train sinusoid --out 'a folder'")
    assert (second["step"], second["command"]) == (4, "python mine.py --again")
    assert first["torch"] == torch.__version__
    assert first["processes"] == 1
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["date"])
    page = reports.write_report(training.RunFolder(tmp_path / "run")).read_text()
    about = " ".join(re.search(r'<p class="about">(.*?)</p>', page, flags=re.DOTALL)[1].split())
    assert about.startswith(f"Seed 0; begun {first['date'][:10]} ")
    assert "<code>metaprox train sinusoid --out &#39;a folder&#39;</code>; gone on with 1 time, last" in about
    assert f"on {second['host']}, metaprox {mp.__version__}, torch {torch.__version__}, Python" in about


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x/metaprox/../metaprox"], "metaprox"),
        ([f"{mp.__path__[0]}/cli/__main__.py", "check"], "metaprox check"),
        (["-c"], "python -c"),
        ([""], "python"),
        (["metaprox", "--storage", "postgresql://me:secret@host/db"], "metaprox --storage 'postgresql://***@host/db'"),
    ],
)
def test_a_command_is_as_a_shell_takes_it_without_passwords(monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", words)
    assert starts.command().replace("'", "") == said.replace("'", "")


def test_comparisons_and_experiments_keep_theirs(tmp_path):
    plan = comparison.Plan.of(SMALL.but(meta_steps=1), {one: {"method": one} for one in ("fomaml", "reptile")}, (0,))
    for count in (1, 2):
        results = comparison.compare(plan, tmp_path / "out")
        assert len(starts.read(training.RunFolder(tmp_path / "out").starts)) == count
    assert "gone on with 1 time" in reports.write_comparison(results, tmp_path / "out").read_text()


# --- one run


def test_a_report_is_written_anew_and_elsewhere(runs, capsys):
    (runs / "plain" / "report.html").unlink(missing_ok=True)
    main(["report", "plain"])
    assert capsys.readouterr().out == "report: plain/report.html\n"
    page = (runs / "plain" / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (runs / "plain").rglob("*")}
    main(["report", "plain", "--out", "other.html"])
    assert {path: path.stat().st_mtime_ns for path in (runs / "plain").rglob("*")} == before
    same = [re.sub(r"<footer.*", "", one, flags=re.DOTALL) for one in (page, (runs / "other.html").read_text())]
    assert same[0] == same[1]


def test_an_unfinished_run_is_shown_as_far_as_it_is(runs):
    main(["report", "half"])
    page = (runs / "half" / "report.html").read_text()
    assert "Not finished</strong>: meta-step 5 of 80, last heard of 20" in page
    rows = training.RunFolder.open("half").read_metrics()
    first, validation = (row["loss"] for row in rows if row["kind"] == "evaluation")
    assert cells(page, "query loss") == [
        f"{first['mean']:.3f} ± {first['ci95']:.3f}",
        f"{validation['mean']:.3f} ± {validation['ci95']:.3f} (validation tasks, meta-step 4)",
        "6",
    ]


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_run_that_has_hardly_begun_is_shown(runs, lines):
    log = runs / "half" / "metrics.jsonl"
    for checkpoint in training.RunFolder("half").checkpoints():  # which know more of the log
        checkpoint.unlink()
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:lines]))
    main(["report", "half"])
    assert f"meta-step {max(0, lines - 1)} of 80" in (runs / "half" / "report.html").read_text()
    main(["report", "half", "plain"])
    log.unlink()
    main(["report", "half"])
    assert "meta-step 0 of 80, nobody works there" in (runs / "half" / "report.html").read_text()


def test_a_run_that_goes_on_is_read_and_left_alone(runs):
    folder = training.RunFolder.open("half")
    assert holder(folder.path) is None
    with folder.locked():
        assert holder(folder.path) == " by this process"
        page = reports.write_report(folder).read_text()
    assert "in use by this process" in page
    assert holder(folder.path) is None


def test_a_page_without_data_or_weights_says_what_is_left_out(runs):
    (runs / "plain" / "weights.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"plain: The picture of a task is left out: plain/weights.safetensors is not"):
        main(["report", "plain"])
    page = (runs / "plain" / "report.html").read_text()
    assert "The picture of a task is left out: plain/weights.safetensors is not there" in page


# --- side by side


def test_side_by_side_shows_settings_results_differences_and_how_far_runs_are(runs, capsys):
    main(["report", "plain", "unrolled", "half"])
    assert capsys.readouterr().out == "report: metaprox-report.html\n"
    page = (runs / "metaprox-report.html").read_text()
    folders = {name: training.RunFolder.open(name) for name in ("plain", "unrolled")}
    values = {name: torch.tensor(one.read_test_values()["loss"]).double() for name, one in folders.items()}
    difference = values["unrolled"] - values["plain"]
    mean, half = difference.mean(), 1.96 * difference.std() / 6**0.5
    last = {name: one.read_metrics()[-1]["loss"] for name, one in folders.items()}
    assert cells(page, "unrolled")[:6] == [
        "MAML",
        "8 of 8",
        cells(page, "plain")[2],  # the same initial weights and tasks
        f"{last['unrolled']['mean']:.3f} ± {last['unrolled']['ci95']:.3f}",
        f"{'+' if mean >= 0 else ''}{mean:.3f} ± {half:.3f}",
        "6",
    ]
    assert cells(page, "half")[:5] == [
        "FO-B-MAML",
        "5 of 80, not finished",
        cells(page, "plain")[2],
        "not yet",
        "not yet",
    ]
    assert cells(page, "lr") == ["0.1", "0.3", "0.1"]
    assert cells(page, "meta_steps") == ["8", "8", "80"]
    assert cells(page, "scheme") == ["symmetric", "", "symmetric"]
    alike = page[page.index("<details>") : page.index("</details>")]
    assert "<code>inner_lr</code>" in alike
    assert "<code>lr</code>" not in alike
    assert page.count("data:image/png") == 3
    assert page.count("metaprox 0") >= 3


def test_curves_are_against_steps_gradients_and_seconds(runs):
    run = reports.RunView.of(training.RunFolder.open("unrolled"))
    steps = [row for row in training.RunFolder.open("unrolled").read_metrics() if row["kind"] == "step"]
    each = 2 * (2 + 1 + 2 * 2)  # two tasks: two support gradients, a query gradient, two products that count twice
    assert run.curves["step"].at == list(range(1, 9))
    assert run.curves["gradients"].at == [each * n for n in range(1, 9)]
    assert run.curves["seconds"].at == [row["seconds"] for row in steps]
    assert run.curves["gradients"].evaluated_at == [each * 4, each * 8]
    losses = torch.tensor([row["loss"] for row in steps])
    assert run.curves["step"].training == pytest.approx([float(losses[: n + 1].mean()) for n in range(8)])
    panels = side_by_side.draw([run, run]).axes
    assert [axes.get_xlabel() for axes in panels] == list(side_by_side.AXES.values())
    assert [len(axes.lines) for axes in panels] == [4, 4, 4]


def test_runs_of_other_tasks_are_said_and_not_mixed(runs):
    main(["report", "plain", "digits", "unrolled"])
    page = (runs / "metaprox-report.html").read_text()
    said = (
        "sinusoid, query loss (plain, unrolled); mnist1d, query accuracy (digits). Their numbers can&#39;t be compared"
    )
    assert said in page
    assert page.index("<h2>sinusoid, query loss</h2>") < page.index("<h2>mnist1d, query accuracy</h2>")
    assert len(re.findall(r"<tr><th class=\"text\">(plain|unrolled|digits)</th>", page)) == 3
    assert page.count("data:image/png") == 6


def test_runs_of_one_family_on_other_tasks_are_not_subtracted(runs):
    training.train(SMALL.but(shots=3, queries=4), runs / "shots")
    training.train(SMALL.but(seed=5), runs / "seed")
    main(["report", "plain", "shots", "seed"])
    page = (runs / "metaprox-report.html").read_text()
    assert "they differ in shots, queries, so that results are of other problems" in page
    assert [cells(page, name)[4] for name in ("shots", "seed")] == ["other tasks"] * 2


def test_names_are_as_long_as_they_must_be(runs):
    for where in ("a/x/run", "b/x/run"):
        shutil.copytree(runs / "plain", runs / where)
    main(["report", "a/x/run", "b/x/run", "--out", "new.html"])
    page = (runs / "new.html").read_text()
    assert cells(page, "b/x/run")[4] == "+0.000 ± 0.000"


def test_a_comparison_stands_for_its_runs_and_alone_for_itself(runs, capsys):
    plan = comparison.Plan.of(SMALL.but(meta_steps=1), {one: {"method": one} for one in ("fomaml", "reptile")}, (0, 1))
    comparison.compare(plan, runs / "both")
    main(["report", "both", "plain"])
    assert "5 runs side by side" in (runs / "metaprox-report.html").read_text()
    assert cells((runs / "metaprox-report.html").read_text(), "reptile/seed_1")[0] == "Reptile"
    main(["report", "both"])
    assert "Meta-learning methods on sinusoid" in (runs / "both" / "report.html").read_text()
    (runs / "both" / "report.html").unlink()
    main(["report", "both", "--out", "both.html"])
    assert "Meta-learning methods on sinusoid" in (runs / "both.html").read_text()
    assert not (runs / "both" / "report.html").exists()
    (runs / "both" / "comparison.json").unlink()  # as of one that has not finished
    main(["report", "both"])
    assert "4 runs side by side" in (runs / "metaprox-report.html").read_text()


# --- what is refused


def test_folders_that_are_no_runs_and_runs_given_twice_are_refused(runs, capsys):
    (runs / "empty").mkdir()
    (runs / "many").mkdir()
    (runs / "plain").rename(runs / "many" / "plain")
    (runs / "link").symlink_to(runs / "unrolled")
    assert refused(capsys) == (
        2,
        "metaprox: error: give the folder of a run, or of several: metaprox report RUN [RUN ...]\n",
    )
    assert refused(capsys, "nowhere")[0] == 1
    assert "nowhere is not a run folder" in refused(capsys, "nowhere")[1]
    assert "empty is not a run folder, nor one of a comparison" in refused(capsys, "unrolled", "empty")[1]
    assert "it holds runs, which can be given: many/plain" in refused(capsys, "many")[1]
    for other in ("unrolled", "./unrolled/", "link"):
        status, said = refused(capsys, "unrolled", other)
        assert status == 2
        assert "are the same run: give each once" in said
    assert not (runs / "metaprox-report.html").exists()


def test_a_page_is_not_written_over_something_else(runs, capsys):
    (runs / "mine.html").write_text("precious")
    assert "mine.html is there, and is no page of metaprox" in refused(capsys, "plain", "--out", "mine.html")[1]
    assert "mine.html is there, and is no page" in refused(capsys, "plain", "half", "--out", "mine.html")[1]
    assert (runs / "mine.html").read_text() == "precious"
    assert "half is a folder: choose a file, such as half/report.html" in refused(capsys, "plain", "--out", "half")[1]
    assert "can't be written" in refused(capsys, "plain", "--out", "no/where.html")[1]
    main(["report", "plain", "half"])
    main(["report", "plain", "half"])


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "deep": lambda content: b"[" * 100_000 + b"\n",
    "a number": lambda content: b"5\n",
    "a list": lambda content: b"[]\n",
    "an object": lambda content: b"{}\n",
    "a kind of line": lambda content: b'{"kind": "step", "step": 1}\n',
    "long number": lambda content: b"9" * 9000 + b"\n",
}
FILES = ("config.json", "metrics.jsonl", "test_tasks.json", "starts.jsonl", "weights.safetensors")


@pytest.mark.parametrize("checked", [True, False], ids=["with checksums", "without"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_line(runs, capsys, damage, name, checked):
    file = runs / "plain" / name
    if not checked:
        (runs / "plain" / "checksums.json").unlink()
    content = file.read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    status, said = refused(capsys, "plain")
    assert status == 1
    assert f"plain/{name}" in said
    assert f"plain/{name}" in refused(capsys, "half", "plain")[1]


@pytest.mark.filterwarnings("ignore:.*The picture of a task is left out")
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "starts.jsonl"])
def test_whatever_is_missing_is_one_line_or_not_needed(runs, capsys, monkeypatch, name):
    """Each key in turn has another name; a run by itself, and beside others."""
    monkeypatch.setattr(style, "panels", lambda figure: [])  # which take long, and are tried elsewhere
    monkeypatch.setattr(style, "save", lambda figure, place: None)
    file = runs / "plain" / name
    (runs / "plain" / "checksums.json").unlink()
    content = file.read_text()
    keys = sorted(set(re.findall(r'"(\w+)":', content)) - {"kind", "step"})
    assert len(keys) > 5
    counts = {None: 0, 1: 0}
    for key in keys:
        file.write_text(content.replace(f'"{key}":', f'"{key}_":'))
        for words in (["plain"], ["half", "plain"]):
            try:
                main(["report", *words, "--out", "page.html"])
                counts[None] += 1
            except SystemExit as ended:
                said = capsys.readouterr().err
                assert said.count("\n") == 1, key
                assert f"plain/{name}" in said, key
                counts[ended.code] += 1
    assert counts[1] > 5, counts


def test_markup_in_a_run_is_text(runs):
    file = runs / "plain" / "starts.jsonl"
    start = json.loads(file.read_text())
    del start["sha256"]
    (runs / "plain" / "checksums.json").unlink()
    file.write_text(json.dumps(start | {"command": "<script>alert(1)</script>", "host": "<b>"}) + "\n")
    shutil.copytree("plain", "<img src=x>")
    for words in (["plain"], ["plain", "<img src=x>"]):
        main(["report", *words, "--out", "page.html"])
        page = (runs / "page.html").read_text()
        assert "&lt;script&gt;alert(1)" in page
        assert not re.search("<script|<b>|<img src=x", page)


# --- parts


def test_health_says_what_is_healthy_beside_every_number():
    look = {"to_go": 2.0, "long": 0.25, "rise": 0.0, "astray": 0.0, "rounding": 0.0, "indefinite": 0.5, "ratio": 0.1}
    steps = [{"gradient_norm": float(n), "sampling_error": 0.5, "tasks_skipped": n % 2} for n in range(100)]
    steps[24]["health"] = look
    steps[49]["health"] = look | {"long": 0.75, "rise": 1.5}
    table = {row["quantity"]: row for row in health.health_table(steps)}
    assert all(row["healthy"] for row in table.values())
    assert table["length of the meta-gradient"]["start"] == "12"  # of 0 to 24
    assert table["length of the meta-gradient"]["end"] == "87"  # of 75 to 99
    row = table["share of tasks with g longer than the query gradient"]
    assert (row["start"], row["end"]) == ("0.25", "0.75")
    assert row["healthy"].endswith("warned of above 0.5")
    assert table["query loss, by its lowest so far"]["start"] == "1.5"  # at first there is no lowest
    assert table["tasks skipped because they diverged, first and second half"]["end"] == "25"
    assert health.health_table([]) == []


def test_panels_say_what_their_neighbours_said_for_them():
    figure = Figure(figsize=(10, 8), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for number, axes in enumerate(grid.flat):
        axes.plot([1, 2], [number, 1], label="a line")
    grid[0, 0].set_title("first row", loc="left")
    for axes in grid[:, 0]:
        axes.set_ylabel("height")
    grid[1, 1].set_xlabel("width")
    figure.suptitle("all")
    shown = reports.page.Shown.of("Title", figure, "More.")
    assert shown.note == "all More."
    assert len(shown.panels) == len(set(shown.panels)) == 4
    right = grid[0, 1]
    assert (right.get_title(loc="left"), right.get_xlabel(), right.get_ylabel()) == ("first row", "width", "height")
    assert all(label.get_visible() for label in right.get_yticklabels())
    assert figure.legends == []
    assert style.panels(Figure()) == []


def test_long_names_at_the_side_leave_a_panel_its_width():
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2, 3], [0, 1, 2])
    axes.set_yticks(
        range(3), ["forward corrected, center, 5 Anderson steps, K = 30", "a name that is as long as that", "c"]
    )
    axes.set_title("A sentence that says what this figure shows, which is longer than the figure is wide", loc="left")
    style.panels(figure)  # warnings, as that no width is left, are errors
    assert axes.get_position().width > 0.45
    assert axes.get_title(loc="left").count("\n") == 2
