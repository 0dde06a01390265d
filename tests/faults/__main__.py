"""Do every fault, and write what was survived and what was lost."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from faults.campaign import rows, table

parser = argparse.ArgumentParser(description=__doc__, prog="faults")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("results/faults"))
parser.add_argument("--only", default="", help="faults whose name has this in it")
parser.add_argument("--share", type=float, default=1.0, help="of the trials")
given = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    began = time.monotonic()
    done = [row for row in rows(Path(folder), given.share) if given.only in row.fault]
    for row in done:
        row.run(given.seed)
        print(f"{row.fault}: {row.tried} tried, {len(row.lost)} lost ({time.monotonic() - began:.0f} s)", flush=True)
        for wrong in row.lost:
            print(f"    {wrong}", flush=True)
lost = sum(len(row.lost) for row in done)
if not given.only and given.share == 1:
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "table.md").write_text(table(done))
    raw = [{"fault": row.fault, "tried": row.tried, "lost": row.lost} for row in done]
    (given.out / "results.json").write_text(json.dumps({"seed": given.seed, "rows": raw}, indent=1) + "\n")
print(f"{sum(row.tried for row in done)} tried, {lost} lost")
sys.exit(bool(lost))
