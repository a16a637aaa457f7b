"""Registers the fake task in processes that a test starts with this folder on PYTHONPATH."""

import sys

import fake_task

import pipelines

pipelines.TASKS += ("fake",)
sys.modules["pipelines.fake"] = fake_task
