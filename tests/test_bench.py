"""`mlx-email bench`: turns, ratios, absent peers, table; each of our sides at toy size; the peers where installed."""

import json
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_email.benchmarks import compare
from mlx_email.benchmarks.compare import harness, ours, peers, ratios, report, rollout, workload
from mlx_email.benchmarks.compare.keep import Keep
from mlx_email.benchmarks.compare.side import Goal, Job, Side, Work
from mlx_email.benchmarks.compare.works import WORKS
from mlx_email.errors import MlxEmailError, UserError
from mlx_email.kernels import compiling
from mlx_email.model import forward, lora
from mlx_email.model.batch import collate

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"ours": (1.0, 2.0, 3.0, 2.0, 9.0), "slow": (4.0, 4.0, 12.0, 6.0, 9.0), "slower": (5.0, 5.0, 13.0, 7.0, 10.0)}
FAKE = Work(
    sides={side: Side(lambda job: None) for side in SECONDS},
    goals=(
        Goal("seconds", "seconds", "ours", ("slower", "slow"), at_least=2.0),
        Goal("speed", "speed", "ours", ("slow", "slower"), at_least=2.1),
        Goal("memory", "peak", "ours", ("slow",)),
        Goal("beyond", "beyond", "ours", ("slower",)),
    ),
    parity=("ours", "slow"),
    notes=("a note",),
)


@pytest.fixture
def calls() -> list[str]:
    return []


def fake(calls: list[str], apart: float = 0.0):
    """A start function whose sides take the SECONDS, one after the other, and note their turns."""

    def start(work, side, folder, sizes, gradients):
        if gradients:
            save_file({"a": np.array([3.0, 4.0 + apart * (side == "ours")], np.float32)}, gradients)
            yield {"loss": 0.5}
            return
        calls.append(f"{side} ready")
        yield {"device": "cpu", "compiled": False}
        for seconds in SECONDS[side]:
            calls.append(side)
            held, peak = (10**6, 3 * 10**6) if side == "ours" else (10**6, 9 * 10**6)
            yield {"seconds": seconds, "tokens": 6.0, "loss": 1.0, "held": held, "peak": peak}

    return start


def measured(tmp_path, calls, work=FAKE, sizes=workload.FULL, apart=0.0) -> dict:
    return harness.measure("fake", work, tmp_path, sizes, calls.append, fake(calls, apart))


def test_sides_step_in_turn_after_all_are_ready(tmp_path, calls):
    measured(tmp_path, calls)
    turns = [call for call in calls if not call.startswith("fake:")]
    assert turns == ["ours ready", "slow ready", "slower ready", *["ours", "slow", "slower"] * 5]


def test_ratios_are_of_medians_and_above_one_where_we_are_better(tmp_path, calls):
    seconds, speed, memory, beyond = measured(tmp_path, calls)["goals"]
    assert (seconds["ours"], seconds["peer"], seconds["peer_value"]) == (2.0, "slow", 6.0)
    assert (seconds["ratio"], seconds["range"], seconds["reached"]) == (3.0, [1.0, 4.0], True)
    assert (speed["ours"], speed["peer"], speed["peer_value"], speed["ratio"]) == (3.0, "slow", 1.0, 3.0)
    assert (memory["ratio"], memory["reached"], memory["at_least"]) == (3.0, None, None)
    assert (beyond["ours"], beyond["peer_value"], beyond["ratio"]) == (2.0, 8.0, 4.0)


def test_a_target_is_missed_below_it_and_judged_at_full_size_only(tmp_path, calls):
    goal = Goal("seconds", "seconds", "ours", ("slow",), at_least=3.1)
    taken = {side: [{"seconds": value} for value in values] for side, values in SECONDS.items()}
    assert ratios.compared(goal, taken, judged=True)["reached"] is False
    toy = ratios.compared(goal, taken, judged=False)
    assert (toy["ratio"], toy["at_least"], toy["reached"]) == (3.0, None, None)


def test_parity_is_the_share_of_the_gradient_that_differs(tmp_path, calls):
    parity = measured(tmp_path, calls, apart=0.5)["parity"]
    assert parity == {"between": ["ours", "slow"], "losses": [0.5, 0.5], "gradient_norm": 5.0, "difference": 0.1}


def test_gradients_of_different_arrays_are_refused(tmp_path):
    for name in ("a", "b"):
        save_file({name: np.zeros(1, np.float32)}, tmp_path / name)
    with pytest.raises(ValueError, match="different arrays"):
        ratios.agreement([tmp_path / "a", tmp_path / "b"], [0.0, 0.0])


