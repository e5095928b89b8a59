"""What a run leaves on disk, and how it is read back.

A run is the folder runs/STUDY/NAME/seed-N: config.json is there from the start, checkpoint/ and
history.jsonl while it trains, eval_results.json last, as the sign that it is whole. Each file is
written whole or not at all, and is on the disk before the next one is written (see `checkpoint`).
"""

import copy
import gc
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qa import Interrupted, UserError, __version__, checkpoint
from qa.methods import Method, get_method
from qa.model import Base, SpanModel, attach, load_base
from qa.pretrained import SHORT_NAMES, check_finite
from qa.spans import Span, best_texts
from qa.squad import Example, load_splits, read_json
from qa.study import DATA_FIELDS, FIELDS, Settings, check_field, read_config, with_defaults

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "optuna",
)
# What the tables of evaluate.py are made of.
RESULT_KEYS = ("method", "seed", "eval_exact_match", "eval_f1", "data", "fingerprints")
RESULT_KEYS += ("trainable_params", "train_seconds", "best_epoch", "adapter_bytes", "head_trained")
# Left open by a command line, these are filled in when a run starts, and saved with it.
SETTLED_AT_START = ("model_revision", "dataset_revision")
# What the test split is made from.
TEST_FIELDS = (*DATA_FIELDS, "dataset_revision", "max_test_samples", "data_seed", "on_bad_example")
# In which the seeds of one row may differ; data are known by their fingerprints.
NOT_COMPARED = ("seed", *SETTLED_AT_START, *TEST_FIELDS)
CARD = """\
---
base_model: {base}
{library}tags: [extractive-question-answering, spantune, {method}]
---
# {run_name}, seed {seed}

{summary} ({trainable_params:,} of {total_params:,} parameters trained) on {base}.

| | |
|---|---|
| train | {data[train]} |
| validation | {data[validation]} |
| test | {data[test]} |
| exact match, test | {eval_exact_match:.2f} |
| F1, test | {eval_f1:.2f} |
| BERTScore, test | {eval_bertscore_f1:.2f} ({bertscore_hash}) |

Every setting, and where it came from, stands in `config.json`; this repeats the run:

    python train.py --config {run_dir}/config.json --run_name {run_name}-again

{loading}
"""
ASKING = '`python -m qa.answer --run {run_dir} --question "…" --context "…"` asks it.'
EXPORTING = "`python -m qa.export --run {run_dir} --to FOLDER` makes a plain model of it."
LOADING = {
    "adapter": 'In plain PEFT: `PeftModel.from_pretrained({loaded}, "{run_dir}")`. ' + EXPORTING,
    "prompt": "Plain PEFT would ignore these virtual tokens without a word and does not load the "
    'head: `qa.runs.load_run("{run_dir}")` does both. They cannot be merged into the weights.',
    "weights": "`model.safetensors` holds the trained tensors under their own names, to be loaded "
    "over those of {base}. " + EXPORTING,
    "none": "Nothing was trained.",
}
LOADING["prefix"] = LOADING["prompt"]


def write_json(path: Path, content: Any) -> None:
    checkpoint.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def environment(
    device: str, num_threads: int, num_processes: int, deterministic: bool
) -> dict[str, Any]:
    """Versions and machine kind, to be saved beside every figure.

    deterministic: whether the same command gives the same bits (see `loop.determinism`).
    """
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if device == "cuda":
        import torch

        machine += f", {torch.cuda.get_device_name()}"
    return {
        "spantune": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": machine,
        "device": device,
        "num_threads": num_threads,
        "num_processes": num_processes,
        "deterministic": deterministic,
    }


