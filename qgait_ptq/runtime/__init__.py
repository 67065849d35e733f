"""Running a written file."""
