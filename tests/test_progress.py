"""What is seen of a run while it goes on: the progress line, the lines without a terminal, the log as it grows."""

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from metaprox import training
from metaprox.cli import main
from metaprox.cli.progress import Pace, Watcher, shown_progress
from metaprox.training import Progress

SMALL = training.Settings(
    "sinusoid", hidden=(8,), meta_steps=6, meta_batch=2, eval_every=3, eval_tasks=4, test_tasks=205, steps=2,
    compile="off",
)  # fmt: skip


def test_the_rate_is_that_of_the_last_meta_steps_and_says_what_is_left():
    pace = Pace()
    assert pace.shown(100) == ""
    pace.see(41, 1000.0)  # the first of a resumed run, which compiled: not counted
    assert pace.shown(100) == ""
    pace.see(42, 1004.0)
    assert pace.shown(50) == "4 s/step, 0:00:32 left"
    for step in range(43, 400):
        pace.see(step, 1004.0 + (step - 42) / 8)
    assert pace.shown(3999) == "8 steps/s, 0:07:30 left"


def lines(watch, monkeypatch, live=False, width=100):
    """What a watcher shows, without a terminal or on one."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=live, width=width, color_system=None)
    monkeypatch.setattr("sys.stdout", out)
    with shown_progress(console) as seen:
        watch(seen)
    return out.getvalue()


def test_lines_without_a_terminal_say_what_is_training_and_what_is_validation(tmp_path, monkeypatch):
    printed = lines(lambda seen: training.train(SMALL, tmp_path / "run", seen.watch, [seen]), monkeypatch)
    first, test, *steps, last = printed.splitlines()
    assert first == "starting: data, model, a look at both"
    assert test == "test before training: 205 tasks"
    assert last == "final test: 205 tasks"
    assert [line.split("  ")[0] for line in steps] == [f"meta-step {step} of 6" for step in range(1, 7)]
    rows = training.RunFolder.open(tmp_path / "run").read_metrics()
    trained = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    validated = {row["step"]: row["loss"]["mean"] for row in rows if row.get("split") == "validation"}
    assert f"  training loss {trained[2]:.3f}  ratio " in steps[1]
    assert f"  training loss {trained[4]:.3f}  validation loss {validated[3]:.3f}  ratio " in steps[3]
    assert re.search(r"  [0-9.e+]+ (steps/s|s/step), 0:00:0\d left$", steps[3])


def test_a_terminal_shows_start_training_rate_and_final_test(tmp_path, monkeypatch):
    phases = []
    told = Watcher.on_evaluating

    def on_evaluating(self, trainer, when, split, done, count):
        told(self, trainer, when, split, done, count)
        phases.append((when, split, done, count))
        self._bar.refresh()

    monkeypatch.setattr(Watcher, "on_evaluating", on_evaluating)
    printed = lines(lambda seen: training.train(SMALL, tmp_path / "run", seen.watch, [seen]), monkeypatch, live=True)
    tests = [(0, 205), (100, 205), (200, 205)]  # a hundred at a time
    assert phases == [
        *(("before", "test", *one) for one in tests),
        *[("during", "validation", 0, 4)] * 2,
        *(("after", "test", *one) for one in tests),
    ]
    for part in ("starting: data", "test before training, 100 of 205 tasks", "evaluation on validation tasks, 0 of 4",
                 "final test, 200 of 205 tasks", "6/6", "left"):  # fmt: skip
        assert part in printed, part
    assert "meta-step" not in printed


@pytest.mark.parametrize("width", [60, 100])
def test_a_narrow_terminal_cuts_no_number_and_no_time(monkeypatch, width):
    now = Progress(2, 9, 0.5, {"accuracy": 0.8}, {"ratio": 0.1}, {"RatioWarning": "x"}, {"validation accuracy": 0.7})

    def watch(seen):
        seen._pace.see(1, 0.0)
        monkeypatch.setattr("time.monotonic", lambda: 4.0)
        seen.watch(now)
        seen._bar.refresh()

    printed = " ".join(lines(watch, monkeypatch, live=True, width=width).split())
    for part in ("training", "2/9", "4 s/step, 0:00:28 left", "training loss 0.500 accuracy 0.800", "RatioWarning",
                 "validation accuracy 0.700", "ratio 0.100"):  # fmt: skip
        assert part in printed, part


def test_a_long_silence_is_broken_where_there_is_no_terminal(monkeypatch):
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))

    def watch(seen):
        for step in range(1, 9):
            seen.watch(Progress(step, 1000, 0.5, {}))

    printed = lines(watch, monkeypatch).splitlines()[1:]
    assert 2 < len(printed) < 8  # after each minute, where a tenth of the run takes hours


READER = "import sys; rows = open(sys.argv[1]).read(); assert rows.endswith('\\n'); print(rows.count('\\n'))"


def test_the_log_can_be_followed_line_by_line(tmp_path):
    """Another process sees each line, whole, as soon as it is told of."""
    log, counts = tmp_path / "run" / "metrics.jsonl", []

    class Reader(training.Callback):
        lines = 0

        def on_step(self, trainer, record):
            self.lines += 1
            done = subprocess.run([sys.executable, "-c", READER, log], capture_output=True, text=True, check=True)
            counts.append((int(done.stdout), self.lines))
            assert json.loads(log.read_text().splitlines()[-1]) == record

        def on_evaluation(self, trainer, record):
            self.lines += 1

    training.train(SMALL.but(test_tasks=2, meta_steps=4), tmp_path / "run", callbacks=[Reader()])
    assert [seen for seen, _ in counts] == [told for _, told in counts] == [2, 3, 4, 6]


def test_a_resumed_run_shows_no_rate_of_what_it_did_not_do(tmp_path, capsys):
    def stop(now):
        if now.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SMALL.but(test_tasks=2, checkpoint_every=4), tmp_path / "run", stop)
    main(["resume", str(tmp_path / "run")])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("meta-step", "test", "final"))]
    assert [line.split("  ")[0] for line in said] == ["meta-step 5 of 6", "meta-step 6 of 6", "final test: 2 tasks"]
    assert "left" not in said[0]
    assert "left" in said[1]
