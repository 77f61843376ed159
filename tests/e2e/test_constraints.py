"""Constrained completions over the wire: what comes is always what was asked for."""

from __future__ import annotations

import datetime
import json
import os
import re

import grpc
import jsonschema
import numpy as np
import pytest
from harness import Client, Server, violations

SEED = int(os.environ.get("OSDN_SEED", 20261125))
CASES = int(os.environ.get("OSDN_SCHEMAS", "80"))


@pytest.fixture(scope="module")
def server(bundled_model):
    running = Server(bundled_model, "--max-tokens-limit", "4000")
    yield running.wait_serving()
    assert running.stop() == 0, running.log


@pytest.fixture
def client(server) -> Client:
    return Client(server.channel())


def ask(client, constraint: dict, prompt="Here is one: ", seed=1, temperature=1.0,
        max_tokens=400):
    request = client.request(prompt, sampling={"temperature": temperature, "seed": seed},
                             max_tokens=max_tokens)
    request.constraint.CopyFrom(client.pb.Constraint(**constraint))
    return client.stub.Generate(request, timeout=120)


def refused(client, constraint: dict) -> str:
    with pytest.raises(grpc.RpcError) as error:
        ask(client, constraint)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
    return violations(error.value)["constraint"]


FORMATS = jsonschema.FormatChecker(["date", "ipv4", "uuid"])


# The package checks these only with others installed. What is no string has no format.
@FORMATS.checks("time", ValueError)
def _is_time(text) -> bool:
    return not isinstance(text, str) or datetime.time.fromisoformat(text).tzinfo is not None


@FORMATS.checks("date-time", ValueError)
def _is_date_time(text) -> bool:
    if not isinstance(text, str):
        return True
    return datetime.datetime.fromisoformat(text).tzinfo is not None


class Schemas:
    """Random schemas of everything that is supported. Closed ones: every text comes to its end."""

    def __init__(self, rng) -> None:
        self.rng = rng

    def pick(self, *choices):
        return choices[self.rng.integers(0, len(choices))]

    def some(self, values: list, most: int) -> list:
        return [values[i] for i in self.rng.permutation(len(values))[:self.rng.integers(1, most)]]

    def schema(self, depth: int) -> dict:
        kinds = ["string", "integer", "number", "values", "boolean", "null", "pattern", "format"]
        if depth > 0:
            kinds += ["object", "object", "array", "tuple", "any_of", "one_of", "all_of", "types",
                      "map"]
        return getattr(self, self.pick(*kinds))(depth - 1)

    def string(self, _):
        low = int(self.rng.integers(0, 4))
        return {"type": "string", "maxLength": low + int(self.rng.integers(0, 12)), "title": "any",
                **self.pick({}, {"minLength": low})}

    def bounds(self, low, high):
        return {**self.pick({}, {"minimum": low}, {"exclusiveMinimum": low}),
                **self.pick({}, {"maximum": high}, {"exclusiveMaximum": high})}

    def integer(self, _):
        low = int(self.rng.integers(-10**int(self.rng.integers(1, 9)), 10**3))
        high = low + 2 + int(self.rng.integers(0, 10**int(self.rng.integers(1, 9))))
        return {"type": "integer", **self.bounds(self.pick(low, low + 0.5), self.pick(high, high + 0.5))}

    def number(self, _):
        low = round(float(self.rng.normal(0, 10**int(self.rng.integers(0, 4)))),
                    int(self.rng.integers(0, 4)))
        return {"type": "number",
                **self.bounds(low, round(low + 0.01 + float(self.rng.exponential(10)), 3))}

    def values(self, _):
        values = [0, -3, 1.5, True, None, "a\"b\\c", "tab\t", "é", [], [1, "x"], {"k": [None]}]
        kept = self.some(values, 5)
        return self.pick({"enum": kept}, {"const": kept[0]})

    def boolean(self, _):
        return {"type": "boolean"}

    def null(self, _):
        return {"type": "null"}

    def pattern(self, _):
        return {"type": "string", "pattern": self.pick(
            "^[a-z]{2,5}$", "^(foo|ba[rz])+?x?$", "^\\d{3}-\\d{4}$", "^[A-F0-9]{1,6}$",
            "^é?[x-z_]{1,4}$", "^.{1,9}$", "^[^a-z]{2,6}$", "^\"\\\\[\\n\\t\\x00-\\x1f]{1,3}$",
            "^a{2}|b$")}

    def format(self, _):
        return {"type": "string", "format": self.pick("date", "time", "date-time", "uuid", "ipv4")}

    def object(self, depth):
        names = self.some(["name", "größe", "a b", "k/e~y", "it's", "z", "q\"\\", "\n"], 6)
        return {"type": "object", "properties": {n: self.schema(depth) for n in names},
                "required": [n for n in names if self.rng.random() < 0.5],
                **self.pick({}, {"additionalProperties": False})}

    def map(self, depth):
        return self.pick({"type": "object", "additionalProperties": False},
                         {"type": "object", "additionalProperties": self.schema(depth)})

    def array(self, depth):
        low = int(self.rng.integers(0, 3))
        return {"type": "array", "items": self.schema(depth), "minItems": low,
                "maxItems": low + int(self.rng.integers(0, 3))}

    def tuple(self, depth):
        return {"type": "array",
                "prefixItems": [self.schema(depth) for _ in range(self.rng.integers(1, 4))]}

    def any_of(self, depth):
        return {"anyOf": [self.schema(depth) for _ in range(self.rng.integers(1, 4))]}

    def one_of(self, depth):
        def tagged(tag):
            body = self.object(depth)
            body["properties"]["kind"] = {"const": tag}
            return {**body, "required": ["kind"]}
        return self.pick({"oneOf": [tagged("a"), tagged("b")]},
                         {"oneOf": [{"const": 1}, {"enum": ["x", None]}]},
                         {"oneOf": [self.integer(0), self.string(0), self.object(depth)]})

    def all_of(self, depth):
        return {"allOf": [self.schema(depth)]}

    def types(self, _):
        return self.pick({"type": ["boolean", "null"]},
                         {"type": ["string", "null"], "maxLength": 4},
                         {"type": ["integer", "array"], "maximum": 7, "minimum": 2,
                          "items": {"type": "null"}, "maxItems": 2})


