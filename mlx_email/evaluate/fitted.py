"""Baselines that are fitted to the training mail by scikit-learn, with its own settings where none is said: what can be
had without a language model. Training rows and rows to predict in, probabilities (N, 5) out, the same every time.
"""

import importlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_email.evaluate.metrics import targets
from mlx_email.labels.schema import ACTIONS, Row

MOST_ROWS = 50_000  # of the training rows, evenly spaced: more take long and change little
TERMS = 20_000  # words that count: those that occur most
MOST_OWNERS = 250  # with the most mail, that the trees tell apart; scikit-learn's know 255 categories at most
SEED = 0
NEVER = -1.0  # hours, of a sender who was not answered yet: not NaN, of which scikit-learn takes no column


def installed() -> bool:
    """Whether scikit-learn is there, and works."""
    try:
        for name in ("sklearn.ensemble", "sklearn.feature_extraction.text", "sklearn.linear_model", "threadpoolctl"):
            importlib.import_module(name)
    except Exception:  # whatever a broken installation raises
        return False
    return True


def tfidf(train: Sequence[Row], rows: Sequence[Row]) -> np.ndarray:
    """Logistic regression on TF-IDF weights of the words of subject and body, and the sender's address as a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(sublinear_tf=True, max_features=TERMS)
    seen, asked = words.fit_transform(map(_text, train)), words.transform(map(_text, rows))
    return _fitted(lambda: LogisticRegression(max_iter=200), seen, targets(train), asked)


def boosted_trees(train: Sequence[Row], rows: Sequence[Row]) -> np.ndarray:
    """Gradient-boosted trees on what was known of the sender and on the headers (`numbers`), and whose mail it is."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    counts: dict[str, int] = {}
    for row in train:
        counts[row.user] = counts.get(row.user, 0) + 1
    owners = sorted(counts, key=lambda user: (-counts[user], user))[:MOST_OWNERS]
    seen, asked = (numbers(each, owners) for each in (train, rows))
    last = seen.shape[1] - 1

    def new() -> Any:
        return HistGradientBoostingClassifier(early_stopping=False, categorical_features=[last], random_state=SEED)

    return _fitted(new, seen, targets(train), asked)


BASELINES: Mapping[str, Callable[[Sequence[Row], Sequence[Row]], np.ndarray]] = {
    "tfidf": tfidf,
    "boosted_trees": boosted_trees,
}


def numbers(rows: Sequence[Row], owners: Sequence[str]) -> np.ndarray:
    """What is known of each message when it comes, without its words, (N, F) float. The last column is the owner's
    place in `owners`; NaN for one who is not there."""
    place = {owner: float(number) for number, owner in enumerate(owners)}
    found = [
        (
            row.people_score,
            row.history_messages,
            row.history_answered,
            row.history_forwarded,
            row.history_deleted,
            row.history_kept,
            NEVER if row.history_response_hours is None else row.history_response_hours,
            row.urgency,
            row.is_question,
            row.is_action_request,
            row.date.hour,
            row.date.weekday(),
            len(row.subject),
            len(row.body),
            len(row.to),
            len(row.cc),
            row.in_reply_to is not None,
            place.get(row.user, np.nan),
        )
        for row in rows
    ]
    return np.array(found, float)


def _text(row: Row) -> str:
    """Of which a word is letters, digits and underscores: the sender is one, and there is always one."""
    return f"{row.subject}\n{row.body}\nfrom_{re.sub(r'[^a-z0-9]', '_', row.sender.lower())}"


def _fitted(new: Callable[[], Any], seen: Any, target: np.ndarray, asked: Any) -> np.ndarray:
    """Probabilities (N, 5) by a model of scikit-learn's; of an action that nobody took in training: 0."""
    from threadpoolctl import threadpool_limits

    found = np.zeros((asked.shape[0], len(ACTIONS)))
    taken = np.unique(target)
    if len(taken) == 1:  # which such a model refuses
        found[:, taken] = 1.0
        return found
    # One thread: several wait for each other on a busy machine, many times longer than the work takes.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it would take more iterations to the last digit
        model = new().fit(seen, target)
        found[:, model.classes_] = model.predict_proba(asked)
    return found
