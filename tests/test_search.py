"""The search engine: its draws, its budget, what it refuses. The work is a function of its own."""

import os
import re
import resource
import signal
import sqlite3
import threading
import time
import warnings
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from qa import Interrupted, UserError, displays, in_one_line, search
from qa.methods import METHODS, Range, get_method
from qa.report import make_console
from qa.study import FIELDS, check_field, check_hyperparameter
from tests.conftest import small_settings

SPACE = {"learning_rate": Range(1e-4, 1e-1, log=True), "r": (2, 4, 8)}
BUDGET = search.Budget()
LORA = small_settings(method="lora", hyperparameters={"r": 8, "lora_alpha": 16}, learning_rate=1e-3)


@pytest.fixture
def storage(tmp_path):
    return search.open_storage(search.storage_url(None, tmp_path))


def open_study(storage, settings=LORA, space=SPACE, budget=BUDGET, data="d"):
    return search.open_study(storage, settings, space, budget, {"train": data})


def value(parameters, report=None):
    return 100 * parameters["learning_rate"] + parameters["r"]


def test_the_rows_spaces_hold_their_defaults():
    for row in METHODS.values():
        for name, values in row.space.items():
            for given in (values.low, values.high) if isinstance(values, Range) else values:
                if name in row.params:
                    check_hyperparameter(row.name, name, given, "row")
                else:
                    assert name in search.TUNABLE and name in FIELDS
                    check_field(name, given, "row")
        settings = small_settings(
            method=row.name,
            hyperparameters={name: param.default for name, param in row.params.items()},
            learning_rate=row.learning_rate,
            head_learning_rate=row.head_learning_rate,
        )
        assert search.defaults(settings, row.space).keys() == row.space.keys()


def test_a_search_begins_with_the_settings_as_they_stand_and_keeps_the_best(storage):
    budget = search.Budget(n_trials=6)
    study = open_study(storage)
    search.run(study, SPACE, budget, 42, value)
    found = search.outcome(storage, LORA, budget)
    assert found["trials"][0]["params"] == {"learning_rate": 1e-3, "r": 8}
    assert found["default_value"] == pytest.approx(8.1)
    assert found["n_trials"] == found["complete"] == 6
    assert found["best_value"] == max(row["value"] for row in found["trials"])
    best = search.apply(LORA, found["best_params"])
    assert best.learning_rate == found["best_params"]["learning_rate"]
    assert best.hyperparameters == {"r": found["best_params"]["r"], "lora_alpha": 16}
    assert set(found["importances"]) == {"learning_rate", "r"}


def test_a_resumed_search_draws_what_an_uninterrupted_one_does(tmp_path):
    drawn = []
    for name, parts in (("whole", [6]), ("parts", [2, 3, 6])):
        storage = search.open_storage(search.storage_url(None, tmp_path / name))
        study = open_study(storage)
        for n_trials in parts:  # each with a sampler of its own, as in a new process
            search.run(study, SPACE, search.Budget(n_trials=n_trials), 42, value)
        drawn.append([row["params"] for row in search.describe(storage, LORA)])
    assert drawn[0] == drawn[1]
    assert len({str(params) for params in drawn[0]}) == 6
    other = search.open_storage(search.storage_url(None, tmp_path / "other"))
    study = open_study(other)
    search.run(study, SPACE, search.Budget(n_trials=6), 43, value)
    assert [row["params"] for row in search.describe(other, LORA)][1:] != drawn[0][1:]


def test_workers_at_once_use_the_budget_exactly(tmp_path):
    url, budget = search.storage_url(None, tmp_path), search.Budget(n_trials=10)
    open_study(search.open_storage(url))
    barrier = threading.Barrier(4)

    def worker():
        study = open_study(search.open_storage(url))
        barrier.wait()
        search.run(study, SPACE, budget, 42, value)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = search.describe(search.open_storage(url), LORA)
    complete = [row for row in rows if row["state"] == "complete"]
    assert len(complete) == 10 and not any(row["state"] in ("running", "waiting") for row in rows)
    assert len({str(row["params"]) for row in complete}) == 10


def test_the_last_trial_is_not_taken_twice(tmp_path):
    """Another worker takes it between this one's look at the database and its own trial."""
    url, budget = search.storage_url(None, tmp_path), search.Budget(n_trials=1)
    study, other = (open_study(search.open_storage(url)) for _ in range(2))
    optimize = study.optimize

    def late(*args, **kwargs):
        search.run(other, SPACE, budget, 42, value)
        optimize(*args, **kwargs)

    study.optimize = late
    search.run(study, SPACE, budget, 42, value)
    assert search.outcome(search.open_storage(url), LORA, budget)["complete"] == 1


