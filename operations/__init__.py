"""pyinfra operations, one noun a file. Each reads the run's plan for its concern, says noop in a sentence or acts."""
