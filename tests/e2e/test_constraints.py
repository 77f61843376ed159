"""Constrained completions over the wire: what comes is always what was asked for."""

from __future__ import annotations

import json
import re

import grpc
import jsonschema
import numpy as np
import pytest
from harness import Client, Server, violations

SEED = np.random.SeedSequence().entropy


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


class Schemas:
    """Random schemas of everything that is supported. Closed ones: every text comes to its end."""

    def __init__(self, rng) -> None:
        self.rng = rng

    def pick(self, *choices):
        return choices[self.rng.integers(0, len(choices))]

    def schema(self, depth: int) -> dict:
        kinds = ["string", "bounded", "integer", "values", "boolean", "null", "pattern", "format"]
        if depth > 0:
            kinds += ["object", "object", "array", "tuple", "any_of", "one_of", "all_of", "types"]
        return getattr(self, self.pick(*kinds))(depth - 1)

    def string(self, _):
        return {"type": "string", "maxLength": int(self.rng.integers(1, 12)), "title": "any"}

    def bounded(self, _):
        low = int(self.rng.integers(0, 20))
        return {"type": "string", "minLength": low, "maxLength": low + int(self.rng.integers(0, 30))}

    def integer(self, _):
        low = int(self.rng.integers(-2000, 2000))
        high = low + int(self.rng.integers(0, 1000))
        bounds = self.pick({"minimum": low, "maximum": high},
                           {"exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1})
        return {"type": "integer", **bounds}

    def values(self, _):
        values = [0, -3, 1.5, True, None, "a\"b\\c", "tab\t", "é", [], [1, "x"], {"k": [None]}]
        kept = [values[i] for i in self.rng.permutation(len(values))[:self.rng.integers(1, 5)]]
        return self.pick({"enum": kept}, {"const": kept[0]})

    def boolean(self, _):
        return {"type": "boolean"}

    def null(self, _):
        return {"type": "null"}

    def pattern(self, _):
        return {"type": "string", "pattern": self.pick(
            "^[a-z]{2,5}$", "(foo|ba[rz])+x?", "^\\d{3}-\\d{4}$", "[A-F0-9]{1,6}", "^é?[x-z_]{1,4}$")}

    def format(self, _):
        return {"type": "string", "format": self.pick("date", "time", "date-time", "uuid", "ipv4")}

    def object(self, depth):
        names = ["name", "größe", "a b", "k/e~y", "it's", "z"]
        names = [names[i] for i in self.rng.permutation(len(names))[:self.rng.integers(1, 5)]]
        return {"type": "object", "properties": {n: self.schema(depth) for n in names},
                "required": [n for n in names if self.rng.random() < 0.5],
                **self.pick({}, {"additionalProperties": False})}

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
                         {"oneOf": [self.integer(0), self.string(0), self.object(depth)]})

    def all_of(self, depth):
        return {"allOf": [self.schema(depth)]}

    def types(self, _):
        return {"type": ["boolean", "null"]}


def test_json_of_random_schemas_is_valid(client):
    rng = np.random.default_rng(SEED)
    schemas = Schemas(rng)
    ended = 0
    for case in range(120):
        schema = schemas.schema(int(rng.integers(0, 4)))
        text_of = json.dumps(schema, ensure_ascii=bool(rng.integers(0, 2)))
        answer = ask(client, {"json_schema": text_of}, seed=case,
                     temperature=float(rng.choice([0, 0.8, 1.5])))
        choice = answer.choices[0]
        if choice.finish_reason == client.pb.FINISH_REASON_LENGTH:
            continue
        assert choice.finish_reason == client.pb.FINISH_REASON_STOP
        ended += 1
        try:
            jsonschema.validate(json.loads(choice.text), schema)
        except (ValueError, jsonschema.ValidationError) as error:
            raise AssertionError(f"seed {SEED}, case {case}: {choice.text!r} of {text_of}") \
                from error
        assert answer.params.constraint.json_schema == text_of
    assert ended >= 100, f"only {ended} of 120 came to their end"


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
           r"\(\w+\)\.\*", r"\u00e9{1,3}", r"[ä-ü]{3}x", r".{1,30}", r"[^a]{2,20}", r"[\[\]\-x]{2}"]


@pytest.mark.parametrize("regex", REGEXES)
def test_regex(client, regex):
    for seed in range(3):
        for temperature in (0, 1.3):
            choice = ask(client, {"regex": regex}, seed=seed, temperature=temperature,
                         max_tokens=150).choices[0]
            if choice.finish_reason == client.pb.FINISH_REASON_STOP:
                assert re.fullmatch(regex, choice.text, re.DOTALL), choice.text
            else:
                assert re.search(r"[+*]", regex), choice.text


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


