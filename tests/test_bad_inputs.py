"""The campaign of bad inputs: each has the wanted outcome."""

from collections import Counter

import pytest

from bad_inputs.campaign import PARTS

ROWS = {row.label: row for rows in PARTS.values() for row in rows}


def test_the_campaign_is_large_and_its_rows_have_names_of_their_own():
    counts = Counter(row.label for rows in PARTS.values() for row in rows)
    assert [label for label, count in counts.items() if count > 1] == []
    assert len(ROWS) > 2000


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_input_is_refused_by_name_or_taken_for_what_it_is(part):
    """None is taken that is meaningless, none ends in an error that names neither the argument nor the remedy."""
    odd = []
    for row in PARTS[part]:
        outcome, said = row.outcome()
        if outcome != row.wanted:
            odd.append(f"{row.label}: {outcome}, not {row.wanted}: {said}")
    assert not odd, "\n".join(odd)
