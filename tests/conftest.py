"""Small encoders of several families, made here, and small data: the tests need no network.

No part of the program is replaced by a stand-in: the encoders are real transformers models with
random weights and tokenizers trained on the spot.
"""

import json
import os
import random
import resource
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it

import pytest
import torch

from qa import squad
from qa.study import Settings

torch.set_num_threads(1)  # the models here are too small for two
SQUAD_DIR = Path(os.environ.get("SQUAD_DIR", Path(__file__).parent.parent.parent / "shared/squad"))
WORDS = [
    a + b
    for a in ("bo", "ka", "li", "mu", "ne", "pa", "ri", "so", "tu", "ve")
    for b in "bdfgklmnprstvz"
]
TEXT = [
    "The quick brown fox — naïve, café-bred — jumps over 12,345.67 lazy dogs; doesn't it?",
    "東京 is a city. Ein Straßenname: Übergrößenträger! e\u0301 is two characters, 😀 is one.",
    *(" ".join(WORDS[i : i + 10]) for i in range(0, len(WORDS), 10)),
]


@pytest.fixture(scope="session")
def squad_dir() -> Path:
    if not (SQUAD_DIR / "dev-v1.1.json").exists():
        pytest.skip(f"SQuAD v1.1 is not at {SQUAD_DIR} (set SQUAD_DIR)")
    return SQUAD_DIR


@pytest.fixture(scope="session")
def squad_dev(squad_dir) -> squad.Split:
    return squad.read_file("test", str(squad_dir / "dev-v1.1.json"))


def wordpiece():
    """BERT's kind: WordPiece, [CLS] question [SEP] context [SEP], segment ids 0 and 1."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    # Not trained: of pieces that are equally frequent, training takes others each time.
    found = {c for text in TEXT for c in BertWordPieceTokenizer().normalize(text)} - {" "}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(found), *WORDS]
    pieces += [f"##{c}" for c in sorted(found)]
    core = BertWordPieceTokenizer({piece: i for i, piece in enumerate(pieces)})
    return BertTokenizerFast(tokenizer_object=core._tokenizer, model_max_length=512)


def byte_bpe():
    """RoBERTa's kind: byte-level BPE, <s> question </s></s> context </s>, no segments."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(
        TEXT, vocab_size=400, min_frequency=1, show_progress=False, special_tokens=special
    )
    core._tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer,
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", model_max_length=512,
    )  # fmt: skip


def unigram():
    """DeBERTa-v2's and ALBERT's kind: SentencePiece Unigram, segment ids 0 and 1."""
    from tokenizers import SentencePieceUnigramTokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = SentencePieceUnigramTokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    core.train_from_iterator(
        TEXT, vocab_size=300, show_progress=False, special_tokens=special, unk_token="[UNK]"
    )
    core._tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer,
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
        model_max_length=512,
    )  # fmt: skip


def late_offsets():
    """Byte-level BPE behind a split at white space: each word's offsets are one late."""
    from tokenizers import pre_tokenizers, processors

    tokenizer = byte_bpe()
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    core.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=True, trim_offsets=True
    )
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece, "byte_bpe": byte_bpe, "unigram": unigram}


