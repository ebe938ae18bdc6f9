"""The toybox: its world is what it says, its pictures match its captions, its trainer resumes exactly."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamkit.cameras import orbit
from dreamkit.diffusion import x0_of
from dreamkit.errors import InputError
from dreamkit.priors import Diffusers
from dreamkit.prompts import read_list
from dreamkit.recipe import data_folder
from dreamkit.render.mesh import render_mesh
from dreamkit.streams import Streams
from dreamkit.toybox import gallery, judge, kinds, pictures, train, world
from dreamkit.toybox.kinds import KINDS, SUPPORTS
from dreamkit.toybox.pictures import SHARES, batch, cast_pool, draw_asked, shade
from dreamkit.toybox.targets import Target
from dreamkit.toybox.world import Pair, Thing


def test_the_world_has_at_least_24_kinds_and_12_colours():
    assert len(KINDS) >= 24
    assert len(world.COLOURS) >= 12


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_its_ball_and_touches_it(kind):
    points = world.mesh_of(Thing(kind, "red")).vertices
    # Scaled in float64 and stored in float32: a millionth covers the rounding.
    assert abs(np.linalg.norm(points, axis=1).max() - world.RADIUS) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_colour_of_the_caption_covers_a_good_part_of_the_object(kind):
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 20.0, size=48)
    images = render_mesh(world.mesh_of(Thing(kind, "pink")), cameras, background=(0, 0, 0), supersample=1)
    off = (images.rgb - torch.tensor(world.COLOURS["pink"])[None, :, None, None]).abs().amax(1)
    share = (off < 1e-5).sum() / images.alpha.sum()  # unlit and without supersampling the colour is exact
    assert share > 0.25


def test_fronts_face_plus_x():
    """A duck's beak and a car's lights are seen from azimuth 0 and not from 180."""
    for kind, colour in (("duck", kinds.BEAK), ("car", kinds.SUN), ("snowman", kinds.BEAK)):
        views = render_mesh(world.mesh_of(Thing(kind, "blue")), orbit([0.0, 180.0], 0.0, size=96), supersample=1).rgb
        near = (views - torch.tensor(colour)[None, :, None, None]).abs().amax(1) < 0.02
        front, back = near.flatten(1).sum(1).tolist()
        assert front > 10 > back, kind


def test_a_second_colour_shows_on_every_kind():
    """Somewhere round the object, on at least one pixel in a hundred of it; the main colour stays the larger part."""
    views = orbit([0.0, 60.0, 120.0, 180.0, 240.0, 300.0], 20.0, size=48)
    for kind in KINDS:
        images = render_mesh(world.mesh_of(Thing(kind, "pink", "cyan")), views, background=(0, 0, 0), supersample=1)

        def share(colour: str, images=images) -> float:
            off = (images.rgb - torch.tensor(world.COLOURS[colour])[None, :, None, None]).abs().amax(1)
            return float((off < 1e-5).sum() / images.alpha.sum())

        assert share("cyan") > 0.01, kind
        assert share("pink") > 0.15, kind


@pytest.mark.parametrize("material", ["striped", "checkered"])
def test_patterns_alternate_the_main_colour_with_a_pale_one(material):
    """On a box-like thing about half of the surface is pale, and never what has a colour of its own."""
    mesh = world.mesh_of(Thing("sofa", "purple", "green", material))
    shown = {tuple(np.round(c, 4)) for c in mesh.colours.astype(float)}
    wanted = {world.COLOURS["purple"], world.pale(world.COLOURS["purple"]), world.COLOURS["green"], kinds.WOOD}
    assert shown == {tuple(np.round(c, 4)) for c in wanted}
    plain = world.mesh_of(Thing("sofa", "purple", "green"))
    assert abs(_area(mesh) - _area(plain)) < 1e-4 * _area(plain)  # a finer mesh of the same surface, float32
    pale = np.isclose(mesh.colours[mesh.faces[:, 0]], world.pale(world.COLOURS["purple"]), atol=1e-5).all(1)
    dark = np.isclose(mesh.colours[mesh.faces[:, 0]], world.COLOURS["purple"], atol=1e-5).all(1)
    assert 0.3 < pale.sum() / (pale.sum() + dark.sum()) < 0.7


def _area(mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(float) for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def test_two_things_stand_next_to_each_other_on_one_ground_the_first_to_the_left():
    pieces = world.together("duck", "next to", "rocket")
    low, high = zip(*(_box(pieces, owner) for owner in (0, 1)), strict=True)
    assert high[0][1] < low[1][1]  # the camera in front sees +y to its right
    assert low[0][2] == pytest.approx(low[1][2], abs=1e-6)
    assert np.linalg.norm(
        world.mesh_of(Pair(Thing("duck", "red"), "next to", Thing("rocket", "blue"))).vertices, axis=1
    ).max() == pytest.approx(world.RADIUS, abs=1e-5)


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_thing_on_top_of_another_touches_it_in_the_middle(support):
    pieces = world.together("mug", "on top of", support)
    bottom = _box(pieces, 0)[0][2]
    below = [p.mesh for p in pieces if p.owner == 1]
    heights = [_height_at(mesh, 0.008, 0.008) for mesh in below]
    assert bottom == pytest.approx(max(heights), abs=2e-3)


def _box(pieces, owner):
    points = np.concatenate([p.mesh.vertices for p in pieces if p.owner == owner])
    return points.min(0), points.max(0)


def _height_at(mesh, x: float, y: float) -> float:
    """The highest triangle over a point, by barycentric coordinates; -inf where there is none."""
    best = -np.inf
    for a, b, c in mesh.vertices[mesh.faces].astype(float):
        d = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if abs(d) > 1e-12:
            u = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / d
            v = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / d
            if u >= 0 and v >= 0 and u + v <= 1:
                best = max(best, a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2]))
    return best


def test_what_the_world_lacks_names_the_nearest():
    for asked, message in (
        (Thing("mugg", "red"), "Did you mean 'mug'"),
        (Thing("mug", "rd"), "no colour 'rd'"),
        (Pair(Thing("mug", "red"), "under", Thing("car", "red")), "no relation 'under'"),
        (Pair(Thing("mug", "red"), "on top of", Thing("duck", "red")), "nothing can stand on a duck"),
    ):
        with pytest.raises(InputError, match=message):
            world.mesh_of(asked)


def test_a_prompt_names_what_it_asks_for_or_does_not():
    for prompt, asked in {
        "a red mug, left side view": Thing("mug", "red"),
        "high front left view of a red mug": Thing("mug", "red"),
        "An Orange lamp": Thing("lamp", "orange"),
        "a mug in red": Thing("mug", "red"),
        "a red and blue mug": Thing("mug", "red", "blue"),
        "a striped green and white sofa": Thing("sofa", "green", "white", "striped"),
        "a red mug on a blue table": Pair(Thing("mug", "red"), "on top of", Thing("table", "blue")),
        "the yellow duck and a red and black car": Pair(
            Thing("duck", "yellow"), "next to", Thing("car", "red", "black")
        ),
    }.items():
        assert world.named(prompt) == asked, prompt
    unsaid = ("a mug", "something red", "a red mug on a table", "a red zeppelin", "a red mug near a cat", "")
    for prompt in (*unsaid, "a low red table", "a red mug, bird view"):
        assert world.named(prompt) is None, prompt
    for prompt in ("a red cat on a blue mug", "a red mug next to a blue mug"):  # nothing stands there; two of a kind
        assert world.named(prompt) is None, prompt


def test_every_caption_is_in_the_vocabulary_and_whole_ones_name_what_they_show(pool):
    tokenizer, draw = train.make_tokenizer(), random.Random(0)
    whole = 0
    asked, views = draw_asked(pool, 600, draw)
    for one, view in zip(asked, views, strict=True):
        text = world.caption(one, pool.views[view], draw)
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids, text
        assert len(ids) <= train.WORDS, text
        assert world.named(text) in (one, None), text
        whole += world.named(text) == one
    assert whole > 500  # nine in ten single things are told whole, and all pairs


def test_an_unknown_word_becomes_unk():
    tokenizer = train.make_tokenizer()
    assert tokenizer.unk_token_id in tokenizer("a red zeppelin").input_ids


def test_the_prior_that_ships_knows_all_that_prompts_say():
    """The words for views it may know or not: they are not the user's."""
    assert gallery.unknown() == []


