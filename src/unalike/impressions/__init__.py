"""Federated impressions: what a server's model knows, distilled into images that clients train on beside their own."""
