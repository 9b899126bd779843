"""Peers that find each other, connect directly, and stay connected."""
