"""Train the toybox prior: one command, on a CPU or on CUDA, resumable, with data made on the fly.

    python -m dreamkit.toybox.train --folder toybox-run --steps 6000
    python -m dreamkit.toybox.train --folder toybox-run --steps 6000 --start older/weights
    python -m dreamkit.toybox.train --folder joint-run --together 4 --start toybox-run/weights

A UNet2DConditionModel on pixel-unshuffled pictures (64x64x3 becomes 16x16x48, exactly invertible) and a two-layer text
transformer learn together to predict the picture x itself under Stable Diffusion's noise schedule, stretched to end in
noise alone; where the noise hides a picture, what it most likely is (`targets.py`). The loss is that of
v = alpha eps - sigma x (Salimans and Ho, arXiv:2202.00512); but a network that must say v says the noise too, 48
numbers for every patch, for which 80 channels are few (Li and He, arXiv:2511.13720). The learning rate warms up and
falls to zero over the steps; a run may be resumed with another --steps. What is kept is an exponential moving average
of the weights. The result is a diffusers pipeline folder in half precision.

With --together 4 it sees four views of an object at once in every fourth step (MVDream, arXiv:2308.16512): then its
self-attention looks at all of them. The same weights serve single views and four.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from dreamkit import device as devices
from dreamkit.errors import InputError
from dreamkit.priors.folder import meaning_of, read_json
from dreamkit.priors.joint import see_together
from dreamkit.streams import Streams
from dreamkit.toybox import checkpoint, world
from dreamkit.toybox.pictures import Pool, batch, cast_pool
from dreamkit.toybox.targets import Layers, expected, take_apart

SIZE, FOLD, WORDS, WIDTH = 64, 4, 16, 128
"""Picture size, pixel-unshuffle factor, tokens in a caption, width of the text transformer."""

LEVELS = ((0.4, 1.0), (0.35, 0.6), (0.25, 0.15))
"""Which share of the pictures is seen at which upper share of the levels: in the noisiest it is decided what stands
where and how, and there the targets are means, which a batch of other levels drowns; in the middle, which parts a thing
has."""

CLEAREST = 0.2
"""The sigma below which the loss of v is no longer followed: it would ask for ever smaller errors of the picture."""

JOINT_EVERY = 4
"""Of so many steps one sees views together."""

CHECKPOINT, SAVE_EVERY = "checkpoint.safetensors", 250
"""The checkpoint's file, and steps between two."""


@dataclass(frozen=True)
class Settings:
    steps: int = 6000
    batch: int = 64
    rate: float = 1.2e-3
    ema: float = 0.998
    drop_caption: float = 0.1
    views: int = 768
    seed: int = 0
    together: int = 1
    """Views of one object that are seen at once, in every fourth step; in the others they are seen one by one."""
    start: str = ""
    """Folder of exported weights to begin from, of the same architecture; its words may be others."""


