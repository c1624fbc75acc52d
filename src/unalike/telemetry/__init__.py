"""What a run says while it goes on: events in a file, and progress for the person who waits."""
