"""Where does a search live, and what if that place does not answer?

In an SQL database, through Optuna. A search takes hours, in which a server may restart, a disk may
fill up, or another command may delete the search. Each of these is waited for, or said in one line.

Loading this file loads Optuna: `search.open_storage` does it when a storage is needed.
"""

import copy
import json
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Connection, Engine, and_, event, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from qa import Interrupted, UserError, in_one_line
from qa.checkpoint import stop_signals

Result = TypeVar("Result")

# A user attribute of a new trial, with which it is added only if none with the same value was.
ONCE = "once"
# What this file keeps: which call added a trial, and which study one is, whose number SQLite gives
# to the next one when it is deleted.
REQUEST, BORN = "request", "born"


class StorageError(UserError):
    """The search cannot be read or written: no fault of the trial that meets it."""


class Away(Exception):
    """The database does not answer; a little later it may."""


def may_pass(error: DBAPIError) -> bool:
    """Whether the same call may succeed later without anybody mending something."""
    driver_error = error.orig
    if isinstance(driver_error, sqlite3.Error):
        code = getattr(driver_error, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if not isinstance(error, (OperationalError, InterfaceError)):
        return error.connection_invalidated
    if state := getattr(driver_error, "sqlstate", None):
        # The classes of lost connections, rollbacks, resources, locks and operators: PostgreSQL's
        # manual, appendix A. A full disk (53100) is not emptied by waiting.
        return state[:2] in ("08", "40", "53", "55", "57") and state != "53100"
    # Where no connection comes about, the driver hands on the server's words alone.
    refusals = ("authentication failed", "no password", "does not exist", "pg_hba.conf", "denied")
    return not any(refusal in str(driver_error) for refusal in refusals)


class Patience:
    """Calls that are tried again, in the main thread, while a database is away.

    Other threads (signs of life, a display) try once: the main thread needs the database as well.
    name: of the database, for messages; advice: how to go on later.
    """

    def __init__(self, name: str, seconds: float, advice: str):
        self.name, self.seconds, self.advice = name, seconds, advice
        self._thread = threading.local()
        self.failed = -float("inf")  # when a call failed last (time.monotonic)

    def __call__(self, call: Callable[[], Result]) -> Result:
        """`call()`, as soon as it succeeds. Raises StorageError, Interrupted."""
        try:
            return call()
        except Away as away:
            reason = str(away)
        self.failed = time.monotonic()
        once = getattr(self._thread, "once", False)
        if once or threading.current_thread() is not threading.main_thread():
            raise StorageError(f"storage: {self.name} does not answer ({reason}); {self.advice}")
        until = self.failed + self.seconds
        with stop_signals(quiet=True) as stop:
            if not stop():
                said = f"storage: {self.name} does not answer; trying again for two minutes"
                print(said, file=sys.stderr, flush=True)
            while time.monotonic() < until:
                if stop():
                    raise Interrupted(stop(), self.advice)
                time.sleep(0.5)
                try:
                    return call()
                except Away as away:
                    reason = str(away)
                    self.failed = time.monotonic()
        raise StorageError(
            f"storage: {self.name} did not answer for two minutes ({reason}); {self.advice}"
        )

    @contextmanager
    def none(self):
        """Within this context the calls of this thread are tried once."""
        self._thread.once = True
        try:
            yield
        finally:
            self._thread.once = False


def _patient(method: Callable) -> Callable:
    @wraps(method)
    def call(self, *args, **kwargs):
        try:
            return self.patience(lambda: method(self, *args, **kwargs))
        except (LookupError, UnicodeDecodeError, json.JSONDecodeError) as error:
            if isinstance(error, KeyError):  # what Optuna raises of a study or trial that is gone
                self.patience(self._check_watched)
                if not self._watched or method.__name__ == "get_study_id_from_name":
                    raise
            raise self._failure(f"damaged: {in_one_line(error)}") from None

    return call


class PatientStorage(RDBStorage):
    """Optuna's storage whose calls wait for a database that is away, and change it once.

    A connection may be lost between a change and its confirmation. Most changes can be made again;
    a new trial carries the name of the call that added it, which finds it there.
    """

    def __init__(self, url: str, patience: Patience, **options: Any):
        self.patience, self._watched = patience, None
        super().__init__(url, **options)
        if self.engine.name == "sqlite":
            _lock_while_reading(self.engine)
        event.listen(self.engine, "handle_error", self._translate)
        event.listen(self.scoped_session.session_factory, "before_flush", _name_new_studies)
        event.listen(self.scoped_session.session_factory, "after_begin", self._after_begin)

    def _translate(self, context: Any) -> None:
        """Raise a driver's error as what it means here; Optuna knows what to do with some alone."""
        error = context.sqlalchemy_exception
        if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
            return
        if not context.is_pre_ping:  # upon which the connection is made anew
            raise self._meaning(error)

    def _meaning(self, error: DBAPIError) -> Exception:
        reason = in_one_line(error.orig)
        return Away(reason) if may_pass(error) else self._failure(reason)

    def _failure(self, reason: str) -> StorageError:
        name, advice = self.patience.name, self.patience.advice
        return StorageError(f"storage: {name} fails ({reason}); once that is mended, {advice}")

    def watch(self, study_id: int | None, name: str = "") -> None:
        """From now on, refuse every transaction when the study is gone: StorageError."""
        self._watched = None
        if study_id is not None:
            born = self.patience(lambda: self._born(study_id))
            self._watched = study_id, name, born

    def _born(self, study_id: int) -> Any:
        with self.engine.connect() as connection:
            return _born(connection, study_id)

    def _after_begin(self, session: Any, transaction: Any, connection: Connection) -> None:
        if self._watched:
            study_id, name, born = self._watched
            if _born(connection, study_id) != born:
                raise StorageError(
                    f"search: {name} was deleted while it ran (by --fresh of another command?); "
                    "start it again, without --fresh, to take part in the new one"
                )

    def _check_watched(self) -> None:
        with self.scoped_session() as session:
            session.connection()

    def _create_new_trial(self, study_id: int, template_trial: Any = None) -> Any:
        template = copy.deepcopy(template_trial) or optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING
        )
        template.system_attrs[REQUEST] = template.user_attrs.pop(ONCE, None) or uuid.uuid4().hex
        return self._create_named_trial(study_id, template)

    def _create_named_trial(self, study_id: int, template_trial: Any) -> Any:
        return super()._create_new_trial(study_id, template_trial)

    def _get_prepared_new_trial(self, study_id: int, template_trial: Any, session: Any) -> Any:
        """In a transaction that has locked the study."""
        request = json.dumps(template_trial.system_attrs[REQUEST])
        attribute = models.TrialSystemAttributeModel
        query = session.query(models.TrialModel).join(attribute)
        query = query.filter(models.TrialModel.study_id == study_id)
        query = query.filter(attribute.key == REQUEST, attribute.value_json == request)
        return query.first() or super()._get_prepared_new_trial(study_id, template_trial, session)

    def set_trial_state_values(self, trial_id: int, state: Any, values: Any = None) -> bool:
        began = time.monotonic()
        try:
            return self._set_trial_state_values(trial_id, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            lost = self.patience.failed > began  # the answer of a try that had come through
            if lost and self.get_trial(trial_id).state == state:
                return True
            raise

    def _set_trial_state_values(self, trial_id: int, state: Any, values: Any) -> bool:
        return super().set_trial_state_values(trial_id, state, values)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale = super()._get_stale_trial_ids(study_id)
        # While the database was away nobody could give a sign of life.
        back_for_long = time.monotonic() - self.patience.failed > self.grace_period
        return stale if back_for_long else []


# What Optuna calls of a storage, itself or through its cache; of two methods above, their changes.
for _name in (BaseStorage.__abstractmethods__ - {"create_new_trial", "set_trial_state_values"}) | {
    "_create_named_trial",
    "_set_trial_state_values",
    "_set_trial_param",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
    "record_heartbeat",
}:
    setattr(PatientStorage, _name, _patient(getattr(PatientStorage, _name)))


def run_again(study: optuna.Study, trial: Any, params: dict[str, Any] | None = None) -> None:
    """Let a trial that did not end be run once more, by whoever comes.

    Several may ask for it. params: None of one whose worker is silent, which is not taken up for
    ever: parameters that need too much memory get every worker killed.
    """
    once = {ONCE: f"trial {trial.number} again"}
    if params is not None:
        study.enqueue_trial(params, user_attrs=once)
    else:
        trial.user_attrs = {**trial.user_attrs, **once}
        optuna.storages.RetryHeartbeatStaleTrialCallback(3)(study, trial)


def _born(connection: Connection, study_id: int) -> Any:
    """What a study has from its birth that no other one has; None where there is no such study."""
    study, attribute = models.StudyModel, models.StudyUserAttributeModel
    own = and_(attribute.study_id == study.study_id, attribute.key == BORN)
    query = select(study.study_name, attribute.value_json).join_from(
        study, attribute, own, isouter=True
    )
    found = connection.execute(query.where(study.study_id == study_id)).first()
    return found and tuple(found)


def _name_new_studies(session: Any, context: Any, instances: Any) -> None:
    for new in session.new:
        if isinstance(new, models.StudyModel):
            value = json.dumps(uuid.uuid4().hex)
            new.user_attributes.append(models.StudyUserAttributeModel(key=BORN, value_json=value))


def _lock_while_reading(engine: Engine) -> None:
    """Make SQLite's transactions begin with a write lock.

    Optuna takes a trial by reading its state, and then writing it, under a row lock that SQLite
    does not have: two workers could take the same one. The recipe is SQLAlchemy's own.
    """

    @event.listens_for(engine, "connect")
    def _(connection, record):
        connection.isolation_level = None  # the driver begins no transactions by itself

    @event.listens_for(engine, "begin")
    def _(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections made before
