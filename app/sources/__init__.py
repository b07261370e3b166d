"""Where records come from: files, generated scenarios, and later HTTP and databases."""
