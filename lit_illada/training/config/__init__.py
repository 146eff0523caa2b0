"""Configs of training: trainer, devices, optimizer, schedule, divergence. Importing them does not import torch."""