def test_json_of_random_schemas_is_valid(client):
    rng = np.random.default_rng(SEED)
    schemas = Schemas(rng)
    # Many at once: the texts do not depend on what else is in the batch.
    calls = []
    for case in range(CASES):
        schema = schemas.schema(int(rng.integers(0, 4)))
        text_of = json.dumps(schema, ensure_ascii=bool(rng.integers(0, 2)))
        request = client.request("Here is one: ", max_tokens=400, sampling={
            "temperature": float(rng.choice([0, 1, 1, 1.5])), "seed": case})
        request.constraint.json_schema = text_of
        calls.append((schema, text_of, client.stub.Generate.future(request, timeout=300)))
    ended = 0
    for case, (schema, text_of, call) in enumerate(calls):
        where = f"seed {SEED}, case {case}: {text_of}"
        assert call.exception() is None, (where, call.exception())
        answer = call.result()
        choice = answer.choices[0]
        assert answer.params.constraint.json_schema == text_of
        if choice.finish_reason == client.pb.FINISH_REASON_LENGTH:
            continue
        assert choice.finish_reason == client.pb.FINISH_REASON_STOP
        ended += 1
        try:
            jsonschema.validate(json.loads(choice.text), schema,
                                jsonschema.Draft202012Validator,
                                format_checker=FORMATS)
        except (ValueError, jsonschema.ValidationError) as error:
            raise AssertionError(f"{choice.text!r} of {where}") from error
    assert ended >= CASES * 3 // 4, f"only {ended} of {CASES} came to their end"


def test_definitions_and_recursion(client):
    schema = {"$defs": {"node": {"type": "object", "required": ["value", "children"],
                                 "properties": {"value": {"type": "integer", "minimum": 0,
                                                          "maximum": 9},
                                                "children": {"type": "array", "maxItems": 2,
                                                             "items": {"$ref": "#/$defs/node"}}}}},
              "$ref": "#/$defs/node"}
    for seed in range(5):
        choice = ask(client, {"json_schema": json.dumps(schema)}, seed=seed).choices[0]
        if choice.finish_reason == client.pb.FINISH_REASON_STOP:
            jsonschema.validate(json.loads(choice.text), schema)


REGEXES = [r"[a-z]{3,8}", r"\d{4}-\d{2}-\d{2}", r"^(yes|no|maybe)$", r"(ab|c)+d?", r"x{5}",
           r"[^a-z\n ]{1,10}!", r".{0,20}end", r"(?:foo)?(?:bar){2,3}", r"[äöü€]{2,4}", r" ?lead",
           r"\(\w+\)\.\*", r"\u00e9{1,3}", r"[ä-ü]{3}x", r".{1,30}", r"[^a]{2,20}", r"[\[\]\-x]{2}",
           r"[\^a]{3}", r"[^\s]{1,9}", r"\S{2,5}\s", r"a|", r"(|b)c", r"[a-c]{2,}?z", r"^a$|b.*",
           r"[\x00-\x1f]{3}", r"((a{2}){3}|[^\W\d]){1,2}"]


