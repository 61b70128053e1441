"""Diffusion, sampling of tokens, beam search; averages of weights, optimizers and losses."""

from __future__ import annotations

from exhibit import Exhibit

from tasks import optimizers
from zoo import gan_losses
from zoo.generation import decoding, diffusion, samplers, sampling
from zoo.generation.average import ExponentialAverage

LAWS, TWINS = "zoo/generation/test_diffusion.py:", "zoo/generation/test_diffusion_against_diffusers.py:"
OF_SAMPLERS, OF_TOKENS = "zoo/generation/test_samplers.py:", "zoo/generation/test_sampling.py:"
OF_BEAMS, OF_AVERAGES = "zoo/generation/test_beam.py:", "zoo/generation/test_average.py:"
OF_OPTIMIZERS, OF_GANS = "tasks/test_optimizers.py:", "zoo/test_gan_losses.py:"

NOISE = (
    Exhibit(
        "product of a step's own beta",
        "The noise of a time is that of its last step, not of all steps so far.",
        ("lucidrains/denoising-diffusion-pytorch#18", "lllyasviel/ControlNet#587"),
        diffusion.from_betas, "(1 - betas.double()).cumprod(0)", "(1 - betas.double())",
        LAWS + "test_linear", cf=True,
    ),
    Exhibit(
        "cosine without its limit",
        "The last beta is nearly 1, and the step that undoes it divides by nearly nothing.",
        ("lucidrains/denoising-diffusion-pytorch#18",),
        diffusion.cosine, ".clamp(max=0.999)", ".clamp(max=0.9999999)",
        LAWS + "test_cosine", cf=True,
    ),
    Exhibit(
        "cosine one step ahead",
        "The schedule is taken a step too early: the padding is at the wrong end.",
        ("lucidrains/denoising-diffusion-pytorch#18", "lllyasviel/ControlNet#587"),
        diffusion.cosine, "kept[1:] / kept[:-1]", "(kept / kept.roll(1))[:-1].clamp(max=1 - 1e-5)",
        LAWS + "test_cosine", cf=True,
    ),
    Exhibit(
        "velocity the other way round",
        "Image and noise are exchanged in what a network is trained on.",
        ("huggingface/diffusers#2585",),
        diffusion.Schedule.express, "alpha * noise - sigma * sample", "sigma * noise - alpha * sample",
        LAWS + "test_predictions_convert_into_each_other", cf=True,
    ),
    Exhibit(
        "noise from the image by the wrong level",
        "The noise that a predicted image amounts to is divided by the image's share.",
        ("huggingface/diffusers#3006",),
        diffusion.Schedule.resolve, "(noisy - alpha * prediction) / sigma",
        "(noisy - alpha * prediction) / alpha.clamp(min=1e-3)",
        LAWS + "test_an_exact_prediction_gives_the_image_and_the_noise_back", cf=True,
    ),
    Exhibit(
        "weights of velocity as of images",
        "Errors of a velocity are weighed as those of an image.",
        ("huggingface/diffusers#2585",),
        diffusion.Schedule.min_snr, "weights * self.levels(times)[1].square()", "weights",
        LAWS + "test_min_snr_weighs_the_same_error_alike", cf=True,
    ),
    Exhibit(
        "the last time never asked",
        "Steps are counted up from zero, and none is at the noisiest time.",
        ("huggingface/diffusers#2585", "huggingface/diffusers#444"),
        samplers.spaced, "times = [n - Fraction(n * k, steps) - 1 for k in range(steps)]",
        "times = [Fraction(n * k, steps) for k in reversed(range(steps))]",
        LAWS + "test_times_as_published",
    ),
    Exhibit(
        "a time past the end",
        "Times begin at T, of which there is no entry.",
        ("huggingface/diffusers#10003", "CompVis/latent-diffusion#136"),
        samplers.spaced, "round(time + 1) - 1", "round(time + 1)",
        LAWS + "test_times_as_published",
    ),
    Exhibit(
        "a step's own beta where steps are skipped",
        "A sampler that skips times adds the noise of one training step.",
        ("huggingface/diffusers#3006",),
        samplers.ancestral, "fresh = eta * less * math.sqrt(max(here.sigma**2 - old**2, 0.0))",
        "fresh = eta * less * here.sigma * 0.1",
        TWINS + "test_ddpm",
    ),
    Exhibit(
        "second order twice",
        "The correction of a multi-step solver is not halved.",
        ("huggingface/diffusers#10003",),
        samplers.multistep, "ratio / 2", "ratio",
        TWINS + "test_dpm_solver", cf=True,
    ),
    Exhibit(
        "Heun's second slope alone",
        "The slopes at both ends are not averaged.",
        ("huggingface/diffusers#10003",),
        samplers.euler_or_heun, "(noise + next_noise) / 2", "next_noise",
        TWINS + "test_heun", cf=True,
    ),
    Exhibit(
        "guidance from the wrong end",
        "What guides is added to the prediction with a class, so that a guidance of 1 is already 2.",
        ("huggingface/diffusers#2585",),
        samplers.Predictor.__call__, "other + self.guidance * (prediction - other)",
        "prediction + self.guidance * (prediction - other)",
        OF_SAMPLERS + "test_guidance", cf=True,
    ),
    Exhibit(
        "noise of an image that was not clipped",
        "The predicted image is clipped, and the noise remains as it was.",
        ("huggingface/diffusers#3006",),
        samplers.Predictor.__call__, "noise = (images - level.alpha * sample) / level.sigma", "pass",
        OF_SAMPLERS + "test_clipping", cf=True,
    ),
)  # fmt: skip

