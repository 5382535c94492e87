"""Networks trained on real data, and the store of their snapshots."""

from d3jax.experts.options import STORE_VERSION as STORE_VERSION
from d3jax.experts.options import TEACHER as TEACHER
from d3jax.experts.options import Options as Options
from d3jax.experts.options import check as check
from d3jax.experts.options import configuration as configuration
from d3jax.experts.options import data_defaults as data_defaults
from d3jax.experts.options import descent as descent
from d3jax.experts.options import kinds as kinds
from d3jax.experts.train import Training as Training
from d3jax.experts.train import alone as alone
from d3jax.experts.train import at_rest as at_rest
from d3jax.experts.train import complete as complete
from d3jax.experts.train import free_bytes as free_bytes
from d3jax.experts.train import fresh_parameters as fresh_parameters
from d3jax.experts.train import keys_of as keys_of
from d3jax.experts.train import make_room as make_room
from d3jax.experts.train import number_of_parameters as number_of_parameters
from d3jax.experts.train import stored_bytes as stored_bytes
from d3jax.experts.train import train as train
from d3jax.experts.train import train_experts as train_experts
from d3jax.experts.train import train_side_by_side as train_side_by_side
from d3jax.experts.train import training_time as training_time
from d3jax.experts.train import written_bytes as written_bytes
