"""Which settings are best? Optuna: spaces, budget, pruning, storage.

A search is one Optuna study per method, in a database that any number of workers share: processes
of one machine, or machines that reach the same server. Nothing about it lives in a process: a
worker reads from the database what is still to be done, takes one trial, and looks again. So a
search can be killed anywhere and goes on with the same command.

This file knows no training: a trial's work is a function it is given.
"""

import gc
import json
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from qa import Interrupted, UserError, in_one_line
from qa.methods import Method, Range, get_method
from qa.study import (
    DATA_FIELDS,
    FIELDS,
    NOT_IN_STUDY,
    Settings,
    check_field,
    check_hyperparameter,
    check_value,
    read_study,
    setting,
    suggest,
    with_defaults,
)

HEARTBEAT, GRACE = 3, 12  # seconds between signs of life; silence after which a trial is taken over
PATIENCE = 120  # seconds for which a storage that does not answer is tried again
AGAIN = "the same command, without --fresh or --overwrite, goes on from here"
# Settings that a space may vary beside a method's hyperparameters: nothing that data, encoder and
# windows depend on, since these are prepared once.
TUNABLE = (
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "warmup_ratio",
    "max_grad_norm",
    "num_train_epochs",
    "gradient_accumulation_steps",
)

# Settings that trials may have otherwise than the final runs: fewer data, fewer epochs.
OF_A_TRIAL = [
    name
    for name, f in FIELDS.items()
    if f.metadata["affects_result"] and name not in (*NOT_IN_STUDY, "seed", "mixed_precision")
]

# Settings in which the workers of one search may differ. Data and encoder are known by their
# fingerprints, wherever a machine keeps them; the rest does not touch what is searched for.
NOT_ASKED = (*DATA_FIELDS, "model_name_or_path", "max_test_samples", "n_best_size")


@dataclass(frozen=True)
class Budget:
    """What a search may cost, and what it looks for; the same for every method."""

    n_trials: int = setting(
        8, "trials a method; 0: no search, all methods of the study as they stand", at_least=0
    )
    timeout: float | None = setting(
        None, "begin no trial of a method when its trials have taken so many seconds", above=0
    )
    metric: str = setting(
        "eval_f1", "score on the validation split", choices=("eval_f1", "eval_loss")
    )
    pruner: str = setting(
        "median", "stop trials below the median of earlier ones", choices=("median", "none")
    )


BUDGET = {f.name: f for f in fields(Budget)}
Space = Mapping[str, Range | tuple]


def resolve(
    study: str, flags: Mapping[str, str], trial_flags: Mapping[str, str]
) -> tuple[Budget, dict[str, Space], dict[str, Any]]:
    """The budget, changes to each method's space, and settings that trials alone have.

    Later wins: rows, study.yaml, flags. Raises UserError.
    """
    where = f"studies/{study}/study.yaml, search"
    block = read_study(study).get("search") or {}
    mappings = ("space", "trial")
    if not isinstance(block, dict) or not all(
        isinstance(block.get(name) or {}, dict) for name in mappings
    ):
        raise UserError(f"{where}: must be a mapping, `space` and `trial` in it mappings as well")
    values = {}
    for origin, entries in ((where, block), ("flag", flags)):
        for name, value in entries.items():
            if name in mappings and entries is block:
                continue
            if name not in BUDGET:
                names = [*BUDGET, *mappings]
                raise UserError(f"{origin}: unknown {name!r}{suggest(str(name), names)}; it has: "
                                + ", ".join(names))  # fmt: skip
            kind = {"n_trials": int, "timeout": float | None}.get(name, str)
            values[name] = check_value(name, value, kind, BUDGET[name].metadata, origin)
    trial = {}
    for origin, entries in ((f"{where}.trial", block.get("trial") or {}), ("--trial", trial_flags)):
        for name, value in entries.items():
            if name not in OF_A_TRIAL:
                raise UserError(
                    f"{origin}: unknown setting {name!r}{suggest(str(name), OF_A_TRIAL)}"
                )
            trial[name] = check_field(name, value, origin)
    changes = {get_method(name).name: given for name, given in (block.get("space") or {}).items()}
    return Budget(**values), changes, trial


