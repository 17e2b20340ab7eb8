"""One model on several boards: the placed folder, the workers that hold its parts, the hub that asks and votes."""
