"""Evaluation, on runs whose meshes are the world's own, broken on purpose, or no world's at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from dreamkit import api, cli, evaluate
from dreamkit.assets.files import write
from dreamkit.errors import InputError
from dreamkit.evaluate import mesh_files
from dreamkit.export import check_cameras
from dreamkit.guidance.rules import SDS
from dreamkit.meshes import Mesh, join
from dreamkit.metrics.clip import Clip, clip_score, r_precision
from dreamkit.priors import Bell, Gaussian
from dreamkit.recipe import Guide, Recipe, Stage
from dreamkit.representations import HashGrid
from dreamkit.run import Run
from dreamkit.toybox import train, world
from dreamkit.toybox.answers import cast_answers
from dreamkit.toybox.judge import NAMES, WORDS, Verdict
from dreamkit.toybox.world import Thing

RECIPE = Recipe((Stage(HashGrid(), (Guide(SDS, Gaussian((Bell("", 0.0, 1.0),))),), steps=10),))


def finished(folder: Path, prompt: str, mesh: Mesh, seed: int = 0) -> Path:
    """A run folder as a complete run leaves it, with this mesh."""
    with Run.create(folder, prompt, "toybox", seed, RECIPE) as run:
        run.log(1, seconds={"step": 0.5})
        run.log(10, seconds={"step": 0.1})
        files = write(mesh, folder / "mesh.glb")
        run.update(status="complete", export={"files": [file.name for file in files]})
    return folder


def truth(prompt: str) -> Mesh:
    asked = world.named(prompt)
    assert asked is not None
    return world.mesh_of(asked)


def box() -> Mesh:
    solid = trimesh.creation.box((0.8, 0.8, 0.8))
    return Mesh(np.asarray(solid.vertices, np.float32), np.asarray(solid.faces, np.int32))


def mirrored(mesh: Mesh) -> Mesh:
    """The front half, and its reflection behind."""
    front = mesh.vertices[mesh.faces].mean(1)[:, 0] >= 0
    back = Mesh(mesh.vertices * np.array([-1, 1, 1], np.float32), mesh.faces[front][:, ::-1].copy(), mesh.colours)
    return join(Mesh(mesh.vertices, mesh.faces[front], mesh.colours), back)


def only(path: Path, **more) -> dict:
    return evaluate.measure([path], **more)[0]["runs"][0]


# --- the world's own meshes, and broken ones ---


def test_the_true_mesh_is_perfect(tmp_path):
    found = only(finished(tmp_path / "duck", "a yellow duck", truth("a yellow duck")))
    # The file keeps float32 positions and linear colours: nothing but their rounding is lost.
    assert found["truth"]["f_score"] == 1
    assert found["truth"]["chamfer"] < 1e-4
    assert found["truth"]["silhouette_iou"] > 0.999
    assert found["truth"]["colour_error"] < 1e-3
    assert found["saturation"] == pytest.approx(found["truth"]["saturation"], abs=1e-3)
    judge = found["judge"]
    assert judge["recognised"] >= 11 / 12
    assert judge["colour"] >= 11 / 12
    assert judge["back_views"] >= 4
    assert judge["faces_behind"] == 0
    said = {view["azimuth"]: view["view"] for view in judge["said"] if view["elevation"] == 15}
    assert [said[azimuth] for azimuth in (0, 135, 180, 225)] == ["front", "back left", "back", "back right"]
    assert judge["two_faced"] is False
    assert found["seconds"] == pytest.approx(0.5 + 9 * 0.1)
    assert found["health"]["faces"] == len(truth("a yellow duck").faces)
    assert found["on_truth"]["recognised"] == judge["recognised"]


@pytest.mark.parametrize(("kind", "share"), [("duck", 0.4), ("snowman", 1.0), ("house", 1.0), ("robot", 1.0)])
def test_a_two_faced_thing_is_caught(kind, share, tmp_path):
    """`share` of the views from behind at least: a duck has its beak and tail in most of them, mirrored or not."""
    prompt = f"a yellow {kind}"
    found = only(finished(tmp_path / kind, prompt, mirrored(truth(prompt))))
    assert found["judge"]["recognised"] > 0.5
    assert found["judge"]["two_faced"] is True
    assert found["judge"]["faces_behind"] >= share * found["judge"]["back_views"]


def test_a_wrong_object_is_caught(tmp_path):
    found = only(finished(tmp_path / "mug", "a red mug", truth("a red duck")))
    assert found["judge"]["recognised"] == 0
    assert found["judge"]["colour"] is None  # there is no mug to ask about
    assert found["judge"]["two_faced"] is None
    assert found["truth"]["f_score"] < 0.9
    assert found["truth"]["silhouette_iou"] < 0.9
    assert found["on_truth"]["recognised"] >= 11 / 12  # the world's own mug is one


def test_a_wrong_colour_is_caught(tmp_path):
    found = only(finished(tmp_path / "mug", "a red mug", truth("a blue mug")))
    assert found["judge"]["recognised"] >= 11 / 12
    assert found["judge"]["colour"] <= 1 / 12
    assert found["truth"]["f_score"] == 1
    assert found["truth"]["colour_error"] > 0.2


def test_what_is_round_has_no_janus_rate(tmp_path):
    report, _ = evaluate.measure([finished(tmp_path / "cap", "a red mushroom", truth("a red mushroom"))])
    assert report["runs"][0]["judge"]["back_views"] == 0
    assert report["runs"][0]["judge"]["two_faced"] is None
    assert "janus_assets" not in report["means"]


def test_a_pair_is_recognised_only_with_both(tmp_path):
    prompt = "a yellow duck next to a red mug"
    whole = only(finished(tmp_path / "both", prompt, truth(prompt)))
    half = only(finished(tmp_path / "one", prompt, truth("a yellow duck")))
    assert whole["judge"]["recognised"] > 0.3  # from the sides one may stand before the other; small things are hard
    assert half["judge"]["recognised"] == 0


# --- the definitions, without a network ---


def verdict_of(views: list[str], kind: str = "duck") -> Verdict:
    """A judge that is sure of the kind, and of these views."""
    count = len(views)
    kinds = torch.zeros(count, len(NAMES))
    kinds[:, NAMES.index(kind)] = 1.0
    about = {name: torch.full((count, len(NAMES), len(words)), 1e-3) for name, words in WORDS.items()}
    for row, view in enumerate(views):
        about["view"][row, :, WORDS["view"].index(view)] = 1.0
        about["colour"][row, :, WORDS["colour"].index("yellow")] = 1.0
    return Verdict(kinds, about)


@pytest.mark.parametrize(("fronts", "two_faced"), [(0, False), (1, False), (2, True), (5, True)])
def test_faces_behind_are_front_words_from_the_back_half(fronts, two_faced):
    """Five of the twelve cameras stand behind: 135, 180 and 225 degrees, and above 135 and 225."""
    asked, cameras = Thing("duck", "yellow"), check_cameras()
    behind = [i for i, a in enumerate(cameras.azimuth_degrees.tolist()) if 90 < a < 270]
    assert len(behind) == 5
    views = ["front" if i in behind[:fronts] or i not in behind else "back" for i in range(12)]
    found = evaluate.judged(verdict_of(views), asked, cast_answers(asked, cameras), cameras)
    assert (found["back_views"], found["faces_behind"], found["two_faced"]) == (5, fronts, two_faced)
    assert found["colour"] == 1
    assert found["recognised"] == 1


def test_means_say_over_how_many_runs():
    runs = [
        {"saturation": 0.2, "judge": {"recognised": 1.0, "two_faced": True, "back_views": 5, "faces_behind": 3}},
        {"saturation": 0.4, "judge": {"recognised": 0.5, "two_faced": False, "back_views": 5, "faces_behind": 0}},
        {"saturation": 0.6},
    ]
    found = evaluate.means(runs)
    assert found["saturation"] == {"mean": 0.4, "runs": 3}
    assert found["recognised"] == {"mean": 0.75, "runs": 2}
    assert found["janus_assets"] == {"mean": 0.5, "runs": 2}
    assert found["janus_views"] == {"mean": 0.3, "views": 10}
    assert "F-score" not in found


# --- any run ---


def test_a_prompt_outside_the_world_gets_what_needs_no_truth(tmp_path):
    found = only(finished(tmp_path / "box", "a corgi in a top hat", box()))
    assert found["health"]["watertight"] is True
    assert found["saturation"] < 1e-3  # white, to the rounding of what the background leaves at its edges
    assert not {"judge", "truth", "clip"} & found.keys()


def test_seeds_of_one_prompt_have_a_diversity(tmp_path):
    half = Mesh(box().vertices * np.float32(0.5), box().faces)
    runs = [finished(tmp_path / str(i), "a box", mesh, i) for i, mesh in enumerate((box(), box(), half))]
    report, _ = evaluate.measure(runs[:2])
    assert report["prompts"]["a box"] == {"runs": 2, "diversity": 0}
    report, _ = evaluate.measure([*runs, runs[0]])  # the same folder again counts once
    assert len(report["runs"]) == 3
    assert report["prompts"]["a box"]["diversity"] > 0.01


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    """A CLIP of a few thousand random weights, with one token a word."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = train.make_tokenizer()
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 3}
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines(tmp_path, tiny_clip):
    prompts = ["a red mug", "a yellow duck"]
    runs = [finished(tmp_path / str(i), prompt, truth(prompt)) for i, prompt in enumerate(prompts)]
    report, sights = evaluate.measure(runs, clip=tiny_clip)
    assert report["protocol"]["clip"] == {
        "model": str(tiny_clip),
        "size": 32,
        "background": [1.0, 1.0, 1.0],
        "views": 12,
        "prompts": 2,
    }
    texts = Clip(tiny_clip).texts(prompts)
    for number, (run, sight) in enumerate(zip(report["runs"], sights, strict=True)):
        pictures = sight.clip
        torch.testing.assert_close(pictures.norm(dim=1), torch.ones(12))
        cosines = [[float(sum(a * b for a, b in zip(p, t, strict=True))) for t in texts] for p in pictures]
        assert run["clip"]["score"] == pytest.approx(100 * np.mean([row[number] for row in cosines]), abs=1e-3)
        assert run["clip"]["r_precision"] == pytest.approx(np.mean([row[number] > row[1 - number] for row in cosines]))


