"""When a policy may act alone: thresholds, actions and costs, chosen on some messages and held to on others."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.config import Acting
from mlx_email.errors import DataError
from mlx_email.evaluate import acting, costs, coverage
from mlx_email.labels.schema import ACTIONS

OPEN = Acting(certainty=None, most_cost=10.0)


def mail(count, seed=0, spread=3.0):
    """Calibrated probabilities, and right actions drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 5)) * spread
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return p, (p.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(0, 4)


sure = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9, 0.95]), st.booleans()), min_size=1, max_size=30)


@given(sure, st.sampled_from([0.5, 0.8, 0.95]))
def test_a_threshold_is_the_lowest_that_reaches_the_goal(pairs, goal):
    """Beside trying each of them."""
    confidence, right = np.array([each for each, _ in pairs]), np.array([each for _, each in pairs])
    reach = [limit for limit in np.unique(confidence) if right[confidence >= limit].mean() >= goal]
    assert coverage.threshold(confidence, right, goal) == (min(reach) if reach else None)


@given(st.integers(1, 40), st.data())
def test_at_most_is_the_binomial_sum(count, data):
    wrong, risk = data.draw(st.integers(0, count)), data.draw(st.floats(0.01, 0.99))
    expected = sum(comb(count, k) * risk**k * (1 - risk) ** (count - k) for k in range(wrong + 1))
    assert coverage.at_most(wrong, count, risk) == pytest.approx(expected)


def test_certainty_asks_for_more_than_the_goal():
    """200 messages of which 190 were right reach 0.95, but may well have done so by chance."""
    confidence, right = np.full(200, 0.9), np.arange(200) >= 10
    assert coverage.threshold(confidence, right, 0.95) == 0.9
    assert coverage.threshold(confidence, right, 0.95, certainty=0.9) is None
    assert coverage.threshold(confidence, np.arange(200) >= 5, 0.95, certainty=0.9) == 0.9


def test_thresholds_are_tried_from_above_to_the_first_that_fails():
    """The surest 60 are right, of the next 60 none is, all later ones are: nothing below the gap is looked at."""
    right = np.r_[np.ones(60), np.zeros(60), np.ones(10_000)].astype(bool)
    confidence = np.linspace(1, 0, len(right))
    limit = coverage.threshold(confidence, right, 0.9, certainty=0.8)
    assert limit is None or limit >= confidence[60]
    assert coverage.threshold(confidence, right, 0.9) == 0.0


def test_confidences_that_say_nothing_seldom_find_a_threshold():
    """Where no threshold reaches the goal, one is found in at most a fifth of all cases; trying every one of them by
    itself, the planted fault, finds one far more often."""
    rng, found, planted = np.random.default_rng(0), 0, 0
    for _ in range(200):
        confidence, right = rng.random(300), rng.random(300) < 0.885
        found += coverage.threshold(confidence, right, 0.9, certainty=0.8) is not None
        wrong = np.cumsum(~right[np.argsort(-confidence)])
        planted += any(coverage.at_most(int(wrong[n - 1]), n, 0.1) <= 0.2 for n in range(10, 300, 5))
    assert found <= 40 < planted