def test_no_two_workers_take_the_same_waiting_trial(tmp_path):
    url = search.storage_url(None, tmp_path)
    study = open_study(search.open_storage(url))
    for number in range(39):
        study.enqueue_trial({"learning_rate": (number + 1) / 1000})
    taken, barrier = [], threading.Barrier(4)

    def worker():
        mine = open_study(search.open_storage(url))
        barrier.wait()
        taken.extend(mine._pop_waiting_trial_id() for _ in range(10))

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == len(taken) == 40


def test_bad_trials_are_pruned(storage):
    seen = []

    def work(parameters, report):
        poor = len(seen) >= 4
        seen.append(0)
        for step in range(5):
            seen[-1] += 1
            if report(step, -1.0 if poor else 10.0 + step):
                raise search.Pruned
        return 14.0

    budget = search.Budget(n_trials=6)
    search.run(open_study(storage), SPACE, budget, 42, work)
    assert seen == [5, 5, 5, 5, 1, 1]
    found = search.outcome(storage, LORA, budget)
    assert (found["complete"], found["pruned"]) == (4, 2)
    other = open_study(storage, replace(LORA, study="other"))
    seen.clear()
    search.run(other, SPACE, search.Budget(n_trials=6, pruner="none"), 42, work)
    assert seen == [5] * 6


def test_a_trial_that_diverges_fails_with_its_reason_and_the_search_goes_on(storage):
    def work(parameters, report):
        if parameters["r"] == 8:
            raise UserError("diverged: loss inf at update 3")
        return value(parameters)

    budget = search.Budget(n_trials=8)
    search.run(open_study(storage), SPACE, budget, 42, work)
    found = search.outcome(storage, LORA, budget)
    assert found["complete"] + found["fail"] == 8 and found["fail"] >= 1
    for row in found["trials"]:
        assert (row["reason"] == "diverged: loss inf at update 3") == (row["params"]["r"] == 8)
    always = {"r": (8,)}
    settings = small_settings(hyperparameters={"r": 8}, study="always")
    search.run(open_study(storage, settings, always), always, budget, 42, work)
    with pytest.raises(UserError, match=r"no trial of lora came to its end \(diverged"):
        search.outcome(storage, settings, budget)


def test_a_trial_about_to_fail_is_shown(storage):
    """Its reason is written a moment before its end is."""
    budget, shown = search.Budget(n_trials=3), []

    def work(parameters, report):
        display.update()
        shown.append(display.status(rows()))
        return value(parameters)

    def rows():
        found = search.describe(storage, LORA)
        return [{**row, "counts": True} if row["seconds"] is None else row for row in found]

    display = displays.SearchDisplay(make_console(quiet=True), "lora", budget, rows)
    search.run(open_study(storage), SPACE, budget, 42, work)
    assert shown[0] == "1 of 3 trials"
    assert shown[1].startswith("2 of 3 trials, best 8.1 (trial 0), ")


def test_a_trial_that_crashes_is_run_again_but_not_for_ever(storage):
    """The machine may be at fault, or these parameters."""
    tried = []

    def work(parameters, report):
        tried.append(parameters)
        if len(tried) in (2, 4, 5):
            raise np.linalg.LinAlgError("SVD did not\nconverge")
        return value(parameters)

    study, budget = open_study(storage), search.Budget(n_trials=4)
    for count in (2, 4, 5):
        with pytest.raises(np.linalg.LinAlgError):
            search.run(study, SPACE, budget, 42, work)
        assert len(tried) == count
    assert tried[1] == tried[2] and tried[3] == tried[4]
    search.run(study, SPACE, budget, 42, work)
    found = search.outcome(storage, LORA, budget)
    assert (found["complete"], found["fail"]) == (3, 1) and len(tried) == 6
    reasons = [row["reason"] for row in found["trials"] if row["reason"]]
    assert reasons == ["LinAlgError: SVD did not converge"]


def test_an_interrupted_trial_is_run_again(storage):
    tried = []

    def work(parameters, report):
        tried.append(parameters)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return value(parameters)

    study, budget = open_study(storage), search.Budget(n_trials=5)
    with pytest.raises(KeyboardInterrupt):
        search.run(study, SPACE, budget, 42, work)
    search.run(study, SPACE, budget, 42, work)
    assert tried[3] == tried[2]
    assert search.outcome(storage, LORA, budget)["complete"] == 5


