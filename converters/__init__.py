"""The offline journey: from a full model to one compressed bundle, and what it cost."""
