"""Each protocol's set, read from files of its form; what a stranger wrote is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmdiff_core.evaluation import code_sets, set_readers, sets
from mmdiff_core.evaluation.protocols import PROTOCOLS

from support.drawn_sets import write_set

CLASSES = """Classes

subject_name,class
backpack_dog,backpack
dog,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""
PORTRAITS = """
IMAGE_TO_GENDER_EVAL = {"000001": "man", "000612": "woman"}

def get_accessory_prompts(class_token, unique_token):
    prompts = ["a {0} {1} wearing a red hat".format(unique_token, class_token)]
    return prompts

def get_style_prompts(class_token, unique_token):
    return [f"a painting of a {unique_token} {class_token} in oil"]

def get_context_prompts(class_token, unique_token):
    return ["a {0} {1} in the snow".format(unique_token, class_token)]

def get_action_prompts(class_token, unique_token):
    return [f"a {unique_token} {class_token} riding a horse"]
"""
MS_BENCH = """
data_class_dict = {"cat": "cat", "cat2": "cat", "dog": "dog", "barn": "barn"}
normal = ["a {0} and a {1} in a room", "a {0} and a {1} in the snow"]
scene = ["a {0} with a {1} in the background"]
subject_combination_prompts = {"living_living": normal, "living_scene": scene}
"""


