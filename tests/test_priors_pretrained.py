"""The door to diffusers: tiny random pipelines, saved to disk, against diffusers' own sampler and schedulers."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from dreamkit.compose import compose
from dreamkit.diffusion import cfg, ddim
from dreamkit.errors import InputError
from dreamkit.guidance import gradient
from dreamkit.guidance.rules import SDS, VSD
from dreamkit.priors import Condition, Diffusers, view_conditions
from dreamkit.priors import folder as module
from dreamkit.priors.folder import alpha_squared, find, fingerprint
from dreamkit.prompts import ViewWords
from dreamkit.rehearsal import load_priors
from dreamkit.streams import Streams

WORDS = ["a", "red", "blue", "mug", "chair", "front", "side", "back", "overhead", "view"]


# Building the folders -----------------------------------------------------------------------------------------------


def seeded(build, seed: int = 0):
    """A module with random weights that do not depend on the tests before it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def unet(channels: int, side: int, out: int | None = None):
    from diffusers import UNet2DConditionModel

    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=out or channels,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
    )


def vae():
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    )


def text_encoder(words: int, length: int):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        eos_token_id=1,
        bos_token_id=0,
        pad_token_id=1,
    )
    return seeded(lambda: CLIPTextModel(config))


def clip_tokenizer(folder: Path):
    """A byte-level CLIP tokenizer that can spell every lower-case text."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    return tokenizer, len(tokens)


def word_tokenizer():
    """One token a word, like the toybox's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["[BOS]", "[EOS]", "[UNK]", ",", *WORDS]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", special_tokens=[("[BOS]", 0), ("[EOS]", 1)])
    special = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=12, **special), len(tokens)


def scheduler(prediction_type: str, **changes):
    from diffusers import DDIMScheduler

    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    fixed = {"prediction_type": prediction_type, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**(options | fixed | changes))


