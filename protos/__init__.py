"""Wire contracts: the .proto files, and the stubs that `protos/generate.py` makes of them."""
