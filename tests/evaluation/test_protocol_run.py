"""A protocol run from a folder of images: values, bounds, failures, resuming, processes, report."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff_core.commands import evaluate_protocol, main
from mmdiff_core.evaluation import measures as M
from mmdiff_core.evaluation import run as R
from mmdiff_core.evaluation.extractors import EXTRACTORS, arcface, load_extractor
from mmdiff_core.evaluation.protocols import OWN_PEOPLE, OWN_THINGS, PROTOCOLS
from mmdiff_core.evaluation.report import FILES
from mmdiff_core.evaluation.scores import cosines
from mmdiff_core.evaluation.set_readers import read_own
from mmdiff_core.evaluation.sets import Case, Subject, TestSet
from mmdiff_core.evaluation.store import Store, embed_all

from support.drawn_sets import PROMPTS, SUBJECTS, write_images, write_set
from support.faces import picture as faces_at
from support.launched import launch
from support.tiny_encoders import write_encoders

CPU = torch.device("cpu")
LEFT, RIGHT = (200, 300, 80), (650, 300, 70)


class Scene:
    """A set, two tools' images of it, and the models that score."""

    def __init__(self, root: Path) -> None:
        self.root, self.models = root, write_encoders(root / "models")
        self.set = write_set(root / "set")
        self.ours, self.base = (write_images(root / name, n) for name, n in (("a", 0), ("b", 50)))

    def command(self, out: Path, *more: str) -> list[str]:
        told = ["evaluate", "things", "--data", str(self.set), "--models", str(self.models)]
        told += ["--images", f"ours={self.ours}", f"base={self.base}", "--out", str(out)]
        return [*told, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    return Scene(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def scored(scene) -> Path:
    out = scene.root / "out"
    assert main(scene.command(out)) == 0
    return out


def results_in(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_every_image_of_every_folder_has_every_score_of_the_protocol(scored):
    told = results_in(scored)
    assert [row["name"] for row in told["rows"]] == ["ours", "base"]
    for row in told["rows"]:
        assert len(row["images"]) == 2 * len(PROMPTS) and row["expected"] == 4 * len(PROMPTS)
        for image in row["images"]:
            assert set(image["values"]) == set(OWN_THINGS.measures)
            assert all(np.isfinite(v) for v in image["values"].values())


def test_a_value_is_the_mean_cosine_with_the_references_of_its_subjects(scene, scored):
    dino = load_extractor(EXTRACTORS["dino-s16"], [scene.models], CPU).model
    image = next(i for i in results_in(scored)["rows"][0]["images"] if i["group"] == "rex+cup")
    own, means = dino.image(Image.open(image["file"]).convert("RGB")), []
    for name in ("rex", "cup"):
        real = [dino.image(Image.open(scene.set / name / f"{i}.png")) for i in range(2)]
        means.append(cosines(own[None], np.stack(real)).mean())
    assert image["values"]["dino"] == pytest.approx(np.mean(means), abs=1e-5)


def test_the_mean_is_over_subjects_and_floor_and_oracle_are_of_real_images(scene, scored):
    told = results_in(scored)
    row, groups = told["rows"][0], {}
    for image in row["images"]:
        groups.setdefault(image["group"], []).append(image["values"]["dino"])
    expected = np.mean([np.mean(values) for values in groups.values()])
    assert row["summary"]["dino"]["mean"] == pytest.approx(expected, abs=1e-9)
    assert row["summary"]["dino"]["units"] == 4
    dino = load_extractor(EXTRACTORS["dino-s16"], [scene.models], CPU).model
    real = []
    for name in SUBJECTS:
        opened = [Image.open(scene.set / name / f"{i}.png") for i in range(2)]
        real.append(np.stack([dino.image(image) for image in opened]))
    same = [cosines(own[:1], own[1:])[0, 0] for own in real]
    apart = [cosines(a, b).mean() for a, b in permutations(real, 2)]
    bound = told["bounds"]["dino"]
    assert bound["oracle"]["mean"] == pytest.approx(np.mean(same), abs=1e-5)
    assert bound["floor"]["mean"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert told["models"].keys() == {"DINO ViT-S/16", "CLIP ViT-B/32", "DINOv2 ViT-S/14"}
    assert row["told"]["tool"] == "tool 0" and told["seed"] == 19


def test_a_run_that_was_stopped_goes_on_with_what_is_missing_and_ends_the_same(scene, scored):
    kept = sorted((scored / "embeddings").rglob("*.npy"))
    before = results_in(scored)
    for number, path in enumerate(kept):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(path.read_bytes()[:40])
    times = {path: path.stat().st_mtime_ns for path in kept if path.exists()}
    assert main(scene.command(scored)) == 0
    assert results_in(scored) == before
    assert sorted((scored / "embeddings").rglob("*.npy")) == kept
    whole = [path for number, path in enumerate(kept) if number % 3 == 2]
    assert all(path.stat().st_mtime_ns == times[path] for path in whole)


def test_two_processes_share_the_work_and_write_the_same_results_as_one(scene, scored):
    out = scene.root / "two"
    ended = launch(scene.command(out))
    said = [process.said for process in ended]
    assert [process.code for process in ended] == [0, 0], said
    made = [int(re.findall(r"of (\d+) embeddings", text)[-1]) for text in said]
    assert min(made) > 0 and abs(made[0] - made[1]) <= 1
    one, two = results_in(scored), results_in(out)
    assert one.pop("command") != two.pop("command")
    assert one == two


def test_the_share_of_each_process_is_its_own_and_together_they_are_all():
    class Kept:
        def __init__(self):
            self.made = []

        def has(self, job):
            return False

        def get(self, job):
            self.made.append(job)

    shares = [Kept() for _ in range(3)]
    for rank, kept in enumerate(shares):
        embed_all([*range(10), 3, 4], kept, rank, 3, lambda text: None)
    assert sorted(job for kept in shares for job in kept.made) == list(range(10))


def test_the_report_is_one_page_without_scripts_or_anything_from_elsewhere(scored):
    page = (scored / "report.html").read_text()
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", page)
    assert page.count("data:image/jpeg;base64,") >= 10 and "prefers-color-scheme:dark" in page
    assert page.count("<svg") == 2 and "ours" in page and "base" in page
    assert all((scored / name).stat().st_size > 100 for name in FILES)


def test_names_and_prompts_of_strangers_are_text_on_the_page(scene):
    root = write_set(scene.root / "evil")
    told = json.loads((root / "subjects.json").read_text())
    told["prompts"] = [{"subjects": ["rex"], "text": "a dog<|rex|> <script>alert(1)</script> =x"}]
    (root / "subjects.json").write_text(json.dumps(told))
    command = scene.command(scene.root / "evil-out", "--without", "clip-b32")
    command[command.index("--data") + 1] = str(root)
    assert main(command) == 0
    page = (scene.root / "evil-out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_tables_say_that_a_part_of_the_images_is_not_the_protocol(scored):
    assert "10 of 20 images were there" in (scored / "report.md").read_text()


def test_published_numbers_are_marked_as_theirs_and_have_their_own_columns():
    portraits = PROTOCOLS["fastcomposer"]
    for without, whose in ((frozenset(), "ours"), (frozenset({"facenet"}), "theirs")):
        columns = R.columns_of(portraits, portraits.chosen(without))
        told = {column.name: column.whose for column in columns}
        assert told["identity"] == "ours" and told["identity-facenet"] == whose
    several = PROTOCOLS["xverse-multi"]
    told = {c.name: c.whose for c in R.columns_of(several, several.chosen())}
    assert told["id-sim"] == "ours" and told["id-sim-irse50"] == told["ip-sim"] == "theirs"


def test_models_that_are_not_there_are_all_told_at_once(scene, tmp_path, capsys):
    command = scene.command(tmp_path / "out")
    command[command.index("--models") + 1] = str(tmp_path)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.count("huggingface.co") == 3 and "--without dino-s16 clip-b32 dinov2-s" in said


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--images", "x={root}/a", "x={root}/b"], "two folders"),
        (["--images", "{root}/set"], "none of the set's images"),
        (["--without", "nothing"], "no such model"),
        (["--without", "dino-s16", "clip-b32", "dinov2-s"], "nothing of things is left"),
        (["--draw", "http://127.0.0.1:1"], "one folder"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(scene, tmp_path, more, told, capsys):
    command = scene.command(tmp_path / "out")
    more = [each.format(root=scene.root) for each in more]
    if more[0] == "--images":
        at = command.index("--images")
        command[at : at + 3] = more
    else:
        command += more
    assert main(command) == 1
    said = capsys.readouterr().err
    assert told in said and said.splitlines()[-1].startswith("error: ")


def test_the_names_of_the_command_are_the_protocols():
    assert set(evaluate_protocol.NAMES) == {*PROTOCOLS, evaluate_protocol.SMALL_WORLD}


def test_evaluate_without_a_protocol_is_still_the_small_worlds(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--no-adapter" in said and "--draw" not in said and "evaluate dreambench" in said


# ---------------------------------------------------------------- people


@pytest.fixture(scope="module")
def people(tmp_path_factory, face_models):
    """Two people, told apart by what is behind their heads; images with one, both, or twice one."""
    root = tmp_path_factory.mktemp("people")
    first, both = faces_at(LEFT), faces_at(LEFT, RIGHT)
    second = both[:, 450:].copy()
    twice = np.concatenate([first[:, :450], first[:, :450]], 1)
    files = {"set/ann/0.png": first, "set/bob/0.png": second, "set/ann/1.png": first[:, :450]}
    files["images/ann+bob/0/0.png"] = both
    files["images/ann+bob/0/1.png"] = twice
    files["images/ann+bob/0/2.png"] = first
    files["images/ann/0/0.png"] = np.full((400, 400, 3), 90, np.uint8)
    for name, pixels in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    told = {"subjects": {"ann": {"noun": "woman"}, "bob": {"noun": "man"}}}
    told["prompts"] = [{"subjects": ["ann", "bob"], "text": "a woman and a man"}]
    told["prompts"] += [{"subjects": ["ann"], "text": "a woman"}]
    (root / "set/subjects.json").write_text(json.dumps(told))
    store = Store(root / "kept", [load_extractor(arcface("stand_in"), [face_models], CPU)])
    without = frozenset({"clip-b32"})
    measures = OWN_PEOPLE.chosen(without)
    drawn = [R.Drawn("ours", root)]
    read = read_own(root / "set")
    return R.evaluate(OWN_PEOPLE, read, drawn, measures, store, {}, "").rows[0]


def test_people_are_matched_counted_and_their_failures_told_in_words(people):
    by_file = {"/".join(Path(i.file).parts[-3:]): i for i in people.images}
    both, twice, one, none = (
        by_file[name]
        for name in ("ann+bob/0/0.png", "ann+bob/0/1.png", "ann+bob/0/2.png", "ann/0/0.png")
    )
    assert both.failures == () and both.values["multi-id"] > 0.95 and both.values["count"] == 1
    assert "a person drawn twice" in twice.failures and twice.values["duplicates"] == 0.5
    assert one.failures == ("a person missing",) and one.values["id-conf"] is None
    assert one.values["multi-id"] == pytest.approx(0.5, abs=0.05)
    assert one.values["hungarian-min"] == 0
    assert none.values["identity"] == 0 and "a person missing" in none.failures


def test_a_face_table_is_none_where_nobody_is_asked_for(tmp_path):
    case = Case(("rex",), 0, "a dog<|s1|>", (tmp_path / "rex.png",))
    animals = TestSet({"rex": Subject("rex", "dog", case.given, person=False)}, (case,))
    assert M.face_table(None, animals, M.Shown(tmp_path, case, 0)) is None
