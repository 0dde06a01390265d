"""Mutate the core, one change at a time, and list what no test notices."""

import argparse
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutants import campaign, child, report
from mutants.campaign import Result
from mutants.reach import reach
from mutants.targets import HELD, REST, ROOT

parser = argparse.ArgumentParser(description=__doc__, prog="mutants")
parser.add_argument("--files", nargs="+", default=[*HELD, *REST], help="of src/metaprox")
parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
parser.add_argument("--sample", type=int, help="only so many mutants, at random")
parser.add_argument("--seed", type=int, default=0, help="of the sample")
parser.add_argument("--seconds", type=float, default=25.0, help="of tests for each mutant, at most")
parser.add_argument("--again", action="store_true", help="only what survived in --out, or is new")
parser.add_argument("--stale", action="store_true", help="trace no test anew that has not changed, though the core has")
parser.add_argument("--out", type=Path, default=ROOT / "results" / "mutants")
given = parser.parse_args()

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "src"]  # copies are imported
child.load()
before = {result.key: result for result in report.load(given.out)}
chosen = campaign.all_mutants(given.files)
if given.sample is not None:
    chosen = sorted(random.Random(given.seed).sample(chosen, given.sample), key=chosen.index)
wanted = {(m.file, m.function, m.before, m.after): m for m in chosen}
elsewhere = [result for result in before.values() if result.file not in given.files]
kept = {key: before[key] for key in wanted if given.again and key in before and before[key].killed}
with campaign.copied() as folder:
    known = reach(folder / "src", folder, lambda line: print(line, flush=True), stale=given.stale)
print(f"{len(wanted) - len(kept)} of {len(wanted)} mutants, {len(known)} tests", flush=True)


def say(result: Result) -> None:
    kept[result.key] = result
    if not result.killed:
        print(f"{result.outcome}: {result.file}:{result.line} {result.before} => {result.after}", flush=True)
    known_of = (kept.get(key) or before.get(key) for key in wanted)
    report.save([*filter(None, known_of), *elsewhere], given.out)


todo = [mutant for key, mutant in wanted.items() if key not in kept]
campaign.run(todo, known, jobs=given.jobs, seconds=given.seconds, say=say)
results = [kept[key] for key in wanted]
report.save([*results, *elsewhere], given.out)
wrong = report.verdict(results)
held = [result for result in results if result.file in HELD]
print(
    f"killed: {report.share(held):.1%} of {len(held)} mutants held, {report.share(results):.1%} of all {len(results)}"
)
print("\n".join(wrong))
sys.exit(bool(wrong))