@pytest.mark.parametrize("regex", REGEXES)
def test_regex(client, regex):
    for seed in range(3):
        for temperature in (0, 1.3):
            choice = ask(client, {"regex": regex}, seed=seed, temperature=temperature,
                         max_tokens=60).choices[0]
            if choice.finish_reason == client.pb.FINISH_REASON_STOP:
                assert re.fullmatch(regex, choice.text, re.ASCII), choice.text
            else:
                assert re.search(r"[+*]|,\}", regex), choice.text


def test_gbnf(client):
    grammar = '''
        # arithmetic
        root ::= expr "="
        expr ::= term ([-+] term){0,3}
        term ::= [0-9]{1,3} | "(" expr ")"
    '''
    for seed in range(6):
        choice = ask(client, {"gbnf": grammar}, seed=seed, max_tokens=200).choices[0]
        if choice.finish_reason == client.pb.FINISH_REASON_STOP:
            assert choice.text.endswith("=")
            eval(re.sub(r"\b0+(?=\d)", "", choice.text[:-1]))  # noqa: S307 digits and + - ( ) only


def test_greedy_and_ends_of_itself(client):
    choice = ask(client, {"regex": "exactly this"}, temperature=0).choices[0]
    assert choice.text == "exactly this"
    assert choice.finish_reason == client.pb.FINISH_REASON_STOP


def test_stream_equals_unary(client):
    request = client.request("A list: ", sampling={"temperature": 1, "seed": 4}, max_tokens=200)
    request.constraint.json_schema = json.dumps(
        {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 4})
    unary = client.stub.Generate(request, timeout=60).choices[0]
    text = "".join(f.delta.text for f in client.stub.GenerateStream(request, timeout=60))
    assert text == unary.text


def test_every_choice_is_constrained_by_itself(client):
    """And is what it would have been as the only one."""
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
                                               "old": {"type": "boolean"}},
              "required": ["name", "old"], "additionalProperties": False}
    answers = []
    for n in (16, 5, 1):
        request = client.request("A person: ", max_tokens=200,
                                 sampling={"temperature": 1, "seed": 9, "n": n})
        request.constraint.json_schema = json.dumps(schema)
        answers.append(client.stub.Generate(request, timeout=120).choices)
    for choice in answers[0]:
        assert choice.finish_reason == client.pb.FINISH_REASON_STOP
        jsonschema.validate(json.loads(choice.text), schema)
    assert len({choice.text for choice in answers[0]}) > 8
    for others in answers[1:]:
        for one, other in zip(answers[0], others):
            assert one.token_ids == other.token_ids


@pytest.mark.parametrize("schema, place", [
    ({"type": "string", "not": {}}, "/not"),
    ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}},
     "/properties/a/multipleOf"),
    ({"type": "object", "patternProperties": {}}, "/patternProperties"),
    ({"type": "object", "minProperties": 1}, "/minProperties"),
    ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "/items/uniqueItems"),
    ({"type": "array", "contains": {}}, "/contains"), ({"if": {}, "then": {}}, "/if"),
    ({"allOf": [{"type": "string"}, {"type": "string"}]}, "/allOf"),
    ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "/oneOf"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "/oneOf"),
    ({"type": "string", "format": "email"}, "/format"),
    ({"type": "string", "pattern": "(?=a)"}, "/pattern"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "/maxLength"),
    ({"$ref": "http://example.com/x"}, "/$ref"), ({"$ref": "#"}, "no text fits"),
    ({"$ref": "#/$defs/none"}, "does not exist"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {}}, "maxLength": 3}, "/maxLength"),
    ({"type": "object", "properties": {}, "required": ["x"]}, "/required"),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}},
     "/additionalProperties"),
    ({"type": "strin"}, "/type"), ({"type": "string", "maxLength": 10**9}, "/maxLength"),
    ({"minLength": 3}, "\"type\" is missing"), ({"enum": []}, "/enum"),
    ({"type": "integer", "minimum": 3, "maximum": 2.5}, "no integer"),
    ({"type": "integer", "minimum": 2**64 - 1}, "no integer"),
    ({"type": "integer", "minimum": True}, "/minimum"),
    ({"type": "number", "minimum": 3, "maximum": 2}, "no text fits"),
    ({"type": "number", "maximum": 0.12345678901234567}, "/maximum"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "/maxItems"), (False, "false")])
def test_unsupported_keywords_are_named(client, schema, place):
    assert place in refused(client, {"json_schema": json.dumps(schema)})