TOKENS = (
    Exhibit(
        "the token that crosses p is dropped",
        "What is left has a share below p, and may be nothing.",
        ("fishaudio/fish-speech#1171", "evolutionaryscale/esm#360"),
        sampling.keep_top_p, "missing = F.pad(mass[:, :-1], (1, 0)) < enough", "missing = mass <= enough",
        OF_TOKENS + "test_top_p_keeps_the_smallest_set_that_reaches_p",
    ),
    Exhibit(
        "one token too many",
        "Where a share of p is reached exactly, one more is kept.",
        ("fishaudio/fish-speech#1171", "ml-explore/mlx-lm#388"),
        sampling.keep_top_p, "F.pad(mass[:, :-1], (1, 0)) < enough", "F.pad(mass[:, :-1], (1, 0)) <= enough",
        OF_TOKENS + "test_top_p_at_its_boundary", cf=True,
    ),
    Exhibit(
        "ties are all kept",
        "All tokens as likely as the last of the k likeliest are kept.",
        ("ml-explore/mlx-lm#388",),
        sampling.keep_top_k, "return torch.zeros_like(weights).scatter(-1, tokens, top)",
        "return weights.where(weights >= top[:, -1:], 0)",
        OF_TOKENS + "test_top_k_keeps_exactly_k", cf=True,
    ),
    Exhibit(
        "share of the whole, not of the likeliest",
        "The bound does not follow how sure the model is.",
        ("ml-explore/mlx-lm#388",),
        sampling.keep_min_p, "p * weights.amax(-1, keepdim=True)", "p * weights.sum(-1, keepdim=True)",
        OF_TOKENS + "test_min_p_is_a_share_of_the_likeliest", cf=True,
    ),
    Exhibit(
        "multiplied by the temperature",
        "A low temperature flattens.",
        ("ml-explore/mlx-lm#388",),
        sampling.Sampler.weights, "below / self.temperature", "below * self.temperature",
        OF_TOKENS + "test_temperature_divides_log_odds", cf=True,
    ),
    Exhibit(
        "score by length, sign of the penalty ignored",
        "Whether a better hypothesis may come is asked with the largest length, whatever the penalty's sign.",
        ("huggingface/transformers#20901", "OpenNMT/OpenNMT-py#1320"),
        decoding.beam, 'if early_stopping == "never" and length_penalty > 0 else length',
        'if early_stopping == "never" else length',
        OF_BEAMS + "test_never_stopping_early_misses_nothing",
    ),
    Exhibit(
        "stops with the first that is finished",
        "A row ends as soon as one hypothesis has.",
        ("OpenNMT/OpenNMT-py#1320", "neulab/xnmt#572"),
        decoding.beam, 'full = finished_scores[:, -1] > float("-inf")', 'hopeless = full = finished_scores[:, 0] > float("-inf")',
        OF_BEAMS + "test_never_stopping_early_misses_nothing",
    ),
    Exhibit(
        "rows of the beams leak",
        "The caches of a hypothesis are taken from another row of the batch.",
        ("OpenNMT/OpenNMT-py#1320",),
        decoding.beam, "rows = (first_rows * width + parents).flatten()", "rows = parents.flatten()",
        OF_BEAMS + "test_scores_are_those_of_a_full_forward", cf=True,
    ),
)  # fmt: skip

