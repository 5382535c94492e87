"""The distilled data as one safe file."""

from d3jax.artifact.file import NAME as NAME
from d3jax.artifact.file import Artifact as Artifact
from d3jax.artifact.file import check_label_dtype as check_label_dtype
from d3jax.artifact.file import create as create
from d3jax.artifact.file import load as load
from d3jax.artifact.file import located as located
from d3jax.artifact.file import save as save
from d3jax.artifact.file import versions as versions