def _check(method: Method, name: str, where: str, value: Any) -> Any:
    if name in method.params:
        return check_hyperparameter(method.name, name, value, where)
    return check_field(name, value, where)


def space_of(method: Method, changes: Mapping[str, Any], origins: Mapping[str, str]) -> Space:
    """The method's space, with a study's changes, less what a flag fixes. Raises UserError."""
    space = dict(method.space)
    where = f"search.space.{method.name}"
    valid = [*method.params, *TUNABLE]
    if not isinstance(changes, Mapping):
        raise UserError(f"{where}: must be a mapping of names to ranges or lists")
    for name, given in changes.items():
        if name not in valid:
            raise UserError(f"{where}: unknown name {name!r}{suggest(str(name), valid)}; it has: "
                            + ", ".join(valid))  # fmt: skip
        if given is None:
            space.pop(name, None)
            continue

        check = partial(_check, method, name, where)
        if isinstance(given, list) and given:
            space[name] = tuple(check(value) for value in given)
        elif isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
            low, high = check(given["low"]), check(given["high"])
            log = check_value(f"{name}.log", given.get("log", False), bool, {}, where)
            if isinstance(low, (str, bool)) or not low < high or (log and low <= 0):
                raise UserError(f"{where}.{name}: low must be below high (and above 0 with log)")
            space[name] = Range(low, high, log)
        else:
            raise UserError(
                f"{where}.{name}: give a list of choices, or {{low: …, high: …, log: true}}"
            )
    return {name: values for name, values in space.items() if origins.get(name) != "flag"}


def storage_url(storage: str | None, folder: Path) -> str:
    """The database: the one given, or search.db in the study's folder."""
    return storage or f"sqlite:///{(folder / 'search.db').resolve()}"


def open_storage(url: str, wait: bool = False) -> Any:
    """A `storage.PatientStorage` whose running trials give signs of life. Raises UserError.

    wait: where it does not answer, as later calls do; this command has opened it before.
    """
    import optuna
    from sqlalchemy import make_url
    from sqlalchemy.exc import DBAPIError

    from qa import storage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # it gets them by `run`
    address = url.split("@")[-1]  # without a password
    name = address.split("?")[0].removeprefix("sqlite:///")
    patience = storage.Patience(name, PATIENCE, AGAIN)

    def connect() -> storage.PatientStorage:
        try:
            return storage.PatientStorage(
                url,
                patience,
                engine_kwargs=_engine_options(make_url(url)),
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=storage.run_again,
            )
        except Exception as error:  # SQLAlchemy's, Alembic's and the drivers' own kinds
            cause = next((e for e in (error, error.__cause__) if isinstance(e, DBAPIError)), None)
            if wait and cause and storage.may_pass(cause):
                raise storage.Away(in_one_line(cause.orig)) from None
            reason = in_one_line(cause.orig if cause else error, secret=url.removesuffix(address))
            raise UserError(
                f"storage: {name} cannot be opened ({reason}); give an URL "
                "such as sqlite:///search.db or postgresql+psycopg://user@host/name (with its driver)"
            ) from None

    return patience(connect)


def _engine_options(url: Any) -> dict[str, Any]:
    """SQLAlchemy's, for a parsed URL. A file's folder is made. Raises UserError, OSError."""
    if url.get_backend_name() == "sqlite":
        if url.database and not url.database.startswith((":", "file:")):
            path = Path(url.database)
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_own(path)
        # Workers of one machine wait for each other's writes.
        return {"connect_args": {"timeout": 60}}
    options = {"pool_pre_ping": True}  # a server may close connections
    if url.get_driver_name() in ("psycopg", "psycopg2"):
        # A host that is gone does not say so: without these, the system waits a quarter of an hour.
        waits = {"connect_timeout": 10, "tcp_user_timeout": 20_000, "keepalives_idle": 10}
        options["connect_args"] = {k: v for k, v in waits.items() if k not in url.query}
    return options


