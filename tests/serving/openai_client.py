"""The official openai package against a running server.

    pip install openai
    unicorn serve --model smollm2-135m &
    python3 tests/serving/openai_client.py http://127.0.0.1:8000 [API_KEY]

Each check is a function; all run, what fails is listed, and the exit code is the number of failures.
"""

import concurrent.futures
import json
import math
import sys
import time

import openai
from openai import OpenAI

BASE = sys.argv[1].rstrip("/")
KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
client = OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=300)
MODEL = client.models.list().data[0].id
USER = [{"role": "user", "content": "Name three colours of the rainbow."}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "hobbies": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}


def chat(**fields):
    return client.chat.completions.create(**{"model": MODEL, "messages": USER, "max_tokens": 24, "temperature": 0, **fields})


def models():
    model = client.models.retrieve(MODEL)
    assert model.id == MODEL and model.object == "model"
    refused(404, None, lambda: client.models.retrieve("no-such-model"))


def answer_with_usage():
    got = chat()
    choice = got.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = got.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 24
    assert got.object == "chat.completion" and got.id and abs(got.created - time.time()) < 600


def the_cache_is_told():
    chat(messages=USER + [{"role": "assistant", "content": "Red."}, {"role": "user", "content": "More."}])
    again = chat(messages=USER + [{"role": "assistant", "content": "Red."}, {"role": "user", "content": "More."}])
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached == again.usage.prompt_tokens - 1, (cached, again.usage.prompt_tokens)


def stream_is_the_answer():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert all(chunk.usage is None for chunk in chat(stream=True))


def a_stream_that_is_left():
    stream = chat(stream=True, max_tokens=400)
    next(iter(stream))
    stream.close()
    assert chat(max_tokens=2).choices[0].message.content is not None


def seeds():
    draw = lambda seed: chat(temperature=1.0, seed=seed, max_tokens=16).choices[0].message.content
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(5)}) > 1


def seeds_in_company():
    """The same text, whatever else is in the batch."""
    draw = lambda seed: chat(temperature=0.8, seed=seed, max_tokens=24).choices[0].message.content
    alone = [draw(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, [0, 1, 2, 3, 0, 1, 2, 3]))
    assert together == alone + alone, (alone, together)


def several_choices():
    got = chat(n=3, temperature=1.0, seed=1, max_tokens=12)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in got.choices}) > 1
    chunks = list(chat(n=2, temperature=1.0, seed=1, max_tokens=6, stream=True))
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices} == {0, 1}


def stop_strings():
    text = chat(max_tokens=40).choices[0].message.content
    middle = text[len(text) // 3 : len(text) // 3 + 3]
    got = chat(max_tokens=40, stop=[middle, "never in there"])
    assert got.choices[0].finish_reason == "stop"
    assert got.choices[0].message.content == text[: text.index(middle)]
    refused(400, "stop", lambda: chat(stop=[str(i) for i in range(17)]))


def logprobs():
    got = chat(logprobs=True, top_logprobs=3, max_tokens=6)
    content = got.choices[0].logprobs.content
    assert len(content) in (got.usage.completion_tokens, got.usage.completion_tokens - 1)
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
    joined = b"".join(bytes(token.bytes) for token in content).decode("utf-8", "replace")
    assert joined.startswith(got.choices[0].message.content[:8])


def logit_bias():
    likeliest = chat(logprobs=True, top_logprobs=2, max_tokens=1).choices[0].logprobs.content[0]
    ids = client.post("/../tokenize", body={"prompt": likeliest.token, "add_special_tokens": False}, cast_to=object)["tokens"]
    got = chat(logit_bias={str(ids[0]): -100}, max_tokens=1, logprobs=True, top_logprobs=1)
    assert got.choices[0].logprobs.content[0].token != likeliest.token


def penalties():
    plain = chat(max_tokens=60).choices[0].message.content
    assert chat(max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0).choices[0].message.content != plain
    chat(extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2}, temperature=0.7)


def required_tool():
    got = chat(tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=200)
    choice = got.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    for call in choice.message.tool_calls:
        assert call.type == "function" and call.id
        assert call.function.name in ("get_weather", "get_time")
        json.loads(call.function.arguments)


def named_tool():
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    got = chat(messages=ask, tools=[WEATHER, CLOCK], tool_choice=named, max_tokens=200)
    call = got.choices[0].message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")
    # The result goes back, and an answer comes.
    messages = ask + [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"degrees": 21})},
    ]
    assert chat(messages=messages, tools=[WEATHER, CLOCK]).choices[0].finish_reason in ("stop", "length", "tool_calls")


