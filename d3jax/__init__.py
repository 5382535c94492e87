"""Dataset distillation in JAX/Flax."""
