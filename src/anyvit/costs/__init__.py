"""What a candidate costs on one device: the budget language, counts, timing, memory, and the device itself."""