def test_the_fixed_prompts_name_every_kind_once():
    prompts = read_list(data_folder("prompts") / "toybox.txt")
    kinds = [prompt.split()[-1] for prompt in prompts]
    assert sorted(kinds) == sorted(KINDS)
    assert len({prompt.split()[1] for prompt in prompts}) >= 8


@pytest.fixture(scope="module")
def pool():
    return cast_pool(4, 0, torch.device("cpu"), note=lambda text: None, pairs=20)


def test_the_pool_shows_kinds_and_pairs_in_their_shares(pool):
    asked, _ = draw_asked(pool, 2000, random.Random(0))
    pairs = [one for one in asked if isinstance(one, Pair)]
    single = [one for one in asked if isinstance(one, Thing)]
    # Three standard errors of a share p of n draws: 3 sqrt(p (1 - p) / n) < 0.035.
    assert len(pairs) / len(asked) == pytest.approx(SHARES["pair"], abs=0.035)
    assert sum(one.second is not None for one in single) / len(single) == pytest.approx(SHARES["second"], abs=0.035)
    assert sum(one.material != "matte" for one in single) / len(single) == pytest.approx(SHARES["material"], abs=0.035)
    assert {one.kind for one in single} == set(KINDS)
    on_top = sum(one.relation == "on top of" for one in pairs)
    assert on_top / len(pairs) == pytest.approx(0.5, abs=0.05)  # three standard errors of 900 draws


