"""After an opened marker the prompt offers the names of its subjects."""

from __future__ import annotations

import pytest

from support.page import prompt_box, shot


@pytest.mark.on_every_page
def test_after_an_opened_marker_the_prompt_offers_the_subjects_names_before_anything_else(page):
    box, names = prompt_box(page), page.locator(".mmdiff-names")
    box.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a ghost<|")
    assert names.locator("li").all_inner_texts() == ["Violet", "Teal", "subj"]
    shot(page, "names")
    page.keyboard.type("t")
    assert names.locator("li").all_inner_texts() == ["Teal"]
    page.keyboard.press("Enter")
    page.keyboard.type(" and a robot<|")
    page.keyboard.press("Tab")
    page.keyboard.type(" at night<|")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    names.locator("li").nth(2).click()
    wanted = "a ghost<|Teal|> and a robot<|Violet|> at night<|subj|>"
    assert box.input_value() == wanted and names.count() == 0
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert [
        n["inputs"]["text"] for n in sent.values() if n["class_type"] == "MMDiffTextEncode"
    ] == [wanted]


def test_the_offer_follows_the_graph_and_goes_away_again(page):
    box, names = prompt_box(page), page.locator(".mmdiff-names")
    page.evaluate("""() => {
      nodes.subject0.mode = 4;
      nodes.subject1.widgets.find((w) => w.name === "name").value = "Sea";
    }""")
    box.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a ghost<|")
    assert names.locator("li").all_inner_texts() == ["Sea", "subj"], "a bypassed node adds nobody"
    page.keyboard.press("Escape")
    assert names.count() == 0 and box.input_value() == "a ghost<|"
    page.keyboard.press("Backspace")
    page.keyboard.type("|")
    assert names.count() == 1
    page.keyboard.type("zz")
    assert names.count() == 0
    prompt_box(page, 1).click()
    page.keyboard.type("<|")
    assert names.count() == 0, "the negative prompt names no subject"
