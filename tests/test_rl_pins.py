"""The lock holds what reinforcement learning will stand on: TF-Agents beside Keras 3 in one process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import gymnasium
sys.modules["gym"] = gymnasium  # tf_agents imports it for its registry only
import keras, tensorflow as tf, tf_keras
from tf_agents.agents.dqn import dqn_agent
from tf_agents.agents.ppo import ppo_clip_agent
from tf_agents.agents.sac import sac_agent
from tf_agents.networks import q_network
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step
observation = tf.TensorSpec([4], tf.float32)
action = tensor_spec.BoundedTensorSpec((), tf.int64, 0, 1)
agent = dqn_agent.DqnAgent(
    time_step.time_step_spec(observation),
    action,
    q_network=q_network.QNetwork(observation, action, fc_layer_params=(8,)),
    optimizer=tf_keras.optimizers.legacy.Adam(1e-3),
)
agent.initialize()
chosen = agent.policy.action(time_step.restart(tf.zeros([1, 4]), 1)).action.numpy()
assert chosen.tolist() in ([0], [1])
assert keras.__version__.startswith("3.") and keras.layers.Dense(1) is not None
assert tf.keras.layers.Layer.__module__.startswith("tf_keras")
"""


def test_an_agent_of_tf_agents_acts_in_a_process_that_also_holds_keras_3():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
