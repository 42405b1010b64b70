"""What can be run as it is: the demo's workflow, its data and its plot. No machinery may enter."""
