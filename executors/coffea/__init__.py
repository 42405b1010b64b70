"""The only room that imports coffea, uproot, awkward or hist: reading, processing, packing, for_coffea."""