def test_clip_is_what_transformers_own_model_says(tiny_clip):
    from transformers import CLIPModel

    model, tokens = CLIPModel.from_pretrained(tiny_clip), train.make_tokenizer()(["a red mug"], return_tensors="pt")
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)))
    with torch.no_grad():
        whole = model(input_ids=tokens.input_ids, pixel_values=(pixels - mean) / std)
    ours = Clip(tiny_clip)
    # Its constants have three digits here: pictures agree to a few thousandths, words exactly.
    torch.testing.assert_close(ours.texts(["a red mug"]), whole.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pictures(pixels), whole.image_embeds, atol=5e-3, rtol=0)


def test_r_precision_counts_the_pictures_that_fit_their_own_words_best():
    texts = torch.eye(3)
    pictures = torch.tensor([[1.0, 0, 0], [0.2, 0.9, 0], [0.5, 0.5, 0], [0.6, 0.3, 0.1]])
    assert r_precision(pictures, texts, 0) == 0.5  # a tie is not won
    assert clip_score(pictures, texts[0]) == pytest.approx(100 * (1 + 0.2 + 0.5 + 0.6) / 4)
    with pytest.raises(ValueError, match="at least two"):
        r_precision(pictures, texts[:1], 0)


# --- the command ---


def test_the_command_prints_a_table_and_writes_json_and_a_page(tmp_path, capfd):
    prompt = 'a red mug, <b>"front" view'
    run = finished(tmp_path / "mug", "a red mug", truth("a red mug"))
    odd = finished(tmp_path / "odd", prompt, box())
    assert cli.main(["eval", str(run), str(odd), "--out", str(tmp_path / "out" / "all.json"), "--device", "cpu"]) == 0
    printed = capfd.readouterr().out
    for text in ("a red mug", "F-score", "recognised", "mean of 2", "Janus: 0.0% of 1 assets", "all.json"):
        assert text in printed
    report = json.loads((tmp_path / "out" / "all.json").read_text())
    assert [entry["prompt"] for entry in report["runs"]] == ["a red mug", prompt]
    assert report["protocol"]["views"] == 12
    assert len(report["runs"][0]["judge"]["said"]) == 12
    page = (tmp_path / "out" / "all.html").read_text()
    assert page.count("<img ") == 24
    assert "<b>" not in page
    assert "https:" not in page


