"""Certificates: what a long run rests on, shown on the model that is about to be trained."""