def test_all_that_is_unsupported_is_told_at_once(client):
    told = refused(client, {"json_schema": json.dumps(
        {"type": "object", "minProperties": 1, "properties": {"a": {"not": {}}, "b": {"type": 3}}})})
    for place in ("/minProperties", "/properties/a/not", "/properties/b/type"):
        assert place in told


@pytest.mark.parametrize("constraint, text", [
    ({"json_schema": "{"}, "json_schema"), ({"json_schema": "[1]"}, "object"),
    ({"regex": "a(b"}, "not closed"), ({"regex": "a)b"}, "without"), ({"regex": "[a"}, "closed"),
    ({"regex": "(?=a)b"}, "look-around"), ({"regex": r"(a)\1"}, r"\1"),
    ({"regex": r"\bword"}, r"\b"), ({"regex": "a^b"}, "beginning"), ({"regex": "a**"}, "parenth"),
    ({"regex": "(" * 200 + "a" + ")" * 200}, "nested"), ({"regex": "a{99999}"}, "10000"),
    ({"regex": "a\0b"}, "control"), ({"regex": "x" * 100_000}, "65536"),
    ({"json_schema": "[" * 30_000 + "]" * 30_000}, "nested"),
    ({"json_schema": " " * 100_000}, "65536"),
    ({"gbnf": 'root ::= "a'}, "closed"), ({"gbnf": 'start ::= "a"'}, "root"),
    ({"gbnf": "root ::= missing"}, "missing"), ({"gbnf": "root ::= " + "(" * 500}, "nested"),
    ({"gbnf": "#\r root ::= " + "(" * 60_000}, "nested"), ({"gbnf": 'root ::= "\0"'}, "NUL"),
    ({"gbnf": 'root ::= "a" root'}, "no text fits"), ({"gbnf": "root ::= " + "a" * 100_000}, "65536"),
    ({"gbnf": "root ::= ((.{10000}){10000} | [^a]{10000} .{10000}){9999} " + ".{9999} " * 7000},
     "too large"),
    ({}, "json_schema, regex or gbnf")])
def test_malformed_constraints(client, constraint, text):
    assert text in refused(client, constraint)


def test_huge_and_ambiguous_constraints_end_alone(client):
    """Whatever they come to, others go on, and none takes the server down."""
    branches = {"anyOf": [{"type": "object", "required": [f"p{i}"],
                           "properties": {f"p{i}": {"type": "string", "maxLength": 900}}}
                          for i in range(500)]}
    evil = [{"json_schema": json.dumps(branches)}, {"regex": "((a{100}){100}){100}"},
            {"regex": "(a|b)*a(a|b){2000}"}, {"regex": "(a*)*(a*)*(a*)*b?"},
            {"gbnf": "root ::= " + " | ".join(f'"{i:05}"' for i in range(6000))},
            {"gbnf": 'root ::= a\na ::= a "x" | a a | ""'},
            {"gbnf": 'root ::= "a" root "b" | "a" root "c" | ""'},
            {"gbnf": 'root ::= "(" root ")" root | "[" root "]" | ""'},
            {"gbnf": 'root ::= . root root root | "" | root .'}]
    calls = []
    for constraint in evil:
        request = client.request("x", max_tokens=300, ignore_eos=True,
                                 sampling={"temperature": 1, "seed": 1})
        request.constraint.CopyFrom(client.pb.Constraint(**constraint))
        calls.append(client.stub.Generate.future(request, timeout=120))
    for _ in range(5):
        assert client.generate("Hello", max_tokens=3, ignore_eos=True).choices[0].token_ids
    for constraint, call in zip(evil, calls):
        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED) or (
            "too large" in call.details()), (constraint, call.details())
    assert client.generate("Hello", max_tokens=3, ignore_eos=True).choices[0].token_ids


def test_too_much_work_is_told(client):
    request = client.request("x", max_tokens=1000, ignore_eos=True)
    request.constraint.gbnf = 'root ::= "a" | root root'
    with pytest.raises(grpc.RpcError) as error:
        client.stub.Generate(request, timeout=120)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ambiguous" in error.value.details()


def test_model_without_tokenizer(tiny_server):
    tiny = Client(tiny_server.channel())
    request = tiny.request([5], max_tokens=5)
    request.constraint.regex = "a"
    with pytest.raises(grpc.RpcError) as error:
        tiny.stub.Generate(request)
    assert "tokenizer" in violations(error.value)["constraint"]