def _check_own(path: Path) -> None:
    """Raises UserError where another program's tables are in a file, which Optuna would add to."""
    from optuna.storages._rdb.models import BaseModel

    if not path.exists():
        return
    with closing(sqlite3.connect(path)) as base:
        tables = {
            name for (name,) in base.execute("select name from sqlite_master where type='table'")
        }
    others = tables - set(BaseModel.metadata.tables) - {"alembic_version", "sqlite_sequence"}
    if others and "version_info" not in tables:
        raise UserError(f"it is another program's, with a table {min(others)!r}")


def study_name(settings: Settings) -> str:
    return f"{settings.study}/{settings.method}"


def open_study(
    storage: Any,
    settings: Settings,
    space: Space,
    budget: Budget,
    fingerprints: Mapping[str, str],
) -> Any:
    """The method's Optuna study, made where it is new. Raises UserError where it is another one.

    fingerprints: of data and encoder. A new study begins with the settings as they stand, so that
    what it finds is no worse.
    """
    import optuna

    from qa.storage import ONCE

    name = study_name(settings)
    fixed = {
        key: getattr(settings, key)
        for key, f in FIELDS.items()
        if f.metadata["affects_result"] and key not in space and key not in NOT_ASKED
    }
    fixed["hyperparameters"] = {
        key: value for key, value in settings.hyperparameters.items() if key not in space
    }
    asked = json.loads(
        json.dumps({"metric": budget.metric, **fixed, **fingerprints}
                   | {f"space of {key}": values if isinstance(values, tuple) else asdict(values)
                      for key, values in space.items()})
    )  # fmt: skip
    direction = "maximize" if budget.metric == "eval_f1" else "minimize"
    storage.watch(None)
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=direction)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        for _ in range(50):  # its maker may be at work
            if "asked" in study.user_attrs:
                break
            time.sleep(0.1)
    storage.watch(study._study_id, name)
    if "asked" not in study.user_attrs:
        # It is new, or its maker was killed or is slow: the steps may be taken twice, by several.
        if study.direction.name.lower() != direction:
            raise UserError(
                f"search: the storage holds a search for {name} with another metric, which was "
                "killed as it began; --fresh deletes it and starts anew, --storage keeps both"
            )
        begin = defaults(settings, space)
        study.set_user_attr("defaults", begin)
        study.enqueue_trial(begin, user_attrs={ONCE: "defaults"}, skip_if_exists=True)
        study.set_user_attr("asked", asked)  # the last: it says that the study is whole
    there = _of_today(study.user_attrs["asked"], asked)
    if there != asked:
        odd = sorted(key for key in {*there, *asked} if there.get(key) != asked.get(key))[0]
        raise UserError(
            f"search: the storage holds a search for {name} with another {odd} (there "
            f"{there.get(odd)}, now {asked.get(odd)}); --fresh deletes it and starts anew, "
            "--storage keeps both"
        )
    return study


