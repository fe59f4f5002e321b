"""What recipes prove themselves with: claims, a bench to run them on, small data and models."""
