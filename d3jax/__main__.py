"""`python -m d3jax` is `d3jax`."""

from d3jax.cli import main

if __name__ == "__main__":
    main()