def _of_today(there: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a search asked, with the defaults of settings that did not exist when it began."""
    filled = with_defaults(there)
    own = {key: filled[key] for key in asked if key in FIELDS}
    named = {*there.get("hyperparameters", {}), *asked["hyperparameters"]}
    own["hyperparameters"] = {k: v for k, v in filled["hyperparameters"].items() if k in named}
    return {**there, **own}


def delete_study(storage: Any, settings: Settings) -> None:
    """Delete the method's study, if there is one."""
    import optuna

    storage.watch(None)
    name = study_name(settings)
    # Trials that others add meanwhile may undo it.
    while name in optuna.study.get_all_study_names(storage):
        with suppress(KeyError):
            optuna.delete_study(study_name=name, storage=storage)


def defaults(settings: Settings, space: Space) -> dict[str, Any]:
    """The settings as they stand, as far as the space holds them."""
    chosen = {}
    for name, values in space.items():
        value = settings.hyperparameters.get(name, getattr(settings, name, None))
        if value is None and name == "head_learning_rate":  # which then follows learning_rate
            value = settings.learning_rate
        inside = value in values if isinstance(values, tuple) else (
            value is not None and values.low <= value <= values.high
        )  # fmt: skip
        if inside:
            chosen[name] = value
    return chosen


def _draw(trial: Any, space: Space) -> dict[str, Any]:
    chosen = {}
    for name, values in space.items():
        if isinstance(values, tuple):
            chosen[name] = trial.suggest_categorical(name, values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            chosen[name] = trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            chosen[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
    return chosen


def apply(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """`settings` with a trial's parameters."""
    known = settings.hyperparameters
    return replace(
        settings,
        hyperparameters={**known, **{k: v for k, v in chosen.items() if k in known}},
        **{k: v for k, v in chosen.items() if k not in known},
    )


def _sampler(seed: int) -> Any:
    """TPE whose draws depend on the seed and the trial's number alone.

    An Optuna sampler with a seed repeats its first draws in every process, and a resumed one its
    start-up trials. Here each trial has a stream of its own, whoever runs it and whenever.
    """
    import numpy as np
    import optuna

    class PerTrial(optuna.samplers.BaseSampler):
        def before_trial(self, study, trial):
            stream = np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]
            self.inner = optuna.samplers.TPESampler(
                seed=int(stream), n_startup_trials=4, multivariate=True, constant_liar=True
            )

        def infer_relative_search_space(self, study, trial):
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study, trial, search_space):
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study, trial, name, distribution):
            return self.inner.sample_independent(study, trial, name, distribution)

        def after_trial(self, study, trial, state, values):
            self.inner.after_trial(study, trial, state, values)

    return PerTrial()


class Pruned(Exception):
    """Raised by a trial's work when it is told to stop early."""


def used(trials: list) -> list:
    """The trials that count towards the budget: ended, pruned, or failed for a reason of theirs."""
    from optuna.trial import TrialState

    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in trials if t.state in done or "reason" in t.user_attrs]


def run(
    study: Any,
    space: Space,
    budget: Budget,
    seed: int,
    work: Callable[[dict[str, Any], Callable[[int, float], bool]], float],
    on_change: Callable[[], None] = lambda: None,
    stop: Callable[[], int] = lambda: 0,
) -> None:
    """Take trials until the budget is used, by this worker or by others.

    work: (parameters, report) → value; it calls report(step, value) at every evaluation, which
    says whether to stop early (raise Pruned then). A UserError it raises fails the trial with that
    reason, and the search goes on; anything else ends it, and the trial is run again later. One that
    crashes then as well fails, or it would do so for ever.
    stop: → number of a received signal, or 0; raises Interrupted between trials.
    """
    import optuna
    from optuna.trial import TrialState

    study.sampler = _sampler(seed)
    study.pruner = optuna.pruners.NopPruner()
    if budget.pruner == "median":
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)

    seen: set[int] = set()
    while True:
        if stop():
            raise Interrupted(stop(), AGAIN)
        optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        cost = sum(t.duration.total_seconds() for t in trials if t.duration)
        running = [t for t in trials if t.state == TrialState.RUNNING]
        for t in running:
            # A worker killed between taking a trial and its first sign of life leaves one that
            # Optuna would never call silent: give one for it, once.
            if t.number not in seen:
                study._storage.record_heartbeat(t._trial_id)
                seen.add(t.number)
        over = budget.timeout is not None and cost >= budget.timeout
        if len(used(trials)) >= budget.n_trials or (over and not running):
            break
        if over or len(used(trials)) + len(running) >= budget.n_trials:
            time.sleep(0.5)  # the last ones are being run; should their worker die, they come back
            continue
        # Where this worker was silent for so long that another took its trial over, that one counts.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            _run_trial(study, space, budget, work, on_change)
        gc.collect()  # a failed trial's traceback keeps its memory, and the next one would fail of it
        on_change()


