#!/usr/bin/env python3
"""Computes a run's figures again from its raw times, by their published definitions, and compares.

usage: reference_metrics.py TIMES.jsonl RESULT.json

TIMES.jsonl (--save-times) has one object for each request: send_ns, chunk_ns[], last_ns, end_ns, input_tokens,
output_tokens, completed.  Definitions:
  TTFT      first chunk - sending
  E2EL      last chunk - sending
  TPOT      (E2EL - TTFT) / (output tokens - 1), of requests with more than one output token
  ITL       gaps between successive chunks, pooled
  duration  first sending .. last end of a completed request
  request, input, output throughput    completed requests, their input, output tokens / duration
  goodput   completed requests that meet every limit / duration
  percentiles by linear interpolation between the closest ranks
Exit status: 0 if all agree to 1e-6, 1 with the ones that don't.
"""
import json
import math
import sys

TOLERANCE = 1e-6


def percentile(values, p):
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summarize(name, values):
    if not values:
        return {f"{s}_{name}_ms": None for s in ("mean", "median", "p99", "std")}
    mean = math.fsum(values) / len(values)
    return {
        f"mean_{name}_ms": mean,
        f"median_{name}_ms": percentile(values, 50),
        f"p99_{name}_ms": percentile(values, 99),
        f"std_{name}_ms": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)),
    }


def compute(requests, limits):
    done = [r for r in requests if r["completed"]]
    ms = 1e-6
    ttft, tpot, itl, e2el, sched, good = [], [], [], [], [], 0
    for r in done:
        first = (r["chunk_ns"][0] - r["send_ns"]) * ms
        last = (r["last_ns"] - r["send_ns"]) * ms
        per_token = (last - first) / (r["output_tokens"] - 1) if r["output_tokens"] > 1 else None
        ttft.append(first)
        e2el.append(last)
        sched.append((r["chunk_ns"][0] - r["scheduled_ns"]) * ms)
        if per_token is not None:
            tpot.append(per_token)
        itl += [(b - a) * ms for a, b in zip(r["chunk_ns"], r["chunk_ns"][1:])]
        seen = {"ttft": first, "tpot": per_token, "e2el": last}
        good += all(seen[k] is None or seen[k] <= limit for k, limit in limits.items())
    sent = [r["send_ns"] for r in requests if r["send_ns"]]
    duration = (max(r["end_ns"] for r in done) - min(sent)) / 1e9
    figures = {
        "completed": len(done),
        "failed": len(requests) - len(done),
        "duration": duration,
        "total_input_tokens": sum(r["input_tokens"] for r in done),
        "total_output_tokens": sum(r["output_tokens"] for r in done),
    }
    figures["request_throughput"] = len(done) / duration
    figures["input_throughput"] = figures["total_input_tokens"] / duration
    figures["output_throughput"] = figures["total_output_tokens"] / duration
    figures["total_token_throughput"] = figures["input_throughput"] + figures["output_throughput"]
    figures["request_goodput"] = good / duration if limits else None
    for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", e2el), ("sched_ttft", sched)):
        figures.update(summarize(name, values))
    return figures


def agree(a, b):
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b), 1e-9)


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        requests = [json.loads(line) for line in f]
    with open(sys.argv[2], encoding="utf-8") as f:
        result = json.load(f)
    figures = compute(requests, result["goodput_limits"])
    wrong = [k for k, v in figures.items() if not agree(v, result[k])]
    for k in wrong:
        print(f"{k}: {result[k]!r}, but the definition gives {figures[k]!r}")
    print(f"{len(figures) - len(wrong)} of {len(figures)} figures of {len(requests)} requests agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
