#!/usr/bin/env bash
# The openai Python package against a fleet.  Installs the package into a throw-away environment, so it runs only when asked:
#   CONCLAVE_TEST_CLIENTS=1
set -euo pipefail

if [[ ${CONCLAVE_TEST_CLIENTS:-0} != 1 ]]; then
    echo "skipped: CONCLAVE_TEST_CLIENTS is not 1"
    exit 77
fi
root=${CONCLAVE_TEST_ROOT:?} run=$(mktemp -d /tmp/client-test-XXXXXX)
port=$((20000 + RANDOM % 20000))
trap '"$root/deploy/conclave" down --run-dir "$run" >/dev/null 2>&1; rm -rf "$run"' EXIT
python3 -m venv "$run/env" && "$run/env/bin/pip" install -q openai || {
    echo "skipped: the openai package can't be installed here"
    exit 77
}
"$root/deploy/conclave" up --model "$root/models/demo" --run-dir "$run" --port "$port" --api-key k1
"$run/env/bin/python" - "http://127.0.0.1:$port/v1" <<'PY'
import sys
import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="k1")
assert client.models.list().data[0].id == "demo"
ask = dict(model="demo", prompt="In the beginning", max_tokens=24, temperature=0)
whole = client.completions.create(**ask, logprobs=2)
assert whole.choices[0].text and whole.usage.completion_tokens == 24, whole
assert len(whole.choices[0].logprobs.tokens) == 24
chunks = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
text = "".join(c.choices[0].text for c in chunks if c.choices)
assert text == whole.choices[0].text, (text, whole.choices[0].text)
assert sum(1 for c in chunks if c.choices) > 10, "not streamed token by token"
assert chunks[-1].usage.completion_tokens == 24
many = client.completions.create(model="demo", prompt=["HAMLET.", "import os"], n=2, max_tokens=5, seed=1)
assert [c.index for c in many.choices] == [0, 1, 2, 3]
stopped = client.completions.create(model="demo", prompt="In the beginning", max_tokens=64, stop=["."], temperature=0)
assert "." not in stopped.choices[0].text
extra = client.completions.create(**ask, extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2})
assert extra.choices[0].text
for kind, call in ((openai.BadRequestError, lambda: client.completions.create(model="demo", prompt="x", temperature=-1)),
                   (openai.NotFoundError, lambda: client.completions.create(model="other", prompt="x")),
                   (openai.AuthenticationError, lambda: openai.OpenAI(base_url=sys.argv[1], api_key="no").models.list())):
    try:
        call()
    except kind as e:
        assert e.body["message"], e
    else:
        raise AssertionError(kind)
print("openai", openai.__version__, "completions: stream and not, lists, n, stop, extra fields, errors: all passed")
PY
