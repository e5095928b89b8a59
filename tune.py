"""Search each method's settings, train the best for every seed, compare.

    python tune.py                        the embedded study
    python tune.py --n_trials 0           no search: all methods of the study, all its seeds
    python tune.py --study squad --method lora prompt_tuning --n_trials 20 --workers 2

Stopped at any moment, the same command goes on. See --help for every setting.
"""

import copy
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from qa import Interrupted, UserError, search, study
from qa.checkpoint import stop_signals
from qa.methods import get_method

# What data, windows and encoder are made from.
PREPARED_FROM = (*study.DATA_FIELDS, "dataset_revision", "validation_fraction", "data_seed",
                 "max_train_samples", "max_validation_samples", "on_bad_example", "on_bad_labels",
                 "do_lower_case", "max_seq_length", "doc_stride", "max_answer_length",
                 "model_name_or_path", "model_revision", "encoder_dropout", "seed",
                 "cache_dir")  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One method: settings of its final runs and of its trials, and what trials vary of them."""

    settings: study.Settings
    origins: Mapping[str, str]
    trial: study.Settings
    space: search.Space  # empty: no search


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    tasks: list[Task]
    budget: search.Budget
    of_trial: Mapping[str, Any]  # settings that trials alone have
    storage: str
    workers: int
    fresh: bool


def parse(argv: list[str]) -> Plan:
    """The command line → a plan, checked before any data is read. Raises UserError."""
    parser = study.Parser(prog="tune.py", description=__doc__.split("\n")[0], allow_abbrev=False)

    def option(name: str, metavar: str | None, help: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, help=help, **more)

    option("method", "METHOD", "methods to compare [the study's]", nargs="+", dest="methods")
    for name, f in search.BUDGET.items():
        choices = f.metadata.get("choices")
        metavar = "|".join(choices) if choices else "N"
        option(name, metavar, f"{f.metadata['help']} [{f.default}]")
    option("storage", "URL", "database of the search [search.db in the study's folder]")
    option("workers", "N", "processes of one thread each that share the work [1]", default="1")
    help = "settings of the trials alone, such as max_train_samples=10000 num_train_epochs=2"
    parser.add_argument("--trial", nargs="+", metavar="NAME=VALUE", default=[], help=help)
    help = "delete the search that is there, and the runs of its best"
    parser.add_argument("--fresh", action="store_true", help=help)
    left_out = ("method", "seed", "run_name", "resume")
    study.add_settings(parser, [name for name in study.FIELDS if name not in left_out])
    arguments = parser.parse_args(argv)

    flags = study.flags_layer(arguments)
    name = flags.values.get("study", study.FIELDS["study"].default)
    listed = arguments.methods or list(study.read_study(name)["methods"])
    if not listed:
        raise UserError(f"studies/{name}/study.yaml: lists no methods; give --method")
    given = {key: value for key in search.BUDGET if (value := getattr(arguments, key)) is not None}
    pairs = study.pairs("--trial", arguments.trial)
    budget, changes, of_trial = search.resolve(name, given, pairs)
    tasks = []
    for method in dict.fromkeys(get_method(method).name for method in listed):
        layer = replace(flags, values={**flags.values, "method": method})
        settings, origins = study.resolve(layer)
        settings = replace(settings, seed=settings.seeds[0], resume=True)
        layer = replace(layer, values={**layer.values, **of_trial})
        trial, trial_origins = study.resolve(layer)
        trial = replace(trial, seed=settings.seed)
        space = search.space_of(get_method(method), changes.get(method, {}), trial_origins)
        space = space if budget.n_trials else {}
        if space and arguments.fresh:
            settings = replace(settings, overwrite=True)
        tasks.append(Task(settings, origins, trial, space))
        for shared in ("mixed_precision", "report_to"):  # there is one Accelerator for all
            values = [getattr(task.settings, shared) for task in (tasks[0], tasks[-1])]
            if values[0] != values[1]:
                raise UserError(
                    f"{shared}: {values[0]} of {tasks[0].settings.method} and {values[1]} of "
                    f"{settings.method} do not go together; give --{shared}, or --method for each apart"
                )
    limits = {"at_least": 1, "at_most": 512}
    workers = study.check_value("workers", arguments.workers, int, limits, "flag")
    if workers > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("workers: the launcher started several processes already; leave it at 1")
    storage = search.storage_url(arguments.storage, tasks[0].settings.study_dir())
    return Plan(tasks, budget, of_trial, storage, workers, arguments.fresh)


class Worker:
    """Runs trials and final runs; data and encoder of the trials are prepared once."""

    def __init__(self, plan: Plan, num_threads: int | None = None):
        import train

        settings = plan.tasks[0].settings
        settings = replace(settings, num_threads=settings.num_threads or num_threads)
        self.train, self.plan = train, plan
        self.accelerator, self.num_threads = train.start(settings)
        self.prepared: tuple[tuple, Any] | None = None

    @cached_property
    def storage(self) -> Any:
        return search.open_storage(self.plan.storage, wait=True)

    def prepare(self, settings: study.Settings) -> Any:
        """Encoder, train and validation split with windows; the test split stays shut."""
        from qa import report

        key = tuple(getattr(settings, name) for name in PREPARED_FROM)
        if self.prepared is None or self.prepared[0] != key:
            others = [one for task in self.plan.tasks for one in (task.trial, task.settings)]
            splits = ("train", "validation")
            made = self.train.prepare(settings, self.accelerator, splits, others)
            if self.accelerator.is_main_process:
                report.warn_of_labels(made.findings)
            self.prepared = key, made
        return self.prepared[1]

    def search(self, task: Task, on_change: Callable[[], None] = lambda: None) -> None:
        """Take part in the method's search until its budget is used."""
        from accelerate.utils import broadcast_object_list

        prepared = self.prepare(task.trial)
        if not self.accelerator.is_main_process:  # one process asks what to try, all of them work
            with stop_signals() as stop:
                while message := broadcast_object_list([None])[0]:
                    if isinstance(message, Exception):
                        raise message
                    # Which all processes raise alike; of those that end a search, word comes then.
                    with suppress(search.Pruned, UserError, Interrupted):
                        parameters = message["parameters"]
                        self.trial(task, prepared, parameters, lambda step, value: False, stop)
            return

        fingerprints = prepared.fingerprints()
        if self.accelerator.num_processes > 1:  # of which the effective batch is a multiple
            fingerprints["number of processes"] = self.accelerator.num_processes
        budget = self.plan.budget
        with stop_signals() as stop:

            def work(parameters: dict[str, Any], report: Callable[[int, float], bool]) -> float:
                broadcast_object_list([{"parameters": parameters}])
                return self.trial(task, prepared, parameters, report, stop)

            try:
                opened = search.open_study(
                    self.storage, task.trial, task.space, budget, fingerprints
                )
                search.run(opened, task.space, budget, task.trial.seed, work, on_change, stop)
            except (UserError, Interrupted) as error:
                broadcast_object_list([error])
                raise
        broadcast_object_list([None])

    def trial(
        self,
        task: Task,
        prepared: Any,
        parameters: dict[str, Any],
        report: Callable[[int, float], bool],
        stop: Callable[[], int],
    ) -> float:
        """Train with these parameters; the metric at the weights that a run would keep."""
        from accelerate.utils import broadcast_object_list

        from qa import loop

        settings = search.apply(task.trial, parameters)
        metric = self.plan.budget.metric
        base = replace(prepared.base, model=copy.deepcopy(prepared.base.model))
        model = self.train.make_model(settings, base, self.accelerator.device)

        def on_evaluation(progress: loop.Progress) -> None:
            # Evaluations compare, however many micro-batches a step has in this trial.
            try:
                told = report(len(progress.history), progress.history[-1][metric])
            except (UserError, Interrupted) as error:  # of the storage: all processes hear of it
                told = error
            told = broadcast_object_list([told])[0]
            if isinstance(told, Exception):
                raise told
            if told and not progress.finished:
                raise search.Pruned

        try:
            with loop.determinism(self.accelerator.device):
                progress = loop.fit(
                    self.accelerator,
                    model,
                    prepared.windows["train"],
                    settings,
                    lambda: self.train.validate(settings, self.accelerator, model, prepared),
                    on_evaluation=on_evaluation,
                    stop=stop,
                )
        except loop.NonFiniteLoss as error:
            raise UserError(f"diverged: {error}") from None
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, search.AGAIN) from None
        finally:
            self.accelerator.free_memory()
        best = next(row for row in progress.history if row["step"] == progress.best_step)
        return best[metric]

    def final(self, task: Task, seed: int, found: Mapping | None, console: Any) -> dict:
        """One run folder, scored on the test split; its results."""
        settings, origins = final_settings(task, seed, found)
        try:
            results = self.train.train(
                settings, origins, self.accelerator, self.num_threads, console, found
            )
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, search.AGAIN) from None
        finally:
            self.accelerator.free_memory()
        return results


