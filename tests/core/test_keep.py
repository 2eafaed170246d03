"""Subjects as things people keep: files, mixtures, weights."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from mmdiff_core.checkpoints.subject_file import SubjectFileError, load_subject, save_subject
from mmdiff_core.method.subjects import (
    ANYWHERE,
    PromptSubject,
    Region,
    Subject,
    add_subject,
    numbers,
)
from mmdiff_core.references.mix import METHODS, blend, mix, slerp

from support.subjects import ADAPTER, subject


def tokenless(name: str = "tom", seed: int = 3) -> Subject:
    """As clip_only makes them."""
    return replace(subject(name, seed), tokens=torch.zeros(0, 16), identity=None)


# ---------------------------------------------------------------- files


def test_a_saved_subject_comes_back_bit_for_bit(tmp_path):
    kept = subject()
    save_subject(tmp_path / "family" / "ann.safetensors", kept, 0.7)
    found = load_subject(tmp_path / "family" / "ann.safetensors", ADAPTER)
    assert (found.name, found.references, found.encoder) == ("ann", 2, "feed")
    assert torch.equal(found.tokens, kept.tokens) and all(
        torch.equal(found.words[k], v) for k, v in kept.words.items()
    )
    assert torch.equal(found.identity, kept.identity) and torch.equal(
        found.thumbnails, kept.thumbnails
    )
    assert not list(tmp_path.rglob("*.part"))


def test_the_file_has_the_keys_that_earlier_versions_read(tmp_path):
    from safetensors import safe_open

    save_subject(tmp_path / "ann.safetensors", subject(), 0.7)
    with safe_open(str(tmp_path / "ann.safetensors"), framework="pt") as file:
        assert set(file.keys()) == {"tokens", "words.l", "words.g", "identity", "pictures_seen"}
        assert file.metadata()["weight"] == "0.7" and file.metadata()["format_version"] == "1"


def test_a_subject_without_tokens_is_saved_and_loaded(tmp_path):
    save_subject(tmp_path / "ann.safetensors", tokenless("ann"))
    assert load_subject(tmp_path / "ann.safetensors", ADAPTER).tokens.shape == (0, 16)


def test_a_subject_of_another_adapter_is_refused_with_both_named(tmp_path):
    save_subject(tmp_path / "ann.safetensors", subject())
    with pytest.raises(
        SubjectFileError,
        match=r"ann\.safetensors was encoded with another MM-Diff checkpoint "
        r"\(0123456789abcdef\) than portrait \(ffff\)",
    ):
        load_subject(tmp_path / "ann.safetensors", "ffff", "portrait")


def test_a_file_that_is_no_subject_or_is_damaged_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "lora.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    save_subject(
        tmp_path / "nan.safetensors", replace(subject(), tokens=torch.full((4, 16), float("nan")))
    )
    for name, message in (
        ("lora", "is not a subject"),
        ("cut", "cannot be read"),
        ("nan", "non-finite"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises(SubjectFileError, match=message):
            load_subject(tmp_path / f"{name}.safetensors", ADAPTER)


# ---------------------------------------------------------------- mixtures


def test_mixing_one_subject_alone_leaves_its_mean_reference():
    one = subject(references=3)
    for method in ("average", "spherical"):
        assert torch.allclose(
            mix([one], [2.0], method, "m").tokens, one.tokens.unflatten(0, (3, 4)).mean(0)
        )
    assert torch.equal(mix([one], [2.0], "together", "m").tokens, one.tokens)


def test_weights_of_a_mixture_are_shares():
    a, b = subject("a", 1), subject("b", 2, references=1)
    found = mix([a, b], [3, 1], "average", "m")
    assert found.name == "m" and found.references == 1 and found.tokens.shape == (4, 16)
    assert torch.allclose(
        found.tokens, 0.75 * a.tokens.unflatten(0, (2, 4)).mean(0) + 0.25 * b.tokens, atol=1e-6
    )
    assert torch.allclose(found.words["l"], 0.75 * a.words["l"] + 0.25 * b.words["l"], atol=1e-6)
    for method in METHODS[:2]:
        only = mix([a, b], [0, 1], method, "m")
        assert torch.allclose(only.tokens, b.tokens, atol=1e-5) and torch.allclose(
            only.words["g"], b.words["g"], atol=1e-5
        )


def test_a_spherical_mixture_keeps_the_length_that_an_average_loses():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert (
        slerp(a, b, 0.5).norm().item() == pytest.approx(3, abs=1e-5)
        and blend([a, b], [0.5, 0.5], "average").norm().item() < 2.2
    )
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-5) and torch.allclose(
        slerp(a, b, 1.0), b, atol=1e-5
    )
    # the same direction: no division by zero
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a, atol=1e-5)
    thirds = blend([a, b, a], [1 / 3] * 3, "spherical")
    assert thirds[0, 0] > thirds[0, 1] > 0


def test_together_puts_all_references_side_by_side():
    a, b = subject("a", 1), subject("b", 2, references=1)
    found = mix([a, b], [1, 1], "together", "m")
    assert (
        found.references == 3
        and torch.equal(found.tokens, torch.cat([a.tokens, b.tokens]))
        and len(found.thumbnails) == 3
    )


def test_a_mixture_has_nothing_of_what_a_prompt_did_with_its_first_subject():
    """Region, noun and token holding, weights: they are the prompt's, not the subject's."""
    fields = {f.name for f in dataclasses.fields(Subject)}
    assert not fields & {f.name for f in dataclasses.fields(Region)} and "weight" not in fields
    assert (
        PromptSubject(mix([subject("a"), subject("b")], [1, 1], "average", "m")).region is ANYWHERE
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_subject_without_tokens_gives_a_mixture_its_words_and_leaves_the_others_tokens(method):
    a, b, tom = subject("a", 1, references=1), subject("b", 2, references=1), tokenless()
    found, without = mix([a, tom, b], [1, 2, 3], method, "m"), mix([a, b], [1, 3], method, "m")
    assert (
        torch.allclose(found.tokens, without.tokens, atol=1e-6)
        and torch.isfinite(found.tokens).all()
    )
    assert not torch.allclose(found.words["l"], without.words["l"], atol=1e-3)
    alone = mix([tom, tokenless("tim", 4)], [1, 1], method, "m")
    assert alone.tokens.shape == (0, 16) and torch.isfinite(alone.words["l"]).all()
    assert mix([a, tom], [0, 1], method, "m").tokens.shape[0] == (4 if method == "together" else 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": [1]}, "1 weights for 2 subjects"),
        ({"weights": [0, 0]}, "one above 0"),
        ({"weights": [1, -1]}, "at least 0"),
        ({"weights": [1, float("nan")]}, "at least 0"),
        ({"weights": [1, float("inf")]}, "at least 0"),
        ({"method": "mean"}, "expected one of"),
        ({"subjects": []}, "no subject to mix"),
    ],
)
def test_mixtures_that_make_no_sense_are_told(change, message):
    wanted = {
        "subjects": [subject("a"), subject("b")],
        "weights": [1, 1],
        "method": "average",
        "name": "m",
    } | change
    with pytest.raises(ValueError, match=message):
        mix(**wanted)


def test_subjects_of_other_widths_do_not_mix():
    odd = replace(subject("b"), words={"l": torch.zeros(9), "g": torch.zeros(12)})
    with pytest.raises(ValueError, match="tokens or words of different widths"):
        mix([subject("a"), odd], [1, 1], "average", "m")


def test_identities_that_cancel_out_are_not_known():
    one = subject("a")
    other = replace(subject("b"), identity=-one.identity)
    assert mix([one, other], [1, 1], "average", "m").identity is None


def test_subjects_of_two_adapters_do_not_mix():
    with pytest.raises(ValueError, match="different MM-Diff adapters"):
        mix([subject("a"), replace(subject("b"), adapter="other")], [1, 1], "average", "m")


# ---------------------------------------------------------------- numbers a person writes


def test_numbers_are_read_as_people_write_them():
    assert numbers("1, 0.5;0\n 2", "x") == (1.0, 0.5, 0.0, 2.0) and numbers("  ", "x") == ()
    for text in ("1, a", "-1", "nan", "inf", "11"):
        with pytest.raises(ValueError, match="is not a number from 0"):
            numbers(text, "x", 10)
    assert [PromptSubject(subject(), per_image=(1.0, 0.5)).at_image(i) for i in (0, 1, 2)] == [
        1.0,
        0.5,
        0.5,
    ]


def test_names_are_the_same_whatever_their_case_and_outer_spaces():
    chain = add_subject((), PromptSubject(subject("Ann")))
    with pytest.raises(ValueError, match="already a subject named ' ann'"):
        add_subject(chain, PromptSubject(subject(" ann")))