def reset_peak_memory(device: str) -> None:
    """Begin to measure `peak_memory_mb` anew, where the system lets a process do so (Linux)."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: str) -> float:
    """Most memory in use since the reset: the GPU's if one is used, else this process's; in MiB."""
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    # Not the resource usage where there is a choice: Linux hands a parent's peak down to it.
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:  # some containers' kernels leave the line out
            return round(int(found[1]) / 1024, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def read_results(run_dir: Path) -> dict[str, Any] | None:
    """eval_results.json of a finished run, else None. Raises UserError for a damaged file."""
    path = run_dir / "eval_results.json"
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in RESULT_KEYS if key not in results]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again with --overwrite") from None
    if missing:
        raise UserError(f"{path}: lacks {missing[0]}; run again with --overwrite")
    return results


def _other_settings(run_dir: Path, settings: Settings, num_processes: int) -> dict[str, str]:
    """{name: 'name: there X, now Y'} of settings in which the run on disk differs."""
    try:
        saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        values = with_defaults(saved["settings"])
        processes = saved.get("num_processes", num_processes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return {"config.json": "config.json: missing or unreadable there"}
    given = json.loads(json.dumps(asdict(settings)))
    pairs = {
        name: (values[name], now)
        for name, now in given.items()
        if FIELDS[name].metadata["affects_result"] and name != "hyperparameters"
        if now is not None or name not in SETTLED_AT_START
    }
    given, there = given["hyperparameters"], values["hyperparameters"]
    pairs |= {name: (there.get(name), given.get(name)) for name in given | there}
    pairs["processes"] = processes, num_processes  # of which the effective batch is a multiple
    return {
        name: f"{name}: there {before}, now {now}"
        for name, (before, now) in pairs.items()
        if before != now
    }


def _finished(folder: Path) -> list[Path]:
    """The finished runs of one name; a folder called otherwise (seed-42-old) is none."""
    found = sorted(path.parent for path in folder.glob("seed-*/eval_results.json"))
    return [run_dir for run_dir in found if re.fullmatch(r"seed-\d+", run_dir.name)]


def check_other_seeds(settings: Settings, num_processes: int) -> None:
    """Raise UserError where the run's name has finished seeds, not in settings.seeds, of other settings.

    They would not compare with those that are about to be trained (see `check_seeds`).
    """
    for run_dir in _finished(settings.run_dir().parent):
        seed = int(run_dir.name.removeprefix("seed-"))
        if seed not in settings.seeds:
            same = replace(settings, seed=seed)
            for difference in _other_settings(run_dir, same, num_processes).values():
                raise UserError(
                    f"{run_dir}: has other settings ({difference}); name its seed in --seeds, "
                    "too, or delete it"
                )


@contextmanager
def claim(run_dir: Path, accelerator: Any, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep the run's folder for this command, once whoever has it is done. Raises UserError.

    on_wait: called where there is a wait. Raises Interrupted where a signal came before the run.
    """
    from accelerate.utils import broadcast_object_list
    from filelock import FileLock, Timeout

    lock, waits = FileLock(run_dir.with_name(f".{run_dir.name}.lock")), 0
    try:
        with checkpoint.stop_signals() as stop:
            while True:
                problem = None
                if accelerator.is_main_process:
                    try:
                        checkpoint.make_folder(run_dir.parent)
                        with suppress(Timeout):
                            lock.acquire(timeout=1)
                    except OSError as error:
                        problem = UserError(
                            f"output_dir: {run_dir}: {error.strerror}; choose another folder"
                        )
                found = [lock.is_locked, problem, stop()]  # the main process's are everybody's
                is_ours, problem, signum = broadcast_object_list(found)
                if problem:
                    raise problem
                if signum:
                    raise Interrupted(signum, "nothing was begun")
                if is_ours:
                    break
                waits += 1
                if waits == 1 and accelerator.is_main_process:
                    on_wait()
        yield
    finally:
        lock.release()


def open_run(
    settings: Settings, num_processes: int, searched: Collection[str] = ()
) -> dict[str, Any] | None:
    """Make ready the run's folder; the results, where that run is finished already.

    searched: settings that a search found; a run with others in these alone is of an earlier best,
    and deleted. Raises UserError where one with others is there, and --overwrite is not given.
    """
    run_dir, different = settings.run_dir(), {}
    checkpoint.clear_leftovers(run_dir)
    files = (run_dir / name for name in ("config.json", "eval_results.json"))
    begun = any(map(Path.exists, files)) or _has_checkpoint(run_dir)
    if begun:
        different = _other_settings(run_dir, settings, num_processes)
    if settings.overwrite or (different and different.keys() <= set(searched)):
        checkpoint.delete(run_dir)
        begun = False
    checkpoint.make_folder(run_dir)
    if not begun:
        return None
    if different:
        raise UserError(
            f"{run_dir}: holds a run with other settings ({next(iter(different.values()))}); "
            "give --run_name or --output_dir for another folder, or --overwrite"
        )
    results = read_results(run_dir)
    if results:
        shutil.rmtree(run_dir / "checkpoint", ignore_errors=True)  # if a kill came before that
    elif _has_checkpoint(run_dir) and not settings.resume:
        raise UserError(f"{run_dir}: holds an unfinished run; give --resume or --overwrite")
    return results


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoint").glob("step-*"))


def check_fingerprints(run_dir: Path, fingerprints: Mapping[str, str]) -> None:
    """Refuse to go on from a checkpoint where data or encoder are no longer what they were."""
    if not _has_checkpoint(run_dir):
        return
    saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["fingerprints"]
    changed = [name for name, value in fingerprints.items() if saved[name] != value]
    if changed:
        raise UserError(
            f"{run_dir}: its checkpoint was made with another {changed[0]} "
            f"({'weights' if changed[0] == 'model' else 'data'} changed since); give --overwrite"
        )


