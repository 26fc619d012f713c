"""The ratings' benchmark at a size that takes seconds, and its adapter of human scores."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import connected_components

from tests.benchmarks.simulated_tournaments import population, without_maximum
from tournament.bradley_terry import fit, win_graph

pytest.importorskip("choix", reason="choix is absent: it comes with the dev extra")
pytest.importorskip("openpyxl", reason="openpyxl is absent: it comes with the dev extra")

from tests.benchmarks import ratings as benchmark


def test_human_scores_become_battles(tmp_path: Path) -> None:
    def cell(care: int | None) -> str:
        return json.dumps({"Care": care, "Sense": 1})

    file = tmp_path / "scores.xlsx"
    made = {"ConvID": [1, 2], "response_a": [cell(5), cell(2)], "response_b": [cell(3), cell(2)]}
    pd.DataFrame(made | {"response_c": [cell(None), None]}).to_excel(file, index=False)
    found = benchmark.human_counts(file)
    wins_CNN, ties_CNN = found["Care"]
    assert wins_CNN[0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]] and not wins_CNN[1].any()
    assert ties_CNN[1].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]] and not ties_CNN[0].any()
    wins_CNN, ties_CNN = found["Sense"]
    assert not wins_CNN.any() and ties_CNN.sum(axis=(1, 2)).tolist() == [6, 2]


def test_on_human_battles_it_equals_choix_and_scipy(shared_dir: Path, capsys: Any) -> None:
    if not (shared_dir / "data/mentalalign/human_judge.xlsx").is_file():
        pytest.skip("mentalalign is absent")
    found = {f.name.removeprefix("agreement/"): f for f in benchmark.agreement(argparse.Namespace())}
    assert found.pop("strict human battles").value == 157_935
    gaps = [f.value for name, f in found.items() if name.startswith("largest difference")]
    assert len(gaps) == 4 and max(gaps) < 1e-6
    assert len(found) > 6 and all(f.low <= f.value <= f.high for f in found.values())


def test_without_the_data_it_says_so(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("PSYCHEPASS_SHARED", str(tmp_path))
    assert benchmark.main(["--part", "agreement", "--json", str(tmp_path / "f.json")]) == 0
    assert "is absent" in capsys.readouterr().out and json.loads((tmp_path / "f.json").read_text()) == []


def test_cases_without_a_maximum_are_what_they_are_called() -> None:
    rng = np.random.default_rng(1)
    for kind in ("separable", "disconnected", "ok") * 30:
        wins_NN = without_maximum(rng, kind).sum(axis=(0, 1))
        strong, weak = (connected_components(wins_NN > 0, connection=c)[0] for c in ("strong", "weak"))
        assert (strong == 1, weak == 1) == (kind == "ok", kind != "disconnected")
        assert win_graph(wins_NN) == kind


def test_a_population_gives_its_own_large_sample_value() -> None:
    people = population(60, np.array([[0.0, 0.5, 1.0]]), client_sd=0.7)
    assert np.all(people.wins_CKNN.sum(axis=(1, 2, 3)) == 4)  # two rounds of one match in both orders
    assert 0.1 < people.ties_CK.mean() / 4 < 0.4
    whole = fit(people.wins_CKNN[:, 0].sum(axis=0)[None])[0]
    assert people.large_sample_theta(60, davidson=False) == pytest.approx(whole, abs=1e-8)
    assert people.draw(8, np.random.default_rng(0)).wins_CKNN.shape == (8, 1, 3, 3)


def test_quick_parts_write_flat_figures(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(benchmark, "CLIENTS", (8,))
    path = tmp_path / "figures.json"
    for part in ("speed", "separable", "small"):
        assert benchmark.main(["--quick", "--part", part, "--json", str(path)]) == 0
        found = {f["name"]: f for f in json.loads(path.read_text())}
        assert all(set(f) == {"name", "value", "low", "high", "n"} and math.isfinite(f["high"]) for f in found.values())
        if part == "separable":
            assert found["separable/flagged, without a finite maximum"]["value"] == 1
            assert found["separable/flagged, with one"]["value"] == 0
        elif part == "small":
            assert found["small/3 contestants, 8 clients/ratings covered"]["value"] >= 0.9
        else:
            assert found["speed/12 dimensions x 50 resamples/largest difference of theta"]["value"] < 1e-6
