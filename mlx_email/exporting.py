"""A run's result as a model folder: the smallest that still says what the trained policy says.

Every way of merging (`export.fuse`) is measured on validation mail beside the policy with its adapter; the smallest
that gives the same action often enough is published (`export.choice`).
"""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mlx_email import files
from mlx_email.errors import DataError, UserError
from mlx_email.evaluate import calibrate
from mlx_email.export import bundle, card, choice, fuse, hub
from mlx_email.jobs import few_rows
from mlx_email.labels.prepare import FEATURES
from mlx_email.labels.schema import Row
from mlx_email.measure import Policy, predict
from mlx_email.model import lora, source
from mlx_email.progress import Progress
from mlx_email.train import run as runs
from mlx_email.train.run import DATA
from mlx_email.train.session import tag
from mlx_email.trained import open_policy, place

MESSAGES = 200  # validation messages on which the candidates are compared with the adapter


def export(
    run: Path,
    out: Path,
    progress: Progress,
    *,
    strategy: str | None = None,
    force: bool = False,
    upload_repo: str | None = None,
) -> dict[str, Any]:
    """Publish the policy of a run, or of a stage of it (RUN:STAGE), as a model folder; gives what was measured of each
    candidate.

    `strategy` forces one; where it agrees too rarely it is refused unless `force`. With `upload_repo` (org/name) the
    folder goes to the hub as a private repository. Raises UserError where the strategy does not apply or does not pass.
    """
    if upload_repo is not None:
        hub.check(upload_repo)
    given, (run, stage) = run, place(run)
    table = run / DATA / FEATURES
    with files.publish(out) as folder:
        policy = open_policy(given)
        asked = _asked(policy, strategy)
        rows = few_rows(table, "validation", MESSAGES) or few_rows(table, "train", MESSAGES)
        if not rows:
            raise DataError(f"{table} has no mail to measure the export on")
        stored = fuse.stored_types(policy.base.folder)
        adapter = runs.policy_of(run, policy.config, stage)
        before = predict(policy, rows, progress)
        candidates = [_measured(policy, each, stored, adapter, rows, before, progress) for each in asked]
        chosen = choice.choose(candidates, force=force)
        _write(folder, policy, chosen["strategy"], stored, adapter)
        facts = _facts(run, policy, chosen["strategy"], candidates)
        files.write(folder / bundle.CARD, card.text(facts))
        bundle.seal(folder, _about(policy, chosen["strategy"], adapter))
    record = {"run": str(run), "stage": policy.stage, "model": policy.config.model, **chosen}
    record["megabytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    record["candidates"] = candidates
    if upload_repo is not None:
        record["uploaded"] = hub.upload(out, upload_repo)
    return record


def _asked(policy: Policy, strategy: str | None) -> Sequence[str]:
    known = fuse.strategies(policy.base.model)
    if strategy is not None and strategy not in known:
        raise UserError(f"--strategy {strategy} does not apply to {policy.config.model}: take {', '.join(known)}")
    return known if strategy is None else (strategy,)


def _measured(
    policy: Policy,
    strategy: str,
    stored: fuse.Types,
    adapter: Path,
    rows: Sequence[Row],
    before: np.ndarray,
    progress: Progress,
) -> dict[str, Any]:
    """A candidate's size and how much it agrees with the policy; afterwards the base has its adapters as before."""
    base = policy.base
    with fuse.merged(base, strategy, stored) as (_, types):
        if strategy == "adapter":
            held = [*bundle.whole_base(base.folder), adapter / lora.ADAPTERS, adapter / lora.ADAPTER_CONFIG]
            size = sum(path.stat().st_size for path in held)
        else:
            held = [base.folder / "config.json", *bundle.beside(base.folder)]
            size = fuse.size(base.model, types) + sum(path.stat().st_size for path in held)
        after = predict(dataclasses.replace(policy, stage=f"{policy.stage} ({strategy})"), rows, progress)
    return {"strategy": strategy, "megabytes": size / 1e6, "agreement": choice.agreement(before, after)}


def _write(folder: Path, policy: Policy, strategy: str, stored: fuse.Types, adapter: Path) -> None:
    base = policy.base
    if strategy == "adapter":
        bundle.copy_with_adapter(base.folder, adapter, folder, card.public_name(policy.config.model))
        return
    with fuse.merged(base, strategy, stored) as (config, types):
        fuse.write(folder, base.model, config, types)
    bundle.copy_beside(base.folder, folder)


def _about(policy: Policy, strategy: str, adapter: Path) -> bundle.About:
    return bundle.About(
        mlx_email=version("mlx-email"),
        model=card.public_name(policy.config.model),
        stage=policy.stage,
        strategy=strategy,
        max_prompt_tokens=policy.config.max_prompt_tokens,
        sender_history=policy.config.sender_history,
        batch_size=policy.config.evaluation.batch_size,
        calibration=msgspec.to_builtins(calibrate.read(adapter)) if (adapter / calibrate.FILE).is_file() else None,
    )


def _facts(run: Path, policy: Policy, strategy: str, candidates: Sequence[dict[str, Any]]) -> card.Facts:
    config, model = policy.config, policy.config.model
    stage = next(each for each in config.stages if each.name == policy.stage)
    metrics = source.read_object(run / runs.METRICS) if (run / runs.METRICS).is_file() else {}
    about = source.read_object(run / runs.ENVIRONMENT)
    notes = []
    if strategy == "bf16":
        notes.append("It was measured with the rounded weights, computed in the type that the machine is fast in.")
    return card.Facts(
        model=card.public_name(model),
        license=card.license_of(model, policy.base.folder),
        stage=policy.stage,
        method=tag(stage),
        settings={**msgspec.to_builtins(stage), "lora": msgspec.to_builtins(config.lora)},
        metrics=metrics.get("stages", {}).get(policy.stage, {}).get("test", {}),
        baselines=metrics.get("test", {}).get("baselines", {}),
        data=str(about.get("data")),
        versions=about,
        strategy=strategy,
        candidates=candidates,
        notes=notes,
    )
