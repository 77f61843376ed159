"""OpenAI's API with OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import json

import openai
import pytest
from harness import PATIENCE, Client, wait_until

MODEL = "osdn-mini"
STORY = [{"role": "user", "content": "Tell me a story about a dog."}]


def connect(server, **kwargs) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{server.http_address}/v1", api_key="none",
                         timeout=PATIENCE, max_retries=0, **kwargs)


@pytest.fixture
def api(bundled_server) -> openai.OpenAI:
    with connect(bundled_server) as client:
        yield client


def capacity(server):
    client = Client(server.channel())
    return client.stub.GetCapacity(client.pb.GetCapacityRequest(), timeout=PATIENCE)


def is_idle(server) -> bool:
    now = capacity(server)
    return now.slots_used == 0 and now.running == 0 and now.queued_requests == 0


def test_models(api):
    assert [model.id for model in api.models.list()] == [MODEL]
    assert api.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError) as error:
        api.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found" and MODEL in str(error.value)


def test_a_completion_is_what_grpc_gives(api, bundled):
    asked = {"model": MODEL, "prompt": "The little dog", "max_tokens": 24, "temperature": 0.8,
             "top_p": 0.9, "seed": 7}
    answer = api.completions.create(**asked)
    other = bundled.generate("The little dog", max_tokens=24,
                             sampling={"temperature": 0.8, "top_p": 0.9, "seed": 7})
    assert answer.choices[0].text == other.choices[0].text
    assert answer.usage.prompt_tokens == other.usage.prompt_tokens
    assert answer.usage.completion_tokens == other.usage.completion_tokens == 24
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].osdn["seed"] == 7

    chunks = list(api.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text
    assert len(chunks) > 10 and chunks[-1].choices[0].finish_reason == "length"


def test_prompts_of_every_kind(api, bundled):
    ids = list(bundled.generate("Once upon", max_tokens=1, output={"echo": True}).choices[0].token_ids)
    one = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    text = api.completions.create(prompt="Once upon", **one).choices[0].text
    assert api.completions.create(prompt=ids[:-1], **one).choices[0].text == text
    many = api.completions.create(prompt=["Once upon", "The little dog"], n=2, **one)
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == text != many.choices[2].text
    assert many.usage.completion_tokens == 24
    nested = api.completions.create(prompt=[ids[:-1], ids[:2]], **one)
    assert nested.choices[0].text == text and len(nested.choices) == 2
    echoed = api.completions.create(prompt="Once upon", echo=True, **one)
    assert echoed.choices[0].text.strip() == f"Once upon{text}"


def test_chat_streams_what_it_answers(api):
    asked = {"model": MODEL, "messages": STORY, "max_completion_tokens": 30, "seed": 3}
    answer = api.chat.completions.create(**asked)
    message = answer.choices[0].message
    assert message.role == "assistant" and message.content
    chunks = list(api.chat.completions.create(**asked, stream=True,
                                              stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == message.content
    assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == answer.usage.total_tokens
    # Read a second time, the prompt comes from the cache.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens


def test_choices_stop_strings_and_logprobs(api):
    answer = api.chat.completions.create(model=MODEL, messages=STORY, n=3, seed=5, max_tokens=12,
                                         logprobs=True, top_logprobs=2)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 12
        text = b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode()
        assert text.strip() == choice.message.content.strip()
        assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob >= t.logprob
                   or t.top_logprobs[0].token == t.token for t in choice.logprobs.content)

    whole = api.completions.create(model=MODEL, prompt="The sun", max_tokens=20, temperature=0)
    word = whole.choices[0].text.split()[3]
    cut = api.completions.create(model=MODEL, prompt="The sun", max_tokens=20, temperature=0,
                                 stop=[word, "never"], logprobs=1)
    assert cut.choices[0].finish_reason == "stop" and word not in cut.choices[0].text
    assert cut.choices[0].osdn["stop_string"] == word
    assert whole.choices[0].text.startswith(cut.choices[0].text)
    assert len(cut.choices[0].logprobs.tokens) == len(cut.choices[0].logprobs.top_logprobs)


def test_response_format(api):
    schema = {"type": "object", "required": ["name", "age"], "additionalProperties": False,
              "properties": {"name": {"type": "string", "maxLength": 12},
                             "age": {"type": "integer", "minimum": 0, "maximum": 99}}}
    answer = api.chat.completions.create(
        model=MODEL, messages=STORY, max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "dog", "schema": schema}})
    dog = json.loads(answer.choices[0].message.content)
    assert list(dog) == ["name", "age"] and 0 <= dog["age"] <= 99
    matched = api.completions.create(model=MODEL, prompt="It is", max_tokens=50,
                                     extra_body={"regex": "(yes|no) [0-9]{3}"})
    assert matched.choices[0].text[-3:].isdigit()


def test_sessions(api):
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 20}
    first = api.chat.completions.create(**asked, messages=STORY,
                                        extra_body={"save_state_as": "dog"})
    state = first.choices[0].osdn["state"]
    assert state["label"] == "dog" and state["position"] > 0
    more = {"role": "user", "content": "Go on."}
    second = api.chat.completions.create(**asked, messages=[more],
                                         extra_body={"state_id": state["state_id"],
                                                     "return_state": True})
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    whole = api.chat.completions.create(**asked, messages=[*STORY, answer, more])
    assert second.usage.prompt_tokens_details.cached_tokens >= state["position"]
    assert second.choices[0].message.content
    assert whole.choices[0].message.content
    blob = second.choices[0].osdn["state_blob"]
    third = api.chat.completions.create(**asked, messages=[more], extra_body={"state_blob": blob})
    assert third.choices[0].message.content and len(base64.b64decode(blob)) > 400_000
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(**asked, messages=[more], extra_body={"state_id": "nope"})


def test_errors_name_every_field(api):
    with pytest.raises(openai.BadRequestError) as error:
        api.chat.completions.create(
            model=MODEL, messages=[{"role": "wizard", "content": "x"}], temperature=-1, top_p=3,
            max_tokens=10**9, tools=[{"type": "function", "function": {"name": "f"}}],
            extra_body={"bogus": 1})
    body = error.value.body
    fields = {violation["field"] for violation in body["violations"]}
    assert {"temperature", "top_p", "max_tokens", "tools", "bogus"} <= fields
    assert any(field.startswith("messages") for field in fields)
    assert body["type"] == "invalid_request_error" and body["param"] in fields
    with pytest.raises(openai.BadRequestError, match="suffix"):
        api.completions.create(model=MODEL, prompt="x", suffix="y")
    with pytest.raises(openai.BadRequestError, match="text only"):
        api.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:,"}}]}])
    with pytest.raises(openai.NotFoundError, match=MODEL):
        api.completions.create(model="gpt-4", prompt="x")


def test_content_parts_and_ignored_fields(api):
    asked = {"model": MODEL, "max_tokens": 5, "temperature": 0}
    parts = [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a dog."}]
    plain = api.chat.completions.create(messages=STORY, **asked)
    answer = api.chat.completions.create(messages=[{"role": "user", "content": parts}], user="me",
                                         metadata={"a": "b"}, **asked)
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_leaving_midway_frees_the_slot(bundled_server, api):
    stream = api.completions.create(model=MODEL, prompt="Once", max_tokens=30000, stream=True,
                                    extra_body={"ignore_eos": True})
    next(iter(stream))
    assert capacity(bundled_server).running == 1
    stream.close()
    wait_until(lambda: is_idle(bundled_server), "no slot is used")

    # One that waits for a whole answer, too.
    with connect(bundled_server) as impatient:
        with pytest.raises(openai.APITimeoutError):
            impatient.with_options(timeout=0.5).completions.create(
                model=MODEL, prompt="Once", max_tokens=30000, extra_body={"ignore_eos": True})
    wait_until(lambda: is_idle(bundled_server), "no slot is used")


def test_async_streams_at_once(bundled_server):
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(
                model=MODEL, messages=STORY, stream=True, seed=seed, max_tokens=20):
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://{bundled_server.http_address}/v1",
                                      api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i % 4) for i in range(32)))

    texts = asyncio.run(all_of_them())
    assert all(texts) and len(set(texts)) <= 4  # a seed's text is the same beside others
    wait_until(lambda: is_idle(bundled_server), "no slot is used")


def test_a_full_queue_says_when_to_come_back(servers, bundled_model):
    server = servers(bundled_model, "--max-slots", "1", "--max-queued-requests", "1")
    with connect(server) as api:
        asked = {"model": MODEL, "prompt": "Once", "max_tokens": 30000, "stream": True,
                 "extra_body": {"ignore_eos": True}}
        running = api.completions.create(**asked)
        next(iter(running))
        with pytest.raises(openai.RateLimitError) as error:
            api.completions.create(model=MODEL, prompt=["a", "b", "c"], max_tokens=1)
        assert int(error.value.response.headers["retry-after"]) >= 1
        running.close()
        wait_until(lambda: is_idle(server), "what was refused or left leaves nothing")


def test_responses_go_on_from_each_other(api, bundled):
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": 40}
    first = api.responses.create(input="My locker number is 4817.", **asked)
    assert first.status == "completed" and first.store and first.output_text
    second = api.responses.create(input="What is my locker number?",
                                  previous_response_id=first.id, **asked)
    assert "4817" in second.output_text and second.previous_response_id == first.id
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens - 2
    # The same first one again: a fork.
    fork = api.responses.create(input="What is my locker number?", previous_response_id=first.id,
                                store=False, **asked)
    assert fork.output_text == second.output_text
    with pytest.raises(openai.NotFoundError, match=fork.id):
        api.responses.create(input="x", previous_response_id=fork.id, **asked)
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=first.id):
        api.responses.create(input="x", previous_response_id=first.id, **asked)


def test_responses_stream(api):
    asked = {"model": MODEL, "max_output_tokens": 12, "instructions": "Be brief.",
             "input": [{"role": "user", "content": [{"type": "input_text", "text": "Tell a story."}]}]}
    whole = api.responses.create(**asked, extra_body={"seed": 11})
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    events = list(api.responses.create(**asked, stream=True, extra_body={"seed": 11}))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added"]
    assert [e.type for e in events[-4:]] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete"]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-4].text == events[-1].response.output_text == whole.output_text
    with api.responses.stream(model=MODEL, input="My locker number is 4817.", temperature=0,
                              max_output_tokens=60) as stream:
        assert "4817" in stream.get_final_response().output_text
    with pytest.raises(openai.BadRequestError) as error:
        api.responses.create(model=MODEL, input="x", tools=[{"type": "web_search"}], top_p=9,
                             max_output_tokens=10**9)
    fields = {violation["field"] for violation in error.value.body["violations"]}
    assert fields == {"tools", "top_p", "max_output_tokens"}


def test_states_routes(api):
    root = str(api.base_url).removesuffix("v1/") + "osdn/v1/states"
    saved = api.post(root, cast_to=object, body={
        "label": "preface", "messages": [{"role": "user", "content": "My name is Ada."}]})
    assert saved["label"] == "preface" and saved["position"] > 0
    fork = api.post(f"{root}/{saved['state_id']}/fork", cast_to=object, body={"label": "copy"})
    assert fork["parent_id"] == saved["state_id"] and fork["position"] == saved["position"]
    answer = api.chat.completions.create(model=MODEL, messages=[], max_tokens=5,
                                         extra_body={"state_id": fork["state_id"]})
    assert answer.usage.prompt_tokens >= saved["position"]
    page = api.get(f"{root}?limit=1", cast_to=object)
    assert len(page["data"]) == 1 and page["has_more"]
    rest = api.get(f"{root}?after={page['last_id']}", cast_to=object)
    ids = {state["state_id"] for state in page["data"] + rest["data"]}
    assert {saved["state_id"], fork["state_id"]} <= ids
    assert api.get(f"{root}/{fork['state_id']}", cast_to=object) == fork
    for state in (saved, fork):
        api.delete(f"{root}/{state['state_id']}", cast_to=object)
        with pytest.raises(openai.NotFoundError):
            api.get(f"{root}/{state['state_id']}", cast_to=object)
    with pytest.raises(openai.BadRequestError, match="limit"):
        api.get(f"{root}?limit=0", cast_to=object)


def test_a_prompts_own_logprobs(api, bundled):
    text = "The little dog ran"
    answer = api.completions.create(model=MODEL, prompt=[text, "The"], echo=True, logprobs=2,
                                    max_tokens=1, temperature=0)
    told = answer.choices[0].logprobs
    ids = list(bundled.generate(text, max_tokens=1, output={"echo": True}).choices[0].token_ids)[:-1]
    assert len(told.token_logprobs) == len(told.tokens) == len(told.top_logprobs) == len(ids) + 1
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    # Bit for bit what Score tells of the same tokens.
    pb = bundled.pb
    score = bundled.stub.Score(pb.ScoreRequest(
        prompt=pb.Prompt(tokens=pb.TokenIds(ids=ids[:1])),
        continuations=[pb.Continuation(tokens=pb.TokenIds(ids=ids[1:]))])).scores[0]
    assert told.token_logprobs[1:-1] == [token.logprob for token in score.tokens]
    alone = api.completions.create(model=MODEL, prompt=text, echo=True, logprobs=0, max_tokens=0)
    assert alone.choices[0].text.strip() == text and alone.usage.completion_tokens == 0
    assert alone.choices[0].logprobs.token_logprobs == told.token_logprobs[:-1]
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        api.completions.create(model=MODEL, prompt=text, max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="echo"):
        api.completions.create(model=MODEL, prompt=text, echo=True, logprobs=1, stream=True)
