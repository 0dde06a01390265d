"""Some rows of the comparison with higher and TorchOpt, and what it says where a peer disagrees or can't."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
for package in ("higher", "torchopt"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'metaprox[peers]'")


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers")


def comparison(peers, method, network, package):
    wanted = (method, network, package)
    return next(c for c in peers.COMPARISONS if (c.method, c.network.name, c.peer.package) == wanted)


@pytest.mark.parametrize(
    "row",
    [
        ("MAML", "conv, batch norm, ReLU", "higher"),
        ("MAML, proximal", "MLP", "torchopt"),
        ("iMAML", "MLP", "torchopt"),
        ("MAML", "MLP, tied weights", "higher"),
    ],
    ids=" ".join,
)
def test_meta_gradients_agree_with_those_of_others(peers, row):
    rows = peers.compare(comparison(peers, *row), seed=1)
    assert [row.backend for row in rows] == ["vmap", "loop"]
    for row in rows:
        assert row.relative_difference < 1e-5


def unable(model, tasks, inner):
    raise RuntimeError("not for this model")


def test_a_disagreement_fails_and_is_shown(peers, monkeypatch, tmp_path):
    def wrong(*case):
        return 1.001 * peers.our_meta_gradient(*case)

    one = comparison(peers, "MAML", "MLP", "higher")
    monkeypatch.setattr(peers, "COMPARISONS", [replace(one, peer=peers.Peer("higher", wrong))])
    with pytest.raises(SystemExit, match=r"(?s)2 of 2 rows should agree to 1e-05 and do not:.*1.0e-03 \| no \|"):
        peers.main(["--out", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["agrees"] for row in rows] == [False, False]
    assert rows[0]["relative_difference"] == pytest.approx(0.001 / 1.001)


@pytest.mark.parametrize("should_agree", [False, True])
def test_what_a_peer_cannot_do_is_shown_and_fails_only_where_it_should_agree(
    peers, monkeypatch, tmp_path, should_agree, capsys
):
    one = replace(comparison(peers, "MAML", "MLP", "higher"), should_agree=should_agree, backends=("vmap",))
    monkeypatch.setattr(peers, "COMPARISONS", [replace(one, peer=peers.Peer("higher", unable))])
    if should_agree:
        with pytest.raises(SystemExit, match="1 of 1 rows should agree"):
            peers.main(["--out", str(tmp_path)])
    else:
        peers.main(["--out", str(tmp_path)])
    assert "can't: RuntimeError: not for this model" in (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text()
