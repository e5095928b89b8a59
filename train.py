"""Train one method with one seed, score it on the test split, write the run folder.

    accelerate launch train.py --method lora --train_file train.json --test_file dev.json \
        --model_name_or_path minilm-l6

`python train.py …` works too. See --help for every setting.
"""

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qa import Interrupted, UserError, study

LIST = "--list_methods"


def parse(argv: list[str]) -> tuple[study.Settings, dict[str, str]]:
    """The command line → settings and their origins. Raises UserError."""
    parser = study.Parser(prog="train.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="replay a run from its config.json")
    parser.add_argument(LIST, action="store_true", help="show all methods, and train none")
    study.add_settings(parser, [name for name in study.FIELDS if name != "seeds"])
    arguments = parser.parse_args(argv)
    return study.resolve(study.flags_layer(arguments), arguments.config)


@dataclass
class Prepared:
    """What runs on the same data with the same encoder can share."""

    base: Any  # model.Base
    splits: dict[str, Any]  # squad.Split by name
    windows: dict[str, Any]  # windows.Windows by name
    findings: dict[str, list]  # labels.Finding by name
    dataset_revision: str | None

    def fingerprints(self) -> dict[str, str]:
        """Of the encoder, as long as no method has added to it, and of the splits."""
        of_splits = {name: split.fingerprint for name, split in self.splits.items()}
        return {"model": self.base.fingerprint, **of_splits}


def start(settings: study.Settings) -> tuple[Any, int]:
    """(Accelerator, threads), with the threads set. Raises UserError."""
    import torch
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import LoggerType

    from qa.model import num_cores

    # `accelerate launch` leaves one thread a process unless the program sets them.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    num_threads = settings.num_threads or max(1, num_cores() // here)
    torch.set_num_threads(num_threads)
    trackers = [name.strip() for name in (settings.report_to or "").split(",") if name.strip()]
    for name in trackers:
        known = sorted(LOGGER_TYPE_TO_CLASS)
        if name not in known:
            raise UserError(f"report_to: {name!r} is unknown; trackers: {', '.join(known)}")
        from accelerate.tracking import get_available_trackers

        if LoggerType(name) not in get_available_trackers():
            raise UserError(f"report_to: {name} is not installed; pip install {name}")
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            log_with=trackers or None,
            project_dir=str(settings.run_dir()),
        )
    except ValueError as error:
        if "mixed precision" not in str(error):
            raise
        raise UserError(f"mixed_precision: {error}; use no, or bf16 on a newer CPU") from None
    # Accelerate would divide by what the launcher was told; the loop has its own account.
    accelerator.gradient_accumulation_steps = 1
    if settings.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; use no or bf16 on a CPU")
    if accelerator.device.type == "cuda":
        # The same command gives the same bits. (Only warned, attention would not.)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a kernel an allocation
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape of a batch
    return accelerator, num_threads


def prepare(
    settings: study.Settings,
    accelerator: Any,
    names: Sequence[str] | None = None,
    others: Sequence[study.Settings] = (),
) -> Prepared:
    """Load and check encoder and data (the named splits, or all); cut windows. Raises UserError.

    others: of more methods that are to go together with this encoder. Labels that do not read as
    their answers end it, unless --on_bad_labels lets them pass.
    """
    from qa.labels import findings, report_labels
    from qa.methods import get_method
    from qa.model import check, load_base
    from qa.squad import SPLITS, load_splits
    from qa.windows import build_windows

    with accelerator.local_main_process_first():  # the others find a hub's files cached
        base = load_base(
            settings.model_name_or_path,
            settings.model_revision,
            settings.seed,
            settings.encoder_dropout,
            settings.do_lower_case,
        )
        for one in (settings, *others):
            check(
                base.model,
                get_method(one.method),
                one.hyperparameters,
                one.max_seq_length,
                one.train_head,
            )
        splits, dataset_revision = load_splits(settings, names or SPLITS)
        windows = {
            name: build_windows(
                split,
                base.tokenizer,
                settings.max_seq_length,
                settings.doc_stride,
                study.expand_path(settings.cache_dir),
            )
            for name, split in splits.items()
        }
        found = {
            name: findings(
                report_labels(windows[name], split, base.tokenizer, settings.max_answer_length)
            )
            for name, split in splits.items()
        }
    for name, listed in found.items():
        for finding in listed:
            if finding.level == 2 and settings.on_bad_labels == "error":
                raise UserError(
                    f"{name}: {finding.text}; or go on all the same with --on_bad_labels warn"
                )
    return Prepared(base, splits, windows, found, dataset_revision)


def make_model(settings: study.Settings, base: Any, device: Any) -> Any:
    """`base` under the settings' method, on the device. Changes base.model."""
    from qa.methods import get_method
    from qa.model import attach

    return attach(
        base,
        get_method(settings.method),
        settings.hyperparameters,
        settings.max_seq_length,
        settings.train_head,
        settings.seed,
    ).to(device)


