"""Every method on every encoder family: what must hold of each, in one test of each pair."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import train
from qa import UserError, loop, runs
from qa.methods import METHODS, get_method
from qa.model import Architecture, attach, check, load_base, merge
from qa.windows import build_windows
from tests.conftest import make_encoder, small_settings, toy_split

FAMILIES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "albert",
            "mobilebert"]  # fmt: skip
WITH_PREFIX = ("bert", "roberta", "electra")
REFUSED = {("prefix_tuning", family) for family in FAMILIES if family not in WITH_PREFIX}
REFUSED |= {("bitfit", "modernbert")}  # which has no biases
# These begin somewhere else than at the encoder as it came.
NOT_AT_THE_BASE = ("vblora", "prompt_tuning", "p_tuning", "prefix_tuning")
LAST = 40  # updates of a training here
# Learning rates for these random models; the rows' own are for a pretrained one.
RATES = {"full": 1e-3, "bitfit": 1e-2, "ln_tuning": 1e-2} | dict.fromkeys(
    ("adalora", "loha", "lokr", "hira"), 6e-3
)
RATES |= dict.fromkeys(("ia3", "vera", "fourierft", "road", "c3a", "vblora", "prefix_tuning"), 3e-2)
RATES |= {"prompt_tuning": 0.1, "p_tuning": 0.1}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """The folder of each family's encoder, made when it is asked for."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = make_encoder(tmp_path_factory.mktemp(family), family, hidden=64)
        return made[family]

    return folder


def defaults(method):
    return {name: param.default for name, param in METHODS[method].params.items()}


def attached(folder, method, **more):
    base = load_base(str(folder), encoder_dropout=0.0)
    return attach(base, get_method(method), defaults(method), 64, **more), base


def batch(vocabulary):
    """Two windows of 12 and 9 tokens: question first, context from token 4."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (2, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    segments = torch.zeros_like(ids)
    segments[:, 4:] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments * mask}


@torch.no_grad()
def logits(model, inputs):
    """(tokens that are no padding, 2)"""
    both = torch.stack(model.eval()(**inputs), dim=-1)
    return both[inputs["attention_mask"] == 1]


def lokr_size(outputs, inputs, r):
    """Two factors of near square shapes; the second as a product where that is smaller."""

    def factors(n):
        small = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
        return small, n // small

    (a, b), (c, d) = factors(outputs), factors(inputs)
    return a * c + (r * (b + d) if r < max(b, d) / 2 else b * d)


# Parameters of one layer with i inputs and o outputs, from the papers, at the default settings.
LAYER_SIZE = {
    "lora": lambda i, o: 8 * (i + o),
    "dora": lambda i, o: 8 * (i + o) + o,
    "adalora": lambda i, o: 12 * (i + o) + 12,
    "ia3": lambda i, o: i if i > o else o,
    "vera": lambda i, o: 64 + o,
    "loha": lambda i, o: 2 * 8 * (i + o),
    "lokr": lambda i, o: lokr_size(o, i, 8),
    "oft": lambda i, o: i // 32 * (32 * 31 // 2),
    "boft": lambda i, o: 4 * i + o,
    "fourierft": lambda i, o: 500,
    "miss": lambda i, o: 16 * o,
    "randlora": lambda i, o: math.ceil(min(i, o) / 32) * (32 + min(i, o)),
    "hra": lambda i, o: 8 * i,
    "road": lambda i, o: o,
    "c3a": lambda i, o: i * o // 32,
    "vblora": lambda i, o: 4 * 256 * (i + o) // 32,
}
LAYER_SIZE |= dict.fromkeys(("rslora", "pissa", "olora", "shira", "hira"), LAYER_SIZE["lora"])


def declared(method, model):
    """How many parameters of the encoder's own or beside it train."""
    a = Architecture.of(model)
    own = {name: p.numel() for name, p in model.base_model.named_parameters()}
    if method in LAYER_SIZE:
        size = sum(LAYER_SIZE[method](i, o) for i, o in a.linear.values())
        return size + (256 * 32 if method == "vblora" else 0)
    e = a.embedding_size
    return {
        "full": lambda: sum(own.values()),
        "head": lambda: 0,
        "bitfit": lambda: sum(n for name, n in own.items() if name.endswith("bias")),
        "ln_tuning": lambda: sum(n for name, n in own.items() if "norm" in name.lower()),
        "prompt_tuning": lambda: 20 * e,
        "p_tuning": lambda: 20 * e + (e * 128 + 128) + (128 * 128 + 128) + (128 * e + e),
        "prefix_tuning": lambda: 20 * a.num_layers * 2 * a.hidden_size,
    }[method]()


def test_the_readmes_matrix_is_this_one():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    names = [
        "BERT",
        "RoBERTa",
        "ELECTRA",
        "DistilBERT",
        "DeBERTa-v2",
        "ModernBERT",
        "ALBERT",
        "MobileBERT",
    ]
    assert [name.lower() for name in names] == FAMILIES
    assert f"| | {' | '.join(names)} | merges |" in readme
    for name, row in METHODS.items():
        cells = ["–" if (name, family) in REFUSED else "✓" for family in FAMILIES]
        merges = "–" if row.kind in ("prompt", "prefix", "none") else "✓"
        assert f"| `{name}` | {' | '.join(cells)} | {merges} |" in readme


