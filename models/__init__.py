"""How a program computes: the canonical decoder, graph programs, and bundle groups as layouts."""
