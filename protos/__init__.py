"""Wire contracts: the .proto files and the stubs generated from them (`python protos/generate.py`)."""