def test_a_file_of_splats_is_no_mesh_to_measure(tmp_path):
    folder = finished(tmp_path / "box", "a box", box())
    record = json.loads((folder / "run.json").read_text())
    shutil.copy(folder / "mesh.glb", folder / "points.glb")
    record["export"]["files"] = ["points.glb", "mesh.glb"]
    (folder / "run.json").write_text(json.dumps(record))
    assert mesh_files(Run.open(folder)) == [folder / "mesh.glb"]
    record["export"]["files"] = ["points.glb"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"no exported mesh .*status: complete\). Write one with `dreamkit export"):
        mesh_files(Run.open(folder))


def test_one_run_keeps_its_measurements(tmp_path):
    run = finished(tmp_path / "box", "a box", box())
    _, file = api.evaluate([run], device="cpu")
    assert file == run / "eval.json"
    assert (run / "eval.html").exists()


def test_a_damaged_mesh_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    runs = [finished(tmp_path / name, "a box", box()) for name in ("one", "two")]
    (runs[1] / "mesh.glb").write_bytes((runs[1] / "mesh.glb").read_bytes()[:100])
    monkeypatch.setattr(evaluate, "_measured", lambda *given: pytest.fail("one was measured"))
    with pytest.raises(InputError, match=r"two/mesh\.glb cannot be read"):
        evaluate.measure(runs)


def test_figures_of_another_type_are_no_seconds(tmp_path):
    run = finished(tmp_path / "box", "a box", box())
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 20, "seconds": 3}\n{"step": 30, "seconds": {"step": "long"}}\n')
    assert only(run)["seconds"] == pytest.approx(0.5 + 9 * 0.1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("nowhere",), "nowhere is not a run: there is no such folder"),
        (("{empty}",), "has no exported mesh to measure (status: interrupted). Finish it with `dreamkit resume"),
        (("{run}", "--clip", "{run}"), "is not the folder of a CLIP model: there is no config.json"),
        (("{run}", "--out", "table.csv"), "give a name that ends in .json"),
        (("{run}", "--device", "abacus"), "device 'abacus' is not a device."),
    ],
)
def test_a_mistake_gets_one_message(extra, message, tmp_path, capfd):
    run = finished(tmp_path / "run", "a box", box())
    Run.create(tmp_path / "empty", "a box", "toybox", 0, RECIPE).close()
    given = [text.format(run=run, empty=tmp_path / "empty") for text in extra]
    assert cli.main(["eval", *given]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("eval.*"))


def test_a_folder_that_is_no_clip_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="cannot be read as a CLIP model"):
        Clip(tmp_path)