TRAINING = (
    Exhibit(
        "buffers of an average left behind",
        "Statistics of batch norms stay those of the first weights.",
        ("pytorch/pytorch#84053", "pytorch/ignite#2590", "lucidrains/ema-pytorch#8"),
        ExponentialAverage.update, "x.copy_(new)", "pass",
        OF_AVERAGES + "test_buffers_are_copied",
    ),
    Exhibit(
        "decay for its complement",
        "The average takes nearly all of the new weights.",
        ("pytorch/ignite#2590",),
        ExponentialAverage.update, "weight = 1 - self.decay_at(self.updates)", "weight = self.decay_at(self.updates)",
        OF_AVERAGES + "test_average_is_torchs", cf=True,
    ),
    Exhibit(
        "warmup counted from zero",
        "The first update has another decay than the published one.",
        ("pytorch/ignite#2590",),
        ExponentialAverage.decay_at, "(1 + update) / (10 + update)", "update / (9 + update)",
        OF_AVERAGES + "test_average_is_the_published_sum", cf=True,
    ),
    Exhibit(
        "weight decay of norms and biases",
        "All parameters decay, vectors too.",
        ("karpathy/minGPT#23", "huggingface/transformers#10598"),
        optimizers.parameter_groups, "if p.ndim <= 1], \"weight_decay\": 0.0}",
        "if p.ndim <= 1], \"weight_decay\": weight_decay}",
        OF_OPTIMIZERS + "test_parameter_groups_are_a_partition_without_decay_of_norms_and_biases", arguments=("vgg19_bn",),
    ),
    Exhibit(
        "parameters in two groups",
        "A pattern catches vectors twice.",
        ("karpathy/minGPT#23",),
        optimizers.parameter_groups, "if p.ndim > 1]", "if p.ndim >= 1]",
        OF_OPTIMIZERS + "test_parameter_groups_are_a_partition_without_decay_of_norms_and_biases", arguments=("vgg19_bn",),
        cf=True,
    ),
    Exhibit(
        "schedule of epochs, not of steps",
        "The rate falls as many times too fast as there are micro-batches.",
        ("huggingface/accelerate#999", "huggingface/diffusers#2632"),
        optimizers.learning_rate, "(step - warmup) / max(1.0, total - warmup)", "2 * (step - warmup) / max(1.0, total - warmup)",
        OF_OPTIMIZERS + "test_schedule_rises_then_follows_its_law", arguments=("cosine",), cf=True,
    ),
    Exhibit(
        "penalty of whole batches",
        "One place between real and generated images is drawn for the batch, not one for each.",
        ("heykeetae/Self-Attention-GAN#48",),
        gan_losses.interpolated, "torch.rand(b, 1, 1, 1,", "torch.rand(1, 1, 1, 1,",
        OF_GANS + "test_one_place_for_all_channels_and_pixels_of_an_image", cf=True,
    ),
    Exhibit(
        "penalty without its root",
        "The norm of the gradient is not taken over all pixels, but of each.",
        ("heykeetae/Self-Attention-GAN#48",),
        gan_losses.gradient_penalty, "torch.linalg.vector_norm(gradients, dim=1)", "gradients.abs()",
        OF_GANS + "test_penalties_know_linear_discriminators", cf=True,
    ),
)  # fmt: skip
