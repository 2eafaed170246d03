"""Nouns, markers and prompts.

Which word is bound to which subject, and what cannot be read is an error.
"""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.nouns import find_nouns
from mmdiff_core.host.prompt import encode_prompt

from support.cases import CHECKPOINT
from support.make import random_subject
from tiny_model import build


@pytest.fixture(scope="module")
def clip():
    return build.clip()


@pytest.fixture(scope="module")
def mmdiff():
    return load_mmdiff(CHECKPOINT)


@pytest.fixture(scope="module")
def pair(mmdiff):
    return random_subject(mmdiff, "ann", 1), random_subject(mmdiff, "bob", 2)


def token_at(clip, text, encoder, place):
    return clip.tokenize(text, return_word_ids=True)[encoder][place[0]][place[1]][0]


def token_of(clip, word):
    return clip.tokenize(word)["l"][0][1][0]


@pytest.mark.parametrize(
    "text, words",
    [
        ("a man<|subj|> in the snow", ["man"]),
        ("man<|subj|>", ["man"]),
        ("a man <|subj|> in the snow", ["man"]),
        ("a man<|subj|>, a dog, and a woman<|subj|>.", ["man", "woman"]),
        ("portrait of a (man<|subj|>:1.3), best quality", ["man"]),
        ("(a young woman<|subj|> and a man<|subj|>:0.8) on a boat!", ["woman", "man"]),
        ("a cyberpunk<|subj|> city", ["cyberpunk"]),
        ("the man<|subj|>'s hat", ["man"]),
        ("a man<|subj|>\nin the snow", ["man"]),
    ],
)
def test_the_noun_before_each_marker_is_found_in_both_encoders(clip, text, words):
    clean, nouns = find_nouns(clip.tokenize, text)
    assert [n.word for n in nouns] == words and "<|" not in clean
    for noun in nouns:
        last = clip.tokenize(noun.word, return_word_ids=True)["l"][0]
        expected = [t for t, _, word in last if word != 0][-1]
        for encoder in ("l", "g"):
            assert token_at(clip, clean, encoder, noun.places[encoder]) == expected


@pytest.mark.parametrize("filler", [60, 74, 75, 76, 100, 160])
def test_nouns_are_found_in_prompts_longer_than_one_chunk(clip, filler):
    text = "tree " * filler + "and a man<|subj|> by a lake with a woman<|subj|>"
    clean, nouns = find_nouns(clip.tokenize, text)
    assert [token_at(clip, clean, "g", n.places["g"]) for n in nouns] == [
        token_of(clip, "man"),
        token_of(clip, "woman"),
    ]


def test_a_second_mention_of_the_noun_is_left_alone(clip):
    clean, nouns = find_nouns(clip.tokenize, "a man and a man<|subj|> and a man")
    assert nouns[0].places["l"] == (0, 5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("<|subj|> in the snow", "has no word before it"),
        ("a man<|subj|>kind", "followed directly by 'kind'"),
    ],
)
def test_markers_without_a_word_of_their_own_are_errors(clip, text, message):
    with pytest.raises(ValueError, match=message):
        find_nouns(clip.tokenize, text)


# ---------------------------------------------------------------- names


def bound(clip, mmdiff, text, subjects):
    return [(word, s.name) for word, s in encode_prompt(clip, mmdiff, text, "", subjects).bindings]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a man<|bob|> and a woman<|ann|>", [("man", "bob"), ("woman", "ann")]),
        ("a man<|Bob|> and a woman<| ANN |>", [("man", "bob"), ("woman", "ann")]),
        (
            "a woman<|ann|> beside a (man<|bob|>:1.2), the woman<|ann|>'s hat",
            [("woman", "ann"), ("man", "bob"), ("woman", "ann")],
        ),
        ("a man<|bob|> and a woman<|subj|>", [("man", "bob"), ("woman", "ann")]),
        (
            "a woman<|subj|> and a man<|bob|> BREAK the man<|bob|>",
            [("woman", "ann"), ("man", "bob"), ("man", "bob")],
        ),
        (
            "portrait, __place__, a woman<|ann|>, [man<|bob|>], masterpiece",
            [("woman", "ann"), ("man", "bob")],
        ),
        ("женщина<|ann|> и мужчина<|bob|> в снегу", [("женщина", "ann"), ("мужчина", "bob")]),
        ("女人<|ann|>和男人<|bob|>在雪中", [("女人", "ann"), ("和男人", "bob")]),
        ("tree " * 90 + "woman<|ann|> and man<|bob|>", [("woman", "ann"), ("man", "bob")]),
    ],
)
def test_a_marker_binds_the_noun_before_it_to_the_subject_it_names(
    clip, mmdiff, pair, text, expected
):
    assert bound(clip, mmdiff, text, pair) == expected