@pytest.mark.parametrize("signs_of_life", [0, 1])
def test_a_silent_trial_is_taken_over(storage, monkeypatch, signs_of_life):
    """As after kill -9: a running trial whose worker is gone, perhaps before its first sign."""
    study, budget = open_study(storage), search.Budget(n_trials=3)
    study.sampler = search._sampler(42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lost = study.ask()
    parameters = search._draw(lost, SPACE)
    if signs_of_life:
        storage.record_heartbeat(lost._trial_id)
    monkeypatch.setattr(storage, "grace_period", 1)
    search.run(study, SPACE, budget, 42, value)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 3 and TrialState.RUNNING not in states
    assert states[0] == TrialState.FAIL
    assert parameters in [t.params for t in study.trials if t.state == TrialState.COMPLETE]


def test_the_time_budget(storage):
    budget = search.Budget(n_trials=1000, timeout=0.5)
    study = open_study(storage)
    search.run(study, SPACE, budget, 42, lambda parameters, report: time.sleep(0.1) or 1.0)
    seconds = [trial.duration.total_seconds() for trial in study.trials]
    assert sum(seconds[:-1]) < 0.5 <= sum(seconds)


def test_another_search_is_not_mixed_with_the_one_that_is_there(storage):
    search.run(open_study(storage), SPACE, search.Budget(n_trials=2), 42, value)
    other_space = {**SPACE, "r": (2, 4)}
    for changed, message in (
        ({"space": other_space}, "another space of r"),
        ({"data": "e"}, r"another train \(there d, now e\)"),
        ({"budget": search.Budget(metric="eval_loss")}, "another metric"),
        ({"settings": replace(LORA, num_train_epochs=7)}, "another num_train_epochs"),
        ({"settings": replace(LORA, hyperparameters={"r": 8, "lora_alpha": 1})}, "hyperparameters"),
    ):
        with pytest.raises(UserError, match=f"{message}.*--fresh deletes it"):
            open_study(storage, **changed)
    # What does not change the question: where the data lies, the value that is searched, threads.
    same = replace(LORA, learning_rate=5e-3, num_threads=1, train_file="elsewhere.json")
    same = open_study(storage, same)
    assert len(same.trials) == 2
    search.delete_study(storage, LORA)
    assert len(open_study(storage, space=other_space).trials) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": [1]}, r"unknown name 'rank'.*it has: r, lora_alpha, .*learning_rate"),
        ({"max_seq_length": [64]}, "unknown name 'max_seq_length'"),
        ({"r": 8}, "give a list of choices"),
        ({"r": []}, "give a list of choices"),
        ({"r": [0]}, "must be at least 1"),
        ({"r": {"low": 8, "high": 2}}, "low must be below high"),
        ({"learning_rate": {"low": 1e-4, "hi": 1}}, "give a list of choices, or {low"),
        ({"learning_rate": {"low": "x", "high": 1}}, "is not a number"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, "above 0 with log"),
        ({"target_modules": {"low": "a", "high": "b"}}, "low must be below high"),
        ([], "must be a mapping"),
    ],
)
def test_bad_spaces(changes, message):
    with pytest.raises(UserError, match=message):
        search.space_of(get_method("lora"), changes, {})


def test_a_studys_space_and_flags():
    changes = {"r": [4, 16], "lora_alpha": None, "lora_dropout": {"low": 0, "high": 0.3}}
    space = search.space_of(get_method("lora"), changes, {"learning_rate": "flag"})
    assert space == {"r": (4, 16), "lora_dropout": Range(0.0, 0.3)}


def test_bad_storage():
    with pytest.raises(UserError, match=r"storage: no-such-kind.*cannot be opened"):
        search.open_storage("no-such-kind://x")
    with pytest.raises(UserError, match="storage: nowhere/db cannot be opened") as caught:
        search.open_storage("postgresql://me:secret@nowhere/db")
    assert "secret" not in str(caught.value)
    long = ValueError(170 * "x" + " in postgresql://me:secret@nowhere/db")
    assert in_one_line(long, secret="postgresql://me:secret@").endswith("x in nowhere/db")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR


class Killed(BaseException):
    """In place of -9."""


