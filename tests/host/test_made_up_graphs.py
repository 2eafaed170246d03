"""Made-up graphs of the pack's nodes: each runs to its end, or says in a sentence why not."""

from __future__ import annotations

import os
import random

from comfy_api.latest import io

from support.every_node import around, right_values, schema_of
from support.graphs import node
from support.in_process import Refused

GRAPHS = 2000 if os.environ.get("MMDIFF_LONG_FUZZ") else 40
CHAIN = (
    "MMDiffSubjectEncoder",
    "MMDiffLoadSubject",
    "MMDiffMixSubjects",
    "MMDiffSubjectWeights",
    "MMDiffConstraintMasks",
    "MMDiffFindRegions",
    "MMDiffSaveSubject",
)
TEXTS = ("", "ann", "Bob", "0.5", "1, 2", "0,5", "[]", "a|b", "../x", "x" * 200, "ann/", "subj")
PROMPT = ("a ghost", "<|ann|>", "<|Bob|>", "<|subj|>", " ", ", ", "(", ":1.2)", "a cat", "\n", "<|")


def made_up(choose: random.Random, item) -> object:
    """A value of a widget: mostly one that its schema allows."""
    if isinstance(item, io.Combo.Input):
        return choose.choice([*item.options, "evil"])
    if isinstance(item, io.Boolean.Input):
        return choose.random() < 0.5
    if isinstance(item, io.String.Input):
        return choose.choice(TEXTS)
    least, most = (-1 if item.min is None else item.min), (1 if item.max is None else item.max)
    value = choose.choice([least, most, choose.uniform(least, most), most + 1])
    return int(value) if isinstance(item, io.Int.Input) else value


def made_up_graph(host, choose: random.Random) -> dict:
    prompt, last = around(host), None
    for number in range(choose.randint(1, 5)):
        kind = choose.choice(CHAIN)
        inputs = right_values(kind)
        for item in schema_of(kind).inputs:
            typed = item.id in inputs and not isinstance(inputs[item.id], list)
            if typed and item.id not in ("width", "height") and choose.random() < 0.15:
                inputs[item.id] = made_up(choose, item)
        if "name" in inputs and kind != "MMDiffSubjectWeights":
            inputs["name"] = choose.choice(["ann", "Bob", "eve", f"s{number}"])
        if last is not None:
            inputs["others" if kind == "MMDiffMixSubjects" else "subjects"] = last
        if kind == "MMDiffMixSubjects" and last is not None:
            inputs["subjects"] = last
        prompt[f"made{number}"] = node(kind, **inputs)
        last = [f"made{number}", 0]
    text = "".join(choose.choices(PROMPT, k=choose.randint(1, 8)))
    encode = right_values("MMDiffTextEncode") | {"subjects": last, "text": text}
    prompt["made"] = node("MMDiffTextEncode", **encode)
    prompt["sampled"]["inputs"] |= {"positive": ["made", 0], "negative": ["made", 1]}
    return prompt | {"end": node("Sink", value=["sampled", 0])}


def test_made_up_graphs_run_or_are_told_in_a_sentence(host):
    choose, ran = random.Random(14), 0
    for number in range(GRAPHS):
        prompt = made_up_graph(host, choose)
        try:
            host.run(prompt)
            ran += 1
        except Refused as refused:
            assert refused.own, f"graph {number}: {refused}\n{prompt}"
    assert ran >= GRAPHS / 40
