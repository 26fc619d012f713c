"""Kappa and alpha against published examples, by hand on verdicts, and what must not change them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from psychepass.schema import SWAPPED, Dimension, Winner
from tournament.rater_agreement import (
    JUDGE,
    Item,
    agreement_rows,
    alpha,
    alpha_of,
    cohen_kappa,
    kappa_of,
    mean_kappa,
    over_clients,
    same_verdict,
    ties,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("table", "kappa"),
    [  # the three examples of the Wikipedia article on Cohen's kappa; the last two agree on as many items
        ([[20, 5], [10, 15]], 0.4),
        ([[45, 15], [25, 15]], 0.1304),
        ([[25, 35], [5, 35]], 0.2593),
    ],
)
def test_cohens_kappa_of_published_tables(table: list[list[int]], kappa: float) -> None:
    assert cohen_kappa(np.array(table)) == pytest.approx(kappa, abs=5e-5)


def test_weighted_kappa_by_hand() -> None:
    # rows: p_o cost (1 + 1 + 4)/6 quadratic; by chance: see the products of the margins
    table = np.array([[1, 1, 1], [0, 1, 0], [0, 1, 1]])
    rows, columns = np.array([3, 1, 2]) / 6, np.array([1, 3, 2]) / 6
    by_chance = sum(rows[i] * columns[j] * (i - j) ** 2 for i in range(3) for j in range(3))
    assert cohen_kappa(table, "quadratic") == pytest.approx(1 - (1 + 1 + 4) / 6 / by_chance)
    assert cohen_kappa(np.diag([3, 2, 1]), "linear") == 1
    assert cohen_kappa(np.array([[2, 0], [0, 0]])) is None  # both said one thing: no chance to correct for


# Krippendorff (2011), Computing Krippendorff's alpha-reliability, example C: 4 observers, 12 units, gaps
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def test_alpha_of_the_published_example() -> None:
    assert alpha(KRIPPENDORFF, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert alpha(KRIPPENDORFF, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert alpha([[1, 1], [1, 1]], "nominal") is None


def item(case: int, stratum: str = "s", dimension: str = "skill", **said: Winner) -> Item:
    return Item(stratum, f"client-{case}", f"{stratum}-{case}", dimension, said)


def drawn(n: int, noise: float, seed: int = 0, per_case: int = 4) -> list[Item]:
    """A truth, and three who see it through noise."""
    rng, options = random.Random(seed), ("A", "tie", "B")
    found = []
    for case in range(n):
        for k in range(per_case):
            truth: Winner = rng.choice(options)
            said: dict[str, Winner] = {
                who: rng.choice(options) if rng.random() < noise else truth for who in ("e1", "e2", JUDGE)
            }
            found.append(item(case, "strong-strong" if case % 2 else "weak-weak", list(Dimension)[k], **said))
    return found


def test_kappa_counts_both_orientations() -> None:
    # 4 items: A A, A A, tie tie, A B; mirrored: margins A 3/8, tie 2/8, B 3/8 on both sides
    items = [item(0, e1="A", e2="A"), item(1, e1="A", e2="A"), item(2, e1="tie", e2="tie"), item(3, e1="A", e2="B")]
    by_chance = 2 * (3 / 8) ** 2 + (2 / 8) ** 2
    assert kappa_of(items, "e1", "e2") == pytest.approx((0.75 - by_chance) / (1 - by_chance))
    assert same_verdict(items, [("e1", "e2")])["value"] == 0.75 and ties(items, ["e1", "e2"]) == 0.25


def test_no_figure_hangs_on_which_session_is_called_first() -> None:
    items, rng = drawn(20, 0.4), random.Random(1)
    turned = [i if rng.random() < 0.5 else Item(i.stratum, i.client, i.case, i.dimension,
              {who: SWAPPED[v] for who, v in i.verdicts.items()}) for i in items]  # fmt: skip
    strata = ["strong-strong", "weak-weak"]
    before, after = (agreement_rows(x, ["e1", "e2"], strata) for x in (items, turned))
    assert [r["between"] for r in before] == [r["between"] for r in after]
    for a, b in zip(before, after, strict=True):
        assert [a[k] for k in ("value", "low", "high")] == pytest.approx([b[k] for k in ("value", "low", "high")])
    one_rater = [Item(i.stratum, i.client, i.case, i.dimension, i.verdicts | {"e1": SWAPPED[i.verdicts["e1"]]})
                 for i in items]  # fmt: skip
    assert kappa_of(one_rater, "e1", "e2") != pytest.approx(kappa_of(items, "e1", "e2"))  # the control


def test_rows_by_stratum_with_the_ceiling_beside_them() -> None:
    items = drawn(20, 0.4)
    rows = agreement_rows(items, ["e1", "e2"], ["strong-strong", "weak-weak"])
    of = {(r["name"], r["between"], r["measure"]): r for r in rows}
    strong = [i for i in items if i.stratum == "strong-strong"]
    assert of["strong-strong", "e1 and judge", "kappa"]["value"] == kappa_of(strong, "e1", JUDGE)
    assert of["strong-strong", "raters", "kappa"]["value"] == kappa_of(strong, "e1", "e2")
    mean = mean_kappa(strong, [("e1", JUDGE), ("e2", JUDGE)])
    row = of["strong-strong", "raters and judge", "kappa"]
    assert row["value"] == mean and row["low"] < mean < row["high"]
    assert (row["n"], row["cases"], row["items"]) == (10, 10, 40)
    difference = of["strong-strong", "raters and judge - raters", "kappa"]
    assert difference["value"] == pytest.approx(mean - of["strong-strong", "raters", "kappa"]["value"])
    assert of["all", "raters", "alpha"]["value"] == alpha_of(items, ["e1", "e2"])
    assert of["all", "raters", "alpha"]["value"] == pytest.approx(kappa_of(items, "e1", "e2"), abs=0.02)
    assert ("empathy", "e1 and e2", "kappa") not in of and of["empathy", "raters", "kappa"]["n"] == 20


def test_three_raters_have_means_over_their_pairs() -> None:
    items = [Item(i.stratum, i.client, i.case, i.dimension, i.verdicts | {"e3": i.verdicts[JUDGE], JUDGE: "A"})
             for i in drawn(10, 0.4)]  # fmt: skip
    of = {(r["between"], r["measure"]): r for r in agreement_rows(items, ["e1", "e2", "e3"], []) if r["of"] == "all"}
    pairs = [("e1", "e2"), ("e1", "e3"), ("e2", "e3")]
    assert of["raters", "kappa"]["value"] == pytest.approx(np.mean([kappa_of(items, a, b) for a, b in pairs]))
    assert {f"{a} and {b}" for a, b in pairs} <= {between for between, _ in of}
    assert of["raters", "alpha"]["value"] == alpha_of(items, ["e1", "e2", "e3"])
    # a judge that always says A agrees with nobody beyond chance, however often it is right
    assert abs(of["raters and judge", "kappa"]["value"]) < 0.2


def test_raters_who_never_differ_have_no_jackknife_interval() -> None:
    found = over_clients(drawn(8, 0.0), lambda chosen: kappa_of(chosen, "e1", "e2"))
    assert found == {"value": 1.0, "low": None, "high": None, "n": 8}
    share = same_verdict(drawn(8, 0.0), [("e1", "e2")])
    assert share["value"] == 1 and share["low"] < 0.95  # its interval knows that there were 8 clients only
    assert over_clients([item(0, e1="tie", e2="tie")], lambda c: kappa_of(c, "e1", "e2"))["value"] is None


def test_the_interval_of_kappa_covers_the_truth() -> None:
    """e1 and e2 keep the truth with probability 0.6 each: kappa is 0.36; 95 % nominal, 200 studies of 12 cases."""
    hits = 0
    for seed in range(200):
        found = over_clients(drawn(12, 0.4, seed=seed), lambda chosen: kappa_of(chosen, "e1", "e2"))
        hits += found["low"] <= 0.36 <= found["high"]
    assert 0.90 <= hits / 200 <= 0.99