@pytest.mark.parametrize("schema, place", [
    ({"type": "string", "not": {}}, "/not"),
    ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}},
     "/properties/a/multipleOf"),
    ({"type": "object", "patternProperties": {}}, "/patternProperties"),
    ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "/items/uniqueItems"),
    ({"if": {}, "then": {}}, "/if"),
    ({"allOf": [{"type": "string"}, {"type": "string"}]}, "/allOf"),
    ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "/oneOf"),
    ({"type": "string", "format": "email"}, "/format"),
    ({"type": "string", "pattern": "a.b"}, "/pattern"),
    ({"$ref": "http://example.com/x"}, "/$ref"), ({"$ref": "#"}, "back to itself"),
    ({"$ref": "#/$defs/none"}, "does not exist"),
    ({"type": "object", "properties": {}, "required": ["x"]}, "/required"),
    ({"type": "object", "properties": {"a\"b": True}}, "quotes"),
    ({"type": "strin"}, "/type"), ({"type": "string", "maxLength": 10**9}, "/maxLength"),
    ({"type": "integer", "minimum": 0.5}, "/minimum"),
    ({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}, "/properties/n"),
    ({"type": "number", "maximum": 3}, "/maximum")])
def test_unsupported_keywords_are_named(client, schema, place):
    assert place in refused(client, {"json_schema": json.dumps(schema)})


@pytest.mark.parametrize("constraint, text", [
    ({"json_schema": "{"}, "json_schema"), ({"json_schema": "[1]"}, "object"),
    ({"regex": "a(b"}, "regex"), ({"regex": "a)b"}, "regex"), ({"regex": "[a"}, "closed"),
    ({"regex": "(?=a)b"}, "look-around"), ({"regex": r"(a)\1"}, r"\1"),
    ({"regex": r"\bword"}, r"\b"), ({"regex": "a^b"}, "beginning"), ({"regex": "a**"}, "regex"), ({"regex": r"[^\s]"}, "127"), ({"regex": "a|"}, "empty alternative"),
    ({"regex": "(" * 200 + "a" + ")" * 200}, "nested"), ({"regex": "a{99999}"}, "99999"),
    ({"gbnf": "root ::= \"a"}, "gbnf"), ({"gbnf": "start ::= \"a\""}, "root"),
    ({"gbnf": "root ::= missing"}, "missing"), ({"gbnf": "root ::= " + "(" * 500}, "nested"),
    ({}, "json_schema, regex or gbnf")])
def test_malformed_constraints(client, constraint, text):
    assert text in refused(client, constraint)


def test_huge_constraints_hit_the_limit_and_not_the_server(client):
    """While they are compiled, others go on; none takes the server down."""
    branches = {"anyOf": [{"type": "object", "required": [f"p{i}"],
                           "properties": {f"p{i}": {"type": "string", "maxLength": 900}}}
                          for i in range(500)]}
    evil = [{"regex": "x" * 70_000}, {"json_schema": json.dumps(branches)},
            {"regex": "((a{100}){100}){100}"}, {"regex": "(a|b)*a(a|b){2000}"},
            {"gbnf": "root ::= " + " | ".join(f'"{i:05}"' for i in range(6000))},
            {"gbnf": "root ::= a\na ::= a \"x\" | a a | \"\""},
            {"json_schema": "[" * 30_000 + "]" * 30_000}]
    calls = []
    for constraint in evil:
        request = client.request("x", max_tokens=5)
        request.constraint.CopyFrom(client.pb.Constraint(**constraint))
        calls.append(client.stub.Generate.future(request, timeout=120))
    for _ in range(5):
        assert client.generate("Hello", max_tokens=3, ignore_eos=True).choices[0].token_ids
    for constraint, call in zip(evil, calls):
        code = call.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT,
                        grpc.StatusCode.RESOURCE_EXHAUSTED), (constraint, call.details())
    assert calls[0].code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.generate("Hello", max_tokens=3, ignore_eos=True).choices[0].token_ids


def test_model_without_tokenizer(tiny):
    request = tiny.request([5], max_tokens=5)
    request.constraint.regex = "a"
    with pytest.raises(grpc.RpcError) as error:
        tiny.stub.Generate(request)
    assert "tokenizer" in violations(error.value)["constraint"]