def test_what_cannot_work_is_said_before_data_is_read(encoders):
    settings = small_settings(
        method="prefix_tuning", hyperparameters=defaults("prefix_tuning"), train_file="missing",
        model_name_or_path=str(encoders("distilbert")),
    )  # fmt: skip
    with pytest.raises(UserError, match="prefix_tuning does not work with distilbert"):
        train.prepare(settings, Accelerator(cpu=True))
    lora = replace(settings, method="lora", hyperparameters=defaults("lora"))
    with pytest.raises(UserError, match="prefix_tuning does not work with distilbert"):
        train.prepare(lora, Accelerator(cpu=True), others=[settings])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_size": 48}, "block_size: 48 does not divide .*; these do: 1, 2, 4, 8, 16, 32, 64"),
        ({"target_modules": "q"}, "target_modules: no linear layer 'q'"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_encoder(encoders, changes, message):
    base = load_base(str(encoders("bert")))
    with pytest.raises(UserError, match=message):
        check(base.model, get_method("c3a"), {**defaults("c3a"), **changes}, 64)


def test_what_only_peft_knows_is_one_line_too(encoders):
    base = load_base(str(encoders("bert")))
    with pytest.raises(UserError, match=r"shira: The set rank 4000 .*; see --set"):
        attach(base, get_method("shira"), {**defaults("shira"), "r": 4000}, 64)


@pytest.mark.parametrize(
    "family",
    [family if family == "bert" else pytest.param(family, marks=pytest.mark.slow)
     for family in FAMILIES],
)  # fmt: skip
@pytest.mark.parametrize("method", [name for name in METHODS if name != "pretrained"])
def test_method(encoders, tmp_path, method, family):
    folder = encoders(family)
    if (method, family) in REFUSED:
        with pytest.raises(UserError, match=f"{method} does not work with {family}"):
            attached(folder, method)
        return
    untouched, base = attached(folder, "pretrained")
    inputs = batch(min(100, base.model.config.vocab_size))
    size = declared(method, base.model)
    before = logits(untouched, inputs)
    scale = before.abs().max()

    # It starts at the base model, or says that it does not.
    model, base = attached(folder, method, seed=3)
    distance = (logits(model, inputs) - before).abs().max() / scale
    assert distance > 1e-3 if method in NOT_AT_THE_BASE else distance < 1e-5
    assert distance == 0 or method != "lora", "where nothing is decomposed, to the last bit"

    # Exactly the declared parameters train, and the head.
    train = model.trainable()
    assert sum(p.numel() for name, p in train.items() if not model.is_head(name)) == size
    assert {name for name, _ in model.named_parameters() if model.is_head(name) and (
        "original_module" not in name)} == {name for name in train if model.is_head(name)}  # fmt: skip
    assert any(model.is_head(name) for name in train)

    # A training brings the loss of a batch down, moves all of them, and nothing else.
    def state():
        return {name: t.detach().clone() for name, t in (*model.named_parameters(),
                                                         *model.named_buffers())}  # fmt: skip

    then = state()
    split = toy_split(8, words=8)
    windows = build_windows(split, base.tokenizer, 64, 16)
    settings = small_settings(
        method=method, hyperparameters=defaults(method), model_name_or_path=str(folder), seed=3,
        learning_rate=RATES.get(method, 3e-3), head_learning_rate=1e-2,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, num_train_epochs=LAST,
        encoder_dropout=0.0, warmup_ratio=0.1, weight_decay=0.0, eval_steps=LAST,
        output_dir=str(tmp_path),
    )  # fmt: skip
    accelerator = Accelerator(cpu=True)

    def evaluate():
        _, loss = loop.predict(accelerator, model, windows, split.examples, settings)
        return {"eval_loss": loss}

    first = evaluate()["eval_loss"]
    last = loop.fit(accelerator, model, windows, settings, evaluate).best_loss
    # A head alone learns little; MobileBERT, with no norms, is slow under the same rates.
    bound = 0.9 if method == "head" else 0.75 if family == "mobilebert" else 0.5
    assert last < bound * first, f"{first} → {last}"
    moved = {name for name, tensor in state().items() if not torch.equal(tensor, then[name])}
    kept = {name for name in train if "lora_E" in name}  # AdaLoRA may give up all of a layer
    assert train.keys() - moved <= kept and moved <= train.keys()

    # Saved and loaded, it is the same; in plain PEFT, too, where its card says so.
    after = logits(model, inputs)
    run_dir = settings.run_dir()
    run_dir.mkdir(parents=True)
    runs.write_config(run_dir, settings, {}, {}, 1)
    runs.save_model(run_dir, model, base, settings)
    loaded, _, _ = runs.load_run(run_dir)
    torch.testing.assert_close(logits(loaded, inputs), after, atol=1e-5 * scale, rtol=1e-5)
    named = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if model.architecture.segments:
        named["token_type_ids"] = inputs["token_type_ids"]
    real = inputs["attention_mask"] == 1
    if METHODS[method].kind == "adapter":
        from peft import PeftModel

        plain = PeftModel.from_pretrained(load_base(str(folder)).model, run_dir).eval()
        with torch.no_grad():
            start = plain(**named).start_logits[real]
        torch.testing.assert_close(start, after[:, 0], atol=1e-5 * scale, rtol=1e-5)

    # Segment ids reach the encoder, where it has them.
    flipped = {**inputs, "token_type_ids": 1 - inputs["token_type_ids"]}
    assert model.architecture.segments == (family in ("bert", "electra", "albert", "mobilebert"))
    apart = (logits(model, flipped) - after).abs().max()
    assert (apart > 1e-3 * scale) == model.architecture.segments

    # Merged, it is a plain model with the same logits, or it is refused.
    if METHODS[method].kind in ("prompt", "prefix"):
        with pytest.raises(UserError, match=f"{method} cannot be merged"):
            merge(model)
        return
    merged = merge(model).eval()
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        start = merged(**named).start_logits[real]
    tolerance = 1e-4 * max(1.0, after.abs().max().item())  # of logits of the usual size, 1e-4
    torch.testing.assert_close(start, after[:, 0], atol=tolerance, rtol=0)
