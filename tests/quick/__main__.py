"""Every experiment at quick size under several settings: do its checks hold whatever rounding and chance do?

Settings are the threads of torch, the seed, and the precision: "as written", and for experiments that train networks,
which are in float32 as written, "float64": each model is converted as it becomes a problem, and so are all tasks of the
families. The others say themselves what is in float32 and what in float64 (bias, convergence and logistic-accuracy are
in float64, calibration, defaults and step-error in both, memory counts the bytes of float32), so that they have no
other precision to run in.

Writes results.json and table.md in --out, anew after each run; --again goes on with those of the same machine.
Ends with 1 where a check failed or a run has none. PYTHONPATH must lead to src where metaprox is not installed.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from metaprox.experiments import experiments
from quick import campaign, report

parser = argparse.ArgumentParser(
    description=__doc__, prog="quick", formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--experiments", nargs="+", default=list(experiments()), choices=list(experiments()))
parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
parser.add_argument("--precisions", nargs="+", default=["as written", "float64"], choices=["as written", "float64"])
parser.add_argument("--jobs", type=int, default=2, help="threads of all runs at once")
parser.add_argument("--limit", type=float, default=1800.0, help="seconds of one run, at most")
parser.add_argument("--again", action="store_true", help="keep what results.json has of it")
parser.add_argument("--out", type=Path, default=Path("results/quick-everywhere"))
given = parser.parse_args()
if given.jobs < max(given.threads):
    parser.error(f"--jobs {given.jobs} is fewer threads than one run has: {max(given.threads)}")

wanted = campaign.settings(given.experiments, given.threads, given.seeds, given.precisions)
ran = {one.setting: one for one in report.load(given.out) if given.again and one.failure is None}
todo = [one for one in wanted if one not in ran]
began = time.monotonic()


def say(one: campaign.Ran) -> None:
    ran[one.setting] = one
    bad = report.wrong([one])
    print(
        f"{len(ran)} of {len(wanted)} ({time.monotonic() - began:.0f} s): {one.setting}, {one.seconds:.0f} s",
        flush=True,
    )
    print("".join(f"    {line}\n" for line in bad), end="", flush=True)
    report.save(ran.values(), [other for other in wanted if other not in ran], given.out)


campaign.run(todo, given.jobs, given.limit, say)
failed = report.wrong(ran.values())
print(f"{len(ran)} runs; failed: {len(failed)}; {given.out / 'table.md'}")
sys.exit(bool(failed))
