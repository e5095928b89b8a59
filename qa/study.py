"""What can be set, and where each setting came from.

One flat, frozen dataclass holds every setting; the command line is generated from it. A value
comes from (later wins): its default, the method's row, study.yaml, study.yaml's block for the
method, a flag. `--config RUN/config.json` takes the place of the first four and replays a run.
"""

import argparse
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qa import UserError
from qa.methods import ALIASES, METHODS, Param, get_method

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
DATA_FIELDS = ("dataset_name", "train_file", "validation_file", "test_file")
DATA_SOURCES = ("dataset_name", "train_file")


def setting(default: Any, help: str, *, affects_result: bool = True, **limits: Any) -> Any:
    """A field of Settings. limits: at_least, above, at_most, choices (see `check_value`).

    affects_result: whether training and answers may differ by more than rounding.
    """
    metadata = {"help": help, "affects_result": affects_result, **limits}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; each field is documented by its help text."""

    study: str = setting("embedded", "folder of studies/ that presets come from")
    method: str = setting("lora", "what trains", choices=(*METHODS, *ALIASES))
    hyperparameters: dict = setting({}, "the method's own settings: --set r=16 lora_alpha=32")

    model_name_or_path: str | None = setting(None, "hub id, folder, embedded or minilm-l6")
    model_revision: str | None = setting(None, "commit, tag or branch of a hub model")
    dataset_name: str | None = setting(None, "hub id, folder saved by `datasets`, or embedded")
    dataset_revision: str | None = setting(None, "commit, tag or branch of a hub data set")
    train_file: str | None = setting(None, "SQuAD v1.1 JSON to train on")
    validation_file: str | None = setting(None, "SQuAD v1.1 JSON for early stopping and search")
    test_file: str | None = setting(None, "SQuAD v1.1 JSON that the reported scores come from")
    validation_fraction: float = setting(
        0.05,
        "share of train's articles held out where no validation is named",
        above=0,
        at_most=0.9,
    )
    max_train_samples: int | None = setting(None, "draw so many questions at random", at_least=1)
    max_validation_samples: int | None = setting(None, "the same for validation", at_least=1)
    max_test_samples: int | None = setting(None, "the same for test", at_least=1)
    data_seed: int = setting(
        42,
        "seed of held-out articles and draws; apart from --seed, so that runs compare",
        at_least=0,
    )
    on_bad_example: str = setting(
        "error", "stop at a bad example, or drop and count it", choices=("error", "skip")
    )

    max_seq_length: int = setting(384, "tokens of a window, special ones included", at_least=16)
    doc_stride: int = setting(128, "tokens that neighbouring windows share", at_least=0)
    max_answer_length: int = setting(30, "tokens of the longest answer", at_least=1, at_most=512)
    n_best_size: int = setting(20, "answers kept for each question", at_least=1, at_most=1000)

    learning_rate: float = setting(1e-3, "peak learning rate (default: the method's)", above=0)
    head_learning_rate: float | None = setting(
        None, "the span head's own (default: the method's, or else learning_rate)", above=0
    )
    train_head: bool = setting(True, "train the span head beside the method's own weights")
    num_train_epochs: int = setting(10, "at most", at_least=1)
    per_device_train_batch_size: int = setting(2, "windows a micro-batch", at_least=1)
    gradient_accumulation_steps: int = setting(4, "micro-batches an update", at_least=1)
    merge_accumulation: bool = setting(
        True, "run an update's micro-batches as one forward where memory allows"
    )
    per_device_eval_batch_size: int = setting(
        32, "windows a forward in evaluation", affects_result=False, at_least=1
    )
    weight_decay: float = setting(0.01, "AdamW's; none on prompts, biases, norms", at_least=0)
    warmup_ratio: float = setting(
        0.06, "share of the updates with rising rate", at_least=0, at_most=1
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", above=0)
    encoder_dropout: float | None = setting(
        None, "all of the encoder's dropouts (default: its own)", at_least=0, at_most=0.9
    )
    eval_steps: int | None = setting(
        None, "evaluate every so many updates (default: an epoch)", at_least=1
    )
    early_stopping_patience: int = setting(
        2, "evaluations without a lower eval_loss before stopping; 0: never", at_least=0
    )
    mixed_precision: str = setting(
        "no", "arithmetic of the forward", choices=("no", "bf16", "fp16")
    )
    seed: int = setting(42, "initialisation, batch order, dropout", at_least=0)
    seeds: tuple[int, ...] = setting(
        (42,), "the seeds a whole comparison runs", affects_result=False
    )
    num_threads: int | None = setting(
        None,
        "CPU threads a process (default: cores ÷ processes of this machine)",
        affects_result=False,
        at_least=1,
    )

    bertscore_model: str = setting(
        "embedded", "BERTScore's scoring model: hub id, folder or embedded", affects_result=False
    )
    bertscore_num_layers: int | None = setting(
        None,
        "layers of it (default: bert-score's choice, else all)",
        affects_result=False,
        at_least=1,
    )
    bertscore_rescale: bool = setting(
        False, "rescale BERTScore with bert-score's English baseline", affects_result=False
    )

    output_dir: str | None = setting(
        None, "folder of the runs (default: studies/STUDY/runs)", affects_result=False
    )
    run_name: str | None = setting(None, "default: the method's name", affects_result=False)
    report_to: str | None = setting(
        None, "trackers, joined by commas: tensorboard, wandb, …", affects_result=False
    )
    cache_dir: str = setting(".cache", "folder for prepared windows", affects_result=False)
    overwrite: bool = setting(False, "replace a run that is there", affects_result=False)
    resume: bool = setting(False, "go on from the last checkpoint", affects_result=False)

    def study_dir(self) -> Path:
        """Where the study's results and its search stand."""
        return expand_path(self.output_dir) if self.output_dir else STUDIES / self.study

    def run_dir(self) -> Path:
        base = self.study_dir() if self.output_dir else STUDIES / self.study / "runs"
        return base / (self.run_name or self.method) / f"seed-{self.seed}"