def save(folder: Path, name: str, **parts) -> Path:
    """A pipeline folder, as diffusers writes it."""
    index = {"_class_name": name, "_diffusers_version": "0.34.0", "safety_checker": [None, None]}
    for part, value in parts.items():
        value.save_pretrained(folder / part)
        package = "transformers" if part in ("text_encoder", "tokenizer") else "diffusers"
        index[part] = [package, type(value).__name__.replace("TokenizersBackend", "PreTrainedTokenizerFast")]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def stable(request, tmp_path_factory) -> Path:
    """A tiny Stable Diffusion."""
    folder = tmp_path_factory.mktemp("stable")
    tokenizer, words = clip_tokenizer(folder / "words")
    parts = {"unet": unet(4, 8), "vae": vae(), "text_encoder": text_encoder(words, 24), "tokenizer": tokenizer}
    return save(folder / "model", "StableDiffusionPipeline", scheduler=scheduler(request.param), **parts)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A tiny pixel prior behind pixel-unshuffle by 4, with a word-level tokenizer: what the toybox is."""
    tokenizer, words = word_tokenizer()
    parts = {"unet": unet(48, 4), "text_encoder": text_encoder(words, 12), "tokenizer": tokenizer}
    return save(tmp_path_factory.mktemp("toy"), "DiffusionPipeline", scheduler=scheduler("v_prediction"), **parts)


def load(folder: Path, device: str = "cpu", **options):
    return Diffusers(str(folder), dtype="float32", **options).load(device)


# Against diffusers' own sampler -------------------------------------------------------------------------------------


def test_our_ddim_loop_draws_the_pictures_of_diffusers_own_pipeline(stable, device):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(stable), safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = ["a red mug", "a blue chair"]
    options = {"num_inference_steps": 5, "guidance_scale": 4.0, "eta": 0.0, "output_type": "pt"}
    want = pipeline.to(device)(prompts, latents=start.to(device), **options).images

    prior = load(stable, device)
    conditions = [prior.condition(prompts), prior.condition(["", ""])]
    indices = pipeline.scheduler.timesteps.tolist()  # leading grid: 801, 601, ..., 1; then index 0 stands for clean
    z = start.to(device)
    for now, then in zip(indices, [max(i - 200, 0) for i in indices], strict=True):
        level, to = (prior.level_at(torch.full((2,), i)) for i in (now, then))
        z = ddim(z, cfg(*prior.predict(z, level, conditions), 4.0), level, to)
    got = prior.decode(z).clamp(0, 1)
    assert (prior.calls, prior.samples) == (5, 20)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)  # float32 rounding over five steps
    assert got.std() > 0.01


def test_the_conditions_are_the_pipelines_own(stable):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(stable), safety_checker=None, local_files_only=True)
    cond, uncond = pipeline.encode_prompt("a red mug", "cpu", 1, True)
    prior = load(stable)
    torch.testing.assert_close(prior.condition(["a red mug", ""]).tensors["tokens"], torch.cat([cond, uncond]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01, 0.02, 0.3]},
        {"rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_schedules_are_those_of_diffusers(changes):
    theirs = scheduler("epsilon", **changes)
    config = json.loads(theirs.to_json_string())
    # Relative, because the last values of a cosine are 1e-9; they multiply a thousand float32 numbers.
    torch.testing.assert_close(alpha_squared(config).float(), theirs.alphas_cumprod, rtol=2e-3, atol=1e-14)


def test_a_schedule_nobody_knows_is_an_error():
    with pytest.raises(InputError, match="'sigmoid' is not one of"):
        alpha_squared({"beta_schedule": "sigmoid"})


# The latent door ----------------------------------------------------------------------------------------------------


def test_the_code_of_a_picture_is_the_vaes_mean_times_its_factor(stable, device):
    prior = load(stable, device)
    rgb = torch.rand(2, 3, 16, 16, device=device)
    want = prior.vae.encode(2 * rgb - 1).latent_dist.mean * prior.vae.config.scaling_factor
    assert (prior.space, prior.size, prior.shape) == ("latent", 16, (4, 8, 8))
    torch.testing.assert_close(prior.encode(rgb), want)
    back = prior.vae.decode(want / prior.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(prior.decode(want), back)


def test_with_streams_the_code_is_a_draw_around_the_mean_unless_the_mean_was_asked_for(stable):
    rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prior, mean_prior = load(stable), load(stable, posterior="mean")
    posterior = prior.vae.encode(2 * rgb - 1).latent_dist
    noise = Streams(0, 5).normal("vae", (1, 4, 8, 8))
    want = (posterior.mean + posterior.std * noise) * prior.vae.config.scaling_factor
    torch.testing.assert_close(prior.encode(rgb, Streams(0, 5)), want)
    assert (prior.encode(rgb, Streams(0, 6)) - want).abs().max() > 1e-3
    assert torch.equal(mean_prior.encode(rgb, Streams(0, 5)), prior.encode(rgb))


def test_one_sds_step_reaches_the_picture_through_the_encoder_and_no_parameter(stable, device):
    prior = load(stable, device)
    rgb = torch.rand(2, 3, 24, 24, device=device).requires_grad_()
    streams = Streams(0, 0)
    x = prior.encode(rgb, streams)
    conditions = view_conditions(prior, "a red mug", ["front", "back"])
    guidance = gradient(SDS, prior, x, conditions, streams)
    ((guidance.gradient * x).sum() / 2).backward()
    assert rgb.grad.isfinite().all()
    assert rgb.grad.abs().max() > 0
    for part in (prior.unet, prior.vae, prior.text_encoder):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    assert (prior.calls, prior.samples) == (1, 4)


# The pixel door -----------------------------------------------------------------------------------------------------


def test_pixels_are_unshuffled_exactly_and_come_back(toy, device):
    prior = load(toy, device)
    assert (prior.space, prior.size, prior.shape, prior.parameterization) == ("pixel", 16, (48, 4, 4), "v")
    rgb = torch.rand(2, 3, 16, 16, device=device)
    x = prior.encode(rgb)
    # Patch (1, 2), channel green, row 3, column 0 of the patch, by hand.
    torch.testing.assert_close(x[0, 1 * 16 + 3 * 4 + 0, 1, 2], 2 * rgb[0, 1, 1 * 4 + 3, 2 * 4 + 0] - 1)
    torch.testing.assert_close(prior.decode(x), rgb)


def test_a_pixel_priors_step_reaches_the_picture_and_equals_the_network_by_hand(toy, device):
    prior = load(toy, device)
    rgb = torch.rand(1, 3, 16, 16, device=device).requires_grad_()
    x = prior.encode(rgb)
    conditions = view_conditions(prior, "a red mug", ["side"])
    level = prior.level(0.5)
    v = prior.unet(x.detach(), 500, encoder_hidden_states=conditions["prompt"].tensors["tokens"]).sample
    alpha, sigma = level.over(x)
    want = sigma * x.detach() + alpha * v  # on the unit circle the denominators are one
    torch.testing.assert_close(prior.predict(x.detach(), level, [conditions["prompt"]])[0], want)
    guidance = gradient(SDS, prior, x, conditions, Streams(0, 0))
    (guidance.gradient * x).sum().backward()
    assert rgb.grad.abs().max() > 0


def test_a_learned_variance_is_dropped_and_three_channels_are_plain_pixels(tmp_path):
    tokenizer, words = word_tokenizer()
    parts = {"unet": unet(3, 8, out=6), "text_encoder": text_encoder(words, 12), "tokenizer": tokenizer}
    prior = load(save(tmp_path, "IFPipeline", scheduler=scheduler("epsilon"), **parts))
    z, level = torch.randn(2, 3, 8, 8), prior.level(torch.tensor([0.3, 0.6]))
    condition = prior.condition(["a mug", "a chair"])
    whole = prior.unet(z, level.t.float(), encoder_hidden_states=condition.tensors["tokens"]).sample
    assert (prior.size, prior.shape, whole.shape[1]) == (8, (3, 8, 8), 6)
    torch.testing.assert_close(prior.eps(z, level, condition), whole[:, :3])


def test_bfloat16_stays_inside_the_network(toy):
    exact, fast = load(toy), Diffusers(str(toy), dtype="bfloat16").load("cpu")
    z, level = torch.randn(2, 48, 4, 4), exact.level(torch.tensor([0.2, 0.8]))
    a, b = (prior.eps(z, level, prior.condition(["a red mug", ""])) for prior in (exact, fast))
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05  # eight bits of mantissa through a few layers of order one


# Prompts ------------------------------------------------------------------------------------------------------------


def test_words_the_tokenizer_does_not_know_are_listed_with_those_it_knows(toy):
    prior = load(toy)
    prior.check_prompt("A red mug, overhead view")
    prior.check_prompt("")
    prior.check_prompt("a red mug!")  # punctuation is no word
    with pytest.raises(InputError) as error:
        prior.condition(["a shiny red dragon and a dragon"])
    text = str(error.value)
    assert "does not know the words 'shiny', 'dragon', 'and'" in text
    assert "a, back, blue, chair, front, mug, overhead, red, side, view" in text
    assert "--prior" in text


def test_a_prior_that_can_spell_takes_any_words(stable):
    load(stable).check_prompt("a shiny dragon")


def test_a_prompt_longer_than_the_encoder_reads_is_an_error_not_cut(stable, toy):
    for folder, length in ((stable, 24), (toy, 12)):
        with pytest.raises(InputError, match=f"tokens, and the prior .* reads {length}"):
            load(folder).condition(["a red mug " * 12])


def test_prompts_are_embedded_once(toy, monkeypatch):
    prior, asked = load(toy), []
    monkeypatch.setattr(prior, "embed", lambda prompt: asked.append(prompt) or type(prior).embed(prior, prompt))
    for _ in range(2):
        assert len(view_conditions(prior, "a mug", ["front", "back", "front"])["prompt"]) == 3
    assert sorted(asked) == ["", "a mug", "a mug, back view", "a mug, front view"]


# What can be wrong --------------------------------------------------------------------------------------------------


def test_a_source_that_is_nothing_says_what_it_may_be():
    with pytest.raises(InputError, match=r"'sd21' is neither a folder here nor.*--prior toybox"):
        Diffusers("sd21").load("cpu")
    with pytest.raises(InputError, match="neither a folder"):
        find("/no/such/folder")


def test_a_folder_that_is_no_pipeline_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        Diffusers(str(tmp_path)).load("cpu")


def test_without_a_network_the_hub_is_one_clear_sentence(monkeypatch):
    import huggingface_hub

    def offline(*args: object, **options: object) -> str:
        raise ConnectionError("Network is unreachable\nand forty more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"'owner/model'.*Network is unreachable. Check the name") as error:
        Diffusers("owner/model").load("cpu")
    assert "forty" not in str(error.value)


def in_half_precision_only(folder: Path, to: Path) -> Path:
    """The folder with its weights as files of the variant "fp16", the only ones of some models."""
    for file in Path(shutil.copytree(folder, to)).rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    return to


def test_a_folder_of_half_precision_files_alone_is_read(stable, tmp_path):
    one, other = load(stable), load(in_half_precision_only(stable, tmp_path / "half"))
    x, level = torch.randn(1, *one.shape, generator=torch.Generator().manual_seed(0)), one.level(0.5)
    said = [prior.eps(x, level, prior.condition(["a red mug"])) for prior in (one, other)]
    assert torch.equal(*said)


def test_half_precision_is_had_from_the_hub_where_there_is_nothing_else(stable, tmp_path, monkeypatch):
    import huggingface_hub

    half, skipped = in_half_precision_only(stable, tmp_path / "half"), []

    def download(source: str, ignore_patterns: list[str], **options: object) -> str:
        skipped.append("*.fp16.*" in ignore_patterns)
        if not skipped[-1]:
            return str(half)
        bare = shutil.copytree(half, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
        return str(bare)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find("owner/model") == half
    assert skipped == [True, False]


def test_missing_toybox_weights_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "TOYBOX", tmp_path)
    with pytest.raises(InputError, match="toybox's weights are not in this installation"):
        Diffusers().load("cpu")


def test_a_folder_may_name_its_words_for_where_a_camera_stands(toy, tmp_path):
    assert load(toy).view_words == ViewWords()
    folder = Path(shutil.copytree(toy, tmp_path / "model"))
    change_index(folder, _directions=["front", "left", "back", "right"])
    assert load(folder).view_words == ViewWords(("front", "left", "back", "right"))
    change_index(folder, _heights=[["low", -90], ["high", 30]])
    assert load(folder).view_words.heights == (("low", -90.0), ("high", 30.0))
    change_index(folder, _directions="front")
    with pytest.raises(InputError, match="should be a list of words; it is 'front'"):
        load(folder)
    for wrong in (
        ["low", "high"],
        [["low"]],
        [["low", "high"]],
        [[1, 2]],
        [["low", math.nan]],
        [["a", 9], ["b", 3]],
        3,
    ):
        change_index(folder, _directions=["front"], _heights=wrong)
        with pytest.raises(InputError, match=r'"_heights" in .* should be a list of pairs'):
            load(folder)


def change_index(folder: Path, **parts: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "unet .* is a UNet3DConditionModel; dreamkit reads UNet2D"),
        ({"tokenizer": ["my_code", "Evil"]}, "tokenizer .* is a Evil"),
        ({"unet": [None, None]}, "names no unet"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "DiffusionPipeline, which dreamkit does not read"),
        ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "does not read"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused_by_name(toy, tmp_path, parts, said):
    folder = shutil.copytree(toy, tmp_path / "model")
    change_index(folder, **parts)
    with pytest.raises(InputError, match=said):
        load(folder)


def test_missing_or_broken_files_are_named(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match=r"scheduler_config\.json.*damaged"):
        load(folder)
    shutil.copytree(toy, folder, dirs_exist_ok=True)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load the unet"):
        load(folder)


def test_numbers_that_are_none_are_named_before_anything_runs(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": None}))
    recipe = compose("dreamfusion", None, None, str(folder), None, {})
    with pytest.raises(InputError, match="the prior cannot be loaded: TypeError"):
        load_priors(recipe, "a red mug", torch.device("cpu"))


def test_pickled_weights_are_never_read(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(unet(48, 4).state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="must be safetensors"):
        load(folder)


def test_a_scheduler_or_a_network_that_does_not_fit_is_named(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow_prediction"}))
    with pytest.raises(InputError, match="predicts 'flow_prediction'; dreamkit reads epsilon, v_prediction, sample"):
        load(folder)
    tokenizer, words = word_tokenizer()
    parts = {"unet": unet(8, 4), "text_encoder": text_encoder(words, 12), "tokenizer": tokenizer}
    with pytest.raises(InputError, match=r"3 f\^2 channels.*it sees 8"):
        load(save(tmp_path / "odd", "DiffusionPipeline", scheduler=scheduler("epsilon"), **parts))


# Identity -----------------------------------------------------------------------------------------------------------


def test_loading_says_nothing(toy, capfd):
    load(toy)
    assert capfd.readouterr() == ("", "")


def test_identity_follows_the_weights(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "model")
    first = load(folder).identity()
    assert first["weights"] == fingerprint(toy)
    assert json.loads(json.dumps(first)) == first
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load(folder).identity()["weights"] != first["weights"]


def test_a_file_of_many_blocks_is_read_at_both_ends(tmp_path):
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.truncate(80 << 20)  # sparse
    before = fingerprint(tmp_path)
    for offset in (0, (80 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\x01")
        after = fingerprint(tmp_path)
        assert after != before
        before = after


def test_a_hub_snapshot_is_known_by_its_revision(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "snapshots" / "abc123")
    assert load(folder).identity()["revision"] == "abc123"


# Students -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, None])
def test_a_student_starts_as_its_teacher_learns_and_leaves_the_teacher_as_it_was(stable, device, rank):
    prior = load(stable, device)
    conditions = view_conditions(prior, "a red mug", ["front", "back"])
    camera = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).to(device)
    z, level = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(1)).to(device), prior.level(0.5)
    student = prior.student(rank, Streams(0, -1))

    def told(camera: torch.Tensor | None) -> torch.Tensor:
        return student(z, level.cat([level] * 2), conditions["bare"], camera)

    with torch.no_grad():
        teacher = prior.network(z, level.cat([level] * 2), conditions["bare"])
        assert torch.equal(told(camera), teacher)  # the changes start at zero
    before = {name: value.clone() for name, value in prior.unet.state_dict().items()}
    optimiser = torch.optim.Adam(student.parameters().values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = (told(camera) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        assert (told(camera) - told(None)).abs().max() > 1e-5  # the camera is heard by now
        assert torch.equal(prior.network(z, level.cat([level] * 2), conditions["bare"]), teacher)
    assert all(torch.equal(before[name], value) for name, value in prior.unet.state_dict().items())
    assert all(value.grad is None for value in prior.unet.parameters())


def test_a_step_of_vsd_runs_through_the_encoder_and_trains_the_student(stable, device):
    prior = load(stable, device)
    parts = VSD.parts(prior, Streams(0, -1))
    x = prior.encode(torch.rand(2, 3, 24, 24, device=device))
    conditions = view_conditions(prior, "a red mug", ["front", "back"])
    conditions["camera"] = Condition({"camera": torch.zeros(2, 12, device=device)})
    guidance = gradient(VSD, prior, x, conditions, Streams(0, 0), parts=parts)
    assert guidance.gradient.isfinite().all()
    assert guidance.figures["student_loss"] > 0
    assert (prior.calls, prior.samples) == (1, 4)
    moved = [name for name, value in parts["student"].network.parameters().items() if name.endswith("to_q/up")]
    assert all(parts["student"].network.parameters()[name].abs().max() > 0 for name in moved)