def streamed_tool():
    named = {"type": "function", "function": {"name": "get_weather"}}
    name, arguments, ends = "", "", []
    for chunk in chat(tools=[WEATHER], tool_choice=named, max_tokens=200, stream=True):
        for choice in chunk.choices:
            ends += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert name == "get_weather" and ends == ["tool_calls"], (name, ends)
    assert set(json.loads(arguments)) == {"city", "unit"}


def no_tool():
    got = chat(tools=[WEATHER], tool_choice="none")
    assert not got.choices[0].message.tool_calls and got.choices[0].message.content
    assert chat(tools=[WEATHER]).choices[0].finish_reason in ("stop", "length", "tool_calls")


def json_object():
    choice = chat(response_format={"type": "json_object"}, max_tokens=200).choices[0]
    # A small model may go on and on within the format.
    if choice.finish_reason == "length":
        assert choice.message.content.lstrip().startswith("{")
    else:
        assert isinstance(json.loads(choice.message.content), dict)


def json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    for seed in range(3):
        got = chat(response_format=form, max_tokens=300, temperature=0.9, seed=seed)
        if got.choices[0].finish_reason == "length":
            continue
        person = json.loads(got.choices[0].message.content)
        assert set(person) == {"name", "age", "hobbies"} and 0 <= person["age"] <= 150 and len(person["hobbies"]) <= 3
    refused(400, "response_format", lambda: chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}))


def completions():
    got = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=8, temperature=0)
    assert got.choices[0].text
    two = client.completions.create(model=MODEL, prompt=["One, two,", "Red, green,"], max_tokens=4, temperature=0)
    assert [choice.index for choice in two.choices] == [0, 1]
    echoed = client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, temperature=0, echo=True)
    assert echoed.choices[0].text.startswith("One, two,")
    chunks = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == got.choices[0].text


def prompt_logprobs():
    got = client.completions.create(model=MODEL, prompt="The cat sat on the mat.", max_tokens=1, logprobs=1, echo=True, temperature=0)
    scores = got.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset)
    assert scores.token_logprobs[0] is None and all(score <= 0 for score in scores.token_logprobs[1:])
    assert len(scores.tokens) == got.usage.prompt_tokens + 1


def embeddings():
    got = client.embeddings.create(model=MODEL, input=["a cat", "a kitten", "stock exchange"], encoding_format="float")
    vectors = [item.embedding for item in got.data]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert all(abs(dot(v, v) - 1) < 1e-3 for v in vectors)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2])
    # The package asks for base64 where nothing is said.
    default = client.embeddings.create(model=MODEL, input="a cat").data[0].embedding
    assert abs(dot(default, vectors[0]) - 1) < 1e-3


def responses():
    got = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0)
    assert got.output_text and got.status in ("completed", "incomplete")
    text = ""
    kinds = []
    with client.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == got.output_text and kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds[-1]


def errors():
    refused(404, None, lambda: chat(model="no-such-model"))
    refused(400, "messages", lambda: chat(messages=[]))
    refused(400, "temperature", lambda: chat(temperature=-1))
    refused(400, "n", lambda: chat(n=0))
    refused(400, "messages", lambda: chat(messages=[{"role": "nobody", "content": "x"}]))
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    refused(400, "messages", lambda: chat(messages=[{"role": "user", "content": image}]))
    refused(400, "audio", lambda: chat(extra_body={"audio": {"voice": "x", "format": "wav"}}))
    long = refused(400, "messages", lambda: chat(messages=[{"role": "user", "content": "word " * 200_000}]))
    assert long.code == "context_length_exceeded" and any(c.isdigit() for c in long.message)


def refused(status, param, call):
    try:
        call()
    except openai.APIStatusError as error:
        assert error.status_code == status, (status, error)
        if param is not None:
            assert error.param is not None and error.param.startswith(param), (param, error.param, error.message)
        return error
    raise AssertionError(f"was not refused with {status}")


def main():
    checks = [
        models, answer_with_usage, the_cache_is_told, stream_is_the_answer, a_stream_that_is_left, seeds, seeds_in_company,
        several_choices, stop_strings, logprobs, logit_bias, penalties, required_tool, named_tool, streamed_tool, no_tool,
        json_object, json_schema, completions, prompt_logprobs, embeddings, responses, errors,
    ]
    failed = 0
    for check in checks:
        start = time.time()
        try:
            check()
            print(f"ok      {check.__name__} ({time.time() - start:.1f} s)")
        except Exception as error:  # a failed check must not hide the others
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}")
    print(f"{len(checks) - failed} passed, {failed} failed (openai {openai.__version__}, model {MODEL})")
    return failed


if __name__ == "__main__":
    sys.exit(main())
