"""Several policies as one."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_email.evaluate.ensemble import combined


def members(seed, count, messages=40):
    logits = np.random.default_rng(seed).normal(size=(count, messages, 5)) * 2
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_a_vote_is_what_most_say_and_the_mean_breaks_ties(seed, count):
    some = members(seed, count)
    found, mean = combined(some, "vote"), some.mean(axis=0)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for message in range(some.shape[1]):
        votes = Counter(some[:, message].argmax(axis=1).tolist())
        most = [action for action in votes if votes[action] == max(votes.values())]
        assert found[message].argmax() == max(most, key=lambda action: mean[message, action])


@given(st.integers(0, 1000), st.integers(1, 5))
def test_the_order_of_members_does_not_matter(seed, count):
    some = members(seed, count)
    for how in ("average", "vote"):
        np.testing.assert_allclose(combined(some, how), combined(some[::-1], how))
        np.testing.assert_allclose(combined(some[:1], how).argmax(axis=1), some[0].argmax(axis=1))


def test_the_average_of_independent_members_is_better_than_each():
    """And a member that is the same again adds nothing (the planted fault of counting one twice)."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 5, 4000)
    logits = np.eye(5)[target] + rng.normal(size=(5, 4000, 5))
    some = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)

    def accuracy(probabilities):
        return (probabilities.argmax(axis=1) == target).mean()

    each = [accuracy(one) for one in some]
    assert accuracy(combined(some, "average")) > max(each) + 0.05
    assert accuracy(combined(some, "vote")) > max(each) + 0.03
    assert accuracy(combined(some[[0, 0, 0]], "average")) == each[0]
