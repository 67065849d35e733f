"""What a run consists of: a `State`, and `Stage`s that each give the next one."""