FIELDS = {f.name: f for f in fields(Settings)}
TYPES = typing.get_type_hints(Settings)
OF_A_COMMAND = {"resume", "overwrite"}  # that is given anew, not taken from a saved run
NOT_IN_STUDY = {"study", "method", "hyperparameters", *OF_A_COMMAND}
NOT_SETTINGS = {"methods", "description", "search"}  # what else a study.yaml holds


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings; one that was not there yet has its default.

    saved: as JSON holds them. Hyperparameters have those of the method's row. Raises UserError where
    the method is unknown.
    """
    made = {
        name: f.default if f.default is not MISSING else f.default_factory()
        for name, f in FIELDS.items()
    }
    filled = {**json.loads(json.dumps(made)), **saved}
    params = get_method(filled["method"]).params
    own = {name: param.default for name, param in params.items()}
    return {**filled, "hyperparameters": {**own, **filled["hyperparameters"]}}


def suggest(name: str, valid: Sequence[str]) -> str:
    """' (did you mean …?)' or ''."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_value(name: str, value: Any, kind: Any, limits: Mapping[str, Any], where: str) -> Any:
    """`value`, given as text or by YAML or JSON, as a `kind` within `limits`; else UserError."""

    given = str(value)

    def refuse(problem: str):
        shown = given if len(given) <= 60 else given[:57] + "..."
        raise UserError(f"{name}: {shown!r} {problem} (from {where})")

    if isinstance(kind, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not items:
            refuse("is not a list of numbers")
        checked = [check_value(name, item, int, {"at_least": 0}, where) for item in items]
        return tuple(dict.fromkeys(checked))  # each once
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if not isinstance(value, bool):
            refuse("is not true or false")
    elif kind in (int, float):
        # YAML reads 3e-3 as text, so text is converted here whatever it came from.
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            number = kind(value)
            if kind is int and isinstance(value, float) and number != value:
                raise ValueError
        except (ValueError, OverflowError):
            refuse(f"is not {'a whole number' if kind is int else 'a number'}")
        value = number
        if kind is float and not math.isfinite(value):
            refuse("is not a finite number")
        if kind is int and abs(value) >= 2**63:
            refuse("is too large")
        if limits.get("at_least") is not None and value < limits["at_least"]:
            refuse(f"must be at least {limits['at_least']}")
        if limits.get("above") is not None and value <= limits["above"]:
            refuse(f"must be above {limits['above']}")
        if limits.get("at_most") is not None and value > limits["at_most"]:
            refuse(f"must be at most {limits['at_most']}")
    elif not isinstance(value, str) or not value.strip() or "\0" in value:
        refuse("is not a text")
    if limits.get("choices") and value not in limits["choices"]:
        valid = [str(choice) for choice in limits["choices"]]
        refuse(f"is not one of {', '.join(valid)}{suggest(given, valid)}")
    return value


def check_field(name: str, value: Any, where: str) -> Any:
    return check_value(name, value, TYPES[name], FIELDS[name].metadata, where)


def check_hyperparameter(method: str, name: str, value: Any, where: str) -> Any:
    row = get_method(method)
    param: Param | None = row.params.get(name)
    if param is None:
        valid = ", ".join(row.params) or "none"
        raise UserError(
            f"{name}: not a hyperparameter of {row.name}{suggest(name, list(row.params))}; "
            f"it has: {valid} (from {where})"
        )
    return check_value(name, value, type(param.default), asdict(param), where)


@dataclass(frozen=True)
class Layer:
    """Some settings and the one place they came from."""

    origin: str
    values: Mapping[str, Any]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def read_study(name: str) -> dict[str, Any]:
    """studies/NAME/study.yaml as a mapping with a `methods` block. Raises UserError."""
    import yaml

    path = STUDIES / name / "study.yaml"
    valid = sorted(p.parent.name for p in STUDIES.glob("*/study.yaml"))
    if name not in valid:
        raise UserError(f"study: {name!r} is unknown; studies/ has: {', '.join(valid)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("methods", {}), dict):
        raise UserError(f"{path}: must be a mapping of settings, with a mapping `methods`")
    for method, block in content.setdefault("methods", {}).items():
        if not isinstance(block, (dict, types.NoneType)):
            raise UserError(f"{path}: methods.{method} must be a mapping of settings")
        get_method(str(method))
    return content


def _study_layers(study: str, method: str) -> list[Layer]:
    content = read_study(study)
    block = content["methods"].get(method) or {}
    where = f"studies/{study}/study.yaml"
    general = {k: v for k, v in content.items() if k not in NOT_SETTINGS}
    valid = [name for name in FIELDS if name not in NOT_IN_STUDY]
    layers = []
    for origin, entries in ((where, general), (f"{where}, {method}", block)):
        values, hyperparameters = {}, {}
        for name, value in entries.items():
            if name in valid:
                values[name] = check_field(name, value, origin)
            elif entries is block and name in get_method(method).params:
                hyperparameters[name] = check_hyperparameter(method, name, value, origin)
            else:
                names = valid + (list(get_method(method).params) if entries is block else [])
                raise UserError(f"{origin}: unknown setting {name!r}{suggest(str(name), names)}")
        layers.append(Layer(origin, values, hyperparameters))
    return layers


def read_config(path: str) -> Layer:
    """A run's config.json, checked. Raises UserError."""
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))["settings"]
        entries = dict(saved)
        hyperparameters = dict(entries.pop("hyperparameters"))
        method = get_method(str(entries.get("method"))).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is no run's config.json"
        raise UserError(f"{path}: {problem}; give a finished run's config.json") from None
    unknown = [name for name in entries if name not in FIELDS]
    if unknown:
        raise UserError(f"{path}: unknown setting {unknown[0]!r}")
    return Layer(
        path,
        {
            name: check_field(name, value, path)
            for name, value in entries.items()
            if name not in OF_A_COMMAND
        },
        {k: check_hyperparameter(method, k, v, path) for k, v in hyperparameters.items()},
    )