class Continued(Client):
    """Constrained texts in parts."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel)
        self.channel = channel

    def part(self, prompt, regex, state, max_tokens, **sampling):
        request = self.request(prompt or "x", max_tokens=max_tokens, sampling=sampling)
        if prompt is None:
            request.ClearField("prompt")
        if regex:
            request.constraint.regex = regex
        request.state.CopyFrom(self.pb.StateOptions(return_state=True, **state))
        return self.stub.Generate(request, timeout=60)


@pytest.fixture
def parts(server) -> Continued:
    return Continued(server.channel())


@pytest.mark.parametrize("regex", ["[a-z ]{40,60}!", "([A-Z][a-z]{2,9} ){9}"])
def test_parts_are_the_whole(parts, regex):
    for seed in range(3):
        whole = parts.part("Say it:", regex, {}, 200, temperature=1, seed=seed).choices[0]
        answer = parts.part("Say it:", regex, {}, 3, temperature=1, seed=seed)
        text, reason = "", parts.pb.FINISH_REASON_LENGTH
        while True:
            text += answer.choices[0].text
            reason = answer.choices[0].finish_reason
            if reason == parts.pb.FINISH_REASON_STOP:
                break
            answer = parts.part(None, regex, {"state_blob": answer.state_blob}, 4, temperature=1)
        assert text == whole.text
        assert re.fullmatch(regex, text)


def test_a_constrained_text_goes_on_under_its_constraint_only(parts):
    first = parts.part("Say it:", "[a-z]{20,30}", {}, 3, temperature=1, seed=1)
    plain = parts.part("Say it:", None, {}, 3, temperature=1, seed=1)
    whole = parts.part("Say it:", "exactly this", {}, 50, temperature=0)
    assert whole.choices[0].finish_reason == parts.pb.FINISH_REASON_STOP
    for regex, left, why in [(None, first, "send the same"), ("[a-z]{20,31}", first, "another"),
                             ("[a-z]{20,30}", plain, "without one"),
                             ("exactly this", whole, "complete")]:
        with pytest.raises(grpc.RpcError) as error:
            parts.part(None, regex, {"state_blob": left.state_blob}, 5, temperature=0)
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert why in error.value.details()
    # A prompt begins a new text.
    for left in (first, plain, whole):
        fresh = parts.part(" And:", "yes|no", {"state_blob": left.state_blob}, 9, temperature=0)
        assert fresh.choices[0].text in ("yes", "no")


def test_a_text_that_ended_by_itself_is_all_in_its_state(parts):
    """The last token of it, which no end token followed, is read with what comes next."""
    prompt = list(parts.stub.Tokenize(parts.pb.TokenizeRequest(text="Say it:", add_bos=True)).tokens)
    prompt = [token.id for token in prompt]
    left = parts.part(prompt, "exactly this", {}, 50, temperature=0)
    on = prompt[-2:]
    expected = parts.part(prompt + list(left.choices[0].token_ids) + on, None, {}, 12, temperature=0)
    assert left.usage.completion_tokens == len(left.choices[0].token_ids)
    resumed = parts.part(on, None, {"state_blob": left.state_blob}, 12, temperature=0)
    assert resumed.choices[0].token_ids == expected.choices[0].token_ids
    assert resumed.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_prompt_s_state_begins_a_constrained_text(parts):
    """A state that was left before any token of a text."""
    whole = parts.part("Say it:", "[a-z ]{10,20}", {}, 40, temperature=1, seed=4)
    from osdn.v1 import session_pb2, session_pb2_grpc
    states = session_pb2_grpc.StateServiceStub(parts.channel)
    saved = states.SaveState(session_pb2.SaveStateRequest(
        prompt=parts.pb.Prompt(text="Say it:"), state=parts.pb.StateOptions(return_state=True)))
    text = parts.part(None, "[a-z ]{10,20}", {"state_blob": saved.state_blob}, 40, temperature=1,
                      seed=4)
    assert text.choices[0].text == whole.choices[0].text


def test_deadline_and_cancel_while_the_compiler_is_busy(client):
    slow = {"gbnf": "root ::= " + " ".join("[a-z]{9000}" for _ in range(20))}
    calls = []
    for i in range(100):
        request = client.request("x", max_tokens=2)
        request.constraint.CopyFrom(client.pb.Constraint(gbnf=slow["gbnf"] + f' "{i}"'))
        calls.append(client.stub.Generate.future(request, timeout=0.5 if i % 2 else 60))
    for call in calls[::4]:
        call.cancel()
    for i, call in enumerate(calls):
        assert call.code() in {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED,
                               grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}, i
    assert client.generate("Hello", max_tokens=3, ignore_eos=True).choices[0].token_ids