def test_a_certain_threshold_holds_on_other_mail_as_often_as_it_says():
    """Of 200 times, the accuracy on 200,000 other messages is below the goal in about a fifth or less with certainty
    0.8; in about half of them without."""
    p, target = mail(200_000, seed=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == target
    order = np.argsort(confidence)
    after = right[order][::-1].cumsum()[::-1] / np.arange(len(order), 0, -1)  # accuracy from each confidence on
    missed = {0.8: 0, None: 0}
    for seed in range(200):
        some = np.random.default_rng(seed).integers(0, len(order), 300)
        for certainty in missed:
            limit = coverage.threshold(confidence[some], right[some], 0.95, certainty=certainty)
            if limit is not None:
                missed[certainty] += after[np.searchsorted(confidence[order], limit)] < 0.95
    assert missed[0.8] <= 50 and missed[None] >= 80


def test_the_curve_by_hand():
    share, accuracy = coverage.curve(np.array([0.9, 0.9, 0.5, 0.7]), np.array([True, False, False, True]))
    np.testing.assert_allclose(share, [0.5, 0.5, 0.75, 1.0])  # the two surest cannot be told apart
    np.testing.assert_allclose(accuracy, [0.5, 0.5, 2 / 3, 0.5])


def test_rules_reach_their_goals_on_other_mail():
    p, target = mail(4000)
    rules = acting.verified(acting.choose(p[:2000], target[:2000], OPEN), p[2000:], target[2000:])
    shares = [rule.test["coverage"] for rule in rules.goals]
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0.05
    for rule in rules.goals:
        assert rule.validation["accuracy"] >= rule.goal
        assert rule.test["accuracy"] == pytest.approx(rule.goal, abs=0.02)


def test_a_policy_that_is_wrong_about_an_action_may_not_take_it():
    p, target = mail(4000)
    said = p.argmax(axis=1)
    target = np.where(said == 4, (said + 1 + np.arange(4000) % 4) % 5, target)  # deletions are always wrong
    rules = acting.choose(p, target, Acting(goals=(0.6,), certainty=None, most_cost=10.0))
    (rule,) = rules.goals
    assert rule.threshold is not None and "delete" not in rule.actions and "archive" in rule.actions
    assert not acting.may_act(rules, 0.6, p)[said == 4].any()
    assert rule.validation["acts"] < rule.validation["coverage"]


def test_what_costs_more_has_to_be_surer():
    p, target = mail(4000)
    rules = acting.choose(p, target, Acting(goals=(0.5,), certainty=None))
    acts, said, confidence = acting.may_act(rules, 0.5, p), p.argmax(axis=1), p.max(axis=1)
    least = {name: confidence[acts & (said == number)].min() for number, name in enumerate(ACTIONS)}
    assert least["delete"] > 0.9 and least["forward"] > 0.94 and least["archive"] < 0.9
    free = acting.choose(p, target, Acting(goals=(0.5,), certainty=None, costs={"archive": {"delete": 0.0}}))
    assert acting.may_act(free, 0.5, p).sum() > acts.sum()


def test_costs_are_of_saying_one_where_another_was_right():
    found = costs.matrix({"reply_now": {"archive": 7.0}, "archive": {"archive": 9.0}})
    assert found[ACTIONS.index("reply_now"), ACTIONS.index("archive")] == 7.0
    assert (np.diag(found) == 0).all()
    plain = costs.matrix()
    of = {name: number for number, name in enumerate(ACTIONS)}
    assert plain[of["reply_now"], of["delete"]] > plain[of["reply_now"], of["archive"]]  # the other way is cheaper
    np.testing.assert_allclose(costs.expected(np.array([0, 0, 0, 0.5, 0.5]), plain)[of["delete"]], 0.5 * plain[3, 4])
    assert costs.mean(np.array([0, 3]), np.array([0, 4]), plain) == plain[3, 4] / 2


def test_the_action_that_is_expected_to_cost_least_costs_least():
    """By calibrated probabilities; and of a deletion that is likeliest, but not sure, another one."""
    p, target = mail(20_000, spread=1.0)
    plain = costs.matrix()
    found = costs.summary(target, p, plain)
    assert found["cost_of_cheapest"] < found["cost"] - 0.05
    assert found["cost"] == costs.mean(target, p.argmax(axis=1), plain)
    everything = [costs.mean(target, np.full(len(target), action), plain) for action in range(5)]
    assert found["cost_of_cheapest"] < min(everything)
    unsure = np.array([[0.1, 0.1, 0.0, 0.35, 0.45]])
    assert costs.expected(unsure, plain).argmin() == ACTIONS.index("archive")


def test_without_mail_to_choose_on_it_never_acts(tmp_path):
    rules = acting.choose(np.zeros((0, 5)), np.zeros(0, int), OPEN)
    p, target = mail(50)
    assert not acting.may_act(rules, 0.95, p).any()
    assert acting.verified(rules, p, target).goals[0].test == dict(coverage=0, accuracy=0, acts=0, acts_accuracy=0)


def test_rules_come_back_from_their_file(tmp_path):
    p, target = mail(500)
    rules = acting.verified(acting.choose(p, target, Acting()), p, target)
    acting.write(tmp_path, rules)
    assert acting.read(tmp_path) == rules
    assert acting.read(tmp_path / "none") is None
    with pytest.raises(DataError, match=r"acting at 0\.8: this run has 0\.9, 0\.95, 0\.99"):
        acting.may_act(rules, 0.8, p)
    (tmp_path / acting.FILE).write_text("[]")
    with pytest.raises(DataError, match="no rules"):
        acting.read(tmp_path)
