"""Experiments on the recipe: parameterisation, schedule, loss weight, noise, scale-and-shift, adaptation, refiner."""