def final_settings(
    task: Task, seed: int, found: Mapping[str, Any] | None
) -> tuple[study.Settings, dict[str, str]]:
    """The settings of the method's run with this seed, and their origins."""
    settings, origins = replace(task.settings, seed=seed), dict(task.origins)
    if found:
        settings = search.apply(settings, found["best_params"])
        settings = replace(settings, run_name=f"{settings.method}-tuned")
        origins |= dict.fromkeys(found["best_params"], "search")
    return settings, origins


_plan: Plan  # in a process of the pool
_signals: Any  # what notes them, from a process's first moment to its last


@cache
def _worker() -> Worker:
    return Worker(_plan, num_threads=1)


def _take_gpu(index: int) -> None:
    """Where there are several GPUs, let this process, the index-th of the pool, see one: its own."""
    import torch

    number = torch.cuda.device_count()  # which begins nothing on a device
    if number > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(number)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index % number].strip()


def _start(plan: Plan, parent: int, started: Any) -> None:
    """Begin a process of the pool. Signals come from its parent alone, or from its absence.

    They are noted even between tasks: a worker that died of one would break the pool, which would
    take the others down before they had given their trials back.
    """
    global _plan, _signals
    os.setsid()  # Ctrl-C in the terminal goes to the parent, which passes it on once
    _plan, _signals = plan, stop_signals(quiet=True)
    _signals.__enter__()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        for _ in range(2):  # the first is noted, and the trial given back; the second ends all
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)

    threading.Thread(target=watch, daemon=True).start()
    with started.get_lock():  # a counter of the pool's processes
        index = started.value
        started.value += 1
    _take_gpu(index)