def make_encoder(folder: Path, family: str = "bert", hidden: int = 32, seed: int = 0) -> Path:
    """Save a two-layer model of the family with a random span head, and its tokenizer."""
    from transformers import CONFIG_MAPPING, AutoModelForQuestionAnswering
    from transformers.utils import logging

    logging.disable_progress_bar()

    kinds = {"roberta": byte_bpe, "modernbert": byte_bpe, "deberta-v2": unigram, "albert": unigram}
    tokenizer = kinds.get(family, wordpiece)()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # large enough for a random model's logits to differ
    }
    if family == "distilbert":
        shape = {
            "vocab_size": len(tokenizer), "dim": hidden, "n_layers": 2, "n_heads": 2,
            "hidden_dim": 2 * hidden, "initializer_range": 0.2,
        }  # fmt: skip
    if family == "roberta":
        shape |= {"max_position_embeddings": 514, "type_vocab_size": 1}
    if family == "modernbert":
        shape |= {"global_attn_every_n_layers": 1, "initializer_cutoff_factor": 3.0}
        shape |= {"bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    if family in ("electra", "albert"):
        shape |= {"embedding_size": hidden // 2}
    if family == "deberta-v2":  # as DeBERTa-v3 has it
        shape |= {
            "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
            "position_buckets": 32, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
            "type_vocab_size": 0,
        }  # fmt: skip
    if family == "mobilebert":
        shape |= {"embedding_size": hidden, "intra_bottleneck_size": hidden // 2}
        shape["initializer_range"] = 0.1  # it has no norms to tame its activations
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_config(CONFIG_MAPPING[family](**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A folder with a two-layer BERT of hidden size 32."""
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def make_adapter(folder: Path, base: Path | str, method: str = "LoraConfig", **config) -> Path:
    """Save a PEFT adapter of the base with random weights, as PEFT itself does; no tokenizer."""
    import peft

    from qa.model import load_base

    torch.manual_seed(1)
    config = {"modules_to_save": ["qa_outputs"], "target_modules": ["query"], **config}
    config = getattr(peft, method)(**{k: v for k, v in config.items() if v is not None})
    network = peft.get_peft_model(load_base(str(base)).model, config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    config.base_model_name_or_path = str(base)
    network.save_pretrained(folder, save_embedding_layers=False)
    return folder


def toy_document(questions: int = 40, seed: int = 0, titles: int = 8, words: int = 14) -> dict:
    """SQuAD v1.1 JSON of a task a small encoder can learn: the word after the asked one."""
    draw = random.Random(seed)
    articles = [{"title": f"article {i}", "paragraphs": []} for i in range(titles)]
    for n in range(questions):
        context = draw.sample(WORDS, words)
        asked = draw.randrange(words - 1)
        text = " ".join(context)
        start = len(" ".join(context[: asked + 1])) + 1
        answer = {"text": context[asked + 1], "answer_start": start}
        qa = {"id": f"q{seed}-{n}", "question": context[asked], "answers": [answer]}
        articles[n % titles]["paragraphs"].append({"context": text, "qas": [qa]})
    return {"version": "1.1", "data": articles}


def write_toy_files(folder: Path, **counts: int) -> dict[str, str]:
    """Flags for three files of so many questions each."""
    flags = {}
    for seed, (name, count) in enumerate(counts.items()):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(toy_document(count, seed)))
        flags[f"{name}_file"] = str(path)
    return flags


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory) -> dict[str, str]:
    """Flags for three small files."""
    return write_toy_files(tmp_path_factory.mktemp("toy"), train=60, validation=16, test=20)


def toy_split(count: int, seed: int = 0, **options) -> squad.Split:
    """The same data as a checked split, without a file."""
    return squad._checked("toy", "toy", "toy", toy_document(count, seed, **options), "error")


def small_settings(**changes) -> Settings:
    """Settings for windows and batches of the toy data."""
    values = {"max_seq_length": 64, "doc_stride": 16, "num_train_epochs": 2, **changes}
    return Settings(**values)


def command_flags(encoder: Path, toy_files: dict[str, str], output_dir: Path) -> list[str]:
    """A train.py command line on the toy data that takes a second or two."""
    flags = {
        **toy_files, "model_name_or_path": encoder, "output_dir": output_dir, "num_train_epochs": 2,
        "max_seq_length": 64, "doc_stride": 16, "num_threads": 1,
        "cache_dir": output_dir / "cache",
    }  # fmt: skip
    return [item for name, value in flags.items() for item in (f"--{name}", str(value))]


@contextmanager
def small_disk(room: int):
    """No file may grow beyond `room` bytes: as on a full disk, but that EFBIG says so, not ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores the signal of it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