def test_names_make_the_same_prompt_as_markers_in_order(clip, mmdiff, pair):
    named, ordered = (
        encode_prompt(clip, mmdiff, t, "bad", pair)
        for t in ("a man<|ann|> and a man<|bob|>", "a man<|subj|> and a man<|subj|>")
    )
    assert torch.equal(named.positive[0][0], ordered.positive[0][0]) and torch.equal(
        named.negative[0][0], ordered.negative[0][0]
    )
    swapped = encode_prompt(clip, mmdiff, "a man<|bob|> and a man<|ann|>", "bad", pair)
    back = encode_prompt(clip, mmdiff, "a man<|subj|> and a man<|subj|>", "bad", pair[::-1])
    assert torch.equal(swapped.positive[0][0], back.positive[0][0])


def test_a_subject_mentioned_twice_is_fused_twice_and_shown_once(clip, mmdiff, pair):
    once, twice = (
        encode_prompt(clip, mmdiff, t, "", pair[:1])
        for t in ("a man<|ann|> and the man", "a man<|ann|> and the man<|ann|>")
    )
    moved = (once.positive[0][0] - twice.positive[0][0]).abs().amax(-1)[0]
    assert moved[:5].max() < 1e-5 and moved[5] > 1e-2
    assert [s.name for s in shown(twice)] == ["ann"]


def shown(prompt):
    from mmdiff_core.host.conditioning import KEY

    return prompt.positive[0][1]["model_conds"][KEY].cond[0].prompt.subjects


def test_a_subject_that_names_leave_out_does_not_show_and_a_note_says_so(clip, mmdiff, pair):
    prompt = encode_prompt(clip, mmdiff, "a man<|bob|> in the snow", "", pair)
    assert [s.name for s in shown(prompt)] == ["bob"]
    assert (
        "note: ann is not in the prompt and will not appear; write <|ann|> after its noun"
        in prompt.describe().splitlines()
    )


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "a man<|bill|>",
            r"<\|bill\|> \(after 'man'\), but no subject has that name; available: ann, bob",
        ),
        (
            "a man<|bob|> and a man<|subj|> and a man<|subj|>",
            r"2 <\|subj\|> markers .*for 1 subject not named by a marker \(ann\)",
        ),
        ("a man<||>", "is empty"),
        ("a man<|bob|>ish thing", "followed directly by 'ish'"),
        ("<|bob|> in the snow", r"a <\|bob\|> has no word before it"),
        ("a man<|bob|><|ann|>", r"a <\|ann\|> has no word before it"),
    ],
)
def test_a_name_that_cannot_be_bound_is_an_error_that_says_what_there_is(
    clip, mmdiff, pair, text, message
):
    with pytest.raises(ValueError, match=message):
        encode_prompt(clip, mmdiff, text, "", pair)


def test_a_name_in_the_negative_prompt_is_an_error(clip, mmdiff, pair):
    with pytest.raises(ValueError, match="belongs in the positive prompt only"):
        encode_prompt(clip, mmdiff, "a man<|ann|>", "a man<|bob|>", pair)


@pytest.mark.parametrize(
    "text, counts",
    [
        ("a man in the snow", "0 .* 2 subjects"),
        ("a man<|subj|>", "1 .* marker .*for 2 subjects"),
        ("a man<|subj|>, a dog<|subj|>, a cat<|subj|>", "3 .*for 2 subjects"),
    ],
)
def test_a_wrong_number_of_markers_is_an_error_with_both_counts(clip, mmdiff, pair, text, counts):
    with pytest.raises(ValueError, match=counts):
        encode_prompt(clip, mmdiff, text, "", pair)


def test_a_marker_without_any_subject_is_an_error(clip, mmdiff):
    with pytest.raises(ValueError, match=r"1 .*for 0 subjects \(none\)"):
        encode_prompt(clip, mmdiff, "a man<|subj|>", "")


def test_a_marker_in_the_negative_prompt_is_an_error(clip, mmdiff, pair):
    with pytest.raises(ValueError, match="belongs in the positive prompt only"):
        encode_prompt(clip, mmdiff, "a man<|subj|> and a man<|subj|>", "a man<|subj|>", pair)