def test_an_absent_peer_is_skipped_with_a_line(tmp_path, calls):
    peer = Side(lambda job: None, package="no-such-peer")
    work = Work({"ours": FAKE.sides["ours"], "slow": peer}, FAKE.goals, FAKE.parity, FAKE.notes)
    record = measured(tmp_path, calls, work)
    line = "skipped, no-such-peer is not installed: pip install 'mlx-email[bench]'"
    assert record["skipped"] == {"slow": line} and f"fake: slow: {line}" in calls
    assert record["parity"] is None and list(record["sides"]) == ["ours"]
    assert record["goals"][0]["ours"] == 2.0 and record["goals"][0]["ratio"] is None
    assert line in compare.table(whole(record))


def whole(record: dict, quick: bool = False) -> dict:
    sizes = workload.QUICK if quick else workload.FULL
    machine = harness.machine()
    return {"machine": machine, "quick": quick, "sizes": vars(sizes), "works": {"fake": record}}


def test_the_table_has_a_line_a_goal_and_the_record_is_json(tmp_path, calls):
    record = whole(measured(tmp_path, calls, apart=0.5))
    lines = compare.table(record).splitlines()
    assert lines[0].startswith("cpu, ") and "mlx-lm 0." in lines[0]
    assert lines[2].split() == ["work", "ours", "peer", "ratio", "(range)", "target", "parity"]
    assert lines[3].split() == [*"seconds 2 s 6 s slow 3.00x (1.00-4.00) 2x reached DIFFERENT GRADIENT (1e-01)".split()]
    assert lines[4].endswith("2.1x reached") and len(lines) == 10 and lines[-1] == "fake: a note"
    assert json.loads(json.dumps(record)) == record
    assert report._parity({"difference": 1e-6}) == "same gradient (1e-06)"
    assert report.TOY in compare.table(whole(measured(tmp_path, calls), quick=True))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="no benchmark named kto; there are sft, dpo, grpo"):
        compare.run(["sft", "kto"])


def test_lengths_are_those_of_mail():
    lengths = [len(row.prompt) + len(row.completions[0]) for row in workload.demonstrations(workload.FULL)]
    assert 235 < np.median(lengths) < 265 and 0.7 < np.log(lengths).std() < 0.85
    assert {len(row.completions[0]) for row in workload.demonstrations(workload.FULL)} == {24}
    assert [row.prompt[:3].tolist() for row in workload.pairs(workload.QUICK)] == [
        row.prompt[:3].tolist() for row in workload.pairs(workload.QUICK)
    ]


