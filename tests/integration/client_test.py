"""Completions through the `openai` package: whole, streamed, several, and the errors it raises.

usage: client_test.py BASE_URL API_KEY
"""

import sys

import openai

PROMPT = "It is a truth universally acknowledged, that"


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def raises(kind, call, words):
    try:
        call()
    except kind as error:
        check(words in str(error), f'no "{words}" in {error}')
        return
    sys.exit(f"FAILED: no {kind.__name__}")


def main():
    base_url, key = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)
    models = list(client.models.list())
    check([m.id for m in models] == ["demo"], f"models: {models}")

    ask = dict(model="demo", prompt=PROMPT, max_tokens=24, temperature=0)
    whole = client.completions.create(**ask, logprobs=3)
    choice = whole.choices[0]
    check(choice.finish_reason == "length", f"finish_reason {choice.finish_reason}")
    check(whole.usage.completion_tokens == 24, f"usage {whole.usage}")
    check(whole.usage.total_tokens == whole.usage.prompt_tokens + 24, f"usage {whole.usage}")
    check("".join(choice.logprobs.tokens) == choice.text, "the tokens are not the text")
    check(len(choice.logprobs.top_logprobs) == 24, "top_logprobs of each token")

    events = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(e.choices[0].text for e in events if e.choices)
    check(text == choice.text, "the stream's text differs")
    check(events[-1].usage == whole.usage or events[-1].usage.completion_tokens == 24, "usage of a stream")
    check(events[-2].choices[0].finish_reason == "length", "finish_reason of a stream")

    several = client.completions.create(
        model="demo", prompt=[PROMPT, "HAMLET."], n=2, seed=7, max_tokens=8, temperature=0.9, stop=["\n"]
    )
    check([c.index for c in several.choices] == [0, 1, 2, 3], "indexes")
    again = client.completions.create(
        model="demo", prompt=[PROMPT, "HAMLET."], n=2, seed=7, max_tokens=8, temperature=0.9, stop=["\n"]
    )
    check([c.text for c in several.choices] == [c.text for c in again.choices], "a seed gives the same text")

    with client.completions.create(**{**ask, "max_tokens": 2000}, stream=True) as stream:
        next(iter(stream))  # and leave

    raises(openai.NotFoundError, lambda: client.completions.create(**{**ask, "model": "other"}), "other")
    raises(openai.BadRequestError, lambda: client.completions.create(**{**ask, "temperature": -1}), "temperature")
    raises(openai.BadRequestError, lambda: client.completions.create(**{**ask, "max_tokens": 5000}), "4096")
    stranger = openai.OpenAI(base_url=base_url, api_key="another", max_retries=0)
    raises(openai.AuthenticationError, lambda: stranger.completions.create(**ask), "API key")
    print(f"client: all checks passed with openai {openai.__version__}")


main()