def _load() -> None:
    _worker()


def _search(index: int) -> None:
    _worker().search(_plan.tasks[index])


def _final(index: int, seed: int, found: Mapping | None) -> dict:
    from qa import report

    with stop_signals() as stop:
        if stop():  # this one was queued already
            raise Interrupted(stop(), search.AGAIN)
    return _worker().final(_plan.tasks[index], seed, found, report.make_console(quiet=True))


def wait_for(futures: list[Future], tick: Callable[[], None]) -> None:
    """Until all are done. Where one fails or a signal comes, the workers are told to stop."""
    with stop_signals() as stop:
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5)
                for future in done:
                    future.result()
                tick()
                if stop():
                    raise Interrupted(stop(), search.AGAIN)
        except BrokenProcessPool:
            raise UserError(f"a worker was killed; {search.AGAIN}") from None
        except BaseException:
            terminate_workers()
            raise


def terminate_workers() -> None:
    """SIGTERM: a trial is given back, a run saved. A second one ends them at once."""
    import multiprocessing

    for process in multiprocessing.active_children():
        process.terminate()


def glance(storage: Any, settings: study.Settings) -> Callable[[], list[dict]]:
    """→ the trials so far, whenever called, for a display.

    Where the storage cannot be read just now, those seen last: whoever works with it waits, or ends
    with an error.
    """
    seen: list[dict] = []

    def rows() -> list[dict]:
        nonlocal seen
        with suppress(UserError), storage.patience.none():
            seen = search.describe(storage, settings)
        return seen

    return rows


