"""Makes the two data sets of this folder from the texts that the demo model was not trained on.

usage: make_sets.py DATA_DIR TOKENIZER_MODEL OUT_DIR

DATA_DIR holds what models/recipe/corpus.py writes (only *.valid.txt, the held-out documents, are read);
TOKENIZER_MODEL is models/demo/tokenizer.model.  Needs the sentencepiece package.

A conversation is one passage cut into turns: the "human" writes the first piece, the "gpt" its continuation, and
so on.  Lengths are token counts of the demo model with the begin mark, as servers count a prompt.

  study50.json   50 conversations of two turns.  The sums of their prompt and answer tokens are those of the
                 published study's 50 requests (12,921 and 10,288); the single lengths, which it does not publish,
                 are drawn from log-normal distributions within the limits of its filter.
  domains.json   30 conversations for each domain, of two turns (two thirds) or six (one third).
"""
import json
import math
import os
import random
import sys

import sentencepiece

DOMAINS = ("austen", "bible", "pydoc", "python", "shakespeare")
STUDY_COUNT, STUDY_INPUT, STUDY_OUTPUT = 50, 12921, 10288
PER_DOMAIN = 30

data, model, out = sys.argv[1:4]
sp = sentencepiece.SentencePieceProcessor(model_file=model)


def count(text):
    return len(sp.encode(text)) + 1


class Source:
    """The documents of a domain, each taken piece by piece."""

    def __init__(self, name):
        with open(f"{data}/{name}.valid.txt", encoding="utf-8") as f:
            self.docs = [d for d in f.read().split("\0") if len(d) > 400]
        self.at = [0] * len(self.docs)

    def take(self, d, tokens):
        """The next text of exactly so many tokens, or None where the document is too short."""
        rest = self.docs[d][self.at[d]:].lstrip()
        start = len(self.docs[d]) - len(rest)
        ids = sp.encode(rest[: tokens * 12 + 100])
        for n in range(tokens - 1, max(tokens - 6, 0), -1):
            piece = sp.decode(ids[:n])
            for extra in range(0, 24):
                text = rest[: len(piece) + extra].rstrip()
                if len(ids) > n and text and count(text) == tokens:
                    self.at[d] = start + len(text)
                    return text
        return None

    def conversation(self, lengths):
        """Turns of these lengths from one document, the first that still has so much; None where none has."""
        for d, begin in enumerate(self.at):
            turns = []
            for n in lengths:
                turns.append(self.take(d, n))
                if turns[-1] is None:
                    self.at[d] = begin
                    break
            else:
                return turns
        return None


def draw_lengths(rng, n, total, low, high, sigma):
    mean = total / n
    lengths = [min(max(round(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)), low), high) for _ in range(n)]
    while sum(lengths) != total:
        i = rng.randrange(n)
        step = 1 if sum(lengths) < total else -1
        if low <= lengths[i] + step <= high:
            lengths[i] += step
    return lengths


def entry(name, number, domain, turns):
    speakers = ("human", "gpt")
    return {
        "id": f"{name}-{number}",
        "domain": domain,
        "conversations": [{"from": speakers[i % 2], "value": t} for i, t in enumerate(turns)],
    }


def write(name, entries):
    path = os.path.join(out, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]\n")
    tokens = [[count(t["value"]) for t in e["conversations"]] for e in entries]
    print(name, len(entries), "conversations, first prompts", sum(t[0] for t in tokens), "tokens, first answers",
          sum(t[1] for t in tokens), "tokens,", os.path.getsize(path), "bytes")


rng = random.Random(50)
sources = {d: Source(d) for d in DOMAINS}
inputs = draw_lengths(rng, STUDY_COUNT, STUDY_INPUT, 4, 1024, 1.2)
outputs = draw_lengths(rng, STUDY_COUNT, STUDY_OUTPUT, 4, 900, 1.0)
study = [None] * STUDY_COUNT
for i in sorted(range(STUDY_COUNT), key=lambda i: -inputs[i] - outputs[i]):  # the longest choose first
    for domain in DOMAINS[i % len(DOMAINS):] + DOMAINS[: i % len(DOMAINS)]:
        turns = sources[domain].conversation((inputs[i], outputs[i]))
        if turns:
            study[i] = entry("study", i, domain, turns)
            break
write("study50.json", study)

entries = []
for i in range(PER_DOMAIN):
    for domain in DOMAINS:
        turns = 6 if i % 3 == 2 else 2
        lengths = [rng.randint(12, 60) if t % 2 == 0 and turns == 6 else rng.randint(30, 220 if turns == 2 else 70)
                   for t in range(turns)]
        turns = sources[domain].conversation(lengths)
        if turns:
            entries.append(entry(domain, i, domain, turns))
write("domains.json", entries)