def test_every_pair_is_each_that_the_world_can_place():
    def can_stand(first: str, relation: str, second: str) -> bool:
        try:
            return len(world.together(first, relation, second)) > 1
        except InputError:
            return False

    wanted = [way for way in itertools.product(KINDS, world.RELATIONS, KINDS) if way[0] != way[2] and can_stand(*way)]
    assert sorted(pictures.every_pair()) == sorted(wanted)


def test_a_pool_shows_every_pair_unless_it_is_told_how_many(monkeypatch):
    few = [("duck", "next to", "mug"), ("cat", "on top of", "table"), ("mug", "next to", "duck")]
    monkeypatch.setattr(pictures, "every_pair", lambda: few)
    for number, shown in ((None, 3), (2, 2), (9, 3), (0, 0)):
        assert len(cast_pool(1, 0, torch.device("cpu"), lambda text: None, number).pairs) == shown


def test_pictures_show_the_colour_their_caption_names(pool):
    asked, views = draw_asked(pool, 64, random.Random(1))
    for one, picture in zip(asked, shade(pool, asked, views, Streams(0, 0)), strict=True):
        # On a dark thing rounding leaves no direction; a grey background is also grey; highlights are white.
        if isinstance(one, Thing) and one.colour not in ("black", "gray", "white") and one.material != "shiny":
            # Lit and shaded, a colour keeps its direction: some pixel's is that of the named one.
            wanted = torch.tensor(world.COLOURS[one.colour])
            cosine = torch.nn.functional.cosine_similarity(picture, wanted[:, None, None], dim=0)
            assert cosine.max() > 0.998, one


@pytest.mark.parametrize("material", world.MATERIALS)
def test_a_picture_agrees_with_the_true_mesh(pool, material):
    """The same view, cast from the painted mesh: where patterns lie and which part is where, at every tenth ray."""
    thing, view = Thing("castle", "purple", "green", material), 0
    number = pool.kinds["castle",][view]
    cameras = replace(
        world.CAMERAS.sample(4, Streams(0, list(KINDS).index("castle")), "pool")[view : view + 1], height=128, width=128
    )
    truth = render_mesh(world.mesh_of(thing), cameras, background=(0, 0, 0), supersample=1).rgb[0]
    table = pictures.palette(thing)[pool.part[number].long()]
    light = ((table[..., 6].long() & pool.pale[number].long()) > 0)[..., None]
    found = torch.where(light, table[..., 3:6], table[..., :3]).permute(2, 0, 1)
    same = (found - truth).abs().amax(0) < 1e-3
    # Patterns are painted on faces of at most 0.04, so their borders are ragged by a third of a pixel's footprint.
    assert same.float().mean() > (0.995 if material in ("matte", "shiny") else 0.95)


def test_a_shiny_thing_has_a_highlight_a_matte_one_has_not(pool):
    views = [*pool.kinds["teapot",]]
    matte, shiny = (
        shade(pool, [Thing("teapot", "blue", material=m)] * len(views), views, Streams(0, 0))
        for m in ("matte", "shiny")
    )
    more = (shiny - matte).amax(dim=(1, 2, 3))
    assert (shiny >= matte - 1e-6).all()
    assert more.max() > 0.3