def test_subjects_of_another_adapter_are_refused(clip, mmdiff, pair):
    from dataclasses import replace

    other = replace(pair[0], subject=replace(pair[0].subject, adapter="other"))
    with pytest.raises(ValueError, match="another MM-Diff checkpoint"):
        encode_prompt(clip, mmdiff, "a man<|subj|>", "", (other,))


def test_the_node_says_which_word_was_bound_to_which_subject(clip, mmdiff, pair):
    described = encode_prompt(
        clip, mmdiff, "a woman<|subj|> and a man<|subj|>", "", pair
    ).describe()
    assert described.splitlines() == [
        "woman → ann (1 reference, 4 tokens, weight 1)",
        "man → bob (1 reference, 4 tokens, weight 1)",
    ]


def test_only_rows_from_the_noun_on_change(clip, mmdiff, pair):
    fused = encode_prompt(
        clip, mmdiff, "a photo of a man<|subj|> reading", "", pair[:1], behaviour="corrected"
    )
    plain = encode_prompt(clip, mmdiff, "a photo of a man reading", "", (), behaviour="corrected")
    a, b = fused.positive[0][0][0], plain.positive[0][0][0]
    assert torch.equal(a[:5], b[:5]) and not torch.allclose(a[5], b[5], atol=1e-2)


def test_prompt_weights_act_on_fused_nouns(clip, mmdiff, pair):
    one, heavy = (
        encode_prompt(clip, mmdiff, t, "", pair[:1]).positive[0][0]
        for t in ("a man<|subj|> reading", "a (man<|subj|>:1.5) reading")
    )
    moved = (one - heavy).abs().amax(-1)[0]
    assert moved[2] > 1e-2 and moved[1] < 1e-5 and moved[3] < 1e-5


def test_two_subjects_swapped_give_another_prompt(clip, mmdiff, pair):
    text = "a man<|subj|> and a man<|subj|>"
    a, b = (encode_prompt(clip, mmdiff, text, "", s).positive[0][0] for s in (pair, pair[::-1]))
    assert not torch.allclose(a, b, atol=1e-2)


def test_released_fuses_the_negative_prompt_and_corrected_does_not(clip, mmdiff, pair):
    text, negative = "a man<|subj|> reading", "ugly, blurry, low quality"
    released, corrected = (
        encode_prompt(clip, mmdiff, text, negative, pair[:1], behaviour=b)
        for b in ("released", "corrected")
    )
    plain_r, plain_c = (
        encode_prompt(clip, mmdiff, "x", negative, (), behaviour=b)
        for b in ("released", "corrected")
    )
    assert not torch.allclose(released.negative[0][0], plain_r.negative[0][0], atol=1e-2)
    assert torch.equal(corrected.negative[0][0], plain_c.negative[0][0])


@pytest.mark.parametrize("negative", ["", "ugly", "ugly, blurry"])
def test_a_fused_row_on_or_after_the_end_token_does_not_move_the_pooled_output(
    clip, mmdiff, pair, negative
):
    """Pooled is read at the prompt's own end.

    A noun further right leaves it as it was, one on the end token changes it.
    """
    far = encode_prompt(
        clip, mmdiff, "a b c d e f g man<|subj|>", negative, pair[:1], behaviour="released"
    )
    plain = encode_prompt(clip, mmdiff, "x", negative, (), behaviour="released")
    assert torch.allclose(
        far.negative[0][1]["pooled_output"], plain.negative[0][1]["pooled_output"], atol=1e-5
    )


def test_the_clip_that_came_in_is_unchanged(clip, mmdiff, pair):
    import comfy.model_management

    comfy.model_management.unload_all_models()

    # the host leaves a projection that the file lacks unset: it may hold NaN, which equals nothing
    def as_bytes():
        return {
            k: v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).clone()
            for k, v in clip.cond_stage_model.state_dict().items()
        }

    before = as_bytes()
    encode_prompt(clip, mmdiff, "a man<|subj|> and a man<|subj|>", "bad", pair)
    comfy.model_management.unload_all_models()
    assert not clip.patcher.patches
    after = as_bytes()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_a_clip_of_another_base_is_refused(mmdiff):
    class Stage(torch.nn.Module):
        pass

    class Clip:
        cond_stage_model = Stage()

    with pytest.raises(ValueError, match="text encoders"):
        encode_prompt(Clip(), mmdiff, "a man", "")
