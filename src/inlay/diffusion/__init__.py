"""Networks on latents: noise levels, sampling, distillation, attention, text; no file is known."""