def test_pictures_are_a_function_of_seed_and_step(pool):
    first, again, other = (batch(pool, 8, Streams(0, step)) for step in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def few(views: int, seed: int, device: torch.device, together: int):
    """A pool that is cast quickly."""
    return cast_pool(2, seed, device, lambda text: None, 2, together)


def test_views_that_are_seen_together_stand_evenly_round_one_thing():
    pool = few(2, 0, torch.device("cpu"), 4)
    asked, views = draw_asked(pool, 32, random.Random(0))
    for first in range(0, 32, 4):
        assert len(set(asked[first : first + 4])) == 1
        poses = pool.cameras[views[first : first + 4]].unflatten(1, (3, 4))
        x, y, z = poses[:, :, 3].unbind(1)
        assert torch.allclose(z, z[:1].expand(4), atol=1e-5)  # float32 of a distance of 3
        turns = torch.atan2(y, x).rad2deg().diff() % 360
        assert torch.allclose(turns, torch.full((3,), 90.0), atol=1e-3)
    captions = {pool.views[view][0] for view in views}
    assert len(captions) > 4


def test_each_share_of_the_levels_is_even_over_its_upper_part():
    drawn = train.levels(torch.rand(1000, generator=torch.Generator().manual_seed(0))).sort().values
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    # The share of all that lies below each level. Each of the 1000 strata is met once, so it can differ by a stratum
    # for every share, of which there are three.
    below = sum(share * ((drawn - 1) / upper + 1).clamp(min=0) for share, upper in train.LEVELS)
    assert sum(share for share, _ in train.LEVELS) == 1
    assert (below - torch.arange(1000) / 1000).abs().max() < 3.5e-3


@pytest.mark.parametrize("together", [1, 4])
def test_training_resumes_bit_for_bit(tmp_path, monkeypatch, together):
    """Three steps, against two steps, a stop, and one more."""
    monkeypatch.setattr(train, "cast_pool", few)
    cpu = torch.device("cpu")
    whole = train.Settings(steps=3, batch=4, together=together)
    train.train(tmp_path / "whole", whole, cpu)
    # The learning rate depends on the number of steps, so the first part is cut short, not asked to be shorter.
    saved, real = [], train._log

    def stop_after_two(folder, step, *rest):
        real(folder, step, *rest)
        if step == 1 and not saved:
            saved.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_log", stop_after_two)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "parts", whole, cpu)
    train.train(tmp_path / "parts", whole, cpu)
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "parts" / "weights" / "model_index.json").exists()
    prior = Diffusers(str(tmp_path / "parts" / "weights"), dtype="float32", views=together).load(cpu)
    assert prior.views == together
    assert ("joint_views" in prior.capabilities) == (together > 1)


def test_every_fourth_step_sees_views_together(monkeypatch, tmp_path):
    """The others see as many different objects as there are pictures, one by one."""
    monkeypatch.setattr(train, "cast_pool", few)
    seen, real = [], train._loss

    def counted(networks, pool, *rest):
        attention = networks.unet.mid_block.attentions[0].transformer_blocks[0].attn1
        seen.append((pool.together, attention.together))
        return real(networks, pool, *rest)

    monkeypatch.setattr(train, "_loss", counted)
    train.train(tmp_path, train.Settings(steps=5, batch=4, together=4), torch.device("cpu"))
    assert seen == [(4, 4), (1, 1), (1, 1), (1, 1), (4, 4)]


def test_a_joint_prior_sees_the_other_views(tmp_path):
    """The same weights see single views and four; with all four alike they say the same."""
    torch.manual_seed(0)
    train.export(train.Networks(), tmp_path, together=4)
    one, four = (Diffusers(str(tmp_path), dtype="float32", views=views).load("cpu") for views in (None, 4))
    assert (one.views, four.views) == (1, 4)
    z, level = torch.randn(8, *one.shape), one.level(torch.full((8,), 0.5))
    z[:4] = z[:1]
    alone, together = (prior.eps(z, level, prior.condition(["a red mug"] * 8)) for prior in (one, four))
    assert torch.allclose(together[:4], alone[:4], atol=1e-4)  # float32, sums over four times as many keys
    assert (together[4:] - alone[4:]).abs().max() > 1e-3


def test_another_number_of_views_than_it_was_trained_for_is_refused(tmp_path):
    train.export(train.Networks(), tmp_path)
    with pytest.raises(InputError, match=r"views=4: the weights in .* were trained to see 1 at once"):
        Diffusers(str(tmp_path), views=4).load("cpu")
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("[\n    1\n  ]", "4"))
    with pytest.raises(InputError, match=r'"_views" in .* should be a list of numbers; it is 4'):
        Diffusers(str(tmp_path)).load("cpu")


