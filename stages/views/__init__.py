"""Views: crops, flips, mixtures and the like, stored as parameters and replayed bit for bit."""