@pytest.mark.parametrize("point", ["defaults", "enqueue_trial", "asked"])
def test_a_study_whose_maker_was_killed_is_completed(storage, monkeypatch, point):
    """Before it takes this step."""
    whole = {
        "set_user_attr": optuna.Study.set_user_attr,
        "enqueue_trial": optuna.Study.enqueue_trial,
    }
    name = point if point in whole else "set_user_attr"

    def killed(study, *args, **kwargs):
        if point in (name, args[0]):
            raise Killed
        whole[name](study, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(optuna.Study, name, killed)
        open_study(storage)
    monkeypatch.setattr(search.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="another metric, which was killed as it began"):
        open_study(storage, budget=search.Budget(metric="eval_loss"))
    budget = search.Budget(n_trials=2)
    search.run(open_study(storage), SPACE, budget, 42, value)
    found = search.outcome(storage, LORA, budget)
    assert found["default_value"] == pytest.approx(8.1)
    assert [row["state"] for row in found["trials"]] == ["complete"] * 2


def test_a_study_whose_maker_is_slow_is_made_once(storage, tmp_path, monkeypatch):
    """Another worker completes it and begins; then its maker goes on."""
    other = search.open_storage(search.storage_url(None, tmp_path))
    budget = search.Budget(n_trials=2)
    enqueue = optuna.Study.enqueue_trial

    def late(study, *args, **kwargs):
        monkeypatch.setattr(optuna.Study, "enqueue_trial", enqueue)
        with monkeypatch.context() as patched:
            patched.setattr(search.time, "sleep", lambda seconds: None)
            completed = open_study(other)
        search.run(completed, SPACE, budget, 42, value)
        # not even seen, as by a maker that had looked before
        enqueue(study, *args, **{**kwargs, "skip_if_exists": False})

    monkeypatch.setattr(optuna.Study, "enqueue_trial", late)
    search.run(open_study(storage), SPACE, budget, 42, value)
    rows = search.describe(storage, LORA)
    assert [row["state"] for row in rows] == ["complete"] * 2


def test_a_search_from_before_a_setting_existed_goes_on(storage):
    study = open_study(storage)
    asked = study.user_attrs["asked"]
    assert asked["hyperparameters"] == {"lora_alpha": 16}
    older = {k: v for k, v in asked.items() if k not in ("max_grad_norm", "hyperparameters")}
    study.set_user_attr("asked", {**older, "hyperparameters": {}})
    open_study(storage)  # lora_alpha's default is 16
    for now in (
        replace(LORA, max_grad_norm=0.5),
        replace(LORA, hyperparameters={"r": 8, "lora_alpha": 8}),
    ):
        with pytest.raises(UserError, match=r"another (max_grad_norm|hyperparameters)"):
            open_study(storage, now)
    study.set_user_attr("asked", {k: v for k, v in asked.items() if k != "train"})
    with pytest.raises(UserError, match=r"another train \(there None, now d\)"):
        open_study(storage)


@pytest.mark.parametrize("remade", [False, True])
@pytest.mark.parametrize("moment", ["training", "reporting", "asking"])
def test_a_search_that_is_deleted_meanwhile_ends_in_one_line(tmp_path, moment, remade):
    """SQLite gives the numbers of study and trials to the next study again."""
    url = search.storage_url(None, tmp_path)
    storage, other = search.open_storage(url), search.open_storage(url)

    def delete():
        search.delete_study(other, LORA)
        if remade:
            open_study(other)

    def work(parameters, report):
        if moment == "reporting":
            report(1, 1.0)
        if moment != "asking":
            delete()
        if moment == "reporting":
            report(2, 2.0)
        return 1.0

    study = open_study(storage)
    changes = iter([delete, lambda: None])
    with pytest.raises(UserError, match=r"^search: embedded/lora was deleted while it ran"):
        on_change = (lambda: next(changes)()) if moment == "asking" else (lambda: None)
        search.run(study, SPACE, search.Budget(n_trials=3), 42, work, on_change)
    rows = search.describe(other, LORA)
    assert [(row["state"], row["value"]) for row in rows] == [("waiting", None)] * remade


def test_a_trial_that_was_taken_over_does_not_end_the_worker(storage, tmp_path):
    """Its worker was silent, as while its computer slept; another one has failed the trial."""
    other = open_study(search.open_storage(search.storage_url(None, tmp_path)))
    tried = []

    def work(parameters, report):
        tried.append(parameters)
        if len(tried) in (2, 3):
            lost = other.trials[-1]
            other._storage.set_trial_state_values(lost._trial_id, TrialState.FAIL)
            if len(tried) == 2:
                assert report(1, 1.0), "it is told to stop"
                raise search.Pruned
        return value(parameters)

    budget = search.Budget(n_trials=4)
    search.run(open_study(storage), SPACE, budget, 42, work)
    found = search.outcome(storage, LORA, budget)
    assert found["complete"] == 4 and len(found["trials"]) == len(tried) == 6


@pytest.mark.parametrize("end", [Interrupted(15, "stopped"), np.linalg.LinAlgError("crash")])
def test_a_trial_that_was_taken_over_hides_no_end_of_its_worker(storage, tmp_path, end):
    other = open_study(search.open_storage(search.storage_url(None, tmp_path)))

    def work(parameters, report):
        lost = other.trials[-1]
        other._storage.set_trial_state_values(lost._trial_id, TrialState.FAIL)
        raise end

    study = open_study(storage)
    with pytest.raises(type(end)) as caught:
        search.run(study, SPACE, search.Budget(n_trials=2), 42, work)
    assert caught.value is end


@contextmanager
def locked(storage, url):
    """SQLite locked by another program: the nearest that a file comes to a server that is away."""
    path = url.removeprefix("sqlite:///")
    event.listen(storage.engine, "connect", lambda made, _: made.execute("pragma busy_timeout=200"))
    storage.engine.dispose()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as base:
        base.execute("begin exclusive")
        yield lambda: base.execute("commit")


def test_a_storage_that_is_away_for_a_while_is_waited_for(tmp_path, capfd):
    url, budget = search.storage_url(None, tmp_path), search.Budget(n_trials=2)
    storage = search.open_storage(url)
    study = open_study(storage)

    def work(parameters, report):
        with locked(storage, url) as unlock:
            threading.Timer(1.5, unlock).start()
            report(1, 1.0)
        return 1.0

    search.run(study, SPACE, budget, 42, work)
    assert search.outcome(storage, LORA, budget)["complete"] == 2
    line = f"storage: {tmp_path}/search.db does not answer; trying again for two minutes\n"
    assert capfd.readouterr().err == 2 * line


@pytest.mark.parametrize("stop", [0, signal.SIGINT, signal.SIGTERM])
def test_a_storage_that_stays_away_ends_the_search(tmp_path, monkeypatch, capfd, stop):
    monkeypatch.setattr(search, "PATIENCE", 30 if stop else 1)
    url, budget = search.storage_url(None, tmp_path), search.Budget(n_trials=2)
    storage = search.open_storage(url)
    study = open_study(storage)
    began = time.monotonic()

    def work(parameters, report):
        with locked(storage, url):
            if stop:
                threading.Timer(1, os.kill, (os.getpid(), stop)).start()
            report(1, 1.0)

    with pytest.raises(Interrupted if stop else UserError) as ended:
        search.run(study, SPACE, budget, 42, work)
    assert time.monotonic() - began < 15
    assert "does not answer" in capfd.readouterr().err
    if stop:
        assert ended.value.signum == stop
    else:
        line = r"storage: .*search.db did not answer for two minutes \(.*locked\); the same command"
        assert re.match(line, str(ended.value))
    assert "reason" not in study.trials[0].user_attrs, "it is not the trial's fault"
    monkeypatch.setattr(storage, "grace_period", 1)
    search.run(study, SPACE, budget, 42, value)
    assert search.outcome(storage, LORA, budget)["complete"] == 2


def test_after_an_outage_nobody_takes_the_others_trials(storage, monkeypatch):
    study = open_study(storage)
    lost = study.ask()
    storage.record_heartbeat(lost._trial_id)
    monkeypatch.setattr(storage, "grace_period", 1)
    time.sleep(2.1)  # SQLite's clock has seconds
    storage.patience.failed = time.monotonic()
    assert storage._get_stale_trial_ids(study._study_id) == []
    time.sleep(1.1)
    assert storage._get_stale_trial_ids(study._study_id) == [lost._trial_id]


def lose_an_answer(storage, monkeypatch, number):
    """The connection breaks after the number-th change was made, before that is confirmed."""
    commit, left = storage.engine.dialect.do_commit, [number]

    def lossy(connection):
        commit(connection)
        left[0] -= 1
        if left[0] == 0:
            error = sqlite3.OperationalError("lost")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    monkeypatch.setattr(storage.engine.dialect, "do_commit", lossy)
    return left


def search_with_a_lost_answer(folder, monkeypatch, number):
    """→ whether there were so many changes."""
    storage = search.open_storage(search.storage_url(None, folder))
    monkeypatch.setattr(storage, "grace_period", 1)
    left = lose_an_answer(storage, monkeypatch, number)
    budget, tried = search.Budget(n_trials=3), []

    def work(parameters, report):
        tried.append(parameters)
        report(1, 1.0)
        if len(tried) == 2:
            raise UserError("diverged")
        if len(tried) == 3:
            raise ValueError("run again")
        return value(parameters)

    study = open_study(storage)
    with pytest.raises(ValueError, match="run again"):
        search.run(study, SPACE, budget, 42, work)
    search.run(study, SPACE, budget, 42, work)
    rows = search.describe(storage, LORA)
    assert not {"running", "waiting"} & {row["state"] for row in rows}
    counted = [row for row in rows if row["counts"]]
    assert len(counted) == 3 and len({str(row["params"]) for row in counted}) == 3
    assert len(tried) == 4 and tried[3] == tried[2]
    return left[0] <= 0


def test_a_new_trial_whose_answer_is_lost_is_added_once(tmp_path, monkeypatch):
    storage = search.open_storage(search.storage_url(None, tmp_path))
    study = open_study(storage)
    for params in ({"r": 2}, {"r": 4}):
        lose_an_answer(storage, monkeypatch, 1)
        study.enqueue_trial(params)
    lose_an_answer(storage, monkeypatch, 1)
    storage.create_new_trial(study._study_id)
    queued = [t.system_attrs.get("fixed_params") for t in study.trials]
    assert queued == [study.user_attrs["defaults"], {"r": 2}, {"r": 4}, None]


@pytest.mark.slow
def test_every_change_whose_answer_is_lost_is_made_once(tmp_path, monkeypatch):
    number = 1
    while search_with_a_lost_answer(tmp_path / str(number), monkeypatch, number):
        number += 5
    assert number > 40


def write_over(path):
    path.write_bytes(path.read_bytes()[:100] + bytes(path.stat().st_size - 100))


@contextmanager
def full_disk(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 4, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fault", ["full", "damaged", "lost", "gone"])
def test_a_file_that_fails_in_mid_search_ends_it_at_once(tmp_path, fault, capfd):
    storage = search.open_storage(search.storage_url(None, tmp_path))
    study, path = open_study(storage), tmp_path / "search.db"

    def work(parameters, report):
        if fault == "damaged":
            write_over(path)
        elif fault == "lost":  # as where a page of it is empty
            with closing(sqlite3.connect(path)) as base:
                base.execute("delete from trials")
                base.commit()
        elif fault == "gone":
            path.rename(tmp_path / "elsewhere.db")
            storage.engine.dispose()
        report(1, 1.0)

    began = time.monotonic()
    disk = full_disk(path) if fault == "full" else nullcontext()
    with disk, pytest.raises(UserError) as ended:
        search.run(study, SPACE, search.Budget(n_trials=2), 42, work)
    assert str(ended.value).startswith(f"storage: {path} fails (")
    assert "once that is mended, the same command" in str(ended.value)
    assert time.monotonic() - began < 10 and capfd.readouterr().err == ""


def test_a_file_that_cannot_be_written(tmp_path):
    search.open_storage(search.storage_url(None, tmp_path)).engine.dispose()
    path = f"file:{tmp_path}/search.db"
    storage = search.open_storage(f"sqlite:///{path}?mode=ro&uri=true")
    with pytest.raises(UserError, match=f"storage: {path} fails .*readonly.*; once that is mended"):
        open_study(storage)


@pytest.mark.parametrize("content", ["text", "damaged", "other", "folder"])
def test_a_file_that_is_no_search(tmp_path, content):
    path = tmp_path / "search.db"
    if content == "text":
        path.write_text("learning_rate: 1e-3\n" * 100)
    elif content == "damaged":
        search.open_storage(search.storage_url(None, tmp_path)).engine.dispose()
        write_over(path)
    elif content == "folder":
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as base:
            base.execute("create table alembic_version (version_num text)")
            base.execute("create table experiments (name text)")
            base.commit()
        before = path.read_bytes()
    with pytest.raises(UserError, match=f"^storage: {path} cannot be opened") as refused:
        search.open_storage(search.storage_url(None, tmp_path))
    assert "sqlalche.me" not in str(refused.value) and "SQL:" not in str(refused.value)
    if content == "other":
        assert "another program's, with a table 'experiments'" in str(refused.value)
        assert path.read_bytes() == before