def num_threads_of(run_dir: Path) -> int | None:
    """Threads of the unfinished run that is there: with others it would not end in the same bytes."""
    if not _has_checkpoint(run_dir):
        return None
    saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    return saved["settings"]["num_threads"]


def write_config(
    run_dir: Path,
    settings: Settings,
    origins: Mapping[str, str],
    fingerprints: Mapping[str, str],
    num_processes: int,
) -> None:
    content = {
        "settings": asdict(settings),
        "origins": origins,
        "fingerprints": fingerprints,
        "num_processes": num_processes,
    }
    write_json(run_dir / "config.json", content)


def write_history(run_dir: Path, history: Sequence[Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in history)
    checkpoint.write_text(run_dir / "history.jsonl", lines)


def _tensors(model: SpanModel) -> dict[str, Any]:
    """What a run's weights file holds: PEFT's names for its methods, else the model's own."""
    kept = {name.removeprefix("network."): p.detach() for name, p in model.trainable().items()}
    if not model.method.config:
        return kept
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model.network, save_embedding_layers=False)
    # What all layers share (RandLoRA's random bases) is kept once, under its shortest name.
    once = {tensors[name].data_ptr(): name for name in sorted(tensors, key=len, reverse=True)}
    tensors = {name: tensors[name] for name in once.values()}
    if model.method.kind != "adapter":  # PEFT knows the prompt alone, not the head beside it
        head = {name: p for name, p in kept.items() if model.is_head(name)}
        tensors |= {name.removeprefix("base_model."): p for name, p in head.items()}
    return tensors


def _weights_file(method: Method) -> str:
    return "model.safetensors" if method.kind == "weights" else "adapter_model.safetensors"


def save_model(run_dir: Path, model: SpanModel, base: Base, settings: Settings) -> int:
    """Write what was trained, and the tokenizer; the bytes of the trained weights' file."""
    from safetensors.torch import save_file

    if not (run_dir / "config.json").exists():
        raise UserError(
            f"{run_dir}: its config.json was deleted while it trained, without which the weights "
            "are of no use; train it again"
        )
    size = 0
    with checkpoint.scratch(run_dir / "weights") as folder:
        folder.mkdir()
        base.tokenizer.save_pretrained(folder)
        if model.method.config:
            _save_peft_config(model, base, settings, folder)
        tensors = {key: tensor.cpu().contiguous() for key, tensor in _tensors(model).items()}
        if tensors:
            file = folder / _weights_file(model.method)
            save_file(tensors, file)
            size = file.stat().st_size
        for path in sorted(folder.iterdir()):
            path.chmod(0o644)  # safetensors writes files that only their owner may read
            checkpoint.publish(path, run_dir / path.name)
    return size


def _save_peft_config(model: SpanModel, base: Base, settings: Settings, folder: Path) -> None:
    config = copy.copy(model.network.peft_config["default"])
    config.base_model_name_or_path = settings.model_name_or_path
    config.revision = base.revision
    for name, value in vars(config).items():
        if isinstance(value, set):  # which PEFT would write in another order in each process
            setattr(config, name, sorted(value))
    config.save_pretrained(folder)


def load_run(run_dir: Path) -> tuple[SpanModel, Base, Settings]:
    """A finished run's model as it was saved. Raises UserError."""
    from safetensors.torch import load_file

    try:
        saved = read_config(str(run_dir / "config.json"))
    except UserError as error:
        raise UserError(f"{run_dir}: is no run's folder ({error})") from None
    settings = Settings(**{**saved.values, "hyperparameters": saved.hyperparameters})
    method = get_method(settings.method)
    base = load_base(
        settings.model_name_or_path,
        settings.model_revision,
        settings.seed,
        settings.encoder_dropout,
        settings.do_lower_case,
    )
    model = attach(
        base,
        method,
        settings.hyperparameters,
        settings.max_seq_length,
        settings.train_head,
        settings.seed,
        trained=True,
    )
    expected = _tensors(model).keys()
    if not expected:
        return model.eval(), base, settings
    file = run_dir / _weights_file(method)
    if not file.exists():
        raise UserError(
            f"{run_dir}: holds no trained weights ({file.name}); if its training was stopped, go on "
            "with train.py --resume"
        )
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise UserError(f"{file}: cannot be read ({error}); the run is not whole") from None
    if tensors.keys() != expected:
        odd = min(tensors.keys() ^ expected)
        raise UserError(f"{file}: does not fit the run's config.json (see {odd})")
    try:
        check_finite(tensors)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if method.kind == "weights":
        model.network.load_state_dict(tensors, strict=False)
    else:
        from peft import set_peft_model_state_dict

        if method.kind != "adapter":
            head = {key: tensors.pop(key) for key in list(tensors) if model.is_head(key)}
            model.network.get_base_model().load_state_dict(head, strict=False)
        set_peft_model_state_dict(model.network, tensors)
    return model.eval(), base, settings