def resolve(flags: Layer, config: str | None = None) -> tuple[Settings, dict[str, str]]:
    """Layer upon layer → the settings, and the origin of each. Raises UserError."""
    saved = read_config(str(expand_path(config))) if config else None
    named = {**(saved.values if saved else {}), **flags.values}
    row = get_method(named.get("method", FIELDS["method"].default))
    study = named.get("study", FIELDS["study"].default)
    if saved:
        layers = [saved, flags]
    else:
        own = {"learning_rate": row.learning_rate, "head_learning_rate": row.head_learning_rate}
        given = {name: value for name, value in own.items() if value is not None}
        own = Layer(f"method {row.name}", given)
        layers = [own, *_study_layers(study, row.name), flags]

    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")
    hyperparameters = {name: param.default for name, param in row.params.items()}
    origins.update(dict.fromkeys(row.params, f"method {row.name}"))
    for layer in layers:
        # A new source of training data takes none of the old source's other splits along:
        # half of one corpus beside half of another would be scored without a word.
        if any(name in layer.values for name in DATA_SOURCES):
            for name in (*DATA_FIELDS, "dataset_revision"):
                values.pop(name, None)
        if "model_name_or_path" in layer.values:
            values.pop("model_revision", None)
        values.update(layer.values)
        origins.update(dict.fromkeys(layer.values, layer.origin))
        for name, value in layer.hyperparameters.items():
            hyperparameters[name] = check_hyperparameter(row.name, name, value, layer.origin)
            origins[name] = layer.origin
    values.update(method=row.name, study=study, hyperparameters=hyperparameters)
    settings = Settings(**values)
    if settings.run_name is not None and not re.fullmatch(r"[\w.+-]+", settings.run_name):
        raise UserError("run_name: use letters, digits, and . _ + - (it names a folder)")
    if settings.doc_stride >= settings.max_seq_length - 8:
        raise UserError(
            f"doc_stride: {settings.doc_stride} leaves windows of {settings.max_seq_length} tokens "
            "no way forward; lower doc_stride or raise max_seq_length"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if origins["mixed_precision"] == "default" and launched in ("bf16", "fp16"):
        settings = replace(settings, mixed_precision=launched)
        origins["mixed_precision"] = "accelerate launch"
    return settings, origins


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str):
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found:
            options = [o for action in self._actions for o in action.option_strings]
            message = (
                f"unknown option {found[1]}{suggest(found[1].split('=')[0], options)}; see --help"
            )
        raise UserError(message)


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Give `parser` one flag for each setting (or for the named ones)."""
    for name in names or FIELDS:
        f = FIELDS[name]
        help = f.metadata["help"].replace("%", "%%")
        options = {"default": argparse.SUPPRESS}
        if name == "hyperparameters":
            parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help=help, **options)
            continue
        if f.default is not None and f.default is not False and f.default is not True:
            shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
            help += f" [{shown}]"
        if TYPES[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", help=help, **options)
            if f.default:
                parser.add_argument(
                    f"--no_{name}",
                    action="store_false",
                    dest=name,
                    help=f"turn {name} off",
                    **options,
                )
            continue
        nargs = "+" if typing.get_origin(TYPES[name]) is tuple else None
        choices = f.metadata.get("choices")
        metavar = "|".join(choices) if choices and name != "method" else name.split("_")[-1].upper()
        parser.add_argument(f"--{name}", nargs=nargs, metavar=metavar, help=help, **options)


def flags_layer(namespace: argparse.Namespace) -> Layer:
    """The settings among parsed flags, checked. Hyperparameters are checked by `resolve`."""
    given = vars(namespace)
    values = {name: check_field(name, given[name], f"--{name}") for name in FIELDS if name in given}
    return Layer("flag", values, pairs("--set", given.get("set", ())))


def pairs(flag: str, items: Sequence[str]) -> dict[str, str]:
    """["name=value", …] → {name: value}. Raises UserError."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UserError(f"{flag}: {item!r} is not of the form name=value")
        found[name] = value
    return found


def expand_path(path: str) -> Path:
    """`path` with ~ and $VARIABLES filled in, so that a study need not name one machine's folder."""
    missing = [v for v in re.findall(r"\$\{?(\w+)\}?", path) if v not in os.environ]
    if missing:
        raise UserError(
            f"{path}: the environment variable {missing[0]} is not set; set it to the folder"
        )
    try:
        return Path(os.path.expandvars(path)).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"{path}: {error}; write the folder out") from None