def put(path: Path, content: str | bytes = b"image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def dreambench(tmp_path) -> Path:
    put(tmp_path / "dataset/prompts_and_classes.txt", CLASSES)
    for name in ("backpack_dog/00.jpg", "backpack_dog/01.jpg", "dog/00.jpg"):
        put(tmp_path / "dataset" / name)
    return tmp_path


def test_dreambench_gives_live_subjects_their_own_prompts_and_all_photos_of_a_subject(dreambench):
    read = set_readers.read_dreambench(dreambench)
    told = [(case.group, case.number, case.marked) for case in read.cases]
    assert told == [
        ("backpack_dog", 0, "a backpack<|s1|> in the jungle"),
        ("backpack_dog", 1, "a red backpack<|s1|>"),
        ("dog", 0, "a dog<|s1|> wearing a red hat"),
    ]
    assert read.cases[1].prompt == "a red backpack"
    assert len(read.subjects["backpack_dog"].references) == 2


def test_pairs_take_the_nouns_from_dreambenchs_table_and_the_one_reference_from_the_prompt(
    tmp_path,
):
    put(tmp_path / "dreambooth/dataset/prompts_and_classes.txt", CLASSES)
    paths = [f"./dreambooth/dataset/{p}" for p in ("backpack_dog/01.jpg", "dog/00.jpg")]
    for path in [*paths, "dreambooth/dataset/dog/02.jpg"]:
        put(tmp_path / path)
    row = {"prompt": "a backpack next to a dog in the snow", "image_paths": paths}
    put(tmp_path / "dreambench_multiip.json", json.dumps([row]))
    (case,) = set_readers.read_pairs(tmp_path).cases
    assert case.marked == "a backpack<|s1|> next to a dog<|s2|> in the snow"
    assert [path.name for path in case.given] == ["01.jpg", "00.jpg"]


def test_xversebench_marks_the_word_that_each_prompt_uses_and_only_humans_are_people(tmp_path):
    sources = []
    for path, caption in (("human/05_man.jpg", "a man"), ("animal/01_parrot.jpg", "a parrot")):
        put(tmp_path / "assets" / path)
        sources.append({"image_path": f"assets/{path}", "caption": caption})
    words = [[0, "boy", "boy"], [1, "parrot", "parrot"]]
    row = {"index": 3, "prompt": "A parrot greets a boy.", "position_delta": [0, 1]}
    row["modulation"] = [{"type": "adapter", "src_inputs": sources, "use_words": words}]
    put(tmp_path / "XVerseBench_multi.json", json.dumps([row]))
    read = set_readers.read_xverse(tmp_path, "multi")
    assert read.cases[0].marked == "A parrot<|s2|> greets a boy<|s1|>."
    assert [subject.person for subject in read.subjects.values()] == [True, False]


def test_dreambench_plus_reads_the_noun_and_the_prompts_beside_each_image(tmp_path):
    put(tmp_path / "images/animal/00.jpg")
    put(tmp_path / "captions/animal/00.txt", "cat\na cat on a roof\nin the style of glass\n")
    cases = set_readers.read_dreambench_plus(tmp_path).cases
    assert [c.prompt for c in cases] == ["a cat on a roof", "in the style of glass"]
    assert cases[0].marked == "a cat<|s1|> on a roof" and cases[0].group == "animal_00"


def test_fastcomposers_prompts_are_read_out_of_its_python_file_without_running_it(tmp_path):
    put(tmp_path / "data.py", PORTRAITS + "\nraise SystemExit('it was run')\n")
    for person in ("000001", "000612"):
        put(tmp_path / "celeba_test_single" / person / "0.jpg")
    cases = code_sets.read_fastcomposer(tmp_path).cases
    assert [c.marked for c in cases[:4]] == [
        "a man<|s1|> wearing a red hat",
        "a painting of a man<|s1|> in oil",
        "a man<|s1|> riding a horse",
        "a man<|s1|> in the snow",
    ]
    assert cases[4].prompt == "a woman wearing a red hat"


def test_ms_bench_combines_its_folders_as_its_table_says(tmp_path):
    put(tmp_path / "msbench.py", MS_BENCH)
    for name in ("living/cat", "living/cat2", "living/dog", "scene/barn"):
        put(tmp_path / "msbench" / f"{name}.jpg")
    cases = code_sets.read_msbench(tmp_path).cases
    assert len(cases) == 3 * 2 + 3 * 1
    assert cases[0].marked == "a cat<|s1|> and a cat<|s2|> in a room"
    assert cases[-1].marked == "a dog<|s1|> with a barn<|s2|> in the background"


def test_a_folder_of_yours_takes_all_images_of_a_subject_or_those_it_names(tmp_path):
    read = set_readers.read_own(write_set(tmp_path / "set"))
    assert [len(s.references) for s in read.subjects.values()] == [2, 2, 2]
    last = read.cases[-1]
    assert last.group == "rex+cup" and read.cases[1].number == 1
    assert last.marked == "a dog<|s1|> and a cup<|s2|> in place 4"
    assert last.prompt == "a dog and a cup in place 4"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompts": []}, "at least 1"),
        ({"subjects": {}}, "at least 1"),
        ({"subjects": {"../x": {"noun": "dog"}}}, "letters, digits"),
        ({"subjects": {"rex": {"noun": "dog", "references": ["../../secret.png"]}}}, "outside"),
        ({"subjects": {"rex": {"noun": "dog", "references": ["gone.png"]}}}, "is not in"),
        ({"prompts": [{"subjects": ["bob"], "text": "a dog"}]}, "'bob'"),
        ({"prompts": [{"subjects": ["rex"], "text": "a cat"}]}, "no free word 'dog'"),
        ({"prompts": [{"subjects": ["rex"], "text": "a dog<|bob|>"}]}, "'bob', which is none"),
        ({"prompts": [{"subjects": ["rex", "cup"], "text": "a dog<|rex|>"}]}, "not name all"),
        ({"prompts": [{"subjects": ["rex"], "text": "dog " * 600}]}, "at most 2000"),
        ({"more": 1}, "unknown fields"),
    ],
)
def test_a_wrong_subjects_json_is_refused_with_what_is_wrong(tmp_path, change, told):
    root = write_set(tmp_path / "set")
    table = root / "subjects.json"
    table.write_text(json.dumps(json.loads(table.read_text()) | change))
    with pytest.raises(ValueError, match=told):
        set_readers.read_own(root)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_set_that_is_not_there_is_told_with_its_page_and_the_folder(tmp_path, name):
    protocol = PROTOCOLS[name]
    with pytest.raises(FileNotFoundError) as error:
        protocol.read(tmp_path)
    assert protocol.page in str(error.value) and str(tmp_path) in str(error.value)
    assert "Nothing is downloaded" in str(error.value)


def test_nouns_are_marked_where_they_stand_as_words_and_each_place_once():
    assert sets.mark("a cat catches a cat", ["cat", "cat"]) == "a cat<|s1|> catches a cat<|s2|>"
    assert sets.mark("a hot dog and a dog", ["hot dog", "dog"]) == (
        "a hot dog<|s1|> and a dog<|s2|>"
    )
    with pytest.raises(ValueError, match="no free word"):
        sets.mark("a cat", ["cat", "cat"])


def test_published_numbers_stand_in_columns_of_the_protocol_or_in_columns_of_their_own():
    for protocol in PROTOCOLS.values():
        columns = {*protocol.measures, *protocol.theirs}
        assert {name for peer in protocol.peers for name in peer.values} <= columns
        assert not set(protocol.theirs) & set(protocol.measures)