def validate(
    settings: study.Settings,
    accelerator: Any,
    model: Any,
    prepared: Prepared,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """eval_loss, eval_f1 and eval_exact_match of the validation split."""
    from qa import loop, metrics, spans

    examples = prepared.splits["validation"].examples
    found, loss = loop.predict(
        accelerator, model, prepared.windows["validation"], examples, settings, 1, on_batch
    )
    scores = metrics.score(spans.best_texts(found), examples)
    return {"eval_loss": loss, "eval_f1": scores.f1, "eval_exact_match": scores.exact_match}


def facts(settings: study.Settings, prepared: Prepared, model: Any) -> dict[str, str]:
    """What every run says before it begins: model, data, what trains."""
    from qa.squad import leaked_contexts

    total = prepared.base.num_parameters
    trainable = sum(p.numel() for p in model.trainable().values())
    base = prepared.base.model.config
    new = "" if prepared.base.head_trained else "; head not trained: new, at random"
    head = f"span head {'included' if settings.train_head else 'frozen'}"
    shown = {
        "model": f"{settings.model_name_or_path} ({base.model_type}, {total:,} parameters{new})",
        "trains": f"{trainable:,} parameters ({trainable / total:.2%}, {head}): "
        f"{model.method.summary}",
    }
    for name, split in prepared.splits.items():
        shown[name] = f"{split} → {len(prepared.windows[name]):,} windows"
        cut = prepared.windows[name].cut_questions
        if len(cut):
            first = split.examples[cut[0]].id
            shown[f"{name} warning"] = (
                f"{len(cut)} questions are too long and were cut (first: {first})"
            )
        if split.skipped.first:
            shown[f"{name} skipped"] = f"{split.skipped}, first: {split.skipped.first}"
        for finding in prepared.findings[name]:
            warning = "warning: " if finding.level else ""
            shown[f"{name} {finding.about}"] = f"{warning}{finding.text}"
    leaked = leaked_contexts(prepared.splits)
    if leaked:
        shown["warning"] = (
            f"{leaked:,} passages of the test split also stand in train or validation"
        )
    return shown


def train(
    settings: study.Settings,
    origins: Mapping[str, str],
    accelerator: Any,
    num_threads: int,
    console: Any,
    search: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One run, from data to a whole run folder; its results. Raises UserError, Interrupted.

    search: what finding these settings took, to be kept with the results.
    """
    from qa import report, runs

    run_dir = settings.run_dir()

    def on_wait() -> None:  # a worker of tune.py has a quiet console
        waiting = f"{report.shown(run_dir)}: another process trains this run; waiting for its end"
        report.say(report.make_console(stderr=True), waiting)

    with runs.claim(run_dir, accelerator, on_wait):
        return _train(settings, origins, accelerator, num_threads, console, search)


def _train(
    settings: study.Settings,
    origins: Mapping[str, str],
    accelerator: Any,
    num_threads: int,
    console: Any,
    search: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`train`, in a folder that is this run's alone."""
    import torch
    from accelerate.utils import ProjectConfiguration, broadcast_object_list

    from qa import bertscore, displays, loop, metrics, report, runs, spans
    from qa.checkpoint import stop_signals

    run_dir, num_processes = settings.run_dir(), accelerator.num_processes
    # One process decides, before it writes; all the others hear the same.
    results, problem, scorer = None, None, None
    if accelerator.is_main_process:
        try:
            searched = search["best_params"] if search else ()
            results = runs.open_run(settings, num_processes, searched)
            if results is None:  # before the training: a model that cannot be had ends it here
                scorer = bertscore.scorer_of(settings)
        except UserError as error:
            problem = error
    results, problem = broadcast_object_list([results, problem])
    if problem:
        raise problem
    if results:
        report.say(
            console, f"{report.shown(run_dir)} is finished already; --overwrite runs it again"
        )
        if search and results.get("search") != search:  # it has gone on, and kept its best
            results["search"] = search
            if accelerator.is_main_process:
                runs.write_json(run_dir / "eval_results.json", results)
        return results

    num_threads = settings.num_threads or runs.num_threads_of(run_dir) or num_threads
    torch.set_num_threads(num_threads)
    runs.reset_peak_memory(accelerator.device.type)
    with console.status("loading data and encoder"):  # a silent hub is tried for half a minute
        prepared = prepare(settings, accelerator)
    settings = replace(
        settings,
        num_threads=num_threads,
        model_revision=prepared.base.revision or settings.model_revision,
        dataset_revision=prepared.dataset_revision or settings.dataset_revision,
    )
    fingerprints = prepared.fingerprints()
    runs.check_fingerprints(run_dir, fingerprints)
    model = make_model(settings, prepared.base, accelerator.device)
    method = model.method
    shown = facts(settings, prepared, model)
    shown |= report.describe_settings(settings, origins)
    shown["run"] = (
        f"{report.shown(run_dir)} · {accelerator.device} · {num_threads} threads a process"
    )
    if num_processes > 1:
        shown["run"] += f" · {num_processes} processes"
    report.print_header(console, f"Spantune · {method.name} · seed {settings.seed}", shown)
    if accelerator.is_main_process:
        if console.quiet:  # a worker's: its header is not seen
            report.warn_of_labels(prepared.findings)
        runs.write_config(run_dir, settings, origins, fingerprints, num_processes)
    accelerator.project_configuration = ProjectConfiguration(str(run_dir))
    accelerator.init_trackers("spantune", config=_flat(settings))

    device = accelerator.device
    with displays.TrainingDisplay(console) as display, loop.determinism(device) as deterministic:

        def on_evaluation(progress: loop.Progress) -> None:
            display.on_evaluation(progress)
            accelerator.log(progress.history[-1], step=progress.step)
            if accelerator.is_main_process:
                runs.write_history(run_dir, progress.history)

        progress = None
        if model.trainable():
            try:
                with stop_signals() as stop:
                    progress = loop.fit(
                        accelerator,
                        model,
                        prepared.windows["train"],
                        settings,
                        lambda: validate(settings, accelerator, model, prepared, display.on_batch),
                        checkpoint_dir=run_dir / "checkpoint",
                        on_step=display.on_step,
                        on_evaluation=on_evaluation,
                        stop=stop,
                    )
                    if signum := broadcast_object_list([stop()])[0]:  # since the last update
                        raise Interrupted(signum)
            except loop.NonFiniteLoss as error:
                raise UserError(f"learning_rate: training diverged ({error}); lower it") from None
            if accelerator.is_main_process:  # a kill may have come between checkpoint and history
                runs.write_history(run_dir, progress.history)
        examples = prepared.splits["test"].examples
        predictions, loss = loop.predict(
            accelerator,
            model,
            prepared.windows["test"],
            examples,
            settings,
            settings.n_best_size,
            display.on_batch,
        )
        same_bits = deterministic() and (progress is None or progress.deterministic)
        environment = runs.environment(device.type, num_threads, num_processes, same_bits)

    texts = spans.best_texts(predictions)
    scores = metrics.score(texts, examples)
    history = progress.history if progress else []
    best = next((row for row in history if row["step"] == progress.best_step), {})
    results = {
        "method": method.name,
        "seed": settings.seed,
        "eval_exact_match": scores.exact_match,
        "eval_f1": scores.f1,
        "eval_loss": loss,
        "best_evaluation": {key: best[key] for key in best if key.startswith("eval_")},
        "best_step": progress.best_step if progress else 0,
        "best_epoch": best.get("epoch", 0.0),
        "trainable_params": sum(p.numel() for p in model.trainable().values()),
        "total_params": prepared.base.num_parameters,
        "head_trained": prepared.base.head_trained,
        "train_seconds": round(progress.train_seconds, 2) if progress else 0.0,
        "peak_memory_mb": runs.peak_memory_mb(device.type),
        "model": settings.model_name_or_path,
        "data": {name: str(split) for name, split in prepared.splits.items()},
        "search": search,
        "fingerprints": fingerprints,
        "environment": environment,
    }
    if accelerator.is_main_process:
        results["eval_bertscore_f1"] = float(scorer.score([texts], examples).mean())
        results["bertscore_hash"] = scorer.hash
        results["adapter_bytes"] = runs.save_model(run_dir, model, prepared.base, settings)
        runs.write_outcome(settings, results, predictions)
    accelerator.log({"test_f1": scores.f1, "test_exact_match": scores.exact_match})
    for tracker in accelerator.trackers:  # not end_training: more runs may follow
        tracker.finish()
    accelerator.trackers.clear()
    return results


def _flat(settings: study.Settings) -> dict[str, Any]:
    """Settings as trackers take them: numbers, texts and truth values alone."""
    values = {**asdict(settings), **settings.hyperparameters}
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in values.items()}


def list_methods(settings: study.Settings, console: Any) -> None:
    """Print every method with what it trains of the settings' encoder, at its own defaults."""
    from qa import report
    from qa.methods import METHODS
    from qa.model import attach, load_base

    base = load_base(settings.model_name_or_path, settings.model_revision)
    rows = []
    for method in METHODS.values():
        params = {name: param.default for name, param in method.params.items()}
        one = replace(base, model=copy.deepcopy(base.model))
        try:
            model = attach(one, method, params, settings.max_seq_length)
            rows.append((method, sum(p.numel() for p in model.trainable().values())))
        except UserError:
            rows.append((method, None))
    report.print_methods(console, settings.model_name_or_path, base, rows)


def main() -> None:
    settings, origins = parse(sys.argv[1:])
    from qa import comparison, report

    if LIST in sys.argv:
        list_methods(settings, report.make_console())
        return
    accelerator, num_threads = start(settings)
    console = report.make_console(quiet=not accelerator.is_main_process)
    results = train(settings, origins, accelerator, num_threads, console)
    if accelerator.is_main_process:
        named = {**results, "run_name": settings.run_name or results["method"]}
        report.print_table(console, comparison.compare([named], [{}], None, None))
        report.say(console, f"written to {report.shown(settings.run_dir())}")
    accelerator.end_training()


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)