def test_the_goals_are_those_that_were_set():
    goals = {goal.title: goal.at_least for work in WORKS.values() for goal in work.goals if goal.at_least}
    assert goals == {
        "SFT, real supervised tokens/s": 2.5,
        "DPO, seconds a step": 4.0,
        "GRPO, seconds an update": 8.0,
        "GRPO, peak memory": 4.0,
        "rollout, seconds, 1 row at a time": 3.0,
        "rollout, seconds, mlx-lm's batches": 1.5,
        "GRPO, seconds a whole step": 5.0,
        "16 samples of a prompt, seconds": 4.0,
        "scoring five actions, seconds": 8.0,
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workload")
    workload.write(folder, workload.QUICK)
    return folder


TRAINED = [
    (name, side)
    for name, work in WORKS.items()
    for side in work.sides
    if work.parity is not None and work.sides[side].package is None
]
TRAINED.remove(("sft", "mlx-lm"))


@pytest.mark.parametrize(("name", "side"), TRAINED)
def test_our_sides_train(toy, name, side):
    chosen, sizes, seen = WORKS[name].sides[side], workload.QUICK, []
    job = Job(toy, sizes, 1, chosen.steps(sizes), 2, lambda loss, tokens: seen.append((loss, tokens)))
    chosen.run(job)
    assert len(seen) == job.total
    an_epoch = [seen[1 : 1 + job.steps], seen[1 + job.steps :]]
    tokens = {"sft": sizes.rows * sizes.answer, "dpo": 2 * sizes.pairs * sizes.completion}
    tokens["grpo"] = sizes.group * sizes.completion
    assert {sum(n for _, n in steps) for steps in an_epoch} == {tokens[name]}
    assert seen[-1][0] != seen[0][0] and all(np.isfinite(loss) for loss, _ in seen)


def test_our_rollout_draws_all_that_is_asked_for_and_others_each_time(toy, monkeypatch):
    sizes, seen, drawn = workload.QUICK, [], []
    honest = rollout.report
    monkeypatch.setattr(rollout, "report", lambda job, found: drawn.append(found) or honest(job, found))
    rollout.run_ours(Job(toy, sizes, 1, 1, 2, lambda loss, tokens: seen.append((loss, tokens))))
    assert seen == [(sizes.completion, sizes.pairs * sizes.group * sizes.completion)] * 3
    assert drawn[0] != drawn[1] and len({tuple(ids) for ids in drawn[0]}) > 1
    with pytest.raises(AssertionError, match="completions of"):
        honest(Job(toy, sizes, 1, 1, 2, print), drawn[0][1:])


@pytest.mark.parametrize(("name", "side"), TRAINED)
def test_our_gradients_are_kept_and_move_nothing(toy, name, side):
    seen, keep = [], Keep()
    WORKS[name].sides[side].run(Job(toy, workload.QUICK, 0, 1, 1, lambda loss, tokens: seen.append(loss), keep))
    gradients = keep.gradients()
    assert len(seen) == 1 and len(gradients) == workload.QUICK.layers * 7 * 2
    assert all(mx.abs(gradient).max().item() > 0 for gradient in gradients.values())


def test_the_reference_is_the_base_and_the_policy_is_put_back(toy):
    job = Job(toy, workload.QUICK, 0, 1, 1, lambda loss, tokens: None)
    model = ours.policy(job)
    before = lora.adapter_arrays(model)
    pairs = workload.pairs(workload.QUICK)
    arrays = collate(pairs, len(pairs), workload.QUICK.prompt, workload.QUICK.completion).arrays
    columns = [arrays[name] for name in ("prompts", "prompt_lengths", "completions", "completion_mask")]
    found = ours.reference_of(model).logps(model, arrays)
    assert mx.allclose(found, forward.completion_logps(peers.base(job), *columns), atol=1e-5).item()
    assert not mx.allclose(found, forward.completion_logps(model, *columns), atol=1e-4).item()
    after = lora.adapter_arrays(model)
    assert all(mx.array_equal(after[name], array).item() for name, array in before.items())


def test_a_checkout_on_the_path_offers_no_top_level_benchmarks():
    code = "try:\n import benchmarks\nexcept ModuleNotFoundError as error:\n print(error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "mlx_email.benchmarks" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), TRAINED)
def test_compiled_our_sides_give_the_same_losses(toy, name, side, monkeypatch):
    seen: dict[bool, list[float]] = {False: [], True: []}
    for compiled, losses in seen.items():
        monkeypatch.setattr(compiling, "by_default", lambda compiled=compiled: compiled)
        job = Job(toy, workload.QUICK, 1, 2, 1, lambda loss, tokens, losses=losses: losses.append(loss))
        WORKS[name].sides[side].run(job)
    assert seen[True] == pytest.approx(seen[False], rel=1e-4)


@pytest.mark.slow
def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(MlxEmailError, match=r"sft, ours: its process ended: .*config\.json"):
        next(harness.child("sft", "ours", tmp_path, workload.QUICK, ""))


@pytest.mark.slow
def test_beside_mlx_lm_the_gradients_are_the_same():
    record = compare.run(["sft"], quick=True)
    check(record["works"]["sft"])
    assert not record["works"]["sft"]["skipped"]


@pytest.mark.slow
def test_a_rollout_beside_mlx_lm_s_batches():
    work = compare.run(["rollout"], quick=True)["works"]["rollout"]
    assert rollout.BATCHES in work["sides"] and work["parity"] is None
    assert all(goal["ratio"] is None or goal["ratio"] > 0 for goal in work["goals"])


@pytest.mark.slow
def test_beside_mlx_lm_lora_the_gradients_are_the_same():
    try:
        metadata.version("mlx-lm-lora")
    except metadata.PackageNotFoundError:
        pytest.skip("needs mlx-lm-lora: the extra `bench`")
    notes = []
    record = compare.run(["dpo", "grpo"], quick=True, note=notes.append)
    for work in record["works"].values():
        check(work)
    assert Counter(line.split(":")[0] for line in notes).keys() == {"dpo", "grpo"}


def check(work: dict) -> None:
    assert work["parity"]["difference"] < 1e-5
    ours, peer = work["parity"]["losses"]
    assert ours == pytest.approx(peer, rel=1e-4, abs=1e-6)
    for side in work["sides"].values():
        assert len(side["repetitions"]) == workload.QUICK.repetitions
        assert all(taken["peak"] >= taken["held"] > 0 < taken["seconds"] for taken in side["repetitions"])
    assert all(goal["ratio"] > 0 for goal in work["goals"])
