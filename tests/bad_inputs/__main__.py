"""Count the outcomes, and list those that are not the wanted ones."""

import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bad_inputs.campaign import PARTS
from bad_inputs.rows import count

warnings.simplefilter("ignore")
total: Counter[str] = Counter()
for part, rows in PARTS.items():
    counts, odd = count(rows)
    total += counts
    print(f"{part}: {dict(counts)}")
    for outcome, row, said in odd:
        print(f"    {outcome}: {row.label}: {' '.join(said.split())[:150]}")
print(f"{sum(total.values())} inputs: {dict(total)}")
