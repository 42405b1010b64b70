"""What promises things: the plan, the store, the driver, the merge. No engine and no coffea may enter."""