def _run_trial(study, space, budget, work, on_change) -> None:
    """Take one trial; see `run`.

    (`study.optimize` asks the storage again after an error of it, and hides that behind its own.)
    """
    import optuna
    from optuna.trial import TrialState

    from qa.storage import StorageError, run_again

    trial = study.ask()
    with _signs_of_life(study._storage, trial._trial_id):
        before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        running = [t for t in before if t.state == TrialState.RUNNING]
        if len(used(before)) + len(running) >= budget.n_trials:
            # Another took the last one at the same moment.
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return
        chosen = _draw(trial, space)

        def report(step: int, value: float) -> bool:
            try:
                trial.report(value, step)
                prune = trial.should_prune()
            except optuna.exceptions.UpdateFinishedTrialError:  # it was taken over
                prune = True
            on_change()
            return prune

        value, state = None, TrialState.FAIL
        try:
            value, state = work(chosen, report), None
        except Pruned:
            state = TrialState.PRUNED
        except StorageError:  # without this worker's signs of life, the trial is taken over
            raise
        except UserError as error:
            trial.set_user_attr("reason", str(error))
        except (Interrupted, KeyboardInterrupt, SystemExit):
            run_again(study, trial, chosen)
            study.tell(trial, state=state, skip_if_finished=True)  # if it was taken over
            raise
        except Exception as error:
            crashed = any(t.params == chosen and "crash" in t.user_attrs for t in before)
            said = " ".join(f"{type(error).__name__}: {error}".split())
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                trial.set_user_attr("reason" if crashed else "crash", said)
            if not crashed:
                run_again(study, trial, chosen)
            study.tell(trial, state=state, skip_if_finished=True)
            raise
        study.tell(trial, value, state, skip_if_finished=True)


@contextmanager
def _signs_of_life(storage: Any, trial_id: int):
    """Within this context a thread says every few seconds that the trial is being run."""
    ended = threading.Event()

    def give() -> None:
        while not ended.is_set():
            with suppress(UserError):  # of the storage: the main thread meets it, and says so
                storage.record_heartbeat(trial_id)
            ended.wait(HEARTBEAT)

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def describe(storage: Any, settings: Settings) -> list[dict[str, Any]]:
    """Every trial so far as plain values: number, state, params, value, seconds, reason.

    counts: towards the budget.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=study_name(settings), storage=storage)
        trials = study.get_trials(deepcopy=False)
    except KeyError:  # a worker is about to make it
        return []
    counted = {t.number for t in used(trials)}
    rows = []
    for t in trials:
        last = list(t.intermediate_values.values())[-1:]
        rows.append(
            {
                "number": t.number,
                "state": t.state.name.lower(),
                "counts": t.number in counted,
                "params": t.params,
                "value": t.value if t.value is not None else (last or [None])[0],
                "seconds": t.duration.total_seconds() if t.duration else None,
                "reason": t.user_attrs.get("reason"),
            }
        )
    return rows


def outcome(storage: Any, settings: Settings, budget: Budget) -> dict[str, Any]:
    """Budget, cost, best trial and importances of a finished search. Raises UserError."""
    import optuna

    rows, name = describe(storage, settings), study_name(settings)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise UserError(
            f"search: {name} was deleted as it ended (by --fresh of another command?); start it "
            "again, without --fresh"
        ) from None
    states = [row["state"] for row in rows if row["counts"]]
    if "complete" not in states:
        reasons = [row["reason"] for row in rows if row["reason"]] or ["none was run"]
        raise UserError(f"search: no trial of {settings.method} came to its end ({reasons[-1]})")
    importances = {}
    if states.count("complete") > 3:
        # All trials alike, or a parameter with one value: nothing to tell.
        with suppress(RuntimeError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {
        "metric": budget.metric,
        "n_trials": len(states),
        **{state: states.count(state) for state in ("complete", "pruned", "fail")},
        "seconds": round(sum(row["seconds"] or 0 for row in rows), 1),
        "best_trial": study.best_trial.number,
        "best_value": study.best_value,
        "best_params": study.best_params,
        "default_value": next(
            (
                row["value"]
                for row in rows
                if row["state"] == "complete" and row["params"] == study.user_attrs["defaults"]
            ),
            None,
        ),
        "importances": {name: round(value, 4) for name, value in importances.items()},
        "trials": rows,
    }
