"""Evaluation: how often each system refuses, complies or breaks, on every axis, and the page that shows it."""
