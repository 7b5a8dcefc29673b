"""The real mail beside a checkout: our labels against the reference, and hostile mail. Nothing of it is copied here."""

import csv
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from mlx_email.labels.prepare import prepare

REFERENCE_WORDS = {"reply": "replied", "forward": "forwarded", "deleted": "deleted", "archived": "archived"}


@pytest.mark.slow
def test_labels_agree_with_the_reference_on_the_sample(shared, tmp_path):
    """The reference is a heuristic too: what is left are answers for which two letters are candidates."""
    prepared = prepare([shared / "data" / "enron-sample.tar.gz"], tmp_path / "out")
    assert (prepared.files, prepared.received, prepared.rejected) == (18_805, 8_104, {})
    ours = {
        (row["user"], row["message_id"]): row["action"]
        for row in pq.read_table(
            tmp_path / "out" / "messages.parquet", columns=["user", "message_id", "action"]
        ).to_pylist()
    }
    with (shared / "data" / "labels-sample.tsv").open(newline="") as file:
        reference = {(row["user"], row["message_id"]): row["action"] for row in csv.DictReader(file, delimiter="\t")}
    assert len(reference) == 8_104
    pairs = Counter((REFERENCE_WORDS[action], ours.get(key)) for key, action in reference.items())
    agreement = sum(count for (theirs, mine), count in pairs.items() if theirs == mine) / len(reference)
    assert agreement >= 0.97, pairs
    for action in REFERENCE_WORDS.values():
        total = sum(count for (theirs, _), count in pairs.items() if theirs == action)
        assert pairs[action, action] / total >= 0.9, pairs


def test_every_hostile_file_is_accounted_for(shared, tmp_path):
    prepared = prepare([shared / "data" / "emails-hard.tar.gz"], tmp_path / "out")
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == sum(prepared.rejected.values())
    assert prepared.files == len(rejected) + prepared.duplicates + prepared.not_mail + prepared.messages
    assert prepared.messages == pq.read_metadata(tmp_path / "out" / "messages.parquet").num_rows