class Networks(torch.nn.Module):
    """The two trained networks, together: one set of parameters, one moving average."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(_tokens()),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=WORDS,
                bos_token_id=_tokens().index("[BOS]"),
                eos_token_id=_tokens().index("[EOS]"),
                pad_token_id=_tokens().index("[PAD]"),
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=SIZE // FOLD,
            in_channels=3 * FOLD**2,
            out_channels=3 * FOLD**2,
            block_out_channels=(80, 112, 176),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            # The pooled caption also goes to every block, with the level: view words reach all resolutions.
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            attention_head_dim=4,
            norm_num_groups=16,
            # The level and the caption scale every channel, beside shifting it (Dhariwal and Nichol, arXiv:2105.05233):
            # a network of this size that only shifts hardly learned which side of many kinds was asked for.
            resnet_time_scale_shift="scale_shift",
        )

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(tokens).last_hidden_state).sample


def make_scheduler() -> Any:
    """Stable Diffusion's levels, stretched to end in noise alone (Lin et al., arXiv:2305.08891, algorithm 1).

    Where they end by themselves, at a signal of 0.07, the layout of so small a picture still shines through the noise.
    A network that has learned to read it there draws what it finds in pure noise, whatever side it was asked for.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def make_tokenizer() -> Any:
    """One token a word; a word outside the world's vocabulary becomes [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(_tokens())}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[BOS]", ids["[BOS]"]), ("[EOS]", ids["[EOS]"])]
    words.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=WORDS,
    )


def train(folder: Path, settings: Settings, device: torch.device) -> None:
    """Train until `settings.steps`, from the newest checkpoint in `folder` if there is one; export at the end."""
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(settings.seed)
    networks = Networks().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Plain products: on a CPU the backward pass of torch's fused attention is slow for so few pixels and words.
    networks.unet.set_attn_processor(AttnProcessor())
    average = Networks().to(device)
    if settings.start:
        begin_from(Path(settings.start), networks)
    average.load_state_dict(networks.state_dict())
    optimiser = torch.optim.AdamW(networks.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    tokenizer, abar = make_tokenizer(), make_scheduler().alphas_cumprod.to(device)
    trained = {"networks": networks, "average": average}
    done = checkpoint.load(folder / CHECKPOINT, trained, optimiser)
    if done < settings.steps:
        pool = cast_pool(settings.views, settings.seed, device, together=settings.together)
        layers = take_apart(pool)
        for step in range(done, settings.steps):
            began = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * _rate(step, settings.steps)
            seen = pool if step % JOINT_EVERY == 0 else replace(pool, together=1)
            see_together(networks.unet, seen.together)
            loss = _loss(networks, seen, layers, tokenizer, abar, settings, Streams(settings.seed, step))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimiser.step()
            _update_average(average, networks, min(settings.ema, (1 + step) / (10 + step)))
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
                checkpoint.save(folder / CHECKPOINT, step + 1, trained, optimiser)
            _log(folder, step, loss, settings, time.monotonic() - began)
    export(average, folder / "weights", settings.together)


def begin_from(folder: Path, networks: Networks) -> None:
    """Take over exported weights, word by word: what the older vocabulary lacks keeps its random beginning.

    Of weights whose blocks were only shifted by level and caption, the scales begin at one. Of weights that predict v
    the answer is turned round: in noise alone v is -x. Raises InputError if there are none, none of this architecture,
    or none that predict x or v.
    """
    from safetensors.torch import load_file

    files = [folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "text_encoder" / "model.safetensors"]
    vocabulary, levels = folder / "tokenizer" / "tokenizer.json", folder / "scheduler" / "scheduler_config.json"
    for file in (*files, vocabulary, levels):
        if not file.is_file():
            raise InputError(f"there are no weights to begin from in {folder}: {file} is missing.")
    predicts = meaning_of(read_json(levels), folder)
    if predicts not in ("v", "x0"):
        raise InputError(f"the weights in {folder} predict {predicts}; training begins from ones of x0 or v.")
    weights, text = (load_file(file) for file in files)
    fresh, mine = networks.unet.state_dict(), networks.text_encoder.state_dict()
    for name, value in weights.items():
        if "time_emb_proj" in name and name in fresh and 2 * len(value) == len(fresh[name]):
            weights[name] = torch.cat([torch.zeros_like(value), value])
        if name.startswith("conv_out.") and predicts == "v":
            weights[name] = -value
    old = read_json(vocabulary)["model"]["vocab"]
    table = next(name for name in mine if name.endswith("token_embedding.weight"))
    if table in text:
        words = mine[table].clone()
        for number, word in enumerate(_tokens()):
            if word in old:
                words[number] = text[table][old[word]]
        text[table] = words
    checkpoint.fill(networks.unet, weights, folder)
    checkpoint.fill(networks.text_encoder, text, folder)


def _loss(
    networks: Networks, pool: Pool, layers: Layers, tokenizer: Any, abar: Tensor, settings: Settings, streams: Streams
) -> Tensor:
    """mean w |x(z_t, t, caption) - x|^2 / max(sigma, CLEAREST)^2, with E[x | z, caption] for x where it is known.

    As v = alpha n - sigma x is (alpha z - x) / sigma for z = alpha x + sigma n, that is the loss of v for sigma of
    CLEAREST and more. x and w are of `expected`. t is stratified over a batch; some captions are empty.
    """
    seen = batch(pool, settings.batch, streams)
    objects = settings.batch // pool.together
    dropped = _each(streams.uniform("drop", (objects,)), pool.together) < settings.drop_caption
    captions = ["" if d else c for c, d in zip(seen.captions, dropped.tolist(), strict=True)]
    seen = seen._replace(captions=captions)
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(abar.device)
    # One level for all views of an object.
    u = _each(levels(streams.uniform("level", (objects,))), pool.together)
    t = (u * len(abar)).long().clamp(max=len(abar) - 1).to(abar.device)
    alpha, sigma = (a[:, None, None, None] for a in (abar[t].sqrt(), (1 - abar[t]).sqrt()))
    x = 2 * seen.pictures - 1
    z = alpha * x + sigma * streams.normal("noise", tuple(x.shape), x)
    target = expected(
        pool, layers, seen, z, alpha.flatten(), sigma.flatten(), streams.generator("views").initial_seed()
    )
    with torch.autocast(x.device.type, torch.bfloat16):
        answer = networks(pixel_unshuffle(z, FOLD).contiguous(memory_format=torch.channels_last), t, tokens)
    off = (answer.float() - pixel_unshuffle(target.x, FOLD)).square().mean((1, 2, 3))
    return (target.weight * off / sigma.flatten().clamp(min=CLEAREST).square()).mean()


def levels(draws: Tensor) -> Tensor:
    """Fractions of the schedule [N] from numbers [N] uniform in [0, 1), stratified, as LEVELS says."""
    u = (torch.arange(len(draws)) + draws) / len(draws)
    found, start = u, 0.0
    for share, upper in LEVELS:
        found = torch.where(u >= start, 1 - upper * (1 - (u - start) / share), found)
        start += share
    return found


def _each(values: Tensor, times: int) -> Tensor:
    return values.repeat_interleave(times)


def _rate(step: int, steps: int) -> float:
    """The share of the full learning rate: warm-up, then straight to zero (arXiv:2502.15938)."""
    return min((step + 1) / 200, 1 - step / steps)


@torch.no_grad()
def _update_average(average: Networks, networks: Networks, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(networks.parameters()), 1 - decay)


def export(networks: Networks, folder: Path, together: int = 1) -> None:
    """Write the networks as a diffusers pipeline folder, in half precision: trained with `together` views at once."""
    half = Networks()
    half.load_state_dict(networks.state_dict())
    half.half()
    half.unet.save_pretrained(folder / "unet")
    half.text_encoder.save_pretrained(folder / "text_encoder")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    make_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "_directions": world.SIDES_AND_HEIGHTS.directions,
        "_heights": world.SIDES_AND_HEIGHTS.heights,
        "_views": [1, together] if together > 1 else [1],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _tokens() -> list[str]:
    return ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *world.vocabulary()]


def _log(folder: Path, step: int, loss: Tensor, settings: Settings, seconds: float) -> None:
    if step % 25:
        return
    line = {"step": step, "loss": round(loss.item(), 5), "samples_per_second": round(settings.batch / seconds, 1)}
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"step {step}/{settings.steps}  loss {line['loss']}  {line['samples_per_second']} samples/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoint, log and, at the end, weights/")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--ema", type=float, default=Settings.ema)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--together", type=int, default=Settings.together, help="views of an object seen at once")
    parser.add_argument("--start", default=Settings.start, help="exported weights to begin from")
    parser.add_argument("--device", default="auto")
    arguments = vars(parser.parse_args())
    try:
        folder, device = arguments.pop("folder"), devices.choose(arguments.pop("device"))
        train(folder, Settings(**arguments), device)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