@contextmanager
def _told(worker: Worker | None) -> Iterator[None]:
    """Let the other processes of a launcher hear of an error that the main one meets alone."""
    from accelerate.utils import broadcast_object_list

    try:
        yield
    except UserError as error:
        if worker:
            broadcast_object_list([error])
        raise


def search_methods(plan: Plan, pool: Any, worker: Worker | None, console: Any) -> list:
    """What each method's search found (None where there was none), shown as it goes on."""
    from accelerate.utils import broadcast_object_list

    from qa import displays

    outcomes: list[Mapping | None] = []
    storage = None
    for index, task in enumerate(plan.tasks):
        outcomes.append(None)
        if not task.space:
            continue
        if worker and not worker.accelerator.is_main_process:
            worker.search(task)
            outcomes[-1] = broadcast_object_list([None])[0]
            if isinstance(outcomes[-1], Exception):
                raise outcomes[-1]
            continue
        settings = task.settings
        with _told(worker):
            storage = storage or search.open_storage(plan.storage)
            if plan.fresh:
                search.delete_study(storage, settings)
        rows = glance(storage, settings)
        with displays.SearchDisplay(console, settings.method, plan.budget, rows) as display:
            if pool:
                shares = [pool.submit(_search, index) for _ in range(plan.workers)]
                wait_for(shares, display.update)
            else:
                worker.search(task, display.update)
        with _told(worker):
            outcomes[-1] = search.outcome(storage, settings, plan.budget)
        outcomes[-1] |= {"trial": plan.of_trial}
        if worker:
            broadcast_object_list([outcomes[-1]])
        displays.print_outcome(console, settings.method, outcomes[-1])
    return outcomes


def train_all(plan: Plan, outcomes: list, pool: Any, worker: Worker | None, console: Any) -> None:
    """The final run of every method and seed."""
    from qa import displays, runs

    num_processes = worker.accelerator.num_processes if worker else 1
    for task, found in zip(plan.tasks, outcomes, strict=True):
        settings, _ = final_settings(task, task.settings.seed, found)
        runs.check_other_seeds(settings, num_processes)
    final_runs = [
        (index, seed, found)
        for index, (task, found) in enumerate(zip(plan.tasks, outcomes, strict=True))
        for seed in task.settings.seeds
    ]
    if not pool:
        with stop_signals():  # one that a run has no more updates to stop at stops the next
            for index, seed, found in final_runs:
                worker.final(plan.tasks[index], seed, found, console)
        return
    futures = {pool.submit(_final, *run): run for run in final_runs}
    for future, (index, seed, found) in futures.items():
        name = final_settings(plan.tasks[index], seed, found)[0].run_dir()
        future.add_done_callback(lambda done, name=name: displays.print_run(console, name, done))
    console.print(f"{len(final_runs)} final runs, {plan.workers} at a time", markup=False)
    wait_for(list(futures), lambda: None)


def main() -> None:
    plan = parse(sys.argv[1:])
    from qa import report

    pool = worker = None
    if plan.workers > 1:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        given = (plan, os.getpid(), context.Value("i", 0))
        pool = ProcessPoolExecutor(plan.workers, context, _start, given)
        for _ in range(plan.workers):  # they load their libraries while this process loads its own
            pool.submit(_load)
    else:
        worker = Worker(plan)
    main_process = pool or worker.accelerator.is_main_process
    console = report.make_console(quiet=not main_process)
    try:
        outcomes = search_methods(plan, pool, worker, console)
        train_all(plan, outcomes, pool, worker, console)
    finally:
        if pool:
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:  # Ctrl-C once more
                terminate_workers()
                raise
    if worker:
        worker.accelerator.end_training()
    if not main_process:
        return
    report.compare(console, plan.tasks[0].settings)
    for task, found in zip(plan.tasks, outcomes, strict=True):
        if found:
            settings, _ = final_settings(task, task.settings.seed, found)
            report.print_replay(console, settings)


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)