def write_outcome(
    settings: Settings, results: dict[str, Any], predictions: Mapping[str, Sequence[Span]]
) -> None:
    """Predictions, n-best and card, and last of all the results."""
    run_dir = settings.run_dir()
    write_json(run_dir / "eval_predictions.json", best_texts(predictions))
    listed = {id: [span._asdict() for span in best] for id, best in predictions.items()}
    write_json(run_dir / "eval_nbest_predictions.json", listed)
    method = get_method(settings.method)
    values = {
        **results,
        "base": settings.model_name_or_path,
        "library": "library_name: peft\n" if method.kind == "adapter" else "",
        "method": method.name,
        "run_name": settings.run_name or method.name,
        "seed": settings.seed,
        "summary": method.summary,
        "run_dir": f"{settings.output_dir or f'runs/{settings.study}'}/"
        f"{settings.run_name or method.name}/seed-{settings.seed}",
    }
    loader = "qa.model.load_base({!r}).model"  # the only one to know short names
    if values["base"] not in SHORT_NAMES:
        loader = "AutoModelForQuestionAnswering.from_pretrained({!r})"
    values["loaded"] = loader.format(values["base"])
    values["loading"] = f"{ASKING} {LOADING[method.kind]}".format(**values)
    checkpoint.write_text(run_dir / "README.md", CARD.format(**values))
    write_json(run_dir / "eval_results.json", results)
    shutil.rmtree(run_dir / "checkpoint", ignore_errors=True)


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """history.jsonl, none where nothing trained. Raises UserError for a damaged file."""
    path = run_dir / "history.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again with --overwrite") from None


def read_test_examples(
    found: Sequence[Mapping], fingerprint: str
) -> tuple[list[Example] | None, str]:
    """The test split the runs (`find_runs`) were scored on, loaded as one of them loaded it.

    None and the reason where it is no longer to be had, or no longer what it was.
    """
    problem, tried = "", []
    for run in found:
        known = {name: check_field(name, value, "config.json")
                 for name, value in run["settings"].items() if name in TEST_FIELDS}  # fmt: skip
        if known in tried:
            continue
        tried.append(known)
        try:
            splits, _ = load_splits(Settings(**known), ["test"])
        except UserError as error:
            problem = str(error)
            continue
        if splits["test"].fingerprint == fingerprint:
            return splits["test"].examples, ""
        problem = f"{splits['test'].source} has changed since the runs were scored"
    return None, problem


def check_seeds(found: Sequence[Mapping]) -> None:
    """Raise UserError where runs (`find_runs`) of one name differ in more than their seed.

    Their mean would tell nothing.
    """
    firsts: dict[str, tuple[str, dict]] = {}
    for run in found:
        try:
            settings = with_defaults(run["settings"])
        except (TypeError, ValueError, UserError):
            raise UserError(
                f"{run['run_dir']}/config.json: has no settings that can be read; train it again "
                "with --overwrite"
            ) from None
        values = {name: settings[name] for name, f in FIELDS.items()
                  if f.metadata["affects_result"] and name not in NOT_COMPARED}  # fmt: skip
        values |= {f"{name} data": run["fingerprints"][name] for name in ("train", "validation")}
        if run["head_trained"]:  # else each seed draws a head of its own
            values["encoder"] = run["fingerprints"]["model"]
        values["number of processes"] = run.get("environment", {}).get("num_processes")
        first_dir, first = firsts.setdefault(run["run_name"], (run["run_dir"], values))
        odd = next((name for name in values if values[name] != first[name]), None)
        if odd:
            raise UserError(
                f"{run['run_dir']}: has another {odd} than {first_dir} ({first[odd]}, here "
                f"{values[odd]}), so that they are no seeds of one run; train one of them again "
                "with --overwrite, or under another --run_name"
            )


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """All finished runs below a folder of runs, by name and seed: results, settings, history.

    Raises UserError for a damaged file.
    """
    found = []
    for run_dir in (one for name in folder.glob("*") for one in _finished(name)):
        results = read_results(run_dir)
        if run_dir.name != f"seed-{results['seed']}":
            raise UserError(
                f"{run_dir}: holds a run of seed {results['seed']}, and would count as another; "
                "move or rename it"
            )
        found.append(
            {
                **results,
                "run_name": run_dir.parent.name,
                "run_dir": str(run_dir.relative_to(folder)),
                "settings": read_json(run_dir / "config.json").get("settings", {}),
                "history": read_history(run_dir),
            }
        )
    return sorted(found, key=lambda run: (run["run_name"], run["seed"]))