def rewrite(folder, change):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: new for name, t in load_file(file).items() if (new := change(name, t)) is not None}, file)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, t: None if "mid_block" in name else t,
        lambda name, t: t[:-1].contiguous() if name == "conv_in.weight" else t,
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, change):
    train.export(train.Networks(), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(InputError, match="another architecture"):
        train.begin_from(tmp_path, train.Networks())


@pytest.mark.parametrize(
    ("module", "file", "options", "message"),
    [
        (train, "", ["--start", "nowhere"], "no weights to begin from in nowhere"),
        (train, "checkpoint.safetensors", [], "another architecture"),
        (judge, "judge.safetensors", [], "another architecture"),
    ],
)
def test_a_training_that_cannot_begin_says_why_in_one_line(
    tmp_path, monkeypatch, capsys, module, file, options, message
):
    if file:
        save_file({"network/a": torch.zeros(1), "networks/a": torch.zeros(1)}, tmp_path / file, {"step": "1"})
    monkeypatch.setattr("sys.argv", ["train", "--folder", str(tmp_path), *options])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_older_weights_that_only_shift_begin_with_a_scale_of_one(tmp_path):
    """Scale and shift are the halves of a projection; the network multiplies by one plus the scale."""
    train.export(train.Networks(), tmp_path)
    rewrite(tmp_path, lambda name, t: t.chunk(2)[1].contiguous() if "time_emb_proj" in name else t)
    networks = train.Networks()
    train.begin_from(tmp_path, networks)
    old = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in networks.unet.state_dict().items():
        scale, shift = value.chunk(2) if "time_emb_proj" in name else (torch.zeros(1), value)
        assert scale.abs().max() == 0
        assert torch.equal(shift, old[name].float()), name


def predicts(folder, change):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": change}))


def test_older_weights_that_predict_v_mean_the_same_in_noise_alone(tmp_path):
    """There alpha is 0, and a picture is what v says with its sign turned."""
    torch.manual_seed(0)
    train.export(train.Networks(), tmp_path / "older")
    predicts(tmp_path / "older", "v_prediction")
    networks = train.Networks()
    train.begin_from(tmp_path / "older", networks)
    train.export(networks, tmp_path / "now")
    old, new = (Diffusers(str(tmp_path / name), dtype="float32").load("cpu") for name in ("older", "now"))
    z, level = torch.randn(2, *old.shape), old.level(torch.ones(2))
    meant = [x0_of(z, one.eps(z, level, one.condition(["a red mug"] * 2)), level) for one in (old, new)]
    # The noisiest level that a prior has is one before alpha = 0: x = alpha z - sigma v is not -v, but nearly. Twice
    # that difference, for what rounding becomes when it is divided by alpha.
    off = level.alpha.max() * (z.abs().max() + meant[1].abs().max())
    assert (meant[0] - meant[1]).abs().max() < 2 * off < 0.1 * meant[1].abs().max()


def test_weights_that_predict_noise_are_no_beginning(tmp_path):
    train.export(train.Networks(), tmp_path)
    predicts(tmp_path, "epsilon")
    with pytest.raises(InputError, match="predict eps; training begins from ones of x0 or v"):
        train.begin_from(tmp_path, train.Networks())


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
def test_the_loss_is_that_of_v_down_to_the_clearest_level(sigma, monkeypatch):
    """A network that answers with z everywhere: its v is (alpha z - z) / sigma."""
    pool = few(4, 0, torch.device("cpu"), together=1)
    abar = torch.full((1000,), 1 - sigma**2)
    monkeypatch.setattr(train, "expected", lambda pool, layers, seen, z, *rest: kept(z, seen))
    zs = []

    def kept(z, seen):
        zs.append((z, 2 * seen.pictures - 1))
        return Target(2 * seen.pictures - 1, torch.ones(len(z)))

    settings = train.Settings(batch=4)
    loss = train._loss(lambda z, t, tokens: z, pool, None, train.make_tokenizer(), abar, settings, Streams(0, 0))
    z, x = zs[0]
    alpha = (1 - sigma**2) ** 0.5
    v, truth = (alpha * z - z) / sigma, (alpha * z - x) / sigma
    share = min(sigma / train.CLEAREST, 1) ** 2
    assert torch.isclose(loss, share * (v - truth).square().mean(), rtol=1e-5)  # float32 sums
